"""The tables of `benchmarks.robustness.kill_and_resume`, and what counts as harm."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.robustness.kills.faults import MEMORY_EPOCHS


def kill_table(kills: pd.DataFrame, by: str = "state") -> pd.DataFrame:
    """Return the table of what the kills left, a row for each thing that a command was doing, or for each command."""
    lines = []
    for state, group in [*kills.groupby(by), ("all", kills)]:
        lines.append(
            {
                "killed": state,
                "kills": len(group),
                "all files readable": f"{group['readable'].sum()}",
                "resumed to the end": f"{group['resumed'].sum()}",
                "identical to an undisturbed run": f"{group['identical'].sum()}",
                "near it, processes changed": f"{group['near'].sum()}",
                "epochs lost, at most": f"{group['lost'].max():.0f}",
                "files left over": f"{group['left'].sum()}",
            }
        )
    return pd.DataFrame(lines)


def signal_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table of the signals that ask for an end."""
    return pd.DataFrame(
        [
            {
                "signal": name,
                "sent": len(group),
                "status": ", ".join(str(status) for status in sorted(set(group["status"]))),
                "as it should be": f"{group['proper'].sum()}",
                "identical when resumed": f"{group['identical'].sum()}",
                "epochs lost, at most": f"{group['lost'].max():.0f}",
            }
            for name, group in rows.groupby("signal")
        ]
    )


def case_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "case": row["case"],
                "status": row["status"],
                "as it should be, earlier files intact": "yes" if row["good"] else "NO",
            }
            for row in rows
        ]
    )


def memory_table(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "run": row["run"],
                "epochs": row["epochs"],
                "MB after epoch 20": f"{row.get('early', np.nan):.1f}",
                f"MB after epoch {MEMORY_EPOCHS - 10}": f"{row.get('late', np.nan):.1f}",
                "growth, MB": f"{row.get('growth', np.nan):.1f}",
                "bound, MB": f"{row['bound']:g}",
            }
            for row in rows
        ]
    )


def is_good(row: dict[str, Any]) -> bool:
    """Tell whether a kill or a signal did no harm."""
    lost = row["lost"] is not None and row["lost"] <= (1 if row["signal"] == "SIGKILL" or row["status"] < 0 else 0)
    proper = row["signal"] == "SIGKILL" or row["proper"]
    return bool(
        row["readable"] and row["resumed"] and (row["identical"] or row["near"]) and not row["left"] and lost and proper
    )

"""The last lines of a table of methods: which one won on what, and the command that makes it."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

import pandas as pd

from utils.text import counted

HELD_OUT = "held-out images"


def closing_lines(flags: Sequence[str], measured: Sequence[dict[str, Any]], choices: pd.DataFrame | None) -> str:
    """Return which row won and the line that runs it; before it, the winner's place beside stage 1 where that is below.

    `flags` are those by which stage 2 names its stage 1. Rows as good as the winner are counted. Chosen numbers
    are judged by what chose them, other rows by held-out images or, where there are none, by the test images, which is
    said. `choices` are of the methods of the table; those of it that were not chosen are named.
    """
    scores, stage1, words = of_choices(choices)
    if not scores:
        scores, words = of_rows(measured)
    if not scores:
        return ""
    winner = max(scores, key=lambda row: scores[row])
    lines = []
    if not math.isnan(stage1) and scores[winner] < stage1:
        lines.append(
            f"warning: on {words} no method reaches stage 1: class-balanced accuracy {stage1:.1f} there, "
            f"{scores[winner]:.1f} the best; keep the classifier of stage 1"
        )
    judged = {shlex.split(flags)[1] for flags in scores}
    names = dict.fromkeys(shlex.split(row["label"]["flags"])[1] for row in measured)
    left_out = [name for name in names if name not in judged and choices is not None]
    if left_out:
        lines.append(f"not compared on {words}: {', '.join(left_out)} (no numbers chosen there)")
    others = sum(score == scores[winner] for score in scores.values()) - 1
    ties = f" ({counted(others, 'more row is', 'more rows are')} as good there)" if others else ""
    name = shlex.split(winner)[1]
    lines.append(f"best on {words}: {name}, class-balanced accuracy {scores[winner]:.1f}{ties}. To run it:")
    lines.append(f"    python main_stage2.py {shlex.join([*flags, *shlex.split(winner)])}")
    return "\n".join(lines)


def of_choices(choices: pd.DataFrame | None) -> tuple[dict[str, float], float, str]:
    """Return the score of the flags that were chosen for each method, that of stage 1, NaN where it is not known, and
    on what they were measured."""
    if choices is None:
        return {}, math.nan, HELD_OUT
    own = choices[choices["chosen"] & ~choices["method"].str.startswith("shared budget: ") & choices["mean"].notna()]
    known = choices["stage1"].dropna() if "stage1" in choices else pd.Series(dtype=float)
    scores = dict(zip(own["flags"], own["mean"].astype(float), strict=True))
    return scores, float(known.iloc[0]) if len(known) else math.nan, HELD_OUT


def of_rows(measured: Sequence[dict[str, Any]]) -> tuple[dict[str, float], str]:
    """Return the mean score of the flags of each row over its seeds, and on what it was measured."""
    rows = [(row["label"]["flags"], row["metrics"]) for row in measured if row["metrics"] is not None]
    held_out = bool(rows) and all(metrics["holdout"] for _, metrics in rows)
    scores: dict[str, list[float]] = {}
    for flags, metrics in rows:
        record = (
            metrics["holdout"]["class_balanced_accuracy"] if held_out else metrics["last"]["plain"]["class_balanced"]
        )
        scores.setdefault(flags, []).append(float(record))
    means = {flags: sum(values) / len(values) for flags, values in scores.items()}
    return means, HELD_OUT if held_out else "the test images (too good a number, since they chose it)"

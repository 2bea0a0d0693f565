"""What 10^8 images and 10^6 classes would cost, on paper: measured times and memory, and the slopes between sizes.

    python -m benchmarks.speed.large_scale

Reads `scaling_cpu_resnet32.csv`, `identity.csv` and `decode.csv` in the folder of results, measures nothing, and writes
`large_scale.csv` and `.md` there. A value at a larger size is the one at the largest size that was measured, times the
ratio of sizes to the power of the measured exponent, at least that of the work; of what was measured at one size, 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.command import make_own_parser
from benchmarks.record import provenance, write_record
from utils.command import run_command
from utils.errors import UserError

IMAGES, CLASSES = 1e8, 1e6
SCALING, IDENTITY, DECODE = "scaling_cpu_resnet32.csv", "identity.csv", "decode.csv"
# Items of scaling_cpu_resnet32.csv: sweep, item, words.
ITEMS = (
    ("images", "order, instance", "order of an epoch, instance"),
    ("images", "order, class_balanced", "order of an epoch, class_balanced"),
    ("images", "epoch, instance", "an epoch of stage 2"),
    ("classes", "head linear", "a step of stage 2, linear head"),
    ("classes", "loss ce", "cross-entropy, forward and backward"),
    ("classes", "closed form ncm", "nearest class means"),
    ("classes", "report: accuracies, F1 (classification_report)", "report: accuracies, F1"),
    ("classes", "report: LoMa and RSD (logits_magnitude)", "report: LoMa and RSD"),
)
FOR_IDENTITY = {"listing alone": "list of the images", "content, first time": "identity by content, first time"}
MIB = 1e6 / 2**20  # of a megabyte
NOTES = (
    "Extrapolated, not measured: the value at the measured size times (size / measured size)^exponent. An exponent is "
    "the measured one, at least that of the work; of what was measured at one size it is 1, and its memory holds the "
    "imports too. The revisions and machines are those of the sources, some of them earlier than this code."
)


@dataclass(frozen=True)
class Slope:
    """A measured value and how it grows: `value` at `size`, with the power `exponent` of the size."""

    value: float
    size: float
    exponent: float

    def at(self, size: float) -> float:
        """Return the value at another size."""
        return float(self.value * (size / self.size) ** self.exponent)


def read(results: Path, name: str) -> pd.DataFrame:
    """Read a file of results; a UserError where it is missing."""
    if not (results / name).is_file():
        raise UserError(f"there is no {results / name}, which this is computed from; --results names another folder")
    return pd.read_csv(results / name)


def row(what: str, unit: str, slope: Slope, size: float, source: str, revision: str) -> dict[str, Any]:
    """Return a row of the table."""
    return {
        "what": what,
        "unit": unit,
        "measured_size": slope.size,
        "measured": slope.value,
        "exponent": slope.exponent,
        "size": size,
        "extrapolated": slope.at(size),
        "source": source,
        "source_revision": revision,
    }


def scaling_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of seconds and of memory that the sweeps over images and classes give."""
    rows = []
    for sweep, item, what in ITEMS:
        found = table[(table["sweep"] == sweep) & (table["item"] == item)].sort_values("size")
        if found.empty:
            raise UserError(f"{SCALING} has no '{item}': it is of another version")
        last, size = found.iloc[-1], IMAGES if sweep == "images" else CLASSES
        for unit, column, factor, exponent in (
            ("seconds", "milliseconds", 1e-3, "time_exponent"),
            ("MiB", "extra_mb", MIB, "memory_exponent"),
        ):
            known = [value for value in (last["expected_exponent"], last[exponent]) if not pd.isna(value)]
            slope = Slope(float(last[column] * factor), float(last["size"]), float(max(known)))
            rows.append(row(what, unit, slope, size, SCALING, last["git_revision"]))
    return rows


def identity_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of what happens once a file: as if all of it, memory too, grew with the number of files."""
    rows = []
    for what, words in FOR_IDENTITY.items():
        found = table[table["what"] == what]
        files, revision = float(found["files"].iloc[0]), found["git_revision"].iloc[0]
        for unit, column in (("seconds", "seconds"), ("MiB", "peak_mib")):
            slope = Slope(float(found[column].median()), files, 1.0)
            rows.append(row(words, unit, slope, IMAGES, IDENTITY, revision))
    return rows


def decode_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the row of an epoch's images through the loader, on as many cores as were measured."""
    found = table[(table["way"] == "loader, batches") & (table["decoder"] == "torchvision")]
    rate, workers = float(found["images_per_second"].median()), int(found["workers"].iloc[0])
    what = f"an epoch's images of {found['size'].iloc[0]} pixels, {workers} reading processes"
    return [row(what, "seconds", Slope(1 / rate, 1.0, 1.0), IMAGES, DECODE, found["git_revision"].iloc[0])]


def main(argv: Sequence[str] | None = None) -> None:
    own = make_own_parser("speed.large_scale", __doc__).parse_args(argv)
    rows = [
        *identity_rows(read(own.results, IDENTITY)),
        *decode_rows(read(own.results, DECODE)),
        *scaling_rows(read(own.results, SCALING)),
    ]
    table = pd.DataFrame(rows)
    numbers = {
        "measured at": "measured_size",
        "value there": "measured",
        "exponent": "exponent",
        "size": "size",
        "value": "extrapolated",
    }
    shown = pd.DataFrame(
        {
            "what": table["what"] + ", " + table["unit"],
            **{title: table[column].map("{:.3g}".format) for title, column in numbers.items()},
        }
    )
    made = provenance("speed.large_scale", argv, torch.device("cpu"))
    table = table.assign(command=made["command"], git_revision=made["git_revision"])
    write_record(own.results, "large_scale", table, shown, NOTES)


if __name__ == "__main__":
    run_command(main)

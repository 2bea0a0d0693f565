"""Every re-training method on one frozen feature, with a shared budget and with numbers chosen on held-out images."""

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from tables.published import cell, sources
from tables.request import Request, write_results
from tables.rows import Laboratory, Measured, Row, measure_rows, open_laboratory
from tables.selection import Flags, select
from utils.compare import GROUPS, csv_row, mean_cell
from utils.config import STAGE2, parse_command
from utils.errors import UserError
from utils.files import write_text
from utils.plots import COLOURS
from utils.recipes import RECIPES, find_recipe
from utils.runs import experiment_name

SHARED, SELECTED = "shared", "selected"
HIGHLIGHTED = {"ce": "black", "los": "tab:red", "balanced_softmax": "tab:blue", "tau_norm": "tab:green"}


def unified(request: Request) -> None:
    """Write `results/unified_<experiment>.*`; with `--select`, first `..._selection.csv`."""
    methods = request.methods or list(RECIPES)
    for method in methods:
        find_recipe(method)
    measured: list[Measured] = []
    for ratio in request.ratios():
        for seed in request.seeds:
            flags = request.starting_point(seed, **ratio)
            lab = open_laboratory(flags, __doc__ or "")
            name = f"unified_{experiment_name(lab.command.settings)}"
            choices = find_choices(request, name, methods, lab)
            rows = rows_of(methods, lab.data.name, choices)
            measured += measure_rows(lab, flags, rows, temperatures(choices))
        report(request, name, measured, choices)
        measured = []


def shared_flags(method: str, dataset: str) -> Flags:
    """Return the flags of a method under the shared budget: epochs and learning rate of LOS on this data set.

    Weight decay is a method's own where it is the method.
    """
    if not RECIPES[method].trains:
        return "--method", method
    usual = parse_command(STAGE2, "", ["--dataset", dataset, "--method", "los"]).settings
    budget = ("--finetune_epoch", str(usual.finetune_epoch), "--finetune_lr", f"{usual.finetune_lr:g}")
    decay = RECIPES[method].weight_decay if method.startswith("wb") else 0
    return "--method", method, *budget, "--finetune_wd", f"{decay:g}"


def rows_of(methods: Sequence[str], dataset: str, choices: pd.DataFrame | None) -> list[Row]:
    """Return the rows: each method under the shared budget and, where it was chosen for, with its own numbers."""
    rows = [Row({"method": method, "budget": SHARED}, shared_flags(method, dataset)) for method in methods]
    if choices is not None:
        chosen = choices[choices["chosen"] & choices["method"].isin(methods)]
        rows += [
            Row({"method": method, "budget": SELECTED}, tuple(shlex.split(flags)))
            for method, flags in zip(chosen["method"], chosen["flags"], strict=True)
        ]
    return rows


def temperatures(choices: pd.DataFrame | None) -> dict[str, float]:
    """Return the temperature known for the flags of a row."""
    if choices is None:
        return {}
    known = choices[choices["temperature"].notna()]
    return dict(zip(known["flags"], known["temperature"], strict=True))


def find_choices(request: Request, name: str, methods: Sequence[str], lab: Laboratory) -> pd.DataFrame | None:
    """Return the trials: made now with `--select`, else those that an earlier selection left, else none."""
    path = request.results / f"{name}_selection.csv"
    if request.select and not _complete(path, methods):
        labs = [open_laboratory(flags, "") for flags in request.splits()]
        for split in labs:
            _refuse_other_recipe(split, lab)
        trials = select(methods, [shared_flags(method, lab.data.name) for method in methods], labs)
        trials["command"] = request.command
        trials["stage1_sha256"] = " ".join(split.checkpoint.sha256 for split in labs)
        request.results.mkdir(parents=True, exist_ok=True)
        write_text(path, trials.to_csv(index=False, float_format="%.6g"))
        print(f"written to {path}")
    if not path.exists():
        print("no selection yet: --select chooses each method's numbers on held-out images")
        return None
    print(f"numbers chosen on held-out images: {path}")
    return pd.read_csv(path)


def _complete(path: Any, methods: Sequence[str]) -> bool:
    return path.exists() and set(methods) <= set(pd.read_csv(path)["method"])


def _refuse_other_recipe(split: Laboratory, lab: Laboratory) -> None:
    """Raise UserError where numbers chosen on one data set or network would be used on another."""
    for key in ("dataset", "imb_type", "imb_ratio", "network", "width"):
        there, here = (getattr(one.command.settings, key) for one in (split, lab))
        if there != here:
            raise UserError(
                f"{split.checkpoint.path} has --{key} {there}, the table {here}: choose on a stage 1 like the table's"
            )


def report(request: Request, name: str, measured: Sequence[Measured], choices: pd.DataFrame | None) -> None:
    """Write the table's CSV, Markdown and figures."""
    rows = pd.DataFrame([table_row(row) for row in measured])
    numbers = {} if choices is None else dict(zip(choices["flags"], choices["mean"], strict=True))
    accuracy, logits = [], []
    for method in dict.fromkeys(rows["method"]):
        of_method = rows[rows["method"] == method]
        line: dict[str, Any] = {"method": method}
        for budget in dict.fromkeys(rows["budget"]):
            runs = of_method[of_method["budget"] == budget]
            if runs.empty:
                continue
            bad = runs["failure"].dropna()
            for checkpoint, way in (("last", "plain"), ("best", "flip")):
                columns = [f"{checkpoint}_{way}_{group}" for group in GROUPS]
                shown = " / ".join(mean_cell(runs[column], 1) for column in columns)
                line[f"{budget}: {checkpoint}, {way}"] = bad.iloc[0] if len(bad) else shown
            if budget == SELECTED:
                line["chosen"] = chosen_words(runs["flags"].iloc[0])
            if len(bad) == 0:
                logits.append(logits_line(method, budget, runs))
        line["published"] = cell(rows["dataset"].iloc[0], float(rows["imb_ratio"].iloc[0]), method)
        accuracy.append(line)
    rows["held_out_mean"] = [numbers.get(flags) for flags in rows["flags"]]
    tables = [pd.DataFrame(accuracy), pd.DataFrame(logits)]
    notes = sources([line["published"] for line in accuracy])
    figures = {"": draw_bars(rows), "logits": draw_per_class(measured)}
    write_results(request, name, rows, tables, figures, notes)


def chosen_words(flags: str) -> str:
    """Return the numbers that a selected row was given, without its method."""
    words = shlex.split(flags)[2:]
    pairs = [
        f"{name.removeprefix('--').removeprefix('finetune_')} {value}"
        for name, value in zip(words[::2], words[1::2], strict=True)
    ]
    return ", ".join(pairs) or "-"


def table_row(row: Measured) -> dict[str, Any]:
    """Return a row's CSV line; a diverged one has no numbers."""
    config, label = row["config"], row["label"]
    common = {**label, "title": RECIPES[label["method"]].title, "citation": RECIPES[label["method"]].citation}
    common["flags"] = row_flags(config["command"])
    if row["failure"]:
        settings = config["settings"]
        known = {key: settings[key] for key in ("dataset", "imb_type", "imb_ratio", "network", "width", "seed")}
        return {**common, "failure": row["failure"], **known, "command": config["command"]}
    return {**common, "failure": None, **{k: v for k, v in csv_row(row["metrics"], config).items() if k not in common}}


def row_flags(command: str) -> str:
    """Return the part of a row's command that makes it this row: from --method on, without the temperature."""
    words = shlex.split(command)
    return shlex.join(words[words.index("--method") :]).split(" --temperature")[0]


def logits_line(method: str, budget: str, runs: pd.DataFrame) -> dict[str, str]:
    """Return a row of the second table: what the logits look like."""
    calibrated = (
        f" -> {mean_cell(runs['last_plain_ece_after'], 1)}" if runs["last_plain_ece_after"].notna().all() else ""
    )
    return {
        "method": method,
        "budget": budget,
        "LoMa": mean_cell(runs["loma_mean"], 2),
        "LoMa sd/mean": mean_cell(runs["loma_variation"], 2),
        "RSD true": mean_cell(runs["rsd_true_mean"], 2),
        "RSD other": mean_cell(runs["rsd_other_mean"], 2),
        "LoMa, row": mean_cell(runs["row_loma_mean"], 2),
        "LoMa, training": mean_cell(runs["train_loma_mean"], 2),
        "weight norm sd/mean": mean_cell(runs["weight_norm_variation"], 2),
        "macro F1": mean_cell(runs["last_plain_macro_f1"], 1),
        "ECE": f"{mean_cell(runs['last_plain_ece'], 1)}{calibrated}",
        "re-balanced, all / few": " / ".join(mean_cell(runs[f"rebalanced_plain_{g}"], 1) for g in ("all", "few")),
        "seconds": mean_cell(runs["train_seconds"], 1),
    }


def draw_bars(rows: pd.DataFrame) -> Figure:
    """Draw each method's accuracy, the best total first: bars for all images, marks for the shots, a panel a budget."""
    budgets = list(dict.fromkeys(rows["budget"]))
    figure = Figure(figsize=(6.5 * len(budgets), 0.27 * rows["method"].nunique() + 1.5), layout="constrained")
    for axes, budget in zip(np.atleast_1d(figure.subplots(1, len(budgets))), budgets, strict=True):
        columns = {group: f"last_plain_{group}" for group in GROUPS}
        means = (
            rows[rows["budget"] == budget].groupby("method")[list(columns.values())].mean().sort_values(columns["all"])
        )
        bars = axes.barh(means.index, means[columns["all"]], color="lightgrey", label="all")
        for group, column in columns.items():
            if group != "all" and means[column].notna().any():
                axes.plot(means[column], means.index, "o", color=COLOURS[group], markersize=4, label=group)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
        axes.tick_params(labelsize=8)
        axes.margins(y=0.01)
        axes.set(
            xlabel="test accuracy (%), last epoch, plain",
            title=f"{budget} budget" if budget == SHARED else "chosen on held-out images",
        )
        axes.legend(fontsize=8, loc="lower right")
    return figure


def draw_per_class(measured: Sequence[Measured]) -> Figure:
    """Draw LoMa, RSD and weight norm of every class, largest first, a line a method (the first seed of each)."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for row in measured:
        if row["metrics"] is not None:
            seen.setdefault((row["label"]["method"], row["label"]["budget"]), row["metrics"])
    budgets = list(dict.fromkeys(budget for _, budget in seen))
    figure = Figure(figsize=(15, 4 * len(budgets)), layout="constrained")
    grid = np.atleast_2d(figure.subplots(len(budgets), 3))
    for line, budget in zip(grid, budgets, strict=True):
        for method, metrics in ((method, metrics) for (method, own), metrics in seen.items() if own == budget):
            order = np.argsort(-np.array(metrics["class_counts"]), kind="stable")
            column = metrics["logits"]["test"]["column"]
            colour = HIGHLIGHTED.get(method, "lightgrey")
            style = {
                "color": colour,
                "linewidth": 1.5 if method in HIGHLIGHTED else 0.7,
                "zorder": 2 if method in HIGHLIGHTED else 1,
            }
            for axes, values in zip(line, (column["loma"], column["rsd_true"], metrics["weight_norm"]), strict=True):
                axes.plot(
                    np.array(values, dtype=float)[order], label=method if method in HIGHLIGHTED else None, **style
                )
        for axes, name in zip(line, ("LoMa (column, test images)", "RSD of true samples", "weight norm"), strict=True):
            axes.set(
                xlabel="class, largest first",
                ylabel=name,
                title=f"{budget} budget",
                yscale="log" if name != "LoMa (column, test images)" else "linear",
            )
        line[0].legend(fontsize=8, title="others in grey", title_fontsize=8)
    return figure

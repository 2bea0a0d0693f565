"""The tables of runs that people read: at most six columns, one number a cell, with its deviation over the repeats.

What does not fit stands in the CSV beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from evaluation.run_rows import BY_NAMES, GROUPS, SETTINGS, WAYS, best_column, mean_cell, to_markdown
from evaluation.text_tables import MEASURES

# Digits after the point, where it is not one.
DIGITS = {"brier": 3, "nll": 3, "classwise_ece": 2}
EVENNESS = ("class_balanced", "harmonic", "worst", "worst_10")
FURTHER = ("geometric", "worst_10_percent", "top_5", "macro_f1")
SCORES = ("ece", "classwise_ece", "brier", "nll")
Tables = dict[str, pd.DataFrame]


@dataclass(frozen=True)
class Line:
    """A line of every table: what names it, in at most two columns, and its runs as CSV rows, the repeats.

    `more` are columns of tables of its own; a line whose runs failed has no numbers.
    """

    label: dict[str, str]
    runs: pd.DataFrame
    failed: bool = False
    more: dict[str, dict[str, str]] = field(default_factory=dict)


def numbers_of(line: Line, columns: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Return a line of a table: its label, and under each title the mean of a column of the rows."""
    if line.failed:
        return {**line.label, **dict.fromkeys(columns, "failed")}
    empty = pd.Series([None] * len(line.runs))
    cells = {title: mean_cell(line.runs.get(name, empty), digits) for title, (name, digits) in columns.items()}
    return {**line.label, **cells}


def measures(names: Sequence[str], column: str) -> dict[str, tuple[str, int]]:
    """Return the columns of measures of a report: their titles, where they stand in a row, and their digits. `column`
    is how that place is called, with {} for the measure."""
    return {MEASURES[name]: (column.format(name), DIGITS.get(name, 1)) for name in names}


def report_tables(lines: Sequence[Line], ways: Sequence[tuple[str, str]] | None = None) -> Tables:
    """Return, by title, what was measured of the test images: accuracies of each of the `ways` of testing (the last
    epoch, plain, and the best one, if not given), and of the former how even they are and what the probabilities are
    worth."""
    rows = pd.concat([line.runs for line in lines])
    ways = [("last", "plain"), best_column(rows)] if ways is None else ways
    tables = {
        f"Accuracy in percent, {checkpoint} epoch, {way}": measures(GROUPS, f"{checkpoint}_{way}_{{}}")
        for checkpoint, way in ways
    }
    tables["How even the classes are, in percent, last epoch, plain"] = measures(EVENNESS, "last_plain_{}")
    tables["Further accuracies in percent, last epoch, plain"] = measures(FURTHER, "last_plain_{}")
    tables["Probabilities, last epoch, plain"] = measures(SCORES, "last_plain_{}")
    if "last_plain_ece_after" in rows and rows["last_plain_ece_after"].notna().any():
        tables["Probabilities with the temperature, last epoch, plain"] = measures(SCORES, "last_plain_{}_after")
    shown = {title: pd.DataFrame([numbers_of(line, columns) for line in lines]) for title, columns in tables.items()}
    for line in lines:
        for title in line.more:
            own = [{**each.label, **each.more[title]} for each in lines if title in each.more]
            shown.setdefault(title, pd.DataFrame(own).fillna("-"))
    return shown


def logits_cells(runs: pd.DataFrame, seconds: int = 1) -> dict[str, dict[str, str]]:
    """Return the tables of what the logits look like, for `Line.more`; `seconds` are digits of the time."""
    columns = {
        "Logits on test images (column reading, over the classes)": {
            "LoMa": ("loma_mean", 2),
            "LoMa sd/mean": ("loma_variation", 2),
            "RSD true, median": ("rsd_true_median", 2),
            "RSD other, median": ("rsd_other_median", 2),
        },
        "Logits, weights and time": {
            "LoMa, row": ("row_loma_mean", 2),
            "LoMa, training": ("train_loma_mean", 2),
            "weight norm sd/mean": ("weight_norm_variation", 2),
            "seconds": ("train_seconds", seconds),
        },
    }
    return {title: numbers_of(Line({}, runs), own) for title, own in columns.items()}


def rebalanced_cells(runs: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return the table of the re-balanced predictions, for `Line.more`."""
    tau = runs["rebalance_tau"].iloc[0]
    title = f"Accuracy in percent, last epoch, plain, re-balanced over the test images, tau {tau:g}"
    return {title: numbers_of(Line({}, runs), measures(GROUPS, "rebalanced_plain_{}"))}


def distinguished(rows: pd.DataFrame) -> list[str]:
    """Return the name of each row and, where rows of one name are of different settings, what not all of them have."""
    words = []
    for _, row in rows.iterrows():
        ratio = [f"IF{row['imb_ratio']:g}"] if row["imb_type"] != "natural" else []
        words.append([row["dataset"], *ratio, row["network"], *str(row["settings"]).split()])
    of_name = rows["name"].tolist()
    found = []
    for name, own in zip(of_name, words, strict=True):
        others = [each for other, each in zip(of_name, words, strict=True) if other == name]
        apart = [word for word in own if not all(word in each for each in others)]
        found.append(f"{name}, {' '.join(apart)}" if apart else name)
    return found


def repeats(rows: pd.DataFrame) -> list[Line]:
    """Return a line for each group of rows that differ in the seed alone.

    Where all of them started from one stage 1, the seeds are stage 2's and the line says so. Runs on other data of the
    same name, and repetitions of one seed, are no repeats: each has a line of its own, which says why.
    """
    lines = []
    data = rows.groupby(SETTINGS, dropna=False)["data_sha256"].transform("nunique")
    once = [*SETTINGS, "data_sha256", "seed", "stage1_sha256"]
    repetition = rows.groupby(once, dropna=False).cumcount()
    rows = rows.assign(data_sets=data, repetition=repetition, title=distinguished(rows))
    for _, runs in rows.groupby([*SETTINGS, "data_sha256", "repetition"], sort=False, dropna=False):
        first = runs.iloc[0]
        name = first["title"]
        if first["data_sets"] > 1:
            name += f", data {first['data_sha256'].removeprefix(BY_NAMES)[:8]}"
        name += f", run {first['repetition'] + 1}" if first["repetition"] else ""
        one_stage1 = len(runs) > 1 and runs["stage1_sha256"].nunique() == 1
        seeds = f"{'stage 2: ' * one_stage1}{', '.join(str(seed) for seed in runs['seed'])}"
        about = {"protocol": first["protocol"], "seeds": seeds, "LoMa": mean_cell(runs["loma_mean"], 2)}
        about["seconds"] = mean_cell(runs["train_seconds"], 0)
        lines.append(Line({"run": name}, runs, more={"Runs": about}))
    return lines


def compared_tables(rows: pd.DataFrame) -> Tables:
    """Return the tables of finished runs side by side, by title; of the ways of testing those that any of them has."""
    ways = [(checkpoint, way) for checkpoint, way in WAYS if rows[f"{checkpoint}_{way}_all"].notna().any()]
    tables = report_tables(repeats(rows), ways)
    return {"Runs": tables.pop("Runs"), **tables}


def tables_text(tables: Tables) -> str:
    """Return tables as they are shown on the screen, their titles above them."""
    return "\n\n".join(f"{title}:\n{table.fillna('-').to_string(index=False)}" for title, table in tables.items())


def tables_markdown(tables: Tables) -> str:
    """Return tables as Markdown, their titles above them."""
    return "\n".join(f"{title}:\n\n{to_markdown(table)}" for title, table in tables.items())

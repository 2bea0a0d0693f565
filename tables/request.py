"""What `reproduce.py` was asked for, the stage 1s that a table needs, and where its results go."""

import shlex
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from evaluation.csv_files import csv_text
from evaluation.intervals.findings import Findings
from evaluation.plots import save_figure
from evaluation.run_rows import BY_NAMES
from evaluation.shown_tables import Tables, tables_markdown, tables_text
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.declare import STAGE1, STAGE2, Facet
from settings.fields import with_facet
from settings.resolve import flag_words
from utils.files import make_folder, write_text
from utils.outside import within
from utils.text import counted, shortened, tell

HOLDOUT = 0.2  # share of every class that --select keeps out of stage 1
SPLITS = (0, 1, 2)  # seeds of the stage 1s that it chooses on
# What a stage 1 measured of itself is no matter where stage 2 starts from it.
NOT_MEASURED = dict.fromkeys(with_facet(Facet.MEASURE))
# Both stages have these; in a table they are stage 1's, and stage 2 keeps the preset's: it is part of the budget.
STAGE1_ONLY = with_facet(Facet.STAGE1_STEPS | Facet.STAGE2_STEPS)


LONGEST_PART = 24  # characters of a part of a file's name that grows with arguments


@dataclass(frozen=True)
class FileName:
    """What a table's files are called: what it is `of` (table, data, network), the `settings` of its stage 1 that are
    not usual, and the `methods` where it is only a part of the whole table.

    No name grows with arguments: settings and methods that are long stand in it as a hash, and in words in the file.
    """

    of: str
    settings: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        """The name without what follows for each file."""
        methods = shortened("-".join(self.methods), LONGEST_PART)
        if "-".join(self.methods) != methods:
            methods = f"{len(self.methods)}methods_{methods}"
        return "_".join(part for part in (self.of, shortened("_".join(self.settings), LONGEST_PART), methods) if part)

    @property
    def spelled(self) -> str:
        """The name with everything in words: that of earlier versions."""
        return "_".join(part for part in (self.of, *self.settings, "-".join(self.methods)) if part)

    def words(self) -> str:
        """Return what the hashes in the name stand for, "" where there are none."""
        if self.stem == self.spelled:
            return ""
        parts = [f"settings of stage 1: {', '.join(self.settings)}"] if self.settings else []
        parts += [f"{counted(len(self.methods), 'method')}: {', '.join(self.methods)}"] if self.methods else []
        return f"`{self.stem}` stands for {self.of}; {'; '.join(parts)}."


@dataclass(frozen=True)
class Request:
    """A parsed command line: `given` are flags of the two stages, `train_stage1` and `train_stage2` their scripts."""

    table: str
    seeds: list[int]
    imb_ratios: list[float] | None
    methods: list[str] | None
    select: bool
    holdout_pth: list[str]
    results: Path
    given: dict[str, Any]
    command: str
    train_stage1: Callable[[Sequence[str]], dict[str, Any]]
    train_stage2: Callable[[Sequence[str]], dict[str, Any]]
    views: Sequence[str] = ()  # of a table that has several

    def ratios(self) -> list[dict[str, float]]:
        """Return the imbalance factors as flags; none where the data set's preset or a checkpoint decides."""
        return [{}] if self.imb_ratios is None else [{"imb_ratio": ratio} for ratio in self.imb_ratios]

    def flags(self, script: str, **more: Any) -> list[str]:
        """Return the flags given that `script` reads, with `more` in their place; None leaves one out."""
        given = {name: value for name, value in self.given.items() if script == STAGE1 or name not in STAGE1_ONLY}
        return flag_words(script, {name: value for name, value in {**given, **more}.items() if value is not None})

    def stage1(self, seed: int, **more: Any) -> Path:
        """Return the folder of the stage-1 run that the flags describe, after training what is missing of it."""
        argv = self.flags(STAGE1, seed=seed, **more)
        folder = run_path(parse_command(STAGE1, "", argv))
        if not (folder / "metrics.json").exists():
            tell(f"missing stage 1: python main_stage1.py {shlex.join(argv)}", flush=True)
        self.train_stage1([*argv, "--reuse"])
        return folder

    def starting_point(self, seed: int, **more: Any) -> list[str]:
        """Return the flags by which stage 2 names its stage 1: the file given, or the run of `stage1`."""
        if "features" in self.given:
            return self.flags(STAGE2, **more, seed=seed)
        source = self.given.get("pretrained_pth") or str(self.stage1(seed, **more, **NOT_MEASURED))
        return self.flags(STAGE2, **{**more, "pretrained_pth": source, "weights": None, "seed": seed})

    def splits(self, **like: Any) -> list[list[str]]:
        """Return, for each stage 1 without the held-out images, the flags by which stage 2 names it.

        `like` are the flags of the stage 1 that the numbers are chosen for: the splits are trained like it.
        """
        if "features" in self.given:  # what was trained on them has not seen the file's own held-out rows
            return [self.flags(STAGE2, seed=self.seeds[0])]
        # Without a factor the imbalance is the data's own, and `--imb_type` has no name for it.
        like = {name: value for name, value in like.items() if name != "imb_type" or "imb_ratio" in like}
        paths = self.holdout_pth or [
            str(self.stage1(seed, **{**like, "holdout": HOLDOUT, **NOT_MEASURED})) for seed in SPLITS
        ]
        return [self.flags(STAGE2, pretrained_pth=path, weights=None, seed=seed) for seed, path in enumerate(paths)]

    def repeats(self) -> str:
        """Return over what a mean and deviation of the table is."""
        if len(self.seeds) == 1:
            return f"Seed {self.seeds[0]}."
        one = "pretrained_pth" in self.given or "features" in self.given
        what = "of stage 2 alone, on one stage 1" if one else "each with its own stage 1"
        return f"Mean and sample deviation over seeds {', '.join(map(str, self.seeds))}, {what}."


def name_for(results: Path, name: str, data: Collection[str], ending: str = ".csv") -> str:
    """Return the name of a table's files: `name`, or `name` and the sha256 of its data where a file of other data of
    that name stands there already, which is left as it is.

    `data` are the `data_sha256` of its rows (`evaluation.run_rows`). A file of before they were recorded is replaced.
    """
    path = results / f"{name}{ending}"
    if not path.is_file() or not data:
        return name
    try:
        table = pd.read_csv(path, usecols=lambda column: column == "data_sha256", dtype=str)
    except (OSError, ValueError):  # damaged: its reader says so, or it is replaced
        return name
    known = set(table["data_sha256"].dropna()) if "data_sha256" in table else set()
    if not known:
        tell(f"{path} does not say what data it is of: not known to be other than these")
        return name
    if known & set(data):
        return name
    own = f"{name}_data{min(data).removeprefix(BY_NAMES)[:8]}"
    tell(f"{path} is of other data of that name: it stays, and these results are {own}")
    return own


def write_results(
    request: Request,
    called: FileName,
    rows: pd.DataFrame,
    tables: Tables,
    figures: dict[str, Figure],
    notes: str = "",
    claims: Findings | None = None,
) -> None:
    """Write `<name>.csv`, `.md` and `<name>[_<figure>].png`, and print the tables; what the rows may claim goes among
    the tables and into `<name>_intervals.csv`."""
    make_folder(request.results)
    name = name_for(request.results, called.stem, set(rows["data_sha256"].dropna()))
    target = within(request.results, request.results / name)
    done = "replaced" if target.with_name(f"{name}.csv").exists() else "written to"
    write_text(target.with_name(f"{name}.csv"), csv_text(rows, "%.6g"))
    if claims is not None:
        write_text(target.with_name(f"{name}_intervals.csv"), csv_text(claims.long, "%.6g"))
        tables, notes = tables | claims.tables, "\n".join([*claims.notes, notes])
    how = " ".join(part for part in (f"{request.repeats()} Made by `{request.command}`.", called.words()) if part)
    parts = [how + "\n", tables_markdown(tables), notes]
    write_text(target.with_name(f"{name}.md"), "\n".join(part for part in parts if part))
    for kind, figure in figures.items():
        save_figure(target.with_name(f"{name}_{kind}.png" if kind else f"{name}.png"), figure)
    tell(f"\n{tables_text(tables)}")
    tell(f"\n{how}\n{notes}\n{done} {target}.csv, .md and {len(figures)} figures")

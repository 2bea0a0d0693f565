"""What `benchmarks.jobs.paper_runs` has to do: items in the order of their worth, each in steps, and their state."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.command import ROOT
from benchmarks.jobs.at_once import BETWEEN
from evaluation.csv_files import read_csv
from runs.checkpoint import Checkpoint
from runs.run_names import run_path, stage1_tags
from runs.shards import SHARD_MIB
from settings.command_line import parse_command
from settings.fields import STAGE1, STAGE2, Settings
from settings.resolve import Command, flag_words
from stages.checkpoints import adopt_checkpoint
from tables.request import HOLDOUT, SPLITS, STAGE1_ONLY

STAGE1_NAME = "stage1"
RECORDS = "paper_runs"  # folder of the jobs' own files in that of the runs
WEIGHTS = ("if100_seed0",)  # items whose stage 1 is collected to be released
RETRAINED: dict[str, dict[str, str]] = {
    "los": {"method": "los"},
    "los_released": {"method": "los", "protocol": "released"},
    "ce": {"method": "ce"},
}
QUICK = {"dataset": "digits", "epochs": 3, "finetune_epoch": 2, "width": 4}
FLAGS_START = 2  # words of a script's command before its flags: the interpreter and the script
QUICK_LARGEST_RATIO = 100  # the digits' largest class has 124 images


@dataclass(frozen=True)
class Step:
    """A child process: a stage of an item or, with 0 `epochs`, the export of its features or weights.

    It makes `folder`; `stage1` is that of the item's stage 1.
    """

    item: str
    name: str
    command: tuple[str, ...]
    folder: Path
    epochs: int
    stage1: Path

    def __str__(self) -> str:
        return f"{self.item} {self.name}"

    def is_finished(self) -> bool:
        return (self.folder / "metrics.json").is_file() if self.epochs else self.folder.is_dir()

    def can_begin(self) -> bool:
        return self.name == STAGE1_NAME or (self.stage1 / "metrics.json").is_file()


def order_of_worth() -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Yield (name, flags, whether stage 2 follows) of every item, the one worth most first."""
    readings = {"gala": {}, "gala_released": {"gala_margin": "released", "gala_accumulation": "double"}}
    first = {"imb_ratio": 100, "seed": 0}
    for ratio, seed in ((100, 0), (100, 1), (100, 2), (10, 0), (50, 0)):
        yield f"if{ratio}_seed{seed}", {"imb_ratio": ratio, "seed": seed}, True
    for reading, own in readings.items():
        for one, two in ((1.0, 1.0), (1.2, 0.9)):
            values = {**first, "loss": "gala", "lambda1": one, "lambda2": two, **own}
            yield f"if100_seed0_{reading}_lambda{one:g}_{two:g}", values, False
    for one, two in ((1.2, 0.9), (1.0, 1.0)):
        values = {**first, "imb_ratio": 200, "loss": "gala", "lambda1": one, "lambda2": two}
        yield f"if200_seed0_gala_lambda{one:g}_{two:g}", values, False
    for seed in SPLITS:  # what `reproduce.py unified --select` chooses on
        yield f"if100_seed{seed}_holdout", {**first, "seed": seed, "holdout": HOLDOUT}, False
    for draw in (0, 1, 2):
        yield f"if100_seed0_shuffle{draw}", {**first, "subset": "shuffle", "subset_seed": draw}, True
    for ratio, seed in ((10, 1), (50, 1), (10, 2), (50, 2), (200, 0), (500, 0)):
        yield f"if{ratio}_seed{seed}", {"imb_ratio": ratio, "seed": seed}, True


def make_steps(given: dict[str, Any], quick: bool, part_mib: float = SHARD_MIB) -> list[Step]:
    """Return the steps of all items in the order of their worth; a UserError for `given` flags that cannot be."""
    steps = []
    for name, own, retrained in order_of_worth():
        if quick and own["imb_ratio"] > QUICK_LARGEST_RATIO:
            continue
        values = {**own, **(QUICK if quick else {}), **given}
        steps += steps_of(f"{'quick_' * quick}{name}", values, retrained, part_mib)
    return steps


def steps_of(item: str, values: dict[str, Any], retrained: bool, part_mib: float) -> list[Step]:
    """Return the steps of an item, in the folders that the scripts will choose."""
    command, words = script_command(STAGE1, values)
    stage1, settings = run_path(command), command.settings
    steps = [Step(item, STAGE1_NAME, words, stage1, settings.epochs, stage1)]
    # What stage 2 will read of a checkpoint that need not be there yet.
    config = {"stage": "stage1", "tags": stage1_tags(command), "settings": asdict(settings)}
    shared = {key: value for key, value in values.items() if key not in STAGE1_ONLY}
    for name, own in RETRAINED.items() if retrained else ():
        command, words = script_command(STAGE2, {**shared, **own, "pretrained_pth": stage1})
        path = stage1 / f"{command.settings.start}.pth"
        source = Checkpoint(path, "", "planned", {}, {"epoch": settings.epochs, "config": config})
        command = adopt_checkpoint(command, source)
        folder = run_path(command, source)
        steps.append(Step(item, name, words, folder, command.settings.finetune_epoch, stage1))
    steps.append(
        export_step(item, "features", settings, stage1, part_mib, "tools.export_features", "--device", settings.device)
    )
    if item.removeprefix("quick_") in WEIGHTS:
        steps.append(export_step(item, "weights", settings, stage1, part_mib, "tools.release"))
    return steps


def export_step(
    item: str, name: str, settings: Settings, stage1: Path, part_mib: float, module: str, *flags: str
) -> Step:
    """Return the step that makes files, the features or the weights, of a finished stage 1."""
    folder = Path(settings.out) / RECORDS / "exports" / f"{item}_{name}"
    file = unfinished(folder) / f"{item}_{name}.safetensors"
    words = (sys.executable, "-m", module, stage1, file, "--part_mib", part_mib, *flags)
    return Step(item, name, tuple(map(str, words)), folder, 0, stage1)


def unfinished(folder: Path) -> Path:
    """Return where features are exported to, until all are there."""
    return folder.with_name(f"{folder.name}.unfinished")


def script_command(script: str, values: dict[str, Any]) -> tuple[Command, tuple[str, ...]]:
    """Return a script's command with those of the settings that it reads: parsed, and in words."""
    argv = flag_words(script, values)
    return parse_command(script, "", argv), (sys.executable, str(ROOT / f"{script}.py"), *argv, "--reuse")


def beside(step: Step, ready: Sequence[Step], most: int) -> list[Step]:
    """Return a step and, of those that can begin, up to `most` in all that are done at once with it.

    Those of a stage 1 are other stage 1s, which one child trains; those of another step each have a child.
    """
    of_stage1 = step.name == STAGE1_NAME
    others = [other for other in ready if other != step and (other.name == STAGE1_NAME) == of_stage1]
    return [step, *others][:most]


def children_of(group: Sequence[Step]) -> list[list[Step]]:
    """Return the steps of each child of steps that are done at once."""
    return [list(group)] if group[0].name == STAGE1_NAME else [[step] for step in group]


def command_of(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the command of a step, or the one that trains several stage 1s at once."""
    if len(steps) == 1:
        return steps[0].command
    words = [word for step in steps for word in (BETWEEN, *step.command[FLAGS_START:])]
    return (sys.executable, "-m", "benchmarks.jobs.at_once", *words[1:])


def progress(step: Step) -> tuple[int, float | None]:
    """Return the epochs in a run's log, and the mean seconds of one with its evaluation; None where there is none."""
    path = step.folder / "log.csv"
    if not path.is_file():
        return 0, None
    log = read_csv(path)
    return len(log), float((log["seconds"] + log["evaluation_seconds"].fillna(0)).mean())


def describe(step: Step) -> str:
    """Return the state of a step in words, with the time that it still needs."""
    if step.is_finished():
        waiting = 0 if step.epochs else len(list(step.folder.iterdir()))
        return (
            f"{step.name} {'finished' if step.epochs else f'exported in {waiting} files' if waiting else 'collected'}"
        )
    done, epoch = progress(step)
    time_left = "unknown" if epoch is None else in_words((step.epochs - done) * epoch)
    return f"{step.name} {done}/{step.epochs} ({time_left})" if step.epochs else f"{step.name} missing"


def in_words(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"

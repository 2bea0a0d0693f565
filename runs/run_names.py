"""Names of run folders, and how the next stage finds a run by them."""

import shlex
from pathlib import Path
from typing import Any

from runs.checkpoint import Checkpoint
from runs.records import read_config
from settings.declare import STAGE1, STAGE2, TRAINING, Facet
from settings.fields import FLAGS, IDENTITY_TAGS, PROTOCOL_SWITCHES, Settings, with_facet
from settings.presets import PROTOCOLS
from settings.resolve import Command, flag_words
from utils.errors import UserError
from utils.outside import within
from utils.text import plain_name, shortened, tell

LONGEST_NAME = 80  # characters of the name of anyone's own data in a folder's name; a longer one is a hash there
LONGEST_TAGS = 200  # of all settings in the name of a run's folder, which has 255 bytes; config.json has them in words


def seed_folder(settings: Settings, seed: int) -> Path:
    """Return `<out>/<dataset>_<imb_type>IF<r>_<network>/seed<k>`, `<dataset>_natural_<network>` for data that are
    long-tailed of themselves."""
    return Path(settings.out) / f"{data_name(settings)}_{settings.network}" / f"seed{seed}"


def experiment_name(settings: Settings) -> str:
    """Return the name of data and network in the files of a table."""
    width = "" if settings.width is None else f"w{settings.width}"
    return f"{data_name(settings)}_{settings.network}{width}"


def data_name(settings: Settings) -> str:
    """Return the data set and its imbalance; anyone's own data are told apart by the name of their folder or list."""
    dataset = settings.dataset
    if dataset == "folder" or (dataset == "list" and settings.train_list is None):
        dataset += f"-{shortened(plain_name(Path(settings.data_dir).resolve().name), LONGEST_NAME)}"
    elif dataset == "list":
        dataset += f"-{shortened(plain_name(Path(str(settings.train_list)).stem), LONGEST_NAME)}"
    ratio = "" if settings.imb_ratio is None else f"IF{settings.imb_ratio:g}"
    return f"{dataset}_{settings.imb_type}{ratio}"


def tag(name: str, value: Any) -> str:
    """Return a setting as it stands in a folder's name; of a file its name alone."""
    if name == "weights":
        value = f"-{plain_name(Path(value).stem)}"
    if Facet.NUMBERS in FLAGS[name].facets:
        value = value.replace(",", "-")  # no comma can be part of a name
    return name if value is True else f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}"


def stage1_tags(command: Command) -> list[str]:
    """Return the settings of a stage-1 run that differ from the preset, in the order of `Settings`."""
    return _differing(command, [name for name, flag in FLAGS.items() if STAGE1 in flag.named_by])


def inherited_tags(stage1: Checkpoint) -> list[str]:
    """Return what a stage-2 run's name says of its stage 1.

    Settings that both stages have (such as the batch size) are marked as stage 1's. A file that is neither last.pth nor
    best.pth of a run is told by its sha256.
    """
    shared = tuple(name for name, flag in FLAGS.items() if flag.named_by == TRAINING and name not in IDENTITY_TAGS)
    tags = [f"stage1_{name}" if name.startswith(shared) else name for name in stage1.config.get("tags", [])]
    if stage1.content is None or stage1.path.name not in ("last.pth", "best.pth"):
        tags.append(f"from{stage1.sha256[:8]}")
    return tags


def stage2_tags(command: Command, stage1: Checkpoint) -> list[str]:
    """Return what tells a stage-2 run from others: its stage 1, and what differs from recipe and protocol."""
    settings = command.settings
    tags = inherited_tags(stage1) + _stage1_seed_tag(settings)
    own = [name for name, flag in FLAGS.items() if STAGE2 in flag.named_by]
    tags += [name for name in _differing(command, own) if name not in tags]
    if settings.protocol != "honest":
        tags.append(settings.protocol)
    usual = {name: getattr(command.defaults, name) for name in PROTOCOL_SWITCHES} | PROTOCOLS[settings.protocol]
    values = {name: getattr(settings, name) for name in PROTOCOL_SWITCHES}
    return tags + [tag(name, value) for name, value in values.items() if value != usual[name]]


def _stage1_seed_tag(settings: Settings) -> list[str]:
    differs = settings.stage1_seed is not None and settings.stage1_seed != settings.seed
    return [tag("stage1_seed", settings.stage1_seed)] if differs else []


def run_tags(command: Command, start: Checkpoint | None) -> list[str]:
    """Return what tells the run of a command from others; `start` is the stage 1 of a stage 2."""
    return stage1_tags(command) if start is None else stage2_tags(command, start)


def run_path(command: Command, start: Checkpoint | None = None) -> Path:
    """Return the folder of the run that a command describes; `start` is the stage 1 of a stage 2."""
    name = "stage1" if start is None else f"stage2_{command.settings.method}"
    parent = seed_folder(command.settings, command.settings.seed)
    tags = shortened("_".join(run_tags(command, start)), LONGEST_TAGS)
    return within(Path(command.settings.out), parent / "_".join(part for part in (name, tags) if part))


def _differing(command: Command, names: list[str]) -> list[str]:
    values = {name: vars(command.settings)[name] for name in names}
    return [
        tag(name, value)
        for name, value in values.items()
        if value is not None and value != getattr(command.defaults, name)
    ]


def find_run(command: Command, stage: str, seed: int) -> Path:
    """Find the run of `stage` that the command line describes: the exact match, else the only candidate.

    Raises UserError where there is none (it names the command that makes one) or several (it lists them).
    """
    settings = command.settings
    parent = seed_folder(settings, seed)
    wanted = _differing(command, list(IDENTITY_TAGS))
    if stage == settings.cur_stage:  # stage 2's smoothing says nothing of the stage 1 that it looks for
        wanted += _differing(command, ["label_smooth"])
    prefix = "stage1"
    if stage == "stage2":
        prefix = f"stage2_{settings.method}"
        wanted += _stage1_seed_tag(settings) + ([settings.protocol] if settings.protocol != "honest" else [])
    exact, candidates = None, []
    for path in sorted(parent.glob("*/config.json")):
        config = read_config(path)
        same = config.get("stage") == stage and (stage == "stage1" or config.get("method") == settings.method)
        tags = set(config.get("tags", []))
        if same and tags == set(wanted):
            exact = path.parent
        elif same and tags > set(wanted):
            candidates.append(path.parent)
    advice = _command_for(command, stage, seed)
    if exact is None and not candidates:
        raise UserError(f"no {stage} run in {parent / '_'.join([prefix, *wanted])}; make it first: {advice}")
    if exact is None and len(candidates) > 1:
        listed = ", ".join(str(path) for path in candidates)
        raise UserError(f"several {stage} runs fit: {listed}; name one with --pretrained_pth")
    found = candidates[0] if exact is None else exact
    if not (found / "last.pth").is_file():
        raise UserError(f"{found} has no finished epoch; go on with it first: {advice} --resume")
    if exact is None:
        tell(f"using {found}, the only {stage} run that fits")
    return found


def _command_for(command: Command, stage: str, seed: int) -> str:
    names = [*with_facet(Facet.ADDRESS)]
    names += ["method", "protocol"] if stage == "stage2" else []
    names += ["label_smooth"] if stage == command.settings.cur_stage else []
    flags = flag_words(f"main_{stage}", {name: vars(command.settings)[name] for name in names if name in command.given})
    if seed != command.defaults.seed:
        flags += ["--seed", str(seed)]
    return " ".join(["python", f"main_{stage}.py", *map(shlex.quote, flags)])

"""What stage 2 starts from and what a report is about: a run that is found, or a stage 1 that is made first.

A file of features with a classifier is a finished stage 1. On one without, and on the backbone of `--weights`, stage 1
is a linear classifier (`stages.linear_probe_start`), a run like any other.
"""

from pathlib import Path

from methods.offsets import check_held_out
from methods.recipes import find_recipe
from runs.checkpoint import Checkpoint, joined, load_checkpoint
from runs.records import read_config
from runs.run_names import find_run, run_path, seed_folder, stage1_tags
from settings.command_line import parse_command
from settings.declare import Facet
from settings.fields import FLAGS, STAGE1, TRAINING, with_facet
from settings.presets import ANY_SCALE
from settings.resolve import Command, flag_words
from stages.checkpoints import (
    adopt_checkpoint,
    adopt_report,
    checkpoint_files,
    find_checkpoints,
    find_stage1,
    open_features,
    report_unfinished,
    settle_features,
)
from stages.data import stage1_seed
from stages.linear_probe_start import train_probe
from utils.distributed import from_main, is_main, wait_for_all
from utils.errors import UserError
from utils.files import sha256_file
from utils.text import tell


def find_start(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage 1 that stage 2 starts from; with `--features` that of the file, trained first if it is missing.

    With `--weights` it is the stage 1 that was trained from them or, where there is none, the one of no epochs.
    """
    if command.settings.weights is not None:
        return find_on_weights(command)
    if command.settings.features is None:
        return find_stage1(command)
    command, given = open_features(command)
    command = settle_features(command, given)
    if find_recipe(command.settings.method).needs_held_out:  # before a classifier is trained for nothing
        known = given.content["features"].get("holdout_labels") if given.content is not None else None
        check_held_out(command.settings.method, known, len(given.config["class_counts"]))
    checkpoint = given if given.state else find_classifier(command, given)
    return adopt_checkpoint(command, checkpoint), checkpoint


def find_on_weights(command: Command) -> tuple[Command, Checkpoint]:
    """Read the stage 1 on the `--weights` of a stage 2: one that was trained or, after running it, the probe.

    Raises UserError where several fit, and where the one that was trained started from another file of that name.
    """
    if "pretrained_pth" in command.given:
        raise UserError("--weights and --pretrained_pth both name what stage 2 starts from; leave one out")
    probe = probe_command(command)
    if not is_trained(probe):
        train_probe(probe)
        wait_for_all()  # of many processes the first writes the run that all read next
        tell()
        if "rate_scale" not in command.given:
            command = command.settled(rate_scale=ANY_SCALE["rate_scale"])
        return find_stage1(command.replace(pretrained_pth=str(run_path(probe))))
    command, checkpoint = find_stage1(command)
    file, started = Path(str(command.settings.weights)), (checkpoint.config.get("weights") or {}).get("sha256")
    if file.is_file() and sha256_file(file) != started:
        raise UserError(
            f"{checkpoint.path.parent} started from another file than --weights {file} is now; name the run with "
            "--pretrained_pth, or another --out"
        )
    return command, checkpoint


def probe_command(command: Command) -> Command:
    """Return the command of the stage 1 of no epochs on the `--weights` of a stage 2."""
    # Of what both stages read, and a report does not, the flags given are stage 2's.
    of_stage2 = ("seed", "label_smooth", *(name for name, flag in FLAGS.items() if flag.read_by == TRAINING))
    of_stage2 += tuple(name for name in with_facet(Facet.MEASURE) if name != "shots")
    flags = flags_of(command, STAGE1, without=of_stage2)
    seed = stage1_seed(command.settings)
    return parse_command(STAGE1, "", [*flags, "--epochs", "0", "--seed", str(seed), "--reuse"])


def is_trained(probe: Command) -> bool:
    """Tell whether there is a stage-1 run of some epochs that is otherwise described as a probe is."""
    wanted = set(stage1_tags(probe)) - {"epochs0"}
    configs = map(read_config, seed_folder(probe.settings, probe.settings.seed).glob("stage1*/config.json"))
    return any(
        config.get("settings", {}).get("epochs", 0) > 0 and wanted <= set(config.get("tags", [])) for config in configs
    )


def flags_of(command: Command, script: str, without: tuple[str, ...] = ()) -> list[str]:
    """Return the flags given to a command that another script reads too."""
    kept = {name: value for name, value in command.given.items() if name not in (*without, "cur_stage")}
    return flag_words(script, kept)


def find_reported(command: Command) -> tuple[Command, dict[str, Checkpoint]]:
    """Read what `evaluate.py` reports on: with `--features` the classifier of the file itself, or runs on it."""
    if command.settings.features is None:
        return find_checkpoints(command)
    command, given = open_features(command)
    stage = command.settings.cur_stage or "stage1"
    if stage == "stage1" and given.state:
        return adopt_report(command, given), {given.path.stem: given}
    files = checkpoint_files(find_run(command, stage, command.settings.seed))
    checkpoints = {name: with_features(load_checkpoint(file), given) for name, file in files.items()}
    report_unfinished(checkpoints["last"])
    return adopt_report(command, checkpoints["last"]), checkpoints


def find_classifier(command: Command, given: Checkpoint) -> Checkpoint:
    """Return the stage-1 run on a file of features that has no classifier, after training it where there is none."""
    seed = stage1_seed(command.settings)
    begun = seed_folder(command.settings, seed).glob("stage1*/config.json")
    runs = (read_config(path) for path in begun if (path.parent / "last.pth").is_file())  # not one that was killed
    same = (config.get("settings", {}).get("holdout", 0) == command.settings.holdout for config in runs)
    if not from_main(any(same) if is_main() else False):  # a slower process would see what the first has begun
        names = ("features", "holdout", "out", "device", "gpu", "workers", "mmap", "shots")
        flags = flag_words(STAGE1, {name: command.given[name] for name in names if name in command.given})
        tell(f"{given.path} has no classifier: training one on it first (main_stage1.py --features)", flush=True)
        train_probe(parse_command(STAGE1, "", [*flags, "--seed", str(seed)]), given)
        wait_for_all()  # of many processes the first writes the run that all read next
        tell()
    return with_features(load_checkpoint(find_run(command, "stage1", seed) / "last.pth"), given)


def with_features(checkpoint: Checkpoint, given: Checkpoint) -> Checkpoint:
    """Return a run's checkpoint with the features that it was trained on; a UserError refuses it with any other."""
    named = (checkpoint.config.get("backbone") or {}).get("sha256")
    if named != given.sha256:
        raise UserError(
            f"{checkpoint.path.parent} was trained on another file than {given.path} is now: sha256 {str(named)[:16]} "
            f"there, {given.sha256[:16]} here; --out names another place, --overwrite (of main_stage1.py first) "
            "replaces the run"
        )
    return joined(checkpoint, given)

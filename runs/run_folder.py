"""A run's folder: what lies in it, and the rules for opening it. `runs.run_names` has its name."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation.plots import PLOTS
from runs.dependencies import differences
from runs.records import read_config
from settings.declare import Facet
from settings.fields import FLAGS, PROTOCOL_SWITCHES, with_facet
from settings.resolve import report_unused
from utils.command import EPOCHS_ARE_SAVED
from utils.distributed import from_main, is_main
from utils.errors import UserError
from utils.files import FolderLock, lock_folder, read_json, remove_leftovers, write_json
from utils.outside import within
from utils.text import tell


@dataclass(frozen=True)
class Run:
    """An opened run folder and its configuration; `finished` where it is there already, to be used as it is.

    No other process can open the folder as long as this object lives.
    """

    folder: Path
    config: dict[str, Any]
    finished: bool = False
    lock: FolderLock | None = field(default=None, compare=False, repr=False)

    @property
    def last(self) -> Path:
        return self.folder / "last.pth"

    @property
    def best(self) -> Path:
        return self.folder / "best.pth"


# Flags that say what to do with a run that is there.
CONTROL = {"resume", "overwrite", "reuse"}
# What a run writes; --overwrite removes these and nothing else.
RUN_FILES = ["metrics.json", "config.json", "log.csv", "per_class.csv", "last.pth", "best.pth", "auto.csv"]
OWN_FILES = [*RUN_FILES, *(f"plots/{name}" for name in PLOTS)]


def read_metrics(run: Run) -> dict[str, Any]:
    """Return the metrics of a finished run, and say that it was there."""
    tell(f"using the finished run {run.folder}")
    return read_json(run.folder / "metrics.json")


def open_run(
    folder: Path,
    config: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    reuse: bool = False,
    given: Collection[str] = (),
) -> Run:
    """Make a run's folder and write its config.json, or reopen one; with `reuse`, whatever is there. Of many processes
    the first does it for all. `given` are the flags of the command line: a resumed run takes their values, a finished
    one is refused or says that they have no effect.

    Raises UserError where another process is at work in it, where a run is there and neither `--resume` nor
    `--overwrite` was said, where it was made with other settings than the resuming command's, and where the folder
    cannot be written.
    """
    how = (resume, overwrite, reuse)
    opened = _open_run(folder, config, *how, set(given) - CONTROL) if is_main() else Run(folder, config)
    return replace(from_main(replace(opened, lock=None)), lock=opened.lock)


def _open_run(
    folder: Path, config: dict[str, Any], resume: bool, overwrite: bool, reuse: bool, given: Collection[str]
) -> Run:
    """Open a run in the process that writes."""
    if reuse and (folder / "metrics.json").exists() and (folder / "config.json").exists():
        before = read_config(folder / "config.json")
        _refuse_other_settings(folder, before, config)
        _judge_flags_of_finished(folder, before, config, given)
        return Run(folder, before, finished=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error
    lock = lock_folder(folder)
    try:
        return _begin_or_resume(Run(folder, config, lock=lock), resume or reuse, overwrite, given)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


@contextlib.contextmanager
def saved_or_removed(run: Run) -> Iterator[None]:
    """Let an error or a signal that ends the block leave no folder of a run of which no epoch was saved.

    Where one was, what ends the block has a note that says so. Only the process that has locked the folder removes
    anything, and of a folder only what a run begins with.
    """
    try:
        yield
    except BaseException as error:
        if run.last.exists():
            error.add_note(EPOCHS_ARE_SAVED)
        elif run.lock is not None and run.lock.release.alive:
            remove_unsaved(run.folder, run.lock)
        raise


def remove_unsaved(folder: Path, lock: FolderLock) -> None:
    """Remove a locked folder that has nothing but a run's config.json, and give it free."""
    if any((folder / name).exists() for name in OWN_FILES if name != "config.json"):
        return
    with contextlib.suppress(OSError):
        (folder / "config.json").unlink(missing_ok=True)
    remove_leftovers(folder, RUN_FILES)
    lock.release()
    with contextlib.suppress(OSError):  # it holds something else, or another process has entered it
        folder.rmdir()


def made_of_other_things(folder: Path, config: dict[str, Any]) -> str:
    """Return how what a run in a folder was made of differs from what a command names; "" where nothing is known to."""
    if not (folder / "config.json").is_file():
        return ""
    before = read_json(folder / "config.json")
    if before.get("subset") != config["subset"]:
        return " on other training images"
    found = data_differences(before, config)
    if found:
        return f" on other data ({', '.join(found)})"
    if (before.get("stage1") or {}).get("sha256") != (config["stage1"] or {}).get("sha256"):
        return " of another stage 1, or of an earlier state of this one"
    return ""


def data_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return in words how the data of a run differ from those of a command; what it did not record is not known."""
    names = ("identity", "class_names", "test")
    return differences(*({name: config.get(name) for name in names} for config in (before, now)))


def _begin_or_resume(run: Run, resume: bool, overwrite: bool, given: Collection[str]) -> Run:
    """Return a run in its folder, which this process has locked, as it is to go on."""
    folder, config = run.folder, run.config
    for name in OWN_FILES:  # a link in the place of `plots` leads elsewhere
        within(folder, (folder / name).parent)
    present = [name for name in OWN_FILES if (folder / name).exists()]
    if present == ["config.json"] and run.lock is not None:  # a kill left it before an epoch was saved
        _refuse_strange_folder(folder)
    elif present and not (resume or overwrite):
        state = "a finished run" if "metrics.json" in present else "an interrupted run; --resume goes on with it"
        state += made_of_other_things(folder, config)
        raise UserError(f"{folder} holds {state}; --overwrite replaces it, --out names another place")
    if config["settings"]["resume"] and not present:
        tell(f"nothing to resume in {folder}: beginning anew")
    if resume and "last.pth" in present and "config.json" not in present:
        raise UserError(f"{folder} has lost its config.json, so what it was is unknown; --overwrite replaces it")
    if overwrite:
        _refuse_strange_folder(folder)
        try:
            for name in present:
                (folder / name).unlink()
        except OSError as error:
            raise _unusable(folder, error) from error
    opened = run
    if resume and "config.json" in present:
        before = read_config(folder / "config.json")
        if "last.pth" not in present:  # nothing was learned yet: an image that stopped it may have been mended since
            before = {**before, "identity": config["identity"]}
        _refuse_other_settings(folder, before, config)
        # The run keeps its own record, and adds where it went on once it really does (`fit`).
        added: dict[str, Any] = {
            "resumed": [*before.get("resumed", []), config["environment"]],
            "parts": parts_of(before),
        }
        added["parts"].append({**config["parts"][-1], "epochs_done": None})
        # Those that train otherwise were refused: these say where the data are, how to compute, what to measure.
        own = {name: config["settings"][name] for name in FLAGS if name in given}
        added["settings"] = {**before.get("settings", {}), **own}
        opened = replace(run, config={**before, **added})
    for place in {(folder / name).parent for name in OWN_FILES}:
        remove_leftovers(place, [Path(name).name for name in OWN_FILES])
    if opened is run:
        write_json(folder / "config.json", config)
    return opened


def _judge_flags_of_finished(folder: Path, before: dict[str, Any], now: dict[str, Any], given: Collection[str]) -> None:
    """Raise UserError for flags given that would change what a finished run measured, and name those of no effect.

    Where its data and its stage 1 are is no matter: they were compared.
    """
    old, new = before.get("settings", {}), now["settings"]
    differing = [name for name in FLAGS if name in given and name in old and old[name] != new[name]]
    measured = [name for name in differing if name in with_facet(Facet.MEASURE)]
    if measured:
        words = "; ".join(f"--{name} {old[name]} there, {new[name]} now" for name in measured)
        raise UserError(
            f"{folder} is finished and was measured with other settings ({words}); --resume in place of --reuse "
            "measures it anew, evaluate.py reports on it as it is"
        )
    compared = {*with_facet(Facet.PLACE), *with_facet(Facet.ADDRESS), "pretrained_pth", "trust_pickle", "num_class"}
    idle = [f"--{name}" for name in differing if name not in compared]
    report_unused(f"main_{now['stage']}", idle, f" with the finished run {folder}")


def parts_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a run's starts computed with; of one that did not record them, what is known, the rest None."""
    if isinstance(config.get("parts"), list):
        return list(config["parts"])
    unknown: dict[str, Any] = dict.fromkeys(
        ("epochs_done", "command", "processes", "threads", "precision", "torch", "environment")
    )
    first = {name: config.get(name) for name in ("command", "processes", "precision", "environment")}
    parts = [{**unknown, **first, "epochs_done": 0}]
    parts += [{**unknown, "environment": environment} for environment in config.get("resumed", [])]
    return [{**part, "torch": (part["environment"] or {}).get("torch")} for part in parts]


def other_part(config: dict[str, Any]) -> str:
    """Return in words how the last part of a run differs from the one before it in what moves its numbers."""
    before, now = config["parts"][-2:]
    words = [
        f"{name} {before.get(name)} before, {now[name]} now"
        for name in ("processes", "threads", "precision", "torch")
        if before.get(name) not in (None, now[name])
    ]
    return "; ".join(words)


def _refuse_strange_folder(folder: Path) -> None:
    """Raise UserError where --overwrite would delete in a folder whose config.json is somebody else's."""
    try:
        config = read_json(folder / "config.json")
    except UserError:  # missing or damaged: the folder's name and those of its files say whose it is
        return
    if not {"stage", "settings"} <= config.keys():
        raise UserError(f"{folder / 'config.json'} is of no run of this project; name another place with --out")


def without_words(record: Any) -> Any:
    """Return what a run records of its stage 1 or subset without what another version says otherwise or not at all.

    These are the words for a file's kind, and the loss, which the sha256 of the file settles.
    """
    said = ("kind", "loss")
    return {name: value for name, value in record.items() if name not in said} if isinstance(record, dict) else record


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot use {folder}: {error.strerror or error}; name another place with --out")


def _refuse_other_settings(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UserError where resuming would mix two configurations in one run."""
    if not all(isinstance(before.get(name) or {}, dict) for name in ("settings", "weights", "backbone", "environment")):
        raise UserError(f"{folder / 'config.json'} is damaged, so what the run was is unknown; --overwrite replaces it")
    script = f"main_{now['stage']}"
    weighty = [name for name, flag in FLAGS.items() if flag.named_by] + ["eval_every", *PROTOCOL_SWITCHES]
    # A file of weights may be named by another path: its sha256 decides.
    keys = [name for name in weighty if name != "weights" and script in FLAGS[name].read_by]
    old, new = before.get("settings", {}), now["settings"]
    # A setting that did not exist yet when the run was begun had its default, as it has in the folder's name, or what
    # was done before there was a choice.
    unrecorded = {key: FLAGS[key].before for key in keys if FLAGS[key].before is not None and new[key] is not None}
    old = {**unrecorded, **old}
    differing = [f"--{key} {old[key]} there, {new[key]} now" for key in keys if key in old and old[key] != new[key]]
    if (before.get("weights") or {}).get("sha256") != (now.get("weights") or {}).get("sha256"):
        differing.append("another file of --weights")
    differing += data_differences(before, now)
    # The first runs did not record it, and earlier ones on features named that of a network which did not run.
    if "precision" in before and before["precision"] != now["precision"] and now["images"] is not None:
        differing.append("another --amp")
    for name, words in (("subset", "training subset"), ("stage1", "stage-1 checkpoint")):
        if without_words(before.get(name)) != without_words(now[name]):
            differing.append(f"another {words}")
    if (before.get("backbone") or {}).get("sha256") != (now.get("backbone") or {}).get("sha256"):
        differing.append("another file of features")
    if differing:
        raise UserError(
            f"{folder} was begun with other settings ({'; '.join(differing)}); repeat its command, or use --overwrite"
        )

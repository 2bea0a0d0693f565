"""Command lines of every script: what is refused writes nothing, what is accepted means what its words say."""

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import benchmarks.jobs.paper_runs
import benchmarks.robustness.image_trees
import benchmarks.speed.ablation
import benchmarks.speed.decode
import benchmarks.speed.parity
import benchmarks.speed.roofline
import benchmarks.speed.scaling
import benchmarks.speed.startup
import benchmarks.speed.throughput
import evaluate
import main_stage1
import main_stage2
import predict
import reproduce
import tools.check_dataset
import tools.compare
import tools.export_features
import tools.extract
import tools.release
from benchmarks.robustness.fuzz_inputs.cases import REFUSED, Material, check_ending, file_states, inside, shell
from benchmarks.robustness.fuzz_inputs.command_words import (
    CHOICES,
    FLOATS,
    INTEGERS,
    PATH_FLAGS,
    PATHS,
    STARTS,
    TARGET_FLAGS,
    TARGETS,
    WORDS,
    flags_of,
)
from benchmarks.robustness.fuzz_inputs.cut_short import no_work
from settings.fields import EVALUATE, FLAGS, STAGE1, STAGE2
from settings.resolve import Command

SCRIPTS = {"main_stage1": STAGE1, "main_stage2": STAGE2, "evaluate": EVALUATE}
MAINS: dict[str, Callable[[list[str]], object]] = {
    "main_stage1": main_stage1.main,
    "main_stage2": main_stage2.main,
    "evaluate": evaluate.main,
    "reproduce": reproduce.main,
    "predict": predict.main,
    "tools.check_dataset": tools.check_dataset.main,
    "tools.compare": tools.compare.main,
    "tools.export_features": tools.export_features.main,
    "tools.extract": tools.extract.main,
    "tools.release": tools.release.main,
    "benchmarks.speed.ablation": benchmarks.speed.ablation.main,
    "benchmarks.speed.decode": benchmarks.speed.decode.main,
    "benchmarks.speed.parity": benchmarks.speed.parity.main,
    "benchmarks.speed.roofline": benchmarks.speed.roofline.main,
    "benchmarks.speed.scaling": benchmarks.speed.scaling.main,
    "benchmarks.speed.startup": benchmarks.speed.startup.main,
    "benchmarks.speed.throughput": benchmarks.speed.throughput.main,
    "benchmarks.robustness.image_trees": benchmarks.robustness.image_trees.main,
    "benchmarks.jobs.paper_runs": benchmarks.jobs.paper_runs.main,
}


def values_of(name: str, kind: Any) -> SearchStrategy[str]:
    """Draw a value of a flag: from its domain, its edges and beyond."""
    if name in TARGET_FLAGS:
        return st.sampled_from(TARGETS)
    if name in PATH_FLAGS:
        return st.sampled_from(PATHS)
    if name == "workers":  # as many threads as one asks for are started, and processes
        return st.sampled_from(["0", "1", "2", "-1", "two", "1000001", "", "1.5"])
    known = CHOICES.get(name) or (FLAGS[name].choices if name in FLAGS else None) or []
    pool = {int: INTEGERS, float: FLOATS}.get(kind, WORDS + INTEGERS[:4])
    letters = st.characters(exclude_characters="\0/", codec="utf-8")
    return st.sampled_from([*known, *pool]) | st.text(letters, max_size=6)


@st.composite
def words_of(draw: Any, script: str) -> list[str]:
    """Draw one flag with its value, in one of many right and wrong ways of writing it."""
    flags = flags_of(script)
    if not draw(st.integers(0, 15)):  # the flag of another script
        flags = {name: kind for other in STARTS for name, kind in flags_of(other).items()}
    files = sorted(set(flags) & (PATH_FLAGS | TARGET_FLAGS))
    name = draw(st.sampled_from(files if files and draw(st.booleans()) else sorted(flags)))
    kind = flags[name]
    if kind is bool:
        return [f"--{name}", *draw(st.sampled_from([[], [], [], ["1"], ["False"]]))]
    value = draw(values_of(name, kind))
    forms: list[list[str]] = [
        [f"--{name}", value],
        [f"--{name}", value],
        [f"--{name}", value],
        [f"--{name}={value}"],
        [f"--{name}"],
        [f"--{name[:-1]}", value],
        [f"-{name}", value],
        [f"--{name.upper()}", value],
    ]
    if name in TARGET_FLAGS:  # only the right form is sure to keep to the folder
        forms = forms[:4]
    return draw(st.sampled_from(forms))


@st.composite
def command_cases(draw: Any, material: Material) -> tuple[str, list[str]]:
    """Draw a script and a command line that begins as a right one and goes wrong."""
    script = draw(st.sampled_from(["main_stage1", "main_stage2", "evaluate", *STARTS]))
    argv = list(draw(st.sampled_from(STARTS[script])))
    for words in draw(st.lists(words_of(script), min_size=1, max_size=2)):
        argv += words
    if not draw(st.integers(0, 9)):
        argv.insert(draw(st.integers(0, len(argv))), draw(st.sampled_from(WORDS + PATHS)))
    if argv and not draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(argv) - 1))
        if not any(word[2:] in TARGET_FLAGS for word in argv[max(at - 1, 0) : at + 1]):
            argv.pop(at)
    return script, [word.replace("\0", "") for word in argv]  # no process can be started with a NUL in its arguments


def last_values(script: str, argv: Sequence[str]) -> dict[str, str]:
    """Return the last value of each flag, by a simple walk through the words."""
    flags, found = flags_of(script), {}
    at = 0
    while at < len(argv):
        name, equals, value = argv[at].removeprefix("--").partition("=")
        name = "lr" if name == "learning-rate" else name
        if argv[at].startswith("--") and name in flags:
            if flags[name] is bool:
                found[name] = "True"
            elif equals:
                found[name] = value
            else:
                at += 1
                found[name] = argv[at]
        at += 1
    return found


def try_command(material: Material, folder: Path, case: tuple[str, list[str]]) -> str:
    """Run a command line up to its work: a refused one writes nothing; an accepted one means what its words say."""
    script, argv = case
    home = folder / "home"
    shutil.copytree(material.home, home)
    for name in ("pipe", "pipe.npz", "pipe.safetensors"):
        os.mkfifo(home / name)
    (home / "loop").symlink_to("loop")
    before = file_states(home)
    with inside(home):
        ending = shell(MAINS[script], argv)
    assert "--help" not in argv
    outcome = check_ending(ending)
    after = file_states(home)
    if outcome == REFUSED:
        # Of several files that a command was asked to write, the first may be there when the second cannot be.
        changed = {path for path in {**before, **after} if before.get(path) != after.get(path)}
        assert changed <= {os.path.normpath(word.partition("=")[2] or word) for word in argv}, changed
    lost = [path for path in before if path not in after]
    assert not lost or "--overwrite" in argv, f"lost: {lost}"
    check_command(script, argv, ending.command)
    return outcome


def check_command(script: str, argv: Sequence[str], command: Command | None) -> None:
    """Assert that what a command took from its words is what they say, and that every number is one."""
    if command is None or command.script not in SCRIPTS.values() or script not in SCRIPTS:
        return
    if command.script == SCRIPTS[script]:
        said = last_values(script, argv)
        for name, value in command.given.items():
            if name in said:
                kind = FLAGS[name].kind
                wanted = True if kind is bool else None if name == "seed" and value is None else kind(said[name])
                assert value == wanted, (name, value, said[name])
    for name, value in dataclasses.asdict(command.settings).items():
        assert not isinstance(value, float) or math.isfinite(value), f"--{name} {value}"
        assert not isinstance(value, int) or value >= 0, f"--{name} {value}"


def try_command_line(material: Material, folder: Path, case: tuple[str, list[str]]) -> str:
    """`try_command` with nothing computed."""
    with no_work():
        return try_command(material, folder, case)

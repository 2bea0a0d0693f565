"""Bad input wherever a user can put something: accepted rightly or refused in one line, never anything else.

Few examples of each kind, the same every time; `python -m benchmarks.robustness.fuzz` draws thousands of others.
"""

import collections
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks.robustness.fuzz_inputs import lists
from benchmarks.robustness.fuzz_inputs.cases import (
    ACCEPTED,
    REFUSED,
    Hang,
    Kind,
    Material,
    refusal,
    shell,
    time_limit,
)
from benchmarks.robustness.fuzz_inputs.checkpoints import PICKLED, RELEASED
from benchmarks.robustness.fuzz_inputs.command_lines import MAINS
from benchmarks.robustness.fuzz_inputs.command_words import STARTS
from benchmarks.robustness.fuzz_inputs.cut_short import cut_short
from benchmarks.robustness.fuzz_inputs.features import FEATURE_FILES
from benchmarks.robustness.fuzz_inputs.images import PICTURES
from benchmarks.robustness.fuzz_inputs.kinds import KINDS
from benchmarks.robustness.fuzz_inputs.material import make_material
from benchmarks.robustness.fuzz_inputs.places import FILES, PLAIN
from benchmarks.robustness.fuzz_inputs.records import RECORDS
from utils.errors import UserError

EXAMPLES = {
    "command line": 50,
    "list": 50,
    "COCO list": 30,
    "record of a run": 15,
    "features": 50,
    "image": 60,
    "checkpoint": 50,
    "no plain file": 50,
}
# What is right, as the generators have it before they damage it.
SOUND: dict[str, list[Any]] = {
    "command line": [
        (script, starts[0]) for script, starts in STARTS.items() if script != "benchmarks.robustness.image_trees"
    ],
    "list": [([], "\n", "utf-8", None, []), ([], "\r\n", "utf-8-sig", 2, [])],
    "COCO list": [("train.json", [], "utf-8", []), ("train.json", [], "with a mark", [])],
    "record of a run": [(name, [], "utf-8", []) for name in RECORDS],
    "features": [(name, [], None, []) for name in FEATURE_FILES],
    "image": [(form, "RGB", "a.jpg", None, []) for form in PICTURES],
    "checkpoint": [(name, ([], [])) for name in (*PICKLED, *RELEASED)],
    "no plain file": [(name, PLAIN) for name in FILES],
}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    """Small runs and files that are right, with the work of every command cut short."""
    with cut_short():
        yield make_material(tmp_path_factory.mktemp("material"))


def attempt(kind: Kind, material: Material, case: Any, parent: Path) -> str:
    """Try a case in a folder of its own."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        return kind.attempt(material, folder, case)
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_bad_input_is_taken_rightly_or_refused_in_one_line(kind: Kind, material: Material, tmp_path: Path) -> None:
    outcomes: collections.Counter[str] = collections.Counter()

    @settings(
        max_examples=EXAMPLES[kind.name],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.cases(material))
    def of_each(case: Any) -> None:
        outcomes[attempt(kind, material, case, tmp_path)] += 1

    of_each()
    assert outcomes[REFUSED] > 0 and outcomes.keys() <= {ACCEPTED, REFUSED}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_right_is_accepted(kind: Kind, material: Material, tmp_path: Path) -> None:
    for case in SOUND[kind.name]:
        assert attempt(kind, material, case, tmp_path) == ACCEPTED, case


# The harness notices what it is there for


def test_another_row_is_noticed(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = lists.read_list

    def mistaken(*arguments: Any) -> Any:
        split = read(*arguments)
        return replace(split, labels=split.labels[::-1])

    monkeypatch.setattr(lists, "read_list", mistaken)
    with pytest.raises(AssertionError):
        attempt(KINDS[1], material, SOUND["list"][0], tmp_path)


@pytest.mark.parametrize("message", ["two\x1b[2J", "", "x" * 5000, "somewhere"])
def test_a_bad_message_is_noticed(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UserError(message)

    monkeypatch.setattr(UserError, "__str__", lambda error: error.args[0])
    with pytest.raises(AssertionError):
        refusal(refuse, "file.txt")


def test_a_hang_is_noticed() -> None:
    with pytest.raises(Hang), time_limit(0.05):
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue


def test_a_traceback_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> None:
        raise KeyError(argv[0])

    with pytest.raises(KeyError, match="x"):
        shell(fail, ["x"])


def test_a_changed_file_is_noticed(material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(argv: list[str]) -> None:
        Path("mine.npz").write_bytes(b"")
        raise UserError("no")

    monkeypatch.setitem(MAINS, "evaluate", spoil)
    with pytest.raises(AssertionError, match=r"mine\.npz"):
        attempt(KINDS[0], material, ("evaluate", []), tmp_path)

"""The help of every command, and the list of flags, which grows by a decision alone."""

import argparse
import contextlib
import importlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import predict
import reproduce
from settings.command_line import listed_flags, make_parser
from settings.declare import EVERYWHERE
from settings.fields import FLAGS
from tests.helpers import ROOT, SCRIPTS, succeed
from tools.flags import flags_page

FROZEN = Path(__file__).with_name("flags.txt")
LINES, COLUMNS = 120, 100  # two screens
COMMANDS = [*SCRIPTS, "predict", "reproduce"]


def words(parser: argparse.ArgumentParser) -> list[str]:
    return [word for action in parser._actions for word in action.option_strings if word.startswith("--")]


def flags_now() -> list[str]:
    """A line for each flag, and the commands that read it."""
    readers: dict[str, list[str]] = {}
    for name, flag in FLAGS.items():
        for script in flag.read_by:
            readers.setdefault(f"--{name}", []).append(script)
    for script, parser in (("predict", predict.make_parser()), ("reproduce", reproduce.make_table_parser())):
        for word in words(parser):
            readers.setdefault(word, []).append(script)
    readers.pop("--help")
    return [f"{word}: {', '.join(scripts)}" for word, scripts in sorted(readers.items())]


def test_the_flags_are_those_that_were_decided_on() -> None:
    """A flag more is one to learn for everybody: add its line to flags.txt where that is worth it."""
    assert flags_now() == FROZEN.read_text(encoding="utf-8").splitlines()


def test_every_script_accepts_the_flags_of_all() -> None:
    for script in EVERYWHERE:
        assert {*(f"--{name}" for name in FLAGS), "--learning-rate", "--help", "--help-all"} == {
            *words(make_parser(script, ""))
        }


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.usefixtures("wide")
def test_help_fits_two_screens(command: str) -> None:
    shown = succeed(command, "--help").out.splitlines()
    assert len(shown) <= LINES
    assert max(map(len, shown)) <= COLUMNS
    assert shown[0].startswith(f"usage: python {command}.py ") and shown[1] == ""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.usefixtures("wide")
def test_help_lists_what_the_script_reads_in_groups_and_help_all_the_rest(script: str) -> None:
    shown, everything = (succeed(script, word).out for word in ("--help", "--help-all"))
    listed = set(re.findall(r"^  --(\w+)(?!-)\b", shown, re.MULTILINE))
    seeds = {"main_stage1": {"seeds"}}.get(script, set())  # which is no setting
    assert listed == listed_flags(script) | seeds
    assert listed - seeds <= {name for name, flag in FLAGS.items() if script in flag.read_by}
    assert set(re.findall(r"^  --(\w+)(?!-)\b", everything, re.MULTILINE)) - {"seeds"} == set(FLAGS)
    assert ("--seeds" in everything) == (script != "evaluate")
    headings = re.findall(r"^([a-z]+(?: \d)?)\b.*:$", shown, re.MULTILINE)
    order = ["data", "network", "stage 1", "stage 2", "method", "report", "machine", "run"]
    assert headings == [group for group in order if group in headings] and len(headings) >= 6
    assert "--help-all" in shown.splitlines()[-1]
    for name in ("dataset", "method", "sampler"):
        if name in listed:
            text = " ".join(shown.split(f"\n  --{name} ")[1].split("  --")[0].split())
            assert all(choice in text for choice in FLAGS[name].choices or ())


def modules() -> list[str]:
    """The commands that are started with `python -m`."""
    files = [*(ROOT / "tools").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    commands = [path for path in files if "run_command(main" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(commands)]


@pytest.mark.parametrize("command", [*COMMANDS, *modules()])
@pytest.mark.usefixtures("wide")
def test_examples_stand_on_lines_of_their_own(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = importlib.import_module(command)
    examples = [line for line in (module.__doc__ or "").splitlines() if line.startswith("    ")]
    out = io.StringIO()
    monkeypatch.setattr(sys, "argv", [command, "--help"])
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit) as ended:
        module.main()
    assert not ended.value.code
    assert set(examples) <= set(out.getvalue().splitlines())


def test_the_page_of_flags_is_made_of_the_declarations() -> None:
    """`python -m tools.flags` writes it."""
    assert (ROOT / "docs" / "flags.md").read_text(encoding="utf-8") == flags_page()

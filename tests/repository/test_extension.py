"""docs/architecture.md says how a loss, a method, a data set and a table are added: its steps alone are enough.

The steps are read from the page: `New file ...` and `In <dictionary> of <file>`, each with a block of code. They are
followed in a copy of the project, which then trains with what they added.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, read

PAGE = ROOT / "docs" / "architecture.md"
ROOMS = ["datasets", "engine", "evaluation", "losses", "methods", "models", "runs", "settings", "stages", "tables"]
SMALL = ["--dataset", "stripes", "--network", "resnet8", "--width", "2", "--epochs", "1", "--imb_ratio", "8"]
SMALL += ["--device", "cpu", "--workers", "1", "--out", "made"]
# All in one process, since starting Python takes longer than the training.
TRAIN = f"""
import main_stage1, main_stage2, reproduce
small = {SMALL}
main_stage1.main([*small, "--loss", "poly1", "--epsilon", "2"])
main_stage2.main([*small, "--method", "poly1", "--epsilon", "0.5", "--finetune_epoch", "1"])
reproduce.main(["poly", *small, "--finetune_epoch", "1", "--methods", "ce", "poly1"])
"""


def steps() -> list[tuple[str | None, Path, str]]:
    """(dictionary, file, code) of each step of the page; no dictionary for a new file."""
    found = []
    for before, code in re.findall(r"(.*?)```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        new = re.findall(r"^New file `([\w/.]+)`", before, re.MULTILINE)
        into = re.findall(r"^In `(\w+)` of `([\w/.]+)`", before, re.MULTILINE)
        assert len(new) + len(into) == 1, f"not one step before {code}"
        found.append((None, Path(new[0]), code) if new else (into[0][0], Path(into[0][1]), code))
    return found


def add_lines(text: str, dictionary: str, code: str) -> str:
    """Add lines of code to the end of a dictionary of a module, those that import to its imports."""
    lines = [line for line in code.splitlines() if line]
    imports = "".join(f"{line}\n" for line in lines if line.startswith("from "))
    entries = "".join(f"    {line}\n" for line in lines if not line.startswith("from "))
    whole = re.search(rf"^{dictionary}(?:: [^\n]*)? = \{{\n.*?^\}}", text, re.MULTILINE | re.DOTALL)
    first = re.search(r"^from ", text, re.MULTILINE)
    assert whole is not None and first is not None
    text = text[: whole.end() - 1] + entries + text[whole.end() - 1 :]
    return text[: first.start()] + imports + text[first.start() :]


def follow(project: Path, step: tuple[str | None, Path, str]) -> None:
    """Do in a copy of the project what a step says."""
    dictionary, file, code = step
    if dictionary is None:
        assert not (project / file).exists()
        (project / file).write_text(code, encoding="utf-8")
    else:
        text = (project / file).read_text(encoding="utf-8")
        (project / file).write_text(add_lines(text, dictionary, code), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the code, without tests."""
    target = tmp_path / "project"
    for room in [*ROOMS, "utils"]:
        shutil.copytree(ROOT / room, target / room, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, target)
    return target


def python(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=project, capture_output=True, text=True, timeout=300)


def test_a_loss_a_method_a_data_set_and_a_table_are_added_by_the_documented_steps(project: Path) -> None:
    every = steps()
    assert [dictionary for dictionary, _, _ in every if dictionary] == [
        "LOSSES",
        "HYPERPARAMETERS",
        "RECIPES",
        "IN_MEMORY",
        "TABLES",
    ]
    for step in every:
        follow(project, step)
    outcome = python(project, "-c", TRAIN)
    assert outcome.returncode == 0, outcome.stderr
    runs = project / "made" / "stripes_expIF8_resnet8" / "seed0"
    (stage1,) = (read(path)["settings"] for path in runs.glob("stage1_*losspoly1_epsilon2/config.json"))
    assert (stage1["dataset"], stage1["loss"], stage1["epsilon"]) == ("stripes", "poly1", 2.0)
    (stage2,) = runs.glob("stage2_poly1_*epsilon0.5*/metrics.json")
    assert read(stage2)["method"] == "poly1" and read(stage2.with_name("config.json"))["settings"]["epsilon"] == 0.5
    (table,) = (path for path in (project / "results").glob("poly_stripes_*.csv") if "intervals" not in path.name)
    assert len(table.read_text(encoding="utf-8").splitlines()) == 3  # a header, and a line a method


def test_a_hyper_parameter_without_its_line_is_refused_in_one(project: Path) -> None:
    """No flag of a half-made loss is ignored, and none ends in a traceback."""
    for step in steps():
        if step[0] != "HYPERPARAMETERS":
            follow(project, step)
    outcome = python(project, "main_stage1.py", "--loss", "poly1")
    assert outcome.returncode == 2 and outcome.stderr.count("\n") == 1
    assert "'epsilon' that utils.parameters.HYPERPARAMETERS does not declare" in outcome.stderr

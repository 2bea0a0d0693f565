"""What `benchmarks.robustness.versions` asks pip for, and how it reads what the tests said."""

import sys
from pathlib import Path

import pytest

from benchmarks.robustness.versions import PACKAGES, install, oldest, run_tests, versions_of
from tests.helpers import ROOT
from utils.errors import UserError


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    text = "torch>=2.11\n# a comment\nnumpy>=2.0  # why\npandas>=2.2.2\npillow>=10\n-r other.txt\nruff\n"
    assert oldest(text) == ["torch==2.11.*", "numpy==2.0.*", "pandas==2.2.*", "pillow==10.*"]
    stated = oldest((ROOT / "requirements.txt").read_text())
    assert {line.split("==")[0] for line in stated} >= set(PACKAGES)  # no requirement without a lower bound


def test_failures_are_counted_and_named(tmp_path: Path) -> None:
    lines = ["import pytest", "def test_good(): pass", "def test_bad(): assert 0", "def test_idle(): pytest.skip('x')"]
    (tmp_path / "test_sample.py").write_text("\n".join(lines))
    arguments = [str(tmp_path / "test_sample.py"), f"--rootdir={tmp_path}"]
    counts = run_tests(Path(sys.executable), tmp_path / "report.xml", arguments)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (1, 1, 1)
    assert counts["failures"].endswith("test_sample::test_bad")


def test_versions_are_those_of_the_interpreter() -> None:
    found = versions_of(Path(sys.executable))
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert set(found) == {"python", *PACKAGES} and all(found.values())


def test_what_pip_says_is_one_line(tmp_path: Path) -> None:
    """An environment whose interpreter is not Python: the first command fails."""
    with pytest.raises(UserError, match="venv"):
        install(tmp_path / "new", "false", [])

"""The project under one import name: imports are rewritten as they are meant, and a wheel works away from here."""

import ast
import json
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

from tests.helpers import ROOT, is_refusal, run, succeed
from tools.installation import one_name
from tools.installation.console import SCRIPTS, TOOLS

ROOMS = ["losses", "utils", "predict"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from losses.los import LOS", "from p.losses.los import LOS"),
        ("from losses import los, LOSSES as L", "from p.losses import los, LOSSES as L"),
        ("from  losses import (\n    los,\n)", "from p.losses import (\n    los,\n)"),
        ("import losses", "from p import losses"),
        ("import losses as l", "import p.losses as l"),
        ("import losses.los", "import p.losses.los; from p import losses"),
        ("import losses.los as l", "import p.losses.los as l"),
        ("import os, utils.text, json as j", "import os; import p.utils.text; from p import utils; import json as j"),
        ("if x: import predict  # why", "if x: from p import predict  # why"),
        ("x = 'é'; from utils import a", "x = 'é'; from p.utils import a"),
        ("def f():\n    from utils.text import a\n    import utils", None),
        ("from . import losses", "from . import losses"),
        ("from .losses import x", "from .losses import x"),
        ("from lossesx import y", "from lossesx import y"),
        ("import torch.utils", "import torch.utils"),
        ("losses = 1\nutils.losses", "losses = 1\nutils.losses"),
        ("'from losses import x'", "'from losses import x'"),
        ("f'python {script}.py'", "f'longtail-los {script}'"),
        (
            '"""python main_stage2.py --x\n\npython -m tools.extract"""',
            '"""longtail-los main_stage2 --x\n\nlongtail-los extract"""',
        ),
        ("'python other.py'", "'python other.py'"),
    ],
)
def test_imports_are_rewritten(before: str, after: str | None) -> None:
    found = one_name.rewrite(before, ROOMS, "p")
    assert found == (after or "def f():\n    from p.utils.text import a\n    from p import utils")
    ast.parse(found)


def test_every_file_keeps_its_lines_and_its_code() -> None:
    """But for what it imports: the rest of each syntax tree is the same."""
    names = one_name.rooms(ROOT)
    paths = one_name.sources(ROOT)
    assert len(paths) > 150
    for path in paths:
        text = (ROOT / path).read_text(encoding="utf-8")
        found = one_name.rewrite(text, names, "p")
        assert len(found.splitlines()) == len(text.splitlines())
        for node in ast.walk(ast.parse(found)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").partition(".")[0] not in names, f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] not in names for alias in node.names), f"{path}:{node.lineno}"


def test_scripts_and_tools_are_those_that_there_are() -> None:
    """Every tool that a clone has is a command of an installation, unless it works on the repository itself."""
    tools = {path.stem for path in (ROOT / "tools").glob("*.py") if 'if __name__ == "__main__":' in path.read_text()}
    left_out = {Path(name).stem for name in one_name.LEFT_OUT}
    assert set(TOOLS) == tools - left_out
    assert SCRIPTS == one_name.SCRIPTS and all((ROOT / f"{name}.py").is_file() for name in SCRIPTS)


def test_the_command_starts_scripts_and_tools() -> None:
    assert "scripts: main_stage1" in succeed("tools/installation/console", "--help").out
    assert is_refusal(run("tools/installation/console"), "which command: main_stage1")
    assert is_refusal(run("tools/installation/console", "nothing"), "'nothing' is none of the commands: main_stage1")
    assert is_refusal(run("tools/installation/console", "evaluate", "--nothing"), "--nothing")


# A wheel

PROGRAM = """
import importlib
import pkgutil
import sys
from pathlib import Path

import datasets  # somebody else's
import longtail_los

assert datasets.theirs and str(Path(longtail_los.__file__)).startswith(sys.argv[1])
names = [found.name for found in pkgutil.walk_packages(longtail_los.__path__, "longtail_los.")]
for name in names:
    importlib.import_module(name)
rooms = {found.name for found in pkgutil.iter_modules(longtail_los.__path__)}
print(len(names), sorted(rooms & sys.modules.keys()))
import torch
from longtail_los.losses import build_loss
print(float(build_loss("ce", [3, 2])(torch.zeros(1, 2), torch.tensor([0]))))
sys.argv = ["longtail-los", "main_stage1", "--dataset", "digits", "--epochs", "1", "--width", "4", "--out", "runs"]
importlib.import_module("longtail_los.tools.installation.console").main()
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the repository, built without the network and unpacked into a folder."""
    pytest.importorskip("setuptools", reason="setuptools is not installed")
    home = tmp_path_factory.mktemp("wheel")
    clone = home / "clone"
    for path in [
        *one_name.sources(ROOT),
        *map(Path, ("tools/installation/wheel.py", "tools/installation/one_name.py")),
    ]:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, clone / path)
    for name in ("pyproject.toml", "setup.cfg", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    build = "import sys\nfrom setuptools import build_meta\nprint(build_meta.build_wheel(sys.argv[1]))"
    command = [sys.executable, "-c", build, str(home)]
    done = subprocess.run(command, cwd=clone, env=clean(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not (clone / "build").exists()  # which tests and style checks of the clone would find
    (file,) = home.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(home / "site")
    return home / "site"


def clean(**more: str) -> dict[str, str]:
    """The environment without this repository on Python's path."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def test_a_wheel_has_one_name(wheel: Path) -> None:
    assert {path.name for path in wheel.iterdir()} == {"longtail_los", "longtail_los-0.1.0.dist-info"}
    files = {path.relative_to(wheel / "longtail_los").as_posix() for path in (wheel / "longtail_los").rglob("*.*")}
    assert files == {"__init__.py", "py.typed", *(path.as_posix() for path in one_name.sources(ROOT))}
    info = wheel / "longtail_los-0.1.0.dist-info"
    assert "longtail-los = longtail_los.tools.installation.console:main" in (info / "entry_points.txt").read_text()
    required = {line.removeprefix("Requires-Dist: ") for line in (info / "METADATA").read_text().splitlines()}
    assert required >= set((ROOT / "requirements.txt").read_text().split())
    assert (info / "top_level.txt").read_text().split() == ["longtail_los"]


def test_a_wheel_works_away_from_the_repository(wheel: Path, tmp_path: Path) -> None:
    """Beside another package called `datasets`, all modules are imported, and a run is trained."""
    (tmp_path / "other" / "datasets").mkdir(parents=True)
    (tmp_path / "other" / "datasets" / "__init__.py").write_text("theirs = True\n")
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))
    environment = clean(PYTHONPATH=os.pathsep.join([str(wheel), str(tmp_path / "other")]))
    command = [sys.executable, "program.py", str(wheel)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith(" ['datasets']") and int(lines[0].split()[0]) > 150
    assert float(lines[1]) == pytest.approx(0.693147, abs=1e-5)
    config = json.loads((tmp_path / "runs/digits_expIF25_resnet8/seed0/stage1_epochs1_width4/config.json").read_text())
    assert config["environment"]["git_revision"] is None


def test_an_editable_installation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    from setuptools.errors import SetupError

    from tools.installation.wheel import BuildPackage

    builder = BuildPackage(setuptools.Distribution())
    builder.editable_mode = True
    with pytest.raises(SetupError, match="install without --editable"):
        builder.run()

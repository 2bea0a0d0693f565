"""How setuptools builds the project: every room inside one package, its imports rewritten (`one_name.py`).

    pip install .

`pyproject.toml` names the class; setuptools loads it by its path, without the repository on Python's path.
"""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BESIDE = (
    "pyproject.toml",
    "requirements.txt",
    "README.md",
    "LICENSE",
    "tools/installation/wheel.py",
    "tools/installation/one_name.py",
)


def one_name() -> ModuleType:
    """Return the file of that name beside this one, loaded by its path."""
    spec = importlib.util.spec_from_file_location("one_name", HERE / "one_name.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPackage(build_py):
    """Writes the package into the folder of the build, in the place of a copy of the files."""

    def run(self) -> None:
        """Write all files. Raises SetupError for an editable installation, whose imports could not be rewritten."""
        if self.editable_mode:
            raise SetupError(
                "an editable installation would need the rooms at the top level, where they would shadow packages such "
                "as datasets: install without --editable, or run the scripts in the clone"
            )
        shutil.rmtree(self._folder(), ignore_errors=True)  # an earlier build may have had other files
        for name, text in one_name().installed_files(ROOT):
            path = self._folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """Return the paths of all files that are written."""
        return [str(self._folder() / name) for name, _ in one_name().installed_files(ROOT)]

    def get_source_files(self) -> list[str]:
        """Return the files that a source distribution needs to build the same."""
        return [*BESIDE, *(path.as_posix() for path in one_name().sources(ROOT))]

    def _folder(self) -> Path:
        return Path(self.build_lib) / one_name().NAME

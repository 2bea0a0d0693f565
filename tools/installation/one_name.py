"""The whole project under one import name, made from the repository as it is.

Here rooms import one another as top-level packages (`from datasets.cifar import ...`). Installed like that they would
take the place of packages of the same names, such as Hugging Face's `datasets`. So an installation has them inside one
package, with their imports rewritten: `from longtail_los.datasets.cifar import ...`. `wheel.py` beside this file does
that when a wheel is built, and `import_under` when Python imports the files of a clone, for `hubconf.py`. Both change
import statements alone, and in texts the words for a command; lines keep their numbers.

This file imports nothing of the project, so that it can be loaded by its path.
"""

import ast
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType

NAME, COMMAND = "longtail_los", "longtail-los"
SCRIPTS = ("main_stage1", "main_stage2", "evaluate", "predict", "reproduce")
# What stays behind: tests, benchmarks and findings, and tools that work on the repository itself.
OUTSIDE = ("tests", "benchmarks", "findings")
LEFT_OUT = (
    "tools/flags.py",
    "tools/result_tables.py",
    "tools/installation/wheel.py",
    "tools/installation/one_name.py",
)
# How a command is called in a clone, and once it is installed.
CALLS = (
    (re.compile(r"\bpython (main_stage[12]|evaluate|predict|reproduce|\{script\})\.py"), rf"{COMMAND} \1"),
    (re.compile(r"\bpython -m tools\.(?=[\w{])"), f"{COMMAND} "),
)
TITLE = f'"""Long-tailed recognition in two stages: `{COMMAND} --help`, and the packages in here."""\n'


def rooms(root: Path) -> list[str]:
    """Return the names of the packages and scripts of a clone that belong to an installation."""
    packages = [
        folder.parent.name for folder in sorted(root.glob("*/__init__.py")) if folder.parent.name not in OUTSIDE
    ]
    return [*packages, *SCRIPTS]


def sources(root: Path) -> list[Path]:
    """Return the Python files of an installation, relative to the root of a clone."""
    found = [f"{room}.py" for room in rooms(root) if room in SCRIPTS]
    for room in rooms(root):
        found += [path.relative_to(root).as_posix() for path in sorted((root / room).rglob("*.py"))]
    return [Path(name) for name in found if name not in LEFT_OUT]


def rewrite(text: str, names: Sequence[str], package: str) -> str:
    """Return a Python file with its imports of the top-level `names` as imports of `package`.NAME.

    Raises SyntaxError for what is no Python, and for a star import by a statement that cannot be told.
    """
    lines = [line.encode() for line in text.splitlines(keepends=True)]
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if isinstance(node, ast.Import):
            rewrite_import(node, lines, names, package)
        elif not node.level and (node.module or "").partition(".")[0] in names:
            line, start = lines[node.lineno - 1], node.col_offset
            lines[node.lineno - 1] = line[:start] + re.sub(rb"^from\s+", f"from {package}.".encode(), line[start:])
    changed = b"".join(lines).decode()
    for pattern, words in CALLS:
        changed = pattern.sub(words, changed)
    return changed


def rewrite_import(node: ast.Import, lines: list[bytes], names: Sequence[str], package: str) -> None:
    """Rewrite a statement `import a.b, c as d` in the lines of its file.

    `import a.b` makes `a` known, which is then the package's.
    """
    parts = []
    for alias in node.names:
        first = alias.name.partition(".")[0]
        if first not in names:
            parts.append(f"import {alias.name}" + (f" as {alias.asname}" if alias.asname else ""))
        elif alias.asname:
            parts.append(f"import {package}.{alias.name} as {alias.asname}")
        else:
            parts += [f"import {package}.{alias.name}"] if "." in alias.name else []
            parts.append(f"from {package} import {first}")
    line, end = lines[node.lineno - 1], node.end_col_offset or 0
    if node.end_lineno == node.lineno:
        lines[node.lineno - 1] = line[: node.col_offset] + "; ".join(parts).encode() + line[end:]


class RewritingLoader(importlib.machinery.SourceFileLoader):
    """Imports a file of a clone with its imports rewritten; nothing is cached, for the file has another meaning."""

    def __init__(self, fullname: str, path: str, names: Sequence[str], package: str) -> None:
        super().__init__(fullname, path)
        self.names = names
        self.package = package

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the rewritten file."""
        text = Path(self.path).read_text(encoding="utf-8")
        return compile(rewrite(text, self.names, self.package), self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the rooms and scripts of the clone at `root` as modules of `package`."""

    def __init__(self, root: Path, package: str) -> None:
        self.root = root
        self.package = package
        self.names = rooms(root)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how a module is imported, None for one of another package."""
        if fullname == self.package:
            spec = importlib.machinery.ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = []
            return spec
        first, _, rest = fullname.removeprefix(f"{self.package}.").partition(".")
        if not fullname.startswith(f"{self.package}.") or first not in self.names:
            return None
        place = self.root.joinpath(first, *rest.split(".")) if rest else self.root / first
        for file, inside in ((place / "__init__.py", [str(place)]), (place.with_suffix(".py"), None)):
            if file.is_file():
                loader = RewritingLoader(fullname, str(file), self.names, self.package)
                return importlib.util.spec_from_file_location(
                    fullname, file, loader=loader, submodule_search_locations=inside
                )
        return None


def import_under(package: str, root: Path) -> None:
    """Let Python find the rooms of the clone at `root` as modules of `package`, for good: `import PACKAGE.losses`."""
    if not any(isinstance(finder, Finder) and finder.package == package for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(root, package))  # before the one that would find the files as they are


def installed_files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of an installation, by their paths below the package, and their texts."""
    names = rooms(root)
    yield "__init__.py", TITLE
    yield "py.typed", ""
    for path in sources(root):
        yield path.as_posix(), rewrite((root / path).read_text(encoding="utf-8"), names, NAME)

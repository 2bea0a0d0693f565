"""What the files of a repository import, and how large files and functions are, read from their text."""

import ast
import itertools
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Ladder = Sequence[Sequence[str]]
# What a string has that may be a program of several lines, as a process is started with.
CODE = re.compile(r"^(import|from) .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Import:
    """An import of a module by dotted name, at a line of a file, whose path is relative to the repository."""

    file: Path
    line: int
    module: str
    # Whether it happens when the file is imported, rather than when a function is called or a process is started.
    at_once: bool

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


def room_of(file: Path) -> str:
    """The room of a file: the folder at the top that holds it, or the script itself."""
    return file.parts[0].removesuffix(".py")


def python_files(root: Path, rooms: Iterable[str]) -> list[Path]:
    """All files of rooms and scripts, relative to the repository, sorted."""
    found: list[Path] = []
    for room in rooms:
        found += [root / f"{room}.py"] if (root / f"{room}.py").is_file() else (root / room).rglob("*.py")
    return sorted(path.relative_to(root) for path in found)


def absolute(file: Path, node: ast.ImportFrom) -> str:
    """The dotted name of what `from ... import` reads, also where it is given by dots."""
    if not node.level:
        return node.module or ""
    package = file.parts[: len(file.parts) - node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def modules_named(root: Path, file: Path, node: ast.AST) -> Iterator[str]:
    """The modules that one node of a syntax tree imports, starts or has imported by a process."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        package = absolute(file, node)
        for alias in node.names:
            below = f"{package}.{alias.name}"
            is_module = any(root.joinpath(*below.split(".")).with_suffix(end).exists() for end in (".py", ""))
            yield below if is_module else package
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)
        yield from started(node.args)
    elif isinstance(node, ast.List | ast.Tuple):
        yield from started(node.elts)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.search(node.value):
        yield from (found.module for found in imports_in(root, file, node.value))


def started(words: Sequence[ast.expr]) -> Iterator[str]:
    """The modules that words of a command line start: `"-m", "room.module"`."""
    texts = [word.value if isinstance(word, ast.Constant) else None for word in words]
    for flag, module in itertools.pairwise(texts):
        if flag == "-m" and isinstance(module, str):
            yield module


def imports_in(root: Path, file: Path, text: str) -> list[Import]:
    """All imports of a text in Python, in order; none where the text is no Python, as most strings are not."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    later = {id(inner) for node in ast.walk(tree) if is_later(node) for inner in ast.walk(node)}
    found = []
    for node in ast.walk(tree):
        at_once = isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in later
        for module in modules_named(root, file, node):
            found.append(Import(file, getattr(node, "lineno", 1), module, at_once))
    return sorted(set(found), key=lambda one: (one.line, one.module))


def is_later(node: ast.AST) -> bool:
    """Whether what stands inside a node does not run at import: a function, or a block for the type checker."""
    is_typing = isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
    return isinstance(node, Function | ast.Lambda) or is_typing


def all_imports(root: Path, rooms: Iterable[str]) -> list[Import]:
    """The imports of all files of rooms."""
    files = python_files(root, rooms)
    return [one for file in files for one in imports_in(root, file, (root / file).read_text(encoding="utf-8"))]


def wrong_arrows(imports: Iterable[Import], ladder: Ladder) -> list[str]:
    """The imports that do not run down a ladder, whose rungs are given from the lowest to the highest."""
    rungs = {room: rung for rung, rooms in enumerate(ladder) for room in rooms}
    wrong = []
    for one in imports:
        room, other = room_of(one.file), one.module.partition(".")[0]
        if other in rungs and other != room and rungs[other] >= rungs[room]:
            way = "up" if rungs[other] > rungs[room] else "sideways"
            wrong.append(f"{one.place}: {room} imports {one.module}, {way}")
    return wrong


def imports_of_tests(imports: Iterable[Import]) -> list[str]:
    """The imports of one test file by another file."""
    return [
        f"{one.place}: imports {one.module}, a file of tests"
        for one in imports
        if any(part.startswith("test_") for part in one.module.split("."))
    ]


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def circle(imports: Iterable[Import]) -> list[str]:
    """One circle of imports that happen at once, as the places where each module imports the next; [] without one."""
    listed = list(imports)
    known = {module_of(one.file) for one in listed}
    edges: dict[str, dict[str, str]] = {name: {} for name in known}
    for one in listed:
        if one.at_once and one.module in known and one.module != module_of(one.file):
            edges[module_of(one.file)].setdefault(one.module, f"{one.place}: imports {one.module}")
    finished: set[str] = set()
    for start in sorted(edges):
        found = circle_from(start, edges, [], finished)
        if found:
            return [edges[module][after] for module, after in zip(found, [*found[1:], found[0]], strict=True)]
    return []


def circle_from(
    module: str, edges: Mapping[str, Mapping[str, str]], way: list[str], finished: set[str]
) -> list[str] | None:
    """The modules of a circle that a module leads to, `way` being the modules that led here."""
    if module in way:
        return way[way.index(module) :]
    if module in finished:
        return None
    for after in edges[module]:
        found = circle_from(after, edges, [*way, module], finished)
        if found:
            return found
    finished.add(module)
    return None


def functions(root: Path, file: Path) -> Iterator[tuple[str, Function]]:
    """The functions of a file, those in classes and functions too, as `file:line name` and their syntax trees."""
    for node in ast.walk(ast.parse((root / file).read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield f"{file}:{node.lineno} {node.name}", node


def lines_of(node: Function) -> int:
    """The lines of a function from `def` to its end."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def arguments_of(node: Function) -> int:
    """The number of arguments that a caller may give by name or place."""
    taken = [one.arg for one in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len(taken) - (taken[:1] in (["self"], ["cls"]))


def line_count(root: Path, files: Iterable[Path]) -> int:
    """The lines of files together."""
    return sum(len((root / file).read_text(encoding="utf-8").splitlines()) for file in files)

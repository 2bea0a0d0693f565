"""The ladder of rooms: who may import whom, and how large rooms, files and functions may grow."""

from collections import Counter
from pathlib import Path

import pytest

from tests.architecture import (
    Import,
    all_imports,
    arguments_of,
    circle,
    functions,
    imports_of_tests,
    line_count,
    lines_of,
    python_files,
    room_of,
    wrong_arrows,
)
from tests.helpers import ROOT

# From the lowest rung to the highest. A room imports rooms of lower rungs and itself, never one beside it.
LADDER = (
    ("utils",),
    ("models", "datasets", "losses"),
    ("methods", "evaluation"),
    ("settings",),
    ("runs",),
    ("engine",),
    ("stages",),
    ("main_stage1", "main_stage2", "evaluate", "predict", "hubconf", "tables", "tools", "api"),
    ("reproduce",),
    ("benchmarks",),
    ("tests",),
)
ROOMS = [room for rung in LADDER for room in rung]
CODE = [room for room in ROOMS if room != "tests"]
LARGEST_ROOM = 13  # files
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines
MOST_ARGUMENTS = 7
UTILS_SHARE = 0.08  # of the lines of code
# Functions that take more arguments, as `file name`, and why.
MANY_ARGUMENTS = {
    "settings/declare.py option": "a setting is declared in one call, by keywords that nearly all have a default",
    "methods/proximal.py proximal_los": "a hyper-parameter is a keyword, from which its flag follows",
}


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return all_imports(ROOT, ROOMS)


def test_every_room_has_its_rung() -> None:
    found = {room_of(path.relative_to(ROOT)) for path in (*ROOT.glob("*.py"), *ROOT.glob("*/**/*.py"))}
    assert {room for room in found if not room.startswith(".")} == set(ROOMS)


def test_imports_run_down_the_ladder(imports: list[Import]) -> None:
    assert wrong_arrows(imports, LADDER) == []


def test_no_room_imports_in_a_circle(imports: list[Import]) -> None:
    assert circle(imports) == []


def test_no_file_imports_a_file_of_tests(imports: list[Import]) -> None:
    assert imports_of_tests(imports) == []


def test_rooms_are_small() -> None:
    sizes = Counter(str(file.parent) for file in python_files(ROOT, ROOMS) if file.name != "__init__.py")
    assert {room: size for room, size in sizes.items() if size > LARGEST_ROOM} == {}


def test_files_are_short() -> None:
    helpers = [file for file in python_files(ROOT, ["tests"]) if not file.name.startswith("test_")]
    lengths = {str(file): line_count(ROOT, [file]) for file in (*python_files(ROOT, CODE), *helpers)}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}


def test_functions_are_short() -> None:
    found = [pair for file in python_files(ROOT, CODE) for pair in functions(ROOT, file)]
    assert {name: lines_of(node) for name, node in found if lines_of(node) > LONGEST_FUNCTION} == {}


def test_functions_take_few_arguments() -> None:
    found = {
        f"{file} {node.name}": arguments_of(node)
        for file in python_files(ROOT, CODE)
        for _, node in functions(ROOT, file)
        if arguments_of(node) > MOST_ARGUMENTS
    }
    assert found.keys() == MANY_ARGUMENTS.keys(), found
    assert all(MANY_ARGUMENTS.values())


def test_utils_stay_a_small_part() -> None:
    assert line_count(ROOT, python_files(ROOT, ["utils"])) < UTILS_SHARE * line_count(ROOT, python_files(ROOT, CODE))


# The checks see what they are there for


SMALL = (("utils",), ("models", "losses"), ("main",), ("tests",))


def write(root: Path, files: dict[str, str]) -> list[Import]:
    """Write a repository of a few files and return its imports."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return all_imports(root, [room for rung in SMALL for room in rung])


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("utils/text.py", "import losses.los\n", "utils/text.py:1: utils imports losses.los, up"),
        ("utils/text.py", "\nfrom losses import los\n", "utils/text.py:2: utils imports losses.los, up"),
        ("utils/text.py", "from losses.los import LOS\n", "utils/text.py:1: utils imports losses.los, up"),
        ("models/net.py", "from losses.los import LOS\n", "models/net.py:1: models imports losses.los, sideways"),
        ("models/net.py", "import main\n", "models/net.py:1: models imports main, up"),
        ("models/deep/net.py", "from ...losses import los\n", "models/deep/net.py:1: models imports losses.los, "),
        ("main.py", "from tests.helpers import run\n", "main.py:1: main imports tests.helpers, up"),
        ("utils/text.py", "def f():\n    from losses import los\n", "utils/text.py:2: utils imports losses.los, up"),
        ("utils/text.py", "class A:\n    def f(self):\n        import main\n", "utils/text.py:3: utils imports main, "),
        (
            "utils/text.py",
            "if TYPE_CHECKING:\n    from losses import los\n",
            "utils/text.py:2: utils imports losses.los, up",
        ),
        ("utils/text.py", "import importlib\nimportlib.import_module('main')\n", "utils/text.py:2: utils imports main"),
        ("utils/text.py", "run([python, '-m', 'losses.los'])\n", "utils/text.py:1: utils imports losses.los, up"),
        ("utils/text.py", "run(python, '-m', 'losses.los')\n", "utils/text.py:1: utils imports losses.los, up"),
        ("utils/text.py", "CODE = '''\nimport main\n'''\n", "utils/text.py:1: utils imports main, up"),
    ],
)
def test_an_arrow_that_runs_up_or_sideways_is_found(file: str, text: str, words: str, tmp_path: Path) -> None:
    (found,) = wrong_arrows(write(tmp_path, {"losses/los.py": "", "main.py": "", file: text}), SMALL)
    assert found.startswith(words)


def test_arrows_that_run_down_are_right(tmp_path: Path) -> None:
    imports = write(
        tmp_path,
        {
            "utils/text.py": '"""`python -m main` and import main."""\nimport json\n',
            "losses/los.py": "from utils import text\nfrom losses.parts import half\n",
            "losses/parts.py": "from utils.text import plain\n",
            "main.py": "import losses.los, models.net, utils.text\n",
            "models/net.py": "from . import parts\n",
            "models/parts.py": "",
            "tests/losses/test_los.py": "import main\nfrom tests.helpers import run\n",
        },
    )
    assert {one.module for one in imports} >= {"losses.parts", "models.parts", "utils.text", "tests.helpers", "main"}
    assert wrong_arrows(imports, SMALL) == circle(imports) == imports_of_tests(imports) == []


@pytest.mark.parametrize(
    ("files", "places"),
    [
        ({"a": "from losses import b", "b": "import losses.a"}, ["a", "b"]),
        (
            {"a": "from losses.b import x", "b": "from losses.c import x", "c": "from losses.a import x"},
            ["a", "b", "c"],
        ),
        ({"a": "from losses import LOSSES", "__init__": "from losses import a"}, ["__init__", "a"]),
        ({"a": "if True:\n    import losses.b", "b": "try:\n    import losses.a\nexcept E:\n    pass"}, ["a", "b"]),
    ],
)
def test_a_circle_is_found(files: dict[str, str], places: list[str], tmp_path: Path) -> None:
    found = circle(write(tmp_path, {f"losses/{name}.py": text for name, text in files.items()}))
    assert [line.partition(".py:")[0] for line in found] == [f"losses/{name}" for name in places]
    assert all(": imports losses" in line for line in found)


def test_an_import_at_a_call_closes_no_circle(tmp_path: Path) -> None:
    files = {
        "losses/a.py": "def f():\n    from losses import b\n",
        "losses/b.py": "from losses import a, c\n",
        "losses/c.py": "if TYPE_CHECKING:\n    import losses.b\n",
    }
    assert circle(write(tmp_path, files)) == []


@pytest.mark.parametrize("text", ["from tests.losses.test_los import make", "import test_los", "import tests.test_los"])
def test_an_import_of_tests_is_found(text: str, tmp_path: Path) -> None:
    (found,) = imports_of_tests(write(tmp_path, {"tests/test_gala.py": f"\n{text}\n"}))
    assert found.startswith("tests/test_gala.py:2: ")


def test_lines_and_arguments_are_counted(tmp_path: Path) -> None:
    text = (
        "class A:\n    @cached\n    def f(self, a, /, b, *c, d=1, **e):\n        def g(a): pass\n\n        return 1\n"
    )
    write(tmp_path, {"utils/a.py": text})
    found = [(name, lines_of(node), arguments_of(node)) for name, node in functions(tmp_path, Path("utils/a.py"))]
    assert found == [("utils/a.py:3 f", 4, 3), ("utils/a.py:4 g", 1, 1)]
    assert line_count(tmp_path, [Path("utils/a.py")]) == 6

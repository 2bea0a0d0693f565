"""The pages of documentation: links and anchors resolve, and what a reader may copy runs.

A block of Python or of shell lines on a page runs here in the order of the page, in an empty folder that has stand-ins
for what a user brings. Two comments, which a reader of the page does not see, say otherwise of the block below them:

    <!-- needs: a GPU -->               it does not run here; that its scripts and flags exist is still looked at
    <!-- run with: --methods ce los --> it runs with these flags behind every command that trains

A line with `--device cuda` or torchrun needs a GPU without saying so. Benchmarks take minutes to hours and have tests
of their own: of their lines it is looked at that the command exists.
"""

import dataclasses
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models import build_model, resnet_imagenet
from settings.fields import Settings
from settings.presets import PRESETS
from tests.helpers import ROOT, image_tree, run, use_small_cifar, write_cifar

DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*(ROOT / name for name in ("README.md", "RESULTS.md", "CHANGELOG.md", "benchmarks/README.md")), *DOCS]
FLAGS = {f"--{field.name}" for field in dataclasses.fields(Settings)}
TRAINING = ("main_stage1.py", "main_stage2.py", "evaluate.py", "reproduce.py")
COMMANDS = ("python ", "make ", "torchrun ", "time ", "pip ", "git ")
LONGEST_HEADING = 70


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(text: str) -> str:
    """Return a page without its blocks of code and its comments, in which nothing is Markdown."""
    text = re.sub(r"(?ms)^```.*?^```$", "", text)
    text = re.sub(r"(?s)<!--.*?-->", "", text)
    return re.sub(r"(?m)^ {4}.*$", "", text)


def headings(text: str) -> list[str]:
    return re.findall(r"(?m)^#+ (.+)$", without_code(text))


def anchors(text: str) -> list[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    found: list[str] = []
    for heading in headings(text):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        earlier = sum(anchor == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", anchor) is not None for anchor in found)
        found.append(f"{slug}-{earlier}" if earlier else slug)
    return found


def links(text: str) -> list[str]:
    """Return the targets of the links and images of a page that lead into this repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", without_code(text)))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


# Links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_anchors(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        target, _, anchor = link.partition("#")
        assert not target.startswith("/"), f"{link}: an absolute path"
        place = (page.parent / target).resolve() if target else page
        assert place.is_relative_to(ROOT) and place.exists(), link
        if anchor:
            assert anchor in anchors(place.read_text(encoding="utf-8")), link


def test_anchors_are_those_of_github() -> None:
    page = "# A `b` c, d!\n\n## metrics.json\n\n```\n# no heading\n```\n## A-b_c\n## metrics.json\n## [x](y.md) z\n"
    assert anchors(page) == ["a-b-c-d", "metricsjson", "a-b_c", "metricsjson-1", "x-z"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_has_a_path_of_one_machine(page: Path) -> None:
    assert not re.findall(r"(?<![\w.<>/~-])/(?:home|root|tmp|work|mnt|Users)/", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_blank_line_ends_every_table(page: Path) -> None:
    """A line of text that follows at once would be shown as a row."""
    lines = page.read_text(encoding="utf-8").splitlines()
    after = [below for row, below in itertools.pairwise(lines) if row.startswith("|") and below[:1] not in ("|", "")]
    assert after == []


def test_every_page_is_in_both_lists() -> None:
    for index in (ROOT / "README.md", ROOT / "docs" / "README.md"):
        reached = {(index.parent / link.partition("#")[0]).resolve() for link in links(index.read_text("utf-8"))}
        for page in DOCS:
            if page.parent == ROOT / "docs" and page != ROOT / "docs" / "README.md":
                assert page in reached, f"{name_of(page)} is not in {name_of(index)}"
    results = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    for page in DOCS:
        assert page.parent != ROOT / "docs" / "results" or name_of(page) in results


# Style


def test_readme_is_short_and_begins_with_what_matters() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(text.encode()) <= 9000 and len(lines) <= 130
    screen = "\n".join(lines[:36])
    assert "![" in screen and "make demo" in screen and "make test" in screen and "main_stage2.py" in screen


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_has_one_title_and_short_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert len(re.findall(r"(?m)^# ", without_code(text))) == 1
    for heading in headings(text):
        assert len(heading) <= LONGEST_HEADING and heading[-1] not in ".?!:", heading


# What a reader may copy


@dataclasses.dataclass(frozen=True)
class Block:
    """Lines of a page to run: `python` or `shell`, and what the comment above says."""

    kind: str
    text: str
    needs: str
    extra: tuple[str, ...]


def blocks(text: str) -> list[Block]:
    """Return the Python and the shell lines of a page, block by block."""
    pattern = re.compile(
        r"(?m)(?:^<!-- (?P<mark>needs|run with): (?P<what>.*) -->\n\n)?"
        r"(?:^```(?P<language>\w+)\n(?P<fenced>(?:.*\n)*?)```$|^(?P<indented>(?: {4}.*\n|\n(?= {4}))+))"
    )
    found = []
    for match in pattern.finditer(text):
        fenced = match["language"] is not None
        lines = match["fenced"] if fenced else re.sub(r"(?m)^ {4}", "", match["indented"])
        kind = "python" if match["language"] == "python" else "shell"
        if fenced and match["language"] not in ("python", "bash", "sh", "shell", "console"):
            continue
        if kind == "shell":
            lines = "".join(f"{line}\n" for line in lines.splitlines() if line.startswith(COMMANDS))
        needs = match["what"] if match["mark"] == "needs" else ""
        extra = tuple(shlex.split(match["what"])) if match["mark"] == "run with" else ()
        if lines:
            found.append(Block(kind, lines, needs, extra))
    return found


def command_lines(block: Block) -> Iterator[list[str]]:
    """Yield the words of each shell line, files that a star stands for in their place."""
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        yield [name for word in words for name in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the file of ours that a command line runs, from the root, and its arguments; None where it is another."""
    words = words[1:] if words[0] == "time" else words
    if words[:2] == ["python", "-m"]:
        return f"{words[2].replace('.', '/')}.py", words[3:]
    for place, word in enumerate(words):
        if word.endswith(".py") and words[0] in ("python", "torchrun"):
            return word, words[place + 1 :]
    return None


def check_exists(words: list[str]) -> None:
    """Check that what a line runs is there, and that the flags it gives are known to it."""
    if words[0] == "make":
        assert re.search(rf"(?m)^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8")), words
        return
    found = script_of(words)
    if found is None:
        assert words[0] in ("pip", "git"), words
        return
    script, arguments = found
    assert (ROOT / script).is_file() or importlib.util.find_spec(script[:-3].replace("/", ".")), words
    source = (ROOT / script).read_text(encoding="utf-8") if (ROOT / script).is_file() else ""
    if not script.startswith("benchmarks/"):
        for word in arguments:
            flag = word.partition("=")[0]
            assert not word.startswith("--") or flag in FLAGS or f'"{flag}"' in source, f"{flag} in {words}"


def run_line(words: list[str], extra: tuple[str, ...]) -> None:
    """Run a shell line in this process; it must end with status 0."""
    if words == ["make", "demo"]:
        said = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        lines = [line for line in said.splitlines() if line.startswith(".venv/bin/python ") and "venv" not in line[17:]]
        assert len(lines) >= 4
        for line in lines:
            run_line(["python", *shlex.split(line)[1:]], ())
    elif words[:2] == ["python", "-c"]:
        exec(compile(words[2], "a line of a page", "exec"), {})
    elif words[0] == "make" or (script_of(words) or ("",))[0].startswith("benchmarks/"):
        check_exists(words)
    else:
        found = script_of(words)
        assert found is not None, words
        script, arguments = found
        outcome = run(script[:-3], *arguments, *(extra if script in TRAINING else ()))
        assert outcome.status == 0, f"{' '.join(words)}\n{outcome.err}"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a user brings: a small CIFAR-100, a tree of images, weights; and runs that take seconds."""
    use_small_cifar(monkeypatch)
    write_cifar(tmp_path / "data" / "cifar100")
    monkeypatch.setitem(PRESETS, "digits", {**PRESETS["digits"], "epochs": 2, "finetune_epoch": 2})
    quick = {"epochs": 1, "image_size": 32, "resize": 32, "workers": 0}
    for form in ("folder", "list"):
        monkeypatch.setitem(PRESETS, form, {**PRESETS[form], **quick})
    monkeypatch.setitem(resnet_imagenet.LAYERS, "resnet50", resnet_imagenet.LAYERS["resnet10"])
    monkeypatch.setattr("tables.request.save_figure", lambda *_: None)
    images = sorted(image_tree(tmp_path / "flowers", classes=3, train=12).glob("*/*/*"))
    shutil.copytree(tmp_path / "flowers" / "train", tmp_path / "herbarium")
    parts = [path.relative_to(tmp_path / "flowers").with_suffix("").parts for path in images]
    table = [f"{split}/{name}/{number},{name},{split}\n" for split, name, number in parts]
    (tmp_path / "flowers.csv").write_text("image_id,species,split\n" + "".join(table))
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.zeros((12, 12, 3), np.uint8)).save(tmp_path / "photos" / "one.png")
    torch.manual_seed(0)
    torch.save(build_model("resnet50", 10, stem="imagenet").state_dict(), tmp_path / "resnet50.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


FOLLOWED = ROOT / "docs" / "architecture.md"  # pieces of files; tests/repository/test_extension.py follows its steps
WITH_LINES = [page for page in PAGES if page != FOLLOWED and blocks(page.read_text(encoding="utf-8"))]


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", WITH_LINES, ids=name_of)
def test_what_a_page_shows_runs(page: Path) -> None:
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.kind == "python":
            assert not block.needs
            exec(compile(block.text, name_of(page), "exec"), {})
            continue
        for words in command_lines(block):
            if block.needs or "cuda" in words or "torchrun" in words:
                check_exists(words)
            else:
                run_line(words, block.extra)


def test_lines_are_found_and_marked() -> None:
    page = (
        "    python a.py --x 1  # a comment\n    python b.py\n\ntext\n\n<!-- needs: a GPU -->\n\n    make c\n\n"
        "```python\nprint()\n```\n\n<!-- run with: --y 2 -->\n\n    python d.py\n\n    tree  not a command\n"
    )
    assert blocks(page) == [
        Block("shell", "python a.py --x 1  # a comment\npython b.py\n", "", ()),
        Block("shell", "make c\n", "a GPU", ()),
        Block("python", "print()\n", "", ()),
        Block("shell", "python d.py\n", "", ("--y", "2")),
    ]


@pytest.mark.parametrize("line", ["make nothing", "python nothing.py", "python main_stage1.py --nothing"])
def test_a_line_that_cannot_run_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        check_exists(shlex.split(line))

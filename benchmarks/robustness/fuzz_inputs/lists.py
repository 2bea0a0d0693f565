"""Lists of images, as text and in COCO's form."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from benchmarks.robustness.fuzz_inputs.cases import ACCEPTED, Material, check_line, refusal
from benchmarks.robustness.fuzz_inputs.damage import damage, damages, json_bytes
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.text_lists import read_list

LINES = [
    "",
    " ",
    "\t",
    "nolabel",
    "img.png",
    "a.png -1",
    "a.png 1.0",
    "a.png 99999999999",
    "a.png 3",
    "a.png 0x1",
    "a.png 1 2",
    "a.png \u0663",
    "a.png\u00a01",
    "a.png,1",
    "a.png;1",
    "a.png\t1",
    "  a.png   1  ",
    "/etc/passwd 0",
    "../a.png 0",
    "..\\a.png 0",
    "C:\\a.png 0",
    "a/../../b.png 1",
    "a\0b.png 0",
    "a.png 0\0",
    "\ufeffa.png 1",
    "a\x1b[31m.png 1",
    "a.png \x1b[31m",
    "é.png 1",
    "\udcff.png 1",
    "\u2028.png 1",
    "x" * 2000 + " 1",
    "a b c.png 0",
    "0 a.png",
    "# comment",
    "a.png +1",
    "a.png 1_0",
    "a.png ",
    " 1",
    "a.png " + "1" * 5000,
    "a.png 1\x85b.png 0",
    "a.png 1\x0bb.png 0",
]


def list_cases(material: Material) -> SearchStrategy[Any]:
    """Draw edits of a list's lines, the ends of its lines, its encoding, and sometimes damage to its bytes."""
    operation = st.sampled_from(["insert", "insert", "remove", "double", "swap label"])
    edit = st.tuples(operation, st.integers(0, 10**6), st.sampled_from(LINES))
    ends = st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n", "", "\0"])
    coding = st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"])
    classes = st.sampled_from([None, 2, 3, 1000])
    return st.tuples(st.lists(edit, max_size=4), ends, coding, classes, st.just([]) | damages())


def list_bytes(text: bytes, done: Sequence[tuple[str, int, str]], end: str, coding: str) -> bytes:
    """Return the bytes of a list after what `list_cases` drew."""
    lines = text.decode().splitlines()
    for operation, number, line in done:
        at = number % (len(lines) or 1)
        if operation == "insert" or not lines:
            lines.insert(at, line)
        elif operation == "remove":
            lines.pop(at)
        elif operation == "double":
            lines.append(lines[at])
        else:
            lines[at] = f"{lines[at].split()[0] if lines[at].split() else ''} {line.split(' ')[-1]}"
    errors = "surrogateescape" if coding.startswith("utf-8") else "replace"
    return "".join(line + end for line in lines).encode(coding, errors)


def plain_rows(data: bytes) -> list[tuple[bytes, int]]:
    """Return the rows of a list by another way than `read_list`: bytes and one regular expression a line."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    rows = []
    for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.strip():
            match = re.fullmatch(r"(.*\S)\s+([0-9]+)\s*", line, re.DOTALL)
            assert match, f"no row: {line!r}"
            rows.append((os.fsencode(match[1].replace("\\", "/")), int(match[2])))  # no file has a backslash
    return rows


def try_list(material: Material, folder: Path, case: Any) -> str:
    """Read a list: what is accepted has exactly the rows that `plain_rows` finds, with paths that stay inside."""
    done, end, coding, classes, broken = case
    file = folder / "train.txt"
    file.write_bytes(damage(list_bytes(material.texts["train.txt"], done, end, coding), broken))
    outcome, split = refusal(lambda: read_list(file, folder, classes), str(file))
    if outcome == ACCEPTED:
        rows = list(zip(split.images.tolist(), split.labels.tolist(), strict=True))
        assert rows == plain_rows(file.read_bytes())
        check_rows(split, folder, classes)
    return outcome


def check_rows(split: Any, folder: Path, classes: int | None) -> None:
    """Assert that paths stay below the folder and labels are those of the classes."""
    for row in range(len(split)):
        assert Path(os.path.normpath(split.path(row))).is_relative_to(folder), split.path(row)
    assert int(split.labels.min()) >= 0 and (classes is None or int(split.labels.max()) < classes)


def try_coco(material: Material, folder: Path, case: Any) -> str:
    """Read a list in COCO's form: what is accepted pairs every image with the one category of its annotation."""
    name, done, form, broken = case
    file = folder / name
    file.write_bytes(json_bytes(material.texts[name], done, form, broken))
    outcome, found = refusal(lambda: read_json_list(file, folder), str(file))
    if outcome == ACCEPTED:
        split, names = found
        content = json.loads(file.read_bytes().decode("utf-8-sig"))
        order = sorted((category["id"] for category in content["categories"]), key=lambda key: int(str(key)))
        place = {str(key): label for label, key in enumerate(order)}
        label_of = {str(entry["image_id"]): place[str(entry["category_id"])] for entry in content["annotations"]}
        images = [(os.fsencode(image["file_name"]), label_of.get(str(image["id"]))) for image in content["images"]]
        # Those without annotation are left out, and no file has a backslash.
        rows = [(name.replace(b"\\", b"/"), label) for name, label in images if label is not None]
        assert list(zip(split.images.tolist(), split.labels.tolist(), strict=True)) == rows
        assert len(names) == len(order)
        for class_name in names:
            check_line(class_name or "-")
        check_rows(split, folder, len(names))
    return outcome

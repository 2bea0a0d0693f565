"""The second time: files are looked at while the lists are read, and what follows from their hashes is kept."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets.identity import content, early_look, file_hashes, kept_hashes, kept_records
from datasets.identity.content import CONTENT, NAMES, with_identity
from datasets.identity.early_look import EarlyLook, images_root, looking_early
from datasets.identity.file_hashes import file_digests
from datasets.identity.kept_hashes import kept_file
from datasets.long_tail import Augmentation, Identity, LongTailedData
from datasets.on_disk.layouts import NO_FILES, ListFiles
from datasets.on_disk.listed_split import ListedSplit, pack
from settings.command_line import parse_command
from settings.declare import EVALUATE
from stages.data import load_data

LONG_AGO = time.time_ns() - 10**12
COUNT = 9


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, ns=(LONG_AGO, LONG_AGO))


def write_split(root: Path) -> ListedSplit:
    for number in range(COUNT):
        write(root / f"{number}.png", b"%d" % number)
    return pack(root, [b"%d.png" % number for number in range(COUNT)], [number % 3 for number in range(COUNT)])


def hashed_anew(split: ListedSplit) -> np.ndarray:
    found = b""
    for row in range(len(split)):
        path = Path(split.path(row))
        found += hashlib.sha256(path.read_bytes()).digest() if path.is_file() else bytes(32)
    return np.frombuffer(found, np.uint8).reshape(-1, 32)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that this process looks at itself; others look at all whose hashes are kept, however few."""
    seen: list[str] = []
    look_at_all = file_hashes.look_at_all

    def noted(paths: list[bytes]) -> list[int]:
        seen.extend(os.fsdecode(os.path.basename(path)) for path in paths)
        return look_at_all(paths)

    monkeypatch.setattr(file_hashes, "look_at_all", noted)
    monkeypatch.setattr(early_look, "WORTH_FILES", 1)
    monkeypatch.setattr(early_look, "available_cores", lambda: 2)
    monkeypatch.setattr(kept_hashes, "UNSETTLED_NS", 0)
    monkeypatch.setattr(file_hashes, "WORTH_SECONDS", 0)
    return seen


@pytest.fixture
def split(tmp_path: Path, looked_at: list[str]) -> ListedSplit:
    """Files whose hashes are kept."""
    split = write_split(tmp_path / "images")
    time.sleep(0.01)  # a tick of the file system's clock
    file_digests(split, tmp_path / "kept")
    looked_at.clear()
    return split


def test_others_look_and_what_changed_meanwhile_is_noticed(
    split: ListedSplit, tmp_path: Path, looked_at: list[str]
) -> None:
    write(split.root / "3.png", b"other")
    write(split.root / "5.png", b"X")  # of the same size and time
    (split.root / "6.png").unlink()
    (split.root / "7.png").unlink()
    os.mkfifo(split.root / "7.png")
    with looking_early(tmp_path / "kept", split.root) as early:
        assert early is not None and len(early.lookers) == 2
        assert np.array_equal(file_digests(split, tmp_path / "kept", early), hashed_anew(split))
    assert looked_at == []


def test_other_lists_of_the_folder_find_their_files(split: ListedSplit, tmp_path: Path, looked_at: list[str]) -> None:
    write(split.root / "new.png", b"new")
    longer = pack(split.root, [b"new.png", *split.images.tolist()[::-1], b"2.png"], [0] * (COUNT + 2))
    with looking_early(tmp_path / "kept", split.root) as early:
        assert np.array_equal(file_digests(longer, tmp_path / "kept", early), hashed_anew(longer))
    assert looked_at == ["new.png"]


def test_who_cannot_look_is_replaced(split: ListedSplit, tmp_path: Path, looked_at: list[str]) -> None:
    with looking_early(tmp_path / "kept", split.root) as early:
        assert early is not None
        early.lookers[1].process.kill()
        early.lookers[1].process.wait()
        early.lookers[1].answer.truncate(0)
        assert np.array_equal(file_digests(split, tmp_path / "kept", early), hashed_anew(split))
    assert len(looked_at) == COUNT


def test_nobody_looks_on_when_the_lists_could_not_be_read(split: ListedSplit, tmp_path: Path) -> None:
    found: list[EarlyLook] = []
    with pytest.raises(KeyError), looking_early(tmp_path / "kept", split.root) as early:
        assert early is not None
        found.append(early)
        raise KeyError("a list")
    assert all(looker.process.poll() is not None and looker.answer.closed for looker in found[0].lookers)


def test_an_early_look_that_cannot_be(
    split: ListedSplit,
    tmp_path: Path,
    looked_at: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for root in (None, tmp_path / "nowhere"):
        with looking_early(tmp_path / "kept", root) as early:
            assert early is None
    other = write_split(tmp_path / "others")
    with looking_early(tmp_path / "kept", split.root) as early:
        assert np.array_equal(file_digests(other, tmp_path / "kept", early), hashed_anew(other))
    assert len(looked_at) == COUNT
    monkeypatch.setattr(early_look.sys, "executable", str(tmp_path / "no_python"))
    with looking_early(tmp_path / "kept", split.root) as early:
        assert np.array_equal(file_digests(split, tmp_path / "kept", early), hashed_anew(split))
    kept_file(tmp_path / "kept", split.root).write_bytes(b"damaged")
    with looking_early(tmp_path / "kept", split.root) as early:
        assert np.array_equal(file_digests(split, tmp_path / "kept", early), hashed_anew(split))
    assert capsys.readouterr().err.count("is damaged") == 1


@pytest.mark.parametrize(
    ("dataset", "files", "root"),
    [
        ("digits", NO_FILES, None),
        ("folder", NO_FILES, Path("data")),
        ("imagenet_lt", NO_FILES, Path("data/imagenet_lt")),
        ("imagenet_lt", ListFiles(image_root="elsewhere"), Path("elsewhere")),
        ("list", NO_FILES, Path("data")),
    ],
)
def test_where_the_images_lie(dataset: str, files: ListFiles, root: Path | None) -> None:
    assert images_root(dataset, "data", files) == root


def test_commands_look_early(tmp_path: Path, looked_at: list[str]) -> None:
    for part, count in (("train", 3), ("test", 1)):
        for number in range(2 * count):
            write(tmp_path / "data" / part / f"class{number % 2}" / f"{number}.png", b"%d" % number)
    time.sleep(0.01)  # a tick of the file system's clock
    flags = ["--dataset", "folder", "--data_dir", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    settings = parse_command(EVALUATE, "", flags).settings
    first = load_data(settings, 0)
    assert len(looked_at) == 8 and isinstance(first.train, ListedSplit) and isinstance(first.test, ListedSplit)
    looked_at.clear()
    assert load_data(settings, 0).identity == first.identity
    assert looked_at == []


# What follows from the hashes


def data_of(split: ListedSplit) -> LongTailedData:
    rows = np.arange(COUNT)
    train, holdout, test = split.take(rows[:6]), split.take(rows[6:6]), split.take(rows[6:])
    augmentation = Augmentation(0, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    counts = np.bincount(train.labels, minlength=3)
    return LongTailedData("tree", train, holdout, test, ["a", "b", "c"], counts, augmentation, {})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A word for each identity that was made, and not taken from an earlier time."""
    seen: list[str] = []
    identity_record = content.identity_record

    def noted(*arguments: Any) -> dict[str, Any]:
        seen.append("made")
        return identity_record(*arguments)

    monkeypatch.setattr(content, "identity_record", noted)
    monkeypatch.setattr(kept_records, "WORTH_SECONDS", 0)
    return seen


@pytest.mark.parametrize("how", [CONTENT, NAMES])
def test_an_identity_is_made_once(how: str, split: ListedSplit, tmp_path: Path, made: list[str]) -> None:
    write(split.root / "8.png", b"1")  # a test image that is trained on
    data = data_of(split)
    first = with_identity(data, how, tmp_path / "kept").identity
    again = with_identity(data, how, tmp_path / "kept").identity
    assert first == again == with_identity(data, how).identity and len(made) == 2
    assert first is not None and bool(first.warnings) == (how == CONTENT)


def test_an_identity_of_anything_else_is_made_anew(split: ListedSplit, tmp_path: Path, made: list[str]) -> None:
    data = data_of(split)
    train, test = data.train, data.test
    others = [
        data,
        replace(data, train=replace(train, labels=train.labels[::-1])),
        replace(data, train=replace(train, ids=train.ids + 1)),
        replace(data, test=replace(test, labels=(test.labels + 1) % 3)),
        replace(data, class_names=["a", "b", "c", "d"]),
        replace(data, train=train.take(np.arange(5)), holdout=train.take(np.arange(5, 6))),
        replace(data, train=train.take(np.arange(6)[::-1])),
    ]
    found = [with_identity(each, CONTENT, tmp_path / "kept").identity for each in others]
    found.append(with_identity(others[5], CONTENT, tmp_path / "kept", held_out_share=True).identity)
    found.append(with_identity(data, NAMES, tmp_path / "kept").identity)
    write(split.root / "0.png", b"other")
    found.append(with_identity(data, CONTENT, tmp_path / "kept").identity)
    assert len(made) == len(found) == 10
    assert all(a != b for row, a in enumerate(found) for b in found[:row])


def test_paths_of_another_width_have_another_key() -> None:
    pairs = np.array([b"ab", b"cd"])
    assert pairs.tobytes() == pairs.view("S1").tobytes()
    keys = {kept_records.record_key(["names"], [array]) for array in (pairs, pairs.view("S1"), pairs[None])}
    assert len(keys) == 3 and kept_records.record_key(["content"], [pairs]) not in keys


@pytest.mark.parametrize("damage", [b"", b"{}", b"{", b'"', None])
def test_a_damaged_identity_is_made_anew(
    damage: bytes | None, split: ListedSplit, tmp_path: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = with_identity(data_of(split), CONTENT, tmp_path / "kept").identity
    [place] = (tmp_path / "kept").glob("*.json")
    place.write_bytes(place.read_bytes().replace(b"6", b"7", 1) if damage is None else damage)
    assert with_identity(data_of(split), CONTENT, tmp_path / "kept").identity == first and len(made) == 2
    assert f"{place} is damaged" in capsys.readouterr().err
    assert with_identity(data_of(split), CONTENT, tmp_path / "kept").identity == first and len(made) == 2


def test_a_folder_that_cannot_be_written_costs_time_alone(tmp_path: Path, made: list[str]) -> None:
    (tmp_path / "file").write_bytes(b"no folder")
    identity = Identity({"a": 1}, ("b",))
    place = tmp_path / "file" / "kept"
    assert kept_records.kept_or_made(place, ["names"], [np.arange(3)], lambda: identity) == identity
    assert kept_records.kept_or_made(None, ["names"], [np.arange(3)], lambda: identity) == identity

"""The identity of a data set: it changes exactly where what it stands for changes, and files are hashed once."""

import hashlib
import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import Profile, load_dataset
from datasets.identity import file_hashes, kept_hashes, states
from datasets.identity.content import NAMES, relabelled, with_identity
from datasets.identity.file_hashes import file_digests
from datasets.identity.kept_hashes import kept_file, read_kept
from datasets.long_tail import Augmentation, LongTailedData, Split, refuse_equal_names
from datasets.on_disk.listed_split import ListedSplit, pack
from runs.dependencies import class_places, describe_data, differences, key_of
from utils.errors import UserError

LONG_AGO = time.time_ns() - 10**12
AUGMENTATION = Augmentation(0, True, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def write_files(root: Path, contents: dict[str, bytes]) -> None:
    """Write files that have stood there for a while."""
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, ns=(LONG_AGO, LONG_AGO))


def split_of(root: Path, rows: list[tuple[str, int]]) -> ListedSplit:
    return pack(root, [os.fsencode(name) for name, _ in rows], [label for _, label in rows])


def data_of(root: Path, train: list[tuple[str, int]], test: list[tuple[str, int]], names: list[str]) -> LongTailedData:
    splits = [split_of(root, rows) for rows in (train, test)]
    counts = np.bincount(splits[0].labels, minlength=len(names))
    holdout = splits[0].take(np.arange(0))
    return LongTailedData("tree", splits[0], holdout, splits[1], names, counts, AUGMENTATION, {})


# A key changes if, and only if, the thing matters


TRAIN = [("a/0", 0), ("a/1", 0), ("b/0", 1), ("b/1", 1), ("c/0", 2)]
TEST = [("t/a", 0), ("t/b", 1), ("t/c", 2)]
CLASSES = ["ant", "bee", "cat"]

Tree = tuple[dict[str, bytes], list[tuple[str, int]], list[tuple[str, int]], list[str]]


def fresh() -> Tree:
    contents = {name: f"pixels of {name}".encode() for name, _ in (*TRAIN, *TEST)}
    return contents, list(TRAIN), list(TEST), list(CLASSES)


def change(tree: Tree, kind: str, where: str, row: int) -> tuple[Tree, bool, str]:
    """Change one thing; return the tree, whether it matters, and what is to be said of it."""
    contents, train, test, names = tree
    rows, words = (train, "training") if where == "train" else (test, "test")
    row %= len(rows)
    other = (row + 1) % len(rows)
    if kind == "pixels":
        contents[rows[row][0]] += b"!"
        return tree, True, f"other {words} images"
    if kind == "labels":
        label = (rows[row][1] + 1) % 3
        rows[row] = rows[row][0], label
        return tree, True, f"other {words} labels"
    if kind == "order":
        rows[row], rows[other] = rows[other], rows[row]
        return tree, True, f"{words} images in another order"
    if kind == "class name":
        names[row % 3] += "s"
        return tree, True, "other class names"
    if kind == "classes":
        names[0], names[1] = names[1], names[0]
        turn = {0: 1, 1: 0, 2: 2}
        train[:], test[:] = ([(name, turn[label]) for name, label in rows] for rows in (train, test))
        return tree, True, "classes in another order"
    if kind == "file name":  # the same picture under another name is the same picture
        name, label = rows[row]
        contents[name + "_"] = contents.pop(name)
        rows[row] = name + "_", label
        return tree, False, ""
    assert kind == "nothing"
    return tree, False, ""


KINDS = ("pixels", "labels", "order", "class name", "classes", "file name", "nothing")


def depends_of(tree: Tree, root: Path) -> dict[str, Any]:
    contents, train, test, names = tree
    write_files(root, contents)
    return describe_data(with_identity(data_of(root, train, test, names)))


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), where=st.sampled_from(("train", "test")), row=st.integers(0, 9))
def test_a_key_changes_if_and_only_if_the_thing_matters(
    kind: str, where: str, row: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = depends_of(fresh(), tmp_path_factory.mktemp("first"))
    tree, matters, words = change(fresh(), kind, where, row)
    second = depends_of(tree, tmp_path_factory.mktemp("second"))
    assert (key_of(first) != key_of(second)) == matters
    found = differences(first, second)
    assert [line.partition(" (")[0] for line in found] == ([words] if matters else [])
    assert differences(second, second) == []


@settings(max_examples=30, deadline=None)
@given(turn=st.permutations(range(4)), named=st.booleans(), seed=st.integers(0, 99))
def test_a_known_order_of_classes_is_found_and_undone(turn: list[int], named: bool, seed: int) -> None:
    random = np.random.RandomState(seed)
    names = ["ant", "bee", "cat", "dog"] if named else ["0", "1", "2", "3"]
    labels = np.array([0, 1, 2, 3, 0, 1])
    split = Split(random.randint(0, 255, (6, 2, 2, 3)).astype(np.uint8), labels, np.arange(6))
    test = Split(split.images + 1, labels, np.arange(6))
    counts = np.bincount(labels)
    data = with_identity(LongTailedData("x", split, split.take(np.arange(0)), test, names, counts, AUGMENTATION, {}))
    other_names = [names[turn.index(place)] for place in range(4)] if named else names
    other = with_identity(relabelled(data, turn, other_names))
    places = class_places(describe_data(data), describe_data(other))
    assert places is not None and [places[turn[label]] for label in range(4)] == [0, 1, 2, 3]
    back = with_identity(relabelled(other, places, names))
    assert describe_data(back) == describe_data(data)
    assert back.class_counts.tolist() == data.class_counts.tolist()


def test_an_order_of_classes_that_cannot_be_known_is_none() -> None:
    here: dict[str, Any] = {"class_names": ["0", "1", "2"]}
    assert class_places(here, {"class_names": ["0", "1"]}) is None
    assert class_places(here, here) is None  # neither names nor contents
    named = {"class_names": ["a", "b", "c"]}
    assert class_places(named, {"class_names": ["a", "b", "d"]}) is None
    assert class_places(named, {"class_names": ["c", "a", "b"]}) == [2, 0, 1]


def test_names_are_weaker_and_say_so(tmp_path: Path) -> None:
    contents, train, test, names = fresh()
    write_files(tmp_path, contents)
    data = data_of(tmp_path, train, test, names)
    before = describe_data(with_identity(data, NAMES))
    write_files(tmp_path, {"a/0": b"another picture"})
    assert describe_data(with_identity(data, NAMES)) == before
    assert before["identity"]["how"] == "names"
    content = describe_data(with_identity(data))
    assert differences(before, content) == []  # of two kinds: not known


def test_what_an_earlier_version_did_not_record_is_not_known() -> None:
    now = describe_data(with_identity(load_dataset("digits", Profile(imb_ratio=25))))
    assert differences({"class_names": now["class_names"]}, now) == []
    for damaged in (7, {}, {"how": "content", "of": "pixels"}, {**now["identity"], "train": None}):
        assert differences({**now, "identity": damaged}, now) == []


def test_the_pool_is_the_same_whatever_share_is_held_out() -> None:
    pools = set()
    for holdout, seed in ((0.0, 0), (0.2, 0), (0.2, 1)):
        data = load_dataset("digits", Profile(imb_ratio=25, holdout=holdout, holdout_seed=seed))
        identity = with_identity(data, held_out_share=holdout > 0).identity
        assert identity is not None
        pools.add(identity.record["pool_sha256"])
    assert len(pools) == 1


# Warnings


def test_overlaps_are_found(tmp_path: Path) -> None:
    contents, train, test, names = fresh()
    contents["t/a"] = contents["a/1"]
    write_files(tmp_path, contents)
    assert with_identity(data_of(tmp_path, TRAIN, TEST, names)).identity is not None
    data = with_identity(data_of(tmp_path, [*train, ("a/0", 2), ("a/1", 0)], test, names))
    assert data.identity is not None
    two_labels, both = data.identity.warnings
    assert two_labels == "1 training image stands under two labels (first: a/0)"
    assert both == "1 test image is a training image too, by content (first: t/a is a/1)"
    by_name = with_identity(data_of(tmp_path, train, [*test, ("a/0", 0)], names), NAMES).identity
    assert by_name is not None and "by name (first: a/0 is a/0)" in by_name.warnings[0]
    clean = fresh()
    write_files(tmp_path, clean[0])
    identity = with_identity(data_of(tmp_path, *clean[1:])).identity
    assert identity is not None and identity.warnings == ()


def test_files_that_are_not_there_are_no_overlap(tmp_path: Path) -> None:
    identity = with_identity(data_of(tmp_path, TRAIN, TEST, CLASSES)).identity
    assert identity is not None and identity.warnings == ()


def test_two_classes_of_one_name_are_refused() -> None:
    refuse_equal_names(["a", "b"], "here")
    with pytest.raises(UserError, match="classes 0 and 2 are both named 'a'"):
        refuse_equal_names(["a", "b", "a"], "here")


# Files are hashed once


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read, by name."""
    read: list[str] = []
    hash_file = file_hashes.hash_file

    def noted(path: bytes) -> Any:
        read.append(os.fsdecode(os.path.basename(path)))
        return hash_file(path)

    monkeypatch.setattr(file_hashes, "hash_file", noted)
    monkeypatch.setattr(kept_hashes, "UNSETTLED_NS", 0)
    monkeypatch.setattr(file_hashes, "WORTH_SECONDS", 0)
    return read


def tree_of(root: Path, count: int) -> ListedSplit:
    contents = {f"{number:05}.jpg": b"%d" % number for number in range(count)}
    write_files(root, contents)
    return split_of(root, [(name, 0) for name in contents])


def keep(split: ListedSplit, folder: Path) -> np.ndarray:
    time.sleep(0.01)  # a tick of the file system's clock
    return file_digests(split, folder)


def plain(split: ListedSplit) -> np.ndarray:
    found = [hashlib.sha256(Path(split.path(row)).read_bytes()).digest() for row in range(len(split))]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)


def test_a_file_is_read_once(tmp_path: Path, hashed: list[str]) -> None:
    split = tree_of(tmp_path / "images", 20)
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    assert len(hashed) == 20
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    turned = split.take(np.arange(20)[::-1])  # another list of the same folder
    assert np.array_equal(keep(turned, tmp_path / "kept"), plain(turned))
    part = split.take(np.array([3, 3, 7]))
    assert np.array_equal(keep(part, tmp_path / "kept"), plain(part))
    assert len(hashed) == 20


@pytest.mark.parametrize("way", ["size", "time", "in place", "another file"])
def test_a_changed_file_is_read_again(way: str, tmp_path: Path, hashed: list[str]) -> None:
    split = tree_of(tmp_path / "images", 5)
    keep(split, tmp_path / "kept")
    hashed.clear()
    file = tmp_path / "images" / "00002.jpg"
    if way == "another file":
        write_files(tmp_path, {"new": b"X"})
        os.replace(tmp_path / "new", file)
    else:
        file.write_bytes(b"longer" if way == "size" else b"X")
        if way == "in place":  # a copy that keeps the time
            os.utime(file, ns=(LONG_AGO, LONG_AGO))
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    assert hashed == ["00002.jpg"]


def test_a_file_that_changed_just_now_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tree_of(tmp_path / "images", 3)
    monkeypatch.setattr(file_hashes, "WORTH_SECONDS", 0)
    file_digests(split, tmp_path / "kept")
    assert not kept_file(tmp_path / "kept", split.root).exists()


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tree_of(tmp_path, 1)
    path, hash_opened, calls = Path(split.path(0)), file_hashes.hash_opened, []

    def slow(opened: int, size: int) -> bytes:
        found = hash_opened(opened, size)
        calls.append(1)
        if len(calls) < changes + 1:
            path.write_bytes(b"x" * (len(calls) + 5))
        return found

    monkeypatch.setattr(file_hashes, "hash_opened", slow)
    changes = 1
    assert np.array_equal(file_digests(split), plain(split)) and len(calls) == 2
    changes = 99
    with pytest.raises(UserError, match="changes while it is read"):
        file_digests(split)


def test_a_kill_loses_what_came_after_the_last_save(
    tmp_path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "CHUNK", 4)
    monkeypatch.setattr(file_hashes, "THREADS", 1)
    split = tree_of(tmp_path / "images", 20)
    hash_file = file_hashes.hash_file

    def killed(path: bytes) -> Any:
        if path.endswith(b"00013.jpg"):
            raise UserError("killed")
        return hash_file(path)

    with monkeypatch.context() as patch:
        patch.setattr(file_hashes, "hash_file", killed)
        patch.setattr(file_hashes, "SAVE_SECONDS", 0)
        with pytest.raises(UserError, match="killed"):
            keep(split, tmp_path / "kept")
    done = len(read_kept(kept_file(tmp_path / "kept", split.root)).paths)
    assert done == 12
    hashed.clear()
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    assert len(hashed) == 20 - done


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY"])
def test_a_damaged_file_of_hashes_is_made_anew(
    content: bytes, tmp_path: Path, hashed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    split = tree_of(tmp_path / "images", 3)
    keep(split, tmp_path / "kept")
    kept_file(tmp_path / "kept", split.root).write_bytes(content)
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    assert "damaged" in capsys.readouterr().err
    hashed.clear()
    keep(split, tmp_path / "kept")
    assert hashed == []


def test_what_is_no_file_has_no_hash_and_blocks_nothing(tmp_path: Path) -> None:
    split = tree_of(tmp_path, 3)
    Path(split.path(1)).unlink()
    os.mkfifo(split.path(1))
    Path(split.path(2)).unlink()
    done: list[np.ndarray] = []
    reader = threading.Thread(target=lambda: done.append(file_digests(split)), daemon=True)
    reader.start()
    reader.join(20)
    assert done and done[0].any(axis=1).tolist() == [True, False, False]
    assert file_hashes.hash_file(os.fsencode(split.path(1))) == (file_hashes.ABSENT, file_hashes.NO_FILE)


def test_a_folder_that_cannot_be_written_is_said(
    tmp_path: Path, hashed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    split = tree_of(tmp_path / "images", 3)
    (tmp_path / "kept").write_bytes(b"a file")
    assert np.array_equal(keep(split, tmp_path / "kept"), plain(split))
    assert "are not kept" in capsys.readouterr().err


def test_many_threads_say_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = tree_of(tmp_path, 30)
    paths = [os.fsencode(split.path(row)) for row in range(30)]
    one = states.look_at_all(paths)
    for module in (states, file_hashes):
        monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(states, "SLOW_DISK", -1.0)
    assert states.look_at_all(paths) == one
    for slow in (-1.0, 99.0):
        monkeypatch.setattr(file_hashes, "SLOW_READ", slow)
        assert np.array_equal(file_digests(split), plain(split))
    assert np.array_equal(file_digests(replace(split, root=Path(f"{tmp_path}/."))), plain(split))


@pytest.mark.parametrize("small", [0, 4, 2**20])
def test_small_and_large_files_have_one_kind_of_hash(
    small: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, {f"{size}.png": b"x" * size for size in (0, 1, 4, 5, 100)})
    split = split_of(tmp_path, [(f"{size}.png", 0) for size in (0, 1, 4, 5, 100)])
    monkeypatch.setattr(file_hashes, "SMALL", small)
    assert np.array_equal(file_digests(split), plain(split))
    with open(tmp_path / "100.png", "rb") as file:  # the size is another than was said
        assert file_hashes.hash_opened(file.fileno(), 7) == hashlib.sha256(b"x" * 100).digest()


def test_what_a_killed_writer_of_hashes_left_goes_when_they_are_read(tmp_path: Path) -> None:
    """Where all hashes are known nobody writes the file again, and it would stay for ever."""
    place = kept_file(tmp_path, tmp_path / "images")
    left, other = place.with_name(f".{place.name}.999999-0123abcd.tmp"), place.with_name(".mine.1-0123abcd.tmp")
    left.write_bytes(b"half"), other.write_bytes(b"of another file")
    assert len(read_kept(place).paths) == 0
    assert not left.exists() and other.exists()

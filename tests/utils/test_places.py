"""Where files can be written is known before the work: one rule for all commands."""

import os
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import check_file, check_folder, write_text


def test_a_place_that_takes_a_file_is_taken(tmp_path: Path) -> None:
    write_text(tmp_path / "old", "old")
    for name in ("new.json", "old", "n" * 230):
        check_file("--json", tmp_path / name)
        write_text(tmp_path / name, "content")
    check_file("FILE", tmp_path / "a" / "b" / "c.json", makes_folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["new.json", "old", "n" * 230])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "it is a folder"),
        ("nowhere/a.json", "there is no folder"),
        ("file/a.json", "there is no folder"),
        ("n" * 300, "use a shorter one"),
        ("a\0b", "use a shorter one"),
        ("pipe", "is no file"),
    ],
)
def test_a_place_that_takes_no_file_is_refused(name: str, words: str, tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=words) as caught:
        check_file("--json", f"{tmp_path}/{name}")
    assert str(caught.value).startswith("--json ")


def test_a_file_that_is_there_is_replaced_where_that_was_asked_for_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "old", "old")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("old", "link"):
        check_file("--csv", tmp_path / name)
        with pytest.raises(UserError, match=r"is there already.*--overwrite"):
            check_file("--csv", tmp_path / name, overwrite=False)


def test_a_folder_is_there_or_can_be_made(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    for name in ("", "a", "a/b/c"):
        check_folder("--out", tmp_path / name)
    for name, words in (("file", "is no folder"), ("file/a/b", "is no folder"), ("a/" + "n" * 300, "shorter")):
        with pytest.raises(UserError, match=f"cannot make the folder.*{words}"):
            check_folder("--out", tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_may_not_be_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="cannot write into"):
        check_file("--json", tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be written into"):
        check_folder("--out", tmp_path / "new")
    check_folder("--out", tmp_path)  # what is in it may be all that is asked for: --reuse

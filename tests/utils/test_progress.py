"""The bar is drawn on a terminal, removed afterwards, and absent elsewhere."""

import io
import sys
from types import SimpleNamespace

import pytest

import utils.progress
from utils.progress import ERASE_LINE, SECONDS_BETWEEN_LINES, LineAMinute, show_progress


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_with_the_time_to_go_and_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(show_progress("abc", "training", 3)) == ["a", "b", "c"]
    text = terminal.getvalue()
    assert "training" in text and "2/3" in text and "to go" in text
    assert text.endswith(ERASE_LINE) and "\n" not in text


def test_without_a_message_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(show_progress("abc", "", 3)) == ["a", "b", "c"] and terminal.getvalue() == ""


def test_an_error_on_the_way_leaves_the_terminal_clean_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ZeroDivisionError):
        for item in show_progress([1, 0], "training", 2):
            assert 1 / item
    assert terminal.getvalue().endswith(ERASE_LINE)


def test_nothing_is_drawn_where_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(show_progress([1, 2], "training", 2)) == [1, 2]
    assert stream.getvalue() == ""


def test_a_file_or_a_pipe_has_a_line_a_minute_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(utils.progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in show_progress(range(20), "features of train", 20):
        now[0] += 30
    lines = stream.getvalue().splitlines()
    assert lines[0] == "features of train: 2/20, 9 min to go" and len(lines) == 9
    told: list[str] = []
    tell = LineAMinute(stream)
    for _ in range(2):
        tell(lambda: told.append("said") or "line")
    now[0] += SECONDS_BETWEEN_LINES
    tell(lambda: told.append("said") or "line")
    assert told == ["said"]

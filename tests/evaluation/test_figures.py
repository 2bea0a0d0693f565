"""Figures: what is said where they cannot show a text, and that other warnings are not lost."""

import warnings
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from evaluation.places import FORMATS
from evaluation.plots import save_figure
from utils.errors import UserError

FIRST_BYTES = {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml"}


def figure_of(text: str) -> Figure:
    figure = Figure()
    figure.subplots().set_title(text)
    return figure


def test_signs_that_no_font_has_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(tmp_path / "a.png", figure_of("Löwenzahn"))
        assert capsys.readouterr().err == ""
        save_figure(tmp_path / "b.png", figure_of("\U0001321f\U00013220"))  # Egyptian hieroglyphs
    (line,) = capsys.readouterr().err.splitlines()
    assert "b.png: no font here has 2 signs" in line
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_other_warnings_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: warnings.warn("something else", UserWarning, stacklevel=1))
    with pytest.warns(UserWarning, match="something else") as caught:
        save_figure(tmp_path / "a.png", figure_of("a"))
    assert len(caught) == 1


@pytest.mark.parametrize("ending", [*FORMATS, "PDF"])
def test_the_end_of_a_name_says_the_format(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.b.{ending}"
    save_figure(path, figure_of("a"))
    written = path.read_bytes()
    assert written.startswith(FIRST_BYTES[ending.lower()])
    assert (b"<svg" in written) == (ending == "svg")


@pytest.mark.parametrize("name", ["a.xyz", "a.jpg", "png", "a."])
def test_a_figure_of_an_unknown_format_is_not_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in \.png, \.pdf, \.svg"):
        save_figure(tmp_path / name, figure_of("a"))
    assert not list(tmp_path.iterdir())

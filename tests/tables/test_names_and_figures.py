"""What the files of tables are called, whatever the arguments, and the figure of accuracy against harmonic mean."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from methods.recipes import RECIPES
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1
from tables.request import FileName
from tables.unified import OWN, SHARED
from tables.unified_figures import draw_evenness, overlap
from tests.helpers import EXPERIMENT, stage1
from tests.table_runs import make, table

OF = "unified_digits_expIF25_resnet8"
COMPUTED = ("tau_norm", "l2_norm", "ncm", "logit_adjust_posthoc", "samn_start")


def test_short_arguments_stand_in_a_name_in_words() -> None:
    name = FileName(OF, ("width4", "epochs6"), ("ce", "los"))
    assert name.stem == name.spelled == f"{OF}_width4_epochs6_ce-los" and name.words() == ""
    assert FileName(OF).stem == OF


def test_no_name_grows_with_its_arguments() -> None:
    settings = tuple(f"setting{number}" for number in range(100))
    longest = FileName(OF, settings, tuple(RECIPES)).stem
    assert len(longest) <= len(OF) + 40 and longest.startswith(OF)
    words = FileName(OF, settings, tuple(RECIPES)).words()
    assert all(each in words for each in (*settings, *RECIPES)) and f"{len(RECIPES)} methods: " in words


def test_names_of_other_arguments_are_others_and_of_the_same_the_same() -> None:
    methods = tuple(RECIPES)
    names = [FileName(OF, (), chosen) for chosen in (methods, methods[1:], methods[:-1], methods[::-1])]
    assert len({name.stem for name in names}) == len(names)
    assert FileName(OF, (), methods).stem == names[0].stem


def test_many_methods_are_written_and_an_earlier_selection_is_found(tmp_path: Path) -> None:
    flags = ("--momentum", 0.5, "--batch_size", 16, "--epochs", 1)
    make(tmp_path, "unified", "--methods", *COMPUTED, *flags)
    (path,) = (tmp_path / "results").glob("*.md")
    assert f"{len(COMPUTED)} methods: {', '.join(COMPUTED)}." in path.read_text()
    earlier = path.with_name(f"unified_{EXPERIMENT}w4_epochs1_batch_size16_momentum0.5_selection.csv")
    earlier.write_text("method\n")
    outcome = table(tmp_path, "unified", "--methods", *COMPUTED, *flags)
    assert f"{earlier} is damaged" in outcome.err


def test_a_table_on_a_stage_1_of_another_seed_replaces_no_other(tmp_path: Path) -> None:
    """The run named by `--pretrained_pth` may be of any seed: its file says which, where it is not the table's own."""
    stems = []
    for seed in (0, 1):
        stage1(tmp_path, "--width", 4, "--epochs", 1, "--seed", seed)
        folder = next(tmp_path.glob(f"*/seed{seed}/stage1*"))
        made = make(tmp_path, "unified", "--methods", "ncm", "--pretrained_pth", folder)
        stems += [path.stem for path in (tmp_path / "results").glob("*.md") if path.stem not in stems]
        assert "replaced" not in made.out
    assert stems[1] == stems[0].replace("_ncm", "_stage1_seed1_ncm")


def test_a_run_of_many_settings_has_a_folder() -> None:
    few = ["--dataset", "digits", "--lr", "0.3"]
    many = [*few, "--weights", f"{'w' * 230}.pth"]
    assert run_path(parse_command(STAGE1, "", few)).name == "stage1_lr0.3"
    paths = [run_path(parse_command(STAGE1, "", [*many, "--momentum", each])) for each in ("0.1", "0.2")]
    assert all(len(path.name) < 100 and path.name.startswith("stage1_") for path in paths) and paths[0] != paths[1]


# The figure


def numbers_of(points: dict[str, tuple[float, float, bool]], budget: str = SHARED) -> pd.DataFrame:
    """The numbers of `<table>_intervals.csv`: accuracy and harmonic mean of each method, whether it has an interval."""
    rows = []
    for method, (accuracy, harmonic, known) in points.items():
        for measure, value in (("all", accuracy), ("harmonic", harmonic)):
            ends = {"low": value - 1, "high": value + 2}
            if measure == "harmonic" and not known:
                ends = dict.fromkeys(ends, np.nan)
            rows.append(
                {"method": method, "budget": budget, "measure": measure, "reference": None, "value": value, **ends}
            )
    return pd.DataFrame(rows)


def drawn_points(figure: Figure, panel: int = 0) -> list[tuple[float, float, bool]]:
    """Where the points of a panel lie, and whether they are filled."""
    found = []
    for container in figure.axes[panel].containers:
        line = container[0]
        (x,), (y,) = line.get_data()
        found.append((float(x), float(y), line.get_markerfacecolor() != "white"))
    return found


def test_a_point_a_method_with_its_intervals() -> None:
    points = {"ce": (40.0, 3.0, False), "los": (47.0, 36.0, True), "wb": (46.0, 20.0, True)}
    long = numbers_of(points)
    compared = long.assign(reference="los, shared", value=-1.0)  # the differences in the same file are no points
    figure = draw_evenness(pd.concat([long, compared]), {SHARED: "shared budget", OWN: "own"})
    assert len(figure.axes) == 1 and drawn_points(figure) == list(points.values())
    for container, (x, y, known) in zip(figure.axes[0].containers, points.values(), strict=True):
        ends = [segment for bars in container[2] for segment in bars.get_segments()]
        wanted = [[[x - 1, y], [x + 2, y]]] + [[[x, y - 1], [x, y + 2]]] * known
        np.testing.assert_allclose(ends, wanted)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert sorted(names) == sorted(points)


def test_a_panel_a_budget() -> None:
    both = pd.concat([numbers_of({"ce": (40, 3, True)}), numbers_of({"wb": (46, 20, True)}, OWN)])
    figure = draw_evenness(both, {SHARED: "shared budget", OWN: "own, as published"})
    assert [axes.get_title() for axes in figure.axes] == ["shared budget", "own, as published"]
    assert drawn_points(figure, 1) == [(46.0, 20.0, True)]


def test_a_method_far_below_all_others_stands_in_words() -> None:
    """It would squeeze the others into a corner."""
    near = {f"method_{n}": (47.0 + n, 30.0, True) for n in range(5)}
    figure = draw_evenness(numbers_of({**near, "lost": (19.2, 0.5, False)}), {SHARED: "shared budget"})
    assert drawn_points(figure) == list(near.values())
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert "further left: lost 19.2" in texts and "lost" not in texts
    assert figure.axes[0].get_xlim()[0] > 40


def test_names_of_near_points_do_not_lie_on_one_another() -> None:
    points = {f"method_{n}": (47 + 0.05 * n, 30 + 0.1 * n, True) for n in range(4)}
    figure = draw_evenness(numbers_of({**points, "ce": (41, 3, True)}), {SHARED: "shared budget"})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent().extents for text in figure.axes[0].texts if isinstance(text, Annotation)]
    spots = [tuple(float(edge) for edge in box) for box in boxes]
    assert len(spots) == 5
    for place, one in enumerate(spots):
        assert all(overlap(one, other) < 0.1 * min(area(one), area(other)) for other in spots[:place])


def area(box: tuple[float, ...]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize(("other", "shared"), [((1, 1, 3, 3), 1), ((2, 0, 3, 2), 0), ((0.5, 0.5, 1, 1), 0.25)])
def test_overlap_is_the_area_that_boxes_share(other: tuple[float, float, float, float], shared: float) -> None:
    assert overlap((0, 0, 2, 2), other) == overlap(other, (0, 0, 2, 2)) == shared

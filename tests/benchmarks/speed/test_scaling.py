"""The benchmark of growth: its fits find known powers, a small run leaves its files. No time is compared."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.costs import memory, reset_peak
from benchmarks.speed.growth.cases import QUICK, Sizes, long_tailed_labels
from benchmarks.speed.growth.report import MIN_MEMORY_MB, short_table, spread
from benchmarks.speed.scaling import MAX_REPEATS, exponent, larger_half, main, measure_cost, with_exponents
from datasets.names import SAMPLERS
from losses import LOSSES
from methods.closed_form import CLOSED_FORM
from models.heads import HEADS
from utils.errors import UserError

CPU = torch.device("cpu")
TINY = Sizes(
    batches=(2, 4),
    stage1_images=4,
    classes=(4, 8),
    width=4,
    batch=4,
    test_images=16,
    temperature_images=8,
    cut_images=64,
    rows=(500, 1000),
    row_width=4,
    row_classes=4,
    budget=0.0,
)
RECORDS = ["command", "device", "threads", "execution", "torch", "torchvision", "git_revision"]
MEASURED = ["sweep", "group", "item", "size", "milliseconds", "cpu_milliseconds", "repeats", "peak_mb", "extra_mb"]
FITTED = ["expected_exponent", "time_exponent", "memory_exponent"]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_exponent_of_a_power_law(power: float) -> None:
    sizes = [10, 365, 1000, 8142]
    assert exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power, abs=1e-9)


def test_exponent_needs_two_sizes_with_a_cost() -> None:
    assert math.isnan(exponent([10], [1.0]))
    assert math.isnan(exponent([10, 10], [1.0, 2.0]))
    assert math.isnan(exponent([10, 100], [0.0, math.nan]))


def test_exponent_is_fitted_to_the_larger_half() -> None:
    assert larger_half([8142, 10, 365, 100, 1000]) == [365, 1000, 8142]
    assert larger_half([16, 32, 64, 128]) == [64, 128]
    assert larger_half([1, 2, 3]) == [2, 3]
    assert larger_half([5, 7]) == [5, 7]


def rows_of(item: str, sizes: list[int], milliseconds: list[float], extra_mb: list[float]) -> pd.DataFrame:
    parts = {"size": sizes, "milliseconds": milliseconds, "extra_mb": extra_mb}
    return pd.DataFrame(parts).assign(sweep="classes", group="group", item=item, expected_exponent=1.0)


def test_small_sizes_and_small_memory_do_not_count() -> None:
    sizes = [10, 100, 365, 1000, 8142]
    times = [50.0, 50.0, *(0.01 * size**2 for size in sizes[2:])]
    small = [MIN_MEMORY_MB / 2] * 3
    rows = with_exponents(rows_of("square", sizes, times, [*small, 1000.0, 8142.0]))
    np.testing.assert_allclose(rows["time_exponent"], 2.0)
    np.testing.assert_allclose(rows["memory_exponent"], 1.0)


def test_short_table_names_the_steepest_of_a_group() -> None:
    sizes = [10, 100]
    flat, steep = (rows_of(name, sizes, [1.0, last], [0.0, 0.0]) for name, last in (("loss a", 1.0), ("loss b", 100.0)))
    (line,) = short_table(with_exponents(pd.concat([flat, steep]))).to_dict("records")
    assert line["work"] == "group (2)"
    assert line["exponent measured"] == "0.00 to 2.00 (b)"
    assert line["ms there"] == "1 to 100"
    assert line["memory added there, MB"] == line["its exponent"] == "-"
    assert spread(pd.Series([1.0, 1.0]), "g") == "1"


@pytest.mark.parametrize(("count", "num_classes"), [(10_000, 100), (1001, 4), (500, 4)])
def test_labels_are_long_tailed_and_as_many_as_asked(count: int, num_classes: int) -> None:
    sizes = torch.bincount(long_tailed_labels(count, num_classes), minlength=num_classes)
    assert int(sizes.sum()) == count
    assert (sizes.diff() <= 0).all() and int(sizes.min()) >= 1
    assert int(sizes[0]) > 50 * int(sizes[-1])


@pytest.mark.parametrize(("budget", "repeats"), [(0.0, 1), (60.0, MAX_REPEATS)])
def test_calls_are_repeated_within_the_budget(budget: float, repeats: int) -> None:
    calls: list[int] = []
    assert measure_cost(lambda: calls.append(1), CPU, budget).repeats == repeats
    assert len(calls) == repeats + 1  # the warm-up


def test_memory_of_a_call_is_seen() -> None:
    reset_peak(CPU)
    if math.isnan(memory(CPU)[0]):
        pytest.skip("no /proc here")
    assert measure_cost(lambda: torch.ones(50_000_000), CPU, budget=0.0).extra_mb > 150


def test_a_small_run_leaves_table_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--network", "resnet8", "--width", "2", "--results", str(tmp_path / "new")], TINY)
    stem = tmp_path / "new" / "scaling_cpu_resnet8w2"
    rows = pd.read_csv(stem.with_suffix(".csv"))
    assert {*MEASURED, *FITTED, *RECORDS, "images_per_second", "microseconds_per_image"} == set(rows.columns)
    assert rows[[*MEASURED[:7], *FITTED[:2], "threads", "torch"]].notna().all(axis=None)
    assert rows["command"].str.startswith("python -m benchmarks.speed.scaling --network resnet8").all()
    assert set(rows["sweep"]) == {"batch", "classes", "images"}
    untrained = ("neighbours", "linear_cosine")
    expected = [f"head {name}" for name in HEADS if name not in untrained] + [f"loss {name}" for name in LOSSES]
    expected += [f"closed form {name}" for name in CLOSED_FORM] + [f"epoch, {name}" for name in SAMPLERS]
    assert {*expected} <= set(rows["item"])
    assert (rows.groupby("item")["size"].nunique() == 2).all()
    page = stem.with_suffix(".md").read_text()
    first_table = next(part for part in page.split("\n\n") if part.startswith("|"))
    assert "stage 2, epoch of LOS (4)" in first_table and "exponent measured" in first_table
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "written to" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [["--workers", "0"], ["--width", "0"], ["--network", "resnet33"], ["--device", "tpu"], ["--quik"]],
    ids=" ".join,
)
def test_wrong_input_is_a_user_error(flags: list[str]) -> None:
    with pytest.raises(UserError, match=flags[0] if flags != ["--quik"] else "unrecognized"):
        main(flags)


def test_folder_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the folder"):
        main(["--quick", "--results", str(tmp_path / "file" / "results")], QUICK)

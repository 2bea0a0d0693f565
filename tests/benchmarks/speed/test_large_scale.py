"""What was measured at sizes at hand, taken to larger ones: values by hand."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks.speed import large_scale
from benchmarks.speed.large_scale import Slope, main
from tests.helpers import ROOT
from utils.errors import UserError


def test_a_slope_is_a_power_of_the_size() -> None:
    """Through the measured point; doubled sizes cost 2^exponent times as much."""
    slope = Slope(3.0, 1000, 1.5)
    assert slope.at(1000) == 3.0
    assert slope.at(4000) == pytest.approx(24.0)


def write_sources(folder: Path) -> None:
    rows = []
    for sweep, item, _ in large_scale.ITEMS:
        largest = 1e6 if sweep == "images" else 1e4
        for size, milliseconds in ((largest / 10, 100.0), (largest, 2000.0)):
            rows.append([sweep, item, size, milliseconds, 10.0, 1.0, 1.5, 0.5, "abc"])
    columns = ["sweep", "item", "size", "milliseconds", "extra_mb", "expected_exponent", "time_exponent"]
    table = pd.DataFrame(rows, columns=[*columns, "memory_exponent", "git_revision"])
    table.to_csv(folder / large_scale.SCALING, index=False)
    lines = ["what,files,seconds,peak_mib,git_revision", *(f"listing alone,1000000,{s},500,abc" for s in (3, 1, 2))]
    (folder / large_scale.IDENTITY).write_text("\n".join([*lines, '"content, first time",1000000,20,600,abc']) + "\n")
    decode = 'way,decoder,images_per_second,workers,size,git_revision\n"loader, batches",torchvision,500,2,224,abc\n'
    (folder / large_scale.DECODE).write_text(decode + '"loader, batches",PIL,100,2,224,abc\n')


def test_the_table_has_what_follows_from_the_sources(tmp_path: Path) -> None:
    """Exponents of at least the work's, medians of repeats, one torchvision's loader."""
    write_sources(tmp_path)
    main(["--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "large_scale.csv")
    found = {(row["what"], row["unit"]): row for _, row in table.iterrows()}
    assert found["list of the images", "seconds"]["extrapolated"] == pytest.approx(200)
    assert found["an epoch's images of 224 pixels, 2 reading processes", "seconds"]["extrapolated"] == 2e5
    epoch = found["an epoch of stage 2", "seconds"]
    assert (epoch["measured"], epoch["exponent"]) == (2, 1.5) and epoch["extrapolated"] == pytest.approx(2000)
    memory = found["an epoch of stage 2", "MiB"]
    assert memory["exponent"] == 1 and memory["extrapolated"] == pytest.approx(100 * 10e6 / 2**20, rel=1e-4)
    assert len(table) == 2 * 2 + 1 + 2 * len(large_scale.ITEMS)


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*identity.csv"):
        main(["--results", str(tmp_path)])


def test_what_is_kept_is_what_follows_from_what_is_kept(tmp_path: Path) -> None:
    """results/large_scale.csv is that of the other files in results/."""
    for name in (large_scale.SCALING, large_scale.IDENTITY, large_scale.DECODE):
        (tmp_path / name).write_bytes((ROOT / "results" / name).read_bytes())
    main(["--results", str(tmp_path)])
    mine, kept = (pd.read_csv(folder / "large_scale.csv") for folder in (tmp_path, ROOT / "results"))
    pd.testing.assert_frame_equal(*(table.drop(columns=["command", "git_revision"]) for table in (mine, kept)))

"""The comparison with an earlier build: ratios of interleaved rounds, and what is refused."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.builds import compare
from benchmarks.builds.cases import Case, Way
from benchmarks.builds.compare import measure, seconds_of
from benchmarks.builds.retraining import EPOCH, write_features
from tests.helpers import ROOT
from utils.errors import UserError


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 2.0, 3.0, 4.0, 2.0, 4.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr(compare, "seconds_of", lambda *_: next(times))
    ways = (Way("off", ()), Way("bf16", ()), Way("auto", ()))
    first, second, third = measure(Case("precision, x", ways, 1.03, ""), Path(), 3)
    assert (first["cpu_seconds"], first["ratio"]) == (2.0, 1.0)
    assert (second["ratio"], second["ratio_low"], second["ratio_high"]) == (2.0, 0.5, 2.0)
    assert third["ratio"] == 2.5 and third["target"] == 1.03 and third["reached"] is False  # 3 / 1, 4 / 2, 5 / 2
    times = iter([1.0, 2.0, 3.0])
    assert measure(Case("saving", ways, 1.1, ""), Path(), 1)[2]["ratio"] == 3.0


def test_seconds_are_those_of_the_command_or_what_it_prints() -> None:
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    assert 0.3 <= seconds_of(Way("busy", ("-c", busy)), ROOT) < 3
    assert seconds_of(Way("says", ("-c", "print('x', 2.5)"), prints=True), ROOT) == 2.5
    assert seconds_of(Way("refused", ("-c", "raise SystemExit(2)")), ROOT) >= 0
    with pytest.raises(UserError, match="'broken' ended with 1"):
        seconds_of(Way("broken", ("-c", "1 / 0")), ROOT)


def test_a_rehearsal_writes_a_row_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "revision_of", lambda folder: "abc")
    monkeypatch.setattr(compare, "seconds_of", lambda way, base: 3.0 if way.earlier else 1.0)
    compare.main(["--base", str(tmp_path), "--quick", "--results", str(tmp_path)])
    table = pd.read_csv(tmp_path / "builds.csv")
    assert set(table["case"].str.partition(",")[0]) == {"start-up", "saving", "precision", "re-training"}
    assert table.groupby("case").size().tolist().count(3) == 5
    assert table[table["way"] == "earlier"]["cpu_seconds"].eq(3.0).all() and table["earlier_revision"].eq("abc").all()
    assert table[table["case"] == "start-up, help"]["ratio"].iloc[-1] == pytest.approx(1 / 3, abs=1e-4)


def test_wrong_command_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkout"):
        compare.main(["--base", str(tmp_path)])
    with pytest.raises(UserError, match="--rounds"):
        compare.main(["--base", str(ROOT), "--rounds", "0"])
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    with pytest.raises(UserError, match="no checkout"):
        compare.main(["--base", str(tmp_path)])


@pytest.mark.parametrize("what", ["epoch", "products"])
def test_an_epoch_and_its_products_are_timed(what: str) -> None:
    assert 0 < seconds_of(Way(what, ("-c", EPOCH, what, "3", "8", "128"), prints=True), ROOT) < 5


def test_features_of_the_tables_are_those_of_cifar_and_the_same_again(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_features(tmp_path / name, 500)
    first, second = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert all(np.array_equal(first[key], second[key]) for key in first.files) and len(first.files) == 6
    assert first["train_features"].shape == (10_847, 64) and first["train_features"].dtype == np.float32
    assert np.bincount(first["train_labels"])[[0, -1]].tolist() == [500, 5]
    assert set(np.bincount(first["test_labels"])) == {20} and set(np.bincount(first["holdout_labels"])) == {10}

"""The baseline loop is what it says it is, and every benchmark measures and writes what it promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from benchmarks.noise import AUGMENTATION, noise_data, noise_split
from benchmarks.peers.baseline_loop import BaselineImages, BaselineLoop, make_transforms
from benchmarks.speed import ablation, parity, roofline, throughput
from benchmarks.speed.child import TASKS, run_child
from datasets import load_dataset
from datasets.device_images import DeviceImages
from datasets.long_tail import LongTailedData, Profile
from models import build_model
from settings.command_line import parse_command
from settings.fields import STAGE1
from utils.errors import UserError

CPU = torch.device("cpu")


def answer_here(task: str, **arguments: Any) -> dict[str, Any]:
    """Do a child's task in this process, which spares its start."""
    made = TASKS[task](**arguments)
    return {**made, "wall_seconds": 100.0, "peak_mib": 50.0, "worker_peak_mib": 20.0, "cuda_peak_mib": None}


@pytest.fixture(scope="module")
def digits() -> LongTailedData:
    return load_dataset("digits", Profile(imb_ratio=25))


def small_loop(data: LongTailedData, max_steps: int | None = None) -> BaselineLoop:
    torch.manual_seed(0)
    return BaselineLoop(build_model("resnet8", data.num_classes, width=4), data, CPU, 0, 32, max_steps)


def test_baseline_test_images_are_those_of_the_device() -> None:
    split = noise_split(20)
    pairs = BaselineImages(split, make_transforms(32, AUGMENTATION)["test"])
    ours = DeviceImages(split, AUGMENTATION, CPU).plain(torch.arange(20))
    torch.testing.assert_close(torch.stack([image for image, _ in pairs]), ours.contiguous(), rtol=1e-5, atol=1e-5)
    assert [label for _, label in pairs] == split.labels.tolist()


def test_baseline_augmentation_is_one_of_the_same_crops() -> None:
    split = noise_split(3)
    pairs = BaselineImages(split, make_transforms(32, AUGMENTATION)["train"])
    images = DeviceImages(split, AUGMENTATION, CPU)
    possible = []
    for row in range(3):
        padded = images.normalise(images.images[row : row + 1])[0]
        crops = padded.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)
        possible.append(torch.cat([crops, crops.flip(3)]))
    torch.manual_seed(0)
    found = set()
    for _ in range(20):
        for row in range(3):
            distance = (possible[row] - pairs[row][0]).abs().amax(dim=(1, 2, 3))
            assert distance.min() < 1e-4
            found.add((row, int(distance.argmin())))
    assert len(found) > 30  # of 162 a picture


def test_the_baseline_loop_learns(digits: LongTailedData) -> None:
    run = small_loop(digits).stage1(epochs=6, lr=0.1, weight_decay=5e-4)
    assert run.accuracy["plain"] > 25 and run.best >= run.accuracy["flip"]
    assert len(run.train_seconds) == len(run.test_seconds) == 6
    assert run.train_images == [len(digits.train)] * 6


def test_a_limit_of_steps_ends_the_epoch(digits: LongTailedData) -> None:
    run = small_loop(digits, max_steps=3).stage1(epochs=2, lr=0.05, weight_decay=0.0, test="none")
    assert run.train_images == [96, 96] and run.test_seconds == [] and run.accuracy == {}


def test_the_baseline_stage_2_is_the_released_one(digits: LongTailedData) -> None:
    """Only the classifier is updated, but everything is differentiated and batch norm's statistics move."""
    loop = small_loop(digits, max_steps=4)
    before = {key: value.clone() for key, value in loop.model.state_dict().items()}
    loop.stage2(epochs=1, lr=0.1, test="last")
    after = loop.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert {"fc.weight", "fc.bias"} <= changed
    assert all(key.startswith("fc.") or "running_" in key or "tracked" in key for key in changed)
    assert any("running_mean" in key for key in changed)
    convolution = loop.model.get_submodule("conv1")
    assert isinstance(convolution, nn.Conv2d) and convolution.weight.grad is not None


def test_a_failing_child_is_one_line() -> None:
    with pytest.raises(UserError, match="the measurement of baseline failed: unknown --network 'nothing'") as caught:
        run_child(
            "baseline",
            stage="stage1",
            argv=["--network", "nothing"],
            loaders=0,
            tf32=False,
            epochs=1,
            max_steps=1,
            test="none",
        )
    assert "\n" not in str(caught.value)


def test_an_epoch_that_was_not_evaluated_has_no_seconds_of_it(tmp_path: Path) -> None:
    """An answer is JSON, which has no NaN."""
    argv = ["--dataset", "digits", "--width", "4", "--epochs", "2", "--eval_every", "2", "--out", str(tmp_path)]
    log = TASKS["ours"](script="main_stage1", argv=argv)["log"]
    first, last = log["evaluation_seconds"]
    assert first is None and last > 0
    assert len(log["seconds"]) == 2 and json.loads(json.dumps(log, allow_nan=False)) == log


def test_speed_measures_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "run_child", answer_here)
    argv = ["--quick", "--dataset", "digits", "--width", "4", "--loaders", "0", "--results", str(tmp_path)]
    throughput.main(argv)
    rows = pd.read_csv(tmp_path / "speed_cpu_resnet8w4.csv")
    measured = rows[rows["round"].notna()]
    assert set(measured["way"]) == {"baseline", "ours (default, fp32)", "ours, bf16", "ours (1 view)"}
    for stage, timed in (("stage 1", "training"), ("stage 1", "training + report"), ("stage 2", "training, 20 epochs")):
        found = measured[(measured["stage"] == stage) & (measured["timed"] == timed)]
        assert "baseline" in set(found["way"]) and len(found) >= 2 and (found["seconds"] > 0).all()
    assert measured["worker_peak_mib"].isna().all() or (measured["worker_peak_mib"] == 20).all()
    both = measured[measured["stage"] == "stage 1"].pivot(index="way", columns="timed", values="seconds")
    whole = both["fixed"] + 60 * both["training + report"]  # the epochs of the digits' preset
    np.testing.assert_allclose(both["whole stage, 60 epochs, computed"], whole, rtol=1e-4)
    assert (both["training + report"] > both["training"]).all()
    for column in ("command", "device", "torch", "git_revision", "network"):
        assert rows[column].notna().all(), column
    assert "times the baseline loop" in (tmp_path / "speed_cpu_resnet8w4.md").read_text()


def test_speed_that_is_cut_short_leaves_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def until_stage2(task: str, **arguments: Any) -> dict[str, Any]:
        if arguments.get("script") == "main_stage2":
            raise UserError("no time is left")
        return answer_here(task, **arguments)

    monkeypatch.setattr(throughput, "run_child", until_stage2)
    argv = ["--quick", "--dataset", "digits", "--width", "4", "--loaders", "0", "--results", str(tmp_path)]
    with pytest.raises(UserError, match="no time is left"):
        throughput.main(argv)
    rows = pd.read_csv(tmp_path / "speed_cpu_resnet8w4.csv")
    assert set(rows["stage"]) == {"stage 1"} and set(rows["way"]) == {"baseline", "ours (default, fp32)", "ours, bf16"}
    whole = (tmp_path / "speed_cpu_resnet8w4.md").read_text()
    throughput.main([*argv, "--stages", "1"])
    assert set(pd.read_csv(tmp_path / "speed_cpu_resnet8w4.csv")["stage"]) == {"stage 1"}
    assert whole.count("\n") == (tmp_path / "speed_cpu_resnet8w4.md").read_text().count("\n")


def test_an_ablation_that_is_cut_short_leaves_its_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, turns = ablation.Trainer.__call__, []

    def for_one_round(trainer: ablation.Trainer, steps: int) -> float:
        turns.append(steps)
        if len(turns) > 9:  # of four ways: the warm-up, a round, and a part of the next
            raise UserError("no time is left")
        return train(trainer, steps)

    monkeypatch.setattr(ablation.Trainer, "__call__", for_one_round)
    argv = ["--network", "resnet8", "--width", "2", "--batch_size", "8", "--steps", "2", "--rounds", "3"]
    with pytest.raises(UserError, match="no time is left"):
        ablation.main([*argv, "--only", "together", "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "speed_ablation_cpu_resnet8w2.csv")
    assert set(rows["round"]) == {0} and (rows[["without", "with"]] > 0).all(axis=None)
    assert "over 1 rounds of 2 steps" in (tmp_path / "speed_ablation_cpu_resnet8w2.md").read_text()


def test_ratios_of_a_round_are_to_its_own_plain_loop() -> None:
    seconds = {("baseline", 0): 10.0, ("ours", 0): 5.0, ("baseline", 1): 12.0, ("ours", 1): 4.0}
    rows = pd.DataFrame(
        {
            "stage": "stage 1",
            "timed": "training",
            "way": way,
            "round": number,
            "seconds": value,
            "images": 100,
            "images_per_second": 100 / value,
            "peak_mib": 1.0,
            "worker_peak_mib": None,
            "cuda_peak_mib": None,
        }
        for (way, number), value in seconds.items()
    )
    table = throughput.ratios_table(rows).set_index("way")["times the baseline loop"]
    assert table["baseline"] == "1" and table["ours"] == "2.5 (2 to 3)"


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")], ids=str)
def test_every_optimisation_is_compared_with_a_way_that_lacks_it_alone(device: torch.device) -> None:
    """On CUDA a graph is one of them, and what it needs, or stands in the place of, is taken away with it."""
    names = ablation.possible_optimisations(device)
    assert ("graph" in names) == (device.type == "cuda")
    together = [["resident", "together"], ["no_sync", "graph"], ["fused", "graph"]]
    pairs = ablation.comparisons(device, names)
    for pair in pairs:
        differing = [name for name in ablation.DESCRIPTIONS if getattr(pair.without, name) != getattr(pair.added, name)]
        assert pair.optimisation in differing
        assert differing == [pair.optimisation] or (pair.kind == "last" and differing in together)
        for way in (pair.without, pair.added):
            assert not (way.graph and (way.compile or not way.no_sync or not way.fused))
    assert {(pair.optimisation, pair.kind) for pair in pairs} == {
        (name, kind) for name in names for kind in ("alone", "last")
    }


def test_optimisations_are_measured(tmp_path: Path) -> None:
    names = [name for name in ablation.DESCRIPTIONS if name not in ("compile", "graph")]
    argv = ["--only", *names, "--quick", "--network", "resnet8", "--width", "2", "--batch_size", "8", "--loaders", "0"]
    ablation.main([*argv, "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "speed_ablation_cpu_resnet8w2.csv")
    assert (rows[["without", "with"]] > 0).all(axis=None)
    assert rows["lever"].nunique() == 6 and set(rows["kind"]) == {"alone", "last"}


def test_a_way_that_waits_reads_its_loss_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_command(STAGE1, "", ["--network", "resnet8", "--width", "2", "--batch_size", "8"]).settings
    reads: list[int] = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: (reads.append(1), item(tensor))[1])
    for no_sync in (False, True):
        trainer = ablation.Trainer(
            ablation.Optimisations(resident=True, no_sync=no_sync), settings, noise_data(24), CPU, 0
        )
        reads.clear()
        trainer(3)
        assert (len(reads) >= 9) != no_sync  # the loss and two accuracies, of three steps


def test_ways_with_other_optimisations_take_the_same_steps() -> None:
    """The ways differ in speed only: from the same images on the device they train to the same weights."""
    settings = parse_command(STAGE1, "", ["--network", "resnet8", "--width", "2", "--batch_size", "8"]).settings
    trained = {}
    for pulled in ((), ("together",), ("no_sync",), ("channels_last",), ("fused",)):
        own = ablation.Optimisations(**dict.fromkeys(("resident", *pulled), True))
        trainer = ablation.Trainer(own, settings, noise_data(24), CPU, 0)
        before = trainer.model.fc.weight.detach().clone()
        assert trainer(3) > 0
        trained[pulled] = trainer.model.fc.weight.detach()
        assert not torch.equal(before, trained[pulled])
    for weight in trained.values():
        torch.testing.assert_close(weight, trained[()], rtol=1e-4, atol=1e-6)


def test_images_from_workers_are_as_many() -> None:
    settings = parse_command(STAGE1, "", ["--network", "resnet8", "--width", "2", "--batch_size", "8"]).settings
    trainer = ablation.Trainer(ablation.Optimisations(), settings, noise_data(24), CPU, 0)
    assert [len(labels) for _, labels in trainer.batches(3)] == [8, 8, 8]


def test_operations_of_resnet34() -> None:
    """1.16 billion multiplications forward, twice that backward but for the first layer's input; 2 operations each."""
    settings = parse_command(STAGE1, "", []).settings
    assert roofline.operations_per_image(settings) == pytest.approx(6 * 1.16e9, rel=0.01)


def test_roofline_knows_the_kinds_of_work_of_a_step(tmp_path: Path) -> None:
    roofline.main(["--quick", "--network", "resnet8", "--width", "2", "--batch_size", "8", "--results", str(tmp_path)])
    row = pd.read_csv(tmp_path / "roofline_cpu_resnet8w2_float32.csv").iloc[0]
    assert row["share_convolution"] > 0 and row["share_batch norm"] > 0 and row["share_optimiser"] > 0
    assert row["share_other"] < 0.3  # nearly everything has a kind
    assert row["images_per_second"] == pytest.approx(8 / row["step_ms"] * 1e3, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::native_batch_norm_backward", "batch norm"),
        ("aten::convolution_backward", "convolution"),
        ("aten::addmm", "linear"),
        ("aten::copy_", "copies, conversions"),
        ("aten::threshold_backward", "element-wise"),
        ("aten::_foreach_add_", "optimiser"),
        ("aten::_fused_sgd_", "optimiser"),
        ("something", "other"),
    ],
)
def test_kinds_of_work(name: str, kind: str) -> None:
    assert roofline.kind_of(name) == kind


def test_parity_trains_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "our_ways", lambda device: {"ours, fp32, eager": ["--amp", "off"]})
    argv = ["--quick", "--dataset", "digits", "--width", "4", "--loaders", "0", "--seeds", "0", "1"]
    parity.main([*argv, "--results", str(tmp_path)])
    rows = pd.read_csv(tmp_path / "parity_cpu_resnet8w4.csv")
    assert len(rows) == 2 * (2 + 3) and rows["plain"].between(0, 100).all()
    assert rows.groupby(["stage", "way"]).size().tolist() == [2] * 5


def test_difference_of_means_and_its_error() -> None:
    accuracies = {"ours, fp32, eager": [40.0, 42.0], "ours, fast": [41.0, 43.0]}
    rows = pd.DataFrame(
        {"stage": "stage 1", "way": way, "seed": seed, "plain": value, "flip": None}
        for way, values in accuracies.items()
        for seed, value in enumerate(values)
    )
    table = parity.accuracies_table(rows).set_index("way")
    assert table.loc["ours, fast", "from ours in fp32"] == f"+1.00 ± {np.sqrt(2):.2f}"
    assert table.loc["ours, fp32, eager", "from ours in fp32"] == "-"
    assert table.loc["ours, fast", "flip, %"] == "-"


@pytest.mark.parametrize(
    ("module", "argv", "words"),
    [
        (throughput, ["--rounds", "0"], "--rounds must be at least 1"),
        (throughput, ["--amp", "bf16"], "--amp is set here"),
        (throughput, ["--loaders", "-1"], "--loaders 0 or more"),
        (ablation, ["--steps", "0"], "must be at least 1"),
        (parity, ["--seeds", "1"], "two at least"),
        (parity, ["--seed", "1"], "--seed is set here"),
        (roofline, ["--nothing"], "unrecognized arguments: --nothing"),
        (roofline, ["--network", "x"], "unknown --network"),
    ],
)
def test_wrong_flags(module: Any, argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        module.main(argv)

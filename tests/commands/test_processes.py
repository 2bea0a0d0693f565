"""Two processes over gloo against one: the same images, the same training, the same report."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import engine.finish
import evaluate
import main_stage1
import main_stage2
from datasets.image_source import batch_sizes, share_of_batches
from losses import build_loss
from models.batch_norm.synchronised import SynchronisedBatchNorm, synchronise_batch_norm
from stages.commands import stage1
from tests.forks import run_script, start_two
from tests.helpers import ROOT, image_tree, read, run, weights
from utils.distributed import Launch, connect, disconnect, gather_rows, launch_of, process_rank
from utils.errors import UserError

# 34 training images in batches of 11: the last batch is a single image, which leaves the second process without any.
CLASSES, BATCH, LARGEST = 4, 11, 11
RUN = ("--network", "resnet8", "--stem", "cifar", "--width", 4, "--image_size", 12, "--resize", 12, "--workers", 0)
STAGE1 = (*RUN, "--epochs", 2, "--batch_size", BATCH, "--lr", 0.02, "--holdout", 0.1)
COUNTS = [8, 4, 2, 1]


def stage1_lines(tree: Path, out: Path) -> dict[str, list[str]]:
    """The command lines of stage 1 that both sides run, by name."""
    common = ["--dataset", "folder", "--data_dir", tree, *STAGE1]
    lines = {
        "plain": [*common, "--out", out / "plain"],
        "reweighted": [*common, "--loss", "reweighted_ce", "--clip_grad", 0.5, "--out", out / "reweighted"],
        "gala": [*common, "--loss", "gala", "--augment", "crop", "--warmup_epochs", 1, "--out", out / "gala"],
        "plain_bn": [*common, "--sync_bn", "off", "--out", out / "plain_bn"],
    }
    return {name: list(map(str, line)) for name, line in lines.items()}


def follow_up(tree: Path, out: Path) -> tuple[list[str], list[str]]:
    """The command lines of stage 2 and of the report."""
    common = ["--dataset", "folder", "--data_dir", tree, *RUN, "--holdout", 0.1, "--out", out / "plain"]
    stage2 = [*common, "--finetune_epoch", 2, "--batch_size", BATCH]
    report = [*common, "--cur_stage", "stage2", "--json", out / "report.json"]
    return list(map(str, stage2)), list(map(str, report))


def run_all(tree: Path, out: Path) -> None:
    """Run everything that is compared, in this process or in this one of many."""
    for line in stage1_lines(tree, out).values():
        main_stage1.main(line)
    stage2, report = follow_up(tree, out)
    main_stage2.main(stage2)
    evaluate.main(report)


def as_one_of_two(tree: Path, out: Path, rank: int) -> None:
    """What one of two processes does, but for plots."""
    torch.cuda.is_available = lambda: False
    engine.finish.draw_plots = lambda *_: None
    stdout = sys.stdout
    connect(launch_of(), torch.device("cpu"))
    sys.stdout = stdout  # every process's words, also those that only the first one would print
    pieces(rank, out)
    run_all(tree, out)
    stop_and_resume(tree, out)
    with pytest.raises(UserError, match="needs one process: start without torchrun"):
        main_stage2.main([*follow_up(tree, out)[0], "--protocol", "released"])
    disconnect()


def stop_and_resume(tree: Path, out: Path) -> None:
    """Train as "plain" does, stopped in the second epoch and gone on with."""
    line = [*stage1_lines(tree, out)["plain"], "--out", str(out / "resumed")]
    original, calls = stage1.train_epoch, []

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    stage1.train_epoch = stopping
    with contextlib.suppress(KeyboardInterrupt):
        main_stage1.main(line)
    main_stage1.main([*line, "--resume"])


def pieces(rank: int, out: Path) -> None:
    """Small things that need two processes; what they give is written down for the test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 3, 4, 4, generator=generator)
    part = images[:4] if rank == 0 else images[4:]
    norm = make_norm()
    result = norm(part)
    (result * TILT[: len(part)] if rank == 0 else result * TILT[4:]).sum().backward()
    grads = [parameter.grad for parameter in norm.parameters()]
    total = [sum(of_both(grad)) for grad in grads]
    empty = norm(images[:0] if rank == 1 else images)
    loss = build_loss("reweighted_ce", COUNTS, rho=1.0)
    logits, labels = logits_and_labels()
    mine = slice(0, 6) if rank == 0 else slice(6, None)
    losses = of_both((float(loss(logits[mine], labels[mine])), len(labels[mine])))
    torch.save(
        {
            "output": gather_rows(torch.cat([result.detach(), result.detach()[:1].expand(4 - len(part), -1, -1, -1)])),
            "gradients": total,
            "empty": len(empty),
            "running": norm.state_dict(),
            "loss": sum(value * count for value, count in losses) / len(labels),
            "shares": [rows.tolist() for rows in share_of_batches(torch.arange(16), 5)],
            "rank": process_rank(),
        },
        out / f"pieces{rank}.pt",
    )


def of_both(value: Any) -> list[Any]:
    """The values of both processes."""
    values = [None, None]
    torch.distributed.all_gather_object(values, value)
    return values


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(10, 4, generator=generator), torch.tensor([0, 0, 0, 1, 2, 3, 0, 1, 0, 0])


TILT = torch.linspace(-1, 1, 5 * 3 * 16).reshape(5, 3, 4, 4)


def make_norm() -> nn.BatchNorm2d:
    norm = SynchronisedBatchNorm(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 0.5]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    return norm


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_tree(tmp_path_factory.mktemp("tree") / "shades", CLASSES, LARGEST, test=3, size=14)


@pytest.fixture(scope="module")
def alone(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(engine.finish, "draw_plots", lambda *_: None)
        run_all(tree, out)
    return out


@pytest.fixture(scope="module")
def together(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("together")
    ends = [child.end() for child in start_two(partial(as_one_of_two, tree, out), out)]
    assert [status for status, _ in ends] == [0, 0], ends
    return out


def folder(out: Path, name: str, stage: str) -> Path:
    return next((out / name).rglob(f"{stage}*/metrics.json")).parent


def close(left: Any, right: Any, tolerance: float) -> bool:
    """Tell whether nested values are equal, numbers within a relative or absolute tolerance."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(close(*pair, tolerance) for pair in zip(left, right, strict=True))
    if isinstance(left, float) and isinstance(right, float):
        return bool(np.isclose(left, right, rtol=tolerance, atol=tolerance))
    return left == right


def test_the_last_batch_leaves_one_process_without_an_image(alone: Path) -> None:
    config = read(folder(alone, "plain", "stage1") / "config.json")
    assert sum(config["class_counts"]) % BATCH == 1


@pytest.mark.parametrize("name", ["plain", "reweighted", "gala"])
def test_two_processes_train_as_one_does(name: str, alone: Path, together: Path) -> None:
    one, two = (folder(out, name, "stage1") for out in (alone, together))
    configs = [read(run_folder / "config.json") for run_folder in (one, two)]
    for key in ("class_counts", "subset", "tags", "class_names", "images"):
        assert configs[0][key] == configs[1][key], key
    assert [config["processes"] for config in configs] == [1, 2]
    states = [weights(run_folder / "last.pth") for run_folder in (one, two)]
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, rtol=2e-3, atol=2e-4, msg=key)
    logs = [(run_folder / "log.csv").read_text().splitlines() for run_folder in (one, two)]
    losses = np.array([[float(line.split(",")[1]) for line in log[1:]] for log in logs])
    assert losses.shape == (2, 2)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_two_processes_go_on_where_they_stopped(together: Path) -> None:
    one, two = (folder(together, name, "stage1") for name in ("plain", "resumed"))
    assert len(read(two / "config.json")["resumed"]) == 1
    states = [weights(run_folder / "last.pth") for run_folder in (one, two)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_plain_batch_norm_is_each_processs_own(alone: Path, together: Path) -> None:
    """Without synchronisation a process normalises by its own half of a batch: another network comes out."""
    states = [weights(folder(out, "plain_bn", "stage1") / "last.pth") for out in (alone, together)]
    assert not torch.allclose(states[0]["bn1.running_mean"], states[1]["bn1.running_mean"], rtol=1e-3)
    assert all(tensor.isfinite().all() for tensor in states[1].values())


def test_the_loss_that_gala_accumulates_is_that_of_all_processes(alone: Path, together: Path) -> None:
    losses = [
        torch.load(folder(out, "gala", "stage1") / "last.pth", weights_only=True)["loss"] for out in (alone, together)
    ]
    for key, tensor in losses[0].items():
        torch.testing.assert_close(losses[1][key], tensor, rtol=1e-3, atol=1e-4)


def test_a_report_counts_every_image_once(alone: Path, together: Path, tree: Path, tmp_path: Path) -> None:
    """The two-process run's checkpoint, reported on by one process, gives what the two processes measured."""
    measured = read(folder(together, "plain", "stage1") / "metrics.json")
    path = folder(together, "plain", "stage1") / "last.pth"
    json_path = tmp_path / "report.json"
    outcome = run(
        "evaluate",
        "--dataset",
        "folder",
        "--data_dir",
        tree,
        "--workers",
        0,
        "--pretrained_pth",
        path,
        "--json",
        json_path,
    )
    assert outcome.status == 0, outcome.err
    report = read(json_path)["checkpoints"]["last"]
    assert close(report["plain"], measured["last"]["plain"], 1e-4)
    assert close(report["logits"], measured["logits"], 1e-3)
    assert close(report["rebalanced"], measured["rebalanced"], 1e-4)
    assert close(report["calibration"], measured["calibration"], 1e-3)


def test_stage_2_and_its_report_are_those_of_one_process(alone: Path, together: Path) -> None:
    one, two = (read(folder(out, "plain", "stage2") / "metrics.json") for out in (alone, together))
    assert close(one["last"]["plain"]["per_class_accuracy"], two["last"]["plain"]["per_class_accuracy"], 1e-6)
    assert close(one["weight_norm"], two["weight_norm"], 1e-3)
    reports = [read(out / "report.json") for out in (alone, together)]
    assert reports[0]["class_counts"] == reports[1]["class_counts"]
    assert close(*(report["checkpoints"]["last"]["plain"] for report in reports), 1e-3)


def test_all_processes_make_one_feature_file(alone: Path, together: Path) -> None:
    stored = [sorted((out / "plain" / "features").rglob("*.npy")) for out in (alone, together)]
    names = [[path.name.rsplit("_", 1)[0] for path in paths] for paths in stored]
    assert names[0] == names[1] and {"test", "test_mirrored", "train"} < set(names[0])
    for one, two in zip(*stored, strict=True):
        left, right = np.load(one), np.load(two)
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, rtol=1e-2, atol=1e-3)


def test_all_processes_say_the_same(together: Path) -> None:
    logs = [(together / f"out{rank}.txt").read_text().splitlines() for rank in range(2)]
    kept = [[line for line in log if line.startswith(("data:", "epoch ", "method:", "*"))] for log in logs]
    without_times = [[line.split("  ")[:6] for line in log] for log in kept]
    assert without_times[0] == without_times[1] and len(kept[0]) > 10


# Pieces


def test_synchronised_batch_norm_is_that_of_the_whole_batch(together: Path) -> None:
    images = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    norm = nn.BatchNorm2d(3)
    norm.load_state_dict(make_norm().state_dict())
    expected = norm(images)
    (expected * TILT).sum().backward()
    norm(images)  # the second forward pass of the processes, in which one of them has no image
    for rank in range(2):
        found = torch.load(together / f"pieces{rank}.pt", weights_only=True)
        torch.testing.assert_close(torch.cat([found["output"][:4], found["output"][4:5]]), expected.detach())
        for gradient, parameter in zip(found["gradients"], norm.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
        for key, tensor in norm.state_dict().items():
            torch.testing.assert_close(found["running"][key], tensor)
        assert found["empty"] == (5 if rank == 0 else 0) and found["rank"] == rank


def test_a_weighted_loss_divides_by_the_weights_of_all(together: Path) -> None:
    logits, labels = logits_and_labels()
    class_weights = 1 / torch.tensor(COUNTS, dtype=torch.float32)
    expected = F.cross_entropy(logits, labels, class_weights)
    found = torch.load(together / "pieces0.pt", weights_only=True)["loss"]
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_every_image_of_a_batch_is_some_processs(together: Path) -> None:
    shares = [torch.load(together / f"pieces{rank}.pt", weights_only=True)["shares"] for rank in range(2)]
    whole = [[*left, *right] for left, right in zip(*shares, strict=True)]
    assert whole == [list(range(5)), list(range(5, 10)), list(range(10, 15)), [15]]
    assert batch_sizes(16, 5) == [5, 5, 5, 1] and batch_sizes(16, 5, drop_last=True) == [5, 5, 5]
    assert all(abs(len(left) - len(right)) <= 1 for left, right in zip(*shares, strict=True))


def test_synchronising_keeps_the_state_of_a_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    model[1][0].running_mean.fill_(0.3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    changed = synchronise_batch_norm(model, torch.device("cpu"))
    assert isinstance(changed[1][0], SynchronisedBatchNorm)
    assert all(torch.equal(tensor, before[key]) for key, tensor in changed.state_dict().items())
    images = torch.randn(6, 3, 5, 5)
    reference = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
    reference.load_state_dict(before)
    torch.testing.assert_close(changed(images), reference(images))  # alone it is plain batch norm


# torchrun's environment


def test_without_torchrun_a_process_is_alone() -> None:
    assert launch_of({}) == Launch() == Launch(0, 1, 0, 1)
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert launch_of(given) == Launch(3, 4, 1, 2)
    assert launch_of({"RANK": "1", "WORLD_SIZE": "2"}) == Launch(1, 2, 1, 2)


@pytest.mark.parametrize("wrong", [{"RANK": "two"}, {"RANK": "4"}, {"LOCAL_RANK": "2"}, {"LOCAL_WORLD_SIZE": "9"}])
def test_an_environment_that_contradicts_itself_is_refused(wrong: dict[str, str]) -> None:
    given = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", **wrong}
    with pytest.raises(UserError, match="RANK, WORLD_SIZE"):
        launch_of(given)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 3, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    outcome = run("main_stage1", "--dataset", "digits", "--out", tmp_path, gpus=2)
    assert outcome.status == 2 and not list(tmp_path.iterdir())
    assert "3 processes were started on a machine with 2 CUDA devices" in outcome.err and outcome.err.count("\n") == 1


def test_tables_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    outcome = run("reproduce", "unified", "--dataset", "digits")
    assert outcome.status == 2 and "start it without torchrun" in outcome.err


def test_torchrun_starts_stage_1(tree: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "main_stage1.py"),
        "--dataset",
        "folder",
        "--data_dir",
        str(tree),
        *map(str, STAGE1),
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("processes: 2, which share every batch of 11") == 1  # only the first one prints
    metrics = json.loads(next(tmp_path.rglob("metrics.json")).read_text())
    assert metrics["last"]["epoch"] == 2


def test_the_first_error_of_two_processes_is_one_line(tree: Path, together: Path, tmp_path: Path) -> None:
    """The first process says it; the other, which waits, is ended by torchrun's signal, as it is here."""
    line = stage1_lines(tree, together)["plain"]
    first, second = start_two(lambda _: run_script("main_stage1", *line)(), tmp_path)
    status, said = first.end()
    os.kill(second.pid, signal.SIGTERM)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1 and "holds a finished run" in said
    assert second.end() == (143, "")


def test_a_seed_that_each_process_would_draw_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    outcome = run("main_stage1", "--dataset", "digits", "--seed", "None", "--out", tmp_path)
    assert outcome.status == 2 and "--seed None draws a seed in each of the processes" in outcome.err

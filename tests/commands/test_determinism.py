"""Same seed, same result: bit for bit on a CPU, whatever the worker processes and the interpreter's hash seed, and on a
CUDA device with --deterministic. Which images are meant is printed and stored."""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine import fit
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import EVALUATE, FLAGS, STAGE1, STAGE2
from stages.session import settle_execution
from tests.helpers import ROOT, image_tree, read, run, succeed
from utils.command import run_command
from utils.device import Execution, choose_execution
from utils.errors import UserError

DIGITS = ("--dataset", "digits", "--width", 2, "--device", "cpu", "--holdout", 0.2)
STAGE2_FLAGS = {
    "gcl": ("--method", "gcl"),  # draws noise
    "gala": ("--method", "gala"),  # gathers statistics
    "crt": ("--method", "crt"),  # draws a classifier, and images
    "fresh": ("--method", "los", "--bn_mode", "train"),  # draws crops, moves batch norm
}


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested dictionaries and lists, with where it is."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from tensors(item, f"{name}.{key}")


def is_time(name: str) -> bool:
    """Whether a number of this name is a time or a speed, which no two runs share."""
    return "second" in name or "memory" in name


def without_times(value: Any) -> Any:
    """The same nested dictionaries without the times in them, and without the sha256 of a file that says how it was
    made."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not is_time(key) and key != "sha256"}
    return value


def assert_same_run(one: Path, other: Path, stage: str) -> None:
    """Every number of two runs is the same: weights, optimiser, state of the loss, log, metrics."""
    (first,), (second,) = (list(out.rglob(f"{stage}*/metrics.json")) for out in (one, other))
    assert without_times(read(first)) == without_times(read(second))
    logs = [pd.read_csv(file.parent / "log.csv") for file in (first, second)]
    logs = [log[[name for name in log.columns if not is_time(name)]] for log in logs]
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert logs[0]["loss"].notna().all()
    for name in ("last.pth", "best.pth"):
        left, right = (dict(tensors(torch.load(file.parent / name, weights_only=True))) for file in (first, second))
        assert list(left) == list(right) and len(left) > 10
        assert all(torch.equal(left[key], right[key]) for key in left), name


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished stage 1 on the digits with everything that draws."""
    out = tmp_path_factory.mktemp("start")
    succeed("main_stage1", *DIGITS, "--epochs", 2, "--augment", "jitter", "--mixup", 0.4, "--out", out)
    return out


# Two runs


@pytest.mark.parametrize("name", STAGE2_FLAGS)
def test_stage_2_repeats(name: str, start: Path, tmp_path: Path) -> None:
    stage1 = next(start.rglob("stage1*/last.pth"))
    for out in ("one", "other"):
        torch.manual_seed(len(out))  # what was drawn before is of no matter
        flags = (*DIGITS, "--finetune_epoch", 2, *STAGE2_FLAGS[name], "--pretrained_pth", stage1)
        succeed("main_stage2", *flags, "--out", tmp_path / out)
    assert_same_run(tmp_path / "one", tmp_path / "other", "stage2")


def test_stage_1_repeats(start: Path, tmp_path: Path) -> None:
    """What was drawn before is of no matter; that another process trains alike, the tests of killed runs show."""
    torch.manual_seed(7)
    succeed("main_stage1", *DIGITS, "--epochs", 2, "--augment", "jitter", "--mixup", 0.4, "--out", tmp_path)
    assert_same_run(start, tmp_path, "stage1")


def test_another_seed_is_another_run(start: Path, tmp_path: Path) -> None:
    succeed(
        "main_stage1", *DIGITS, "--epochs", 2, "--augment", "jitter", "--mixup", 0.4, "--out", tmp_path, "--seed", 1
    )
    with pytest.raises(AssertionError):
        assert_same_run(start, tmp_path, "stage1")


def test_the_number_of_worker_processes_changes_nothing(tmp_path: Path) -> None:
    tree = image_tree(tmp_path / "tree", classes=3, train=5)
    data = ("--dataset", "folder", "--data_dir", tree, "--stem", "cifar", "--network", "resnet8", "--width", 2)
    data += ("--image_size", 8, "--resize", 10, "--batch_size", 5, "--device", "cpu", "--holdout", 0.3)
    for workers in (0, 3):
        flags = (*data, "--workers", workers, "--out", tmp_path / f"with{workers}")
        succeed("main_stage1", *flags, "--epochs", 2)
        succeed("main_stage2", *flags, "--finetune_epoch", 2, "--method", "gcl", "--sampler", "class_balanced")
    for stage in ("stage1", "stage2"):
        assert_same_run(tmp_path / "with0", tmp_path / "with3", stage)


# Which images


def test_the_identity_of_the_subset_is_printed_and_stored(start: Path, tmp_path: Path) -> None:
    stage1 = next(start.rglob("stage1*"))
    subset = read(stage1 / "config.json")["subset"]
    assert set(subset) == {"index_sha256", "content_sha256"}
    assert read(stage1 / "metrics.json")["subset"].items() >= subset.items()
    assert torch.load(stage1 / "last.pth", weights_only=True)["config"]["subset"] == subset
    report = tmp_path / "report.json"
    outcomes = [
        succeed("main_stage1", *DIGITS, "--epochs", 1, "--out", tmp_path, "--imb_type", "step"),
        succeed("main_stage2", *DIGITS, "--finetune_epoch", 1, "--pretrained_pth", stage1, "--out", tmp_path),
        succeed("evaluate", *DIGITS, "--pretrained_pth", stage1, "--json", report),
    ]
    found = [*(read(next(tmp_path.rglob(f"{stage}*/config.json")))["subset"] for stage in ("stage1", "stage2"))]
    found.append(read(report)["subset"])
    assert found[1] == found[2] == subset and found[0]["content_sha256"] != subset["content_sha256"]
    for outcome, identity in zip(outcomes, found, strict=True):
        line = f"index sha256 {identity['index_sha256'][:16]}, content sha256 {identity['content_sha256'][:16]}"
        assert line in outcome.out


# --deterministic


SWITCHES = ("deterministic", "benchmark")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Let PyTorch see a GPU that can be chosen but not used, and put all that choosing it changes back afterwards."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    environment, cudnn = dict(os.environ), torch.backends.cudnn
    before = {name: getattr(cudnn, name) for name in SWITCHES}
    precisions = torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    algorithms = torch.are_deterministic_algorithms_enabled()
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "set_device": lambda _: None,
        "is_bf16_supported": lambda **_: True,
        "get_device_name": lambda _: "some GPU",
        "get_device_capability": lambda: (9, 0),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    yield monkeypatch
    for name, value in before.items():
        setattr(cudnn, name, value)
    torch.backends.cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = precisions
    torch.use_deterministic_algorithms(algorithms)
    os.environ.clear()
    os.environ.update(environment)


def chosen(deterministic: bool, compile_mode: str = "off") -> tuple[Execution, list[object]]:
    """The execution on a GPU, and the state of PyTorch that it leaves."""
    execution = choose_execution("cuda", 0, "auto", compile_mode, deterministic=deterministic)
    cudnn = torch.backends.cudnn
    state = [torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark]
    return execution, [*state, os.environ.get("CUBLAS_WORKSPACE_CONFIG")]


def test_deterministic_chooses_what_repeats_and_leaves_nothing_behind(gpu: pytest.MonkeyPatch) -> None:
    plain, state = chosen(False)
    assert state == [False, False, True, None] and not any("--deterministic" in reason for reason in plain.reasons)
    execution, state = chosen(True)
    assert state == [True, True, False, ":4096:8"]
    assert "--deterministic" in execution.reasons[-1] and execution.reasons[:-1] == plain.reasons
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # what cannot be repeated is an error
    _, state = chosen(False)  # a run after it in the same process is as fast as ever
    assert state[:3] == [False, False, True]


def test_deterministic_runs_may_be_compiled(gpu: pytest.MonkeyPatch) -> None:
    """PyTorch's compiler looks at the same switch, and measures no kernels where it is set."""
    gpu.setattr("utils.device.compiler_lacks", lambda: None)
    assert chosen(True, "on")[0].compile and not chosen(True, "off")[0].compile


@pytest.mark.parametrize(
    ("mode", "graph", "compiled", "said"),
    [
        ("auto", True, False, "step: one CUDA graph (--compile auto)"),
        ("graph", True, False, "step: one CUDA graph (--compile graph)"),
        ("on", False, True, "step: compiled (--compile on)"),
        ("off", False, False, "step: eager (--compile off)"),
    ],
)
def test_how_a_step_is_launched_on_a_gpu(
    mode: str, graph: bool, compiled: bool, said: str, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setattr("utils.device.compiler_lacks", lambda: None)
    execution = chosen(False, mode)[0]
    assert (execution.graph, execution.compile) == (graph, compiled)
    assert execution.reasons[2].startswith(said)
    gpu.setattr("utils.device.compiler_lacks", lambda: "triton is not installed")
    if compiled:
        with pytest.raises(UserError, match="--compile on: triton is not installed; use --compile auto or off"):
            chosen(False, mode)
    else:
        assert chosen(False, mode)[0].reasons[2].startswith(said)  # a graph needs no compiler


def test_a_graph_is_refused_where_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="--compile graph: a CUDA graph needs a CUDA device; use --compile auto or off"):
        choose_execution("cpu", 0, "auto", "graph")


def test_cublas_is_told_before_cuda_starts(gpu: pytest.MonkeyPatch) -> None:
    seen = []
    gpu.setattr(torch.cuda, "set_device", lambda _: seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
    chosen(True)
    assert seen == [":4096:8"]


@pytest.mark.parametrize(("given", "fits"), [(":16:8", True), (":4096:8", True), (":4096:2:16:8", False), ("", False)])
def test_a_workspace_of_cublas_that_is_given_is_kept_or_refused(
    given: str, fits: bool, gpu: pytest.MonkeyPatch
) -> None:
    gpu.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    assert chosen(False)[1][-1] == given
    if fits:
        assert chosen(True)[1][-1] == given
    else:
        with pytest.raises(UserError, match="--deterministic: CUBLAS_WORKSPACE_CONFIG is"):
            chosen(True)
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("script", [STAGE1, STAGE2, EVALUATE])
@pytest.mark.parametrize("flags", [(), ("--deterministic",)])
def test_every_script_hands_it_on(script: str, flags: tuple[str, ...], gpu: pytest.MonkeyPatch) -> None:
    execution = settle_execution(parse_command(script, "", ["--dataset", "digits", *flags]))
    assert execution.device.type == "cuda"
    assert torch.are_deterministic_algorithms_enabled() == bool(flags)


def test_it_names_no_folder(tmp_path: Path) -> None:
    """Results are the same numbers, whether or not they repeat to the last bit; runs find one another."""
    one, other = (parse_command(STAGE1, "", ["--dataset", "digits", *flags]) for flags in ([], ["--deterministic"]))
    assert run_path(one) == run_path(other)
    assert other.settings == dataclasses.replace(one.settings, deterministic=True)
    assert FLAGS["deterministic"].named_by == ()


def test_on_a_cpu_it_is_accepted_and_changes_nothing(start: Path, tmp_path: Path) -> None:
    flags = ("--epochs", 2, "--augment", "jitter", "--mixup", 0.4, "--out", tmp_path, "--deterministic")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, dict(os.environ)
    outcome = succeed("main_stage1", *DIGITS, *flags)
    after = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, dict(os.environ)
    assert after == before
    assert "repeatable: bit for bit" in outcome.out and "as every run on a CPU" in outcome.out and not outcome.err
    assert_same_run(start, tmp_path, "stage1")
    config = read(next(tmp_path.rglob("config.json")))
    assert config["settings"]["deterministic"] is True
    assert any("repeatable" in line for line in config["environment"]["execution"])


# What PyTorch refuses on CUDA where results shall repeat (documentation of `use_deterministic_algorithms`), by the
# names that its operators have. A name with a dot is one overload.
REFUSED = {
    "_adaptive_avg_pool2d_backward",
    "adaptive_max_pool2d_backward",
    "nll_loss2d_forward",
    "nll_loss2d_backward",
    "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward",
    "_upsample_bilinear2d_aa_backward",
    "grid_sampler_2d_backward",
    "reflection_pad2d_backward",
    "max_unpool2d",
    "put",
    "put_",
    "histc",
    "kthvalue",
    "median.dim",
    "scatter_reduce",
    "scatter_reduce_",
    "scatter.reduce",
    "scatter_.reduce",
    "index_reduce",
    "index_reduce_",
}


class Operators(TorchDispatchMode):
    """Notes which operators run while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        self.names |= {name, f"{name}.{function._overloadname}"}
        if name == "bincount" and (
            (len(args) > 1 and args[1] is not None) or (kwargs or {}).get("weights") is not None
        ):
            self.names.add("bincount with weights")
        return function(*args, **(kwargs or {}))


def test_nothing_is_used_that_cuda_cannot_repeat(tmp_path: Path) -> None:
    """Both stages and the report, seen operator by operator on the CPU; a GPU would refuse these with an error."""
    tree = image_tree(tmp_path / "tree", classes=3, train=3, test=1, size=40)
    on_disk = ("--dataset", "folder", "--data_dir", tree, "--network", "resnet18", "--image_size", 32, "--workers", 0)
    with Operators() as seen:
        succeed("main_stage1", *on_disk, "--device", "cpu", "--epochs", 1, "--out", tmp_path)
        succeed("main_stage1", *DIGITS, "--epochs", 1, "--out", tmp_path, "--loss", "gala", "--clip_grad", 1)
        for method in ("los", "wb", "ldam_drw", "disalign", "ncm"):
            more = () if method == "ncm" else ("--finetune_epoch", 1)
            succeed("main_stage2", *DIGITS, *more, "--method", method, "--out", tmp_path)
        succeed("evaluate", *DIGITS, "--cur_stage", "stage2", "--out", tmp_path)
    assert {"convolution_backward", "max_pool2d_with_indices_backward", "index_add_", "sort"} <= seen.names
    assert seen.names & {*REFUSED, "bincount with weights"} == set()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_mode", ["off", "graph", "on"])
def test_on_cuda_two_runs_are_the_same(compile_mode: str, tmp_path: Path) -> None:
    flags = ("--dataset", "digits", "--width", 4, "--holdout", 0.2, "--device", "cuda", "--deterministic")
    stages = (
        ("main_stage1", "--epochs", 2, "--mixup", 0.4, "--compile", compile_mode),
        ("main_stage2", "--method", "gcl"),
    )
    for out in ("one", "other"):
        for script, *more in stages:
            command = [sys.executable, f"{script}.py", *map(str, (*flags, *more, "--out", tmp_path / out))]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    for stage in ("stage1", "stage2"):
        assert_same_run(tmp_path / "one", tmp_path / "other", stage)


INTERRUPTED = """
import sys
import main_stage1
from engine import fit

train_one = fit.train_one

def until_epoch_3(session, training, history, epoch):
    if epoch == 3:
        raise KeyboardInterrupt
    return train_one(session, training, history, epoch)

fit.train_one = until_epoch_3
try:
    main_stage1.main(sys.argv[1:])
except KeyboardInterrupt:
    pass
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_mode", ["off", "graph"])
def test_on_cuda_a_resumed_run_ends_the_same(compile_mode: str, tmp_path: Path) -> None:
    flags = ("--dataset", "digits", "--width", 4, "--epochs", 6, "--device", "cuda", "--deterministic")
    flags = (*flags, "--compile", compile_mode, "--save_every", 0)
    for program, out, *more in (
        (("main_stage1.py",), "whole"),
        (("-c", INTERRUPTED), "parts"),
        (("main_stage1.py",), "parts", "--resume"),
    ):
        command = [sys.executable, *program, *map(str, (*flags, "--out", tmp_path / out, *more))]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    last = [torch.load(next((tmp_path / out).rglob("last.pth")), weights_only=True) for out in ("whole", "parts")]
    left, right = (dict(tensors(state["model"])) for state in last)
    assert list(left) == list(right) and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_a_graph_trains_what_single_kernels_train(tmp_path: Path) -> None:
    """And both what the CPU trains, in full precision, but for rounding that a few steps amplify."""
    flags = ("--dataset", "digits", "--network", "resnet18", "--width", 8, "--epochs", 1, "--lr", 1e-3, "--amp", "off")
    models = {}
    for name, *own in (("graph", "--compile", "graph"), ("off", "--compile", "off"), ("cpu", "--device", "cpu")):
        command = [sys.executable, "main_stage1.py", *map(str, (*flags, *own, "--out", tmp_path / name))]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
        state = torch.load(next((tmp_path / name).rglob("last.pth")), weights_only=True, map_location="cpu")
        models[name] = dict(tensors(state["model"]))
    for name in ("off", "cpu"):
        for key, value in models[name].items():
            torch.testing.assert_close(models["graph"][key], value, rtol=2e-3, atol=2e-4, msg=f"{name}: {key}")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_memory_does_not_grow_with_the_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train_one, held = fit.train_one, []

    def measured(*arguments: Any) -> Any:
        row = train_one(*arguments)
        held.append(torch.cuda.memory_allocated())
        return row

    monkeypatch.setattr(fit, "train_one", measured)
    outcome = run("main_stage1", "--dataset", "digits", "--epochs", 12, "--device", "cuda", "--out", tmp_path, gpus=1)
    assert outcome.status == 0, outcome.err
    assert len(held) == 12 and held[-1] <= held[3]


def test_what_cannot_be_repeated_on_cuda_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """AlexNet and VGG pool adaptively, which PyTorch refuses to repeat with an error of its own."""

    def refuse() -> None:
        raise RuntimeError("adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but ...")

    with pytest.raises(SystemExit) as stop:
        run_command(refuse)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and "--deterministic: adaptive_avg_pool2d" in lines[0]

    def other() -> None:
        raise RuntimeError("a defect of ours")

    with pytest.raises(RuntimeError, match="a defect of ours"):
        run_command(other)

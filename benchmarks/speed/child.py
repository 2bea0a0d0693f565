"""One measurement in a process of its own, so that its peak of memory and its threads are nobody else's.

    python -m benchmarks.speed.child REQUEST.json ANSWER.json

is what `run_child` starts. A request is {"task": one of TASKS, ...its arguments}, an answer what the task returns, with
`wall_seconds` and the peak of memory beside it.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import main_stage1
import main_stage2
from benchmarks.children import answer_of
from benchmarks.costs import memory, reset_peak
from benchmarks.peers.baseline_loop import STAGE2_LR, BaselineLoop
from benchmarks.peers.loops import PeerTask, run_peer
from datasets.long_tail import LongTailedData
from models import build_model
from runs.checkpoint import load_checkpoint, load_weights
from runs.run_names import run_path
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.data import load_data
from stages.session import settle_execution
from utils.errors import UserError
from utils.files import write_json


def run_child(task: str, **arguments: Any) -> dict[str, Any]:
    """Run a task in a fresh process and return its answer; a UserError has the last line of one that failed."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        write_json(request, {"task": task, **arguments})
        return answer_of(["-m", "benchmarks.speed.child", str(request), str(answer)], answer, task)


@dataclass(frozen=True)
class BaselineTask:
    """What the baseline loop is to do: a stage, on what flags of main_stage1.py describe, from a checkpoint or anew."""

    stage: str
    argv: list[str]
    loaders: int
    tf32: bool
    epochs: int
    max_steps: int | None
    test: str
    checkpoint: str | None = None


def set_tf32(allowed: bool) -> None:
    """Let fp32 products and convolutions on CUDA run in TF32, or not."""
    precision = "tf32" if allowed else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.conv.fp32_precision = precision  # type: ignore[attr-defined]


def baseline(task: BaselineTask) -> dict[str, Any]:
    """Run the baseline loop; return a BaselineRun's content."""
    command = parse_command(STAGE1, "", task.argv)
    settings, execution = command.settings, settle_execution(command)
    set_tf32(task.tf32)
    data = load_data(settings, settings.seed)
    reset_peak(torch.device("cpu"))
    torch.manual_seed(settings.seed)
    model = build_model(settings.network, data.num_classes, width=settings.width)
    if task.checkpoint is not None:
        load_weights(model, load_checkpoint(Path(task.checkpoint)))
    loop = BaselineLoop(model, data, execution.device, task.loaders, settings.batch_size, task.max_steps)
    if task.stage == "stage1":
        run = loop.stage1(task.epochs, settings.lr, settings.wd, settings.momentum, task.test)
    else:
        run = loop.stage2(task.epochs, STAGE2_LR, settings.momentum, task.test)
    return asdict(run)


def ours(script: str, argv: list[str], folder: str | None = None) -> dict[str, Any]:
    """Run main_stage1.py or main_stage2.py; return its folder, the clocks of its log, and its accuracy."""
    forgetting = then_forget_the_peak(load_data)
    for module in list(sys.modules.values()):  # wherever the name is bound
        names = getattr(module, "__dict__", {})
        if names.get("load_data") is load_data:
            names["load_data"] = forgetting
    if script == "main_stage1":
        metrics = main_stage1.main(argv)
        run = run_path(parse_command(STAGE1, "", argv))
    else:
        out = Path(argv[argv.index("--out") + 1])
        before = set(out.rglob("metrics.json"))
        metrics = main_stage2.main(argv)
        (made,) = set(out.rglob("metrics.json")) - before
        run = made.parent
    columns = ["seconds", "images_per_second", "evaluation_seconds"]  # None where an epoch was not evaluated
    log = pd.read_csv(run / "log.csv") if (run / "log.csv").is_file() else pd.DataFrame(columns=columns)
    return {
        "folder": str(run),
        "log": {name: log[name].astype(object).where(log[name].notna(), None).tolist() for name in columns},
        "train_seconds": metrics["train_seconds"],
        "accuracy": {way: report and report["all"] for way, report in metrics["last"].items() if way != "epoch"},
    }


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "baseline": lambda **arguments: baseline(BaselineTask(**arguments)),
    "ours": ours,
    "peer": lambda **arguments: run_peer(PeerTask(**arguments)),
}


def then_forget_the_peak(load: Callable[..., LongTailedData]) -> Callable[..., LongTailedData]:
    """Return a loader of data after which the peak of memory counts anew: reading needs more than training."""

    def loaded(*arguments: Any, **more: Any) -> LongTailedData:
        data = load(*arguments, **more)
        reset_peak(torch.device("cpu"))
        return data

    return loaded


def peak_memory(workers: int) -> dict[str, float | None]:
    """Return the peak of memory in MiB since the data were read: of this process, of its largest worker process where
    it has any, on the CUDA device."""
    own = memory(torch.device("cpu"))[1] * 1e6 / 2**20
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024 if workers else None
    cuda = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None
    return {"peak_mib": own, "worker_peak_mib": worker, "cuda_peak_mib": cuda}


def main(request_file: str, answer_file: str) -> None:
    """Do what a request asks for and write the answer."""
    request = json.loads(Path(request_file).read_text())
    started = time.perf_counter()
    answer = TASKS[request.pop("task")](**request)
    answer |= {"wall_seconds": time.perf_counter() - started, **peak_memory(request.get("loaders", 0))}
    write_json(Path(answer_file), answer)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")

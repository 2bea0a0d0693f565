"""One measurement of `benchmarks.builds.large`, in a process of its own: python large_child.py TASK ANSWER WORDS...

It runs in the folder of whichever build is measured, and uses of it only what all builds have. `ANSWER` is the JSON
file that it writes. Memory is the peak of the resident set above what the imports need, in MB.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DECAY = 1e-5  # that of a classifier on features


def size_mb(name: str = "VmHWM") -> float:
    """Return the highest resident set of this process so far, or another of its sizes by `name`, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6


class Loaded(BaseException):
    """A command has loaded what it works on, which is all that was asked for."""


def loading(script: str, *words: str) -> dict[str, Any]:
    """Return the CPU seconds and the peak of a command of the build until it has loaded what it works on."""
    found = command(script, *words, only_load=True)
    return {name: found[name] for name in ("load_cpu_seconds", "load_peak_mb")}


def command(script: str, *words: str, only_load: bool = False) -> dict[str, Any]:
    """Run a command of the build; return its CPU seconds and peak, those of loading, and those of its epochs."""
    from importlib import import_module

    import matplotlib.figure  # noqa: F401
    import pandas as pd
    import torch
    import torch._dynamo  # which optimisers import when they are made

    torch.set_num_threads(1)
    import engine.finish
    import engine.frozen_features  # noqa: F401
    import stages.session

    main = import_module(script).main
    load, at_start, mapped = stages.session.load_model, size_mb(), size_mb("RssFile")
    started = time.process_time()
    loaded: dict[str, float] = {}

    def load_and_look(*arguments: Any) -> Any:
        found = load(*arguments)
        loaded.setdefault("load_cpu_seconds", time.process_time() - started)
        loaded.setdefault("load_peak_mb", size_mb() - at_start)
        if only_load:
            raise Loaded
        return found

    stages.session.load_model = load_and_look  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as out:
        with contextlib.suppress(Loaded):
            main([*words, "--out", out])
        logs = [pd.read_csv(path)["seconds"] for path in Path(out).rglob("stage2*/log.csv")]
    epochs = {"epoch_seconds": float(logs[0].min())} if logs else {}
    sizes = {"peak_mb": size_mb() - at_start, "mapped_mb": size_mb("RssFile") - mapped}
    return {"cpu_seconds": time.process_time() - started, **sizes, **loaded, **epochs}


def parts(images: str, classes: str) -> dict[str, Any]:
    """Return the CPU seconds of a temperature, and of re-balanced predictions with their column means."""
    import torch

    torch.set_num_threads(1)
    from evaluation.metrics import column_means, fit_temperature, rebalanced_predictions

    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(int(images), int(classes), generator=generator)
    labels = torch.randint(int(classes), (int(images),), generator=generator)
    logits[torch.arange(len(labels)), labels] += 4
    means = column_means(logits)
    found = {}
    for name, work in {
        "temperature": lambda: fit_temperature(logits, labels),
        "rebalanced": lambda: rebalanced_predictions(logits, means, 1.0),
    }.items():
        work()
        started = time.process_time()
        result = work()
        found[f"{name}_seconds"] = time.process_time() - started
        found[f"{name}_result"] = result if isinstance(result, float) else result.double().mean().item()  # type: ignore[union-attr]
    return found


def probe(file: str, solver: str, steps: str) -> dict[str, Any]:
    """Return the CPU seconds of a linear classifier of at most `steps` steps, and its loss on the test rows."""
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)
    with np.load(file, allow_pickle=False) as arrays:
        train, test = (torch.from_numpy(arrays[f"{split}_features"]).float() for split in ("train", "test"))
        labels, own = (torch.from_numpy(arrays[f"{split}_labels"]) for split in ("train", "test"))
    classes = int(labels.max()) + 1
    if solver == "scikit-learn":
        from sklearn.linear_model import LogisticRegression

        started = time.process_time()
        mean = train.mean(dim=0)
        scale = (train - mean).square().sum(dim=1).mean().rsqrt()
        rows = ((train - mean) * scale).numpy()
        model = LogisticRegression(C=1 / (DECAY * len(labels)), max_iter=int(steps)).fit(rows, labels.numpy())
        seconds = time.process_time() - started
        logits = torch.from_numpy(model.decision_function(((test - mean) * scale).numpy()))
    else:
        from methods.linear_probe import fit_probe

        started = time.process_time()
        found = fit_probe(train, labels, classes, DECAY, int(steps))
        seconds = time.process_time() - started
        logits = test @ found.weight.T + found.bias
    return {"probe_seconds": seconds, "held_out_loss": float(F.cross_entropy(logits, own))}


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "command": command,
    "loading": loading,
    "parts": parts,
    "probe": probe,
}

if __name__ == "__main__":
    sys.path[0] = os.getcwd()  # the build that is measured, not the folder of this file
    answer = TASKS[sys.argv[1]](*sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(answer))

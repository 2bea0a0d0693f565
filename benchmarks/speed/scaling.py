"""How time and memory grow with the batch, the number of classes and the number of images: no faster than they must.

    python -m benchmarks.speed.scaling
    python -m benchmarks.speed.scaling --network resnet34 --device cuda
    python -m benchmarks.speed.scaling --quick

Writes `results/scaling_<device>_<network>.csv`, `.md` and `.png`. Other flags are those of main_stage1.py. Three
sweeps, on synthetic data:

1. `batch`: stage 1 over the batch size, through the project's own `DeviceImages`, `make_sgd` and `train_epoch`.
2. `classes`: everything whose cost depends on the number of classes K, at a fixed batch and feature width: a step of
   every head against LOS's target, every loss forward and backward, the closed forms, each part of the report, and how
   a data set is cut to a long tail. A loop over classes or a (K, K) table shows up here.
3. `images`: an epoch of LOS on cached features over their number, as `main_stage2.py` runs it, with every sampler.

Each time is the best of as many as fit into the time set aside for an item, one at least, after a warm-up. An exponent
is the slope of log cost over log size at the larger half of the sizes: 1 is linear. Small sizes are left out because
they cost what starting the kernels costs. Memory is what a call needs beyond what was there before it, from the
resident set's peak on a CPU and from PyTorch's allocator on CUDA.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks.command import Benchmark
from benchmarks.costs import memory, reset_peak, synchronize
from benchmarks.record import network_name, provenance, write_record
from benchmarks.speed.growth.cases import (
    FULL,
    IMBALANCE,
    QUICK,
    Case,
    Sizes,
    class_cases,
    row_cases,
    stage1_cases,
)
from benchmarks.speed.growth.report import MIN_MEMORY_MB, describe, draw, long_table, short_table
from evaluation.plots import save_figure
from stages.session import settle_execution
from utils.command import run_command
from utils.device import Execution
from utils.files import make_folder

MAX_REPEATS = 20


class Cost(NamedTuple):
    """Seconds a call (best of `repeats`) and its processor time, which other programs disturb less; the peak of memory
    during it, and how much of that the call added, in MB."""

    seconds: float
    cpu_seconds: float
    repeats: int
    peak_mb: float
    extra_mb: float


def wall_and_cpu_seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return how long a call takes until the device has done its work, and the processor time of all threads in it."""
    synchronize(device)
    started, used = time.perf_counter(), time.process_time()
    call()
    synchronize(device)
    return time.perf_counter() - started, time.process_time() - used


def measure_cost(call: Callable[[], object], device: torch.device, budget: float) -> Cost:
    """Return the cost of a call: after a warm-up, the best of as many as fit into `budget` seconds, one at least."""
    reset_peak(device)
    before, _ = memory(device)
    call()  # compiles, chooses kernels, and fills what is kept
    times = [wall_and_cpu_seconds(call, device)]
    while sum(seconds for seconds, _ in times) + times[-1][0] <= budget and len(times) < MAX_REPEATS:
        times.append(wall_and_cpu_seconds(call, device))
    _, peak = memory(device)
    return Cost(*min(times), len(times), peak, max(peak - before, 0.0))


def larger_half(sizes: Sequence[int]) -> list[int]:
    """Return the sizes that an exponent is fitted to: the larger half, at least two, an odd one included."""
    return sorted(set(sizes))[-max(2, (len(set(sizes)) + 1) // 2) :]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log cost over log size by least squares; NaN below two sizes whose cost is known."""
    points = [(size, cost) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len({size for size, _ in points}) < 2:
        return np.nan
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def measured(cases: Iterator[Case], device: torch.device, budget: float) -> Iterator[dict[str, object]]:
    """Measure each case where it is yielded, while what it works on is still alive, and say when a size begins."""
    size = None
    for case in cases:
        if case.size != size:
            size = case.size
            print(f"{case.sweep}: {size:,}", flush=True)
        cost = measure_cost(case.call, device, budget)
        a_unit = cost.seconds / case.units
        yield {
            "sweep": case.sweep,
            "group": case.group,
            "item": case.item,
            "size": case.size,
            "milliseconds": 1e3 * a_unit,
            "cpu_milliseconds": 1e3 * cost.cpu_seconds / case.units,
            "images_per_second": case.images / a_unit if case.images else np.nan,
            "microseconds_per_image": 1e6 * a_unit / case.images if case.images else np.nan,
            "repeats": cost.repeats,
            "peak_mb": cost.peak_mb,
            "extra_mb": cost.extra_mb,
            "expected_exponent": case.expected,
        }


def with_exponents(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the fitted exponents of time and of added memory of their item."""
    parts = []
    for _, part in rows.groupby("item", sort=False):
        fitted = part[part["size"].isin(larger_half(part["size"].tolist()))]
        large = fitted[fitted["extra_mb"] >= MIN_MEMORY_MB]
        parts.append(
            part.assign(
                time_exponent=exponent(fitted["size"].tolist(), fitted["milliseconds"].tolist()),
                memory_exponent=exponent(large["size"].tolist(), large["extra_mb"].tolist()),
            )
        )
    return pd.concat(parts)


def run(sizes: Sizes, execution: Execution, network: str, width: int | None) -> pd.DataFrame:
    """Measure all three sweeps; a row an item and size."""
    torch.manual_seed(0)
    device = execution.device
    rows = [
        *measured(stage1_cases(sizes, execution, network, width), device, sizes.budget),
        *measured(class_cases(sizes, execution), device, sizes.budget),
        *measured(row_cases(sizes, execution), device, sizes.budget),
    ]
    return with_exponents(pd.DataFrame(rows))


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> pd.DataFrame:
    """Measure, write the three files, print the table, and return the rows of the CSV."""
    own, command = Benchmark("speed.scaling", __doc__, "smaller sizes").parse(argv, lambda own: {"network": "resnet32"})
    settings, execution = command.settings, settle_execution(command)
    chosen = sizes or (QUICK if own.quick else FULL)
    make_folder(own.results)  # before minutes of work, not after
    rows = run(chosen, execution, settings.network, settings.width).assign(
        **provenance("speed.scaling", argv, execution.device), execution="; ".join(execution.reasons)
    )
    fixed = (
        f"Over classes: batch {chosen.batch}, {chosen.width} features, {chosen.test_images:,} test images. Over "
        f"images: batch {chosen.batch}, {chosen.row_classes} classes at imbalance {IMBALANCE:g}, {chosen.row_width} "
        f"features; {max(chosen.rows):,} rows are {max(chosen.rows) * chosen.row_width * 4 / 1e6:.0f} MB. Best of up "
        f"to {MAX_REPEATS} times within {chosen.budget:g} s, one at least, after a warm-up."
    )
    name = f"scaling_{execution.device.type}_{network_name(settings, short=True)}"
    save_figure(own.results / f"{name}.png", draw(rows))
    more = {"Every item alone": long_table(rows)}
    write_record(own.results, name, rows, short_table(rows), describe(rows, fixed), more)
    return rows


if __name__ == "__main__":
    run_command(main)

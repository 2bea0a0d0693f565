"""How near a training step comes to what the machine can do, and what the rest of it is.

    python -m benchmarks.speed.roofline                              # ResNet-34 in the device's usual precision
    python -m benchmarks.speed.roofline --network resnet32 --amp bf16
    python -m benchmarks.speed.roofline --quick

Counts the operations of a step (matrix products and convolutions, forward and backward) and measures the rate of large
matrix products in the same precision in the same run: the roofline. Then it shares the step's time out over kinds of
work: convolutions, batch norm, element-wise work, the optimiser, copies and conversions, and what no operation accounts
for (on CUDA: launches and waiting). Other flags are those of main_stage1.py. Writes
`results/roofline_<device>_<network>_<precision>.csv` and `.md`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.command import Benchmark
from benchmarks.costs import seconds_of, synchronize
from benchmarks.noise import AUGMENTATION, CLASSES, noise_split
from benchmarks.record import network_name, provenance, write_record
from datasets.device_images import DeviceImages
from engine.epoch import train_epoch
from engine.fit import make_sgd
from losses import build_loss
from losses.los import ONE_HOT
from models import build_model
from settings.fields import Settings
from stages.session import settle_execution
from utils.command import run_command
from utils.device import Execution

# Kinds of work by parts of operators' and kernels' names; the first that fits counts.
KINDS = {
    "bookkeeping": ("autograd::", "optimizer.", "as_strided", "aten::empty", "resize", "aten::view", "detach"),
    "batch norm": ("batch_norm", "batchnorm", "bn_fw", "bn_bw"),
    "convolution": ("conv", "mkldnn", "cudnn", "implicit", "winograd", "xmma", "fprop", "dgrad", "wgrad"),
    "optimiser": ("foreach", "fused_sgd", "multi_tensor", "aten::lerp"),
    "linear": ("addmm", "aten::mm", "gemm"),
    "copies, conversions": ("copy", "memcpy", "_to_copy", "fill", "zero", "memset", "contiguous", "clone", "cat"),
    "data": ("index", "gather", "randperm", "remainder", "bitwise", "shift"),
    "element-wise": (
        *("relu", "threshold", "clamp", "aten::ne", "add", "mul", "sum", "mean", "softmax", "where"),
        *("elementwise", "triton", "reduce", "expand", "div", "sub", "nll", "eq", "argmax", "isfinite"),
    ),
}


def product_rate(device: torch.device, dtype: torch.dtype, size: int | None = None) -> tuple[float, str]:
    """Return the highest rate of a large product in operations a second (2 n^3 each), and what reached it.

    Tried are the product of two square matrices and the same as a 1x1 convolution: on a CPU two libraries do the two.
    """
    size = size or (8192 if device.type == "cuda" else 2048)
    times = 10 if device.type == "cuda" else 3
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    image = left.reshape(1, size // 16, 16, size).permute(0, 3, 1, 2)  # (1, size, size / 16, 16), channels last
    kernel = right.reshape(size, size, 1, 1)
    rates = {}
    ways = {"matrix product": lambda: left @ right, "1x1 convolution": lambda: F.conv2d(image, kernel)}
    for name, product in ways.items():

        def work(product: Callable[[], Tensor] = product) -> None:
            for _ in range(times):
                product()

        with torch.no_grad():
            rates[name] = 2 * size**3 * times / seconds_of(work, device, 5)
    fastest = max(rates, key=lambda name: rates[name])
    return rates[fastest], fastest


def operations_per_image(settings: Settings) -> float:
    """Return the operations of convolutions and matrix products for one image of training, forward and backward."""
    model = build_model(settings.network, CLASSES, width=settings.width)
    with FlopCounterMode(display=False) as counter:
        images, labels = torch.randn(2, 3, 32, 32), torch.zeros(2, dtype=torch.int64)
        F.cross_entropy(model(images), labels).backward()
    return counter.get_total_flops() / 2


def kind_of(name: str) -> str:
    """Return the kind of work that an operator or a kernel does."""
    lowered = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in lowered for part in parts)), "other")


def training(settings: Settings, execution: Execution, steps: int) -> Callable[[], object]:
    """Return a function that makes `steps` steps of stage 1 on noise, as main_stage1.py makes them."""
    torch.manual_seed(0)
    model = execution.place(build_model(settings.network, CLASSES, width=settings.width)).train()
    images = DeviceImages(noise_split(settings.batch_size * steps), AUGMENTATION, execution.device)
    optimizer = make_sgd(model, settings.momentum, settings.wd, settings.nesterov)
    optimizer.param_groups[0]["lr"] = settings.lr
    loss = build_loss("ce", [1] * CLASSES, ONE_HOT).to(execution.device)

    def work() -> None:
        train_epoch(model, images.training_batches(settings.batch_size, 0, 0), steps, optimizer, loss, execution)

    return work


def shares(work: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Return the seconds of each kind of work in one run of `work`, by the profiler."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=activities) as profiler:
        work()
        synchronize(device)
    seconds = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        if cuda:
            if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
                seconds[kind_of(event.key)] += event.self_device_time_total * 1e-6
            continue
        seconds[kind_of(event.key)] += event.self_cpu_time_total * 1e-6
        if event.key.startswith("Optimizer.step"):  # the update is element-wise work by its name, and is not called so
            inside = (event.cpu_time_total - event.self_cpu_time_total) * 1e-6
            seconds["optimiser"] += inside
            seconds["element-wise"] -= inside
    return seconds


def measure_step(settings: Settings, execution: Execution, quick: bool) -> dict[str, Any]:
    """Measure a step and the rate of products; return the row of the CSV, without what says how it came about."""
    steps, repeats = (3, 1) if quick else (20, 5)
    dtype = torch.bfloat16 if execution.bf16 else torch.float32
    rate, product = product_rate(execution.device, dtype, 512 if quick else None)
    work = training(settings, execution, steps)
    step = seconds_of(work, execution.device, repeats) / steps
    operations = operations_per_image(settings) * settings.batch_size
    parts = {kind: seconds / steps for kind, seconds in shares(work, execution.device).items()}
    parts["no operation"] = max(step - sum(parts.values()), 0.0)
    everything = sum(parts.values())  # the profiler slows a step down: shares are of what it saw
    return {
        "network": settings.network,
        "width": settings.width,
        "batch_size": settings.batch_size,
        "precision": str(dtype).removeprefix("torch."),
        "compiled": execution.compile,
        "step_ms": 1e3 * step,
        "images_per_second": settings.batch_size / step,
        "gigaoperations_per_step": operations / 1e9,
        "products_gigaoperations_per_second": rate / 1e9,
        "product": product,
        "share_of_product_rate": operations / rate / step,
        "floor_ms": 1e3 * operations / rate,
        **{f"share_{kind}": seconds / everything for kind, seconds in parts.items()},
    }


def shown_row(row: dict[str, Any]) -> dict[str, str]:
    """Return the row that people read."""
    kinds = (*KINDS, "other", "no operation")
    return {
        "precision": row["precision"],
        "step, ms": f"{row['step_ms']:.1f}",
        "images/s": f"{row['images_per_second']:.0f}",
        "step at the rate of products, ms": f"{row['floor_ms']:.1f}",
        "share of that rate": f"{row['share_of_product_rate']:.0%}",
        **{kind: f"{row[f'share_{kind}']:.0%}" for kind in kinds},
    }


def main(argv: Sequence[str] | None = None) -> None:
    own, command = Benchmark("speed.roofline", __doc__, "a few steps only").parse(argv)
    settings, execution = command.settings, settle_execution(command)
    made = provenance("speed.roofline", argv, execution.device)
    row = measure_step(settings, execution, own.quick)
    notes = (
        f"A step of {network_name(settings)}, batch {settings.batch_size}, on {made['device']}: "
        f"{row['gigaoperations_per_step']:.1f} billion operations in convolutions and matrix products, forward and "
        f"backward; a large {row['product']} runs at {row['products_gigaoperations_per_second']:.0f} billion a second "
        f"here. Shares of the time by kind of work are the profiler's. Made by `{made['command']}`."
    )
    name = f"roofline_{execution.device.type}_{network_name(settings, short=True)}_{row['precision']}"
    write_record(own.results, name, pd.DataFrame([{**row, **made}]), pd.DataFrame([shown_row(row)]), notes)


if __name__ == "__main__":
    run_command(main)

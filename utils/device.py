"""Where and how the arithmetic runs: device, precision, compilation, each with the reason for the choice."""

import contextlib
import dataclasses
import importlib.util
import itertools
import os
import platform
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from utils.errors import UserError
from utils.text import tell

Placed = TypeVar("Placed", bound=nn.Module)

# Of cuBLAS's workspaces these make its sums repeat bit for bit; the first one is the faster.
WORKSPACES = (":4096:8", ":16:8")
# Limits on the instructions that oneDNN takes ($ONEDNN_MAX_CPU_ISA) which leave it none for bf16.
NO_BF16_LIMITS = ("SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI")
PROBE = 0.01  # seconds for each precision of a probe, of which there are two and a warm-up of both


@dataclass(frozen=True)
class Execution:
    """The chosen device and path. `reasons` are the lines that say which path was taken and why.

    With `graph` a training step is launched as one CUDA graph (`engine.steps`).
    """

    device: torch.device
    bf16: bool
    compile: bool
    reasons: tuple[str, ...]
    graph: bool = False

    def predict_batch(self, size: int) -> int:
        """Return how many images of `size` pixels a side pass the network at once, without gradients.

        On a CPU 128 of 32 pixels stay in the cache and run 2.4 times as fast as 500; larger ones are fewer.
        """
        most = 128 if self.device.type == "cpu" else 1000
        return min(max(most * 32**2 // max(size, 1) ** 2, 16 if self.device.type == "cpu" else 256), most)

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """Return the context in which a network's forward pass runs."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)

    def full_precision(self) -> "Execution":
        """Return the same without autocast: a classifier on cached features gains nothing from bf16."""
        return dataclasses.replace(self, bf16=False)

    def without_network(self) -> "Execution":
        """Return the same for features that are given: classifiers alone are computed, in full precision."""
        kept = [line for line in self.reasons if not line.startswith(("precision:", "step:"))]
        reasons = (*kept[:1], "precision: fp32 (features are given: no network runs)", *kept[1:])
        return dataclasses.replace(self, bf16=False, compile=False, reasons=reasons)

    def place(self, model: Placed) -> Placed:
        """Move a network to the device, channels-last, its backbone `features` compiled (its keys keep their names).

        A deep copy of a compiled network would compute with the weights of the original.
        """
        model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.compile:
            # Training and prediction share it: both call `features`. Each shape and each mode is compiled once.
            model.features = torch.compile(model.features, dynamic=False)  # type: ignore[assignment, arg-type]
        return model


def choose_execution(
    device: str,
    gpu: int,
    amp: str,
    compile_mode: str,
    threads: int | None = None,
    processes: int = 1,
    *,
    deterministic: bool = False,
) -> Execution:
    """Resolve `--device auto|cpu|cuda --gpu N --amp auto|off|bf16 --compile auto|graph|on|off` for this machine.

    `threads` caps the threads of a CPU run; `processes` on this machine need a GPU each. `deterministic` makes runs on
    a CUDA device repeat bit for bit, which they do on a CPU anyway. Raises UserError where CUDA or a GPU asked for is
    absent, and where the environment asks cuBLAS for what cannot be repeated.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError(
            "--device cuda: PyTorch finds no CUDA device here; use --device cpu, or install a CUDA build and driver"
        )
    if device == "cpu" or not cuda:
        if threads:
            torch.set_num_threads(threads)
        why = "asked for" if device == "cpu" else "no CUDA device was found"
        return execution_on_cpu(why, amp, compile_mode, deterministic)
    count = torch.cuda.device_count()
    if processes > count:
        raise UserError(
            f"{processes} processes were started on a machine with {count} CUDA devices; start one for each at most "
            "(--nproc_per_node), or add --device cpu"
        )
    if gpu >= count:
        raise UserError(f"--gpu {gpu}: this machine has {count} CUDA devices, numbered from 0")
    return execution_on_cuda(gpu, amp, compile_mode, deterministic)


def execution_on_cpu(why: str, amp: str, compile_mode: str, deterministic: bool) -> Execution:
    """Return how a CPU computes, which was chosen for the reason `why`."""
    if compile_mode == "graph":
        raise UserError("--compile graph: a CUDA graph needs a CUDA device; use --compile auto or off")
    units = has_bf16_units()
    bf16, compiled = amp == "bf16" or (amp == "auto" and units), compile_mode == "on"
    if amp == "bf16" and not units:
        warn_of_slow_bf16(bf16_gain())
    units_why = "the CPU has bf16 units" if units else "the CPU has no bf16 units"
    reasons = [
        f"device: CPU with {torch.get_num_threads()} threads ({why})",
        f"precision: {'bf16 autocast' if bf16 else 'fp32'} ({units_why}, --amp {amp})",
        f"step: {'compiled (asked for)' if compiled else 'eager (the default on a CPU)'}, channels last",
    ]
    if deterministic:
        reasons.append("repeatable: bit for bit with as many threads, as every run on a CPU; no need to ask for it")
    return Execution(torch.device("cpu"), bf16, compiled, tuple(reasons))


def has_bf16_units() -> bool:
    """Tell whether the CPU has instructions for bf16 (AVX512_BF16, AMX) that oneDNN may use.

    Only the hardware decides, no measurement: a run that is resumed, and all of several processes, decide alike.
    """
    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return any(supported is not None and supported() for supported in asked) and limit not in NO_BF16_LIMITS


@torch.inference_mode()
def bf16_gain() -> float:
    """Return how many times as fast as in fp32 a 3 x 3 convolution is in bf16 on this CPU, in about 50 ms."""
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.rand(shape, generator=generator) for shape in ((4, 32, 16, 16), (32, 32, 3, 3)))
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        given = [tensor.to(dtype, memory_format=torch.channels_last) for tensor in (images, weight)]
        times = [time.perf_counter()]
        while len(times) < 7 or times[-1] - times[1] < PROBE:  # the first one chooses how to compute
            nn.functional.conv2d(given[0], given[1], padding=1)
            times.append(time.perf_counter())
        seconds.append(min(after - before for before, after in itertools.pairwise(times)))
    return seconds[0] / seconds[1]


def warn_of_slow_bf16(gain: float) -> None:
    """Say on standard error where bf16, which was asked for, is slower than fp32 on this CPU."""
    if gain < 1:
        tell(
            f"warning: --amp bf16: this CPU has no bf16 units; a convolution takes {1 / gain:.1f} times as long "
            "as in fp32; leave the flag out",
            file=sys.stderr,
            flush=True,
        )


def execution_on_cuda(gpu: int, amp: str, compile_mode: str, deterministic: bool) -> Execution:
    """Return how the CUDA device `gpu` computes, which becomes the current one."""
    repeat_bits(deterministic)
    torch.cuda.set_device(gpu)
    # PyTorch lets fp32 convolutions run in TF32, with the mantissa of half precision: fp32 shall mean fp32 here.
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    supported = torch.cuda.is_bf16_supported(including_emulation=False)
    bf16 = amp == "bf16" or (amp == "auto" and supported)
    compiled, graph = compile_mode == "on", compile_mode in ("auto", "graph")
    if compiled and (lacking := compiler_lacks()):
        raise UserError(f"--compile on: {lacking}; use --compile auto or off")
    how = "compiled" if compiled else "one CUDA graph" if graph else "eager"
    bf16_why = "the GPU has bf16" if supported else "the GPU has no bf16"
    reasons = [
        f"device: {torch.cuda.get_device_name(gpu)} (cuda:{gpu})",
        f"precision: {'bf16 autocast' if bf16 else 'fp32 (IEEE, no TF32)'} ({bf16_why}, --amp {amp})",
        f"step: {how} (--compile {compile_mode}), channels last",
    ]
    if deterministic:
        reasons.append("repeatable: bit for bit on this device and these versions (--deterministic), which takes time")
    return Execution(torch.device("cuda", gpu), bf16, compiled, tuple(reasons), graph)


def repeat_bits(deterministic: bool) -> None:
    """Let CUDA repeat its results bit for bit from here on, or choose what is fastest; call it before CUDA starts.

    Either way everything is set, so that a call leaves nothing to the next one. PyTorch's switch also has its compiler
    choose kernels without measuring them. Raises UserError for a workspace of cuBLAS, in the environment, that does not
    repeat.
    """
    if deterministic:
        workspace = os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACES[0])
        if workspace not in WORKSPACES:
            raise UserError(
                f"--deterministic: CUBLAS_WORKSPACE_CONFIG is {workspace!r}; unset it, or use {' or '.join(WORKSPACES)}"
            )
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    # Every step has the same shapes: trying the algorithms of a convolution pays, but may end differently each time.
    torch.backends.cudnn.benchmark = not deterministic


def compiler_lacks() -> str | None:
    """Return what torch.compile would miss on the current CUDA device, None where it has all."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "there is no C compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed"
    if torch.cuda.get_device_capability() < (7, 0):
        return "the GPU is older than compute capability 7.0"
    return None


def device_name(device: torch.device) -> str:
    """Return the hardware's own name, for the records."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in _cpu_info():
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def _cpu_info() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []

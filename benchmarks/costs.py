"""Time and memory of a piece of work."""

import contextlib
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Forget the highest memory use so far, and give what is free back to the system."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # Where there is no glibc, or no Linux, or it is not allowed, `memory` tells less or nothing.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # a freed block that the allocator keeps would hide the next one
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak of the resident set; see proc(5)


def memory(device: torch.device) -> tuple[float, float]:
    """Return the memory in use and its peak since `reset_peak`, in MB: resident set or CUDA tensors; NaN if unknown."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 1e6, torch.cuda.max_memory_allocated(device) / 1e6
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return np.nan, np.nan
    kilobytes = {line.split(":")[0]: float(line.split()[1]) for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return kilobytes["VmRSS"] * 1.024e-3, kilobytes["VmHWM"] * 1.024e-3


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of the fastest of `repeats` runs, after one to warm up."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])

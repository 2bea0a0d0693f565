"""What one process needs of the others, started by `torchrun`.

Without a process group each function does what is right for one process alone. Every process must call what talks to
the others (`sum_over_processes`, `gather_rows`, `from_main`, `wait_for_all`), in the same order.
"""

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import Tensor

from utils.errors import UserError

Value = TypeVar("Value")

# How long a process waits for another: the first may write a data set's features while the others wait.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this is, over all machines (`rank`, `count`) and on this one (`local_*`)."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1


def launch_of(environment: dict[str, str] | os._Environ[str] = os.environ) -> Launch:
    """Return what torchrun says of this process; that it is alone where torchrun did not start it.

    Raises UserError where the variables contradict one another.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return Launch()
    values = [environment.get(name, environment[name.removeprefix("LOCAL_")]) for name in names]
    if not all(value.isdecimal() for value in values):
        raise UserError(f"{', '.join(names)} must be numbers, as torchrun sets them, not {', '.join(values)}")
    launch = Launch(*map(int, values))
    if not (launch.rank < launch.count and launch.local_rank < launch.local_count <= launch.count):
        raise UserError(f"{', '.join(names)} do not fit together: {', '.join(values)}; start with torchrun")
    return launch


def connect(launch: Launch, device: torch.device) -> None:
    """Join the processes of a launch: with NCCL where they compute on CUDA, else with gloo. One alone joins nothing.

    From then on only the first prints to standard output.
    """
    if launch.count == 1 or _joined():
        return
    if launch.rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # the first process speaks for all
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        torch.distributed.init_process_group(
            backend, timeout=PATIENCE, device_id=device if device.type == "cuda" else None
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"the {launch.count} processes cannot reach one another: {error}; see torchrun --help"
        ) from error


def disconnect() -> None:
    """Leave the others, if there are any."""
    if _joined():
        torch.distributed.destroy_process_group()


def _joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def process_rank() -> int:
    """Return the number of this process, from 0."""
    return torch.distributed.get_rank() if _joined() else 0


def process_count() -> int:
    """Return the number of processes that work together."""
    return torch.distributed.get_world_size() if _joined() else 1


def is_main() -> bool:
    """Tell whether this is the process that writes files and prints."""
    return process_rank() == 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, the same on each; without a process group, `tensor` itself.

    Every process must call it, with the same shape and dtype. Nothing waits on the host for a CUDA tensor.
    """
    if not _joined():
        return tensor
    total = tensor.clone()
    torch.distributed.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes one behind the other, (processes * n, ...); all n must be the same."""
    if not _joined():
        return rows
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(process_count())]
    torch.distributed.all_gather(parts, rows)
    return torch.cat(parts)


def from_main(value: Value) -> Value:
    """Return the main process's `value`, which must be made of tensors on the CPU and plain Python values."""
    if not _joined():
        return value
    holder = [value if is_main() else None]
    device = torch.device("cuda", torch.cuda.current_device()) if torch.distributed.get_backend() == "nccl" else None
    torch.distributed.broadcast_object_list(holder, src=0, device=device)
    return holder[0]  # type: ignore[return-value]


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if _joined():
        torch.distributed.barrier()

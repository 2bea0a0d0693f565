"""What one process needs of the others, started by `torchrun`.

Without a process group each function does what is right for one process alone. Every process must call what talks to
the others (`sum_over_processes`, `gather_rows`, `from_main`, `wait_for_all`), in the same order.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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
    if launch.count == 1 or _group():
        return
    if launch.rank > 0:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # the first process speaks for all
    import torch.distributed

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
    if group := _group():
        group.destroy_process_group()


def _group() -> Any:
    """Return PyTorch's module of what processes do together, None where this one has joined no others.

    Who has joined has imported it: a command that ends before its work, and needs no PyTorch, does not for this.
    """
    module = sys.modules.get("torch.distributed")
    return module if module is not None and module.is_available() and module.is_initialized() else None


def process_rank() -> int:
    """Return the number of this process, from 0."""
    group = _group()
    return group.get_rank() if group else 0


def process_count() -> int:
    """Return the number of processes that work together."""
    group = _group()
    return group.get_world_size() if group else 1


def is_main() -> bool:
    """Tell whether this is the process that writes files and prints."""
    return process_rank() == 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Return the sum of `tensor` over all processes, the same on each; without a process group, `tensor` itself.

    Every process must call it, with the same shape and dtype. Nothing waits on the host for a CUDA tensor.
    """
    group = _group()
    if not group:
        return tensor
    total = tensor.clone()
    group.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows (n, ...) of all processes one behind the other, (processes * n, ...); all n must be the same."""
    group = _group()
    if not group:
        return rows
    rows = rows.contiguous()
    gathered = rows.new_empty((process_count() * len(rows), *rows.shape[1:]))
    group.all_gather(list(gathered.split(len(rows))), rows)
    return gathered


def from_main(value: Value) -> Value:
    """Return the main process's `value`, which must be made of tensors on the CPU and plain Python values."""
    group = _group()
    if not group:
        return value
    import torch

    holder = [value if is_main() else None]
    device = torch.device("cuda", torch.cuda.current_device()) if group.get_backend() == "nccl" else None
    group.broadcast_object_list(holder, src=0, device=device)
    return holder[0]  # type: ignore[return-value]


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if group := _group():
        group.barrier()

"""One network on many processes: gradients averaged, batch norm over the whole batch or each process's part."""

import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from models.batch_norm.synchronised import synchronise_batch_norm
from utils.device import Execution
from utils.distributed import process_count, sum_over_processes


def with_batch_norm(model: nn.Module, execution: Execution, synchronised: bool) -> None:
    """Let a network's batch norm work over all processes, where there are many; to be called before it is placed."""
    if process_count() > 1 and synchronised:
        synchronise_batch_norm(model, execution.device)


def data_parallel(model: nn.Module, execution: Execution) -> nn.Module:
    """Return what is called in training: the network itself, or its wrapper that averages gradients over processes.

    All start from the weights of the first. Buffers stay each process's own until `average_buffers`.
    """
    if process_count() == 1:
        return model
    ids = [execution.device.index] if execution.device.type == "cuda" else None
    known = inspect.signature(DistributedDataParallel).parameters
    older_name = "forward_sync_buffers" not in known
    own_buffers: dict[str, Any] = {"broadcast_buffers" if older_name else "forward_sync_buffers": False}
    return DistributedDataParallel(model, device_ids=ids, **own_buffers)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Replace every running statistic by its mean over the processes, so that all evaluate, and save, one network."""
    if process_count() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.copy_(sum_over_processes(buffer) / process_count())

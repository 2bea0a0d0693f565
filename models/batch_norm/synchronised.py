"""Batch norm whose statistics are those of a batch that lies in parts on many processes.

PyTorch's SyncBatchNorm does that on CUDA alone; this one does it where processes talk over gloo, so that training on
many processes can be compared with training on one without a GPU.
"""

from typing import Any

import torch
from torch import Tensor, nn

from utils.distributed import process_count, sum_over_processes


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; the gradient of the sum of their losses with respect to each part."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return sum_over_processes(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return sum_over_processes(gradients[0].contiguous())


class SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over (B, H, W) of all processes' images, for any number of images here, none included.

    Every process must call it in training. In evaluation, and alone, it is `nn.BatchNorm2d`, whose state it has.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W) per channel."""
        if not self.training or process_count() == 1:
            return super().forward(x)
        values = x.float()  # under autocast too: sums of many rounded numbers
        count = SumOverProcesses.apply(values.new_tensor([values.numel() / values.shape[1]]))
        mean = SumOverProcesses.apply(values.sum(dim=(0, 2, 3))) / count
        centred = values - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum(dim=(0, 2, 3))) / count
        self.note(mean.detach(), variance.detach(), float(count))
        scaled = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (scaled * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def note(self, mean: Tensor, variance: Tensor, count: float) -> None:
        """Move the running statistics towards those of a batch; the variance becomes a sample's, as in PyTorch."""
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Return a network whose every batch norm takes its statistics over all processes; parameters and buffers are
    shared with the given one."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            new = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum)
            new.load_state_dict(child.state_dict())
            new.train(child.training)
            module.add_module(name, new)
        else:
            synchronise_batch_norm(child, device)
    return module

"""One epoch of training and one pass of prediction, for both stages: the only loops over batches there are."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.device import DeviceImages, mix64
from utils.execution import Execution
from utils.progress import show_progress

Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class EpochResult:
    """Means over one epoch, arrays of shape () for one network and (H,) for a bank of H heads.

    `diverged_at` is the first step (from 1) whose loss or update was not finite, 0 where all were.
    """

    loss: np.ndarray
    accuracy: np.ndarray
    images: int
    diverged_at: np.ndarray


def mixup_shares(alpha: float, steps: int, seed: int, epoch: int) -> Tensor:
    """Draw one share lambda ~ Beta(alpha, alpha) a step (Zhang et al., "mixup", ICLR 2018): (steps,) float32."""
    generator = np.random.default_rng([mix64(seed & (2**64 - 1)), epoch])
    return torch.from_numpy(generator.beta(alpha, alpha, steps).astype(np.float32))


def train_epoch(
    module: nn.Module,
    batches: Batches,
    steps: int,
    optimizer: Optimizer,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    execution: Execution,
    *,
    mixup: Tensor | None = None,
    message: str = "training",
) -> EpochResult:
    """Train `module` on `steps` batches of (inputs (B, ...), labels (B,)).

    `module` gives logits (B, K) and `loss_function` a scalar, or, for a bank of H heads, (H, B, K) and (H,). Losses and
    counts stay on the device and are read once, at the end. `mixup` (steps,) mixes each batch with itself shifted by
    one, which in a shuffled epoch is a random partner; accuracy then counts the first of the two labels.
    """
    losses: list[Tensor] = []
    correct: Tensor | int = 0
    shares = None if mixup is None else mixup.to(execution.device)
    images = 0
    for step, (inputs, labels) in enumerate(show_progress(batches, message, steps)):
        if shares is not None:
            inputs = shares[step] * inputs + (1 - shares[step]) * inputs.roll(1, 0)
        with execution.autocast():
            logits = module(inputs)
        logits = logits.float()
        loss = loss_function(logits, labels)
        if shares is not None:
            loss = shares[step] * loss + (1 - shares[step]) * loss_function(logits, labels.roll(1, 0))
        optimizer.zero_grad(set_to_none=True)
        loss.sum().backward()  # heads of a bank share nothing: each gets the gradient of its own loss
        optimizer.step()
        losses.append(loss.detach() * len(labels))
        correct = correct + (logits.detach().argmax(dim=-1) == labels).sum(dim=-1)
        images += len(labels)
    total = torch.stack(losses)  # (steps,) or (steps, H)
    # A last update that overflows shows in no loss of this epoch: it counts as a step of its own.
    finite = torch.stack([_finite(parameter, total.ndim - 1) for parameter in module.parameters()]).all(dim=0)
    bad = torch.cat([~total.isfinite(), ~finite[None]]).cpu().numpy()
    return EpochResult(
        loss=(total.sum(dim=0) / images).cpu().numpy(),
        accuracy=(100 * torch.as_tensor(correct).double() / images).cpu().numpy(),
        images=images,
        diverged_at=np.where(bad.any(axis=0), np.minimum(bad.argmax(axis=0) + 1, steps), 0),
    )


def _finite(parameter: Tensor, bank_dims: int) -> Tensor:
    """Tell whether a parameter is finite, for each head of a bank."""
    return parameter.detach().reshape(*parameter.shape[:bank_dims], -1).isfinite().all(dim=-1)


@torch.no_grad()
def predict(
    function: Callable[[Tensor], Tensor],
    images: DeviceImages,
    execution: Execution,
    *,
    mirrored: bool = False,
    view: tuple[int, int] | None = None,
    batch_size: int | None = None,
    message: str = "predicting",
) -> Tensor:
    """Apply `function` (a model or its `features`, in evaluation mode) to every image of a split: (N, ...) float32.

    Row i belongs to image i of the split. Images are plain, `mirrored`, or augmented as `view` = (seed, epoch) says.
    """
    size = batch_size or execution.predict_batch
    rows = torch.arange(len(images), device=execution.device).split(size)
    outputs = []
    for batch in show_progress(rows, message, len(rows)):
        # A last batch of another shape would be compiled for itself: it is filled up, and the filling cut off again.
        filling = batch[-1:].expand(size - len(batch) if execution.compile else 0)
        full = torch.cat([batch, filling])
        pixels = images.plain(full, mirrored) if view is None else images.augmented(full, *view)
        with execution.autocast():
            outputs.append(function(pixels)[: len(batch)].float())
    return torch.cat(outputs)

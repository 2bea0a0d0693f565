"""One epoch of training and one pass of prediction, for both stages: the only loops over batches there are."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.image_source import ImageSource
from engine.closed_step import closed_steps
from engine.steps import EagerSteps, StepGraph
from utils.device import Execution
from utils.distributed import gather_rows, process_count, process_rank, sum_over_processes
from utils.errors import memory_for
from utils.hashing import mix64
from utils.progress import show_progress

Batches = Iterable[tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EpochResult:
    """Means over one epoch, arrays of shape () for one network and (H,) for H stacked heads.

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


@dataclass(frozen=True)
class EpochOptions:
    """What is not usual in an epoch.

    `mixup` (steps,) mixes each batch with itself shifted by one, which in a shuffled epoch is a random partner;
    accuracy then counts the first of the two labels. `batch_sizes` (steps,) are those over all processes where each has
    a part of every batch, and the module averages their gradients (`engine.data_parallel`); without them this process
    has all there is. `max_norm` clips the norm of all gradients together. `graph` launches a step at once, where one
    process trains one network. `message` stands at the progress bar.
    """

    mixup: Tensor | None = None
    batch_sizes: Sequence[int] | None = None
    max_norm: float | None = None
    graph: StepGraph | None = None
    message: str = "training"


USUAL = EpochOptions()


def train_epoch(
    module: nn.Module,
    batches: Batches,
    steps: int,
    optimizer: Optimizer,
    loss_function: LossFunction,
    execution: Execution,
    options: EpochOptions = USUAL,
) -> EpochResult:
    """Train `module` on `steps` batches of (inputs (B, ...), labels (B,)).

    `module` gives logits (B, K) and `loss_function` a scalar, or, for H stacked heads, (H, B, K) and (H,). Losses and
    counts stay on the device and are read once, at the end. With `options.batch_sizes` the result is that of all
    processes. Linear heads go without autograd where the loss says its gradient (`engine.closed_step`).
    """
    shares = None if options.mixup is None else options.mixup.to(execution.device)
    images = 0
    closed = None if execution.bf16 or is_unusual(options) else closed_steps(module, optimizer, loss_function)

    def train_step(
        inputs: Tensor, labels: Tensor, share: Tensor | None, weight: float | None = None
    ) -> tuple[Tensor, Tensor]:
        if share is not None:
            inputs = share * inputs + (1 - share) * inputs.roll(1, 0)
        with execution.autocast():
            logits = module(inputs)
        logits = logits.float()
        loss = batch_loss(logits, labels, loss_function, share)
        optimizer.zero_grad(set_to_none=True)
        # Stacked heads share nothing: each gets the gradient of its own loss.
        (loss.sum() if weight is None else loss * weight).backward()
        if options.max_norm is not None:
            nn.utils.clip_grad_norm_(module.parameters(), options.max_norm)
        optimizer.step()
        return loss.detach() * len(labels), (logits.detach().argmax(dim=-1) == labels).sum(dim=-1)

    launcher = options.graph or closed or EagerSteps()
    with launcher.epoch(steps):
        for step, (inputs, labels) in enumerate(show_progress(batches, options.message, steps)):
            with memory_for(partial(shown_step, inputs), "--batch_size or --width"):
                share = None if shares is None else shares[step]
                # Averaged over the processes, these weights make the mean over the batch.
                sizes = options.batch_sizes
                weight = None if sizes is None else len(labels) * process_count() / sizes[step]
                launcher.run(partial(train_step, weight=weight), inputs, labels, share)
                images += len(labels)
    total, correct = launcher.totals()
    if options.batch_sizes is not None:
        total, correct, images = sum_over_processes(total), sum_over_processes(correct), sum(options.batch_sizes)
    return epoch_result(module, total, correct, images)


def is_unusual(options: EpochOptions) -> bool:
    """Tell whether an epoch has what only the general step does."""
    return options != EpochOptions(message=options.message)


def shown_shape(tensor: Tensor) -> str:
    """Return a tensor's shape for a message, such as "64 x 3 x 224 x 224"."""
    return " x ".join(map(str, tensor.shape))


def shown_step(inputs: Tensor) -> str:
    """Return what a training step is called in a message."""
    return f"a training step on {shown_shape(inputs)} inputs"


def batch_loss(logits: Tensor, labels: Tensor, loss_function: LossFunction, share: Tensor | None) -> Tensor:
    """Return the loss of a batch, of which `share` () counts for its labels and the rest for those it is mixed with."""
    loss = loss_function(logits, labels)
    if share is not None:
        loss = share * loss + (1 - share) * loss_function(logits, labels.roll(1, 0))
    if len(labels) == 0:  # the last batch had no image for this process, which answers the others all the same
        return logits.sum()
    return loss


def epoch_result(module: nn.Module, total: Tensor, correct: Tensor, images: int) -> EpochResult:
    """Return the means over an epoch from sums of losses, (steps,) or (steps, H), and of right answers, () or (H,)."""
    # A last update that overflows shows in no loss of this epoch: it counts as a step of its own.
    finite = torch.stack([_finite(parameter, total.ndim - 1) for parameter in module.parameters()]).all(dim=0)
    bad = torch.cat([~total.isfinite(), ~finite[None]]).cpu().numpy()
    return EpochResult(
        loss=(total.sum(dim=0) / images).cpu().numpy(),
        accuracy=(100 * correct.double() / images).cpu().numpy(),
        images=images,
        diverged_at=np.where(bad.any(axis=0), np.minimum(bad.argmax(axis=0) + 1, len(total)), 0),
    )


def _finite(parameter: Tensor, stacked_dims: int) -> Tensor:
    """Tell whether a parameter is finite, for each of stacked heads: whether its smallest and largest values are."""
    values = parameter.detach().reshape(*parameter.shape[:stacked_dims], -1)
    low, high = values.aminmax(dim=-1)
    return low.isfinite() & high.isfinite()


@torch.no_grad()
def predict_blocks(
    function: Callable[[Tensor], Tensor],
    images: ImageSource,
    execution: Execution,
    *,
    mirrored: bool = False,
    view: tuple[int, int] | None = None,
    batch_size: int | None = None,
    message: str = "predicting",
) -> Iterator[Tensor]:
    """Apply `function` (a model or its `features`, in evaluation mode) to every image of a split, in their order.

    Yields float32 rows (n, ...) of consecutive images. Of many processes each computes a part of every block, and all
    get all of it: every image is computed once. Images are plain, `mirrored`, or augmented as `view` = (seed, epoch)
    says.
    """
    size = batch_size or execution.predict_batch(images.size)
    block = size * process_count()
    starts = range(0, max(len(images), 1), block)
    # A last batch of another shape would be compiled for itself, and of many processes each needs as much as the
    # others: it is filled up with the last image, and the filling cut off again.
    mine = []
    for start in starts:
        count = min(block, len(images) - start)
        count = block if execution.compile and count else count + -count % process_count()
        rows = torch.arange(start, start + count, device=images.rows_device).clamp(max=len(images) - 1)
        mine.append(rows.tensor_split(process_count())[process_rank()])
    batches = images.view_batches(mine, view, mirrored)
    for start, pixels in zip(starts, show_progress(batches, message, len(mine)), strict=True):
        with memory_for(f"{message}, on {shown_shape(pixels)} pixels", "--width, --image_size or --workers"):
            with execution.autocast():
                output = function(pixels).float()
            rows = gather_rows(output)[: len(images) - start]
        yield rows


def predict(
    function: Callable[[Tensor], Tensor],
    images: ImageSource,
    execution: Execution,
    *,
    mirrored: bool = False,
    view: tuple[int, int] | None = None,
    batch_size: int | None = None,
    message: str = "predicting",
) -> Tensor:
    """Return what `predict_blocks` yields as one tensor (N, ...): row i belongs to image i of the split."""
    blocks = predict_blocks(
        function, images, execution, mirrored=mirrored, view=view, batch_size=batch_size, message=message
    )
    with memory_for(f"{message}: rows of {len(images)} images", "--width, or use fewer images"):
        return torch.cat(list(blocks))

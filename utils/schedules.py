"""Learning rates over the epochs, constant within one."""

import math
from collections.abc import Callable


def cosine_lr(base: float, epoch: int, epochs: int) -> float:
    """Return the learning rate of `epoch` (from 0): half a cosine from `base` towards 0."""
    return base * (1 + math.cos(math.pi * epoch / epochs)) / 2


def warmup_cosine_lr(base: float, epoch: int, epochs: int) -> float:
    """Return half of `base` in the first epoch, then half a cosine from `base` to 0 in the last (GALA's code)."""
    if epoch == 0:
        return base / 2
    return base * (1 + math.cos(math.pi * (epoch - 1) / max(epochs - 2, 1))) / 2


def cosine_to_zero_lr(base: float, epoch: int, epochs: int) -> float:
    """Return the rate that `cosine_lr` has an epoch later: 0 in the last one, but `base` in a single one.

    It is PyTorch's CosineAnnealingLR over `epochs`, where it is stepped before each epoch (Weight Balancing's code).
    """
    return base if epochs == 1 else cosine_lr(base, epoch + 1, epochs)


def with_warmup(
    schedule: Callable[[float, int, int], float], warmup: int, base: float, epoch: int, epochs: int
) -> float:
    """Return a learning rate that rises in equal steps over `warmup` epochs, then follows a schedule over the rest."""
    if epoch < warmup:
        return base * (epoch + 1) / (warmup + 1)
    return schedule(base, epoch - warmup, epochs - warmup)


SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "cosine": cosine_lr,
    "warmup_cosine": warmup_cosine_lr,
    "cosine_to_zero": cosine_to_zero_lr,
}

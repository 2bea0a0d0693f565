"""Losses, one file an idea, and the one function that builds them."""

from collections.abc import Sequence

from torch import nn

from losses.cross_entropy import CrossEntropy
from losses.los import ONE_HOT, Target
from utils.errors import UserError

LOSSES = {"ce": lambda class_counts, target: CrossEntropy(target)}


def build_loss(name: str, class_counts: Sequence[int], target: Target = ONE_HOT) -> nn.Module:
    """Build the loss `name`: a module that maps logits (B, K) and labels (B,) to a scalar.

    `class_counts` (K,) are the training images of each class, for the losses that need them. `target` is what the true
    class and each other class should get: `losses.los` softens it.
    """
    if name not in LOSSES:
        raise UserError(f"unknown loss '{name}'; known: {', '.join(LOSSES)}")
    if len(class_counts) < 2 or min(class_counts) < 1:
        raise UserError("class_counts must name at least two classes and at least one training image of each")
    return LOSSES[name](class_counts, target)

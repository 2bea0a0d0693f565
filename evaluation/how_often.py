"""How often a training run on a CPU is evaluated: a rule that counts forward passes, so that every machine agrees."""

from fractions import Fraction
from math import ceil

SHARE = Fraction(1, 10)  # of the work of training, which evaluation may take
TRAINED = 3  # forward passes that a training image is worth: its own, and twice that for the gradients


def epochs_between(trained: int, tested: int, epochs: int) -> int:
    """Return the least number of epochs between evaluations at which they take at most a tenth of the training.

    An epoch trains on `trained` images, an evaluation passes `tested` ones through the network, mirrored ones included.
    A run of `epochs` is evaluated after the last one in any case.
    """
    return max(min(ceil(Fraction(tested) / (SHARE * TRAINED * max(trained, 1))), epochs), 1)

"""Focal loss: easy samples count less."""

from typing import ClassVar

from torch import Tensor

from losses.functional import Loss, add_constants, known_labels, log_rest, mean_of, true_class


class Focal(Loss):
    """Mean of -(1 - p_y)^gamma log p_y (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, eq. 4).

    p is the softmax of the logits, as in the long-tailed literature; the paper itself is about one sigmoid.
    """

    plain_logits: ClassVar[bool] = True
    gamma: Tensor

    def __init__(self, *, gamma: float = 2.0) -> None:
        super().__init__()
        add_constants(self, gamma=gamma)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        log_probability = logits.log_softmax(dim=1)
        known, labels = known_labels(labels)
        # exp(gamma log(1 - p)): the power of 1 - p itself has an infinite slope at p = 1 for gamma < 1.
        rest = log_rest(log_probability, true_class(logits, labels))
        factor = (self.gamma.to(logits.dtype) * rest).exp()
        return mean_of(-(factor * log_probability.gather(1, labels[:, None]))[:, 0], known)

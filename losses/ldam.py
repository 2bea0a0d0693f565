"""Label-distribution-aware margins: the rarer the class, the larger the margin its samples must keep."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from losses.class_balanced import effective_number_weights
from losses.closed_gradient import SoftmaxForm, one_hot_form
from losses.functional import Loss, add_constants, true_class


class LDAM(Loss):
    """Cross-entropy with scale * Delta_y taken off the true class's logit (Cao et al., "Learning Imbalanced Datasets
    with Label-Distribution-Aware Margin Loss", NeurIPS 2019).

    Delta_j is in proportion to n_j^(-1/4), the largest equal to `max_margin`. The logits are those of a cosine head,
    already multiplied by its `scale`; the margin is given before that scale.
    """

    plain_logits: ClassVar[bool] = False
    margins: Tensor

    def __init__(self, class_counts: Sequence[int], *, max_margin: float = 0.5, scale: float = 30.0) -> None:
        super().__init__()
        margins = torch.as_tensor(class_counts, dtype=torch.float64) ** -0.25
        add_constants(self, margins=scale * max_margin * margins / margins.max())

    def with_margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Take the margin of each sample's class off its true logit, (B, K)."""
        return logits - self.margins.to(logits.dtype) * true_class(logits, labels)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        return F.cross_entropy(self.with_margin(logits, labels), labels)

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        return one_hot_form(constants["margins"], margin=constants["margins"])


class WeightedLDAM(LDAM):
    """LDAM in its phase of deferred re-weighting (DRW): sum w_y l / sum w_y over the batch, w from
    `effective_number_weights` (Cao et al., NeurIPS 2019, algorithm 1; these weights are its code's)."""

    weights: Tensor

    def __init__(
        self, class_counts: Sequence[int], *, max_margin: float = 0.5, scale: float = 30.0, beta: float = 0.9999
    ) -> None:
        super().__init__(class_counts, max_margin=max_margin, scale=scale)
        add_constants(self, weights=effective_number_weights(class_counts, beta))

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Map logits (B, K) and labels (B,) to a scalar in nats."""
        return F.cross_entropy(self.with_margin(logits, labels), labels, self.weights.to(logits.dtype))

    @staticmethod
    def softmax_form(constants: Mapping[str, Tensor]) -> SoftmaxForm:
        """Return which cross-entropies H losses are, of their buffers (H, ...) (`losses.closed_gradient`)."""
        margins, weights = constants["margins"], constants["weights"]
        return one_hot_form(margins, margin=margins, weights=weights, by_weights=weights.new_ones(len(weights), 1))

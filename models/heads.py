"""Classifiers that take the place of a network's `fc`. `methods.closed_form` has those that are computed.

A head maps features (B, d) to logits (B, K) and keeps `weight` (K, d) and `bias` (K,) under nn.Linear's names, so the
keys of a checkpoint stay `fc.weight` and `fc.bias`, followed by the head's own. What a method does not train has
`requires_grad=False`. Nothing in a forward pass depends on values, so heads of one kind can be stacked under `vmap`.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.linear_cosine import LinearCosine
from models.linear_head import Linear, nonzero_norms
from models.monotone_norms import MonotoneNorms
from models.neighbours import Neighbours
from utils.errors import UserError
from utils.parameters import check_given, constructor_parameters, keyword_parameters

__all__ = [
    "FROZEN_WEIGHT",
    "HEADS",
    "Cosine",
    "DisAlign",
    "LearnableWeightScaling",
    "Linear",
    "MarginCalibration",
    "MonotoneNorms",
    "Neighbours",
    "Normed",
    "ScaledLinear",
    "build_head",
    "head_parameters",
    "max_norm_",
    "max_norm_threshold",
    "nonzero_norms",
]


class Cosine(Linear):
    """z_k = s cos(w_k, f) for the rows w_k of a weight (K, d) and a learnt s > 0 (Gidaris and Komodakis, "Dynamic
    Few-Shot Visual Learning without Forgetting", CVPR 2018, section 3.2). A row or a feature vector of zeros has
    cosine 0.

    There is no bias in it. `bias` stays in the state, as frozen zeros, so that the checkpoints of all heads have one
    layout and evaluation can read any of them as a linear classifier.
    """

    scale: Tensor

    def __init__(self, linear: nn.Linear, *, scale: float = 10.0) -> None:
        super().__init__(linear)
        self.bias.requires_grad_(False).zero_()
        self.add_scale(self.full(scale))

    def add_scale(self, scale: Tensor) -> None:
        """Keep s, a scalar, as a parameter."""
        self.scale = nn.Parameter(scale)

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d), each of length s."""
        return self.scale * self.weight / nonzero_norms(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return self.scale * F.linear(features / nonzero_norms(features), self.weight / nonzero_norms(self.weight))


class Normed(Cosine):
    """The cosine classifier with a fixed s, for losses that add margins to the cosine: LDAM (Cao et al., NeurIPS 2019)
    and Gaussian clouded logits (Li et al., CVPR 2022). The state keeps s, a scalar, as a buffer."""

    def __init__(self, linear: nn.Linear, *, scale: float = 30.0) -> None:
        super().__init__(linear, scale=scale)

    def add_scale(self, scale: Tensor) -> None:
        """Keep s, a scalar, as a buffer."""
        self.register_buffer("scale", scale)


class LearnableWeightScaling(Linear):
    """z_k = s_k (w_k f + b_k), only s (K,) trained, from 1 (Kang et al., "Decoupling Representation and Classifier for
    Long-Tailed Recognition", ICLR 2020, section 4.2). The paper scales w_k; its code, like this, the bias with it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.freeze()
        self.scale = nn.Parameter(self.full(1.0, self.out_features))

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d), each times its s_k."""
        return self.scale[:, None] * self.weight

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return self.scale * super().forward(features)


class ScaledLinear(Linear):
    """z_k = s_k (w_k f + b_k) with weight (K, d), bias and s (K,) all trained, s from 1 (Zhong et al., MiSLAS, CVPR
    2021, section 3.3: a classifier between re-training and learnable weight scaling).

    s has 5 times the learning rate of the rest, as in the released CIFAR-100-LT configuration (`lr_factor` 0.2).
    """

    rate_factors: ClassVar[dict[str, float]] = {"scale": 5.0}

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.scale = nn.Parameter(self.full(1.0, self.out_features))

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d), each times its s_k."""
        return self.scale[:, None] * self.weight

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return self.scale * super().forward(features)


class DisAlign(Linear):
    """z_k = c (s_k z0_k + m_k) + (1 - c) z0_k with the confidence c = sigmoid(v f + u) of the sample and the linear
    logits z0 (Zhang et al., "Distribution Alignment", CVPR 2021, section 3.3); s, m (K,), v (d,) and u are trained.

    s = 1 and m = 0 start it at the linear classifier. There v and u have no gradient, for c then mixes two equal
    logits, but s and m have one as long as c is not 0, and once they have moved v and u follow. v = 0 and u = 0 make
    every c 1/2 at the start, where the sigmoid is steepest. The released layer for classification differs: its
    v = 0.1 makes c about 0.998 on our CIFAR-100-LT features, which are not negative, so that v would hardly move; u is
    drawn at random; and it computes (1 + c s) z0 + c m, which starts at (1 + c) z0.
    """

    feature_powers: ClassVar[dict[str, int]] = {"weight": -1, "confidence_weight": -1}

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.freeze()
        self.scale = nn.Parameter(self.full(1.0, self.out_features))
        self.shift = nn.Parameter(self.full(0.0, self.out_features))
        self.confidence_weight = nn.Parameter(self.full(0.0, self.in_features))
        self.confidence_bias = nn.Parameter(self.full(0.0))

    def effective_weight(self) -> Tensor | None:
        """Return None instead of rows (K, d): the confidence mixes two classifiers anew for every image."""
        return None

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        plain = super().forward(features)
        confidence = torch.sigmoid(features @ self.confidence_weight + self.confidence_bias)[..., None]
        # s z0 + m and z0 mixed, written as a change of z0: exactly z0 at the start.
        return plain + confidence * ((self.scale - 1) * plain + self.shift)


class MarginCalibration(Linear):
    """z_k = s_k (w_k f + b_k) + m_k ||w_k||, s (K,) trained from 1 and m (K,) from 0 (Wang et al., "Margin Calibration
    for Long-Tailed Visual Recognition", ACML 2022, MARC): it shifts and stretches each class's margin d_k = z_k /
    ||w_k|| to s_k d_k + m_k."""

    feature_powers: ClassVar[dict[str, int]] = {"weight": -1, "shift": 1}

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.freeze()
        self.scale = nn.Parameter(self.full(1.0, self.out_features))
        self.shift = nn.Parameter(self.full(0.0, self.out_features))

    def effective_weight(self) -> Tensor | None:
        """Return the rows (K, d), each times its s_k."""
        return self.scale[:, None] * self.weight

    def forward(self, features: Tensor) -> Tensor:
        """Map features (B, d) to logits (B, K)."""
        return self.scale * super().forward(features) + self.shift * self.weight.norm(dim=-1)


# A constructor takes the linear classifier to start from, `class_counts` (K,) where it asks for them, and as keywords
# its parameters with their defaults.
HEADS: dict[str, Callable[..., Linear]] = {
    "linear": Linear,
    "cosine": Cosine,
    "normed": Normed,
    "lws": LearnableWeightScaling,
    "disalign": DisAlign,
    "marc": MarginCalibration,
    "scaled_linear": ScaledLinear,
    "samn": MonotoneNorms,
    "neighbours": Neighbours,
    "linear_cosine": LinearCosine,
}
FROZEN_WEIGHT = ("lws", "disalign", "marc")  # heads that train something else than the linear classifier's weights


def build_head(
    name: str, linear: nn.Linear, class_counts: Sequence[int] | None = None, **parameters: float | str
) -> nn.Linear:
    """Build the head `name` from the linear classifier (K, d), whose numbers are copied, on its device, in its dtype.

    `class_counts` (K,) are the training images of each class, for the heads that start from them; where the state is
    loaded afterwards they are not needed.

    `parameters` are the head's own; `head_parameters` tells which it has. Raises UserError for an unknown head, an
    unknown parameter or a value out of range.
    """
    check_given("head", name, parameters, head_parameters(name))
    if class_counts is not None and "class_counts" in constructor_parameters("head", name, HEADS):
        return HEADS[name](linear, torch.as_tensor(class_counts), **parameters)
    return HEADS[name](linear, **parameters)


def head_parameters(name: str) -> dict[str, float | str]:
    """Return the parameters of the head `name` with their defaults. Raises UserError for an unknown one."""
    return keyword_parameters("head", name, HEADS)


def max_norm_threshold(weight: Tensor, share: float = 0.1) -> Tensor:
    """Return min + share * (max - min) of the row norms of a weight (K, d), 0-d, or of each of a stack (H, K, d), (H,).

    The MaxNorm radius of Weight Balancing (Alshammari et al., CVPR 2022; its code's, with share 0.1). Raises UserError
    for a share out of [0, 1].
    """
    if not 0 <= share <= 1:
        raise UserError(f"--max_norm must be at least 0 and at most 1, not {share}")
    norms = weight.detach().norm(dim=-1)
    low, high = norms.amin(dim=-1), norms.amax(dim=-1)
    return low + share * (high - low)


@torch.no_grad()
def max_norm_(head: nn.Module, threshold: Tensor | float) -> None:
    """Scale the rows of `head.weight` that are longer than `threshold` down to it, in place (Weight Balancing, eq. 4).

    The weight may be (K, d) with a single threshold or a stack (H, K, d) with one for each, (H,); infinity for none.
    """
    weight = head.get_parameter("weight")
    limit = torch.as_tensor(threshold, device=weight.device, dtype=weight.dtype)[..., None, None]
    norms = weight.norm(dim=-1, keepdim=True)
    # Dividing a short row by its own length would shift it by a rounding error: it is multiplied by exactly 1.
    weight.mul_(torch.where(norms > limit, limit / norms, 1))

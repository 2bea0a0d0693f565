"""Classifiers that are computed from a linear one and from features, not trained.

Each takes the linear classifier (K, d), the features (N, d) of the training images, their labels (N,) and the training
images of each class (K,), whatever it needs of them, and returns a head that maps features (B, d) to logits (B, K).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from datasets.features import Features, in_memory
from losses.los import ONE_HOT, Target
from methods.class_sums import class_means
from methods.convex_fit import centre_and_scale
from methods.offsets import HeldOut, offsets, prior2posterior
from methods.proximal import proximal_los
from methods.ridge import ridge, simplex
from models.heads import Linear, Normed, nonzero_norms
from models.monotone_norms import MonotoneNorms
from models.neighbours import Neighbours
from utils.parameters import check_counts, check_given, constructor_parameters, keyword_parameters


def tau_norm(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    tau: float = 1.9,
    norm_bias: str = "keep",
) -> Linear:
    """Return the linear head (K, d) of rows w_k / ||w_k||^tau (Kang et al., ICLR 2020, section 4.2).

    Both defaults are Weight Balancing's, for its tuned features (Alshammari et al., CVPR 2022, table 1): its code
    leaves the bias as it is. With `norm_bias` "drop" there is none, as in the code of Kang et al. A row of zeros
    stays one.

    With "centre", which is ours, a norm counts relative to the geometric mean of all, so that the scale of the features
    decides nothing, and the bias is such that the mean of the features gets the logits that it had."""
    head = Linear(linear)
    with torch.no_grad():
        norms = nonzero_norms(head.weight)
        if norm_bias == "centre":
            norms = norms / norms.double().log().mean().exp().to(norms)
        head.weight.div_(norms.pow(tau))
        if norm_bias == "centre":
            change = linear.weight.detach().double() - head.weight.double()
            head.bias.add_((change @ centre_and_scale(features)[0].to(change)).to(head.bias))
        if norm_bias == "drop":
            head.bias.zero_()
    return head


def l2_norm(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    norm_bias: str = "keep",
) -> Linear:
    """Return the linear head (K, d) of rows of norm 1: tau-normalisation with tau = 1 (Kang et al., ICLR 2020; a
    baseline of Weight Balancing, Alshammari et al., CVPR 2022, table 1, which keeps the bias); with `norm_bias`
    "centre" of the geometric mean of the norms."""
    return tau_norm(linear, features, labels, class_counts, tau=1.0, norm_bias=norm_bias)


def tau_norm_centred(
    linear: nn.Linear, features: Features, labels: Tensor, class_counts: Tensor | Sequence[int], *, tau: float = 1.0
) -> Linear:
    """Return the linear head (K, d) of rows w_k / ||w_k||^tau for features that are centred on the mean m of the
    training images: its bias is minus their products with m, and stage 1's is left out (Kang et al., ICLR 2020, whose
    code has no bias; the centring is ours).

    Features after a ReLU are positive, so that every class has a share of each row's product with m: an offset that
    grows with the length of the row and says nothing about the image.
    """
    head = tau_norm(linear, features, labels, class_counts, tau=tau)
    with torch.no_grad():
        mean = centre_and_scale(features)[0].to(head.weight.device)
        head.bias.copy_(-head.weight.double() @ mean)
    return head


def ncm(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    scale: float = 30.0,
) -> Normed:
    """Return the nearest-class-mean classifier by cosine: a `normed` head whose rows are the means of the features
    (N, d) of each class, labels (N,) (Kang et al., ICLR 2020, section 4.2). `scale` decides no prediction, only
    confidences. Raises UserError for a class without an image among the labels."""
    head = Normed(linear, scale=scale)
    means = class_means("ncm", features, labels.to(head.weight.device), head.out_features)
    with torch.no_grad():
        head.weight.copy_(means)
    return head


def logit_adjust_posthoc(
    linear: nn.Linear, features: Features, labels: Tensor, class_counts: Tensor | Sequence[int], *, tau: float = 1.0
) -> Linear:
    """Return the linear head (K, d) with b_k - tau log pi_k, pi the share of each class in the training set (Menon et
    al., "Long-Tail Learning via Logit Adjustment", ICLR 2021, equation 9)."""
    head = Linear(linear)
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    with torch.no_grad():
        head.bias.sub_((tau * (counts / counts.sum()).log()).to(head.bias))
    return head


def samn_start(
    linear: nn.Linear, features: Features, labels: Tensor, class_counts: Tensor | Sequence[int]
) -> MonotoneNorms:
    """Return the `samn` head (K, d) as its training starts: the directions of the linear classifier's rows, of lengths
    that fall with class size (Zhang et al., CVPR 2026, arXiv 2606.02526)."""
    return MonotoneNorms(linear, torch.as_tensor(class_counts))


def knn(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    *,
    scale: float = 14.3,
) -> Neighbours:
    """Return the `neighbours` head (K, d) that keeps the features (N, d) with their labels (N,): votes of the nearest
    ones over the class counts (Wu et al., CVPR 2018, arXiv 1805.01978). UserError where they are too many to keep."""
    head = Neighbours(linear, scale=scale)
    head.keep(in_memory(features), labels, class_counts)
    return head


# (linear, features, labels, class_counts, **parameters) -> head, with `target` or `held_out` before the parameters
# where it is asked for; call them through `build_closed_form`, which checks.
CLOSED_FORM: dict[str, Callable[..., Linear]] = {
    "tau_norm": tau_norm,
    "l2_norm": l2_norm,
    "ncm": ncm,
    "logit_adjust_posthoc": logit_adjust_posthoc,
    "samn_start": samn_start,
    "proximal_los": proximal_los,
    "tau_norm_centred": tau_norm_centred,
    "prior2posterior": prior2posterior,
    "offsets": offsets,
    "ridge": ridge,
    "simplex": simplex,
    "knn": knn,
}


def build_closed_form(
    name: str,
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    target: Target = ONE_HOT,
    held_out: HeldOut | None = None,
    **parameters: float | str,
) -> nn.Linear:
    """Compute the classifier `name` without training, from the linear one (K, d), the features (N, d) of the training
    images, their labels (N,) and the training images of each class (K,). `target` is for those that soften the labels,
    `held_out` for those that `needs_held_out` names: features (M, d) and labels (M,).

    Raises UserError for an unknown name, an unknown parameter, a value out of range, and for class counts that are not
    K whole numbers of at least 1.
    """
    check_given("closed form", name, parameters, closed_form_parameters(name))
    counts = class_counts.tolist() if isinstance(class_counts, Tensor) else class_counts
    check_counts(counts, linear.out_features)
    asks = constructor_parameters("closed form", name, CLOSED_FORM)
    asked = {key: value for key, value in (("target", target), ("held_out", held_out)) if key in asks}
    return CLOSED_FORM[name](linear, features, labels, class_counts, **asked, **parameters)


def needs_held_out(name: str) -> bool:
    """Tell whether the closed form `name` is fitted on held-out images. Raises UserError for an unknown one."""
    return "held_out" in constructor_parameters("closed form", name, CLOSED_FORM)


def closed_form_parameters(name: str) -> dict[str, float | str]:
    """Return the parameters of the closed form `name` with their defaults. Raises UserError for an unknown one."""
    return keyword_parameters("closed form", name, CLOSED_FORM)

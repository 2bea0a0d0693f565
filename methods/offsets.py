"""A number a class that is added to the logits of stage 1: from its own prior, or fitted on held-out images."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.features import Features
from methods.class_sums import BLOCK
from methods.optimizers import LBFGS
from models.heads import Linear
from utils.errors import UserError

STEPS = 200  # of L-BFGS at most
GRADIENT = 1e-9  # the largest entry of the gradient at which it stops

HeldOut = tuple[Tensor, Tensor]  # features (M, d) and labels (M,) of images that stage 1 has not learned from
ADVICE = (
    "train stage 1 with --holdout 0.2 (a larger share where classes are small); of --features FILE the held-out images "
    "are holdout_features and holdout_labels, or --holdout 0.2"
)


def prior2posterior(
    linear: nn.Linear, features: Features, labels: Tensor, class_counts: Tensor | Sequence[int], *, tau: float = 1.0
) -> Linear:
    """Return the linear head (K, d) with b_k - tau log p_k, p (K,) the effective prior: the mean over the training
    images of the probabilities that the classifier gives (Bhat et al., "Prior2Posterior", WACV 2025, arXiv 2412.16540).

    Of a classifier whose probabilities are those of its training images on average, as cross-entropy's with a bias
    are at its minimum, p is the share of each class, and this is `logit_adjust_posthoc`.
    """
    head = Linear(linear)
    with torch.no_grad():
        log_prior = log_mean_posterior(head, features)
        head.bias.sub_((tau * log_prior).to(head.bias))
    return head


def log_mean_posterior(head: nn.Linear, features: Features) -> Tensor:
    """Return log mean_i softmax(z_i) (K,) over features (N, d), in float64, without a probability that underflows."""
    weight, bias = head.weight.double(), head.bias.double()
    total = torch.full_like(bias, -torch.inf)
    for part in features.split(BLOCK):
        log_probability = F.linear(part.to(weight), weight, bias).log_softmax(dim=1)
        total = torch.logaddexp(total, log_probability.logsumexp(dim=0))
    return total - torch.tensor(len(features), dtype=torch.float64).log()


def check_held_out(name: str, labels: Tensor | None, num_classes: int) -> None:
    """Raise UserError, in the name of a method, where there is no held-out image (labels (M,)) of one of K classes."""
    if labels is None or len(labels) == 0:
        raise UserError(f"--method {name} is fitted on held-out images, and there are none; {ADVICE}")
    present = torch.bincount(labels.long().cpu(), minlength=num_classes)
    if (present == 0).any():
        raise UserError(
            f"--method {name} needs a held-out image of every class; {int((present == 0).sum())} of {num_classes} have "
            f"none (the first is class {int((present == 0).nonzero()[0])}); {ADVICE}"
        )


def offsets(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    held_out: HeldOut | None,
    *,
    anchor: float = 0.01,
) -> Linear:
    """Return the linear head (K, d) with b_k + a_k, a (K,) fitted on the logits z of held-out images: it minimises

        mean_k mean_{i of class k} CE(z_i + a, k) + anchor / 2 * mean_k a_k^2

    the classwise half of REPAIR (Wang et al., "Beyond Logit Adjustment", 2026, arXiv 2604.01506), which shrinks its
    classwise term too. Here every class weighs the same, as it does in the test sets of this field. It is strictly
    convex with an anchor: one optimum. In double precision.

    Raises UserError without held-out images, or where a class has none.
    """
    head = Linear(linear)
    check_held_out("offsets", None if held_out is None else held_out[1], head.out_features)
    assert held_out is not None
    rows, index = held_out
    weight = head.weight.detach().double()
    index = index.to(weight.device).long()
    logits = torch.cat([F.linear(part.to(weight), weight, head.bias.detach().double()) for part in rows.split(BLOCK)])
    balance = 1 / torch.bincount(index, minlength=head.out_features).double()
    found = fit_offsets(logits, index, balance / balance.numel(), anchor)
    with torch.no_grad():
        head.bias.add_(found.to(head.bias))
    return head


def fit_offsets(logits: Tensor, labels: Tensor, class_weights: Tensor, anchor: float) -> Tensor:
    """Return a (K,): sum_i w_{y_i} CE(z_i + a, y_i) + anchor / 2 mean_k a_k^2 is smallest, for logits (M, K)."""
    found = torch.zeros_like(class_weights, requires_grad=True)
    optimizer = LBFGS(
        [found], max_iter=STEPS, line_search_fn="strong_wolfe", tolerance_grad=GRADIENT, tolerance_change=0
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(logits + found, labels, class_weights, reduction="sum")
        loss = loss + anchor / 2 * found.square().mean()
        loss.backward()
        return loss

    optimizer.step(objective)
    return found.detach()

r"""Proximal LOS: label over-smoothing with an end.

Published LOS (Sun et al., ICLR 2025, arXiv 2403.00250) is a point on a path: it depends on the learning rate times the
number of steps, and its own minimum is unbalanced again. Here the same target gets a minimum of its own. With features
that are centred and divided by the root of their mean squared distance to the mean, and stage 1's classifier (W0, b0)
carried along exactly, the classifier (W, b) minimises

    J(W, b) = mean CE(W f + b, target) + lambda / 2 * (|W - W0|^2 + |b - b0|^2)

Uniqueness. Cross-entropy against a fixed target is convex in the logits, and these are linear in (W, b); the second
term is strongly convex with modulus lambda. So J is, and for lambda > 0 it has exactly one minimum, whatever the
solver, its start or its steps. A point whose gradient has norm g lies within g / lambda of it.

Limits. For lambda -> infinity the minimum is (W0, b0), stage 1 itself. For lambda -> 0 it tends to that minimum of the
cross-entropy alone which is nearest to (W0, b0): with a soft target there is one in every direction that the features
span, and none is at infinity, since every class gets a share of every image.

Features times any number, plus any vector, give the same predictions: what is solved does not see either.

What may stand in the place of each part of J (`Anchored`): another loss (logits plus tau log pi, pi the share of each
class; images weighted by n^-rho), another start (b0 minus a multiple of log pi), another distance. All of them keep J
convex, and with a positive definite distance strictly so. The Bregman distance of the loss itself is none of them:
the mean of KL(p0 || p), with p0 the probabilities of stage 1, is the cross-entropy against p0 up to a constant. So the
minimum is that of cross-entropy alone against the mixture (target + lambda p0) / (1 + lambda): another target, without
an anchor.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.features import Features
from losses.logit_adjustment import class_prior
from losses.los import Target
from methods.convex_fit import CHUNK, PART, Standardised, minimise
from models.heads import Linear
from utils.errors import UserError

STEPS = 500  # of L-BFGS at most
GRADIENT = 1e-7  # the largest entry of the gradient at which it stops
FLOOR = 1e-6  # of the largest entry or eigenvalue of a distance: what no image is affected by is held a little, too
DISTANCES = ("weights", "logits", "fisher")

Pair = tuple[Tensor, Tensor]  # a weight (K, d) and a bias (K,) for the standardised features


@dataclass(frozen=True)
class Distance:
    """A squared distance between classifiers in the variables (V, v) in which it is |V|^2 + |v|^2.

    The change of the weights is `factors` (K, d) times V, times `root` (d, d) where there is one; that of the biases is
    `bias` (K,) times v.
    """

    factors: Tensor
    bias: Tensor
    root: Tensor | None = None

    def change(self, variables: Pair) -> Pair:
        """Return the change of the weight (K, d) and of the bias (K,) at the variables."""
        weight = self.factors * variables[0]
        return weight if self.root is None else weight @ self.root, self.bias * variables[1]

    def variables(self, change: Pair) -> Pair:
        """Return the variables of a change."""
        weight = change[0] if self.root is None else torch.linalg.solve(self.root, change[0], left=False)
        return weight / self.factors, change[1] / self.bias


def distance_of(name: str, data: Standardised, start: Pair) -> Distance:
    """Return the distance `name` of `Anchored.of`; UserError for another name."""
    weight, bias = start
    ones = Distance(torch.ones_like(weight), torch.ones_like(bias))
    if name == "weights":
        return ones
    if name == "logits":
        covariance = sum((part.T @ part for part, _ in data.blocks(PART)), torch.zeros(()).to(weight))
        values, vectors = torch.linalg.eigh(covariance / len(data.labels))
        root = vectors @ (values.clamp(min=FLOOR * float(values.max())).rsqrt()[:, None] * vectors.T)
        return Distance(ones.factors, ones.bias, root)
    if name == "fisher":
        own, of_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        for part, _ in data.blocks(PART):
            probability = F.linear(part, weight, bias).softmax(dim=1)
            spread = probability * (1 - probability) / len(data.labels)
            own += spread.T @ part.square()
            of_bias += spread.sum(dim=0)
        least = FLOOR * float(torch.maximum(own.max(), of_bias.max()))
        return Distance(own.clamp(min=least).rsqrt(), of_bias.clamp(min=least).rsqrt())
    raise UserError(f"unknown distance '{name}'; known: {', '.join(DISTANCES)}")


@dataclass(frozen=True)
class Parts:
    """What stands in the place of parts of J (`Anchored.of`); by default J as it is in the module's text."""

    tau: float = 0.0
    rho: float = 0.0
    start_tau: float = 0.0
    distance: str = "weights"


@dataclass(frozen=True)
class Anchored:
    """The objective J on given rows, for any lambda, with its parts.

    `start` is (W0, b0), `shift` (K,) what the loss adds to the logits, `importance` (K,) what a row of each class
    weighs, 1 on average over the rows.
    """

    data: Standardised
    start: Pair
    smoothing: float
    shift: Tensor
    importance: Tensor
    distance: Distance

    @classmethod
    def of(
        cls,
        linear: nn.Linear,
        rows: tuple[Features, Tensor],
        class_counts: Tensor | Sequence[int],
        target: Target,
        parts: Parts = Parts(),
    ) -> "Anchored":
        """Return J for features (N, d) and labels (N,), in double precision, where the labels are.

        The loss is cross-entropy of logits + `tau` log pi against the target, each row weighing n^-`rho` for the n
        images of its class; the start is stage 1's with `start_tau` log pi subtracted from its bias. `distance` is

        - "weights": |W - W0|^2 + |b - b0|^2;
        - "logits": the mean over the rows of the squared change of the logits, that is, with the covariance of the
          features in between;
        - "fisher": each entry's squared change times the diagonal of stage 1's Fisher information, as in elastic weight
          consolidation (Kirkpatrick et al., PNAS 114, 2017, arXiv 1612.00796).

        The last two have a floor of `FLOOR` times their largest entry, so that they are positive definite. Raises
        UserError for another distance.
        """
        features, labels = rows
        data = Standardised.of(features, labels, torch.float64)
        log_prior = class_prior(torch.as_tensor(class_counts).tolist()).log().to(data.mean)
        weight, bias = data.carry_in(linear.weight.detach(), linear.bias.detach())
        start = (weight, bias - parts.start_tau * log_prior)
        importance = torch.exp(-parts.rho * log_prior)
        importance = importance / importance[labels].mean()
        smoothing = target[1] * len(weight)  # PyTorch's s of this target: s / K for each other class
        distance = distance_of(parts.distance, data, start)
        return cls(data, start, smoothing, parts.tau * log_prior, importance, distance)

    def losses(self, classifier: Callable[[], Pair]) -> Iterator[Tensor]:
        """Yield what each block of rows adds to the mean loss; the classifier is asked for anew for each."""
        for part, labels in self.data.blocks(max(CHUNK // len(self.shift), 1)):
            logits = F.linear(part, *classifier()) + self.shift
            of_row = F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.smoothing)
            yield (self.importance[labels] * of_row).sum() / len(self.data.labels)

    def solve(self, anchor: float, warm: Pair | None = None) -> Pair:
        """Return the minimum for lambda = `anchor`, a classifier (W, b) of the standardised features. L-BFGS starts at
        `warm`, a classifier too, or else at (W0, b0)."""
        change = [torch.zeros_like(tensor) for tensor in self.start]
        if warm is not None:
            change = [now - before for now, before in zip(warm, self.start, strict=True)]
        variables = [tensor.clone().requires_grad_() for tensor in self.distance.variables((change[0], change[1]))]

        def moved() -> Pair:
            weight, bias = self.distance.change((variables[0], variables[1]))
            return self.start[0] + weight, self.start[1] + bias

        def penalty() -> Tensor:
            return anchor / 2 * (variables[0].square().sum() + variables[1].square().sum())

        minimise(variables, penalty, lambda: self.losses(moved), steps=STEPS, tolerance=GRADIENT)
        with torch.no_grad():
            return moved()

    def path(self, anchors: Sequence[float]) -> Iterator[tuple[float, Pair]]:
        """Yield each lambda with its minimum, from the largest lambda down, each started where the one before ended."""
        warm = None
        for anchor in sorted(anchors, reverse=True):
            warm = self.solve(anchor, warm)
            yield anchor, warm

    def moved_by(self, found: Pair) -> float:
        """Return the distance |(W, b) - (W0, b0)| of a classifier, the Euclidean one of the standardised features."""
        return float(sum((now - before).square().sum() for now, before in zip(found, self.start, strict=True)) ** 0.5)

    def fill(self, head: nn.Linear, found: Pair) -> None:
        """Give a head the classifier `found`, in terms of the features as they are."""
        weight, bias = self.data.carry_out(*found)
        with torch.no_grad():
            head.weight.copy_(weight)
            head.bias.copy_(bias)


def proximal_los(
    linear: nn.Linear,
    features: Features,
    labels: Tensor,
    class_counts: Tensor | Sequence[int],
    target: Target,
    *,
    anchor: float = 1e-3,
    tau: float = 0.0,
    rho: float = 0.0,
    start_tau: float = 0.0,
    distance: str = "weights",
    fit_on: str = "plain",
) -> Linear:
    """Return the linear head (K, d) that minimises J (above) for the target (y_true, y_other) of LOS (Sun et al., ICLR
    2025) and lambda = `anchor`. It is solved in double precision, where the labels are, from stage 1's classifier.

    `tau`, `rho`, `start_tau` and `distance` change a part of J (`Anchored.of`). `fit_on` says whose features they are,
    and is obeyed where they are computed: the images as they are, or their augmented views, row after row.
    """
    parts = Parts(tau, rho, start_tau, distance)
    problem = Anchored.of(linear, (features, labels), class_counts, target, parts)
    head = Linear(linear)
    problem.fill(head, problem.solve(anchor))
    return head

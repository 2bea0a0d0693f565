"""Closed gradients of losses against autograd: values and slopes of many losses at once, in double precision."""

import pytest
import torch
from torch import Tensor, nn

from losses import LOSSES, CrossEntropy, LogitAdjustment, build_loss
from losses.closed_gradient import NATS, gradient_of, softmax_form_of, step_losses
from losses.los import torch_target

COUNTS = [50, 20, 9, 4, 1, 1]
CLASSES, BATCH = len(COUNTS), 13
SOFT, SOFTER = torch_target(0.3, CLASSES), torch_target(0.98, CLASSES)
# Three losses of each kind that has a closed gradient, which differ in everything that they may.
STACKS: dict[str, list[nn.Module]] = {
    "ce": [build_loss("ce", COUNTS, target) for target in ((1.0, 0.0), SOFT, SOFTER)],
    "one-hot": [build_loss("ce", COUNTS) for _ in range(3)],
    "logit_adjust": [
        build_loss("logit_adjust", COUNTS, target, tau=tau) for target, tau in ((SOFTER, 1.0), (SOFT, 0.0), (SOFT, 2.0))
    ],
    "balanced_softmax": [build_loss("balanced_softmax", COUNTS, target) for target in ((1.0, 0.0), SOFT, SOFTER)],
    "vs": [build_loss("vs", COUNTS, gamma=gamma, tau=tau) for gamma, tau in ((0.05, 0.75), (0.0, 0.0), (0.3, 2.0))],
    "cb_ce": [
        build_loss("cb_ce", COUNTS, beta=beta, cb_mean=mean)
        for beta, mean in ((0.99, "batch"), (0.9, "weight"), (0.0, "weight"))
    ],
}


STACKS |= {
    "reweighted_ce": [build_loss("reweighted_ce", COUNTS, rho=rho) for rho in (0.0, 1.2, 2.0)],
    "ldam": [
        build_loss("ldam", COUNTS, max_margin=margin, scale=s) for margin, s in ((0.5, 30.0), (0.1, 4.0), (0.8, 1.0))
    ],
    "ldam_weighted": [build_loss("ldam_weighted", COUNTS, beta=beta, scale=4.0) for beta in (0.0, 0.9, 0.9999)],
    "wb_cb": [build_loss("wb_cb", COUNTS, beta=beta) for beta in (0.0, 0.9, 0.9999)],
    "las": [
        build_loss("las", COUNTS, smooth_head=head, las_target=target)
        for head, target in ((0.4, "paper"), (0.2, "released"), (0.9, "paper"))
    ],
}


def batch(spread: float) -> tuple[Tensor, Tensor]:
    """Logits (B, H, K) in double precision with gaps of about `spread`, and labels (B,) of every class."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(BATCH, 3, CLASSES, generator=generator, dtype=torch.float64)
    return logits, torch.arange(BATCH) % CLASSES


def closed(losses: list[nn.Module], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean losses (H,) and their gradient (B, H, K) by the closed form."""
    form_of = softmax_form_of(losses[0])
    assert form_of is not None
    constants = {
        name: torch.stack([loss.get_buffer(name).to(logits.dtype) for loss in losses])
        for name, _ in losses[0].named_buffers()
    }
    form = form_of(constants)
    gradient = logits / NATS
    terms = gradient_of(form)(gradient, labels)
    total, _ = step_losses(form, [terms], CLASSES)
    return total[0] / len(labels), gradient / len(labels)


def by_autograd(losses: list[nn.Module], logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The same, each loss called alone."""
    leaf = logits.clone().requires_grad_()
    values = torch.stack([loss(leaf[:, i], labels) for i, loss in enumerate(losses)])
    values.sum().backward()
    assert leaf.grad is not None
    return values.detach(), leaf.grad


@pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 400.0])
@pytest.mark.parametrize("kind", STACKS)
def test_a_closed_gradient_is_that_of_autograd(kind: str, spread: float) -> None:
    """At a spread of 400 most probabilities are too small for their logarithm, and the loss is right all the same."""
    logits, labels = batch(spread)
    for found, expected in zip(
        closed(STACKS[kind], logits, labels), by_autograd(STACKS[kind], logits, labels), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", STACKS)
def test_single_precision_keeps_its_digits(kind: str) -> None:
    """Against double precision, where the softmax underflows too."""
    for spread in (1.0, 60.0):
        logits, labels = batch(spread)
        found = closed(STACKS[kind], logits.float(), labels)
        for value, expected in zip(found, by_autograd(STACKS[kind], logits.float().double(), labels), strict=True):
            torch.testing.assert_close(value.double(), expected, rtol=2e-5, atol=2e-6)


def test_equal_largest_logits_are_told_from_one_another() -> None:
    """Two and three largest ones, the true class among them or not; a true class far above and far below the others."""
    logits, labels = torch.zeros(6, 3, CLASSES, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0, 0])
    logits[:, :, 3:] = -torch.arange(1.0, CLASSES - 2, dtype=torch.float64)
    logits[0, :, 2] = logits[1, :, 2] = -0.3
    logits[4, :, 0], logits[5, :, 0] = 40, -40
    for found, expected in zip(
        closed(STACKS["wb_cb"], logits, labels), by_autograd(STACKS["wb_cb"], logits, labels), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_logit_of_minus_infinity_is_no_class_of_one_hot_labels() -> None:
    logits, labels = batch(1.0)
    logits[labels != 2, :, 2] = -torch.inf
    for found, expected in zip(
        closed(STACKS["one-hot"], logits, labels), by_autograd(STACKS["one-hot"], logits, labels), strict=True
    ):
        assert bool(found.isfinite().all())
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


def test_a_logit_that_is_not_a_number_spoils_its_own_head_alone() -> None:
    logits, labels = batch(1.0)
    logits[3, 1, 0] = torch.nan
    losses, gradient = closed(STACKS["ce"], logits, labels)
    assert losses.isfinite().tolist() == [True, False, True]
    assert bool(gradient[:, [0, 2]].isfinite().all())


def test_which_losses_have_one() -> None:
    known = {name for name, kind in LOSSES.items() if softmax_form_of(build_loss(name, COUNTS)) is not None}
    weighted = {"cb_ce", "reweighted_ce", "ldam_weighted"}
    assert known == {"ce", "logit_adjust", "balanced_softmax", "vs", "las", "ldam", "wb_cb"} | weighted
    assert softmax_form_of(torch.nn.functional.cross_entropy) is None


def test_a_loss_that_computes_something_else_does_not_inherit_it() -> None:
    class Halved(CrossEntropy):
        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return 0.5 * super().forward(logits, labels)

    class Renamed(LogitAdjustment):
        pass

    assert softmax_form_of(Halved()) is None
    assert softmax_form_of(Renamed(COUNTS)) is LogitAdjustment.softmax_form

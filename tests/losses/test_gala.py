"""GALA: against its steps written out one sample at a time, its two readings, and its statistics over processes."""

import io
import itertools
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import build_loss, loss_parameters
from tests.forks import start_two
from utils.distributed import connect, disconnect, launch_of, sum_over_processes

COUNTS = [60, 25, 9, 4, 1]
CLASSES, BATCH, STEPS = len(COUNTS), 12, 6
STATISTICS = ("theta", "phi", "theta_sum", "phi_sum")
BOTH = list(itertools.product(["paper", "released"], ["single", "double"]))


def batches(steps: int = STEPS, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield long-tailed batches; the rarest class is absent from some."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        labels = torch.multinomial(torch.tensor(COUNTS).double(), BATCH, replacement=True, generator=generator)
        yield 2 * torch.randn(BATCH, CLASSES, generator=generator, dtype=dtype), labels


def step(loss: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient on the logits; in train mode the loss gathers."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def statistics(loss: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in loss.state_dict().items()}


def assert_close_runs(one: nn.Module, other: nn.Module) -> None:
    for batch in batches():
        gradients = step(one, *batch)[1], step(other, *batch)[1]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    return max((step(one, *batch)[1] - step(other, *batch)[1]).abs().max().item() for batch in batches())


# The steps of the released code and of the paper, as loops


class Written:
    """Section by section what the released code does, on (K, K) matrices, in float64."""

    def __init__(self, lambda1: float, lambda2: float, margin: str, accumulation: str) -> None:
        self.lambda1, self.lambda2, self.margin, self.accumulation = lambda1, lambda2, margin, accumulation
        self.gathered = np.zeros((CLASSES, CLASSES))  # [c, y]: |g_c| of the samples of class y
        self.positive = np.zeros((CLASSES, CLASSES))
        self.negative = np.zeros((CLASSES, CLASSES))

    def theta(self) -> np.ndarray:
        return self.positive.diagonal()

    def phi(self) -> np.ndarray:
        return self.negative.sum(axis=0)

    def __call__(self, logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
        total, gradients = 0.0, np.zeros_like(logits)
        theta, phi = self.theta().copy(), self.phi().copy()
        for i, y in enumerate(labels):
            adjusted = logits[i].copy()
            for j in range(CLASSES):
                if j != y or self.margin == "released":
                    adjusted[j] += self.lambda1 * np.log(theta[j] + 1e-3) - self.lambda2 * np.log(phi[y] + 1e-3)
            p = np.exp(adjusted) / np.exp(adjusted).sum()
            total -= np.log(p[y]) / BATCH
            for c in range(CLASSES):
                gradients[i, c] = (p[c] - (c == y)) / BATCH
                self.gathered[c, y] += abs(gradients[i, c])
        diagonal = np.diag(self.gathered.diagonal())
        if self.accumulation == "double":
            self.positive += diagonal
            self.negative += self.gathered - diagonal
        else:
            self.positive, self.negative = diagonal, self.gathered - diagonal
        return total, gradients


@pytest.mark.parametrize(("margin", "accumulation"), BOTH)
@pytest.mark.parametrize(("lambda1", "lambda2"), [(1.0, 1.0), (1.2, 0.9), (0.0, 0.5)])
def test_gala_is_what_its_loops_compute(margin: str, accumulation: str, lambda1: float, lambda2: float) -> None:
    settings = {"gala_margin": margin, "gala_accumulation": accumulation}
    loss = build_loss("gala", COUNTS, lambda1=lambda1, lambda2=lambda2, **settings)
    written = Written(lambda1, lambda2, margin, accumulation)
    for logits, labels in batches():
        value, gradient = step(loss, logits, labels)
        expected, expected_gradient = written(logits.numpy(), labels.numpy())
        assert value.item() == pytest.approx(expected, rel=1e-5)
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(loss.theta, written.theta(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(loss.phi, written.phi(), rtol=1e-5, atol=1e-7)


def test_the_first_step_has_a_uniform_margin() -> None:
    """Nothing is gathered yet: with equal lambdas the margins vanish, and the gradient is that of cross-entropy."""
    logits, labels = next(batches())
    for margin, accumulation in BOTH:
        loss = build_loss("gala", COUNTS, gala_margin=margin, gala_accumulation=accumulation)
        expected = step(nn.CrossEntropyLoss(), logits, labels)
        for got, wanted in zip(step(loss, logits, labels), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("accumulation", ["single", "double"])
def test_theta_equals_phi(accumulation: str) -> None:
    """sum over j != y of p_j is 1 - p_y: the two accumulators differ by rounding only."""
    loss = build_loss("gala", COUNTS, gala_accumulation=accumulation)
    for batch in batches(dtype=torch.float32):
        step(loss, *batch)
        torch.testing.assert_close(loss.theta, loss.phi, rtol=1e-5, atol=1e-6)
        assert loss.theta.dtype == torch.float32 and loss.theta.sum() > 0


def test_double_accumulation_weighs_early_steps_more() -> None:
    """The same batch gradient g at every step: T g for single, T (T + 1) / 2 g for double."""
    logits, labels = next(batches())
    for accumulation, share in (("single", STEPS), ("double", STEPS * (STEPS + 1) / 2)):
        loss = build_loss("gala", COUNTS, lambda1=0.0, lambda2=0.0, gala_accumulation=accumulation)
        step(loss, logits, labels)
        first = loss.theta.clone()
        for _ in range(STEPS - 1):
            step(loss, logits, labels)
        torch.testing.assert_close(loss.theta, share * first)
        assert first.max() > 0


# The two readings of the margin


def test_lambda2_changes_no_gradient_of_the_released_margin() -> None:
    one, other = (build_loss("gala", COUNTS, gala_margin="released", lambda2=value) for value in (0.9, 0.0))
    assert_close_runs(one, other)
    assert statistics(one)["theta"].sum() > 0


@pytest.mark.parametrize("accumulation", ["single", "double"])
@pytest.mark.parametrize("value", [1.0, 1.3])
def test_equal_lambdas_make_both_margins_one(accumulation: str, value: float) -> None:
    settings = {"lambda1": value, "lambda2": value, "gala_accumulation": accumulation}
    one, other = (build_loss("gala", COUNTS, gala_margin=margin, **settings) for margin in ("paper", "released"))
    assert_close_runs(one, other)
    assert statistics(one)["theta"].sum() > 0


def test_unequal_lambdas_part_the_margins() -> None:
    one, other = (build_loss("gala", COUNTS, gala_margin=m, lambda1=1.2, lambda2=0.9) for m in ("paper", "released"))
    assert largest_difference(one, other) > 1e-3


def test_both_accumulations_differ() -> None:
    one, other = (build_loss("gala", COUNTS, gala_accumulation=a) for a in ("single", "double"))
    assert largest_difference(one, other) > 1e-3


def test_defaults_are_the_papers() -> None:
    expected = {"lambda1": 1.0, "lambda2": 1.0, "gala_margin": "paper", "gala_accumulation": "single"}
    assert loss_parameters("gala") == expected


@pytest.mark.parametrize(("margin", "accumulation"), BOTH)
def test_margins_are_constants_of_the_gradient(margin: str, accumulation: str) -> None:
    """gradcheck against the statistics as they stood before the step; each evaluation starts from a copy of them."""
    loss = build_loss("gala", COUNTS, lambda1=1.2, gala_margin=margin, gala_accumulation=accumulation)
    *earlier, (logits, labels) = batches(3)
    for batch in earlier:
        step(loss, *batch)
    assert torch.autograd.gradcheck(lambda z: deepcopy(loss)(z, labels), logits.requires_grad_())


# State


@pytest.mark.parametrize(("margin", "accumulation"), BOTH)
def test_eval_mode_has_no_margin_and_gathers_nothing(margin: str, accumulation: str) -> None:
    loss = build_loss("gala", COUNTS, gala_margin=margin, gala_accumulation=accumulation)
    *earlier, (logits, labels) = batches()
    for batch in earlier:
        step(loss, *batch)
    before = statistics(loss)
    value, gradient = step(loss.eval(), logits, labels)
    expected, expected_gradient = step(nn.CrossEntropyLoss(), logits, labels)
    assert torch.equal(value, expected) and torch.equal(gradient, expected_gradient)
    assert all(torch.equal(before[name], tensor) for name, tensor in loss.state_dict().items())


@pytest.mark.parametrize(("margin", "accumulation"), BOTH)
def test_a_state_dict_resumes_exactly(margin: str, accumulation: str) -> None:
    def fresh() -> nn.Module:
        return build_loss("gala", COUNTS, gala_margin=margin, gala_accumulation=accumulation, lambda1=1.2)

    whole, first, second = fresh(), fresh(), fresh()
    data = list(batches())
    expected = [step(whole, *batch) for batch in data]
    for batch in data[:3]:
        step(first, *batch)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for batch, (value, gradient) in zip(data[3:], expected[3:], strict=True):
        got, got_gradient = step(second, *batch)
        assert torch.equal(got, value) and torch.equal(got_gradient, gradient)
    assert set(whole.state_dict()) == set(STATISTICS)
    assert all(torch.equal(second.state_dict()[name], whole.state_dict()[name]) for name in STATISTICS)


def test_statistics_need_no_gradient_and_hold_no_graph() -> None:
    loss = build_loss("gala", COUNTS)
    for batch in batches():
        step(loss, *batch)
    assert not any(tensor.requires_grad for tensor in loss.state_dict().values())
    assert not list(loss.parameters())


def test_a_stack_gathers_in_its_own_buffers() -> None:
    settings: list[dict[str, float | str]] = [
        {},
        {"lambda1": 1.2, "gala_margin": "released"},
        {"gala_accumulation": "double"},
    ]
    losses = [build_loss("gala", COUNTS, **parameters) for parameters in settings]
    _, buffers = torch.func.stack_module_state(losses)

    def one(state: dict[str, Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        return torch.func.functional_call(losses[0], state, (logits, labels))

    together: Callable[..., Tensor] = torch.func.vmap(one, in_dims=(0, 0, None))
    for logits, labels in batches(dtype=torch.float32):
        together(buffers, torch.stack([logits, -logits, 2 * logits]), labels)
    assert all(tensor.abs().sum() == 0 for tensor in losses[0].state_dict().values())
    for logits, labels in batches(dtype=torch.float32):
        for loss, own in zip(losses, (logits, -logits, 2 * logits), strict=True):
            loss(own, labels)
    for name in STATISTICS:
        torch.testing.assert_close(buffers[name], torch.stack([loss.state_dict()[name] for loss in losses]))


# Several processes


def test_without_a_process_group_a_sum_is_the_tensor_itself() -> None:
    tensor = torch.arange(3.0)
    assert sum_over_processes(tensor) is tensor


def split_at(index: int) -> int:
    """Where step `index` cuts its batch in two: in halves at first, then unevenly, as in the last step of an epoch."""
    return BATCH // 2 if index < STEPS - 2 else 5


def gather_share(folder: Path, rank: int) -> None:
    """Process `rank` of two: take its part of every batch, then write down the losses and the statistics."""
    connect(launch_of(), torch.device("cpu"))
    loss = build_loss("gala", COUNTS, lambda1=1.2, gala_accumulation="double")
    values = []
    for index, (logits, labels) in enumerate(batches()):
        cut = split_at(index)
        part = slice(0, cut) if rank == 0 else slice(cut, None)
        values.append(step(loss, logits[part], labels[part])[0])
    torch.save({"values": torch.stack(values), **loss.state_dict()}, folder / f"{rank}.pt")
    disconnect()


def test_two_processes_gather_what_one_gathers(tmp_path: Path) -> None:
    assert [child.end() for child in start_two(partial(gather_share, tmp_path), tmp_path)] == [(0, "")] * 2
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    whole = build_loss("gala", COUNTS, lambda1=1.2, gala_accumulation="double")
    for index, batch in enumerate(batches()):
        share = split_at(index) / BATCH
        together = share * first["values"][index] + (1 - share) * second["values"][index]
        assert together.item() == pytest.approx(step(whole, *batch)[0].item(), rel=1e-5)
    for name in STATISTICS:
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], whole.state_dict()[name], rtol=1e-5, atol=1e-7)


def test_large_logits_gather_finite_statistics() -> None:
    """Probabilities of exactly 0 and 1: theta and phi of a class are 0 or 1 a sample, never NaN."""
    loss = build_loss("gala", COUNTS)
    labels = torch.arange(CLASSES)
    for _ in range(3):
        value, gradient = step(loss, 1e4 * F.one_hot(labels.roll(1), CLASSES).float(), labels)
        assert value.isfinite() and gradient.isfinite().all()
    assert loss.theta.tolist() == pytest.approx([3 / CLASSES] * CLASSES)
    assert loss.phi.tolist() == pytest.approx([3 / CLASSES] * CLASSES)

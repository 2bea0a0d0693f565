"""SAMN: isotonic fits against scikit-learn, the head against its formula, its start, its state."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.isotonic import IsotonicRegression
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from models.heads import build_head
from models.monotone_norms import MonotoneNorms, isotonic

COUNTS = [5, 40, 1, 20]  # in no order


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(3, len(COUNTS), dtype=torch.float64)


def head(seed: int = 0) -> MonotoneNorms:
    """A head whose raw numbers are no longer monotone."""
    made = MonotoneNorms(linear(seed), torch.tensor(COUNTS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for raw in (made.norm_raw, made.shift_raw):
            raw.add_(torch.randn(len(COUNTS), generator=generator, dtype=torch.float64))
    return made


def features() -> Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 57])
def test_isotonic_is_scikit_learns(count: int) -> None:
    for seed in range(5):
        values = np.random.default_rng(seed).normal(size=count)
        values = values.round(1) if seed % 2 else values  # ties
        expected = IsotonicRegression().fit_transform(np.arange(count), values)
        np.testing.assert_allclose(isotonic(torch.tensor(values)).numpy(), expected, rtol=1e-12, atol=1e-12)


def test_its_gradient_is_the_mean_over_each_block() -> None:
    values = torch.tensor([0.0, 3.0, 1.0, 1.5, 5.0, 4.0], dtype=torch.float64, requires_grad=True)
    isotonic(values).backward(torch.tensor([1.0, 3.0, 0.0, 6.0, 2.0, 4.0], dtype=torch.float64))
    assert values.grad is not None and values.grad.tolist() == pytest.approx([1, 3, 3, 3, 3, 3])
    assert torch.autograd.gradcheck(isotonic, values)


def test_logits_are_the_formula_and_norms_fall_with_class_size() -> None:
    made = head()
    order = np.argsort(COUNTS)
    lengths = {}
    for name in ("norm_raw", "shift_raw"):
        raw = getattr(made, name).detach().numpy()
        fitted = np.empty(len(COUNTS))
        fitted[order] = IsotonicRegression().fit_transform(np.arange(len(COUNTS)), raw[order])
        lengths[name] = np.exp(1 / np.log1p(np.exp(fitted)))
    weight, bias = made.weight.detach().numpy(), made.bias.detach().numpy()
    rows = lengths["norm_raw"][:, None] * weight / np.linalg.norm(weight, axis=1, keepdims=True)
    expected = features().numpy() @ rows.T + lengths["shift_raw"] + bias
    np.testing.assert_allclose(made(features()).detach().numpy(), expected, rtol=1e-10)
    norms = made.effective_weight().norm(dim=1)
    assert (norms[torch.tensor(order.copy())].diff() <= 1e-12).all()


def test_it_starts_at_lengths_between_4_2_and_2_1() -> None:
    norms = MonotoneNorms(linear(), torch.tensor(COUNTS)).rows().norm(dim=1)
    assert norms[2].item() == pytest.approx(np.exp(1 / np.log(2))) == pytest.approx(4.2, abs=0.05)
    assert norms[1].item() == pytest.approx(np.exp(1 / np.log1p(np.e))) == pytest.approx(2.1, abs=0.05)
    same = MonotoneNorms(linear(), torch.tensor([7] * 4)).rows().norm(dim=1)
    assert same.tolist() == pytest.approx([np.exp(1 / np.log(2))] * 4)


def test_gradients_are_those_of_finite_differences_and_everything_is_trained() -> None:
    made = head()
    names, values = zip(*made.named_parameters(), strict=True)
    assert set(names) == {"weight", "bias", "norm_raw", "shift_raw"}

    def logits(*given: Tensor) -> Tensor:
        return functional_call(made, dict(zip(names, given, strict=True)), (features(),))

    assert torch.autograd.gradcheck(logits, values)
    F.cross_entropy(made(features()), torch.arange(6) % 4).backward()
    assert all(value.grad is not None and value.grad.any() for value in values)


def test_three_stacked_heads_are_three_single_ones() -> None:
    heads = [head(seed) for seed in range(3)]
    parameters, buffers = stack_module_state(heads)

    def one(state: tuple[dict[str, Tensor], dict[str, Tensor]], rows: Tensor) -> Tensor:
        return functional_call(heads[0], state, (rows,))

    found = vmap(one, in_dims=(0, None))((parameters, buffers), features())
    torch.testing.assert_close(found, torch.stack([made(features()) for made in heads]))


def test_a_state_brings_the_order_of_the_classes_with_it() -> None:
    made, other = head(), build_head("samn", linear(5))
    assert list(made.state_dict()) == ["weight", "bias", "norm_raw", "shift_raw", "order"]
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(features()), made(features()))

"""Logistic regression of many rows and classes: the minimum of the plain solver, in fewer evaluations."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods import linear_probe
from methods.convex_fit import Standardised
from methods.linear_probe import fit_probe
from methods.whitened_fit import RIDGE, cross_entropy, fit_whitened, whitening

CLASSES, WIDTH, COUNT = 7, 12, 400


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features (N, d) that spread a hundred times as far in some directions as in others, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (COUNT,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    features = centres[labels] + 1.5 * torch.randn(COUNT, WIDTH, generator=generator)
    return features * torch.logspace(0, -2, WIDTH) + 5, labels


def test_the_gradient_is_that_of_autograd() -> None:
    features, labels = drawn()
    data = Standardised.of(features, labels, torch.float64)
    weight = torch.randn(CLASSES, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    bias = torch.linspace(-1, 1, CLASSES, dtype=torch.float64)
    found = cross_entropy(data, weight, bias)
    weight.requires_grad_()
    bias.requires_grad_()
    loss = F.cross_entropy((features.double() - data.mean) * data.scale @ weight.T + bias, labels)
    loss.backward()
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-12)
    assert weight.grad is not None and bias.grad is not None
    torch.testing.assert_close(found[1], weight.grad, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[2], bias.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rows", [1, 3, 399, 400, 1000])
def test_the_gradient_does_not_depend_on_the_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Standardised.of(*drawn(), torch.float64)
    weight, bias = torch.ones(CLASSES, WIDTH, dtype=torch.float64).cumsum(0), torch.zeros(CLASSES, dtype=torch.float64)
    expected = cross_entropy(data, weight, bias)
    monkeypatch.setattr("methods.whitened_fit.BLOCK", rows * CLASSES)
    for found, value in zip(cross_entropy(data, weight, bias), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(value), rtol=1e-10, atol=1e-14)


def test_whitened_features_have_the_same_variance_everywhere() -> None:
    features, labels = drawn()
    data = Standardised.of(features, labels, torch.float64)
    standardised = ((features.double() - data.mean) * data.scale).numpy()
    found = np.cov((standardised @ whitening(data).numpy()).T, bias=True)
    variances = np.linalg.eigvalsh(np.cov(standardised.T, bias=True))
    np.testing.assert_allclose(np.linalg.eigvalsh(found), variances / (variances + RIDGE / WIDTH), rtol=1e-4)


@pytest.mark.parametrize("decay", [1e-4, 1e-2])
@pytest.mark.parametrize("half", [False, True])
def test_the_minimum_is_the_plain_solvers(decay: float, half: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn()
    features = features.half() if half else features
    plain = fit_probe(features, labels, CLASSES, decay)
    monkeypatch.setattr(linear_probe, "WORK", COUNT * WIDTH * CLASSES - 1)
    monkeypatch.setattr(linear_probe, "CHUNK", COUNT * CLASSES - 1)
    found = fit_probe(features, labels, CLASSES, decay)
    assert found.loss <= plain.loss + 5e-5
    assert decay > 1e-3 or found.evaluations < plain.evaluations / 2
    test, own = drawn(1)
    losses = [float(F.cross_entropy(test @ probe.weight.T + probe.bias, own)) for probe in (plain, found)]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)


def test_one_whose_logits_are_held_at_once_goes_on_to_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = drawn()
    plain = fit_probe(features, labels, CLASSES, 1e-4)
    monkeypatch.setattr(linear_probe, "WORK", COUNT * WIDTH * CLASSES - 1)
    found = fit_probe(features, labels, CLASSES, 1e-4)
    assert found.evaluations < plain.evaluations and found.loss == pytest.approx(plain.loss, abs=1e-6)
    test, _ = drawn(1)
    logits = [test @ probe.weight.T + probe.bias for probe in (plain, found)]
    assert float((logits[0] - logits[1]).abs().max()) < 0.02
    assert torch.equal(logits[0].argmax(dim=1), logits[1].argmax(dim=1))


def test_scikit_learn_has_the_same_minimum() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = drawn()
    data, decay = Standardised.of(features, labels, torch.float64), 1e-3
    weight, bias, fit = fit_whitened(
        Standardised.of(features, labels, torch.float32),
        CLASSES,
        decay,
        steps=500,
        tolerance=1e-6,
        watch=lambda *_: None,
    )
    rows = ((features.double() - data.mean) * data.scale).numpy()
    model = linear_model.LogisticRegression(C=1 / (decay * COUNT), tol=1e-8, max_iter=5000).fit(rows, labels.numpy())
    loss = F.cross_entropy(torch.from_numpy(model.decision_function(rows)), labels)
    assert fit.loss == pytest.approx(float(loss) + decay / 2 * float((model.coef_**2).sum()), abs=5e-5)
    expected = model.decision_function(rows)
    found = rows @ weight.double().numpy().T + bias.double().numpy()
    centred = [values - values.mean(axis=1, keepdims=True) for values in (found, expected)]
    assert np.abs(centred[0] - centred[1]).max() < 0.3


def test_small_problems_keep_their_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def noted(data: Standardised, *arguments: Any, **more: Any) -> Any:
        asked.append(len(data.labels))
        return fit_whitened(data, *arguments, **more)

    monkeypatch.setattr(linear_probe, "fit_whitened", noted)
    features, labels = drawn()
    fit_probe(features, labels, CLASSES, 1e-2)
    assert asked == []
    monkeypatch.setattr(linear_probe, "WORK", 1)
    fit_probe(features, labels, CLASSES, 1e-2)
    assert asked == [len(labels)]


def test_a_long_fit_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("utils.progress.SECONDS_BETWEEN_LINES", 0.0)
    features, labels = drawn()
    for work in (1 << 30, 1):
        monkeypatch.setattr(linear_probe, "WORK", work)
        fit_probe(features, labels, CLASSES, 1e-2)
        assert capsys.readouterr().out == ""
        fit_probe(features, labels, CLASSES, 1e-2, message="classifier")
        line = capsys.readouterr().out.splitlines()[0]
        assert line.startswith("classifier: 1 evaluations of at most 1000, loss 1.9459")  # log 7

"""Ridge regression against scikit-learn, the simplex by its angles and its alignment, centred tau-normalisation."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from methods.closed_form import build_closed_form
from utils.errors import UserError

COUNTS = [30, 12, 5, 2]


def problem(width: int = 6, scale: float = 1.0, shift: float = 0.0) -> tuple[nn.Linear, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    centres = 2 * torch.randn(4, width, generator=draw, dtype=torch.float64)
    features = centres[labels] + torch.randn(len(labels), width, generator=draw, dtype=torch.float64)
    linear = nn.Linear(width, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, width, generator=draw, dtype=torch.float64))
    return linear, features * scale + shift, labels


@pytest.mark.parametrize("anchor", [1e-3, 0.1, 10.0])
def test_ridge_is_scikit_learns_with_sample_weights(anchor: float) -> None:
    linear, features, labels = problem(shift=3.0)
    found = build_closed_form("ridge", linear, features, labels, COUNTS, anchor=anchor)(features)
    centred = features - features.mean(dim=0)
    standardised = (centred / centred.square().sum(dim=1).mean().sqrt()).numpy()
    weights = 1 / (4 * np.array(COUNTS, dtype=float))[labels]
    oracle = Ridge(alpha=anchor).fit(standardised, np.eye(4)[labels], sample_weight=weights)
    np.testing.assert_allclose(found.detach().numpy(), oracle.predict(standardised), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", ["ridge", "simplex", "tau_norm_centred"])
def test_scale_and_place_of_the_features_decide_nothing(name: str) -> None:
    linear, features, labels = problem()
    expected = build_closed_form(name, linear, features, labels, COUNTS)(features).argmax(dim=1)
    for scale, shift in ((0.1, 0.0), (10.0, 0.0), (1.0, 50.0)):
        _, seen, _ = problem(scale=scale, shift=shift)
        assert torch.equal(build_closed_form(name, linear, seen, labels, COUNTS)(seen).argmax(dim=1), expected)


@pytest.mark.parametrize("width", [3, 6])
def test_a_simplex_has_one_length_and_one_angle(width: int) -> None:
    linear, features, labels = problem(width)
    head = build_closed_form("simplex", linear, features, labels, COUNTS, scale=7.0)
    centred = features - features.mean(dim=0)
    rows = head.weight.detach() * centred.square().sum(dim=1).mean().sqrt()  # of the standardised features
    torch.testing.assert_close(rows.norm(dim=1), torch.full((4,), 7.0, dtype=torch.float64))
    cosines = rows @ rows.T / 49
    torch.testing.assert_close(cosines, (4 * torch.eye(4, dtype=torch.float64) - 1) / 3)


def test_no_rotation_of_the_simplex_lies_nearer_to_the_class_means() -> None:
    linear, features, labels = problem()
    means = torch.stack([features[labels == k].mean(dim=0) for k in range(4)])
    wanted = nn.functional.normalize(means - means.mean(dim=0), dim=1)
    rows = nn.functional.normalize(build_closed_form("simplex", linear, features, labels, COUNTS).weight.detach())
    nearest = (rows - wanted).square().sum()
    for seed in range(50):
        draw = torch.Generator().manual_seed(seed)
        turn = torch.linalg.matrix_exp(0.1 * torch.randn(6, 6, generator=draw, dtype=torch.float64).tril(-1))
        turn = torch.linalg.qr(turn)[0] if seed % 2 else torch.linalg.matrix_exp(turn.log1p() - turn.log1p().T)
        assert (rows @ turn - wanted).square().sum() >= nearest - 1e-9
    centre = means.mean(dim=0, keepdim=True)
    balanced = build_closed_form("simplex", linear, features, labels, COUNTS)(centre)
    torch.testing.assert_close(balanced, torch.zeros_like(balanced), atol=1e-9, rtol=0)


def test_with_fewer_dimensions_than_a_simplex_needs_rows_have_one_length() -> None:
    linear, features, labels = problem(2)
    norms = build_closed_form("simplex", linear, features, labels, COUNTS).weight.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(4))


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_centred_tau_norm_is_tau_norm_of_centred_features(tau: float) -> None:
    linear, features, labels = problem(shift=3.0)
    found = build_closed_form("tau_norm_centred", linear, features, labels, COUNTS, tau=tau)
    plain = build_closed_form("tau_norm", linear, features, labels, COUNTS, tau=tau, norm_bias="drop")
    torch.testing.assert_close(found(features), plain(features - features.mean(dim=0)))


@pytest.mark.parametrize("name", ["ridge", "simplex"])
def test_a_class_without_an_image_is_refused(name: str) -> None:
    linear, features, labels = problem()
    with pytest.raises(UserError, match=f"{name} needs an image of every class; class 3 has none"):
        build_closed_form(name, linear, features[:-2], labels[:-2], COUNTS)

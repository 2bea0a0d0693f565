"""Nearest neighbours over class counts: against a plain loop, its state, its limits."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models.neighbours
from methods.closed_form import build_closed_form
from methods.plan import attach_head
from models import build_model
from models.neighbours import Neighbours
from utils.errors import UserError

COUNTS = [6, 3, 2, 1]


def problem(dtype: torch.dtype = torch.float64) -> tuple[nn.Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    features = 2 + torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    return nn.Linear(5, 4, dtype=dtype), features.to(dtype), labels


def made(dtype: torch.dtype = torch.float64) -> Neighbours:
    linear, features, labels = problem(dtype)
    head = build_closed_form("knn", linear, features, labels, COUNTS)
    assert isinstance(head, Neighbours)
    return head


def test_votes_of_the_nearest_are_divided_by_the_class_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.neighbours, "NEIGHBOURS", 3)
    monkeypatch.setattr(models.neighbours, "BLOCK", 24)  # two rows at a time
    _, features, labels = problem()
    asked = 2 + torch.randn(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = features.mean(dim=0)
    expected = np.full((7, 4), 1e-30)
    for i, row in enumerate(asked - mean):
        cosines = [float(row @ (kept - mean) / row.norm() / (kept - mean).norm()) for kept in features]
        nearest = sorted(range(len(features)), key=lambda j: -cosines[j])[:3]
        for k in {int(labels[j]) for j in nearest}:
            expected[i, k] = sum(math.exp(14.3 * (cosines[j] - 1)) for j in nearest if labels[j] == k)
    found = made()(asked)
    np.testing.assert_allclose(found.detach().numpy(), np.log(expected / COUNTS), atol=0.02)  # half precision
    assert found.isfinite().all()


def test_a_training_image_is_its_own_neighbour_whatever_scale_and_place_of_the_features() -> None:
    linear, features, labels = problem(torch.float32)
    for scale, shift in ((1.0, 0.0), (1e-3, 0.0), (1e3, 0.0), (1.0, 50.0)):
        seen = features * scale + shift
        found = build_closed_form("knn", linear, seen, labels, COUNTS, scale=300.0)(seen)
        assert torch.equal(found.argmax(dim=1), labels) and found.dtype == torch.float32


def test_nothing_is_trained_and_a_state_of_any_size_is_loaded() -> None:
    head = made(torch.float32)
    assert not any(parameter.requires_grad for parameter in head.parameters())
    assert head.kept.dtype == torch.float16 and head.effective_weight() is None
    model = build_model("resnet8", 4, width=2)
    _, _, labels = problem()
    seen = torch.randn(len(labels), model.fc.in_features)
    model.fc = build_closed_form("knn", model.fc, seen, labels, COUNTS)
    other = build_model("resnet8", 4, width=2)
    attach_head(other, "knn", model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.fc(seen), model.fc(seen))


def test_more_features_than_a_checkpoint_should_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.neighbours, "MOST_BYTES", 100)
    with pytest.raises(UserError, match=r"knn keeps every training feature: 12 x 5 .* --method ncm") as caught:
        made()
    assert "\n" not in str(caught.value)

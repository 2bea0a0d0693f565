"""The geometric-mean loss against a plain loop."""

import numpy as np
import torch

from losses import build_loss
from methods.declared import takes_plain_logits
from tests.formulas import softmax, value_and_gradient

COUNTS = [60, 20, 7, 3, 1]


def test_it_is_minus_the_log_of_the_geometric_mean_over_the_classes_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(9, 5, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3, -100])  # classes 2 and 4 have no sample
    means = []
    for k in (0, 1, 3):
        own = [softmax(z + np.log(COUNTS))[k] for z, y in zip(logits.numpy(), labels.tolist(), strict=True) if y == k]
        means.append(np.mean(own))
    value, gradient = value_and_gradient(build_loss("gml", COUNTS), logits, labels)
    assert np.isclose(value.item(), -np.log(np.prod(means) ** (1 / 3)), rtol=1e-12)
    assert not gradient[-1].any() and gradient[:-1].any()
    leaf = logits.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: build_loss("gml", COUNTS)(z, labels), leaf)


def test_with_a_sample_a_class_it_is_balanced_softmax() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5)
    ours, theirs = (build_loss(name, COUNTS)(logits, labels) for name in ("gml", "balanced_softmax"))
    torch.testing.assert_close(ours, theirs)


def test_far_logits_keep_a_finite_value_and_gradient() -> None:
    logits = torch.tensor([[-300.0, 0, 0, 0, 0], [-400.0, 0, 0, 0, 0]])
    value, gradient = value_and_gradient(build_loss("gml", COUNTS), logits, torch.tensor([0, 0]))
    assert 250 < value < 310 and gradient.isfinite().all() and gradient.any()


def test_it_re_trains_classifiers_alone() -> None:
    assert not takes_plain_logits("gml")

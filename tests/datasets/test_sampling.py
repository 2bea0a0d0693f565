"""Samplers: class probabilities, frequencies of the draws, what the order depends on."""

import math

import pytest
import torch
from torch import Tensor

from datasets.names import SAMPLERS
from datasets.sampling import class_probabilities, sampled_order
from utils.errors import UserError
from utils.hashing import epoch_order

COUNTS = [400, 100, 0, 25, 4]
CLASSES = len(COUNTS)
DRAWING = [sampler for sampler in SAMPLERS if sampler != "instance"]


def make_labels() -> Tensor:
    """Labels in a mixed order, so that positions and classes cannot be confused."""
    labels = torch.repeat_interleave(torch.arange(CLASSES), torch.tensor(COUNTS))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]


def chi_square(observed: Tensor, expected: Tensor) -> float:
    used = expected > 0
    return float(((observed[used] - expected[used]) ** 2 / expected[used]).sum())


@pytest.mark.parametrize(("sampler", "power"), [("instance", 1.0), ("sqrt", 0.5), ("class_balanced", 0.0)])
def test_probabilities_are_a_power_of_the_counts(sampler: str, power: float) -> None:
    raw = [count**power if count else 0.0 for count in COUNTS]
    expected = [value / sum(raw) for value in raw]
    assert class_probabilities(COUNTS, sampler).tolist() == pytest.approx(expected, rel=1e-12)


def test_progressive_goes_from_instance_to_class_balanced() -> None:
    start, end = (class_probabilities(torch.tensor(COUNTS), name) for name in ("instance", "class_balanced"))
    assert torch.equal(class_probabilities(COUNTS, "progressive", 0.0), start)
    assert torch.equal(class_probabilities(COUNTS, "progressive", 1.0), end)
    torch.testing.assert_close(class_probabilities(COUNTS, "progressive", 0.25), 0.75 * start + 0.25 * end)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_probabilities_sum_to_one_and_none_goes_to_a_missing_class(sampler: str) -> None:
    probabilities = class_probabilities(COUNTS, sampler, 0.3)
    assert probabilities.dtype == torch.float64 and probabilities.shape == (CLASSES,)
    assert probabilities.sum().item() == pytest.approx(1) and probabilities[2] == 0


def test_instance_is_the_usual_shuffled_epoch() -> None:
    order = sampled_order(make_labels(), CLASSES, "instance", 7, 2, 5)
    assert torch.equal(order, epoch_order(sum(COUNTS), 7, 2))
    assert torch.equal(order.sort().values, torch.arange(sum(COUNTS)))


@pytest.mark.parametrize("sampler", DRAWING)
@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_classes_are_drawn_as_often_as_they_should(sampler: str, epoch: int) -> None:
    labels, seeds = make_labels(), 100
    drawn = torch.zeros(CLASSES)
    for seed in range(seeds):
        drawn += torch.bincount(labels[sampled_order(labels, CLASSES, sampler, seed, epoch, 5)], minlength=CLASSES)
    expected = class_probabilities(COUNTS, sampler, epoch / 4) * seeds * len(labels)
    assert drawn[2] == 0
    assert chi_square(drawn, expected) < 22  # three degrees of freedom: passed by chance in all but 1 of 10,000


@pytest.mark.parametrize("sampler", DRAWING)
def test_images_of_a_class_are_drawn_alike(sampler: str) -> None:
    labels, seeds = make_labels(), 400
    drawn = torch.zeros(len(labels))
    for seed in range(seeds):
        drawn += torch.bincount(sampled_order(labels, CLASSES, sampler, seed, 1, 2), minlength=len(labels))
    assert (drawn > 0).all()
    for label in (0, 1, 3, 4):
        own = drawn[labels == label]
        freedom = len(own) - 1
        assert chi_square(own, torch.full_like(own, own.mean().item())) < freedom + 4 * math.sqrt(2 * freedom) + 6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_has_n_positions_and_depends_on_seed_and_epoch_alone(sampler: str) -> None:
    labels = make_labels()
    torch.manual_seed(1)
    order = sampled_order(labels, CLASSES, sampler, 0, 1, 5)
    state = torch.get_rng_state()
    assert order.shape == (len(labels),) and order.dtype == torch.int64 and order.device.type == "cpu"
    assert order.min() >= 0 and order.max() < len(labels)
    torch.manual_seed(2)
    assert torch.equal(sampled_order(labels, CLASSES, sampler, 0, 1, 5), order)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    others = [sampled_order(labels, CLASSES, sampler, seed, epoch, 5) for seed, epoch in ((1, 1), (0, 2), (1, 0))]
    assert all(not torch.equal(other, order) for other in others)


def test_draws_are_another_stream_than_the_shuffled_epoch() -> None:
    """With one image a class, class-balanced draws of the same stream would repeat what `epoch_order` used up."""
    labels = torch.arange(50)
    order = sampled_order(labels, 50, "class_balanced", 0, 0, 1)
    assert len(order.unique()) < 50
    assert not torch.equal(order, epoch_order(50, 0, 0))


def test_one_epoch_of_progressive_sampling_is_at_its_start() -> None:
    labels = torch.cat([torch.zeros(5000), torch.ones(5)]).long()
    assert labels[sampled_order(labels, 2, "progressive", 0, 0, 1)].sum() < 50
    first, last = (labels[sampled_order(labels, 2, "progressive", 0, epoch, 2)].double().mean() for epoch in (0, 1))
    assert first < 0.01 and last.item() == pytest.approx(0.5, abs=0.04)


def test_a_class_at_either_end_may_be_missing() -> None:
    labels = torch.tensor([1, 2, 2, 2])
    drawn = torch.cat([labels[sampled_order(labels, 4, "class_balanced", seed, 0, 1)] for seed in range(500)])
    assert set(drawn.tolist()) == {1, 2}
    assert (drawn == 1).double().mean().item() == pytest.approx(0.5, abs=0.05)


def test_refusals() -> None:
    with pytest.raises(UserError, match="unknown --sampler 'cube'") as caught:
        class_probabilities(COUNTS, "cube")
    assert all(sampler in str(caught.value) for sampler in SAMPLERS)
    with pytest.raises(UserError, match="unknown --sampler"):
        sampled_order(make_labels(), CLASSES, "cube", 0, 0, 1)
    for progress in (-0.1, 1.1, math.nan):
        with pytest.raises(UserError, match="progress"):
            class_probabilities(COUNTS, "progressive", progress)
    for counts in ([], [0, 0], [3, -1]):
        with pytest.raises(UserError, match="class_counts"):
            class_probabilities(counts, "sqrt")
    for labels in (torch.tensor([], dtype=torch.int64), torch.tensor([0, 3]), torch.tensor([-1, 0])):
        with pytest.raises(UserError, match="labels from 0 to 2"):
            sampled_order(labels, 3, "sqrt", 0, 0, 1)

"""AutoAugment's CIFAR-10 policy, against torchvision's, and Cutout; both keyed by (seed, epoch, image)."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency, chisquare
from torch import Tensor
from torchvision.transforms import v2

from datasets import device_images as device_module
from datasets.augment.autoaugment import (
    GREY,
    HOLE,
    OPERATIONS,
    POLICY,
    UNSIGNED,
    apply_policy,
    cutout,
    draw_policy,
    policy_variants,
)
from datasets.cifar import AUGMENTATION
from datasets.device_images import DeviceImages
from datasets.digits import AUGMENTATION as DIGITS_AUGMENTATION
from datasets.image_source import steps_per_epoch
from datasets.long_tail import Augmentation, Split
from datasets.names import AUGMENTATIONS
from utils.errors import UserError
from utils.hashing import HOLE_STREAM, POLICY_STREAM, hash_ids, split_draws, stream_seed

CPU = torch.device("cpu")
CASES = list(product((False, True), repeat=4))  # first applies, second applies, first negative, second negative


def pictures() -> Tensor:
    """Unlike images (6, 3, 32, 32) uint8: noise, smooth, of low contrast, of few colours, of one colour, black."""
    generator = np.random.RandomState(0)
    ramp = np.linspace(0, 1, 32)
    smooth = np.stack([np.add.outer(a * ramp, b * ramp) for a, b in ((90, 100), (200, 20), (5, 150))]) + 30
    images = [
        generator.randint(0, 256, (3, 32, 32)),
        smooth,
        generator.randint(100, 131, (3, 32, 32)),
        generator.choice([0, 60, 255], (3, 32, 32), p=[0.9, 0.05, 0.05]),
        np.broadcast_to(np.array([10, 200, 90])[:, None, None], (3, 32, 32)),
        np.zeros((3, 32, 32)),
    ]
    return torch.from_numpy(np.stack(images).astype(np.uint8))


def device_images(count: int, augment: str = "autoaugment", seed: int = 0) -> DeviceImages:
    """Random images that each hold their position as label and as id."""
    images = np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return DeviceImages(Split(images, np.arange(count), np.arange(count)), AUGMENTATION, CPU, augment)


def policy_draws(count: int, seed: int = 0, epoch: int = 0) -> Tensor:
    return hash_ids(torch.arange(count), stream_seed(seed, POLICY_STREAM), epoch)


def torchvision_policy(
    monkeypatch: pytest.MonkeyPatch, image: Tensor, sub_policy: int, applied: list[bool], negative: list[bool]
) -> Tensor:
    """What torchvision's own AutoAugment makes of an image (3, H, W) where every pick of its own is prescribed."""
    picks: list[float] = []
    for (operation, _, _), apply, minus in zip(POLICY[sub_policy], applied, negative, strict=True):
        picks.append(0.0 if apply else 1.0)  # it applies where its pick is at most the probability
        if apply and operation not in UNSIGNED:
            picks.append(0.0 if minus else 1.0)
    transform = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=GREY)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", lambda *_: torch.tensor(sub_policy))
        patch.setattr(torch, "rand", lambda *_: torch.tensor(picks.pop(0)))
        result = transform(image)
    assert not picks
    return result


def test_policy_is_torchvisions() -> None:
    assert v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)._policies == POLICY
    assert len(POLICY) == 25
    assert {step[0] for steps in POLICY for step in steps} == set(OPERATIONS)


@pytest.mark.parametrize("sub_policy", range(25))
def test_sub_policy_is_torchvisions_pixel_by_pixel(monkeypatch: pytest.MonkeyPatch, sub_policy: int) -> None:
    images = pictures()
    expected = torch.stack(
        [
            torchvision_policy(monkeypatch, image, sub_policy, list(case[:2]), list(case[2:]))
            for case in CASES
            for image in images
        ]
    )
    flags = torch.tensor(CASES).repeat_interleave(len(images), dim=0)
    batch = images.repeat(len(CASES), 1, 1, 1)
    result = apply_policy(batch, torch.full((len(batch),), sub_policy), flags[:, :2], flags[:, 2:])
    assert torch.equal(result, expected)
    assert not torch.equal(result, batch)


@pytest.mark.parametrize(("operation", "value"), policy_variants(32, 32)[0])
def test_batched_operation_is_the_operation_on_each_image(operation: str, value: float) -> None:
    images = torch.cat([pictures(), pictures().flip(0, 2)])
    batched = OPERATIONS[operation](images, value, GREY)
    each = torch.cat([OPERATIONS[operation](image[None], value, GREY) for image in images])
    assert batched.dtype == torch.uint8 and torch.equal(batched, each)


def test_mixed_batch_is_the_policy_on_each_image() -> None:
    count = 25 * len(CASES)
    images = pictures().repeat(count // 6 + 1, 1, 1, 1)[:count]
    flags = torch.tensor(CASES).repeat(25, 1)
    sub_policies, applied, negative = torch.arange(25).repeat_interleave(len(CASES)), flags[:, :2], flags[:, 2:]
    before = images.clone()
    together = apply_policy(images, sub_policies, applied, negative)
    for i in range(count):
        alone = apply_policy(images[i : i + 1], sub_policies[i : i + 1], applied[i : i + 1], negative[i : i + 1])
        assert torch.equal(together[i : i + 1], alone), i
    assert torch.equal(images, before)  # the caller's images stay


def test_fill_and_size_are_the_callers() -> None:
    images = torch.zeros(1, 3, 10, 20, dtype=torch.uint8)
    moved = (torch.tensor([21]), torch.tensor([[True, False]]), torch.tensor([[False, False]]))  # TranslateY, 9
    assert int(150 / 331 * 10) == 4
    for fill in (GREY, 7):
        expected = torch.cat([torch.full((1, 3, 4, 20), fill), torch.zeros(1, 3, 6, 20, dtype=torch.int64)], dim=2)
        assert torch.equal(apply_policy(images, *moved, fill=fill).long(), expected)


def test_digits_are_those_of_a_mixed_radix() -> None:
    parts = split_draws(torch.arange(24), 2, 3, 4)
    assert torch.equal(parts[0] + 2 * parts[1] + 6 * parts[2], torch.arange(24))
    assert [int(part.max()) for part in parts] == [1, 2, 3]


def test_sub_policies_steps_and_signs_are_drawn_as_often_as_they_should() -> None:
    count = 200_000
    sub_policies, applied, negative = (part.numpy() for part in draw_policy(policy_draws(count)))
    assert chisquare(np.bincount(sub_policies, minlength=25)).pvalue > 1e-3
    for i, steps in enumerate(POLICY):
        mine = sub_policies == i
        for j, (operation, probability, _) in enumerate(steps):
            bound = 4.5 * np.sqrt(probability * (1 - probability) / mine.sum())
            assert abs(applied[mine, j].mean() - probability) <= bound, (i, operation)
            assert abs(negative[mine, j].mean() - 0.5) < 4.5 * np.sqrt(0.25 / mine.sum()), (i, operation)
        both = applied[mine].all(axis=1).mean()
        product_of_two = steps[0][1] * steps[1][1]
        assert abs(both - product_of_two) <= 4.5 * np.sqrt(product_of_two * (1 - product_of_two) / mine.sum())
    first, second = negative.T.astype(int)
    assert chisquare(np.bincount(2 * first + second, minlength=4)).pvalue > 1e-3


def test_policy_holes_and_crops_are_drawn_apart() -> None:
    ids = torch.arange(100_000)
    streams = {
        "crop": hash_ids(ids, 0, 0),
        "policy": policy_draws(len(ids)),
        "hole": hash_ids(ids, stream_seed(0, HOLE_STREAM), 0),
        "policy of the next epoch": policy_draws(len(ids), epoch=1),
        "policy of the next seed": policy_draws(len(ids), seed=1),
        "policy of the next image": policy_draws(len(ids) + 1)[1:],
    }
    names = list(streams)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            # One modulus for all: a number's residues to coprime ones would look independent of each other.
            pairs = streams[first] % 30 * 30 + streams[second] % 30
            counts = torch.bincount(pairs, minlength=900).view(30, 30).numpy()
            assert chi2_contingency(counts).pvalue > 1e-4, (first, second)


def test_hole_is_a_square_cut_off_at_the_borders() -> None:
    centres = torch.arange(32 * 32)
    white = torch.full((len(centres), 3, 32, 32), 255, dtype=torch.uint8)
    holes = cutout(white, centres) == 0  # draws below 32 * 32 are the centres themselves: y + 32 x
    assert HOLE == 16 and torch.equal(holes[:, 0], holes[:, 1]) and torch.equal(holes[:, 0], holes[:, 2])
    for centre in centres.tolist():
        y, x = centre % 32, centre // 32
        expected = torch.zeros(32, 32, dtype=torch.bool)
        expected[max(y - 8, 0) : min(y + 8, 32), max(x - 8, 0) : min(x + 8, 32)] = True
        assert torch.equal(holes[centre, 0], expected), (y, x)
    areas = holes[:, 0].sum(dim=(1, 2))
    assert areas.min() == 64 and areas.max() == 256
    assert (areas == 256).sum() == 17 * 17  # centres from 8 to 24 lose nothing
    assert torch.equal(white, torch.full_like(white, 255))


def test_hole_centres_are_drawn_equally_often() -> None:
    draws = hash_ids(torch.arange(200_000), stream_seed(3, HOLE_STREAM), 4)
    ys, xs = split_draws(draws, 32, 32)
    assert chisquare(torch.bincount(ys * 32 + xs, minlength=1024).numpy()).pvalue > 1e-3


def test_hole_is_black_before_normalising() -> None:
    images = device_images(300)
    rows = torch.arange(300)
    batch = images.augmented(rows, seed=1, epoch=2)
    draws = hash_ids(images.ids, stream_seed(1, HOLE_STREAM), 2)
    hole = cutout(torch.ones(300, 1, 32, 32, dtype=torch.uint8), draws).expand(300, 3, 32, 32) == 0
    black = (-torch.tensor(AUGMENTATION.mean) / torch.tensor(AUGMENTATION.std))[None, :, None, None]
    torch.testing.assert_close(batch[hole], black.expand_as(batch)[hole])
    # Outside, where no step of the policy applies, the picture is the cropped one of the plain augmentation.
    untouched = ~draw_policy(policy_draws(300, seed=1, epoch=2))[1].any(dim=1)
    plain = device_images(300, "crop").augmented(rows, seed=1, epoch=2)
    assert untouched.sum() > 10
    assert torch.equal(batch[untouched][~hole[untouched]], plain[untouched][~hole[untouched]])
    assert not torch.equal(batch[~untouched][~hole[~untouched]], plain[~untouched][~hole[~untouched]])


def test_order_of_operations_is_crop_policy_hole_normalise() -> None:
    images, rows = device_images(50), torch.arange(50)
    cropped = device_images(50, "crop").augmented_pixels(rows, seed=3, epoch=4).permute(0, 3, 1, 2)
    expected = apply_policy(cropped, *draw_policy(policy_draws(50, seed=3, epoch=4)))
    expected = cutout(expected, hash_ids(rows, stream_seed(3, HOLE_STREAM), 4))
    mean, std = (torch.tensor(values)[None, :, None, None] for values in (AUGMENTATION.mean, AUGMENTATION.std))
    batch = images.augmented(rows, seed=3, epoch=4)
    torch.testing.assert_close(batch.contiguous(), (expected / 255 - mean) / std, rtol=0, atol=2e-6)
    assert batch.dtype == torch.float32 and batch.is_contiguous(memory_format=torch.channels_last)


def test_result_depends_neither_on_the_batch_nor_on_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images = device_images(60)
    whole = images.augmented(torch.arange(60), seed=1, epoch=2)
    rows = torch.tensor([31, 4, 59, 17, 0])
    assert torch.equal(images.augmented(rows, seed=1, epoch=2), whole[rows])
    assert torch.equal(images.augmented(torch.tensor([17]), seed=1, epoch=2), whole[17:18])
    monkeypatch.setattr(device_module, "CHUNK", 7)
    assert torch.equal(images.augmented(torch.arange(60), seed=1, epoch=2), whole)
    # Draws belong to ids, not to positions.
    split = Split(images.images[:, 4:36, 4:36].numpy(), images.labels.numpy(), images.ids.numpy())
    selection = DeviceImages(split.take(rows.numpy()), AUGMENTATION, CPU, "autoaugment")
    assert torch.equal(selection.augmented(torch.arange(5), seed=1, epoch=2), whole[rows])


def test_other_epochs_and_seeds_draw_otherwise() -> None:
    images, rows = device_images(200), torch.arange(200)
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (-1, 0)]
    results = [images.augmented_pixels(rows, *key).flatten(1) for key in keys]
    for i, first in enumerate(results):
        for second in results[i + 1 :]:
            assert (first == second).all(dim=1).float().mean() < 0.02
    assert torch.equal(results[0], images.augmented_pixels(rows, 0, 0).flatten(1))


def test_epoch_is_the_same_alone_and_after_others() -> None:
    images = device_images(40)
    state = torch.get_rng_state()
    epochs = [list(images.training_batches(16, seed=5, epoch=epoch)) for epoch in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    resumed = list(device_images(40).training_batches(16, seed=5, epoch=2))
    for (pixels, labels), (again, same) in zip(epochs[2], resumed, strict=True):
        assert torch.equal(pixels, again) and torch.equal(labels, same)
    assert not torch.equal(epochs[1][0][0], epochs[2][0][0])


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_batches_hold_the_augmented_images_of_their_labels(augment: str) -> None:
    images = device_images(45, augment)
    batches = list(images.training_batches(16, seed=2, epoch=1))
    assert [len(labels) for _, labels in batches] == [16, 16, 13]
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(45))
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), images.augmented(labels, seed=2, epoch=1))
    for pixels, _ in batches:
        assert pixels.dtype == torch.float32 and pixels.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_last_partial_batch_is_dropped_on_request(augment: str) -> None:
    images = device_images(45, augment)
    kept = list(images.training_batches(16, seed=2, epoch=1))
    dropped = list(images.training_batches(16, seed=2, epoch=1, drop_last=True))
    assert len(kept) == 3 and len(dropped) == 2 == steps_per_epoch(45, 16, drop_last=True)
    for (pixels, labels), (other, same) in zip(kept, dropped, strict=False):
        assert torch.equal(pixels, other) and torch.equal(labels, same)
    assert len(list(images.training_batches(15, seed=2, epoch=1, drop_last=True))) == 3  # nothing partial to drop
    assert len(list(images.training_batches(45, seed=2, epoch=1, drop_last=True))) == 1


def test_dropping_the_only_batch_is_refused() -> None:
    images = device_images(15)
    assert [len(labels) for _, labels in images.training_batches(16, seed=0, epoch=0)] == [15]
    with pytest.raises(UserError, match="15 training images are fewer than one batch of 16"):
        images.training_batches(16, seed=0, epoch=0, drop_last=True)
    with pytest.raises(UserError, match="--batch_size"):
        steps_per_epoch(15, 16, drop_last=True)


@pytest.mark.parametrize(("count", "steps"), [(64, 1), (127, 1), (128, 2), (10847, 169)])
def test_steps_without_the_partial_batch(count: int, steps: int) -> None:
    assert steps_per_epoch(count, 64, drop_last=True) == steps


@pytest.mark.parametrize("augmentation", [DIGITS_AUGMENTATION, replace(AUGMENTATION, mirror=False)])
def test_policy_is_refused_where_mirroring_would_change_the_class(augmentation: Augmentation) -> None:
    split = Split(np.zeros((2, 8, 8, 3), dtype=np.uint8), np.arange(2), np.arange(2))
    with pytest.raises(UserError, match="--augment crop"):
        DeviceImages(split, augmentation, CPU, "autoaugment")
    assert len(DeviceImages(split, augmentation, CPU)) == 2


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(UserError, match="crop, jitter, autoaugment"):
        device_images(2, "randaugment")
    assert AUGMENTATIONS == ["crop", "jitter", "autoaugment"]

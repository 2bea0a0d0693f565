"""Features that are given stay in one piece of memory, in their own precision, and give the results of whole casts."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from datasets.features import DeviceFeatures, is_finite
from datasets.long_tail import Split, subset_identity
from engine.frozen_features import FrozenFeatures, feature_batches
from evaluation.measure import SplitLogits
from models.given_features import GivenFeatures
from runs.feature_files import read_features
from runs.feature_files.held_out import hold_out
from utils.device import choose_execution


def half_split(count: int = 50, width: int = 6) -> Split:
    """Return features in half precision of three classes."""
    generator = np.random.default_rng(0)
    images = generator.normal(0, 3, (count, 1, width)).astype(np.float16)
    return Split(images, np.arange(count) % 3, np.arange(count))


def frozen_of(split: Split) -> FrozenFeatures:
    """Return the frozen features of a split on the CPU."""
    execution = choose_execution("cpu", 0, "off", "off")
    images = {"train": DeviceFeatures(split, execution.device)}
    return FrozenFeatures(GivenFeatures(split.images.shape[2], 3), images, execution, 0, "plain")


def test_given_features_are_not_copied_and_keep_their_precision() -> None:
    split = half_split()
    features = frozen_of(split).plain("train")
    assert features.dtype == torch.float16
    assert features.data_ptr() == torch.from_numpy(split.images).data_ptr()


def test_a_cast_per_batch_is_the_cast_of_the_whole() -> None:
    split = half_split()
    features, labels = frozen_of(split).plain("train"), torch.from_numpy(split.labels)
    order = torch.from_numpy(np.random.default_rng(1).permutation(50))
    half = list(feature_batches(features, labels, order, 8))
    whole = list(feature_batches(features.float(), labels, order, 8))
    for (rows, own), (expected, of_whole) in zip(half, whole, strict=True):
        assert rows.dtype == torch.float32
        assert torch.equal(rows, expected) and torch.equal(own, of_whole)


def test_logits_of_features_in_half_precision_are_those_of_the_whole_cast() -> None:
    split, classifier = half_split(), nn.Linear(6, 3)
    features = frozen_of(split).plain("train")
    own = SplitLogits(lambda split, mirrored: features, classifier)("train")
    assert torch.equal(own, SplitLogits(lambda split, mirrored: features.float(), classifier)("train"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_found(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype)
    values = torch.tensor(
        [[0.0, -0.0, largest.max, largest.min, largest.tiny, largest.smallest_normal / 2]], dtype=dtype
    )
    assert is_finite(values) and is_finite(values[0, 2]) and is_finite(values[:0])
    for wrong in (torch.inf, -torch.inf, torch.nan, -torch.nan):
        for place in range(values.numel()):
            spoiled = values.clone()
            spoiled[0, place] = wrong
            assert not is_finite(spoiled) and not is_finite(spoiled[0, place])


def test_a_number_that_is_not_finite_is_found_in_any_block() -> None:
    values = torch.zeros(3000, 300, dtype=torch.float16)
    values[2999, 299] = torch.inf
    assert not is_finite(values) and is_finite(values[:, :299])


def test_the_identity_of_splits_together_is_that_of_sorted_pairs() -> None:
    split = half_split()
    rows = np.random.default_rng(2).permutation(50)
    pairs = sorted(
        (int(label), hashlib.sha256(image.tobytes()).hexdigest())
        for label, image in zip(split.labels, split.images, strict=True)
    )
    content = hashlib.sha256("".join(f"{label} {digest}\n" for label, digest in pairs).encode()).hexdigest()
    for parts in ((split,), (split.take(rows[:20]), split.take(rows[20:])), (split.take(rows), split.take(rows[:0]))):
        assert subset_identity(*parts)["content_sha256"] == content


def test_a_taken_split_has_the_digests_of_its_own_images() -> None:
    split, rows = half_split(), np.array([7, 3, 3])
    assert split.digests.shape == (50, 32)
    taken = split.take(rows)
    assert np.array_equal(taken.digests, Split(split.images[rows], split.labels[rows], split.ids[rows]).digests)


def test_the_record_of_a_file_and_its_data_share_their_memory(tmp_path: Path) -> None:
    train, test = half_split(), half_split(12)
    arrays = {"train_features": train.images[:, 0], "test_features": test.images[:, 0]}
    arrays |= {"train_labels": train.labels, "test_labels": test.labels}
    np.savez(tmp_path / "own.npz", **arrays, test_features_mirrored=-test.images[:, 0])
    _, content = read_features(tmp_path / "own.npz", quiet=True)
    for record in (content, hold_out(content, 0.2, 0)):
        data, tensors = record["data"], record["features"]
        held = {"train": data.train, "test": data.test, **({"holdout": data.holdout} if len(data.holdout) else {})}
        for name, split in held.items():
            assert np.shares_memory(split.images, tensors[f"{name}_features"].numpy())
            assert np.array_equal(split.images[:, 0], tensors[f"{name}_features"].numpy())
            assert np.array_equal(split.labels, tensors[f"{name}_labels"].numpy())
        assert np.array_equal(data.test.images[:, 1], -data.test.images[:, 0])
        assert data.class_counts.tolist() == np.bincount(data.train.labels).tolist()
    assert len(data.holdout) > 0

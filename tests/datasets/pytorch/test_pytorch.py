"""Samplers and data sets in PyTorch's own loader: draws, their parts over processes, images and labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.transforms import v2

from datasets import load_dataset
from datasets.long_tail import Profile, Split
from datasets.on_disk.folder_splits import load_folder
from datasets.pytorch import ClassBalancedSampler, SplitImages
from datasets.sampling import SAMPLERS, sampled_order
from tests.helpers import image_tree
from utils.errors import UserError

COUNTS = [400, 100, 25, 4]
LABELS = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))[torch.randperm(sum(COUNTS))]


def parts(count: int, epoch: int = 0, drop_last: bool = False, sampler: str = "class_balanced") -> list[list[int]]:
    """What each of `count` processes sees in an epoch."""
    samplers = [
        ClassBalancedSampler(LABELS, sampler, replicas=(count, rank), epochs=3, drop_last=drop_last)
        for rank in range(count)
    ]
    for each in samplers:
        each.set_epoch(epoch)
    drawn = [list(each) for each in samplers]
    assert [len(each) for each in samplers] == [len(part) for part in drawn]
    return drawn


def woven(drawn: list[list[int]]) -> list[int]:
    return [index for together in zip(*drawn, strict=True) for index in together]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("count", [1, 4, 5])
def test_the_processes_share_the_draws_of_one(sampler: str, count: int) -> None:
    for epoch in range(3):
        whole = sampled_order(LABELS, 4, sampler, 0, epoch, 3).tolist()
        padding = -len(whole) % count
        assert woven(parts(count, epoch, sampler=sampler)) == whole + whole[:padding]
        kept = len(whole) // count * count
        assert woven(parts(count, epoch, drop_last=True, sampler=sampler)) == whole[:kept]


def test_an_epoch_goes_on_as_the_one_before_until_it_is_set() -> None:
    sampler = ClassBalancedSampler(LABELS, seed=3)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first and len(sampler) == len(LABELS)
    assert first != list(ClassBalancedSampler(LABELS, seed=4))


def test_every_class_is_drawn_alike_over_processes() -> None:
    drawn = torch.tensor([woven(parts(4, epoch)) for epoch in range(20)]).flatten()
    shares = torch.bincount(LABELS[drawn], minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_more_processes_than_images_have_one_each() -> None:
    drawn = [list(ClassBalancedSampler([0, 1, 1], replicas=(8, rank))) for rank in range(8)]
    assert all(len(part) == 1 for part in drawn)


def test_it_is_a_distributed_sampler_to_other_libraries() -> None:
    assert isinstance(ClassBalancedSampler(LABELS), DistributedSampler)
    for name in ("num_replicas", "rank", "epoch", "seed", "drop_last", "num_samples", "total_size"):
        assert hasattr(ClassBalancedSampler(LABELS), name)


def test_a_process_group_says_who_this_is(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        assert (ClassBalancedSampler(LABELS).num_replicas, ClassBalancedSampler(LABELS).rank) == (1, 0)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("labels", "more", "words"),
    [
        ([], {}, "needs the labels"),
        ([[0, 1]], {}, "needs the labels"),
        ([0.0, 1.0], {}, "needs the labels"),
        ([-1, 1], {}, "needs the labels"),
        ([0, 1], {"sampler": "best"}, "unknown sampler 'best'; known: instance"),
        ([0, 1], {"epochs": 0}, "epochs must be at least 1"),
        ([0, 1], {"replicas": (2, 2)}, "is no rank among"),
        ([0, 1], {"replicas": (0, 0)}, "is no rank among"),
    ],
)
def test_what_cannot_be_sampled_is_refused(labels: list, more: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        ClassBalancedSampler(labels, **more)


# Images


def test_images_in_memory_go_through_a_loader() -> None:
    data = load_dataset("digits", Profile(imb_ratio=25))
    images = SplitImages(data.train)
    sampler = ClassBalancedSampler(images.labels, replicas=(2, 1))
    loader = DataLoader(images, batch_size=16, sampler=sampler)
    seen: list[Tensor] = []
    for pixels, labels in loader:
        assert pixels.shape[1:] == (3, 8, 8) and pixels.dtype == torch.uint8 and labels.dtype == torch.int64
        seen.append(labels)
    assert torch.equal(torch.cat(seen), images.labels[list(sampler)]) and len(images) == len(data.train)
    np.testing.assert_array_equal(images[5][0].permute(1, 2, 0).numpy(), data.train.images[5])


def test_a_transform_makes_what_it_is_given() -> None:
    data = load_dataset("digits", Profile(imb_ratio=25))
    scale = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])
    image, label = SplitImages(data.test, scale)[7]
    plain = SplitImages(data.test)[7]
    torch.testing.assert_close(image, plain[0] / 255 * 2 - 1)
    assert label == plain[1] == data.test.labels[7]


def test_images_on_disk_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    image_tree(tmp_path / "flowers", classes=3, train=4)
    data = load_folder(str(tmp_path / "flowers"), Profile(imb_ratio=None))
    images = SplitImages(data.train)
    for index in (0, len(images) - 1, -1):
        path = data.train.path(range(len(images))[index])
        expected = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_allclose(images[index][0].permute(1, 2, 0).numpy(), expected, atol=3)
        assert images[index][1] == data.train.labels[index]
    Path(data.train.path(1)).write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot read the image"):
        images[1]


def test_features_are_no_images() -> None:
    split = Split(np.zeros((2, 5)), np.zeros(2, np.int64), np.arange(2))
    with pytest.raises(UserError, match="holds features"):
        SplitImages(split)[0]

"""Crop, mirror and normalise on the device, against torchvision's transforms on PIL images."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from scipy.stats import chisquare
from torch import Tensor
from torchvision import transforms

from datasets.cifar import AUGMENTATION
from datasets.device_images import DeviceImages
from datasets.digits import AUGMENTATION as DIGITS_AUGMENTATION
from datasets.image_source import steps_per_epoch
from datasets.long_tail import Augmentation, Split
from utils.hashing import epoch_order

CPU = torch.device("cpu")
VIEWS = 162  # 9 x 9 offsets, mirrored or not


def marked_image(size: int = 32) -> np.ndarray:
    """An image whose pixels tell their own position, and none of which is black."""
    image = np.full((size, size, 3), 200, dtype=np.uint8)
    image[..., 0] = 1 + 7 * np.arange(size)[:, None]
    image[..., 1] = 3 + 7 * np.arange(size)[None, :]
    return image


def copies(image: np.ndarray, count: int, augmentation: Augmentation = AUGMENTATION) -> DeviceImages:
    """`count` copies of one image, with ids 0, 1, 2, ..."""
    images = np.repeat(image[None], count, axis=0)
    return DeviceImages(Split(images, np.zeros(count, dtype=np.int64), np.arange(count)), augmentation, CPU)


def random_split(count: int, seed: int = 0) -> Split:
    images = np.random.RandomState(seed).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    return Split(images, np.arange(count) % 10, np.arange(count))


def possible_views(image: np.ndarray, augmentation: Augmentation) -> Tensor:
    """Everything RandomCrop (and RandomHorizontalFlip) can make of an image; offsets (y, x) vary slowest."""
    size, pad = image.shape[0], augmentation.padding
    padded = TF.pad(transforms.ToPILImage()(image), [pad] * 4, fill=0)
    crops = [TF.crop(padded, y, x, size, size) for y in range(2 * pad + 1) for x in range(2 * pad + 1)]
    ways = [TF.to_tensor, mirrored_tensor] if augmentation.mirror else [TF.to_tensor]
    pictures = [way(crop) for crop in crops for way in ways]
    return torch.stack([TF.normalize(picture, augmentation.mean, augmentation.std) for picture in pictures])


def mirrored_tensor(picture: object) -> Tensor:
    return TF.to_tensor(TF.hflip(picture))


def which_view(batch: Tensor, views: Tensor) -> Tensor:
    """The index of the view that each image of a batch (B, 3, H, W) is; fails where it is none of them."""
    nearest = torch.cdist(batch.flatten(1), views.flatten(1)).argmin(dim=1)
    torch.testing.assert_close(batch.contiguous(), views[nearest], rtol=0, atol=2e-5)
    return nearest


@pytest.fixture(scope="module")
def cifar_views() -> Tensor:
    return possible_views(marked_image(), AUGMENTATION)


@pytest.fixture(scope="module")
def drawn(cifar_views: Tensor) -> np.ndarray:
    """The views that 3240 images, 20 a view, are given in one epoch."""
    images = copies(marked_image(), 20 * VIEWS)
    rows = torch.arange(len(images))
    parts = [which_view(images.augmented(part, seed=3, epoch=5), cifar_views) for part in rows.split(810)]
    return torch.cat(parts).numpy()


def test_torchvision_makes_these_views_and_no_others(cifar_views: Tensor) -> None:
    distances = torch.cdist(cifar_views.flatten(1), cifar_views.flatten(1)).fill_diagonal_(torch.inf)
    assert len(cifar_views) == VIEWS and distances.min() > 1  # so an image tells its view
    released = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ]
    )
    picture = transforms.ToPILImage()(marked_image())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = torch.stack([released(picture) for _ in range(300)])
    assert len(set(which_view(batch, cifar_views).tolist())) > 120


def test_every_view_is_drawn_equally_often(drawn: np.ndarray) -> None:
    assert chisquare(np.bincount(drawn, minlength=VIEWS)).pvalue > 1e-3
    offsets, mirrored = np.divmod(drawn, 2)
    assert chisquare(np.bincount(offsets // 9, minlength=9)).pvalue > 1e-3
    assert chisquare(np.bincount(offsets % 9, minlength=9)).pvalue > 1e-3
    assert chisquare(np.bincount(mirrored, minlength=2)).pvalue > 1e-3


def test_neighbours_in_a_batch_are_drawn_apart(drawn: np.ndarray) -> None:
    offsets, mirrored = np.divmod(drawn, 2)
    for values, kinds in ((offsets // 9, 9), (offsets % 9, 9), (mirrored, 2)):
        pairs = values[:-1] * kinds + values[1:]
        assert chisquare(np.bincount(pairs, minlength=kinds**2)).pvalue > 1e-3
    assert (drawn[:-1] == drawn[1:]).mean() < 0.02


def test_one_image_sees_every_view_over_the_epochs(cifar_views: Tensor) -> None:
    images, row = copies(marked_image(), 1), torch.tensor([0])
    batch = torch.cat([images.augmented(row, seed=0, epoch=epoch) for epoch in range(5 * VIEWS)])
    views = which_view(batch, cifar_views)
    assert chisquare(torch.bincount(views, minlength=VIEWS).numpy()).pvalue > 1e-3
    pairs = views[:-1] % 2 * 2 + views[1:] % 2
    assert chisquare(torch.bincount(pairs, minlength=4).numpy()).pvalue > 1e-3


def test_padding_is_black_before_normalising(cifar_views: Tensor) -> None:
    black = torch.tensor([-0.4914 / 0.2023, -0.4822 / 0.1994, -0.4465 / 0.2010])
    images = copies(marked_image(), 600)
    batch = images.augmented(torch.arange(600), seed=0, epoch=0)
    views = which_view(batch, cifar_views)
    topmost = batch[(views // 2) // 9 == 0]  # crops from the very top of the padded image: four black rows
    assert len(topmost) > 30
    torch.testing.assert_close(topmost[:, :, :4], black[None, :, None, None].expand(len(topmost), 3, 4, 32))
    assert (topmost[:, 2, 4:].amax(dim=(1, 2)) > 0).all()
    centred = batch[(views // 2) == 40]
    assert len(centred) > 0 and (centred[:, 2] > 1).all()  # no padding in sight: the blue plane is 200 everywhere


def test_two_draws_of_a_batch_differ() -> None:
    images = copies(marked_image(), 2)
    differing = sum(
        not torch.equal(*images.augmented(torch.tensor([0, 1]), seed=0, epoch=epoch)) for epoch in range(100)
    )
    assert differing >= 95


def test_draws_do_not_depend_on_the_batch() -> None:
    split = random_split(40)
    images = DeviceImages(split, AUGMENTATION, CPU)
    whole = images.augmented(torch.arange(40), seed=1, epoch=2)
    rows = torch.tensor([31, 4, 17, 0])
    assert torch.equal(images.augmented(rows, seed=1, epoch=2), whole[rows])
    assert torch.equal(images.augmented(torch.tensor([17]), seed=1, epoch=2), whole[17:18])
    # An image keeps its draw in another selection too: draws belong to ids, not to positions.
    selection = DeviceImages(split.take(rows.numpy()), AUGMENTATION, CPU)
    assert torch.equal(selection.augmented(torch.arange(4), seed=1, epoch=2), whole[rows])


def test_draws_differ_by_epoch_and_by_seed(cifar_views: Tensor) -> None:
    images, rows = copies(marked_image(), 300), torch.arange(300)
    views = {
        key: which_view(images.augmented(rows, *key), cifar_views) for key in ((0, 0), (0, 1), (1, 0), (1, 1), (-1, 0))
    }
    keys = list(views)
    for i, first in enumerate(keys):
        for second in keys[i + 1 :]:
            assert (views[first] == views[second]).float().mean() < 0.05, (first, second)
    assert torch.equal(views[0, 0], which_view(images.augmented(rows, 0, 0), cifar_views))


def test_draws_leave_the_global_generator_alone() -> None:
    images = copies(marked_image(), 4)
    state = torch.get_rng_state()
    list(images.training_batches(2, seed=0, epoch=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_mirroring_where_it_would_change_the_class() -> None:
    image = marked_image(8)
    views = possible_views(image, DIGITS_AUGMENTATION)
    assert len(views) == 9
    images = copies(image, 900, DIGITS_AUGMENTATION)
    drawn = which_view(images.augmented(torch.arange(900), seed=0, epoch=0), views)
    assert chisquare(torch.bincount(drawn, minlength=9).numpy()).pvalue > 1e-3


def test_mirror_switch_alone_decides() -> None:
    unmirrored = replace(AUGMENTATION, mirror=False)
    views = possible_views(marked_image(), unmirrored)
    assert len(views) == 81
    which_view(copies(marked_image(), 300, unmirrored).augmented(torch.arange(300), seed=0, epoch=0), views)


@pytest.mark.parametrize("augmentation", [AUGMENTATION, DIGITS_AUGMENTATION], ids=["cifar", "digits"])
def test_plain_is_to_tensor_and_normalise(augmentation: Augmentation) -> None:
    split = random_split(6)
    images = DeviceImages(split, augmentation, CPU)
    released = transforms.Compose([transforms.ToTensor(), transforms.Normalize(augmentation.mean, augmentation.std)])
    expected = torch.stack([released(image) for image in split.images])
    rows = torch.tensor([5, 0, 3])
    torch.testing.assert_close(images.plain(rows).contiguous(), expected[rows], rtol=0, atol=2e-6)
    torch.testing.assert_close(images.plain(slice(1, 4)).contiguous(), expected[1:4], rtol=0, atol=2e-6)
    torch.testing.assert_close(
        images.plain(rows, mirrored=True).contiguous(), TF.hflip(expected[rows]), rtol=0, atol=2e-6
    )


def test_batches_are_float32_and_channels_last() -> None:
    images = DeviceImages(random_split(4), AUGMENTATION, CPU)
    for batch in (images.plain(torch.arange(4)), images.augmented(torch.arange(4), 0, 0)):
        assert batch.dtype == torch.float32 and batch.shape == (4, 3, 32, 32)
        assert batch.is_contiguous(memory_format=torch.channels_last)


def test_epoch_order_is_a_shuffle_of_its_own_seed_and_epoch() -> None:
    order = epoch_order(500, seed=2, epoch=7)
    assert sorted(order.tolist()) == list(range(500))
    assert order.tolist() != list(range(500))
    torch.manual_seed(123)
    assert torch.equal(epoch_order(500, seed=2, epoch=7), order)
    for other in (epoch_order(500, seed=2, epoch=8), epoch_order(500, seed=3, epoch=7)):
        assert (other == order).float().mean() < 0.05


def test_training_batches_cover_every_image_once_and_keep_the_last_part() -> None:
    split = replace(random_split(22), labels=np.arange(22))
    images = DeviceImages(split, AUGMENTATION, CPU)
    batches = list(images.training_batches(8, seed=0, epoch=3))
    assert [len(labels) for _, labels in batches] == [8, 8, 6]
    assert len(batches) == steps_per_epoch(22, 8)
    labels = torch.cat([labels for _, labels in batches])
    assert sorted(labels.tolist()) == list(range(22))
    augmented = images.augmented(torch.arange(22), seed=0, epoch=3)  # labels are positions here: images belong to them
    assert torch.equal(torch.cat([pixels for pixels, _ in batches]), augmented[labels])
    again = torch.cat([labels for _, labels in images.training_batches(8, seed=0, epoch=3)])
    later = torch.cat([labels for _, labels in images.training_batches(8, seed=0, epoch=4)])
    assert torch.equal(again, labels) and not torch.equal(later, labels)


@pytest.mark.parametrize(("count", "steps"), [(1, 1), (63, 1), (64, 1), (65, 2), (10847, 170)])
def test_steps_per_epoch(count: int, steps: int) -> None:
    assert steps_per_epoch(count, 64) == steps

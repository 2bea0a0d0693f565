"""Streamed images: what a batch shows depends on seed, epoch and image alone, and equals torchvision's transforms."""

import contextlib
import gc
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datasets.augment.crops import centre_crop, draw_box, random_crop, uniforms
from datasets.augment.jitter import BRIGHTNESS, CONTRAST, ORDERS, SATURATION, apply_jitter, colour_jitter, draw_jitter
from datasets.long_tail import Augmentation
from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.streamed import StreamedImages
from datasets.workers import PIECE, Reading, Tasks, Workers, find_unreadable
from utils.errors import UserError
from utils.hashing import hash_ids

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")

CPU = torch.device("cpu")
NATURAL = Augmentation(padding=0, mirror=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
UNMIRRORED = Augmentation(padding=0, mirror=False, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
COUNT, SIZE, RESIZE = 37, 24, 28
SIZES = [(40, 52), (61, 33), (30, 30), (12, 17), (9, 90)]  # the last two are smaller than the crop


def photo(seed: int, height: int, width: int) -> np.ndarray:
    """Return smooth noise (height, width, 3) uint8."""
    small = np.random.RandomState(seed).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> ListedSplit:
    """Images of several sizes, JPEG and PNG in turn; their ids are not their rows."""
    root = tmp_path_factory.mktemp("images")
    names = [f"{i}.{('jpg', 'png')[i % 2]}" for i in range(COUNT)]
    for i, name in enumerate(names):
        Image.fromarray(photo(i, *SIZES[i % len(SIZES)])).save(root / name)
    listed = pack(root, [os.fsencode(name) for name in names], [i % 3 for i in range(COUNT)])
    return ListedSplit(listed.images, listed.labels, 1000 + 7 * listed.ids, root)


def images_of(split: ListedSplit, workers: int = 0, augment: str = "crop", **more: Augmentation) -> StreamedImages:
    augmentation = more.get("augmentation", NATURAL)
    return StreamedImages(split, augmentation, CPU, size=SIZE, resize=RESIZE, augment=augment, reading=Reading(workers))


@pytest.fixture(scope="module")
def with_workers(split: ListedSplit) -> Iterator[StreamedImages]:
    images = images_of(split, 2, "jitter")
    yield images
    images.close()


def everything(images: StreamedImages, view: tuple[int, int] | None = None, mirrored: bool = False) -> Tensor:
    return torch.cat(list(images.view_batches([torch.arange(COUNT)], view, mirrored)))


def replaced(split: ListedSplit, row: int, name: bytes) -> ListedSplit:
    images = split.images.astype("S40")
    images[row] = name
    return ListedSplit(images, split.labels, split.ids, split.root)


def test_labels_ids_and_sizes_are_those_of_the_split(split: ListedSplit) -> None:
    images = images_of(split)
    assert len(images) == COUNT and images.size == SIZE and images.augmentation is NATURAL
    assert images.labels.tolist() == split.labels.tolist() and images.labels.dtype == torch.int64
    assert images.ids.tolist() == split.ids.tolist() and images.ids.dtype == torch.int64


def test_a_centre_crop_equals_torchvisions_transforms(split: ListedSplit) -> None:
    floats = v2.ToDtype(torch.float32, scale=True)
    steps = [v2.Resize(RESIZE, antialias=True), v2.CenterCrop(SIZE), floats, v2.Normalize(NATURAL.mean, NATURAL.std)]
    transform = v2.Compose(steps)
    found = everything(images_of(split))
    resized_by_pil = v2.Compose([v2.Resize(RESIZE), v2.CenterCrop(SIZE)])
    for row in range(COUNT):
        with Image.open(split.path(row)) as image:
            pixels = image.convert("RGB")
        torch.testing.assert_close(found[row], transform(v2.functional.pil_to_tensor(pixels)), rtol=0, atol=1e-5)
        by_pil = v2.functional.pil_to_tensor(resized_by_pil(pixels)).int()
        ours = centre_crop(v2.functional.pil_to_tensor(pixels), SIZE, RESIZE).int()
        assert (ours - by_pil).abs().max() <= 1  # PIL rounds at other places


@pytest.mark.parametrize(("height", "width"), [(1, 30000), (30000, 1)])
def test_a_strip_is_not_enlarged_as_a_whole(height: int, width: int) -> None:
    strip = torch.arange(30000).remainder(256).to(torch.uint8).view(1, height, width).expand(3, -1, -1)
    crop = centre_crop(strip, SIZE, 4 * SIZE)  # as a whole it would be 828 MB
    middle = strip.flatten(1)[0, 14998:15002]
    assert crop.shape == (3, SIZE, SIZE)
    assert middle.min() <= crop.min() and crop.max() <= middle.max()


def test_a_random_crop_is_torchvisions_resized_crop() -> None:
    image = torch.from_numpy(photo(0, 70, 90)).permute(2, 0, 1)
    for draw in range(20):
        box = draw_box(70, 90, uniforms(draw))
        assert torch.equal(random_crop(image, SIZE, draw), F.resized_crop(image, *box, [SIZE, SIZE], antialias=True))


@pytest.mark.parametrize(("height", "width"), [(375, 500), (224, 224), (100, 300), (300, 100), (40, 900)])
@pytest.mark.parametrize("smallest", [0.08, 0.6])
def test_crops_are_distributed_as_torchvisions(height: int, width: int, smallest: float) -> None:
    count = 4000
    draws = hash_ids(torch.arange(count), 0, 0).tolist()
    ours = np.array([draw_box(height, width, uniforms(draw), smallest) for draw in draws])
    torch.manual_seed(0)
    blank = torch.empty(1, height, width)
    theirs = np.array([v2.RandomResizedCrop(1, (smallest, 1)).make_params([blank]) for _ in range(count)], dtype=object)
    theirs = np.array([[box[name] for name in ("top", "left", "height", "width")] for box in theirs])
    for boxes in (ours, theirs):
        assert (boxes >= 0).all() and (boxes[:, 2:] >= 1).all()
        assert (boxes[:, 0] + boxes[:, 2] <= height).all() and (boxes[:, 1] + boxes[:, 3] <= width).all()
    quantiles = np.linspace(0, 1, 21)[1:-1]
    for value in (
        lambda boxes: boxes[:, 2] * boxes[:, 3] / (height * width),
        lambda boxes: np.log(boxes[:, 3] / boxes[:, 2]),
        lambda boxes: boxes[:, 0] / height,
        lambda boxes: boxes[:, 1] / width,
    ):
        differences = np.quantile(value(ours), quantiles) - np.quantile(value(theirs), quantiles)
        assert np.abs(differences).max() < 0.03


def test_a_whole_image_is_no_other_crop(split: ListedSplit) -> None:
    """Of square images; of the others it is the whole that fits the ratios."""
    reading = Reading(crop_area=1.0)
    whole = StreamedImages(split, UNMIRRORED, CPU, size=SIZE, resize=RESIZE, reading=reading)
    views = [everything(whole, (0, epoch)) for epoch in (0, 1)]
    square = [row for row in range(COUNT) if SIZES[row % len(SIZES)] == (30, 30)]
    usual = [everything(images_of(split, augmentation=UNMIRRORED), (0, epoch)) for epoch in (0, 1)]
    same = [[float((of[0][row] - of[1][row]).abs().mean()) for row in square] for of in (views, usual)]
    assert max(same[0]) < 0.5 * min(same[1])


def test_the_centre_stands_in_where_no_crop_fits() -> None:
    transform = v2.RandomResizedCrop(1)
    for height, width in ((3, 1000), (1000, 3), (1, 1)):
        expected = transform.make_params([torch.empty(1, height, width)])
        box = draw_box(height, width, uniforms(5))
        assert box == tuple(expected[name] for name in ("top", "left", "height", "width"))


def test_numbers_are_uniform_and_differ() -> None:
    numbers = [next(stream) for stream in map(uniforms, range(500)) for _ in range(8)]
    assert len(set(numbers)) == 4000 and min(numbers) >= 0 and max(numbers) < 1
    assert np.abs(np.sort(numbers) - np.linspace(0, 1, 4000)).max() < 0.03  # Kolmogorov-Smirnov


def test_a_view_depends_neither_on_batches_nor_on_workers(split: ListedSplit, with_workers: StreamedImages) -> None:
    alone = images_of(split, 0, "jitter")
    whole = everything(alone, (3, 5))
    order = torch.randperm(COUNT, generator=torch.Generator().manual_seed(0))
    for images in (alone, with_workers):
        batches = list(images.view_batches([order[:20], order[20:21], order[21:]], (3, 5)))
        assert [len(batch) for batch in batches] == [20, 1, COUNT - 21]
        assert torch.equal(torch.cat(batches), whole[order])


def test_the_draws_belong_to_the_id_not_to_the_row(split: ListedSplit) -> None:
    whole = everything(images_of(split), (3, 5))
    rows = np.array([30, 4, 11])
    part = images_of(split.take(rows))
    assert torch.equal(next(part.view_batches([torch.arange(3)], (3, 5))), whole[rows])


def test_epochs_and_seeds_differ(split: ListedSplit) -> None:
    images = images_of(split)
    views = [everything(images, view) for view in ((0, 0), (0, 1), (1, 0))]
    for i in range(3):
        assert torch.equal(everything(images, ((0, 0), (0, 1), (1, 0))[i]), views[i])
        changed = (views[i] != views[i - 1]).flatten(1).any(dim=1)
        assert changed.sum() >= COUNT - 2


def test_batches_are_normalised_floats_in_channels_last_order(split: ListedSplit) -> None:
    for view in (None, (0, 0)):
        for augment in ("crop", "jitter"):
            (batch,) = images_of(split, 0, augment).view_batches([torch.arange(5)], view)
            assert batch.dtype == torch.float32 and batch.shape == (5, 3, SIZE, SIZE)
            assert batch.is_contiguous(memory_format=torch.channels_last)


def test_mirrored_turns_every_image(split: ListedSplit) -> None:
    images = images_of(split)
    for view in (None, (0, 4)):
        assert torch.equal(everything(images, view, mirrored=True), everything(images, view).flip(3))


def test_half_of_a_view_is_mirrored_where_the_data_allow_it(split: ListedSplit) -> None:
    mirroring = images_of(split, augmentation=Augmentation(0, True, UNMIRRORED.mean, UNMIRRORED.std))
    plain = images_of(split, augmentation=UNMIRRORED)
    turned = []
    for epoch in range(8):
        found, straight = everything(mirroring, (0, epoch)), everything(plain, (0, epoch))
        as_it_is = (found == straight).flatten(1).all(dim=1)
        assert (as_it_is | (found == straight.flip(3)).flatten(1).all(dim=1)).all()
        turned += (~as_it_is).tolist()
    assert abs(np.mean(turned) - 0.5) < 4 * 0.5 / math.sqrt(len(turned))


def test_no_rows_make_an_empty_batch(split: ListedSplit, with_workers: StreamedImages) -> None:
    for images in (images_of(split), with_workers):
        for view in (None, (0, 0)):
            batches = list(images.view_batches([torch.arange(3), torch.arange(0), torch.arange(2)], view))
            assert [tuple(batch.shape) for batch in batches] == [(n, 3, SIZE, SIZE) for n in (3, 0, 2)]
            assert [len(batch) for batch in images.view_batches([torch.arange(0)], view)] == [0]
            assert list(images.view_batches([], view)) == []


def test_large_batches_come_in_the_order_asked_for(split: ListedSplit, with_workers: StreamedImages) -> None:
    rows = torch.arange(10 * COUNT).remainder(COUNT).flip(0)  # more pieces than there are slots
    assert len(rows) > 10 * PIECE
    whole = everything(images_of(split))
    for batch in (5, PIECE, 100, len(rows)):
        found = torch.cat(list(with_workers.view_batches(rows.split(batch))))
        assert torch.equal(found, whole[rows])


def test_a_pass_can_be_left_and_another_begun(split: ListedSplit, with_workers: StreamedImages) -> None:
    rows = list(torch.arange(COUNT).repeat(5).split(10))
    whole = everything(images_of(split))
    for images in (images_of(split), with_workers):
        left = images.view_batches(rows, (9, 9))
        next(left)
        assert torch.equal(everything(images), whole)
        with pytest.raises(RuntimeError, match="another pass"):
            next(left)


def test_workers_live_through_all_passes(with_workers: StreamedImages) -> None:
    everything(with_workers)
    first = {child.pid for child in multiprocessing.active_children()}
    everything(with_workers, (0, 1))
    assert len(first) == 2 and {child.pid for child in multiprocessing.active_children()} == first


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int, split: ListedSplit) -> None:
    images = images_of(split, workers)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    everything(images, (0, 1))
    images.close()
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_cannot_be_read_is_named_in_one_line(workers: int, split: ListedSplit) -> None:
    images = images_of(replaced(split, 20, b"gone.jpg"), workers)
    batches = images.view_batches([torch.arange(COUNT)[:18], torch.arange(COUNT)[18:]], (0, 0))
    assert len(next(batches)) == 18
    with pytest.raises(UserError) as caught:
        next(batches)
    assert str(caught.value) == (
        f"cannot read the image {split.root}/gone.jpg: No such file or directory; --skip_bad N leaves out up to N such "
        "images"
    )
    assert len(next(images.view_batches([torch.arange(5)]))) == 5
    images.close()


def test_a_killed_worker_ends_in_one_line(split: ListedSplit) -> None:
    images = images_of(split, 1)
    before = set(multiprocessing.active_children())
    batches = images.view_batches(list(torch.arange(COUNT).repeat(20).split(8)))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    worker.kill()
    worker.join(5)  # nothing is raised here, in the program that uses the batches
    with pytest.raises(UserError, match="a worker process that reads images was killed"):
        list(batches)
    assert len(everything(images)) == COUNT  # with a new worker
    images.close()


def test_a_worker_killed_between_passes_ends_the_next_in_one_line(split: ListedSplit) -> None:
    before = set(multiprocessing.active_children())
    images = images_of(split, 2)
    everything(images)
    worker = (set(multiprocessing.active_children()) - before).pop()
    worker.kill()
    worker.join(5)
    with pytest.raises(UserError, match="a worker process that reads images was killed"):
        everything(images)
    assert set(multiprocessing.active_children()) == before
    assert len(everything(images)) == COUNT
    images.close()


class Ends(Dataset[str]):
    """Work that kills whoever does it."""

    def __getitem__(self, task: object) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("dead processes do nothing")


def test_a_worker_that_dies_at_work_ends_in_one_line() -> None:
    workers = Workers(Ends(), Tasks([(0, np.arange(1), None)]), 1)
    with pytest.raises(UserError, match="a worker process that reads images was killed"):
        next(workers.answers())  # the loader looks after five seconds
    workers.end()


class Fails(Dataset[str]):
    """Work with a fault of its own."""

    def __getitem__(self, task: object) -> str:
        raise RuntimeError("a fault in the program")


@pytest.mark.parametrize("count", [0, 1])
def test_a_fault_in_the_work_is_not_taken_for_a_killed_worker(count: int) -> None:
    workers = Workers(Fails(), Tasks([(0, np.arange(1), None)]), count)
    with pytest.raises(RuntimeError, match="a fault in the program"):
        next(workers.answers())
    workers.end()


@pytest.mark.parametrize("left", [False, True])
def test_closing_ends_the_workers_at_once(left: bool, split: ListedSplit) -> None:
    """Also in the middle of a pass, which somebody still holds."""
    before = set(multiprocessing.active_children())
    images = images_of(split, 2)
    batches = images.view_batches(list(torch.arange(COUNT).repeat(5).split(8)))
    if left:
        next(batches)
    else:
        list(batches)
    workers = set(multiprocessing.active_children()) - before
    started = time.monotonic()
    images.close()
    assert time.monotonic() - started < 4  # left to itself a loader waits for five seconds
    assert len(workers) == 2 and not any(worker.is_alive() for worker in workers)
    assert set(multiprocessing.active_children()) == before
    with pytest.raises(RuntimeError, match="another pass") if left else contextlib.nullcontext():
        list(batches)
    assert len(everything(images)) == COUNT  # with new workers
    images.close()


def test_images_that_nobody_holds_leave_no_worker(split: ListedSplit) -> None:
    before = set(multiprocessing.active_children())
    images = images_of(split, 1)
    everything(images)
    assert len(set(multiprocessing.active_children()) - before) == 1
    del images
    gc.collect()
    assert set(multiprocessing.active_children()) == before


INTERRUPTED = """
import os, sys, torch
from pathlib import Path
from datasets.on_disk.folders import read_folder
from datasets.long_tail import Augmentation
from datasets.streamed import StreamedImages
from datasets.workers import Reading

def main():
    split, _ = read_folder(Path(sys.argv[1]), "train")
    images = StreamedImages(split, Augmentation(0, True, (0, 0, 0), (1, 1, 1)), torch.device("cpu"), size=8, resize=8,
                            reading=Reading(2))
    for number, _ in enumerate(images.view_batches(list(torch.zeros(10**6, dtype=torch.int64).split(16)))):
        if number == 2:
            print(*[child.pid for child in torch.multiprocessing.active_children()], flush=True)

try:
    main()
except KeyboardInterrupt:
    sys.exit("interrupted")
"""


def test_an_interrupt_leaves_no_process_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "train" / "ant").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "train" / "ant" / "a.jpg")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path)],
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert process.stdout is not None
    workers = [int(pid) for pid in process.stdout.readline().split()]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1 and errors.strip() == "interrupted"
    assert len(workers) == 2 and not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"augment": "autoaugment"}, "CIFAR's policy"),
        ({"augment": "blur"}, "unknown --augment 'blur'; known: crop, jitter"),
        ({"size": 30}, "a crop of 30 pixels does not fit"),
        ({"reading": Reading(-1)}, "--workers must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(more: dict[str, object], words: str, split: ListedSplit) -> None:
    with pytest.raises(UserError, match=words):
        StreamedImages(split, NATURAL, CPU, **{"size": SIZE, "resize": RESIZE, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_found(workers: int, split: ListedSplit) -> None:
    assert find_unreadable(split, workers, 0) == []
    bad = replaced(replaced(replaced(split, 3, b"gone.jpg"), 17, b"lost.png"), 36, b"away.png")
    found = find_unreadable(bad, workers, 5)
    assert [row for row, _ in found] == [3, 17, 36]
    assert found[1][1] == f"cannot read the image {split.root}/lost.png: No such file or directory"
    assert [row for row, _ in find_unreadable(bad, workers, 1)] == [3, 17]


def test_no_images_have_nothing_unreadable(split: ListedSplit) -> None:
    assert find_unreadable(split.take(np.arange(0)), 0, 0) == []


def some_pixels() -> Tensor:
    return torch.stack([torch.from_numpy(photo(i, 13, 17)).permute(2, 0, 1) for i in range(len(ORDERS))])


def test_jitter_equals_torchvisions_functions_in_every_order() -> None:
    pixels = some_pixels()
    factors = torch.rand(len(ORDERS), 3, generator=torch.Generator().manual_seed(0)) * 1.2 + 0.4
    adjust = {BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation}
    found = apply_jitter(pixels, torch.tensor(ORDERS), factors)
    for image, order, factor, ours in zip(pixels, ORDERS, factors.tolist(), found, strict=True):
        expected = image.float() / 255
        for operation in order:
            expected = adjust[operation](expected, factor[operation])
        torch.testing.assert_close(ours / 255, expected, rtol=0, atol=2e-6)
    assert not torch.equal(found[0], apply_jitter(pixels[:1], torch.tensor(ORDERS[-1:]), factors[:1])[0])


def test_jitter_keeps_the_memory_order_and_its_input() -> None:
    pixels = some_pixels()
    draws = hash_ids(torch.arange(len(pixels)), 0, 0)
    before = pixels.clone()
    found = colour_jitter(pixels.contiguous(memory_format=torch.channels_last), draws)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float32
    assert torch.equal(found, colour_jitter(pixels.contiguous(), draws))
    floats = pixels.float()
    colour_jitter(floats, draws)
    assert torch.equal(floats, before.float())
    assert colour_jitter(pixels[:0], draws[:0]).shape == (0, 3, 13, 17)


def test_jitter_orders_are_counted_as_they_were_listed() -> None:
    """The order of draw i is the i-th of the permutations as they are sorted, which recorded runs depend on."""
    assert draw_jitter(torch.arange(12))[0].tolist() == 2 * list(map(list, ORDERS))


def test_jitter_draws_every_order_and_uniform_factors() -> None:
    count = 12000
    order, factors = draw_jitter(hash_ids(torch.arange(count), 3, 1))
    kinds, counts = order.unique(dim=0, return_counts=True)
    assert sorted(map(tuple, kinds.tolist())) == sorted(ORDERS)
    assert ((counts - count / 6).abs() < 5 * math.sqrt(count / 6)).all()
    for column in factors.T:
        assert (column.sort().values - torch.linspace(0.6, 1.4, count)).abs().max() < 0.02
    correlation = torch.corrcoef(torch.cat([factors.T, order.T.float()[:2]]))[:3]
    assert (correlation - torch.eye(3, 5)).abs().max() < 0.05


def test_jitter_changes_a_view_and_no_centre_crop(split: ListedSplit) -> None:
    plain, jittered = images_of(split), images_of(split, augment="jitter")
    assert torch.equal(everything(plain), everything(jittered))
    views = [everything(images, (0, 0)) for images in (plain, jittered)]
    changed = (views[0] - views[1]).abs().flatten(1).amax(dim=1)
    assert (changed > 0.01).all() and changed.max() < 3  # in standard deviations of the data


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_the_batches_are_those_of_the_cpu(split: ListedSplit) -> None:
    device = torch.device("cuda")
    rows = [rows.to(device) for rows in torch.arange(COUNT).repeat(6).split(9)]
    for view in (None, (1, 2)):
        images = StreamedImages(split, NATURAL, device, size=SIZE, resize=RESIZE, augment="jitter", reading=Reading(2))
        found = torch.cat(list(images.view_batches(rows, view))).cpu()
        expected = everything(images_of(split, augment="jitter"), view).repeat(6, 1, 1, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        images.close()


def test_too_little_shared_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, split: ListedSplit) -> None:
    """A container's 64 MB are soon full; PyTorch's own error is a RuntimeError of several lines."""

    def full(tensor: Tensor) -> Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(Tensor, "share_memory_", full)
    images = images_of(split, workers=2)
    with pytest.raises(UserError, match=r"2 processes that read images need .* MB of shared memory") as caught:
        next(images.view_batches([torch.arange(2)]))
    assert "--shm-size" in str(caught.value)

"""How close the loader of large images comes to the rate at which the same processes can decode them.

    python -m benchmarks.speed.decode
    python -m benchmarks.speed.decode --images 2000 --workers 2 --size 224 --rounds 5
    python -m benchmarks.speed.decode --dataset imagenet_lt --data_dir data
    python -m benchmarks.speed.decode --quick

By default it reads JPEG files of 500 x 375 pixels that are made for it; with --data_dir the training images of a data
set. Five ways take turns, round after round: the same number of processes that decode and do nothing else, ones that
also crop and resize, the loader's crops as they reach the training process, the loader's normalised batches, and a
plain `DataLoader` with PIL transforms. The first two are measured with both decoders. Writes `results/decode.csv` and
`.md`.
"""

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.command import make_own_parser
from benchmarks.costs import synchronize
from benchmarks.record import provenance, write_record
from datasets import ON_DISK, load_dataset
from datasets.augment.crops import random_crop
from datasets.decode import decode_rgb, decoder_reason
from datasets.decoding.pil import decode_with_pil
from datasets.long_tail import Profile
from datasets.on_disk.listed_split import ListedSplit, pack
from datasets.on_disk.long_tailed import AUGMENTATION
from datasets.streamed import StreamedImages
from datasets.workers import Reading
from utils.command import run_command
from utils.device import choose_execution

HEIGHT, WIDTH, QUALITY = 375, 500, 90  # of the images made here; ImageNet's are about as large on the average
DISTINCT = 200  # of them; more images are these again
BATCH = 64
DECODERS: dict[str, Callable[[str], Tensor]] = {"torchvision": decode_rgb, "PIL": decode_with_pil}


def noise_photo(number: int) -> np.ndarray:
    """Return noise (HEIGHT, WIDTH, 3) uint8 with as much detail at each scale as photographs have, about."""
    random = np.random.RandomState(number)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0, dtype=np.float32)
    for cells, strength in ((4, 60), (16, 40), (64, 22), (200, 12), (375, 6)):
        coarse = (random.randn(cells, cells * WIDTH // HEIGHT, 3) * 40 + 128).clip(0, 255).astype(np.uint8)
        fine = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        pixels += strength / 40 * (np.asarray(fine, dtype=np.float32) - 128)
    return pixels.clip(0, 255).astype(np.uint8)


def write_photos(root: Path, count: int) -> ListedSplit:
    """Write JPEG files below `root` and return a split of `count` images."""
    names = [f"{number}.jpg" for number in range(min(count, DISTINCT))]
    for number, name in enumerate(names):
        Image.fromarray(noise_photo(number)).save(root / name, quality=QUALITY)
    return pack(root, [names[i % len(names)].encode() for i in range(count)], [0] * count)


def decode_all(decoder: str, size: int | None, paths: list[str]) -> None:
    """Decode files and, with a `size`, cut a random crop out of each and resize it: what one process does."""
    torch.set_num_threads(1)
    for number, path in enumerate(paths):
        image = DECODERS[decoder](path)
        if size is not None:
            random_crop(image, size, number)


class PlainFiles(Dataset[tuple[Tensor, int]]):
    """Images on disk as the field's usual loaders read them: PIL, transforms image by image, float32 in the worker."""

    def __init__(self, split: ListedSplit, size: int) -> None:
        self.split = split
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(AUGMENTATION.mean, AUGMENTATION.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        with Image.open(self.split.path(row)) as image:
            return self.transform(image.convert("RGB")), int(self.split.labels[row])


Run = Callable[[int], None]
Ways = dict[tuple[str, str], Run]


def make_ways(split: ListedSplit, images: StreamedImages, workers: int, device: torch.device, pool: Pool) -> Ways:
    """Return what is timed by (way, decoder): functions of the round's number, each through all images once."""
    size = images.size
    paths = [split.path(row) for row in range(len(split))]
    shares = [paths[first::workers] for first in range(workers)]
    rows = list(torch.arange(len(split)).split(BATCH))
    plain = DataLoader(
        PlainFiles(split, size),
        BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )

    def decoding(decoder: str, crop: int | None) -> Run:
        def run(_: int) -> None:
            pool.map(partial(decode_all, decoder, crop), shares, chunksize=1)

        return run

    def exhaust(batches: Callable[[int], Iterable[Tensor]]) -> Run:
        def run(number: int) -> None:
            for _ in batches(number):
                pass
            synchronize(device)

        return run

    return {
        **{("decoding alone", decoder): decoding(decoder, None) for decoder in DECODERS},
        **{("decoding, crop, resize", decoder): decoding(decoder, size) for decoder in DECODERS},
        ("loader, crops", "torchvision"): exhaust(lambda number: images.crops(rows, (0, number))),
        ("loader, batches", "torchvision"): exhaust(lambda number: images.view_batches(rows, (0, number))),
        ("plain DataLoader", "PIL"): exhaust(lambda _: (batch.to(device, non_blocking=True) for batch, _ in plain)),
    }


def measure_rates(split: ListedSplit, size: int, workers: int, rounds: int, device: torch.device) -> pd.DataFrame:
    """Return one row a way and round: images per second. All processes live through all rounds."""
    images = StreamedImages(split, AUGMENTATION, device, size=size, resize=size * 8 // 7, reading=Reading(workers))
    speeds = []
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        ways = make_ways(split, images, workers, device, pool)
        for number in range(-1, rounds):  # the first one starts the processes and is not counted
            for (way, decoder), run in ways.items():
                started = time.perf_counter()
                run(number + 1)
                rate = len(split) / (time.perf_counter() - started)
                if number >= 0:
                    speeds.append({"way": way, "decoder": decoder, "round": number, "images_per_second": rate})
            print(f"round {number + 1} of {rounds} done", flush=True)
    images.close()
    return pd.DataFrame(speeds)


def rates_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one line a way: the median rate, and its median share of two limits of the same round, with its range."""
    rates = {key: group["images_per_second"].to_numpy() for key, group in rows.groupby(["way", "decoder"], sort=False)}
    lines = []
    for (way, decoder), own in rates.items():
        line = {"way": way, "decoder": decoder, "images/s": f"{np.median(own):.0f}"}
        for limit, words in (
            ("decoding alone", "of decoding"),
            ("decoding, crop, resize", "of decoding, crop, resize"),
        ):
            share = 100 * own / rates[limit, "torchvision"]
            line[words] = f"{np.median(share):.0f}% ({share.min():.0f} to {share.max():.0f})"
        lines.append(line)
    return pd.DataFrame(lines)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the flags; a UserError where they cannot be."""
    parser = make_own_parser("speed.decode", __doc__, quick="one round of few small crops")
    parser.add_argument("--images", type=int, default=2000, help="images a turn [2000]")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode [2]")
    parser.add_argument("--size", type=int, default=224, help="side of a crop in pixels [224]")
    parser.add_argument("--rounds", type=int, default=5, help="turns of all ways [5]")
    parser.add_argument("--dataset", choices=ON_DISK, default="folder", help="form of the data set [folder]")
    parser.add_argument("--data_dir", help="folder of the data sets; without it, images are made")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, where batches go [cpu]")
    own = parser.parse_args(argv)
    if min(own.images, own.workers, own.size, own.rounds) < 1:
        parser.error("--images, --workers, --size and --rounds must be at least 1")
    if own.quick:
        own.images, own.rounds = min(own.images, 64), 1
    return own


def main(argv: Sequence[str] | None = None) -> None:
    own = parse(argv)
    device = choose_execution(own.device, 0, "off", "off", 1).device
    with tempfile.TemporaryDirectory() as folder:
        if own.data_dir is None:
            split = write_photos(Path(folder), own.images)
            what = f"JPEG files of {WIDTH} x {HEIGHT} pixels made of noise"
        else:
            train = load_dataset(own.dataset, Profile(imb_ratio=None), own.data_dir).train
            assert isinstance(train, ListedSplit)
            split = train.take(np.random.RandomState(0).permutation(len(train))[: own.images])
            what = f"training images of {own.dataset}"
        kilobytes = np.mean([Path(split.path(row)).stat().st_size for row in range(min(len(split), 1000))]) / 1000
        rows = measure_rates(split, own.size, own.workers, own.rounds, device)
    made = provenance("speed.decode", argv, device)
    rows = rows.assign(**made, images=len(split), kilobytes=kilobytes, workers=own.workers, size=own.size)
    notes = (
        f"{len(split)} {what}, {kilobytes:.0f} kB each, crops of {own.size} pixels, {own.workers} processes that "
        f"decode, on {made['device']}; median of {own.rounds} rounds, and range of the shares within a round. "
        f"{decoder_reason()}. Made by `{made['command']}`."
    )
    write_record(own.results, "decode", rows, rates_table(rows), notes[0].upper() + notes[1:])


if __name__ == "__main__":
    run_command(main)

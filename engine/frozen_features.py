"""Features of a frozen backbone: of every image as it is, and of the augmented views that stage 2 trains on."""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from datasets.features import DeviceFeatures
from datasets.identity.content import CONTENT
from datasets.image_source import ImageSource
from datasets.on_disk.listed_split import ListedSplit
from engine.epoch import predict, predict_blocks
from evaluation.measure import Images, SplitFeatures
from models.given_features import GivenFeatures
from models.network import Network
from runs.dependencies import differences, key_of
from runs.run_record import dependencies
from runs.session import LoadedModel
from utils.device import Execution
from utils.distributed import from_main, is_main, wait_for_all
from utils.errors import UserError, memory_for
from utils.files import make_folder, read_json, write_atomically, write_json
from utils.outside import plain_path, within
from utils.text import tell

# Added to the seed (below 2**32) for everything that stage 2 draws, so that it does not repeat the crops of stage 1.
STAGE2_DRAWS = 1 << 32
FETCHED = 8192  # rows
STAT_THREADS = 16  # a network disk answers many at once


@dataclass(frozen=True)
class FeatureStore:
    """Where features are kept: in files of `folder` (None: nowhere) named by what they depend on.

    `depends` has that for each split (`split_dependencies`); it is written beside the features, so that it can be said
    why others are computed. `mapped` features stay in these files, of which the system holds in memory what it has room
    for.
    """

    folder: Path | None = None
    depends: dict[str, dict[str, Any]] = field(default_factory=dict)
    mapped: bool = False


NOT_KEPT = FeatureStore()


class FrozenFeatures:
    """Features (N, d) of a backbone in evaluation mode, each computed once, when it is first asked for.

    Those that are given stay as they are, in half precision where they are in it: who computes with them casts a batch.

    View v of an image is the augmentation that epoch v of a run with this seed draws, so N views are the first N epochs
    of fresh augmentation. `views` is `--views`: their number, "plain" for the images as they are instead, or "fresh"
    for a view that serves one epoch and is not kept. What was computed is kept in the `store` and read back. Of many
    processes each computes a part.
    """

    def __init__(
        self,
        model: Network,
        images: Images,
        execution: Execution,
        seed: int,
        views: str,
        store: FeatureStore = NOT_KEPT,
    ) -> None:
        self.model = model
        self.images = images
        self.execution = execution
        self.seed = seed
        self.views = views
        self.store = store
        self._plain: dict[tuple[str, bool], Tensor] = {}
        self._augmented: dict[int, Tensor] = {}
        self._seconds = 0.0
        self._seconds_of_view = 0.0

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features of a split's images as they are, or mirrored."""
        if (split, mirrored) not in self._plain:
            self._plain[split, mirrored] = self._timed(split, mirrored=mirrored)
        return self._plain[split, mirrored]

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Return the features (M, d) and labels (M,) of the held-out images as they are, None where there are none."""
        images = self.images.get("holdout")
        return None if images is None or len(images) == 0 else (self.plain("holdout"), images.labels)

    def training_view(self, epoch: int) -> Tensor:
        """Return the features of the training images (N, d) under the view that `epoch` (from 0) trains on."""
        if self.views == "plain":
            return self.plain("train")
        view = epoch if self.views == "fresh" else epoch % int(self.views)
        if view in self._augmented:
            return self._augmented[view]
        if self.views == "fresh":
            return self._features("train", view=view, keep=False)
        before = self._seconds
        self._augmented[view] = self._timed("train", view=view)
        self._seconds_of_view = self._seconds - before
        return self._augmented[view]

    def rows_to_fit(self, labels: Tensor, views: bool) -> tuple[Tensor, Tensor]:
        """Return the features (M, d) and labels (M,) of what a computed classifier is fitted on, for those of the
        training images (N,): the images as they are or, with `views`, all cached views of them, one after the other.

        Raises UserError for views that are not kept.
        """
        if not views or self.views == "plain":
            return self.plain("train"), labels
        if self.views == "fresh":
            raise UserError("--fit_on views: give their number with --views; fresh ones have no end")
        every = [self.training_view(view) for view in range(int(self.views))]
        return torch.cat(every), labels.repeat(len(every))

    def seconds_once(self, epochs: int) -> tuple[float, float]:
        """Return the seconds that features took which are kept, and will take in a training of `epochs` epochs."""
        views = min(int(self.views), epochs) if self.views.isdecimal() else 0
        return self._seconds, max(views - len(self._augmented), 0) * self._seconds_of_view

    def _timed(self, split: str, *, mirrored: bool = False, view: int | None = None) -> Tensor:
        """Compute features, or read them, and add the time to what they took so far."""
        started = time.perf_counter()
        features = self._features(split, mirrored=mirrored, view=view)
        self._seconds += time.perf_counter() - started
        return features

    def _features(self, split: str, *, mirrored: bool = False, view: int | None = None, keep: bool = True) -> Tensor:
        """Compute features, or read them from the folder."""
        images = self.images[split]
        if isinstance(images, DeviceFeatures) and view is None and isinstance(self.model, GivenFeatures):
            return images.whole(mirrored)
        name = split + "_mirrored" * mirrored + (f"_seed{self.seed}_view{view}" if view is not None else "")
        path = None
        if self.store.folder is not None and keep:
            depends = self.store.depends[split]
            path = within(self.store.folder, self.store.folder / f"{name}_{key_of(depends)[:16]}.npy")
            if from_main(path.exists()):
                return self._read(path)
            if is_main():
                note_dependencies(path, name, depends)
        blocks = predict_blocks(
            self.model.eval().features,
            images,
            self.execution,
            mirrored=mirrored,
            view=None if view is None else (self.seed, view),
            message=f"features of {name}",
        )
        if path is not None and self.store.mapped and len(images):
            write_blocks(path, blocks, len(images))
            wait_for_all()
            return self._read(path)
        held = f"features of {name}, one of {self.views} views: rows of {len(images)} images"
        with memory_for(held, "--views or --width"):
            features = torch.cat(list(blocks))
        if path is not None and is_main():
            make_folder(path.parent)
            write_atomically(path, lambda file: np.save(file, features.cpu().numpy()))
        return features

    def _read(self, path: Path) -> Tensor:
        """Return stored features: as they lie in the file, or on the device."""
        try:
            with plain_path(path) as held:
                stored = np.load(held, mmap_mode="c" if self.store.mapped else None, allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(
                f"{path}, which the first process wrote, is not here: --out must be a folder that all machines share"
            ) from error
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged; delete it, and it is computed again") from error
        features = torch.from_numpy(stored)
        return features if self.store.mapped else features.to(self.execution.device)


def write_blocks(path: Path, blocks: Iterator[Tensor], count: int) -> None:
    """Write blocks of rows (n, d), `count` rows in all, into one .npy file, as they come.

    Of many processes all must call it, since they compute the blocks together; the first one writes.
    """

    def write(file: IO[bytes]) -> None:
        for number, block in enumerate(blocks):
            rows = block.cpu().numpy()
            if number == 0:
                shape = (count, *rows.shape[1:])
                descr = np.lib.format.dtype_to_descr(rows.dtype)
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)

    if is_main():
        make_folder(path.parent)
        write_atomically(path, write)
    else:
        for _ in blocks:
            pass


def freeze(loaded: LoadedModel, *, seed: int, views: str, keep: bool = False) -> FrozenFeatures:
    """Return the features of a loaded network; `keep` them in files for the next table.

    `seed` draws the augmented `views`. Features of images on disk, which take long to compute again and may not fit
    into memory, always are in files, and are used from there unless `keep` says that many heads will train on them at
    once.
    """
    source = loaded.source
    assert source is not None, "only a network that was trained is frozen"
    on_disk = isinstance(loaded.data.train, ListedSplit)
    kept = (keep or on_disk) and source.features is None
    out = Path(loaded.settings.out)
    folder = within(out, out / "features" / source.sha256[:16]) if kept else None
    store = FeatureStore(folder, split_dependencies(loaded) if kept else {}, mapped=on_disk and not keep)
    return FrozenFeatures(loaded.model, loaded.images, loaded.execution, seed, views, store)


def network_features(loaded: LoadedModel) -> SplitFeatures:
    """Return what computes the features (N, d) of a split's images, as they are or mirrored, anew at every call."""

    def features_of(split: str, mirrored: bool) -> Tensor:
        images = loaded.images[split]
        if isinstance(images, DeviceFeatures) and isinstance(loaded.model, GivenFeatures):
            return images.whole(mirrored)
        return predict(loaded.model.eval().features, loaded.images[split], loaded.execution, mirrored=mirrored)

    return features_of


def split_dependencies(loaded: LoadedModel) -> dict[str, dict[str, Any]]:
    """Return what the features of each split depend on: weights, preparation, and which image stands in which row.

    Labels and other splits have no part in it. Where images on disk are known by name alone, size and time of change
    count too, so that exchanged ones are noticed.
    """
    data, depends = loaded.data, dependencies(loaded)
    identity = depends.pop("identity")
    del depends["class_names"]
    found = {}
    for name, split in (("train", data.train), ("holdout", data.holdout), ("test", data.test)):
        rows = {"how": identity["how"], "of": identity["of"], "rows_sha256": identity[name]["rows_sha256"]}
        if isinstance(split, ListedSplit) and identity["how"] != CONTENT:
            rows["files"] = from_main(files_sha256(split) if is_main() else "")
        found[name] = {**depends, "rows": rows}
    return found


def note_dependencies(path: Path, name: str, depends: dict[str, Any]) -> None:
    """Write beside features that are about to be computed what they depend on; say what changed since others were."""
    before: list[list[str]] = []
    for file in path.parent.glob(f"{name}_????????????????.json") if path.parent.is_dir() else ():
        with contextlib.suppress(UserError):  # what cannot be read only explains
            before.append(differences(read_json(file), depends))
    if before:
        closest = min(before, key=len)
        tell(f"features of {name}: computed anew, since these are of {', '.join(closest)}")
    make_folder(path.parent)
    write_json(path.with_suffix(".json"), depends)


def files_sha256(split: ListedSplit) -> str:
    """Return the sha256 over path, size and time of change of a split's files; of a missing one over its absence."""

    def state(row: int) -> str:
        try:
            status = os.stat(split.path(row))
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"

    digest = hashlib.sha256(os.fsencode(split.root.resolve()))
    with ThreadPool(STAT_THREADS) as pool:
        for row, found in enumerate(pool.imap(state, range(len(split)), chunksize=256)):
            digest.update(b"%d %s %s\n" % (row, bytes(split.images[row]), found.encode()))
    return digest.hexdigest()


def feature_batches(
    features: Tensor, labels: Tensor, order: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of cached features (N, d), in float32, and labels (N,) in the `order` (M,) given on the CPU, on the
    labels' device.

    Features that lie elsewhere, in a mapped file, are fetched thousands of rows at once.
    """
    placed = order.to(labels.device)
    if features.device == labels.device:
        for rows in placed.split(batch_size):
            yield features[rows].float(), labels[rows]
        return
    size = max(FETCHED // batch_size, 1) * batch_size
    for group, there in zip(order.split(size), placed.split(size), strict=True):
        fetched = features[group].pin_memory().to(labels.device, non_blocking=True)
        for rows, of_rows in zip(fetched.split(batch_size), labels[there].split(batch_size), strict=True):
            yield rows.float(), of_rows


def batch_statistics_features(
    model: Network, images: ImageSource, execution: Execution, order: Tensor, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of freshly augmented batches with batch norm in train mode, as the released stage 2 sees them,
    in the `order` (M,) given on the CPU.

    Batch statistics are used and the running ones move, but nothing is differentiated: the gradient of the classifier
    is the same as if the backbone had been.
    """
    model.train()
    for pixels, labels in images.labelled_views(order.split(batch_size), (seed, epoch)):
        with torch.no_grad(), execution.autocast():
            features = model.features(pixels).float()
        yield features, labels

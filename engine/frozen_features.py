"""Features of a frozen backbone: of every image as it is, and of the augmented views that stage 2 trains on."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from datasets.features import DeviceFeatures, Features, in_memory
from datasets.image_source import ImageSource
from datasets.on_disk.listed_split import ListedSplit
from engine.cache.dependencies import backbone_sha256, split_dependencies
from engine.cache.store import NOT_KEPT, FeatureStore
from engine.epoch import predict, predict_blocks
from evaluation.measure import Images, SplitFeatures
from models.batch_norm.folded import folded_features
from models.given_features import GivenFeatures
from models.network import Network
from runs.checkpoint import Checkpoint
from runs.session import LoadedModel
from utils.device import Execution
from utils.distributed import from_main
from utils.errors import UserError, memory_for
from utils.outside import within

# Added to the seed (below 2**32) for everything that stage 2 draws, so that it does not repeat the crops of stage 1.
STAGE2_DRAWS = 1 << 32
FETCHED = 8192  # rows
RUN_DEPTH = 3  # folders between the one of the runs and a checkpoint: data and network, seed, run


class FrozenFeatures:
    """Features (N, d) of a backbone in evaluation mode, each computed once, when it is first asked for.

    Those that are given stay as they are, in half precision where they are in it: who computes with them casts a batch.

    View v of an image is the augmentation that epoch v of a run with this seed draws, so N views are the first N epochs
    of fresh augmentation. `views` is `--views`: their number, "plain" for the images as they are instead, or "fresh"
    for a view that serves one epoch and is not kept. What was computed is kept in the `store` and read back. Of many
    processes each computes a part.

    The network's backbone must stay as it was when features were first computed.
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
        self._plain: dict[tuple[str, bool], Features] = {}
        self._augmented: dict[int, Features] = {}
        self._seconds = 0.0
        self._seconds_of_view = 0.0
        self._function: Callable[[Tensor], Tensor] | None = None

    def plain(self, split: str, mirrored: bool = False) -> Features:
        """Return the features of a split's images as they are, or mirrored."""
        if (split, mirrored) not in self._plain:
            self._plain[split, mirrored] = self._timed(split, mirrored=mirrored)
        return self._plain[split, mirrored]

    def held_out(self) -> tuple[Tensor, Tensor] | None:
        """Return the features (M, d) and labels (M,) of the held-out images as they are, None where there are none."""
        images = self.images.get("holdout")
        return None if images is None or len(images) == 0 else (in_memory(self.plain("holdout")), images.labels)

    def training_view(self, epoch: int) -> Features:
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

    def rows_to_fit(self, labels: Tensor, views: bool) -> tuple[Features, Tensor]:
        """Return the features (M, d) and labels (M,) of what a computed classifier is fitted on, for those of the
        training images (N,): the images as they are or, with `views`, all cached views of them, one after the other.

        Raises UserError for views that are not kept.
        """
        if not views or self.views == "plain":
            return self.plain("train"), labels
        if self.views == "fresh":
            raise UserError("--fit_on views: give their number with --views; fresh ones have no end")
        every = [in_memory(self.training_view(view)) for view in range(int(self.views))]
        return torch.cat(every), labels.repeat(len(every))

    def seconds_once(self, epochs: int) -> tuple[float, float]:
        """Return the seconds that features took which are kept, and will take in a training of `epochs` epochs."""
        views = min(int(self.views), epochs) if self.views.isdecimal() else 0
        return self._seconds, max(views - len(self._augmented), 0) * self._seconds_of_view

    def _timed(self, split: str, *, mirrored: bool = False, view: int | None = None) -> Features:
        """Compute features, or read them, and add the time to what they took so far."""
        started = time.perf_counter()
        features = self._features(split, mirrored=mirrored, view=view)
        self._seconds += time.perf_counter() - started
        return features

    def _features(self, split: str, *, mirrored: bool = False, view: int | None = None, keep: bool = True) -> Features:
        """Compute features, or read them from the folder."""
        images = self.images[split]
        if isinstance(images, DeviceFeatures) and view is None and isinstance(self.model, GivenFeatures):
            return images.whole(mirrored)
        name = split + "_mirrored" * mirrored + (f"_seed{self.seed}_view{view}" if view is not None else "")
        store = self.store if keep else NOT_KEPT
        features = store.find(split, name, len(images))
        if features is None:
            blocks = predict_blocks(
                self._backbone,
                images,
                self.execution,
                mirrored=mirrored,
                view=None if view is None else (self.seed, view),
                message=f"features of {name}",
            )
            held = f"features of {name}, one of {self.views} views: rows of {len(images)} images"
            with memory_for(held, "--views or --width"):
                features = store.join(split, name, blocks, len(images))
        return features if store.mapped else features.to(self.execution.device)

    def _backbone(self, pixels: Tensor) -> Tensor:
        """Map pixels (B, 3, H, W) to features (B, d); the backbone is made ready when the first of them come."""
        if self._function is None:
            self._function = evaluated_backbone(self.model, self.execution)
        return self._function(pixels)


def evaluated_backbone(model: Network, execution: Execution) -> Callable[[Tensor], Tensor]:
    """Return what maps pixels (B, 3, H, W) to features (B, d) of a network that is trained no further.

    On a CPU in fp32 batch norm is folded: rounded to bf16, folded weights would be others, and what is compiled is
    fused by the compiler.
    """
    model.eval()
    folds = execution.device.type == "cpu" and not execution.bf16 and not execution.compile
    return folded_features(model) if folds else model.features


def freeze(loaded: LoadedModel, *, seed: int, views: str, in_memory: bool = False) -> FrozenFeatures:
    """Return the features of a loaded network, which are kept in files for the next run, table or report on it.

    `seed` draws the augmented `views`. Features of images on disk, which may not fit into memory, are used from these
    files, unless `in_memory` says that many heads will train on them at once.
    """
    source, out = loaded.source, Path(loaded.settings.out)
    assert source is not None, "only a network that was trained is frozen"
    store = NOT_KEPT
    if source.features is None:
        backbone = backbone_sha256(loaded.model)
        store = make_store(loaded, within(out, kept_in(out, backbone)), backbone)
        store = replace(store, mapped=store.mapped and not in_memory)
    return FrozenFeatures(loaded.model, loaded.images, loaded.execution, seed, views, store)


def reported_features(loaded: LoadedModel, checkpoint: Checkpoint, backbone: str) -> FrozenFeatures:
    """Return the features of a network that has the weights of a checkpoint, with the sha256 `backbone`: those that a
    stage 2 or a table has kept, where the command's runs are or where the checkpoint's own are, else computed.

    Nothing is kept: a report writes only what it was asked for.
    """
    store = NOT_KEPT
    if checkpoint.features is None:
        places = [Path(loaded.settings.out), *checkpoint.path.absolute().parents[RUN_DEPTH : RUN_DEPTH + 1]]
        folders = [folder for folder in (kept_in(out, backbone) for out in places) if from_main(folder.is_dir())]
        if folders:
            store = replace(make_store(loaded, folders[0], backbone), read_only=True)
    return FrozenFeatures(loaded.model, loaded.images, loaded.execution, 0, "plain", store)


def kept_in(out: Path, backbone: str) -> Path:
    """Return the folder in which features of a backbone, known by its sha256, are kept below the folder of the runs."""
    return out / "features" / backbone[:16]


def make_store(loaded: LoadedModel, folder: Path, backbone: str) -> FeatureStore:
    """Return the store of the features of a loaded network in a folder."""
    return FeatureStore(folder, split_dependencies(loaded, backbone), mapped=isinstance(loaded.data.train, ListedSplit))


def network_features(loaded: LoadedModel) -> SplitFeatures:
    """Return what computes the features (N, d) of a split's images, as they are or mirrored, anew at every call."""

    def features_of(split: str, mirrored: bool) -> Features:
        images = loaded.images[split]
        if isinstance(images, DeviceFeatures) and isinstance(loaded.model, GivenFeatures):
            return images.whole(mirrored)
        return predict(loaded.model.eval().features, loaded.images[split], loaded.execution, mirrored=mirrored)

    return features_of


def feature_batches(
    features: Features, labels: Tensor, order: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of cached features (N, d) and labels (N,) in the `order` (M,) given on the CPU, on the labels'
    device.

    Half precision becomes float32. Features that lie elsewhere, in a mapped file, are fetched thousands of rows at
    once.
    """
    placed = order.to(labels.device)
    if features.device == labels.device:
        visited = labels.index_select(0, placed)
        for rows, of_rows in zip(placed.split(batch_size), visited.split(batch_size), strict=True):
            yield full(features.index_select(0, rows)), of_rows
        return
    size = max(FETCHED // batch_size, 1) * batch_size
    for group, there in zip(order.split(size), placed.split(size), strict=True):
        fetched = features[group].pin_memory().to(labels.device, non_blocking=True)
        for rows, of_rows in zip(fetched.split(batch_size), labels[there].split(batch_size), strict=True):
            yield full(rows), of_rows


def full(features: Tensor) -> Tensor:
    """Return features in float32, or in float64 where they are."""
    return features if features.dtype == torch.float64 else features.float()


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

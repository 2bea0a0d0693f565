"""Features of a frozen backbone: of every image as it is, and of the augmented views that stage 2 trains on."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.device import DeviceImages
from models.resnet import ResNet
from utils.engine import predict
from utils.errors import UserError
from utils.evaluation import Images
from utils.execution import Execution
from utils.files import make_folder, write_atomically

# Added to the seed (below 2**32) for everything that stage 2 draws, so that it does not repeat the crops of stage 1.
STAGE2_DRAWS = 1 << 32


class FrozenFeatures:
    """Features (N, d) of a backbone in evaluation mode, each computed once, when it is first asked for.

    View v of an image is the augmentation that epoch v of a run with this seed draws, so N views are the first N epochs
    of fresh augmentation. `views` is `--views`: their number, "plain" for the images as they are instead,
    or "fresh" for a view that serves one epoch and is not kept. With a `folder`, what was computed is kept there in
    files named by `identity` (the weights, the images and the arithmetic), and read back.
    """

    def __init__(
        self,
        model: ResNet,
        images: Images,
        execution: Execution,
        seed: int,
        views: str,
        folder: Path | None = None,
        identity: str = "",
    ) -> None:
        self.model = model
        self.images = images
        self.execution = execution
        self.seed = seed
        self.views = views
        self.folder = folder
        self.identity = identity
        self._plain: dict[tuple[str, bool], Tensor] = {}
        self._augmented: dict[int, Tensor] = {}

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features of a split's images as they are, or mirrored."""
        if (split, mirrored) not in self._plain:
            self._plain[split, mirrored] = self._features(split, mirrored=mirrored)
        return self._plain[split, mirrored]

    def training_view(self, epoch: int) -> Tensor:
        """Return the features of the training images (N, d) under the view that `epoch` (from 0) trains on."""
        if self.views == "plain":
            return self.plain("train")
        view = epoch if self.views == "fresh" else epoch % int(self.views)
        if view in self._augmented:
            return self._augmented[view]
        features = self._features("train", view=view, keep=self.views != "fresh")
        if self.views != "fresh":
            self._augmented[view] = features
        return features

    def _features(self, split: str, *, mirrored: bool = False, view: int | None = None, keep: bool = True) -> Tensor:
        """Compute features, or read them from the folder."""
        name = split + "_mirrored" * mirrored + (f"_seed{self.seed}_view{view}" if view is not None else "")
        key = hashlib.sha256(f"{self.identity} {name}".encode()).hexdigest()[:16]
        path = None if self.folder is None else self.folder / f"{name}_{key}.npy"
        if path is not None and path.exists():
            try:
                stored = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise UserError(f"{path} is damaged; delete it, and it is computed again") from error
            return torch.from_numpy(stored).to(self.execution.device)
        features = predict(
            self.model.eval().features,
            self.images[split],
            self.execution,
            mirrored=mirrored,
            view=None if view is None else (self.seed, view),
            message=f"features of {name}",
        )
        if path is not None and keep:
            make_folder(path.parent)
            write_atomically(path, lambda file: np.save(file, features.cpu().numpy()))
        return features


def feature_batches(
    features: Tensor, labels: Tensor, order: Tensor, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of cached features (N, d) and labels (N,) in the `order` (M,) given."""
    for rows in order.split(batch_size):
        yield features[rows], labels[rows]


def batch_statistics_features(
    model: ResNet, images: DeviceImages, execution: Execution, order: Tensor, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of freshly augmented batches with batch norm in train mode, as the released stage 2 sees them.

    Batch statistics are used and the running ones move, but nothing is differentiated: the gradient of the classifier
    is the same as if the backbone had been.
    """
    model.train()
    for rows in order.split(batch_size):
        with torch.no_grad(), execution.autocast():
            features = model.features(images.augmented(rows, seed, epoch)).float()
        yield features, images.labels[rows]

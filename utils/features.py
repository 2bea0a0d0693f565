"""Features of a frozen backbone: of every image as it is, and of the augmented views that stage 2 trains on."""

from collections.abc import Iterator

import torch
from torch import Tensor

from datasets.device import DeviceImages, epoch_order
from models.resnet import ResNet
from utils.engine import predict
from utils.evaluation import Images
from utils.execution import Execution

# Added to the seed (below 2**32) for everything that stage 2 draws, so that it does not repeat the crops of stage 1.
STAGE2_DRAWS = 1 << 32


class FrozenFeatures:
    """Features (N, d) of a backbone in evaluation mode, each computed once, when it is first asked for.

    View v of an image is the augmentation that epoch v of a run with this seed draws, so N views are the first N epochs
    of fresh augmentation. `views` is `--views`: their number, "plain" for the images as they are instead,
    or "fresh" for a view that serves one epoch and is not kept.
    """

    def __init__(self, model: ResNet, images: Images, execution: Execution, seed: int, views: str) -> None:
        self.model = model
        self.images = images
        self.execution = execution
        self.seed = seed
        self.views = views
        self._plain: dict[tuple[str, bool], Tensor] = {}
        self._augmented: dict[int, Tensor] = {}

    def plain(self, split: str, mirrored: bool = False) -> Tensor:
        """Return the features of a split's images as they are, or mirrored."""
        if (split, mirrored) not in self._plain:
            features = predict(
                self.model.eval().features,
                self.images[split],
                self.execution,
                mirrored=mirrored,
                message=f"features of {split}",
            )
            self._plain[split, mirrored] = features
        return self._plain[split, mirrored]

    def training_view(self, epoch: int) -> Tensor:
        """Return the features of the training images (N, d) under the view that `epoch` (from 0) trains on."""
        if self.views == "plain":
            return self.plain("train")
        view = epoch if self.views == "fresh" else epoch % int(self.views)
        if view in self._augmented:
            return self._augmented[view]
        features = predict(
            self.model.eval().features,
            self.images["train"],
            self.execution,
            view=(self.seed, view),
            message=f"features, view {view + 1}",
        )
        if self.views != "fresh":
            self._augmented[view] = features
        return features


def feature_batches(
    features: Tensor, labels: Tensor, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches of cached features (N, d) and labels (N,), in the order that images would come in."""
    order = epoch_order(len(labels), seed, epoch).to(labels.device)
    for rows in order.split(batch_size):
        yield features[rows], labels[rows]


def batch_statistics_features(
    model: ResNet, images: DeviceImages, execution: Execution, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of freshly augmented batches with batch norm in train mode, as the released stage 2 sees them.

    Batch statistics are used and the running ones move, but nothing is differentiated: the gradient of the classifier
    is the same as if the backbone had been.
    """
    model.train()
    for pixels, labels in images.training_batches(batch_size, seed, epoch):
        with torch.no_grad(), execution.autocast():
            features = model.features(pixels).float()
        yield features, labels

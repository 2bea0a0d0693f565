"""The baseline: a plain PyTorch loop that does what the released code of LOS does.

Images pass one by one through PIL transforms in worker processes of a `DataLoader`; arithmetic is fp32 in NCHW memory
order; every step waits for the loss and the accuracy; after every epoch the test set is predicted, mirrored images
averaged in, and the best network copied. Stage 2 differentiates the whole network in train mode although only the
classifier is in its optimiser, and draws fresh augmentation every epoch. Written from that description; of this project
it uses the data and the network's definition alone.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from datasets.long_tail import Augmentation, LongTailedData, Split

LABEL_SMOOTH = 0.98  # of the released stage 2
STAGE2_LR = 5e-4  # of the released stage 2


class BaselineImages(Dataset[tuple[Tensor, int]]):
    """One split (N, H, W, 3) uint8 as (image (3, H, W), label) pairs, each transformed when it is asked for."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor]) -> None:
        self.split = split
        self.transform = transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.split.images[row])), int(self.split.labels[row])


def make_transforms(size: int, augmentation: Augmentation) -> dict[str, Callable[[Image.Image], Tensor]]:
    """Return the released transforms of training and of test images, `size` pixels wide."""
    to_input = [transforms.ToTensor(), transforms.Normalize(augmentation.mean, augmentation.std)]
    augment: list[object] = [transforms.RandomCrop(size, padding=augmentation.padding)]
    if augmentation.mirror:
        augment.append(transforms.RandomHorizontalFlip())
    return {"train": transforms.Compose([*augment, *to_input]), "test": transforms.Compose(to_input)}


@dataclass
class BaselineRun:
    """What the baseline loop measured: seconds and images of each epoch of training, seconds of each test, accuracies.

    `accuracy` is the last epoch's on the test set in percent, of the images as they are (`plain`) and averaged with
    their mirror images (`flip`); `best` the highest flip-averaged one, which is what the released code reports.
    """

    train_seconds: list[float] = field(default_factory=list)
    train_images: list[int] = field(default_factory=list)
    test_seconds: list[float] = field(default_factory=list)
    accuracy: dict[str, float] = field(default_factory=dict)
    best: float = 0.0


@dataclass(frozen=True)
class BaselineLoop:
    """A network, its data, and how the loop runs: device, worker processes, a limit of steps an epoch for trials."""

    model: nn.Module
    data: LongTailedData
    device: torch.device
    workers: int
    batch_size: int
    max_steps: int | None = None

    def loader(self, split: str) -> DataLoader[tuple[Tensor, int]]:
        """Return the loader of `train` or `test`; the released code shuffles both."""
        images = self.data.train if split == "train" else self.data.test
        transform = make_transforms(images.images.shape[1], self.data.augmentation)[split]
        return DataLoader(
            BaselineImages(images, transform),
            batch_size=self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
        )

    def stage1(
        self, epochs: int, lr: float, weight_decay: float, momentum: float = 0.9, test: str = "all"
    ) -> BaselineRun:
        """Train the whole network with cross-entropy, the learning rate on a cosine to 0, stepped per epoch.

        `test` says after which epochs the test set is predicted: "all", "last" or "none".
        """
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
        return self._fit(optimizer, nn.CrossEntropyLoss(), epochs, lr, test)

    def stage2(self, epochs: int, lr: float, momentum: float = 0.9, test: str = "all") -> BaselineRun:
        """Re-train `fc` alone with label over-smoothing, differentiating everything all the same."""
        classifier = self.model.get_submodule("fc")
        optimizer = torch.optim.SGD(classifier.parameters(), lr=lr, momentum=momentum)
        return self._fit(optimizer, nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTH), epochs, lr, test)

    def _fit(
        self, optimizer: torch.optim.Optimizer, criterion: nn.Module, epochs: int, lr: float, test: str
    ) -> BaselineRun:
        self.model.to(self.device)
        train, testing, run = self.loader("train"), self.loader("test"), BaselineRun()
        best = copy.deepcopy(self.model)
        for epoch in range(epochs):
            for group in optimizer.param_groups:
                group["lr"] = lr / 2 * (1 + math.cos(math.pi * epoch / epochs))
            started = time.perf_counter()
            run.train_images.append(self._train_epoch(train, criterion, optimizer))
            run.train_seconds.append(time.perf_counter() - started)
            if test == "all" or (test == "last" and epoch == epochs - 1):
                started = time.perf_counter()
                run.accuracy = self._test(testing)
                run.test_seconds.append(time.perf_counter() - started)
                if run.accuracy["flip"] >= run.best:
                    run.best, best = run.accuracy["flip"], copy.deepcopy(self.model)
        del best  # the released code saves it
        return run

    def _train_epoch(
        self, loader: DataLoader[tuple[Tensor, int]], criterion: nn.Module, optimizer: torch.optim.Optimizer
    ) -> int:
        """Train one epoch, the host waiting for three numbers in every step; return the images seen."""
        self.model.train()
        seen, loss_sum, top1_sum, top5_sum = 0, 0.0, 0.0, 0.0
        for images, labels in islice(loader, self.max_steps):
            images, labels = images.to(self.device), labels.to(self.device)
            logits = self.model(images)
            loss = criterion(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right = logits.detach().topk(min(5, logits.shape[1])).indices == labels[:, None]
            loss_sum += loss.item() * len(labels)
            top1_sum += right[:, :1].sum().item()
            top5_sum += right.sum().item()
            seen += len(labels)
        return seen

    @torch.no_grad()
    def _test(self, loader: DataLoader[tuple[Tensor, int]]) -> dict[str, float]:
        """Return the accuracy on the test images in percent, plain and with mirrored images averaged in."""
        self.model.eval()
        right: dict[str, list[np.ndarray]] = {"plain": [], "flip": []}
        for images, labels in loader:
            images = images.to(self.device)
            plain = self.model(images)
            flip = (plain + self.model(images.flip(3))) / 2
            for way, logits in (("plain", plain), ("flip", flip)):
                right[way].append(logits.argmax(dim=1).cpu().numpy() == labels.numpy())
        return {way: 100 * float(np.concatenate(parts).mean()) for way, parts in right.items()}

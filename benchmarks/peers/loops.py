"""Training loops that a user would take instead: torchvision's, timm's, Lightning's, and linear evaluation of features.

Each follows its library's documented way, with the library's own data loading; they share the network, the batch size,
the optimiser's numbers and the images with ours. Lightning and timm are imported where they are used.
"""

import importlib
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from models import build_model
from runs.shards import read_safetensors
from utils.errors import UserError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
SIZE, PADDING = 32, 4
DINO_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)  # DINOv2's thirteen
DINO_EPOCHS = 10


@dataclass(frozen=True)
class PeerTask:
    """A peer, a folder of class folders (or a file of features), and the numbers that all sides share."""

    peer: str
    source: str
    network: str = "resnet20"
    batch_size: int = 128
    epochs: int = 2
    workers: int = 0
    lr: float = 0.05
    wd: float = 5e-4
    bf16: bool = False


def run_peer(task: PeerTask) -> dict[str, Any]:
    """Run a peer; return `seconds` (of each epoch, of features as a whole), `images`, and of features `accuracy`."""
    torch.manual_seed(0)
    return PEERS[task.peer](task)


def of_package(module: str, package: str) -> Any:
    """Import a module of a peer. Raises UserError with the line that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"a peer is missing: pip install {package} ({error})") from error


# Stage 1


def folder_loader(task: PeerTask) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return torchvision's way to read and augment class folders, as its references do with transforms v2."""
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomCrop(SIZE, padding=PADDING),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    images = torchvision.datasets.ImageFolder(task.source, transform)
    return DataLoader(
        images, task.batch_size, shuffle=True, num_workers=task.workers, persistent_workers=task.workers > 0
    )


def network_of(task: PeerTask, classes: int) -> nn.Module:
    """Return the network of all sides, in the memory order that is fastest on a CPU."""
    return build_model(task.network, classes).to(memory_format=torch.channels_last)


def train_epochs(
    task: PeerTask,
    loader: Iterable[tuple[Tensor, Tensor]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    after: Callable[[int], object],
) -> dict[str, Any]:
    """Train a loop of the usual form; `after` moves the learning rate behind each epoch, counted from 1."""
    seconds, images = [], 0
    for epoch in range(task.epochs):
        started, images = time.perf_counter(), 0
        model.train()
        for batch, labels in loader:
            batch = batch.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=task.bf16):
                loss = F.cross_entropy(model(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(labels)
        after(epoch + 1)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "images": images}


def torchvision_loop(task: PeerTask) -> dict[str, Any]:
    """Train as torchvision's references do: ImageFolder, transforms v2, SGD, cosine."""
    loader = folder_loader(task)
    model = network_of(task, len(loader.dataset.classes))  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), task.lr, momentum=0.9, weight_decay=task.wd)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs)
    return train_epochs(task, loader, model, optimizer, lambda epoch: schedule.step())


def timm_loop(task: PeerTask) -> dict[str, Any]:
    """Train with timm's data set, loader, optimiser and scheduler, as its `train.py` puts them together."""
    data, optim, scheduler = (of_package(f"timm.{part}", "timm") for part in ("data", "optim", "scheduler"))
    images = data.create_dataset("", root=task.source, split="validation", is_training=True)
    loader = data.create_loader(
        images,
        input_size=(3, SIZE, SIZE),
        batch_size=task.batch_size,
        is_training=True,
        use_prefetcher=False,
        color_jitter=None,
        mean=MEAN,
        std=STD,
        num_workers=task.workers,
        device=torch.device("cpu"),
        persistent_workers=task.workers > 0,
    )
    model = network_of(task, len(images.reader.class_to_idx))
    optimizer = optim.create_optimizer_v2(model, opt="sgd", lr=task.lr, momentum=0.9, weight_decay=task.wd)
    schedule, _ = scheduler.create_scheduler_v2(optimizer, sched="cosine", num_epochs=task.epochs)
    return train_epochs(task, loader, model, optimizer, schedule.step)


def lightning_loop(task: PeerTask) -> dict[str, Any]:
    """Train with Lightning's Trainer, its loggers, checkpoints and bars switched off."""
    lightning = of_package("lightning.pytorch", "lightning")
    loader = folder_loader(task)
    model = network_of(task, len(loader.dataset.classes))  # type: ignore[attr-defined]
    seconds: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            return F.cross_entropy(self.model(batch[0].to(memory_format=torch.channels_last)), batch[1])

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), task.lr, momentum=0.9, weight_decay=task.wd)
            return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.epochs)]

        def on_train_epoch_start(self) -> None:
            seconds.append(-time.perf_counter())

        def on_train_epoch_end(self) -> None:
            seconds[-1] += time.perf_counter()

    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=task.epochs,
        precision="bf16-mixed" if task.bf16 else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(), loader)
    return {"seconds": seconds, "images": len(loader.dataset)}  # type: ignore[arg-type]


# Features


def read_features(path: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training features and labels, test features and labels of a file that `--features` reads."""
    tensors = read_safetensors(Path(path))[1]
    train, test = (tensors[f"{part}_features"].float() for part in ("train", "test"))
    return train, tensors["train_labels"].long(), test, tensors["test_labels"].long()


def scikit_learn(task: PeerTask) -> dict[str, Any]:
    """Fit scikit-learn's logistic regression (L-BFGS) as it is, on standardised features."""
    train, labels, test, expected = read_features(task.source)
    started = time.perf_counter()
    mean, deviation = train.mean(0), train.std(0).clamp_min(1e-6)
    fitted = LogisticRegression(max_iter=1000).fit(((train - mean) / deviation).numpy(), labels.numpy())
    seconds = time.perf_counter() - started
    right = torch.from_numpy(fitted.predict(((test - mean) / deviation).numpy())) == expected
    return {"seconds": [seconds], "images": len(train), "accuracy": 100 * float(right.double().mean())}


def dino_linear(task: PeerTask) -> dict[str, Any]:
    """Fit a linear head for each of DINOv2's learning rates in one pass over the batches, with SGD and a cosine."""
    train, labels, test, expected = read_features(task.source)
    classes = int(labels.max()) + 1
    started = time.perf_counter()
    heads = [nn.Linear(train.shape[1], classes) for _ in DINO_RATES]
    for head in heads:
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
    rates = [rate * task.batch_size / 256 for rate in DINO_RATES]
    groups = [{"params": head.parameters(), "lr": rate} for head, rate in zip(heads, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=0)
    loader = DataLoader(TensorDataset(train, labels), task.batch_size, shuffle=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, DINO_EPOCHS * len(loader), eta_min=0)
    for batch, targets in itertools.chain.from_iterable(itertools.repeat(loader, DINO_EPOCHS)):
        loss = torch.stack([F.cross_entropy(head(batch), targets) for head in heads]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - started
    with torch.inference_mode():
        accuracies = [float((head(test).argmax(1) == expected).double().mean()) for head in heads]
    return {"seconds": [seconds], "images": len(train), "accuracy": 100 * max(accuracies)}


PEERS: dict[str, Callable[[PeerTask], dict[str, Any]]] = {
    "torchvision": torchvision_loop,
    "timm": timm_loop,
    "lightning": lightning_loop,
    "scikit-learn": scikit_learn,
    "dinov2": dino_linear,
}

"""Every method on the pretended CUDA device: classifiers trained side by side, and those that are computed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import methods.offsets
import methods.proximal
from engine.many_heads import HeadTrainer, Trained, train_heads
from methods.plan import Plan
from methods.recipes import RECIPES
from tests.device_events import LAUNCH, QUEUED, READ, STEP, UPLOAD
from tests.pretended_cuda import CUDA, CudaTensor, pretended_cuda
from utils.device import Execution

COUNTS = [20, 9, 5, 3]
CLASSES, WIDTH, BATCH, EPOCHS = len(COUNTS), 5, 24, 2
STEPS = -(-sum(COUNTS) // BATCH)
TRAINED = [name for name, recipe in RECIPES.items() if recipe.trains]
COMPUTED = [name for name, recipe in RECIPES.items() if not recipe.trains]
# Operations that a step of two heads launches, the next batch and the epoch's sums included: they may become fewer, and
# whoever needs more says here why. Earlier versions of PyTorch make other ones of the same functions.
MOST_LAUNCHES = {
    49: "vs",
    50: "lws lws_los",
    55: "cb_ce",
    56: "ce label_smooth los lort crt",
    58: "balanced_softmax logit_adjust marc logit_adjust_los",
    61: "focal",
    62: "ldam ldam_drw gml",
    64: "las",
    75: "wb_cb wb_wd wb_maxnorm wb",
    76: "cosine cosine_los",
    78: "disalign",
    80: "disalign_los",
    82: "gcl",
    90: "gala",
    200: "samn samn_los",
}
MEASURED_WITH = (2, 14)


@dataclass
class Features:
    """Stands for the frozen features (N, d) of training and held-out images."""

    train: Tensor
    holdout: Tensor
    labels: Tensor
    execution: Execution
    seed: int = 4  # of the order of batches

    def plain(self, split: str) -> Tensor:
        return self.train if split == "train" else self.holdout

    def training_view(self, epoch: int) -> Tensor:
        return self.train + epoch

    def held_out(self) -> tuple[Tensor, Tensor]:
        return self.holdout, self.labels


def trainer_on(device: torch.device) -> HeadTrainer:
    """Features of four classes and a linear classifier, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(COUNTS))
    means = 2 * torch.randn(CLASSES, WIDTH, generator=generator)
    rows = [(means[labels] + torch.randn(len(labels), WIDTH, generator=generator)).relu() for _ in range(2)]
    linear = nn.Linear(WIDTH, CLASSES)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(CLASSES, WIDTH, generator=generator))
        linear.bias.copy_(torch.randn(CLASSES, generator=generator))
    execution = Execution(device, bf16=False, compile=False, reasons=())
    frozen: Any = Features(rows[0].to(device), rows[1].to(device), labels.to(device), execution)
    return HeadTrainer(frozen, linear.to(device), labels.to(device), COUNTS, BATCH, momentum=0.9, seed=3)


def plans(method: str) -> list[Plan]:
    """Two plans of a method that are trained side by side, or the one that computes it."""
    recipe = RECIPES[method]
    smoothing = 0.5 if recipe.target else None
    rest = (recipe.weight_decay, smoothing, recipe.sampler, recipe.max_norm, recipe.fresh, recipe.own_parameters())
    made = [Plan(method, EPOCHS, lr, *rest, recipe.schedule) for lr in (0.05, 0.01)]
    return made if recipe.trains else made[:1]


def logits_of(trained: list[Trained], trainer: HeadTrainer) -> Tensor:
    """The logits of every head, on the CPU."""
    with torch.no_grad():
        return torch.stack([result.head(trainer.frozen.plain("train")) for result in trained]).cpu()


@pytest.mark.parametrize("method", TRAINED)
def test_heads_trained_side_by_side(method: str) -> None:
    """They are those of the CPU. A step waits for nothing, an epoch reads three numbers, is sent rates and an order."""
    trainer = trainer_on(torch.device("cpu"))
    expected = logits_of(train_heads(trainer, plans(method)), trainer)
    with pretended_cuda() as device:
        trainer = trainer_on(CUDA)
        marks: list[tuple[int, int]] = []
        trained = train_heads(
            trainer, plans(method), lambda *_: marks.append((device.count(READ), device.count(UPLOAD, QUEUED)))
        )
        assert all(isinstance(result.head.weight, CudaTensor) for result in trained)
        (reads, sent), (reads_after, sent_after) = marks
        assert reads_after - reads <= 3 and sent_after - sent <= 2, device.lines(READ, UPLOAD, QUEUED)
        assert device.count(READ, UPLOAD, QUEUED, section=STEP) == 0, device.lines(READ, UPLOAD, QUEUED, section=STEP)
        assert device.steps == EPOCHS * STEPS
        most = next(number for number, names in MOST_LAUNCHES.items() if method in names.split())
        if torch.torch_version.TorchVersion(torch.__version__) >= MEASURED_WITH:
            assert device.count(LAUNCH, section=STEP) <= most * device.steps
        torch.testing.assert_close(logits_of(trained, trainer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", COMPUTED)
def test_computed_heads(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the CPU, computed where the features are."""
    monkeypatch.setattr(methods.proximal, "STEPS", 3)
    monkeypatch.setattr(methods.offsets, "STEPS", 3)
    trainer = trainer_on(torch.device("cpu"))
    expected = logits_of(train_heads(trainer, plans(method)), trainer)
    with pretended_cuda() as device:
        trainer = trainer_on(CUDA)
        trained = train_heads(trainer, plans(method))
        assert isinstance(trained[0].head.weight, CudaTensor) and device.steps == 0
        torch.testing.assert_close(logits_of(trained, trainer), expected, rtol=1e-4, atol=1e-5)

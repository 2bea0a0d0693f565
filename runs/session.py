"""What a command computes with, opened once and handed on: settings, device, data, network, and the run they make."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from datasets.long_tail import LongTailedData
from evaluation.measure import Images
from losses.los import Target
from methods.plan import Plan
from models.network import Network
from runs.checkpoint import Checkpoint
from runs.run_folder import Run
from settings.fields import Settings
from settings.resolve import Command
from utils.device import Execution


@dataclass(frozen=True)
class WeightsFile:
    """The file of `--weights` that a network starts from: what it holds, and what config.json says of it."""

    checkpoint: Checkpoint
    record: dict[str, Any]


@dataclass(frozen=True)
class LoadedModel:
    """A network and the images to show it, both on the device.

    `checkpoint` is where its weights are from: the stage 1 of a stage 2, what a report is about; None where training
    begins anew. `weights` is the file of `--weights` that such a training begins from.
    """

    command: Command
    execution: Execution
    data: LongTailedData
    images: Images
    model: Network
    checkpoint: Checkpoint | None
    weights: WeightsFile | None

    @property
    def settings(self) -> Settings:
        """Every setting of the command, resolved."""
        return self.command.settings

    @property
    def checkpoint_epochs(self) -> int | None:
        """The epochs that the checkpoint was trained for here, 0 for a classifier on another's backbone; None where
        that is not known."""
        return None if self.checkpoint is None else self.checkpoint.settings().get("epochs")

    @property
    def source(self) -> Checkpoint | None:
        """The file that the backbone's weights are from, None for new ones."""
        return self.weights.checkpoint if self.weights is not None else self.checkpoint


@dataclass(frozen=True)
class Session(LoadedModel):
    """An opened run: a loaded model, what it is trained towards, and its folder.

    `loss` is the loss of stage 1 or, of stage 2, that of the first and that of the last epochs. Stage 2 has a `plan`.
    """

    target: Target
    loss: nn.Module
    run: Run
    plan: Plan | None

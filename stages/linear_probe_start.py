"""`--weights FILE`: a network that starts from weights trained elsewhere.

Stage 1 trains it further, or, with `--epochs 0`, leaves its backbone alone and computes a linear classifier on it, as
is done for features that any model made. Stage 2 with `--weights` and no stage 1 makes such a run first.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from datasets.long_tail import LongTailedData
from engine.epoch import EpochResult
from engine.finish import finish_run
from engine.fit import fit, make_sgd
from engine.frozen_features import freeze
from evaluation.measure import Images, SplitFeatures
from losses.los import ONE_HOT
from methods.linear_probe import fit_probe
from models.network import Network
from runs.checkpoint import Checkpoint, load_checkpoint
from runs.pretrained_weights import load_pretrained
from runs.run_folder import Run, open_run, read_metrics
from runs.run_names import stage1_folder, stage1_tags
from runs.run_record import describe
from settings.fields import Settings
from settings.resolve import Command
from stages.data import device_images, load_data
from stages.session import announce, build_network, settle_execution
from utils.errors import UserError


def load_weights_file(model: Network, settings: Settings) -> tuple[Checkpoint, dict[str, Any]] | None:
    """Copy the file of `--weights`, where one was named, into a network; return it and what config.json says of it.

    Raises UserError for a file that cannot be read, does not hold the network's backbone, or has NaN or infinity in it.
    """
    if settings.weights is None:
        return None
    try:
        checkpoint = load_checkpoint(Path(settings.weights))
        report = load_pretrained(model, checkpoint.state)
        refuse_non_finite(model)
    except UserError as error:
        raise UserError(f"--weights {settings.weights}: {error}") from error
    summary = f"{checkpoint.path} ({checkpoint.kind}): {report.summary()}"
    print(f"weights: {summary}")
    return checkpoint, {"file": str(checkpoint.path), "sha256": checkpoint.sha256, "loaded": report.summary()}


def refuse_non_finite(model: Network) -> None:
    """Raise UserError where a tensor of a network has NaN or infinity, which training would blame on its own steps."""
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{name} is not finite: the file is of a training that failed, or damaged")


def train_on_weights(command: Command) -> dict[str, Any]:
    """Run a stage 1 of no epochs, a classifier on the backbone of `--weights`; return what metrics.json holds."""
    settings = command.settings
    execution = settle_execution(command)
    data = load_data(settings, settings.seed)
    folder = stage1_folder(command)
    torch.manual_seed(settings.seed)
    model = build_network(settings, data)
    loaded = load_weights_file(model, settings)
    assert loaded is not None
    config = describe(command, "stage1", stage1_tags(command), data, execution, ONE_HOT, None, loaded[1])
    run = open_run(folder, config, resume=settings.resume, overwrite=settings.overwrite, reuse=settings.reuse)
    if run.finished:
        return read_metrics(run)
    announce(command, data, execution, folder)
    images = device_images(data, execution, settings)
    execution.place(model)
    frozen = freeze(model, images, data, execution, settings, loaded[0], seed=settings.seed, views="plain")
    return fit_classifier(run, model, frozen.plain, images, data)


def fit_classifier(
    run: Run, model: Network, features_of: SplitFeatures, images: Images, data: LongTailedData
) -> dict[str, Any]:
    """Compute the classifier of a run on features of the training images (`methods.linear_probe`); save and
    report it."""
    decay = run.config["settings"]["wd"]
    probe = fit_probe(features_of("train", False), images["train"].labels, data.num_classes, decay)
    with torch.no_grad():
        model.fc.weight.copy_(probe.weight)
        model.fc.bias.copy_(probe.bias)
    print(
        f"classifier: cross-entropy with weight decay {decay:g} (of features of unit spread), L-BFGS, "
        f"{probe.evaluations} evaluations, loss {probe.loss:.5f}, {probe.seconds:.1f} s"
    )

    def no_epoch(epoch: int) -> EpochResult:
        raise AssertionError("a computed classifier has no epochs")

    history, logits_of = fit(
        run, model, make_sgd(model.fc, 0.0, 0.0, False), no_epoch, features_of, images, data,
        loss_function=nn.CrossEntropyLoss(), lr_of_epoch=lambda epoch: 0.0, epochs=0, eval_every=1,
    )  # fmt: skip
    history.train_seconds += probe.seconds
    return finish_run(run, history, logits_of, images, data)

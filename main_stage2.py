"""Stage 2, re-train the classifier on the frozen backbone of stage 1, by default with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98

takes seconds once the features are computed. Published for CIFAR100-LT, IF 100, ResNet-34: 54.9 %, and 53.9 % when
re-run by others. RESULTS.md has what was measured, on what, in what time.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datasets.device import steps_per_epoch
from losses import build_loss
from losses.los import optimal_gap
from models import build_model
from utils.checkpoint import load_weights
from utils.config import STAGE2, parse_command
from utils.engine import EpochResult, predict, train_epoch
from utils.errors import run_command
from utils.features import STAGE2_DRAWS, FrozenFeatures, batch_statistics_features, feature_batches
from utils.recipes import find_recipe, resolve_smoothing, resolve_target
from utils.report import finish_run
from utils.runs import describe, open_run, stage2_folder, stage2_tags
from utils.setup import (
    announce,
    device_images,
    find_stage1,
    load_data,
    refuse_other_images,
    settle_execution,
    stage1_seed,
)
from utils.training import INTERRUPTED, fit, make_sgd


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 2 and return what metrics.json holds."""
    command = parse_command(STAGE2, __doc__, argv)
    execution = settle_execution(command)
    command, checkpoint = find_stage1(command)
    settings = command.settings
    data = load_data(settings, stage1_seed(settings))
    refuse_other_images(checkpoint, data)
    recipe = find_recipe(settings.method)
    smoothing = resolve_smoothing(settings.method, data.num_classes, settings.label_smooth, settings.loma_target)
    target = resolve_target(recipe, smoothing, data.num_classes)
    torch.manual_seed(settings.seed)
    model = build_model(settings.network, data.num_classes, width=settings.width)
    load_weights(model, checkpoint)
    if settings.reinit_classifier:
        model.fc.reset_parameters()
    tags = stage2_tags(command, checkpoint)
    folder = stage2_folder(settings, tags)
    config = describe(command, "stage2", tags, data, execution, target, checkpoint)
    run = open_run(folder, config, resume=settings.resume, overwrite=settings.overwrite)
    announce(command, data, execution, folder)

    images = device_images(data, execution)
    execution.place(model)
    print(f"stage 1: {checkpoint.path} ({checkpoint.kind}), sha256 {checkpoint.sha256[:16]}")
    print(f"method: {settings.method}, {recipe.title} ({recipe.citation})")
    print(f"target: {target[0]:.6g} for the true class, {target[1]:.6g} for each other; gap {optimal_gap(target):.3f}")

    loss_function = build_loss(recipe.loss, data.class_counts.tolist(), target)
    optimizer = make_sgd(model.fc, settings.momentum, settings.finetune_wd, settings.nesterov)
    steps = steps_per_epoch(len(data.train), settings.batch_size)
    draws = settings.seed + STAGE2_DRAWS
    frozen = FrozenFeatures(model, images, execution, draws, settings.views)

    def train_one_epoch(epoch: int) -> EpochResult:
        order = (settings.batch_size, draws, epoch)
        if settings.bn_mode == "train":
            batches = batch_statistics_features(model, images["train"], execution, *order)
        else:
            batches = feature_batches(frozen.training_view(epoch), images["train"].labels, *order)
        return train_epoch(model.fc, batches, steps, optimizer, loss_function, execution.full_precision())

    def features_of(split: str, mirrored: bool) -> Tensor:
        if settings.bn_mode == "train":  # the running statistics have moved, and the features with them
            return predict(model.eval().features, images[split], execution, mirrored=mirrored)
        return frozen.plain(split, mirrored)

    history = fit(
        run, model, optimizer, train_one_epoch, features_of, images, data,
        base_lr=settings.finetune_lr, epochs=settings.finetune_epoch, eval_every=settings.eval_every,
    )  # fmt: skip
    return finish_run(run, history, features_of, images, data, model)


if __name__ == "__main__":
    run_command(main, INTERRUPTED)

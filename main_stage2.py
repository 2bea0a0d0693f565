"""Stage 2, re-train the classifier on the frozen backbone of stage 1, by default with label over-smoothing (LOS).

    python main_stage2.py --imb_ratio 100 --cur_stage stage2 --label_smooth 0.98

takes seconds once the features are computed. Published for CIFAR100-LT, IF 100, ResNet-34: 54.9 %, and 53.9 % when
re-run by others. RESULTS.md has what was measured, on what, in what time.

    python main_stage2.py --features FILE.npz

does the same on features that any model made; where FILE has no classifier, one is trained first.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from datasets.image_source import batch_sizes, steps_per_epoch
from engine.epoch import EpochResult, predict, train_epoch
from engine.finish import finish_run
from engine.fit import INTERRUPTED, fit, make_sgd
from engine.frozen_features import STAGE2_DRAWS, batch_statistics_features, feature_batches, freeze
from evaluation.text_tables import scale_line
from losses.los import optimal_gap
from methods.plan import build_losses, compute_head, describe_parameters, is_late, order_of, row_norm_limit, start_head
from models.heads import max_norm_
from models.torchvision_networks import check_single_image
from runs.checkpoint import load_weights
from runs.run_folder import open_run, read_metrics
from runs.run_names import stage2_folder, stage2_tags
from runs.run_record import describe, image_sizes
from settings.command_line import parse_command
from settings.fields import STAGE2
from settings.stage2_plan import plan_of
from stages.checkpoints import name_backbone
from stages.data import device_images, load_data, refuse_other_images, stage1_seed
from stages.session import announce, build_network, settle_execution
from stages.user_features import find_start
from utils.command import run_command
from utils.distributed import process_count
from utils.errors import UserError
from utils.schedules import cosine_lr


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 2 and return what metrics.json holds."""
    command = parse_command(STAGE2, __doc__, argv)
    execution = settle_execution(command)
    command, checkpoint = find_start(command)
    settings = command.settings
    data = load_data(settings, stage1_seed(settings), checkpoint)
    refuse_other_images(checkpoint, data)
    if settings.bn_mode == "train" and process_count() > 1:
        raise UserError("--bn_mode train (of --protocol released) needs one process: start without torchrun")
    plan = plan_of(settings, data.num_classes)
    target = plan.target(data.num_classes)
    model = build_network(settings, data)
    if settings.bn_mode == "train" and 1 in batch_sizes(len(data.train), settings.batch_size):
        check_single_image(model, image_sizes(settings, data)[0])
    load_weights(model, checkpoint)
    tags = stage2_tags(command, checkpoint)
    folder = stage2_folder(settings, tags)
    config = describe(command, "stage2", tags, data, execution, target, checkpoint)
    if checkpoint.features is not None:
        config["backbone"] = name_backbone(checkpoint, folder)
    run = open_run(folder, config, resume=settings.resume, overwrite=settings.overwrite, reuse=settings.reuse)
    if run.finished:
        return read_metrics(run)
    announce(command, data, execution, folder)

    images = device_images(data, execution, settings)
    execution.place(model)
    print(f"stage 1: {checkpoint.path} ({checkpoint.kind}), sha256 {checkpoint.sha256[:16]}")
    print(f"method: {settings.method}, {plan.recipe.title} ({plan.recipe.citation}) {describe_parameters(plan)}")
    print(f"target: {target[0]:.6g} for the true class, {target[1]:.6g} for each other; gap {optimal_gap(target):.3f}")

    draws = settings.seed + STAGE2_DRAWS
    train = images["train"]
    frozen = freeze(model, images, data, execution, settings, checkpoint, seed=draws, views=settings.views)
    if plan.recipe.trains and settings.features is not None:
        print(scale_line(frozen.plain("train"), plan.lr))
    limit = row_norm_limit(plan, model.fc)
    if plan.recipe.trains:
        model.fc = start_head(plan, model.fc, settings.seed)
    else:
        model.fc = compute_head(plan, model.fc, frozen.plain("train"), train.labels, data.class_counts.tolist())
    losses = nn.ModuleList(loss.to(execution.device) for loss in build_losses(plan, data.class_counts.tolist()))
    optimizer = make_sgd(model.fc, settings.momentum, plan.weight_decay, settings.nesterov)
    steps = steps_per_epoch(len(data.train), settings.batch_size)

    def train_one_epoch(epoch: int) -> EpochResult:
        order = order_of(plan, train.labels, data.num_classes, draws, epoch)
        if settings.bn_mode == "train":
            batches = batch_statistics_features(model, train, execution, order, settings.batch_size, draws, epoch)
        else:
            batches = feature_batches(frozen.training_view(epoch), train.labels, order, settings.batch_size)
        loss = losses[is_late(epoch, plan.epochs)]
        result = train_epoch(model.fc, batches, steps, optimizer, loss, execution.full_precision())
        if limit is not None:
            max_norm_(model.fc, limit)
        return result

    def features_of(split: str, mirrored: bool) -> Tensor:
        if settings.bn_mode == "train":  # the running statistics have moved, and the features with them
            return predict(model.eval().features, images[split], execution, mirrored=mirrored)
        return frozen.plain(split, mirrored)

    history, logits_of = fit(
        run, model, optimizer, train_one_epoch, features_of, images, data,
        loss_function=losses, lr_of_epoch=lambda epoch: cosine_lr(plan.lr, epoch, plan.epochs),
        epochs=plan.epochs, eval_every=settings.eval_every, tensorboard=settings.tensorboard,
    )  # fmt: skip
    return finish_run(run, history, logits_of, images, data)


if __name__ == "__main__":
    run_command(main, INTERRUPTED)

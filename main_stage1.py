"""Stage 1, learn features: train backbone and classifier on the long-tailed set with plain cross-entropy.

    python main_stage1.py --imb_ratio 100 --cur_stage stage1

is the released recipe for CIFAR100-LT: ResNet-34, 200 epochs, 47.6 % published for it in a re-run by others. It wants a
GPU: four CPU cores would need more than a day. RESULTS.md has what was measured, on what, in what time.

    python main_stage1.py --features FILE.npz

trains a linear classifier on features that any model made, in seconds.

    torchrun --standalone --nproc_per_node=8 main_stage1.py --dataset imagenet_lt --data_dir data

trains on eight GPUs, which share every batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datasets.image_source import batch_sizes
from engine.data_parallel import average_buffers, data_parallel, with_batch_norm
from engine.epoch import EpochResult, mixup_shares, predict, train_epoch
from engine.finish import finish_run
from engine.fit import INTERRUPTED, fit, make_sgd
from losses import build_loss, loss_parameters
from losses.los import torch_target
from models.torchvision_networks import check_single_image
from runs.run_folder import open_run, read_metrics
from runs.run_names import stage1_folder, stage1_tags
from runs.run_record import describe, image_sizes
from settings.command_line import parse_command
from settings.fields import STAGE1
from stages.data import device_images, load_data
from stages.linear_probe_start import load_weights_file, train_on_weights
from stages.session import announce, build_network, settle_execution
from stages.user_features import train_classifier
from utils.command import run_command
from utils.distributed import process_rank
from utils.hashing import mix64
from utils.schedules import SCHEDULES, with_warmup


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run stage 1 and return what metrics.json holds."""
    command = parse_command(STAGE1, __doc__, argv)
    if command.settings.features is not None:
        return train_classifier(command)
    settings = command.settings
    if settings.epochs == 0:
        return train_on_weights(command)
    execution = settle_execution(command)
    data = load_data(settings, settings.seed)
    tags = stage1_tags(command)
    folder = stage1_folder(command)
    target = torch_target(settings.label_smooth or 0.0, data.num_classes)
    images = device_images(data, execution, settings, settings.augment)
    own = {name: getattr(settings, name) for name in loss_parameters(settings.loss)}
    loss_function = build_loss(settings.loss, data.class_counts.tolist(), target, **own).to(execution.device)
    torch.manual_seed(settings.seed)
    model = build_network(settings, data)
    sizes = batch_sizes(len(data.train), settings.batch_size, settings.drop_last)
    if 1 in sizes:
        check_single_image(model, image_sizes(settings, data)[0])
    loaded = load_weights_file(model, settings)
    config = describe(command, "stage1", tags, data, execution, target, None, loaded and loaded[1])
    run = open_run(folder, config, resume=settings.resume, overwrite=settings.overwrite, reuse=settings.reuse)
    if run.finished:
        return read_metrics(run)
    announce(command, data, execution, folder)

    with_batch_norm(model, execution, settings.sync_bn == "on")
    execution.place(model)
    module = data_parallel(model, execution)
    optimizer = make_sgd(model, settings.momentum, settings.wd, settings.nesterov)
    schedule = SCHEDULES[settings.schedule]

    def train_one_epoch(epoch: int) -> EpochResult:
        model.train()
        if process_rank():  # dropout is to differ on each; the crops do by themselves
            torch.manual_seed(mix64(mix64(settings.seed) ^ epoch) ^ process_rank())
        batches = images["train"].training_batches(settings.batch_size, settings.seed, epoch, settings.drop_last)
        mixup = mixup_shares(settings.mixup, len(sizes), settings.seed, epoch) if settings.mixup > 0 else None
        result = train_epoch(
            module, batches, len(sizes), optimizer, loss_function, execution, mixup=mixup,
            batch_sizes=sizes if module is not model else None, max_norm=settings.clip_grad,
        )  # fmt: skip
        average_buffers(model)
        return result

    def features_of(split: str, mirrored: bool) -> Tensor:
        return predict(model.eval().features, images[split], execution, mirrored=mirrored)

    history, logits_of = fit(
        run, model, optimizer, train_one_epoch, features_of, images, data,
        loss_function=loss_function, lr_of_epoch=lambda epoch: with_warmup(
            schedule, settings.warmup_epochs, settings.lr, epoch, settings.epochs
        ),
        epochs=settings.epochs, eval_every=settings.eval_every, tensorboard=settings.tensorboard,
    )  # fmt: skip
    return finish_run(run, history, logits_of, images, data)


if __name__ == "__main__":
    run_command(main, INTERRUPTED)

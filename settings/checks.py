"""Which values settings may take, alone and together."""

from typing import Any

from losses.los import torch_target
from methods.recipes import resolve_smoothing
from settings.fields import EVALUATE, FIELDS, PARAMETERS, STAGE1, Settings
from utils.errors import UserError
from utils.parameters import check_parameter

# What a file of features settles itself, or what only images and networks have.
NOT_OF_FEATURES = (
    "data_dir", "dataset", "imb_ratio", "imb_type", "subset", "subset_seed", "holdout", "network", "width",
    "pretrained_pth", "start", "trust_pickle", "train_list", "val_list", "test_list", "image_root", "stem",
    "image_size", "resize", "skip_bad", "weights",
)  # fmt: skip


# What else the stage 1 of features has no use for: its classifier is the solution of a convex problem.
NOT_OF_PROBES = (
    "epochs", "batch_size", "lr", "momentum", "nesterov", "label_smooth", "mixup", "eval_every", "loss", "augment",
    "schedule", "drop_last", "compile", "warmup_epochs", "clip_grad", "sync_bn", *PARAMETERS,
)  # fmt: skip


ONLY_ON_DISK = ("image_size", "resize", "skip_bad")


# What has no effect in stage 2 where the classifier is computed from plain features instead of trained.
TRAINED_ONLY = (
    "finetune_epoch", "finetune_lr", "finetune_wd", "momentum", "nesterov", "batch_size", "views", "bn_mode",
    "eval_every", "sampler", "max_norm", "reinit_classifier",
)  # fmt: skip


def refuse_without_images(script: str, given: dict[str, Any]) -> None:
    """Raise UserError for flags of data sets, networks and their training beside `--features`."""
    idle = NOT_OF_FEATURES + (NOT_OF_PROBES if script == STAGE1 else ())
    flags = [f"--{name} {given[name]}" for name in idle if name in given]
    if flags:
        raise UserError(
            f"{', '.join(flags)}: no use with --features {given['features']}, a file that is data set and network; "
            "leave it out"
        )


def check_stage(script: str, settings: Settings) -> None:
    """Raise UserError where flags contradict the stage or the method."""
    if script != EVALUATE and settings.cur_stage != script.removeprefix("main_"):
        raise UserError(
            f"{script}.py runs {script.removeprefix('main_')}; --cur_stage {settings.cur_stage} is for "
            f"main_{settings.cur_stage}.py"
        )
    if settings.cur_stage == "stage1":
        torch_target(settings.label_smooth or 0.0, 2)
        if settings.loss == "gala" and settings.mixup > 0:
            raise UserError("--loss gala cannot be used with --mixup: its gradients are those of single labels")
    else:
        resolve_smoothing(settings.method, 2, settings.label_smooth, settings.loma_target)


def check_domains(settings: Settings) -> None:
    """Raise UserError for a value outside its domain."""
    for name, field in FIELDS.items():
        choices, value = field.metadata["choices"], getattr(settings, name)
        if choices is not None and value is not None and value not in choices:
            raise UserError(f"unknown --{name} '{value}'; known: {', '.join(choices)}")
    bounds: dict[str, tuple[float, float]] = {
        "num_class": (2, 1e9), "epochs": (0, 1e9), "batch_size": (1, 1e9), "width": (1, 1e5), "eval_every": (1, 1e9),
        "finetune_epoch": (1, 1e9), "lr": (0, 1e6), "finetune_lr": (0, 1e6), "wd": (0, 1e6), "finetune_wd": (0, 1e6),
        "momentum": (0, 1), "mixup": (0, 1e6), "workers": (0, 1024), "gpu": (0, 1e6), "seed": (0, 2**32 - 1),
        "subset_seed": (0, 2**32 - 1), "stage1_seed": (0, 2**32 - 1), "max_norm": (0, 1), "rebalance_tau": (0, 100),
        "temperature": (1e-4, 1e4), "image_size": (1, 4096), "resize": (1, 8192), "skip_bad": (0, 1e9),
        "warmup_epochs": (0, 1e9),
    }  # fmt: skip
    for name, (low, high) in bounds.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            shown = f"{value:g}" if isinstance(value, float) else value  # an integer may be too large for a float
            raise UserError(f"--{name} must be between {low:g} and {high:g}, not {shown}")
    if settings.clip_grad is not None and not 0 < settings.clip_grad < float("inf"):
        raise UserError(f"--clip_grad must be a finite number above 0, not {settings.clip_grad:g}")
    if settings.resize is not None and settings.resize < (settings.image_size or 0):
        raise UserError(f"--resize {settings.resize} is smaller than the crop, --image_size {settings.image_size}")
    if settings.epochs == 0 and settings.weights is None:
        raise UserError("--epochs 0 trains a classifier alone: say with --weights on what")
    if 0 < settings.epochs <= settings.warmup_epochs:
        raise UserError(
            f"--warmup_epochs {settings.warmup_epochs} leaves none of {settings.epochs} epochs to the schedule"
        )
    if settings.nesterov and settings.momentum == 0:
        raise UserError("--nesterov needs a --momentum above 0")
    if settings.views not in ("plain", "fresh") and not (settings.views.isdecimal() and int(settings.views) >= 1):
        raise UserError(f"--views must be a number of at least 1, 'plain' or 'fresh', not '{settings.views}'")
    if settings.bn_mode == "train" and settings.views != "fresh":
        raise UserError(
            "--bn_mode train changes the features with every batch, so they cannot be cached: use --views fresh"
        )
    for name in PARAMETERS:
        if getattr(settings, name) is not None:
            check_parameter(name, getattr(settings, name))
    if settings.resume + settings.overwrite + settings.reuse > 1:
        raise UserError("--resume, --overwrite and --reuse exclude one another")

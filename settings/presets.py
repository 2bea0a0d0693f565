"""What settings default to: for a data set, a method, a loss, a protocol."""

from typing import Any

from datasets import DATASETS
from datasets.decoding.options import EXIF
from datasets.names import USER_DATASET_PREFIX
from methods.recipes import find_recipe
from settings.declare import STAGE1, STAGE2
from settings.fields import FLAGS
from utils.errors import UserError

# What the presets of images on disk share. That colours are jittered, that stage 2 has the numbers of CIFAR and that it
# trains on one view is inferred: there is no code of the paper for them. One view cost CIFAR less than a tenth of a
# point, and every view of iNaturalist 2018 is 3.6 GB of features.
LARGE: dict[str, Any] = {
    "stem": "imagenet",
    "image_size": 224,
    "imb_ratio": None,
    "augment": "jitter",
    "views": "1",
    "eval_every": 5,
}


# Published learning rates are for the features of the papers' networks. Those of any other data set may have any scale.
ANY_SCALE: dict[str, Any] = {"rate_scale": "features"}
# Anyone's own images.
OWN_IMAGES: dict[str, Any] = {
    "network": "resnet50",
    "epochs": 90,
    "wd": 5e-4,
    "eval_every": None,
    "orientation": EXIF,
    **ANY_SCALE,
}


# CIFAR runs on the released recipe, which is what `Settings` defaults to. Epochs, batches and learning rates of
# ImageNet-LT and iNaturalist 2018 are those of Weight Balancing (CVPR 2022), on which LOS builds; it gives ranges of
# the weight decay alone, in which those here are guesses. Places-LT fine-tunes a network pre-trained on ImageNet, as
# the field does (`--weights`); its numbers, and those of anyone's own images, are inferred. The stage-2 learning rate
# of `digits` was chosen on held-out images: the best mean of results/digits_selection.csv, of equal ones with the
# published smoothing, and of those the largest. The field's loaders ignore the EXIF
# orientation of the papers' data sets; anyone's own photos are turned upright.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar100": {},
    "cifar10": {},
    "digits": {
        "imb_ratio": 25.0,
        "network": "resnet8",
        "epochs": 60,
        "batch_size": 32,
        "lr": 0.05,
        "wd": 5e-3,
        "finetune_lr": 1e-4,
        "workers": 1,  # on more threads than one, work this small waits for its threads
    },
    "imagenet_lt": {**LARGE, "network": "resnext50_32x4d", "epochs": 200, "wd": 5e-4},
    "places_lt": {**LARGE, "network": "resnet152", "epochs": 30, "batch_size": 128, "wd": 5e-4},
    "inaturalist2018": {**LARGE, "network": "resnet50", "epochs": 200, "batch_size": 512, "wd": 1e-4},
    "list": LARGE | OWN_IMAGES,
    "folder": LARGE | OWN_IMAGES,
}


# Where stage 2 has a preset of its own: the head is re-trained in batches of 64 whatever stage 1 had.
STAGE2_PRESETS: dict[str, dict[str, Any]] = {
    "places_lt": {"batch_size": 64},
    "inaturalist2018": {"batch_size": 64},
}


# Stage 2 of a method as it was published for a data set: GALA re-trains the classifier alone on large images. Its code
# leaves traces of ImageNet-LT's and iNaturalist's settings; those of Places-LT are inferred from ImageNet-LT's.
METHOD_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("imagenet_lt", "gala"): {
        "finetune_lr": 0.12,
        "batch_size": 512,
        "finetune_epoch": 10,
        "sampler": "class_balanced",
    },
    ("places_lt", "gala"): {"finetune_lr": 0.12, "batch_size": 512, "finetune_epoch": 10, "sampler": "class_balanced"},
    ("inaturalist2018", "gala"): {
        "finetune_lr": 0.2,
        "batch_size": 512,
        "finetune_epoch": 30,
        "finetune_wd": 1e-4,
        "sampler": "class_balanced",
    },
}


# Features that any model made. Stage 1 is then a classifier alone (`methods.linear_probe`), and its weight decay is
# that of features scaled to a mean squared distance of 1 from their mean. Of 1e-2, 1e-3, ... it is the largest that
# fits all training rows of digits' pixels, of a ResNet's features and of synthetic ones of unit norm, which are all
# separable.
FEATURES_PRESET: dict[str, Any] = {"wd": 1e-5, "views": "plain", **ANY_SCALE}


# Where features may have any scale: published numbers that would depend on it, in a form that does not. Of taus from
# 0.25 to 1.9 none other is at least as good on all of digits' pixels, an ImageNet network's features, and a ResNet's.
ANY_SCALE_METHODS: dict[str, dict[str, Any]] = {
    "tau_norm": {"tau": 1.0, "norm_bias": "centre"},
    "l2_norm": {"norm_bias": "centre"},
}


# What stage 1 defaults to with a loss, where that was published with a recipe of its own: GALA's code for CIFAR.
LOSS_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    (dataset, "gala"): {
        "network": "resnet32",
        "lr": 0.1,
        "wd": 5e-4,
        "augment": "autoaugment",
        "schedule": "warmup_cosine",
        "drop_last": True,
    }
    for dataset in ("cifar100", "cifar10")
}


PROTOCOLS: dict[str, dict[str, Any]] = {
    "honest": {},
    "released": {"start": "best", "bn_mode": "train", "views": "fresh"},
}


NATURAL = "natural"  # the `imb_type` of data that are long-tailed of themselves


def stage_preset(script: str, dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what the settings of a script default to, for a data set and the loss or method among the flags given."""
    preset = preset_of(dataset)
    if script == STAGE1:
        probe = {"wd": FEATURES_PRESET["wd"]} if given.get("epochs") == 0 else {}  # of features, not of steps
        return {**preset, **LOSS_PRESETS.get((dataset, given.get("loss", FLAGS["loss"].default)), {}), **probe}
    if script == STAGE2:
        preset = {**preset, **STAGE2_PRESETS.get(dataset, {})}
    method = given.get("method", FLAGS["method"].default)
    if find_recipe(method).own_budget:
        preset = {name: value for name, value in preset.items() if not name.startswith("finetune_")}
    if script != STAGE2:
        return preset
    scale_free = given.get("rate_scale", preset.get("rate_scale")) == ANY_SCALE["rate_scale"]
    own = ANY_SCALE_METHODS.get(method, {}) if scale_free else {}
    return {**preset, **own, **METHOD_PRESETS.get((dataset, method), {})}


def preset_of(dataset: str) -> dict[str, Any]:
    """Return what a data set's settings default to; one without a preset has the defaults of `Settings`.

    Raises UserError, with the known ones, for a data set that there is not.
    """
    if dataset.startswith(USER_DATASET_PREFIX):
        return FEATURES_PRESET
    if dataset not in DATASETS:
        raise UserError(f"unknown data set '{dataset}'; known: {', '.join(DATASETS)}")
    return PRESETS.get(dataset, {})


def preset_flags(dataset: str) -> list[str]:
    """Return the flags that give stage 2 the preset of a data set; that of anyone's features is the recipes' own."""
    return ["--dataset", dataset] if dataset in DATASETS else []

"""Every setting of the three scripts: one typed record, one parser made from it, presets, protocols.

A value comes from the command line, else from the protocol, else from the data set's preset, else from the default
below. Method-dependent values of stage 2 left at None come from the method's `Recipe`.
"""

import argparse
import dataclasses
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from datasets import DATASETS, ON_DISK
from datasets.autoaugment import AUGMENTATIONS
from datasets.long_tail import IMB_TYPES, SUBSETS
from datasets.sampling import SAMPLERS
from losses import loss_parameters
from losses.los import torch_target
from models import STEMS, check_network
from utils.errors import UserError
from utils.feature_files import OWN, own_name
from utils.parameters import check_parameter
from utils.recipes import RECIPES, find_recipe, resolve_parameters, resolve_smoothing
from utils.schedules import SCHEDULES

STAGE1, STAGE2, EVALUATE = "main_stage1", "main_stage2", "evaluate"
EVERYWHERE = (STAGE1, STAGE2, EVALUATE)
TRAINING = (STAGE1, STAGE2)

# Losses that stage 1 can learn features with: those that take the logits of a linear classifier.
STAGE1_LOSSES = [
    "ce", "focal", "cb_ce", "reweighted_ce", "wb_cb", "balanced_softmax", "logit_adjust", "las", "vs", "gala"
]  # fmt: skip


def option(
    default: Any,
    help_text: str,
    used_by: Sequence[str] = EVERYWHERE,
    *,
    kind: Any = str,
    choices: Sequence[str] | None = None,
    names: Sequence[str] = (),
    folder: Sequence[str] = (),
) -> Any:
    """Declare a setting: its help text, the scripts that read it, and the stages whose run folder names it."""
    metadata = {
        "help": help_text, "used_by": used_by, "kind": kind, "choices": choices, "names": names, "folder": folder
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=metadata)


def switch(help_text: str, used_by: Sequence[str], folder: Sequence[str] = ()) -> Any:
    """Declare a setting that is off unless its flag is given."""
    return option(False, help_text, used_by, kind=bool, folder=folder)


def parameter(help_text: str, kind: Any = float, choices: Sequence[str] | None = None) -> Any:
    """Declare a hyper-parameter of some losses, heads and classifiers; None where the method has no such thing."""
    return option(
        None, f"{help_text} [the method's]", TRAINING, kind=kind, choices=choices, folder=TRAINING
    )  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All settings, resolved. The first block is the released code's, by name and meaning.

    `finetune_*` default to the method's own values and `seed` may be drawn: `parse_command` fills them in.
    """

    data_dir: str = option("data", "folder of the data sets")
    dataset: str = option("cifar100", "data set", choices=list(DATASETS))
    num_class: int | None = option(None, "number of classes; checked against the data", kind=int)
    imb_ratio: float | None = option(
        100.0, "imbalance factor: largest over smallest class [images on disk: their own]", kind=float
    )
    network: str = option("resnet34", "network; with --stem imagenet any classifier of torchvision")
    epochs: int = option(200, "epochs of stage 1", (STAGE1,), kind=int, folder=(STAGE1,))
    batch_size: int = option(64, "images a step, of all processes together", TRAINING, kind=int, folder=TRAINING)
    cur_stage: str | None = option(None, "which stage", choices=["stage1", "stage2"])
    lr: float = option(
        0.01, "learning rate of stage 1", (STAGE1,), kind=float, names=["--learning-rate"], folder=(STAGE1,)
    )
    momentum: float = option(0.9, "momentum of SGD", TRAINING, kind=float, folder=TRAINING)
    wd: float = option(5e-3, "weight decay of stage 1, on all parameters", (STAGE1,), kind=float, folder=(STAGE1,))
    nesterov: bool = switch("Nesterov momentum", TRAINING, folder=TRAINING)
    finetune_epoch: int = option(None, "epochs of stage 2 [the method's]", (STAGE2,), kind=int, folder=(STAGE2,))
    finetune_lr: float = option(
        None, "learning rate of stage 2 [the method's]", (STAGE2,), kind=float, folder=(STAGE2,)
    )
    finetune_wd: float = option(None, "weight decay of stage 2 [the method's]", (STAGE2,), kind=float, folder=(STAGE2,))
    label_smooth: float | None = option(
        None, "label smoothing [stage 1: 0; stage 2: the method's, 0.98 for los]", kind=float, folder=TRAINING
    )
    pretrained_pth: str | None = option(
        None, "run folder or file: the checkpoint that this script reads [found by the other flags]", (STAGE2, EVALUATE)
    )
    features: str | None = option(
        None, "file of features that any model made (.npz, .safetensors), in the place of data set and network"
    )
    out: str = option("checkpoints", "folder of the runs")
    workers: int | None = option(
        None, "images on disk: processes that read them, 0 for none; images in memory: threads that compute, on a CPU",
        kind=int,
    )  # fmt: skip
    seed: int = option(0, "random seed; None draws one and records it", kind=int)
    gpu: int = option(0, "number of the CUDA device", kind=int)

    train_list: str | None = option(None, "list of the training images: lines of 'path label', or COCO's .json")
    val_list: str | None = option(None, "list of images that are held out for tuning")
    test_list: str | None = option(None, "list of the test images")
    image_root: str | None = option(None, "folder that the paths in lists are relative to [that of the data set]")
    stem: str = option("cifar", "the network's first layers: for images of some 32 or of some 224 pixels",
        choices=STEMS, folder=TRAINING,
    )  # fmt: skip
    image_size: int | None = option(
        None, "images on disk: side in pixels of what the network sees", kind=int, folder=TRAINING
    )
    resize: int | None = option(
        None, "images on disk: shorter side in pixels before the crop of an evaluation [8/7 of --image_size]", kind=int,
        folder=TRAINING,
    )  # fmt: skip
    skip_bad: int = option(
        0, "images on disk: read all first and leave out those that cannot be, at most this many", kind=int
    )
    weights: str | None = option(
        None, "pre-trained weights to start from: a state dict of torchvision, of this project, of MoCo and its like",
        folder=TRAINING,
    )  # fmt: skip
    imb_type: str = option("exp", "profile of the class sizes", choices=IMB_TYPES)
    subset: str = option("first", "which images of a class are kept", choices=SUBSETS, folder=TRAINING)
    subset_seed: int = option(0, "seed of --subset shuffle", kind=int, folder=TRAINING)
    holdout: float = option(0.0, "share of each class kept out of training, for tuning", kind=float, folder=TRAINING)
    width: int | None = option(
        None, "channels of the first stage; scales the network [its own]", kind=int, folder=TRAINING
    )
    mixup: float = option(0.0, "alpha of mixup; 0 is off", (STAGE1,), kind=float, folder=(STAGE1,))
    eval_every: int = option(1, "epochs between evaluations", TRAINING, kind=int)
    protocol: str = option(
        "honest", "which headline, and what the stage-2 switches default to", choices=["honest", "released"]
    )
    loss: str = option("ce", "loss of stage 1", (STAGE1,), choices=STAGE1_LOSSES, folder=(STAGE1,))
    augment: str = option(
        "crop", "augmentation of stage 1: crop and mirror, or also colour jitter, or the AutoAugment policy and Cutout",
        (STAGE1,), choices=AUGMENTATIONS, folder=(STAGE1,),
    )  # fmt: skip
    schedule: str = option(
        "cosine", "learning rate of stage 1 over its epochs; warmup_cosine halves the first epoch's", (STAGE1,),
        choices=list(SCHEDULES), folder=(STAGE1,),
    )  # fmt: skip
    warmup_epochs: int = option(
        0, "epochs before the schedule in which the learning rate of stage 1 rises to --lr", (STAGE1,), kind=int,
        folder=(STAGE1,),
    )  # fmt: skip
    clip_grad: float | None = option(
        None, "clip the norm of stage 1's gradients at this", (STAGE1,), kind=float, folder=(STAGE1,)
    )
    sync_bn: str = option(
        "on", "batch norm in stage 1 on many processes: over the whole batch, or over each process's part", (STAGE1,),
        choices=["on", "off"], folder=(STAGE1,),
    )  # fmt: skip
    drop_last: bool = switch("stage 1 leaves out the last batch of an epoch where it is not full", (STAGE1,), (STAGE1,))
    method: str = option("los", "classifier re-training method", (STAGE2, EVALUATE), choices=list(RECIPES))
    tau: float | None = parameter("weight of the class prior, or exponent of the weight norm")
    gamma: float | None = parameter("exponent of focal loss, or of vector scaling's factors")
    beta: float | None = parameter("effective number of samples: (1 - beta^n) / (1 - beta)")
    rho: float | None = parameter("exponent of inverse class frequencies as weights")
    max_margin: float | None = parameter("LDAM's largest margin, before scaling")
    scale: float | None = parameter("scale of a cosine classifier")
    noise: float | None = parameter("largest width of GCL's clouds, before scaling")
    smooth_head: float | None = parameter("label-aware smoothing of the largest class")
    smooth_tail: float | None = parameter("label-aware smoothing of the smallest class")
    lambda1: float | None = parameter("weight of GALA's margin for the class of the logit")
    lambda2: float | None = parameter("weight of GALA's margin for the true class")
    gala_margin: str | None = parameter(
        "GALA's margins: on the other classes' logits, or the shift on every logit", str, ["paper", "released"]
    )
    gala_accumulation: str | None = parameter(
        "GALA's gradients: summed, or their running sums summed again", str, ["single", "double"]
    )
    sampler: str | None = option(
        None, "how stage 2 draws images [the method's]", (STAGE2,), choices=SAMPLERS, folder=(STAGE2,)
    )
    max_norm: float | None = option(
        None, "hold every weight row of the classifier to min + MAX_NORM * (max - min) of stage 1's [the method's]",
        (STAGE2,), kind=float, folder=(STAGE2,),
    )  # fmt: skip
    rebalance_tau: float = option(1.0, "exponent of the re-balanced predictions in the report", kind=float)
    temperature: float | None = option(
        None, "divide logits by this where probabilities are shown [fitted on held-out images]", kind=float
    )
    loma_target: float | None = option(
        None, "set the smoothing from the wanted logit gap", (STAGE2,), kind=float, folder=(STAGE2,)
    )
    start: str = option("last", "which stage-1 checkpoint stage 2 starts from", (STAGE2,), choices=["last", "best"])
    bn_mode: str = option("eval", "batch norm of the frozen backbone in stage 2", (STAGE2,), choices=["eval", "train"])
    views: str = option(
        "5", "views of each image whose features stage 2 trains on: N augmented ones, 'plain' (one, not augmented; all "
        "that a file of features has), 'fresh' (another every epoch)", (STAGE2,),
    )  # fmt: skip
    reinit_classifier: bool = switch("stage 2 starts from a new classifier", (STAGE2,), folder=(STAGE2,))
    stage1_seed: int | None = option(
        None, "seed of the stage-1 run that stage 2 uses [--seed]", (STAGE2, EVALUATE), kind=int
    )
    device: str = option("auto", "where to compute", choices=["auto", "cpu", "cuda"])
    amp: str = option("auto", "bf16 autocast [on a CUDA device that has it]", choices=["auto", "off", "bf16"])
    compile: str = option("auto", "torch.compile the network [on CUDA]", (STAGE1,), choices=["auto", "on", "off"])
    deterministic: bool = switch("runs on a CUDA device repeat bit for bit, as those on a CPU do; slower", EVERYWHERE)
    resume: bool = switch("go on with an interrupted run", TRAINING)
    overwrite: bool = switch("replace a run that is there", TRAINING)
    reuse: bool = switch("use a run that is finished as it is, go on with an interrupted one", TRAINING)
    tensorboard: bool = switch("also write what log.csv has as events for TensorBoard", TRAINING)
    trust_pickle: bool = switch(
        "load pickled modules, which can run code: only from a source you trust", (STAGE2, EVALUATE)
    )
    json: str | None = option(None, "write the report to this file", (EVALUATE,))


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
PARAMETERS = [
    "tau", "gamma", "beta", "rho", "max_margin", "scale", "noise", "smooth_head", "smooth_tail", "lambda1", "lambda2",
    "gala_margin", "gala_accumulation",
]  # fmt: skip

# What the presets of images on disk share. That colours are jittered, that stage 2 has the numbers of CIFAR and that it
# trains on one view is inferred: there is no code of the paper for them. One view cost CIFAR less than a tenth of a
# point, and every view of iNaturalist 2018 is 3.6 GB of features.
LARGE: dict[str, Any] = {
    "stem": "imagenet", "image_size": 224, "imb_ratio": None, "augment": "jitter", "views": "1", "eval_every": 5,
}  # fmt: skip

# CIFAR runs on the released recipe, which is what `Settings` defaults to. Epochs, batches and learning rates of
# ImageNet-LT and iNaturalist 2018 are those of Weight Balancing (CVPR 2022), on which LOS builds; it gives ranges of
# the weight decay alone, in which those here are guesses. Places-LT fine-tunes a network pre-trained on ImageNet, as
# the field does (`--weights`); its numbers, and those of anyone's own images, are inferred. The stage-2 learning rate
# of `digits` was chosen on held-out images: the best mean of results/digits_selection.csv, of equal ones with the
# published smoothing, and of those the largest.
PRESETS: dict[str, dict[str, Any]] = {
    "cifar100": {},
    "cifar10": {},
    "digits": {
        "imb_ratio": 25.0, "network": "resnet8", "epochs": 60, "batch_size": 32, "lr": 0.05, "wd": 5e-3,
        "finetune_lr": 1e-4,
        "workers": 1,  # on more threads than one, work this small waits for its threads
    },
    "imagenet_lt": {**LARGE, "network": "resnext50_32x4d", "epochs": 200, "wd": 5e-4},
    "places_lt": {**LARGE, "network": "resnet152", "epochs": 30, "batch_size": 128, "wd": 5e-4},
    "inaturalist2018": {**LARGE, "network": "resnet50", "epochs": 200, "batch_size": 512, "wd": 1e-4},
    "list": {**LARGE, "network": "resnet50", "epochs": 90, "wd": 5e-4, "eval_every": 1},
    "folder": {**LARGE, "network": "resnet50", "epochs": 90, "wd": 5e-4, "eval_every": 1},
}  # fmt: skip
# Where stage 2 has a preset of its own: the head is re-trained in batches of 64 whatever stage 1 had.
STAGE2_PRESETS: dict[str, dict[str, Any]] = {
    "places_lt": {"batch_size": 64},
    "inaturalist2018": {"batch_size": 64},
}

# Stage 2 of a method as it was published for a data set: GALA re-trains the classifier alone on large images. Its code
# leaves traces of ImageNet-LT's and iNaturalist's settings; those of Places-LT are inferred from ImageNet-LT's.
METHOD_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("imagenet_lt", "gala"): {
        "finetune_lr": 0.12, "batch_size": 512, "finetune_epoch": 10, "sampler": "class_balanced"
    },
    ("places_lt", "gala"): {
        "finetune_lr": 0.12, "batch_size": 512, "finetune_epoch": 10, "sampler": "class_balanced"
    },
    ("inaturalist2018", "gala"): {
        "finetune_lr": 0.2, "batch_size": 512, "finetune_epoch": 30, "finetune_wd": 1e-4, "sampler": "class_balanced",
    },
}  # fmt: skip

# Features that any model made. Stage 1 is then a classifier alone (`utils.linear_probe`), and its weight decay is that
# of features scaled to a mean squared distance of 1 from their mean. Of 1e-2, 1e-3, ... it is the largest that fits all
# training rows of digits' pixels, of a ResNet's features and of synthetic ones of unit norm, which are all separable.
FEATURES_PRESET: dict[str, Any] = {"wd": 1e-5, "views": "plain"}
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

# What stage 1 defaults to with a loss, where that was published with a recipe of its own: GALA's code for CIFAR.
LOSS_PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    (dataset, "gala"): {
        "network": "resnet32", "lr": 0.1, "wd": 5e-4, "augment": "autoaugment", "schedule": "warmup_cosine",
        "drop_last": True,
    }
    for dataset in ("cifar100", "cifar10")
}  # fmt: skip

PROTOCOLS: dict[str, dict[str, Any]] = {
    "honest": {},
    "released": {"start": "best", "bn_mode": "train", "views": "fresh"},
}
PROTOCOL_SWITCHES = ("start", "bn_mode", "views")
ONLY_ON_DISK = ("image_size", "resize", "skip_bad")
NATURAL = "natural"  # the `imb_type` of data that are long-tailed of themselves
# What has no effect in stage 2 where the classifier is computed from plain features instead of trained.
TRAINED_ONLY = (
    "finetune_epoch", "finetune_lr", "finetune_wd", "momentum", "nesterov", "batch_size", "views", "bn_mode",
    "eval_every", "sampler", "max_norm", "reinit_classifier",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A parsed command line: the resolved settings, which of them the user gave, what they are by default."""

    script: str
    settings: Settings
    given: dict[str, Any]
    defaults: Settings
    arguments: tuple[str, ...]

    def replace(self, **values: Any) -> "Command":
        """Return the same command with other settings."""
        return dataclasses.replace(self, settings=dataclasses.replace(self.settings, **values))

    def settled(self, **values: Any) -> "Command":
        """Return the same command where these values are what is meant by default: no folder's name has them."""
        return dataclasses.replace(self.replace(**values), defaults=dataclasses.replace(self.defaults, **values))

    def for_dataset(self, dataset: str) -> "Command":
        """Return the same command with another data set's preset behind the flags that were given."""
        drawn = {"seed": self.settings.seed}  # one that was drawn is not drawn again
        return resolve(self.script, {**self.given, **drawn}, self.arguments, dataset)


def seed_value(text: str) -> int | None:
    """Parse `--seed`: an integer of 0 or more, or None."""
    return None if text == "None" else int(text)


def make_parser(script: str, description: str) -> argparse.ArgumentParser:
    """Make the parser of a script. All three accept every flag; one that a script does not read is reported."""
    parser = argparse.ArgumentParser(prog=f"{script}.py", description=description, allow_abbrev=False)
    parser.error = _refuse  # type: ignore[method-assign]  # one line, like every other user error
    groups = {
        used: parser.add_argument_group("settings" if used else "accepted, not used here") for used in (True, False)
    }
    for field in FIELDS.values():
        meta = field.metadata
        shown = "" if field.default is None or meta["kind"] is bool else f" [{field.default}]"
        arguments: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS, "help": meta["help"] + shown}
        if meta["kind"] is bool:
            arguments["action"] = "store_true"
        else:
            arguments["type"] = seed_value if field.name == "seed" else meta["kind"]
            arguments["metavar"] = (
                field.name.upper() if meta["choices"] is None else "{" + ",".join(meta["choices"]) + "}"
            )
        groups[script in meta["used_by"]].add_argument(f"--{field.name}", *meta["names"], **arguments)
    return parser


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; --help lists the flags")


def parse_command(script: str, description: str, argv: Sequence[str] | None = None) -> Command:
    """Parse a command line, resolve every setting, check its domain, report flags that have no effect."""
    arguments = tuple(sys.argv[1:] if argv is None else argv)
    given = vars(make_parser(script, description).parse_args(arguments))
    command = resolve(script, given, arguments)
    report_unused(script, [f"--{name}" for name in FIELDS if name in given and name not in command.given])
    return command


def resolve(script: str, given: dict[str, Any], arguments: tuple[str, ...], dataset: str | None = None) -> Command:
    """Resolve every setting from the flags given, with the preset of `dataset` (that of the flags by default).

    A flag that has no effect in `script` counts as not given, so that it can have none by accident.
    """
    if "features" in given:
        refuse_without_images(script, given)
        dataset = own_name(Path(given["features"]))
    dataset = dataset or given.get("dataset", FIELDS["dataset"].default)
    protocol = given.get("protocol", FIELDS["protocol"].default)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}'; known: {', '.join(PROTOCOLS)}")
    preset = stage_preset(script, dataset, given)
    values = {**preset, **PROTOCOLS[protocol]}
    if given.get("bn_mode") == "train":
        values["views"] = "fresh"  # batch statistics change with every batch: there is nothing to cache
    asked = Settings(**{**values, **given})
    check_domains(asked)
    if "stem" in given or "pretrained_pth" not in given:  # else the checkpoint settles the stem
        check_network(asked.network, asked.stem)
    if asked.workers == 0 and dataset not in ON_DISK and "pretrained_pth" not in given:
        raise UserError("--workers must be between 1 and 1024 for images in memory, not 0: they are threads")
    unused = {name for name in given if script not in FIELDS[name].metadata["used_by"]}
    if dataset not in ON_DISK:
        unused |= set(ONLY_ON_DISK) & set(given)
    if script == STAGE1 and given.get("epochs") == 0:
        unused |= (set(NOT_OF_PROBES) - {"epochs"} | {"tensorboard"}) & set(given)
    if given.get("subset") != "shuffle":
        unused.add("subset_seed")
    if {**values, **given}.get("imb_ratio", 0) is None:
        unused |= {"imb_type", "subset", "subset_seed"} & set(given)  # all images there are
    if script == STAGE2 and not find_recipe(given.get("method", FIELDS["method"].default)).trains:
        unused |= set(TRAINED_ONLY) & set(given)
    used = {name: value for name, value in given.items() if name not in unused}
    settings = Settings(**{**values, **used, "dataset": dataset})
    if settings.imb_ratio is None:
        settings = dataclasses.replace(settings, imb_type=NATURAL)
    if settings.seed is None:
        settings = dataclasses.replace(settings, seed=random.SystemRandom().randrange(2**31))
    settings = fill_stage_values(settings, script)
    defaults = Settings(**{**preset, "dataset": dataset})
    defaults = dataclasses.replace(defaults, method=settings.method, loss=settings.loss, cur_stage=settings.cur_stage)
    defaults = fill_stage_values(defaults, script)
    # The folder names a loss that is not the default, and its parameters where they are not the loss's own.
    defaults = dataclasses.replace(defaults, loss=str(FIELDS["loss"].default))
    check_stage(script, settings)
    return Command(script, settings, used, defaults, arguments)


def stage_preset(script: str, dataset: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what the settings of a script default to, for a data set and the loss or method among the flags given."""
    preset = preset_of(dataset)
    if script == STAGE1:
        probe = {"wd": FEATURES_PRESET["wd"]} if given.get("epochs") == 0 else {}  # of features, not of steps
        return {**preset, **LOSS_PRESETS.get((dataset, given.get("loss", FIELDS["loss"].default)), {}), **probe}
    if script == STAGE2:
        preset = {**preset, **STAGE2_PRESETS.get(dataset, {})}
    method = given.get("method", FIELDS["method"].default)
    if find_recipe(method).own_budget:
        preset = {name: value for name, value in preset.items() if not name.startswith("finetune_")}
    return {**preset, **METHOD_PRESETS.get((dataset, method), {})} if script == STAGE2 else preset


def preset_of(dataset: str) -> dict[str, Any]:
    """Return what a data set's settings default to; a UserError lists the known ones."""
    if dataset not in PRESETS and not dataset.startswith(OWN):
        raise UserError(f"unknown data set '{dataset}'; known: {', '.join(DATASETS)}")
    return PRESETS.get(dataset, FEATURES_PRESET)


def preset_flags(dataset: str) -> list[str]:
    """Return the flags that give stage 2 the preset of a data set; that of anyone's features is the recipes' own."""
    return ["--dataset", dataset] if dataset in PRESETS else []


def refuse_without_images(script: str, given: dict[str, Any]) -> None:
    """Raise UserError for flags of data sets, networks and their training beside `--features`."""
    idle = NOT_OF_FEATURES + (NOT_OF_PROBES if script == STAGE1 else ())
    flags = [f"--{name} {given[name]}" for name in idle if name in given]
    if flags:
        raise UserError(
            f"{', '.join(flags)}: no use with --features {given['features']}, a file that is data set and network; "
            "leave it out"
        )


def fill_stage_values(settings: Settings, script: str) -> Settings:
    """Replace the None of values that depend on the stage or on the method of stage 2."""
    if settings.cur_stage is None:
        settings = dataclasses.replace(settings, cur_stage="stage2" if script == STAGE2 else "stage1")
    if settings.cur_stage == "stage1":
        settings = dataclasses.replace(settings, label_smooth=settings.label_smooth or 0.0)
        return fill_loss_parameters(settings, settings.loss) if script == STAGE1 else settings
    recipe = RECIPES[settings.method]
    smoothing = settings.label_smooth
    if smoothing is None and settings.loma_target is None:
        smoothing = recipe.smoothing
    usual = {
        "finetune_epoch": recipe.epochs if recipe.trains else 0,
        "finetune_lr": recipe.lr,
        "finetune_wd": recipe.weight_decay,
        "sampler": recipe.sampler,
        "max_norm": recipe.max_norm,
    }
    given = {name: getattr(settings, name) for name in usual if getattr(settings, name) is not None}
    own: dict[str, Any] = {}
    if script == STAGE2:
        own = dict(resolve_parameters(settings.method, given_parameters(settings)))
    return dataclasses.replace(settings, label_smooth=smoothing, **{**usual, **given, **own})


def given_parameters(settings: Settings) -> dict[str, Any]:
    """Return the hyper-parameters of losses, heads and classifiers that have a value."""
    return {name: getattr(settings, name) for name in PARAMETERS if getattr(settings, name) is not None}


def fill_loss_parameters(settings: Settings, loss: str) -> Settings:
    """Give the hyper-parameters of stage 1's loss their defaults; a UserError names one that it does not have."""
    own: dict[str, Any] = dict(loss_parameters(loss))
    given = given_parameters(settings)
    for name in given:
        if name not in own:
            users = ", ".join(other for other in STAGE1_LOSSES if name in loss_parameters(other))
            raise UserError(f"--{name} has no meaning for --loss {loss}; it belongs to {users or 'no loss of stage 1'}")
    return dataclasses.replace(settings, **{**own, **given})


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


def report_unused(script: str, flags: list[str], why: str = "") -> None:
    """Say on standard error that flags were given where they have no effect."""
    if flags:
        print(f"not used by {script}{why}: {' '.join(flags)}", file=sys.stderr)


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

"""What the records of runs may say: one schema for checkpoints, headers of released files and config.json.

Whatever a record lacks is not judged here: older versions wrote less. What it has must be of its type and among the
values that a run can have, and names that become parts of paths pass `utils.outside.is_name`.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets.identity.content import HOW, SPLITS
from datasets.long_tail import IMB_TYPES
from evaluation.prediction_sets.record import KEY, is_sound
from settings.checks import check_value
from settings.declare import Facet, Flag
from settings.fields import FLAGS
from settings.presets import NATURAL
from utils.errors import UserError
from utils.files import read_json
from utils.outside import is_name
from utils.parameters import TEMPERATURES
from utils.text import shown

Check = Callable[[Any], bool]
MOST_CLASSES = 10**9
# Settings whose values are names that a file may bring along: they become parts of paths.
NAMES = ("dataset", "imb_type", "network")
COMPUTED = ("finetune_epoch",)  # 0, which cannot be asked for, where a classifier is computed and not trained


def one_of(*values: object) -> Check:
    """Return the check for one of some values."""
    return lambda value: isinstance(value, str | None) and value in values


def of(*kinds: type) -> Check:
    """Return the check for a value of some types; True is no number."""
    return lambda value: type(value) in kinds


def none_or(check: Check) -> Check:
    """Return the check for a value that may also be None."""
    return lambda value: value is None or check(value)


def all_of(check: Check) -> Check:
    """Return the check for a list of such values."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def whole(value: Any) -> bool:
    """Tell whether a value is a number of classes, images or epochs."""
    return type(value) is int and 0 <= value < MOST_CLASSES


def texts(value: Any) -> bool:
    """Tell whether a value is a dictionary of texts by texts, some of them not known."""
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, str | None) for k, v in value.items())


def start(value: Any) -> bool:
    """Tell whether a value is what a stage 2 records of its stage 1."""
    return isinstance(value, dict) and not faults(value, {"tags": all_of(is_name), "sha256": of(str)})


def part_identity(value: Any) -> bool:
    """Tell whether a value is what an identity says of one split."""
    sums = dict.fromkeys(("content_sha256", "images_sha256", "order_sha256", "rows_sha256"), of(str))
    return isinstance(value, dict) and not faults(value, {"images": whole, **sums})


def identity(value: Any) -> bool:
    """Tell whether a value is what a run records of its data (`datasets.identity.content.identity_record`)."""
    return isinstance(value, dict) and not faults(value, IDENTITY)


def classes_of_parts(value: Any) -> bool:
    """Tell whether a value is a list of texts, one a class, for each of some splits."""
    return isinstance(value, dict) and all(all_of(of(str))(classes) for classes in value.values())


IDENTITY: dict[str, Check] = {
    "how": one_of(*HOW),
    "of": one_of("files", "pixels", "features"),
    **dict.fromkeys(SPLITS, part_identity),
    "pool_sha256": of(str),
    "classes": classes_of_parts,
}


def setting_is_sound(flag: Flag, value: Any) -> bool:
    """Tell whether a setting can have had a value: by its type, its bounds and its choices, as it is declared."""
    if value is None:
        return flag.optional or flag.default is None
    if type(value) not in flag.types or (isinstance(value, float) and not math.isfinite(value)):
        return False
    if flag.name in NAMES:
        return is_name(value) and (flag.name != "imb_type" or value in (*IMB_TYPES, NATURAL))
    if flag.bounds is None and flag.choices is None and not flag.facets & (Facet.HYPERPARAMETER | Facet.NUMBERS):
        return isinstance(value, str) or 0 <= value < 2**32
    if flag.name in COMPUTED and value == 0:
        return True
    try:
        check_value(flag.name, value)
    except UserError:
        return False
    return True


SETTINGS: dict[str, Check] = {
    name: (lambda value, flag=flag: setting_is_sound(flag, value))  # type: ignore[misc]
    for name, flag in FLAGS.items()
}
CONFIG: dict[str, Check] = {
    "schema": of(int),
    "stage": one_of("stage1", "stage2"),
    "method": none_or(is_name),
    "chosen": of(str),
    "tags": all_of(is_name),
    "command": of(str),
    "settings": of(dict),
    "target": none_or(of(dict)),
    "num_class": whole,
    "class_counts": all_of(whole),
    "class_names": none_or(all_of(of(str))),
    "images": none_or(of(dict)),
    "subset": texts,
    "test": none_or(texts),
    "identity": none_or(identity),
    "weights": none_or(of(dict)),
    "stage1": none_or(start),
    "backbone": none_or(of(dict)),
    "precision": of(str),
    "processes": whole,
    "environment": of(dict),
    "resumed": all_of(of(dict)),
    "parts": all_of(of(dict)),
}
CHECKPOINT: dict[str, Check] = {
    "stage": one_of("stage1", "stage2"),
    "epoch": whole,
    "class_names": all_of(of(str)),
    "augmentation": of(dict),
    "run_sha256": none_or(of(str)),
    "temperature": none_or(lambda value: type(value) in (int, float) and value in TEMPERATURES),
    "temperature_source": none_or(of(str)),
    KEY: none_or(is_sound),
}


def faults(record: Mapping[str, Any], schema: Mapping[str, Check]) -> list[str]:
    """Return the entries of a record that are not as a schema says; those that are missing are for others to judge."""
    return [name for name, check in schema.items() if name in record and not check(record[name])]


def config_faults(config: Mapping[str, Any]) -> list[str]:
    """Return the entries of a configuration that no run can have written, those of its settings among them."""
    wrong = faults(config, CONFIG)
    if wrong:
        return wrong
    lengths = {name: len(config[name]) for name in ("class_counts", "class_names") if config.get(name) is not None}
    classes = config.get("num_class", lengths.get("class_counts"))
    wrong = [f"{name} ({length} for {classes} classes)" for name, length in lengths.items() if length != classes]
    if wrong and classes is not None:
        return wrong
    return faults(config.get("settings", {}), SETTINGS)


def checkpoint_faults(content: Mapping[str, Any]) -> list[str]:
    """Return the entries of a checkpoint of ours, its tensors apart, that no run can have written."""
    return config_faults(content["config"]) + faults(content, CHECKPOINT)


def refuse_faults(path: Path, wrong: list[str]) -> None:
    """Raise UserError, which names the file and the entries, where a record has faults."""
    if wrong:
        raise UserError(f"{path} is damaged: its {shown(', '.join(wrong))} cannot be")


def read_config(path: Path) -> dict[str, Any]:
    """Read a run's config.json; a UserError names the file, and the entry that no run can have written."""
    config = read_json(path)
    refuse_faults(path, config_faults(config))
    return config

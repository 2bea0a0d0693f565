"""The kinds of input that are fuzzed."""

import shlex
from typing import Any

from benchmarks.robustness.fuzz_inputs.cases import Kind
from benchmarks.robustness.fuzz_inputs.checkpoints import checkpoint_cases, try_checkpoint
from benchmarks.robustness.fuzz_inputs.command_lines import command_cases, try_command_line
from benchmarks.robustness.fuzz_inputs.damage import json_cases
from benchmarks.robustness.fuzz_inputs.features import feature_cases, try_features
from benchmarks.robustness.fuzz_inputs.images import image_cases, try_image
from benchmarks.robustness.fuzz_inputs.lists import list_cases, try_coco, try_list
from benchmarks.robustness.fuzz_inputs.places import place_cases, try_place
from benchmarks.robustness.fuzz_inputs.records import RECORDS, try_record

KINDS = [
    Kind("command line", command_cases, try_command_line),
    Kind("list", list_cases, try_list),
    Kind("COCO list", lambda material: json_cases(["train.json"]), try_coco),
    Kind("record of a run", lambda material: json_cases(list(RECORDS)), try_record),
    Kind("features", feature_cases, try_features),
    Kind("image", image_cases, try_image),
    Kind("checkpoint", checkpoint_cases, try_checkpoint),
    Kind("no plain file", place_cases, try_place),
]


def describe_case(kind: Kind, case: Any) -> str:
    """Return a case in a line, as it can be tried again."""
    if kind.name == "command line":
        return shlex.join([case[0], *(word if len(word) < 100 else f"{word[:50]}..." for word in case[1])])
    return repr(case)

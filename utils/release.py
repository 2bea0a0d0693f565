"""Make a small file to publish from a finished run: half-precision safetensors, and a card that says what it is.

    python -m utils.release RUN_FOLDER FILE.safetensors

The file holds the last epoch's weights and the run's configuration, so that `evaluate.py --pretrained_pth FILE` and
`main_stage2.py --pretrained_pth FILE` need no other flag. The card, FILE with the ending .json, has the command, the
data, the accuracy of the run (in full precision) and the file's sha256.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from safetensors.torch import save

from utils.checkpoint import FORMAT, load_checkpoint
from utils.compare import read_run
from utils.errors import UserError, run_command
from utils.files import sha256_file, write_atomically, write_json


def refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; usage: python -m utils.release RUN_FOLDER FILE.safetensors")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m utils.release", description=__doc__)
    parser.error = refuse  # type: ignore[method-assign]
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("file", type=Path, help="where to write, ending in .safetensors")
    arguments = parser.parse_args(argv)
    card_path = arguments.file.with_suffix(".json")
    if arguments.file.suffix != ".safetensors" or arguments.file.exists() or card_path.exists():
        refuse(f"{arguments.file} must end in .safetensors, and neither it nor its card may exist")
    metrics, config = read_run(arguments.run)
    checkpoint = load_checkpoint(arguments.run / "last.pth")
    state = {key: value.half() if value.is_floating_point() else value for key, value in checkpoint.state.items()}
    header = {"format": FORMAT, "stage": config["stage"], "epoch": checkpoint.epoch, "config": checkpoint.config}
    content = save({key: value.contiguous() for key, value in state.items()}, {"checkpoint": json.dumps(header)})
    write_atomically(arguments.file, lambda file: file.write(content))
    card = {
        "file": arguments.file.name,
        "sha256": sha256_file(arguments.file),
        "precision": str(torch.float16).removeprefix("torch."),
        "run_sha256": checkpoint.sha256,
        **{key: metrics[key] for key in ("dataset", "imb_type", "imb_ratio", "subset", "network", "width", "stage")},
        **{key: metrics[key] for key in ("method", "seed", "stage1", "train")},
        "last": {way: report and report["all"] for way, report in metrics["last"].items() if way != "epoch"},
        "command": config["command"],
        "environment": config["environment"],
        "license": "MIT",
    }
    write_json(card_path, card)
    print(f"written to {arguments.file} and {card_path}")


if __name__ == "__main__":
    run_command(main)

"""A network in the layout that Hugging Face's hub and its readers know: the files beside `model.safetensors`.

`model.safetensors.index.json` says which shard has which tensor, `config.json` what network it is and what its images
undergo, `README.md` is the model card, whose first lines are the metadata that the hub searches.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from runs.shards import UNFINISHED, card_of, find_shards, refuse_taken_name
from utils.errors import UserError
from utils.files import read_json, write_json, write_text

MODEL_FILE = "model.safetensors"
INDEX, CONFIG, README = f"{MODEL_FILE}.index.json", "config.json", "README.md"


def refuse_taken_folder(file: Path) -> None:
    """Raise UserError where a folder has a file of the layout already; what a stopped command left is removed."""
    beside = [file.with_name(name) for name in (INDEX, CONFIG, README)]
    if card_of(file).is_file() and read_json(card_of(file)) == UNFINISHED:
        for path in beside:
            path.unlink(missing_ok=True)
    refuse_taken_name(file)
    taken = [path for path in beside if path.exists()]
    if taken:
        raise UserError(f"{taken[0]} is there already; name a folder of its own for {MODEL_FILE}")


def write_model_folder(
    file: Path, sizes: Mapping[str, int], header: Mapping[str, Any], card: Mapping[str, Any]
) -> list[Path]:
    """Write what belongs beside a `model.safetensors` that is written, given the bytes of each tensor; return it.

    `header` is what the file says of itself, `card` what its card will.
    """
    written = []
    shards = find_shards(file)
    if shards != [file]:
        places: dict[str, str] = {}
        for path in shards:
            with safe_open(path, framework="pt") as opened:
                places |= {key: path.name for key in opened.keys()}  # noqa: SIM118  # not a dictionary
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(places.items()))}
        write_json(file.with_name(INDEX), index)
        written.append(file.with_name(INDEX))
    write_json(file.with_name(CONFIG), model_config(header["config"]))
    write_text(file.with_name(README), model_card(file, header["config"], card))
    return [*written, file.with_name(CONFIG), file.with_name(README)]


def model_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `config.json` says: the network, its classes, and what an image undergoes before it."""
    settings = config["settings"]
    names = config.get("class_names") or [str(label) for label in range(config["num_class"])]
    return {
        "model_type": "longtail_los",
        "architectures": [settings["network"]],
        "stem": settings.get("stem", "cifar"),
        "width": settings.get("width"),
        "method": config.get("method"),
        "num_labels": len(names),
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "image": config.get("images"),
        "torch_dtype": "float16",
    }


def model_card(file: Path, config: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Return the model card: metadata between lines of three dashes, as YAML that is JSON too, and the text."""
    settings, accuracy = config["settings"], card["measured"]
    method = config.get("method") or "cross-entropy (stage 1)"
    metrics = [
        {"type": "accuracy", "name": f"accuracy, {way}", "value": round(float(value), 2)}
        for way, value in accuracy.items()
        if value is not None
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"type": settings["dataset"], "name": settings["dataset"]},
        "metrics": metrics,
    }
    name = f"{settings['network']} on {settings['dataset']}"
    metadata = {
        "license": "mit",
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "tags": ["long-tailed-recognition", "label-over-smoothing"],
        "model-index": [{"name": name, "results": [result]}],
    }
    front = "\n".join(f"{key}: {json.dumps(value)}" for key, value in metadata.items())
    lines = [
        f"# {name}, {method}",
        "",
        f"Trained on `{settings['dataset']}` with imbalance factor {settings.get('imb_ratio') or 'of its own'}, seed "
        f"{settings.get('seed')}. The backbone is stored in half precision, the classifier in full.",
        "",
        "| test images | accuracy |",
        "| --- | --- |",
        *(f"| {way} | {'-' if value is None else f'{value:.2f}'} |" for way, value in accuracy.items()),
        "",
        "    python evaluate.py --pretrained_pth model.safetensors",
        "    python predict.py --pretrained_pth model.safetensors --images photos",
        "",
        '`torch.hub.load(REPOSITORY, "trained", "model.safetensors")` returns the network. Without the project, the',
        "names of the tensors are torchvision's where it has the architecture; `config.json` has the classes and what",
        f"an image undergoes, `{card_of(file).name}` data, command, environment and hashes.",
        "",
        f"Command: `{card.get('command')}`",
        "",
    ]
    return f"---\n{front}\n---\n\n" + "\n".join(lines)

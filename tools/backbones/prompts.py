"""Zero-shot classifiers: prompts for each class, and the mean of their embeddings as its weights."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runs.dependencies import unnamed
from tools.backbones.backbone import TextEncoder
from utils.errors import UserError
from utils.outside import read_plain
from utils.progress import show_progress
from utils.text import shown

TEMPLATE = "a photo of a {}."  # the one that CLIP's authors start from
PLACE = "{}"
PROMPTS_AT_ONCE = 128


def read_prompts(path: Path | None, class_names: Sequence[str]) -> list[list[str]]:
    """Return the prompts of each of K classes, from a file or, without one, from one template.

    The file holds templates, one a line, or a JSON list of them, in each of which `{}` stands for the class's name with
    blanks for underscores; or a JSON object with the prompt or the list of prompts of each class by its name. Raises
    UserError for a class without a prompt, classes without names, and whatever else the file is.
    """
    if path is None:
        return fill([TEMPLATE], class_names)
    try:
        text = read_plain(path).decode("utf-8-sig")
        content: Any = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'UTF-8'} ({error})") from error
    if isinstance(content, dict):
        return [own_prompts(path, content, name) for name in class_names]
    if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
        raise UserError(f"{path} must hold a list of templates, or an object with the prompts of each class")
    templates = [line.strip() for line in content if line.strip()]
    wrong = [line for line in templates if line.count(PLACE) != 1]
    if wrong or not templates:
        what = f"the template '{shown(wrong[0])}' does not have" if wrong else "it is empty; a template has"
        raise UserError(f"{path}: {what} one {PLACE} where the name of the class goes")
    return fill(templates, class_names)


def own_prompts(path: Path, content: dict[str, Any], name: str) -> list[str]:
    """Return what a file has for one class."""
    found = content.get(name)
    prompts = [found] if isinstance(found, str) else found
    if not isinstance(prompts, list) or not prompts or not all(isinstance(one, str) and one.strip() for one in prompts):
        raise UserError(f"{path} has no prompt for the class '{shown(name)}'; give it a text or a list of texts")
    return prompts


def fill(templates: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """Return templates with the name of each class in its place."""
    if unnamed(class_names):
        raise UserError(
            "--text_classifier: the classes have numbers and no names; give them with --class_names, or their prompts "
            "with --templates FILE.json"
        )
    words = [name.replace("_", " ").strip() for name in class_names]
    if not all(words):
        raise UserError(f"--text_classifier: class {words.index('')} has an empty name, of which no prompt can be made")
    return [[template.replace(PLACE, name) for template in templates] for name in words]


@torch.no_grad()
def text_classifier(text: TextEncoder, prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return the weights (K, d) of the zero-shot classifier on embeddings of unit length, on the CPU in fp32.

    A row is the mean of the class's prompt embeddings, scaled to unit length and then by the model's factor: softmax of
    the logits are the model's own probabilities (Radford et al., ICML 2021, section 3.1.4).
    """
    flat = [prompt for own in prompts for prompt in own]
    starts = range(0, len(flat), PROMPTS_AT_ONCE)
    chunks = (text.embed(flat[start : start + PROMPTS_AT_ONCE]).cpu() for start in starts)
    embedded = torch.cat(list(show_progress(chunks, "prompts", len(starts))))
    means = torch.stack([own.mean(dim=0) for own in embedded.split([len(own) for own in prompts])])
    return text.scale * F.normalize(means.float(), dim=1)

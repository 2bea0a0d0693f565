"""Models of OpenCLIP: both sides, with their transform and tokenizer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tools.backbones.backbone import (
    RANDOM,
    Backbone,
    TextEncoder,
    cannot_load,
    described,
    few,
    one_size,
    require_package,
    unknown_name,
)
from tools.backbones.modules import Embedder
from utils.errors import UserError

HUB = ("hf-hub:", "local-dir:")


def load(name: str, weights: str | None, size: int | None = None) -> Backbone:
    """Load `NAME@TAG`, such as `ViT-B-32@laion2b_s34b_b79k`, or `hf-hub:...`.

    `weights` is a file of weights in the place of a tag, or "none". Raises UserError where open_clip is not installed,
    does not know the model or its tag, or the weights cannot be had.
    """
    open_clip = require_package("open_clip", "open_clip_torch", "open_clip:NAME")
    name, _, tag = name.partition("@")
    spec = f"open_clip:{name}"
    one_size(spec, size)
    if not name.startswith(HUB):
        if name not in open_clip.list_models():
            raise unknown_name("open_clip", name, open_clip.list_models())
        tags = open_clip.list_pretrained_tags_by_model(name)
        if weights is None and not tag:
            raise UserError(f"{spec} has several sets of weights; name one, as {spec}@TAG: {few(tags) or 'none known'}")
        if tag and tag not in tags:
            raise unknown_name(spec, tag, tags, "weights")
    if weights not in (None, RANDOM) and not Path(str(weights)).is_file():
        raise UserError(f"--weights {weights}: there is no such file")
    source = {None: tag or None, RANDOM: None}.get(weights, weights)
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=source)
        tokenizer = open_clip.get_tokenizer(name)
    except Exception as error:  # of the hub, a disk, a file of another model
        raise cannot_load(spec, error, "or name a file of weights for it with --weights") from error
    words = "random" if weights == RANDOM else weights or f"open_clip's {tag or name}"
    text = TextEncoder(partial(embed_prompts, model, tokenizer), float(model.logit_scale.detach().exp()))
    return Backbone(Embedder(model, encode_images), transform, words, described(transform), text)


def encode_images(model: Any, images: Tensor) -> Tensor:
    """Return the embeddings (B, d) that a model makes of images (B, 3, H, W)."""
    return model.encode_image(images)


@torch.no_grad()
def embed_prompts(model: nn.Module, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return the embeddings (P, d) of texts, of unit length."""
    device = next(model.parameters()).device
    return model.encode_text(tokenizer(list(prompts)).to(device), normalize=True).float()  # type: ignore[operator]

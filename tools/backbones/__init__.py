"""Frozen networks of several libraries, each opened by a word of the command line."""

from pathlib import Path

from tools.backbones import files, hugging_face, open_clip_models, timm_models, torchvision_models
from tools.backbones.backbone import Backbone
from utils.errors import UserError

LIBRARIES = {
    "torchvision": torchvision_models.load,
    "timm": timm_models.load,
    "open_clip": open_clip_models.load,
    "hf": hugging_face.load,
}
FORMS = "torchvision:NAME, timm:NAME, open_clip:NAME@TAG, hf:NAME, or a file"


def open_backbone(spec: str, weights: str | None = None, size: int | None = None) -> Backbone:
    """Open the backbone that `spec` names, on the CPU and frozen in eval mode.

    `spec` is `LIBRARY:NAME`, a run folder or a file (`files`). `weights` is a file of weights for a network that is
    named, or "none" for those of its initialisation. `size` is the side of its images in pixels, None for its own.
    Raises UserError for what is not there, packages that are missing, and a size where there is no choice of it.
    """
    library, colon, name = spec.partition(":")
    if colon and library in LIBRARIES:
        if not name:
            raise UserError(f"--backbone {spec}: the name of a model is missing; it may be {FORMS}")
        backbone = LIBRARIES[library](name, weights, size)
    elif Path(spec).exists() or spec.endswith(".py"):
        backbone = files.load(Path(spec), weights, size)
    else:
        raise UserError(f"--backbone {spec}: there is no such file; it may be {FORMS}")
    backbone.network.eval().requires_grad_(False)
    return backbone

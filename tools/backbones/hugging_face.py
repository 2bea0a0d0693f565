"""Models of Hugging Face's transformers, from the hub or a folder, with their own image processor.

Of a model of images and texts (CLIP, SigLIP, ...) the features are its image embeddings. Of a classifier they are what
its last linear layer is given, which for self-supervised models (DINOv2, ...) is what their authors' linear probe sees.
`AutoModel` would give `pooler_output` there, which for many classifiers comes from a layer that was never trained.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from tools.backbones.backbone import Backbone, TextEncoder, cannot_load, described, few, one_size, require_package
from tools.backbones.modules import Embedder, OutputOf
from utils.errors import UserError

ADVICE = "download the model elsewhere and name its folder: hf:FOLDER"


def load(name: str, weights: str | None, size: int | None = None) -> Backbone:
    """Load the model of that name on the hub, or in that folder. No code that comes with it is run.

    Raises UserError where transformers is not installed, the model or its image processor cannot be had, it has
    weights missing, or it makes no single vector of an image.
    """
    transformers = require_package("transformers", "transformers", "hf:NAME")
    if weights is not None:
        raise UserError(
            f"--weights is not for hf:{name}, which has its own; name a folder, as save_pretrained writes it"
        )
    spec = f"hf:{name}"
    one_size(spec, size)
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        processor = transformers.AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # of the hub, a folder, a configuration
        raise cannot_load(spec, error, ADVICE) from error
    words = f"of the folder {name}" if Path(name).is_dir() else f"of the hub's {name}"
    shape = described(processor)
    plain = model_class(transformers.MODEL_MAPPING, config)
    prepare = partial(process, processor)
    if hasattr(plain, "get_image_features"):
        model = load_model(plain, name, ())
        return Backbone(Embedder(model, encode_images), prepare, words, shape, text_encoder(transformers, model, name))
    classifier = model_class(transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, config)
    if classifier is None:
        raise UserError(f"{spec} ({config.model_type}) has no penultimate features: it is no model of single images")
    network = headless(classifier, name, spec)
    return Backbone(OutputOf(network, logits_of), prepare, words, shape)


def model_class(mapping: Any, config: Any) -> Any:
    """Return the class of a mapping of transformers for a configuration, the first where there are several; or None."""
    found = mapping.get(type(config), None)
    return found[0] if isinstance(found, list | tuple) else found


def load_model(kind: Any, name: str, optional: tuple[str, ...]) -> nn.Module:
    """Load a model of a class in fp32; raises UserError where weights are missing but those below `optional`."""
    try:
        model, info = kind.from_pretrained(name, output_loading_info=True, dtype=torch.float32)
    except Exception as error:  # of the hub, a folder, a file
        raise cannot_load(f"hf:{name}", error, ADVICE) from error
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith(optional or ("\0",))]
    if missing:
        raise UserError(f"hf:{name} lacks {len(missing)} of its weights, which would be random: {few(missing)}")
    return model


def headless(kind: Any, name: str, spec: str) -> nn.Module:
    """Load a classifier with nothing in the place of its last linear layer."""
    with torch.device("meta"):
        import transformers

        empty = kind(transformers.AutoConfig.from_pretrained(name))
    layers = [
        (place, module)
        for place, module in empty.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == empty.config.num_labels
    ]
    if not layers:
        raise UserError(f"{spec}: its output comes from no linear layer, so it has no penultimate features")
    place = layers[-1][0]
    model = load_model(kind, name, (f"{place}.",))
    parent, _, child = place.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())
    return model


def logits_of(output: Any) -> Tensor:
    """Return what stands in the place of the logits."""
    return output.logits


def process(processor: Any, image: Image.Image) -> Tensor:
    """Return an image as its model wants it: (3, H, W)."""
    return processor(images=image, return_tensors="pt")["pixel_values"][0]


def encode_images(model: Any, images: Tensor) -> Tensor:
    """Return the embeddings (B, d) that a model makes of images (B, 3, H, W)."""
    return vector_of(model.get_image_features(pixel_values=images))


def vector_of(output: Any) -> Tensor:
    """Return the embeddings that a model answered, bare or, in newer versions, in a record."""
    return output if isinstance(output, Tensor) else output.pooler_output


def text_encoder(transformers: Any, model: Any, name: str) -> TextEncoder | None:
    """Return the text side of a model, None where it has none or no tokenizer came with it."""
    if not hasattr(model, "get_text_features") or not hasattr(model, "logit_scale"):
        return None
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    except Exception:  # a model that is used for its images alone
        return None
    return TextEncoder(partial(embed_prompts, model, tokenizer), float(model.logit_scale.detach().exp()))


@torch.no_grad()
def embed_prompts(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """Return the embeddings (P, d) of texts, of unit length."""
    length = model.config.text_config.max_position_embeddings
    words = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    words = {key: value.to(model.device) for key, value in words.items() if key in ("input_ids", "attention_mask")}
    return F.normalize(vector_of(model.get_text_features(**words)).float(), dim=-1)

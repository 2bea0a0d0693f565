"""Models of timm (PyTorch image models), with the transform of their own configuration."""

from tools.backbones.backbone import RANDOM, Backbone, cannot_load, described, load_state, require_package, unknown_name
from utils.errors import UserError

ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:")  # names that timm does not have in its own list


def load(name: str, weights: str | None, size: int | None = None) -> Backbone:
    """Load timm's model of that name, as timm takes it (`vit_base_patch16_224.augreg_in21k`, `hf-hub:...`).

    `weights` is a file of weights for it by timm's names, or "none". Raises UserError where timm is not installed, does
    not know the model, or the weights cannot be had or do not fit. `size` takes the place of the side of its images.
    """
    timm = require_package("timm", "timm", "timm:NAME")
    data = require_package("timm.data", "timm", "timm:NAME")
    if not name.startswith(ELSEWHERE) and not timm.is_model(name):
        raise unknown_name("timm", name.partition(".")[0], timm.list_models())
    spec = f"timm:{name}"
    try:
        model = timm.create_model(name, pretrained=weights is None, num_classes=0)
    except UserError:
        raise
    except Exception as error:  # of the hub, a disk, a tag
        advice = "download them elsewhere and name the file with --weights, or the folder as timm:local-dir:FOLDER"
        raise cannot_load(spec, error, advice) from error
    words = f"timm's, of {model.pretrained_cfg.get('hf_hub_id') or model.pretrained_cfg.get('url') or name}"
    if weights is not None:
        words = "random" if weights == RANDOM else weights
    if weights not in (None, RANDOM):
        classifiers = model.pretrained_cfg.get("classifier") or "fc"
        names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
        load_state(model, str(weights), tuple(f"{one}." for one in (*names, "fc")))
    sized = {} if size is None else {"img_size": size}
    config = data.resolve_data_config(sized, model=model)
    transform = data.create_transform(**config, is_training=False)
    return Backbone(model, transform, words, described(transform))

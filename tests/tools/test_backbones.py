"""Backbones of other libraries: features, preprocessing and zero-shot classifiers are those of the library itself."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

from models import build_model
from stages.prediction import image_constants, read_trained
from tests.helpers import folder_of, stage1
from tools.backbones import open_backbone
from tools.backbones.backbone import Backbone, TextEncoder
from tools.backbones.prompts import TEMPLATE, read_prompts, text_classifier
from utils.errors import UserError

NAMES = ["rose", "sea_lion"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8))


def features_of(backbone: Backbone, image: Image.Image) -> Tensor:
    with torch.inference_mode():
        return backbone.network(backbone.prepare(image)[None])


# torchvision


def test_torchvision_gives_what_the_last_layer_is_given(tmp_path: Path, image: Image.Image) -> None:
    model = torchvision.models.mobilenet_v3_small(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    transforms = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.transforms()
    seen: list[Tensor] = []
    model.classifier[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(transforms(image)[None])
    backbone = open_backbone("torchvision:mobilenet_v3_small", str(tmp_path / "weights.pth"))
    torch.testing.assert_close(features_of(backbone, image), seen[0])
    assert backbone.weights.endswith("weights.pth") and "crop_size=[224]" in backbone.preprocessing
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_torchvision_takes_the_weights_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def get_model(name: str, weights: Any = None, **more: Any) -> nn.Module:
        asked.append(weights)
        return torchvision.models.mobilenet_v3_small(weights=None)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    second = open_backbone("torchvision:resnet50@IMAGENET1K_V2")
    first = open_backbone("torchvision:resnet50@IMAGENET1K_V1")
    assert [str(weights) for weights in asked] == [f"ResNet50_Weights.IMAGENET1K_V{n}" for n in (2, 1)]
    assert "resize_size=[232]" in second.preprocessing and "resize_size=[256]" in first.preprocessing


# timm


def test_timm_gives_its_pooled_features_under_its_own_transform(tmp_path: Path, image: Image.Image) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model), is_training=False)
    backbone = open_backbone("timm:test_vit", str(tmp_path / "weights.pth"))
    with torch.inference_mode():
        pixels = transform(image)[None]
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(features_of(backbone, image), expected)


def test_random_weights_are_those_of_the_seed(image: Image.Image) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(features_of(open_backbone("timm:test_resnet", "none"), image))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


# transformers


@pytest.fixture(scope="module")
def transformers() -> ModuleType:
    return pytest.importorskip("transformers", reason="transformers is not installed")


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
PIXELS = {"image_size": 32, "patch_size": 16}


def test_transformers_gives_what_the_classifier_is_given(
    transformers: ModuleType, tmp_path: Path, image: Image.Image
) -> None:
    """And not `pooler_output`, whose layer no classifier has trained."""
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **PIXELS, num_labels=5)).eval()
    model.save_pretrained(tmp_path)
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(tmp_path)
    with torch.inference_mode():
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        expected = model.vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(features_of(open_backbone(f"hf:{tmp_path}"), image), expected)


def test_weights_that_would_be_random_are_refused(transformers: ModuleType, tmp_path: Path) -> None:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, **PIXELS, num_labels=5))
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("vit.layernorm.")}
    model.save_pretrained(tmp_path, state_dict=state)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks 2 of its weights, which would be random: vit\.layernorm\.bias"):
        open_backbone(f"hf:{tmp_path}")


def save_clip(transformers: ModuleType, folder: Path) -> Any:
    """Write a CLIP of a few numbers with a tokenizer of a few words; return the model."""
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "<end>", "a", "photo", "of", "rose", "sea"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    end = tokenizers.processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 2)])
    tokenizer.post_processor = end
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    ids = {"vocab_size": 8, "max_position_embeddings": 12, "eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 0}
    config = transformers.CLIPConfig(text_config={**SIZES, **ids}, vision_config={**SIZES, **PIXELS}, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)
    return model


def test_clip_of_transformers_gives_its_own_probabilities(
    transformers: ModuleType, tmp_path: Path, image: Image.Image
) -> None:
    model = save_clip(transformers, tmp_path)
    backbone = open_backbone(f"hf:{tmp_path}")
    assert backbone.text is not None
    weight = text_classifier(backbone.text, read_prompts(None, NAMES))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    prompts = ["a photo of a rose.", "a photo of a sea lion."]
    with torch.inference_mode():
        words = tokenizer(prompts, padding=True, return_tensors="pt")
        pixels = backbone.prepare(image)[None]
        inputs = {key: words[key] for key in ("input_ids", "attention_mask")}
        expected = model(pixel_values=pixels, **inputs).logits_per_image
    torch.testing.assert_close(features_of(backbone, image) @ weight.T, expected)


# OpenCLIP

CLIP = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def open_clip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """OpenCLIP, to which a model of a few numbers is known."""
    module = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    file = tmp_path_factory.mktemp("clip") / "tiny-clip.json"
    file.write_text(json.dumps(CLIP))
    module.add_model_config(file)
    yield module
    module.factory._MODEL_CONFIGS.pop("tiny-clip")


def test_open_clip_gives_its_own_probabilities(open_clip: ModuleType, tmp_path: Path, image: Image.Image) -> None:
    """Also of several templates, whose embeddings are averaged as OpenCLIP's own zero-shot classifier has it."""
    model, _, transform = open_clip.create_model_and_transforms("tiny-clip")
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    templates = [lambda name: f"a photo of a {name}.", lambda name: f"a bad photo of the {name}."]
    (tmp_path / "templates.txt").write_text("a photo of a {}.\n\n a bad photo of the {}.\n")
    names = ["rose", "sea lion"]
    tokenizer = open_clip.get_tokenizer("tiny-clip")
    with torch.inference_mode():
        text = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates, num_classes_per_batch=None)
        expected = model.logit_scale.exp() * model.encode_image(transform(image)[None], normalize=True) @ text
    backbone = open_backbone("open_clip:tiny-clip", str(tmp_path / "weights.pt"))
    assert backbone.text is not None
    weight = text_classifier(backbone.text, read_prompts(tmp_path / "templates.txt", NAMES))
    assert weight.shape == (2, 8) and weight.dtype == torch.float32
    torch.testing.assert_close(features_of(backbone, image) @ weight.T, expected)


@pytest.mark.usefixtures("open_clip")
@pytest.mark.parametrize(
    ("spec", "weights", "words"),
    [
        ("open_clip:ViT-B-32", None, "several sets of weights; name one, as open_clip:ViT-B-32@TAG: openai"),
        ("open_clip:ViT-B-32@openia", None, "open_clip:ViT-B-32 has no weights 'openia'; close to it: openai"),
        ("open_clip:ViT-B-33", None, "open_clip has no model 'ViT-B-33'; close to it: ViT-B-32"),
        ("open_clip:ViT-B-32", "missing.pt", "--weights missing.pt: there is no such file"),
    ],
)
def test_wrong_words_for_open_clip_are_refused(spec: str, weights: str | None, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        open_backbone(spec, weights)


# Files

PYTHON = """
import torch
from torch import nn

def load():
    return nn.Flatten(), lambda image: torch.full((1, 1, 3), float(image.width))
"""


def test_a_python_file_makes_a_backbone(tmp_path: Path, image: Image.Image) -> None:
    (tmp_path / "mine.py").write_text(PYTHON)
    assert features_of(open_backbone(str(tmp_path / "mine.py")), image).tolist() == [[52, 52, 52]]


def test_a_run_is_a_backbone_with_its_own_preprocessing(tmp_path: Path) -> None:
    """On an image of the run's own size the features are those that its stage 2 sees."""
    stage1(tmp_path, "--width", 4, "--epochs", 1)
    folder = folder_of(tmp_path, "stage1_epochs1_width4")
    backbone = open_backbone(str(folder))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    checkpoint = read_trained(folder)
    model = build_model("resnet8", 10, width=4)
    model.load_state_dict(checkpoint.state)
    _, _, augmentation = image_constants(checkpoint)
    mean, std = (torch.tensor(values)[:, None, None] for values in (augmentation.mean, augmentation.std))
    normal = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.inference_mode():
        expected = model.eval().features(normal[None])
    torch.testing.assert_close(features_of(backbone, Image.fromarray(pixels)), expected)


# The size of the images


@pytest.mark.parametrize("spec", ["torchvision:mobilenet_v3_small", "timm:test_resnet"])
def test_images_of_a_size_are_cut_as_much_as_before(spec: str) -> None:
    """An image of one colour a column: what is left of its width is the share of the model's own crop."""
    if spec.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8)[None, :, None], (512, 512, 3))
    usual, small = (open_backbone(spec, "none", size).prepare(Image.fromarray(ramp.copy())) for size in (None, 96))
    assert small.shape == (3, 96, 96) and usual.shape[1] > 96
    spans = [float(pixels[0, 0, -1] - pixels[0, 0, 0]) for pixels in (usual, small)]
    assert spans[1] == pytest.approx(spans[0], rel=0.02)


def test_a_run_and_a_python_file_take_a_size(tmp_path: Path, image: Image.Image) -> None:
    stage1(tmp_path, "--width", 4, "--epochs", 1)
    folder = str(folder_of(tmp_path, "stage1_epochs1_width4"))
    assert open_backbone(folder, None, 16).prepare(image).shape == (3, 16, 16)
    sized = PYTHON.replace("load()", "load(image_size=3)").replace("float(image.width)", "float(image_size)")
    (tmp_path / "sized.py").write_text(sized)
    for size, number in ((None, 3), (7, 7)):
        assert features_of(open_backbone(str(tmp_path / "sized.py"), None, size), image).tolist() == [[number] * 3]


@pytest.mark.parametrize("spec", ["hf:google/vit", "open_clip:ViT-B-32@openai", "mine.py"])
def test_a_size_where_there_is_no_choice_of_it_is_refused(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PYTHON)
    if not spec.endswith("py"):
        package = {"hf": "transformers", "open_clip": "open_clip"}[spec.partition(":")[0]]
        pytest.importorskip(package, reason=f"{package} is not installed")
    with pytest.raises(UserError, match="--image_size 64 has no use with"):
        open_backbone(spec, None, 64)


# What is refused


@pytest.mark.parametrize(
    ("package", "spec", "install"),
    [
        ("timm", "timm:resnet50", "timm"),
        ("open_clip", "open_clip:ViT-B-32@openai", "open_clip_torch"),
        ("transformers", "hf:google/vit", "transformers"),
    ],
)
def test_a_missing_package_is_named(package: str, spec: str, install: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"--backbone \w+:NAME .*{package}.*: pip install {install}$"):
        open_backbone(spec)


@pytest.mark.parametrize(
    ("spec", "weights", "words"),
    [
        ("nothing", None, "there is no such file; it may be torchvision:NAME"),
        ("timm:", None, "the name of a model is missing"),
        ("torchvision:resnet51", None, "torchvision has no model 'resnet51'; close to it: resnet50"),
        ("torchvision:resnet50@V3", None, "torchvision:resnet50 has no weights 'V3'"),
        ("torchvision:squeezenet1_0", "none", "comes from no linear layer"),
        ("torchvision:mobilenet_v3_small", "missing.pth", "missing.pth"),
        ("missing.py", None, "there is no such file"),
        ("empty.py", None, "it has no function load"),
        ("strange.py", None, "must return .network, transform."),
        ("mine.py", "none", "a file brings its own weights"),
        ("hf:folder", "none", "--weights is not for hf:folder"),
        ("state.pth", None, "--backbone torchvision:NAME --weights FILE"),
    ],
)
def test_what_is_no_backbone_is_refused(
    spec: str, weights: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "strange.py").write_text("def load():\n    return 1\n")
    (tmp_path / "mine.py").write_text(PYTHON)
    if spec == "state.pth":
        torch.save(torchvision.models.mobilenet_v3_small(weights=None).state_dict(), tmp_path / "state.pth")
    if spec.startswith("hf:"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(UserError, match=words):
        open_backbone(spec, weights)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.save(timm.create_model("test_vit2").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other.pth does not fit: it (lacks|has)"):
        open_backbone("timm:test_vit", str(tmp_path / "other.pth"))


# Prompts


def test_prompts_are_made_of_templates_or_given(tmp_path: Path) -> None:
    assert read_prompts(None, NAMES) == [[TEMPLATE.replace("{}", name)] for name in ("rose", "sea lion")]
    (tmp_path / "t.json").write_text(json.dumps(["{}!", "the {}"]))
    assert read_prompts(tmp_path / "t.json", NAMES) == [["rose!", "the rose"], ["sea lion!", "the sea lion"]]
    (tmp_path / "own.json").write_text(json.dumps({"sea_lion": ["x", "y"], "rose": "z", "more": "w"}))
    assert read_prompts(tmp_path / "own.json", NAMES) == [["z"], ["x", "y"]]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '{"rose": "z"}', "no prompt for the class 'sea_lion'"),
        ("a.json", '{"rose": "z", "sea_lion": []}', "no prompt for the class 'sea_lion'"),
        ("a.json", '{"rose": "z", "sea_lion": [" "]}', "no prompt for the class 'sea_lion'"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "3", "a list of templates"),
        ("a.txt", "a photo of a rose\n", "does not have one {} where"),
        ("a.txt", "{} and {}\n", "does not have one {} where"),
        ("a.txt", "\n", "it is empty"),
        ("b.txt", None, "cannot read"),
    ],
)
def test_wrong_templates_are_refused(name: str, text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=re.escape(words)):
        read_prompts(tmp_path / name, NAMES)


@pytest.mark.parametrize(
    ("names", "words"), [(["0", "1"], "numbers and no names"), (["rose", "_"], "class 1 has an empty name")]
)
def test_classes_without_names_are_refused(names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_prompts(None, names)


def test_the_rows_of_a_text_classifier_have_the_length_of_the_factor() -> None:
    """Each is the direction of the mean of its prompts, whatever their number."""
    table = {"a": [1.0, 0.0], "b": [0.0, 1.0], "c": [-1.0, 0.0]}
    text = TextEncoder(lambda prompts: torch.tensor([table[prompt] for prompt in prompts]), 7.0)
    weight = text_classifier(text, [["a", "b"], ["c"]])
    torch.testing.assert_close(weight, torch.tensor([[7 / 2**0.5, 7 / 2**0.5], [-7.0, 0.0]]))
    torch.testing.assert_close(weight, 7 * F.normalize(weight, dim=1))

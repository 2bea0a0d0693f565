"""Every form in which a network's weights are saved, through the one reader of --weights and --pretrained_pth."""

import argparse
import dataclasses
import pathlib
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import build_model
from models.heads import Normed
from models.network import Network
from runs.checkpoint import load_checkpoint, load_weights
from runs.pretrained_weights import place
from settings.fields import Settings
from stages.session import load_weights_file
from utils.errors import UserError

CLASSES, WIDTH = 5, 4
FEATURES = 4 * WIDTH
State = dict[str, Any]
ARGUMENTS = argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("runs"))


def network(seed: int = 0, name: str = "resnet8") -> Network:
    torch.manual_seed(seed)
    model = build_model(name, CLASSES, width=WIDTH)
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            buffer.copy_(torch.rand(buffer.shape) + 1 if buffer.is_floating_point() else torch.tensor(len(key)))
    return model


SOURCE = network().state_dict()
OTHER = network(1).state_dict()
BACKBONE = {key: value for key, value in SOURCE.items() if not key.startswith("fc.")}
HEAD = {"weight": SOURCE["fc.weight"], "bias": SOURCE["fc.bias"]}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def averages(state: State) -> State:
    return prefixed("module.", state) | {"n_averaged": torch.tensor(7)}


# What scripts hand to torch.save, with the weights of SOURCE in it: backbone and classifier.
FORMS: dict[str, Callable[[], object]] = {
    "bare": lambda: SOURCE,
    "torchvision's references": lambda: {"model": SOURCE, "optimizer": {}, "epoch": 3, "args": ARGUMENTS},
    "references with averages": lambda: {"model": SOURCE, "model_ema": averages(OTHER), "args": ARGUMENTS},
    "timm": lambda: {"epoch": 1, "arch": "x", "state_dict": SOURCE, "state_dict_ema": OTHER, "args": ARGUMENTS},
    "lightning": lambda: {
        "state_dict": prefixed("model.", SOURCE),
        "hyper_parameters": {"data": pathlib.PurePosixPath("data")},
        "callbacks": {"best": torch.tensor(1.0), "path": pathlib.PureWindowsPath("c:/a")},
    },
    "MiSLAS": lambda: {
        "state_dict_model": prefixed("module.", BACKBONE),
        "state_dict_classifier": prefixed("module.fc.", HEAD),
        "best_acc1": torch.tensor(47.0),
        "its_ece": np.float64(4.8),
    },
    "a classifier without a name": lambda: {"feat_model": BACKBONE, "classifier": prefixed("module.", HEAD)},
    "numpy's numbers": lambda: {"net": SOURCE, "acc": np.float64(91.5), "epoch": np.int64(3), "all": np.arange(3)},
    "arrays": lambda: {"state_dict": {key: value.numpy() for key, value in SOURCE.items()}},
    "before PyTorch 0.4.1": lambda: {key: value for key, value in SOURCE.items() if "num_batches" not in key},
    "model_state": lambda: {"model_state": SOURCE, "cfg": "text"},
    "module": lambda: {"module": SOURCE, "ds_config": {}},
    "weights": lambda: {"weights": SOURCE},
    "nested": lambda: {"state": {"network": SOURCE, "step": 3}},
    "backbone and head": lambda: {"backbone": BACKBONE, "head": {"fc.weight": HEAD["weight"], "fc.bias": HEAD["bias"]}},
    "mmpretrain": lambda: {
        "meta": {"cfg": "text"},
        "state_dict": prefixed("backbone.", BACKBONE) | prefixed("head.fc.", HEAD),
    },
    "a classifier beside, linear": lambda: prefixed("encoder.", BACKBONE) | prefixed("linear.", HEAD),
    "wrapped twice": lambda: {"state_dict": prefixed("module._orig_mod.", SOURCE)},
    "an average under a prefix": lambda: prefixed("net.", SOURCE) | prefixed("ema_net.ema.", OTHER),
    "only averages": lambda: {"ema": SOURCE, "step": 3},
    "parameters": lambda: {name: nn.Parameter(value, False) for name, value in SOURCE.items()},
}
BEFORE_1_6 = ("MiSLAS", "before PyTorch 0.4.1", "numpy's numbers", "timm")  # saved in PyTorch's old format
# Files that hold a backbone and no classifier of classes.
BACKBONES: dict[str, Callable[[], object]] = {
    "BYOL": lambda: {
        "online_network_state_dict": prefixed("encoder.", BACKBONE),
        "target_network_state_dict": prefixed("encoder.", OTHER),
    },
    "DINO": lambda: {
        "student": prefixed("module.backbone.", OTHER),
        "teacher": prefixed("backbone.", BACKBONE),
        "args": ARGUMENTS,
    },
    "MoCo v3": lambda: {"base_encoder": BACKBONE, "momentum_encoder": OTHER},
    "a backbone alone": lambda: {"backbone": BACKBONE},
}


def by_weights(path: Path, model: Network, **more: Any) -> Network:
    """What `--weights` does."""
    load_weights_file(model, dataclasses.replace(Settings(), weights=str(path), **more))
    return model


def by_pretrained(path: Path, model: Network, **more: Any) -> Network:
    """What `--pretrained_pth` of main_stage2.py and evaluate.py does."""
    load_weights(model, load_checkpoint(path, more.get("trust_pickle", False), more.get("ema", False)))
    return model


FLAGS = {"--weights": by_weights, "--pretrained_pth": by_pretrained}


def assert_loaded(model: Network, state: State = SOURCE, counts: bool = True, head: bool = True) -> None:
    for key, value in model.state_dict().items():
        if (head or not key.startswith("fc.")) and (counts or "num_batches" not in key):
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_through_both_flags(form: str, flag: str, tmp_path: Path) -> None:
    torch.save(FORMS[form](), tmp_path / "file.pth", _use_new_zipfile_serialization=form not in BEFORE_1_6)
    assert_loaded(FLAGS[flag](tmp_path / "file.pth", network(2)), counts=form != "before PyTorch 0.4.1")


@pytest.mark.parametrize("form", BACKBONES)
def test_a_backbone_goes_to_weights_and_the_other_flag_says_so(form: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(BACKBONES[form](), path)
    assert_loaded(by_weights(path, network(2)), head=False)
    with pytest.raises(UserError, match="--weights takes the backbone alone"):
        by_pretrained(path, network(2))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize(
    "form", ["references with averages", "timm", "an average under a prefix", "only averages", "MiSLAS"]
)
def test_averages_are_a_choice(form: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "file.pth"
    torch.save(FORMS[form](), path)
    if form == "MiSLAS":
        with pytest.raises(UserError, match="--ema: no averaged weights"):
            FLAGS[flag](path, network(2), ema=True)
        return
    assert_loaded(FLAGS[flag](path, network(2), ema=True), SOURCE if form == "only averages" else OTHER)
    plain, chosen = (load_checkpoint(path, False, ema) for ema in (False, True))
    assert "EMA weights" in chosen.kind and "EMA weights" in plain.kind
    assert ("--ema takes them" in plain.kind) == (form != "only averages")
    assert plain.sha256 == chosen.sha256 and plain.identity == plain.sha256 != chosen.identity


def test_the_choice_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(FORMS["references with averages"](), tmp_path / "file.pth")
    by_weights(tmp_path / "file.pth", network())
    assert "under 'model'; EMA weights are there too, under 'model_ema': --ema takes them" in capsys.readouterr().out
    torch.save(BACKBONES["BYOL"](), tmp_path / "file.pth")
    by_weights(tmp_path / "file.pth", network())
    said = capsys.readouterr().out
    assert "under 'online_network_state_dict', not 'target_network_state_dict'" in said
    torch.save(FORMS["before PyTorch 0.4.1"](), tmp_path / "file.pth")
    by_weights(tmp_path / "file.pth", network())
    counts = sum("num_batches" in key for key in SOURCE)
    assert f"all of {len(SOURCE)} tensors but {counts} counts of batches" in capsys.readouterr().out


def test_equal_candidates_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"generator": SOURCE, "critic": SOURCE}, tmp_path / "file.pth")
    for load in FLAGS.values():
        with pytest.raises(UserError, match="'generator', 'critic'; keep one of them"):
            load(tmp_path / "file.pth", network())


# Classifiers


class Cosine(nn.Module):
    """What LDAM-DRW and GCL compute: normalised features times normalised columns of a weight (d, K)."""

    def forward(self, features: Tensor, weight: Tensor) -> Tensor:
        return nn.functional.normalize(features, dim=1) @ nn.functional.normalize(weight, dim=0)


@pytest.mark.parametrize("classes", [CLASSES, FEATURES])
def test_a_transposed_cosine_classifier(classes: int, tmp_path: Path) -> None:
    weight, features = torch.randn(FEATURES, classes), torch.randn(7, FEATURES)
    torch.save({"state_dict": prefixed("module.", BACKBONE | {"linear.weight": weight})}, tmp_path / "file.pth")
    checkpoint = load_checkpoint(tmp_path / "file.pth")
    for linear in (False, True):
        model = build_model("resnet8", classes, width=WIDTH)
        report = load_weights(model, checkpoint, linear=linear)
        assert_loaded(model, head=False)
        assert isinstance(model.fc, Normed) is not linear
        logits, expected = model.fc(features), Cosine()(features, weight)
        if linear:
            assert torch.equal(logits.argmax(1), expected.argmax(1))
            assert torch.allclose(model.fc.weight.norm(dim=1), torch.ones(classes)) and not model.fc.bias.any()
        else:
            torch.testing.assert_close(logits, 30 * expected)
        assert report is not None and "cosine classifier, transposed" in report.summary()


def test_a_linear_classifier_of_as_many_classes_as_features_is_linear(tmp_path: Path) -> None:
    model = build_model("resnet8", FEATURES, width=WIDTH)
    torch.save(model.state_dict(), tmp_path / "file.pth")
    other = build_model("resnet8", FEATURES, width=WIDTH)
    load_weights(other, load_checkpoint(tmp_path / "file.pth"))
    assert torch.equal(other.fc.weight, model.fc.weight) and not isinstance(other.fc, Normed)


def test_what_could_change_the_answers_is_not_left_out(tmp_path: Path) -> None:
    torch.save(SOURCE | {"fc2.weight": torch.ones(3, 3)}, tmp_path / "file.pth")
    assert_loaded(by_weights(tmp_path / "file.pth", network(2)))
    with pytest.raises(UserError, match=r"unexpected keys \(1\): fc2.weight; --weights takes the backbone alone"):
        by_pretrained(tmp_path / "file.pth", network(2))


# Other networks


@pytest.mark.parametrize(
    ("asked", "name", "stem", "width", "flags"),
    [
        ("resnet8", "resnet20", "cifar", WIDTH, "--network resnet20 --stem cifar --width 4"),
        ("resnet20", "resnet20b", "cifar", 16, "--network resnet20b --stem cifar"),
        ("resnet20b", "resnet20", "cifar", 16, "--network resnet20 --stem cifar"),
        ("resnet18", "resnet34", "cifar", 64, "--network resnet34 --stem cifar"),
        ("resnet18", "resnet18", "imagenet", None, "--network resnet18 --stem imagenet"),
        ("resnet18", "resnext50_32x4d", "imagenet", None, "--network resnext50_32x4d --stem imagenet"),
        ("resnet18", "wide_resnet50_2", "imagenet", None, "--network wide_resnet50_2 --stem imagenet"),
    ],
)
def test_another_network_is_the_first_that_is_named(
    asked: str, name: str, stem: str, width: int | None, flags: str
) -> None:
    with torch.device("meta"):
        file = build_model(name, CLASSES, stem, width).state_dict()
        model = build_model(asked, CLASSES, "cifar", width if stem == "cifar" else None)

    for prefix in ("", "encoder_q."):
        with pytest.raises(UserError) as caught:
            place(model, prefixed(prefix, file))
        assert str(caught.value).startswith(f"wrong --network: the file is of {flags}; ")


def test_a_damaged_file_of_the_right_network_is_not_called_another(tmp_path: Path) -> None:
    torch.save({key: value for key, value in SOURCE.items() if key != "bn1.bias"}, tmp_path / "file.pth")
    for load in FLAGS.values():
        with pytest.raises(UserError, match=r"missing keys \(1\): bn1.bias") as caught:
            load(tmp_path / "file.pth", network())
        assert "wrong --network" not in str(caught.value)


def test_projections_of_option_b() -> None:
    """He et al., section 4.2: a 1x1 convolution where the shape changes; in torchvision's names `downsample`."""
    model, plain = build_model("resnet20b", CLASSES), build_model("resnet20", CLASSES)
    more = model.state_dict().keys() - plain.state_dict().keys()
    assert more and all(".downsample." in key for key in more)
    count = sum(value.numel() for value in model.parameters()) - sum(value.numel() for value in plain.parameters())
    assert count == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, CLASSES)


# Other files


def scripted(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3))), path)


def other_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def exported(path: Path) -> None:
    """What torch.export.save writes, by the names in it; exporting takes seconds."""

    with zipfile.ZipFile(path, "w") as archive:
        for name in ("archive_format", "models/model.json", "data/weights/weight_0"):
            archive.writestr(f"file/{name}", "pt2")


FORMATS: dict[str, tuple[Callable[[Path], object], str]] = {
    "TorchScript": (scripted, "a TorchScript archive"),
    "torch.export": (exported, "a program of torch.export"),
    "ONNX": (other_bytes(b"\x08\x08\x12\x07pytorch" + bytes(100)), "an ONNX model"),
    "SavedModel": (other_bytes(b"\x08\x01\x12\x80\x01" + bytes(100)), "a TensorFlow SavedModel"),
    "TensorFlow": (other_bytes(bytes(100) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"), "a TensorFlow checkpoint"),
    "TFLite": (other_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(100)), "a TensorFlow Lite model"),
    "Keras": (other_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "an HDF5 file"),
    "GGUF": (other_bytes(b"GGUF" + bytes(100)), "a GGUF file"),
    "a web page": (other_bytes(b"\n<!DOCTYPE html><html>404</html>"), "a web page"),
    "git-lfs": (other_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"), "git lfs pull"),
    "gzip": (other_bytes(b"\x1f\x8b\x08" + bytes(100)), "packed with gzip"),
    "a pickle": (other_bytes(b"\x80\x04}\x94."), "a pickle that torch.save did not write"),
    "npz": (lambda path: np.savez(open(path, "wb"), a=np.ones(3)), "rename it to .npz"),  # noqa: SIM115
}


@pytest.mark.parametrize("kind", FORMATS)
def test_other_formats_are_named_for_what_they_are(kind: str, tmp_path: Path) -> None:
    (write, words), name = FORMATS[kind], "file.pth"
    write(tmp_path / name)
    for load in FLAGS.values():
        with pytest.raises(UserError) as caught:
            load(tmp_path / name, network())
        assert words in str(caught.value) and name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("flag", FLAGS)
def test_safetensors_by_any_name(flag: str, tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in SOURCE.items()}, tmp_path / "file.bin")
    assert_loaded(FLAGS[flag](tmp_path / "file.bin", network(2)))
    torch.save(SOURCE, tmp_path / "file.safetensors")
    with pytest.raises(UserError, match=r"rename it to \.pth"):
        FLAGS[flag](tmp_path / "file.safetensors", network(2))


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("kind", ["module", "module in a dictionary", "TorchScript", "protocol 4"])
def test_trust_works_where_it_is_advised(kind: str, flag: str, tmp_path: Path) -> None:
    model, path = network(), tmp_path / "file.pth"
    if kind == "TorchScript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(1, 3, 8, 8)), path)
    else:
        content = {"module": model, "module in a dictionary": {"model": model, "epoch": 3}, "protocol 4": SOURCE}[kind]
        torch.save(content, path, pickle_protocol=4 if kind == "protocol 4" else 2)
    with pytest.raises(UserError, match="if you trust its source, add --trust_pickle"):
        FLAGS[flag](path, network(2))
    assert_loaded(FLAGS[flag](path, network(2), trust_pickle=True))
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)  # where no flag can say it
    assert "trust_pickle" not in str(caught.value)

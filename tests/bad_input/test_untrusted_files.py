"""Files of strangers: pickles run nothing, paths stay inside, what unpacks to more than the memory is refused, and
released weights are what their hashes say. Every payload here is harmless: it makes a folder that must never
be there.
"""

import ast
import io
import json
import os
import pickle
import re
import resource
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.robustness.fuzz_inputs.features import feature_arrays
from benchmarks.robustness.fuzz_inputs.material import STAGE1_RUN as STAGE1
from benchmarks.robustness.fuzz_inputs.material import STAGE2_RUN as STAGE2
from datasets.cifar import read_pickle
from datasets.on_disk.coco import read_json_list
from datasets.on_disk.text_lists import read_list
from engine.cache.store import FeatureStore
from engine.frozen_features import FrozenFeatures
from runs.checkpoint import load_checkpoint, with_backbone
from runs.feature_files import read_features
from tables.rows import read_kept
from tests.forks import Child
from tests.helpers import contents, refused, run, succeed
from utils.device import Execution
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


# Pickles


class Crafted:
    """Unpickling it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.marker),)


class Stateful:
    """Unpickling it makes a folder by way of a state that is set."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"a": Crafted(self.marker)}


def text_of(marker: Path) -> bytes:
    return b"V" + str(marker).encode("raw_unicode_escape") + b"\n"


# The ways of a pickle to call a function, by what refuses them: none of these names is one of numpy's or PyTorch's
# arrays, and the last few ask names that are allowed for more than they should give.
PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "reduce, protocol 0": lambda marker: pickle.dumps(Crafted(marker), 0),
    "reduce, protocol 2": lambda marker: pickle.dumps(Crafted(marker), 2),
    "reduce, protocol 5": lambda marker: pickle.dumps({"a": [Crafted(marker)]}, 5),
    "state": lambda marker: pickle.dumps(Stateful(marker), 2),
    "global": lambda marker: b"cposix\nmkdir\n(" + text_of(marker) + b"tR.",
    "instance": lambda marker: b"(" + text_of(marker) + b"iposix\nmkdir\n.",
    "object": lambda marker: b"(cposix\nmkdir\n" + text_of(marker) + b"o.",
    "eval": lambda marker: b"cbuiltins\neval\n(V__import__('os').mkdir(" + repr(str(marker)).encode() + b")\ntR.",
    "getattr": lambda marker: (
        b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVmkdir\ntR(" + text_of(marker) + b"tR."
    ),
    "dotted name": lambda marker: b"\x80\x04\x8c\x05torch\x8c\x08os.mkdir\x93(" + text_of(marker) + b"tR.",
}
ALLOWED_MISUSED: dict[str, bytes] = {
    "numpy array of raw pointers": (
        b"\x80\x02cnumpy\nndarray\n((K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00OtRX\x08\x00\x00\x00AAAAAAAAtR."
    ),
    "numpy array of all memory": (
        b"\x80\x02cnumpy\nndarray\n((\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x10tX\x02\x00\x00\x00u1tR."
    ),
    "attribute of what is allowed": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tofile\x93(V/x\ntR.",
}


def pickled(path: Path, payload: bytes) -> None:
    path.write_bytes(payload)


def in_an_archive(path: Path, payload: bytes) -> None:
    """Write a checkpoint in PyTorch's format whose pickle is the payload."""
    content = io.BytesIO()
    torch.save({"a": torch.zeros(2)}, content)
    with zipfile.ZipFile(content) as source, zipfile.ZipFile(path, "w") as target:
        for entry in source.infolist():
            target.writestr(entry, payload if entry.filename.endswith("data.pkl") else source.read(entry))


def legacy(path: Path, payload: bytes) -> None:
    """Write a checkpoint in PyTorch's old format, four pickles and then the numbers, the last pickle the payload."""
    content = io.BytesIO()
    torch.save(1, content, _use_new_zipfile_serialization=False)
    content.seek(0)
    for _ in range(3):
        pickle.load(content)
    path.write_bytes(content.getvalue()[: content.tell()] + payload)


WAYS = {"bare": pickled, "archive": in_an_archive, "legacy": legacy}


@pytest.mark.parametrize("payload", [name for name in PAYLOADS if name != "dotted name"])
def test_the_payloads_would_run(payload: str, tmp_path: Path) -> None:
    pickle.loads(PAYLOADS[payload](tmp_path / "marker"))
    assert (tmp_path / "marker").is_dir()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_checkpoint_runs_anything(payload: str, way: str, tmp_path: Path) -> None:
    for name in ("file.pth", "file.pt", "file.bin", "file"):
        WAYS[way](tmp_path / name, PAYLOADS[payload](tmp_path / "marker"))
        with pytest.raises(UserError, match=str(tmp_path / name)):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", [*PAYLOADS, *ALLOWED_MISUSED])
def test_no_file_of_cifar_runs_anything(name: str, tmp_path: Path) -> None:
    payload = PAYLOADS[name](tmp_path / "marker") if name in PAYLOADS else ALLOWED_MISUSED[name]
    pickled(tmp_path / "train", payload)
    with pytest.raises(UserError, match="damaged or not a CIFAR file"):
        read_pickle(tmp_path / "train")
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


@pytest.mark.parametrize("name", ["train_features.npy", "class_names.npy"])
def test_no_array_of_a_feature_file_runs_anything(name: str, home: Path) -> None:
    array = io.BytesIO()
    np.save(array, np.array([Crafted(home / "marker")], dtype=object), allow_pickle=True)
    with zipfile.ZipFile("mine.npz") as source, zipfile.ZipFile("crafted.npz", "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, array.getvalue() if entry.filename == name else source.read(entry))
    for file in ("crafted.npz", "single.npz", "bare.npz"):
        if file == "single.npz":
            Path(file).write_bytes(array.getvalue())
        elif file == "bare.npz":
            Path(file).write_bytes(pickle.dumps(Crafted(home / "marker")))
        with pytest.raises(UserError, match=file):
            read_features(Path(file))
    assert not (home / "marker").exists()


@pytest.mark.parametrize("mapped", [False, True])
def test_no_stored_feature_runs_anything(mapped: bool, tmp_path: Path, cpu: Execution) -> None:
    class Images:
        def __len__(self) -> int:
            return 1

    store = FeatureStore(tmp_path / "kept", {"train": {"checkpoint": "x"}}, mapped)
    frozen = FrozenFeatures(None, {"train": Images()}, cpu, 0, "plain", store)  # type: ignore[arg-type,dict-item]
    exists = []

    def place(path: Path) -> bool:
        """Put a crafted file where the features are looked for, whatever their name is."""
        exists.append(path)
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            np.save(file, np.array([Crafted(tmp_path / "marker")], dtype=object), allow_pickle=True)
        return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", place)
        with pytest.raises(UserError, match=r"train_.*\.npy is damaged; delete it"):
            frozen.plain("train")
    assert len(exists) == 1 and not (tmp_path / "marker").exists()


@pytest.mark.parametrize("entry", ["optimizer", "history", "config", "loss", None])
def test_no_state_runs_anything_on_resuming(entry: str | None, home: Path) -> None:
    content = torch.load(STAGE1 / "last.pth", weights_only=True)
    crafted = Crafted(home / "marker")
    torch.save({**content, entry: crafted} if entry else crafted, STAGE1 / "last.pth")
    (STAGE1 / "metrics.json").unlink()
    flags = ("--dataset", "digits", "--width", 4, "--epochs", 1, "--out", "runs", "--resume")
    for trust in ((), ("--trust_pickle",)):
        outcome = run("main_stage1", *flags, *trust)
        assert outcome.status == 2 and "holds more than tensors and plain values" in outcome.err
    assert not (home / "marker").exists()


def test_what_tables_keep_is_never_unpickled(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_bytes(pickle.dumps(Crafted(tmp_path / "marker")))
    with pytest.raises(UserError, match=r"row\.json is not valid JSON"):
        read_kept(tmp_path / "row.json")
    assert not (tmp_path / "marker").exists()


DOORS = {
    "main_stage1": ("--dataset", "digits", "--width", 4, "--weights", "crafted.pth", "--out", "new"),
    "main_stage2": ("--dataset", "digits", "--width", 4, "--pretrained_pth", "crafted.pth"),
    "evaluate": ("--dataset", "digits", "--width", 4, "--pretrained_pth", "crafted.pth"),
    "predict": ("--images", "tree", "--pretrained_pth", "crafted.pth"),
    "reproduce": ("delta", "--dataset", "digits", "--width", 4, "--pretrained_pth", "crafted.pth"),
}


@pytest.mark.parametrize("script", DOORS)
def test_trust_pickle_is_the_door_of_these(script: str, home: Path) -> None:
    torch.save(Crafted(home / "marker"), "crafted.pth")
    assert "if you trust its source, add --trust_pickle" in refused(script, *DOORS[script])
    assert not (home / "marker").exists()
    refused(script, *DOORS[script], "--trust_pickle")
    assert (home / "marker").is_dir()


def test_a_classifier_cannot_open_the_door_for_its_backbone(home: Path) -> None:
    """--trust_pickle is trust in the file that was named, not in the one which that file names."""
    torch.save(Crafted(home / "marker"), "crafted.pth")
    content = torch.load(STAGE2 / "last.pth", weights_only=True)
    content["model"] = {key: value for key, value in content["model"].items() if key.startswith("fc.")}
    content["config"]["backbone"] = {"file": "crafted.pth", "sha256": "0" * 64}
    torch.save(content, "classifier.pth")
    message = refused("evaluate", "--pretrained_pth", "classifier.pth", "--trust_pickle")
    assert "crafted.pth" in message and "trust_pickle" not in message  # which would not help
    assert not (home / "marker").exists()


ROOMS = (
    "benchmarks",
    "datasets",
    "engine",
    "evaluation",
    "losses",
    "methods",
    "models",
    "runs",
    "settings",
    "stages",
    "tables",
    "tools",
    "utils",
)


def test_every_reader_says_what_it_trusts() -> None:
    """No code but CIFAR's reader, which refuses every name but numpy's, unpickles; --trust_pickle is the one door."""
    files = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    found: dict[str, list[str]] = {}
    for path in files:
        text = path.read_text(encoding="utf-8")
        if not re.search(r"\b(?:load|loads|Unpickler|read_pickle)\(", text):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                own = [word for word in node.keywords if word.arg in ("weights_only", "allow_pickle")]
                values = [ast.unparse(word.value) for word in own]
                found.setdefault(ast.unparse(node.func), []).append(",".join(values))
    assert set(found["torch.load"]) <= {"True", "not trust_pickle"}
    assert set(found["np.load"]) == {"False"}
    for name in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pd.read_pickle", "torch.jit.load"):
        assert name not in found


# Paths

OUTSIDE = [
    "../a.png",
    "a/../../b.png",
    "/etc/passwd",
    "//host/a.png",
    "..\\a.png",
    "a\\..\\..\\b.png",
    "\\a.png",
    "C:\\a.png",
    "C:a.png",
    "..",
    "./../a.png",
    "a/..",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_list_leaves_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"inside.png 0\n{name} 1\n")
    with pytest.raises(UserError, match=r"line 2: the path .* leaves the image folder"):
        read_list(tmp_path / "train.txt", tmp_path)
    coco = {
        "images": [{"id": 1, "file_name": name}],
        "annotations": [{"image_id": 1, "category_id": 1}],
        "categories": [{"id": 1}],
    }
    (tmp_path / "train.json").write_text(json.dumps(coco))
    with pytest.raises(UserError, match=r"images\[0\]: the path .* leaves the image folder"):
        read_json_list(tmp_path / "train.json", tmp_path)


@pytest.mark.parametrize("name", ["../whole.safetensors", "/etc/passwd", "sub/whole.safetensors", "..", "", "a\0b"])
def test_no_released_classifier_names_a_file_elsewhere(name: str, home: Path) -> None:
    Path("sub").mkdir()
    shutil.copy("released.safetensors", "sub/whole.safetensors")
    shutil.copy("released.safetensors", "../whole.safetensors")
    with safe_open("classifier.safetensors", framework="pt") as opened:
        header = json.loads(opened.metadata()["checkpoint"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118  # no dictionary
    header["config"]["backbone"]["file"] = name
    save_file(tensors, "strange.safetensors", {"checkpoint": json.dumps(header)})
    with pytest.raises(UserError, match=r"outside its own folder|put that file there|is not the backbone"):
        with_backbone(load_checkpoint(Path("strange.safetensors")))


@pytest.mark.parametrize("name", ["../outside", "/outside", "..\\outside", "a/../../outside"])
def test_names_in_archives_are_no_paths(name: str, home: Path) -> None:
    before = contents(home.parent)
    arrays = {**feature_arrays(), name: np.zeros(3)}
    np.savez("crafted.npz", **arrays)
    tensors = {
        key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items() if value.dtype.kind != "U"
    }
    save_file(tensors, "crafted.safetensors")
    content = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(1, 3, 1, 1), name: torch.zeros(2)}, content)
    with zipfile.ZipFile(content) as source, zipfile.ZipFile("crafted.pth", "w") as target:
        for entry in source.infolist():
            target.writestr(entry, source.read(entry))
        target.writestr(f"archive/{name}", b"outside")
    written = {f"home/{file}" for file in ("crafted.npz", "crafted.safetensors", "crafted.pth")}
    assert read_features(Path("crafted.npz"))[1]["features"]
    for file in ("crafted.safetensors", "crafted.pth"):
        load_checkpoint(Path(file))
    assert contents(home.parent).keys() == before.keys() | written


def test_a_card_names_no_file_that_is_read(home: Path) -> None:
    card = json.loads(Path("released.json").read_text())
    card["parts"] = [{"file": "../../etc/passwd", "sha256": card["sha256"]}]
    Path("released.json").write_text(json.dumps(card))
    assert load_checkpoint(Path("released.safetensors")).path == Path("released.safetensors")


# Bombs

SIZE = 1 << 28


def packed(path: str, name: str, start: bytes) -> None:
    """Write an archive with one entry of `start` and SIZE zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as entry:
        entry.write(start)
        for _ in range(SIZE >> 20):
            entry.write(bytes(1 << 20))


def read_bombs() -> None:
    """Make files that ask for much memory, and write down what is said of them where little is to be had."""
    header = io.BytesIO()
    shape = (SIZE // 64, 16)
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    packed("bomb.npz", "train_features.npy", header.getvalue())
    packed("bomb.pth", "archive/data.pkl", b"")
    torch.save({"conv1.weight": torch.zeros(1).expand(1, 3, 10**6, 10**6)}, "stretched.pth")
    Path("array.pickle").write_bytes(
        b"\x80\x02cnumpy\nndarray\n((\x8a\x06\x00\x00\x00\x00\x00\x10tX\x02\x00\x00\x00u1tR."
    )
    Path("deep.json").write_text("[" * 10**6)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    used = int(status["VmSize"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + SIZE - (1 << 24), resource.RLIM_INFINITY))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said: dict[str, Any] = {}
    readers: dict[str, Callable[[Path], object]] = {
        "bomb.npz": read_features,
        "bomb.pth": load_checkpoint,
        "stretched.pth": load_checkpoint,
        "array.pickle": read_pickle,
        "deep.json": lambda path: read_json_list(path, Path()),
        "/dev/zero": lambda path: read_list(path, Path()),
    }
    for name, read in readers.items():
        try:
            read(Path(name))
            said[name] = "accepted"
        except UserError as error:
            said[name] = str(error)
    said["grown"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    Path("said.json").write_text(json.dumps(said))


def test_bombs_are_refused_in_little_memory(tmp_path: Path) -> None:
    assert Child(read_bombs).end() == (0, "")
    said = json.loads((tmp_path / "said.json").read_text())
    words = {
        "bomb.npz": "unpacks to",
        "bomb.pth": "unpacks to",
        "stretched.pth": "more numbers than the file has room for",
        "array.pickle": "damaged",
        "deep.json": "is not valid JSON",
        "/dev/zero": "no regular file",
    }
    for name, expected in words.items():
        assert name in said[name] and expected in said[name], said[name]
    assert said["grown"] < 100_000  # kB


def test_features_that_are_packed_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "packed.npz", **feature_arrays())
    assert read_features(tmp_path / "packed.npz")[1]["class_names"] == ["ant", "bee", "cat"]


# Pipes and devices: whoever reads one may wait for ever


@pytest.mark.parametrize("name", ["pipe.pth", "pipe.npz", "pipe.safetensors", "pipe.txt", "pipe.json"])
def test_no_pipe_is_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    readers: dict[str, Callable[[Path], Any]] = {
        ".txt": lambda path: read_list(path, tmp_path),
        ".json": lambda path: read_json_list(path, tmp_path),
        ".npz": read_features,
    }
    with pytest.raises(UserError, match="no regular file"):
        readers.get(Path(name).suffix, load_checkpoint)(tmp_path / name)


def test_terminals_are_safe_from_names(home: Path) -> None:
    """A name that moves the cursor, or is no text at all, comes out as what it is."""
    arrays = {
        **feature_arrays(),
        "class_names": np.array(["\x1b[2Jant", "b\nee", "c\u202eat"]),
        "\x1b[31mx": np.zeros(1),
    }
    np.savez("named.npz", **arrays)
    outcome = succeed("evaluate", "--features", "named.npz")
    assert "\x1b" not in outcome.out + outcome.err and "\\x1b[2Jant" in outcome.out and "\\x1b[31mx" in outcome.err

"""Extraction of a whole data set: what the file holds, what a stopped command leaves, what is refused."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor

import tools.extract as tool
from datasets.long_tail import Split
from runs.feature_files import read_features
from runs.shards import find_shards, read_safetensors
from tests.forks import Child
from tests.helpers import contents, image_tree, is_refusal, read, run, succeed
from tools.backbones.backbone import TextEncoder
from tools.extraction import store
from tools.extraction.layout import plan_layout
from tools.extraction.prepared import Part
from utils.errors import UserError
from utils.files import lock_folder

# A backbone whose features are the mean colours of four quarters, 12 numbers, and whose preprocessing is its own.
QUARTERS = """
import numpy as np
import torch
from torch import nn

def prepare(image):
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255

def load():
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), prepare
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of three classes, and a backbone."""
    image_tree(tmp_path / "flowers", classes=3, train=9, test=4)
    (tmp_path / "quarters.py").write_text(QUARTERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLOWERS = ("--backbone", "quarters.py", "--dataset", "folder", "--data_dir", "flowers", "--workers", 0)
SHARDS = (*FLOWERS, "--part_mib", 0.0021, "--batch_size", 5)


def features(paths: list[Path], mirrored: bool = False) -> Tensor:
    """The features of images by the words of the backbone, without this project."""
    rows = []
    for path in paths:
        image = Image.open(path)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = np.array(image.resize((8, 8)), dtype=np.float64) / 255
        rows.append([pixels[y : y + 4, x : x + 4, c].mean() for c in range(3) for y in (0, 4) for x in (0, 4)])
    return torch.tensor(rows)


# What the file holds


def test_a_file_holds_the_features_of_all_images_in_order(desk: Path) -> None:
    out = succeed("tools/extract", *FLOWERS, "--mirrored", "--precision", "float32", "f.safetensors").out
    _, tensors, _ = read_safetensors(desk / "f.safetensors")
    for split, count in (("train", 24), ("test", 12)):
        paths = sorted((desk / "flowers" / split).rglob("*.png"))
        assert tensors[f"{split}_features"].shape == (count, 12)
        torch.testing.assert_close(tensors[f"{split}_features"].double(), features(paths), atol=1e-6, rtol=0)
        assert tensors[f"{split}_labels"].tolist() == [int(path.parent.name[-1]) for path in paths]
    torch.testing.assert_close(
        tensors["test_features_mirrored"].double(), features(paths, mirrored=True), atol=1e-6, rtol=0
    )
    assert "train_features 24, test_features 12, test_features_mirrored 12; 12 numbers each, 48 computed" in out
    assert "next: python main_stage2.py --features f.safetensors" in out
    card = read(desk / "f.json")
    assert card["rows"] == {"train_features": 24, "test_features": 12, "test_features_mirrored": 12}
    assert card["class_counts"] == [9, 8, 7] and card["file"] == "f.safetensors" and card["command"][0] == "--backbone"
    assert {path.name for path in desk.iterdir()} >= {"f.safetensors", "f.json"}
    assert not (desk / "f.unfinished").exists()


def test_stage_2_reads_the_file(desk: Path) -> None:
    succeed("tools/extract", *SHARDS, "f.safetensors")
    assert len(find_shards(desk / "f.safetensors")) > 2
    succeed("main_stage2", "--features", "f.safetensors", "--method", "ce", "--finetune_epoch", 1)
    (metrics,) = desk.rglob("stage2*/metrics.json")
    assert read(metrics)["dataset"] == "own_f"
    _, content = read_features(desk / "f.safetensors", quiet=True)
    assert content["class_names"] == ["class0", "class1", "class2"]
    assert content["features"]["train_features"].dtype == torch.float16


def test_images_in_memory_are_extracted_too(desk: Path) -> None:
    held = ("--dataset", "digits", "--imb_ratio", 50, "--holdout", 0.2, "--workers", 0)
    succeed("tools/extract", "--backbone", "quarters.py", *held, "digits.safetensors")
    _, content = read_features(desk / "digits.safetensors", quiet=True)
    rows = {name: len(values) for name, values in content["features"].items() if name.endswith("_features")}
    assert set(rows) == {"train_features", "holdout_features", "test_features"} and rows["holdout_features"] > 0
    counts = np.bincount(content["features"]["train_labels"].numpy())
    assert counts[0] > 10 * counts[-1]


def test_shards_and_workers_change_nothing(desk: Path) -> None:
    succeed("tools/extract", *FLOWERS, "whole.safetensors")
    succeed("tools/extract", *SHARDS, "--workers", 2, "cut.safetensors")
    _, whole, _ = read_safetensors(desk / "whole.safetensors")
    _, cut, metadata = read_safetensors(desk / "cut.safetensors")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)
    assert metadata["class_names"] == json.dumps(["class0", "class1", "class2"])
    assert all(path.stat().st_size <= 0.0021 * 2**20 for path in find_shards(desk / "cut.safetensors"))


# A zero-shot classifier


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the backbone know texts: a class is as bright as its number."""
    opened = tool.open_backbone

    def open_with_texts(spec: str, weights: str | None = None, size: int | None = None) -> Any:
        def embed(prompts: list[str]) -> Tensor:
            signs = {"0": [-1.0], "1": [0.0], "2": [1.0]}
            return torch.tensor([signs[prompt[-1]] * 11 + [0.1] for prompt in prompts])

        return replace(opened(spec, weights, size), text=TextEncoder(embed, 10.0))

    monkeypatch.setattr("tools.extract.open_backbone", open_with_texts)


def test_the_classifier_is_that_of_the_texts(desk: Path, texts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "templates.txt").write_text("brightness of {}\n")
    arguments = [str(word) for word in (*FLOWERS, "--text_classifier", "--templates", "templates.txt", "z.safetensors")]
    tool.main(arguments)
    _, tensors, _ = read_safetensors(desk / "z.safetensors")
    assert tensors["fc.weight"].shape == (3, 12) and tensors["fc.weight"].dtype == torch.float32
    torch.testing.assert_close(tensors["fc.weight"].norm(dim=1), torch.full((3,), 10.0))
    assert tensors["fc.weight"][0, 0] < 0 < tensors["fc.weight"][2, 0]
    _, content = read_features(desk / "z.safetensors", quiet=True)
    assert torch.equal(content["model"]["fc.weight"], tensors["fc.weight"])
    assert read(desk / "z.json")["prompts"][1] == ["brightness of class1"]


# A command that was stopped


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Stop the extraction before the batch whose number the list holds; no number: never. Counts the batches."""
    plan = [0, -1]
    forward = tool.forward

    def forward_or_stop(*given: Any) -> Tensor:
        plan[0] += 1
        if plan[0] == plan[1]:
            raise KeyboardInterrupt
        return forward(*given)

    monkeypatch.setattr(tool, "forward", forward_or_stop)
    yield plan


def extract(*words: object) -> None:
    tool.extract([str(word) for word in words])


@pytest.mark.parametrize("batch", [2, 3, 5, 7, 10])
def test_a_stopped_command_goes_on_and_ends_with_the_same_numbers(desk: Path, stopped: list[int], batch: int) -> None:
    extract(*SHARDS, "a.safetensors")
    batches, stopped[0], stopped[1] = stopped[0], 0, batch
    assert batches >= 10
    with pytest.raises(KeyboardInterrupt):
        extract(*SHARDS, "b/a.safetensors")
    assert not (desk / "b" / "a.json").exists()
    with pytest.raises(UserError, match=r"missing|No such file"):
        read_features(desk / "b" / "a.safetensors", quiet=True)
    stopped[:] = [0, -1]
    extract(*SHARDS, "b/a.safetensors")
    # The first image is asked for the number of features; no batch is computed twice.
    assert stopped[0] == 1 + batches - (batch - 1)
    pairs = list(zip(*(find_shards(folder / "a.safetensors") for folder in (desk, desk / "b")), strict=True))
    for left, right in pairs:
        assert left.name == right.name
        with safe_open(left, "pt") as mine, safe_open(right, "pt") as its:
            assert mine.metadata() == its.metadata() and set(mine.keys()) == set(its.keys())
            assert all(torch.equal(mine.get_tensor(name), its.get_tensor(name)) for name in mine.keys())  # noqa: SIM118
    assert set(contents(desk / "b")) == {*(left.name for left, _ in pairs), "a.json"}


def test_rows_are_kept_while_it_runs(desk: Path, stopped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process has no last word: what is due is written before."""
    monkeypatch.setattr(store, "SECONDS_BETWEEN_SAVES", 0.0)
    stopped[1] = 4
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        saves: list[int] = []
        kept = store.Store.save

        def save(self: store.Store) -> None:
            if stopped[0] < 4:  # not the one at the end
                saves.append(self.done)
                kept(self)

        patch.setattr(store.Store, "save", save)
        extract(*FLOWERS, "--batch_size", 5, "a.safetensors")
    assert saves == [5, 10]
    stopped[:] = [0, -1]
    extract(*FLOWERS, "--batch_size", 5, "a.safetensors")
    assert stopped[0] == 1 + 3 + 3  # of 24 rows 14 were left, and 12 of the test


def test_parts_make_what_one_command_makes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order, some more than once; the command without --part then computes nothing, and writes the card."""
    run("tools/extract", *SHARDS, "whole.safetensors")
    for part in ("3/3", "1/3", "3/3", "2/3"):
        tool.main([*map(str, SHARDS), "--part", part, "split.safetensors"])
        assert f"part {part[0]} of 3: " in capsys.readouterr().out
        assert not (desk / "split.json").exists()
    tool.main([*map(str, SHARDS), "split.safetensors"])
    assert ", 0 computed in" in capsys.readouterr().out
    assert not (desk / "split.unfinished").exists()
    whole, split = (sorted(desk.glob(f"{name}-*.safetensors")) for name in ("whole", "split"))
    assert len(whole) > 3
    for left, right in zip(whole, split, strict=True):
        with safe_open(left, "pt") as mine, safe_open(right, "pt") as its:
            assert mine.metadata() == its.metadata() and set(mine.keys()) == set(its.keys())
            assert all(torch.equal(mine.get_tensor(name), its.get_tensor(name)) for name in mine.keys())  # noqa: SIM118
    assert read(desk / "whole.json")["plan"] == read(desk / "split.json")["plan"]


def test_a_part_that_is_missing_is_made_by_the_last_command(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And no more than that."""
    tool.main([*map(str, SHARDS), "--part", "2/2", "flowers.safetensors"])
    there = {path.name: path.stat().st_mtime_ns for path in desk.glob("flowers-*")}
    capsys.readouterr()
    tool.main([*map(str, SHARDS), "flowers.safetensors"])
    assert " rows are there; going on" in capsys.readouterr().out
    assert {name: (desk / name).stat().st_mtime_ns for name in there} == there
    assert len(list(desk.glob("flowers-*"))) > len(there)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Let another process hold the lock of a folder."""

    def hold() -> None:
        lock = lock_folder(folder)
        Child.here.tell()
        time.sleep(60)
        assert lock is not None

    child = Child(hold)
    child.wait_until_ready()
    try:
        yield
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.end()


def test_nothing_is_finished_while_a_part_is_at_work(desk: Path) -> None:
    """The whole waits for the parts, two of one part for each other, and a part of other images is refused."""
    tool.main([*map(str, SHARDS), "--part", "1/2", "flowers.safetensors"])
    folder = desk / "flowers.unfinished" / "part2of2"
    folder.mkdir()
    with held(folder):
        for words in ((), ("--part", "2/2")):
            outcome = run("tools/extract", *SHARDS, *words, "flowers.safetensors")
            assert is_refusal(outcome, "is writing to", "part2of2", alone=False), outcome.err
    other = run("tools/extract", *SHARDS, "--precision", "float32", "--part", "2/2", "flowers.safetensors")
    assert is_refusal(other, "was begun with another precision", alone=False), other.err


@pytest.mark.parametrize("words", [("0/2",), ("3/2",), ("2",), ("a/b",), ("1/2", "--overwrite")])
def test_parts_that_cannot_be(desk: Path, words: tuple[str, ...]) -> None:
    """Refused before anything is made."""
    assert is_refusal(run("tools/extract", *SHARDS, "--part", *words, "flowers.safetensors"), "--part"), words
    assert not (desk / "flowers.unfinished").exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("--precision", "float32"), "precision"),
        (("--part_mib", 0.003), "part_mib"),
        (("--mirrored", "--part_mib", 0.004), "images and another part_mib"),
    ],
)
def test_a_stopped_command_with_other_flags_is_refused(
    desk: Path, stopped: list[int], change: tuple[object, ...], word: str
) -> None:
    stopped[1] = 6
    with pytest.raises(KeyboardInterrupt):
        extract(*SHARDS, "a.safetensors")
    stopped[:] = [0, -1]
    before = contents(desk)
    with pytest.raises(UserError, match=f"a.unfinished was begun with another .*{word}.*; go on as it was"):
        extract(*SHARDS, *change, "a.safetensors")
    after = contents(desk)
    assert {name: after[name] for name in before if name.startswith("a")} == {
        name: data for name, data in before.items() if name.startswith("a")
    }
    extract(*SHARDS, *change, "a.safetensors", "--overwrite")
    read_features(desk / "a.safetensors", quiet=True)


def test_other_images_are_another_extraction(desk: Path, stopped: list[int]) -> None:
    stopped[1] = 6
    with pytest.raises(KeyboardInterrupt):
        extract(*SHARDS, "a.safetensors")
    Image.new("RGB", (12, 12)).save(desk / "flowers" / "test" / "class0" / "0.png")
    with pytest.raises(UserError, match="begun with another contents"):
        extract(*SHARDS, "a.safetensors")


def test_a_finished_file_is_replaced_only_when_asked(desk: Path) -> None:
    extract(*FLOWERS, "a.safetensors")
    before = (desk / "a.safetensors").read_bytes()
    outcome = run("tools/extract", *SHARDS, "a.safetensors")
    assert is_refusal(outcome, "a.json is there already", "--overwrite")
    assert (desk / "a.safetensors").read_bytes() == before
    extract(*SHARDS, "a.safetensors", "--overwrite")
    assert not (desk / "a.safetensors").exists()
    read_features(desk / "a.safetensors", quiet=True)


def test_damaged_rows_of_a_stopped_command_are_refused(desk: Path, stopped: list[int]) -> None:
    stopped[1] = 3
    with pytest.raises(KeyboardInterrupt):
        extract(*FLOWERS, "--batch_size", 5, "a.safetensors")
    (desk / "a.unfinished" / "rows.safetensors").write_bytes(b"12345678")
    with pytest.raises(UserError, match=r"rows.safetensors is damaged; begin anew"):
        extract(*FLOWERS, "--batch_size", 5, "a.safetensors")


# What is refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--workers", -1), "--workers must be at least 0, not -1"),
        (("--batch_size", 0), "--batch_size must be at least 1, not 0"),
        (("--part_mib", "nan"), "--part_mib must be a positive number"),
        (("--part_mib", 0.001), "leaves no room for one row of 12 features"),
        (("--templates", "t.txt"), "--templates are for --text_classifier"),
        (("--text_classifier",), "quarters.py knows no texts"),
        (("--epochs", 3), "unrecognized arguments: --epochs"),
        (("--dataset", "nothing"), "nothing"),
        (("--data_dir", "nowhere"), "nowhere"),
    ],
)
def test_wrong_flags_are_refused(desk: Path, words: tuple[object, ...], message: str) -> None:
    assert is_refusal(run("tools/extract", *FLOWERS, *words, "f.safetensors"), message)
    assert not list(desk.glob("f*.safetensors")) and not (desk / "f.json").exists()


def test_another_ending_is_refused(desk: Path) -> None:
    assert is_refusal(run("tools/extract", *FLOWERS, "f.npz"), "f.npz must end in .safetensors")


def test_an_image_that_cannot_be_read_is_named_and_may_be_skipped(desk: Path) -> None:
    (desk / "flowers" / "train" / "class1" / "3.png").write_bytes(b"nothing")
    for workers in (0, 1):
        outcome = run("tools/extract", *FLOWERS, "--workers", workers, "f.safetensors")
        assert is_refusal(outcome, "cannot read the image", "3.png")
        assert not (desk / "f.unfinished").exists()  # the first batch has the image
    succeed("tools/extract", *FLOWERS, "--skip_bad", 1, "g.safetensors")
    assert read(desk / "g.json")["rows"]["train_features"] == 23


NETWORKS = {
    "maps": ("nn.Identity()", r"quarters.py has no penultimate features: it makes \(1, 3, 8, 8\) of 1 images"),
    "infinite": ("nn.Sequential(nn.Flatten(), nn.Threshold(2, 1e5))", "not finite, or above 65504: try --precision"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_one_vector_an_image_is_refused(desk: Path, name: str) -> None:
    network, message = NETWORKS[name]
    text = QUARTERS.replace("nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())", network)
    (desk / "quarters.py").write_text(text)
    with pytest.raises(UserError, match=message):
        extract(*FLOWERS, "f.safetensors")


def test_preprocessing_that_leaves_sizes_apart_is_refused(desk: Path) -> None:
    Image.new("RGB", (30, 20)).save(desk / "flowers" / "train" / "class0" / "0.png")
    (desk / "quarters.py").write_text(QUARTERS.replace("image.resize((8, 8))", "image"))
    with pytest.raises(UserError, match=r"images of different sizes, \(3, 12, 12\) and \(3, 20, 30\)"):
        extract(*FLOWERS, "f.safetensors")


# The layout


@pytest.mark.parametrize("limit", [1500, 1700, 2100, 3000, 10_000])
@pytest.mark.parametrize("sizes", [(1, 1), (17, 5), (4, 30)])
def test_every_row_stands_in_one_shard(sizes: tuple[int, int], limit: int) -> None:
    parts = []
    for name, size in zip(("train", "test"), sizes, strict=True):
        parts.append(Part(name, Split(np.zeros((size, 1, 1, 3), np.uint8), np.arange(size), np.arange(size))))
    extras = {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}
    layout = plan_layout(parts, 4, torch.float16, extras, limit + 1024)
    numbers = torch.arange(layout.rows)[:, None].expand(-1, 4).half()
    found: dict[str, list[Tensor]] = {}
    for shard in range(layout.row_shards):
        start, stop = layout.bounds(shard)
        for name, values in layout.tensors(shard, numbers[start:stop]).items():
            if name in extras:
                continue
            plain, _, piece = name.partition(".rows")
            assert int(piece or 0) == len(found.setdefault(plain, []))  # numbered in order from 0
            found[plain].append(values)
    assert torch.cat([*found["train_features"], *found["test_features"]])[:, 0].tolist() == list(range(sum(sizes)))
    assert [torch.cat(found[f"{name}_labels"]).tolist() for name in ("train", "test")] == [
        list(range(size)) for size in sizes
    ]
    for size in (1, 3, 100):
        every = [(number, row) for number, count in enumerate(sizes) for row in range(count)]
        for first in range(layout.row_shards):
            start, skip = layout.bounds(first)[0], min(layout.shard_rows - 1, 2)
            batches = layout.batches(range(first, layout.row_shards), skip, size)
            rows = [(number, row) for number, batch in batches for row in batch.tolist()]
            assert rows == every[start + skip :]
    for parts_count in (1, 2, 3, 50):
        shares = [layout.share(part, parts_count) for part in range(1, parts_count + 1)]
        assert [shard for share in shares for shard in share] == list(range(layout.row_shards))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Parquet


def test_the_table_reads_as_the_file_does(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    out = succeed("tools/extract", *FLOWERS, "--mirrored", "--parquet", "made.parquet", "made.safetensors").out
    assert "made.parquet" in out
    table, file = (read_features(Path(name), quiet=True)[1] for name in ("made.parquet", "made.safetensors"))
    assert table["class_names"] == file["class_names"] == ["class0", "class1", "class2"]
    assert set(file["features"]) - set(table["features"]) == {"test_features_mirrored"}
    for name, values in table["features"].items():
        assert values.dtype == file["features"][name].dtype and torch.equal(values, file["features"][name]), name
    again = ("tools/extract", *FLOWERS, "--parquet", "made.parquet", "other.safetensors")
    assert is_refusal(run(*again), "made.parquet is there already", alone=False)
    assert is_refusal(run(*again[:-2], "made.csv", "other.safetensors"), "must end in .parquet", alone=False)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    missing = run("tools/extract", *FLOWERS, "--parquet", "new.parquet", "new.safetensors")
    assert is_refusal(missing, "--parquet needs the package pyarrow: pip install pyarrow", alone=False)
    assert not list(desk.glob("new*")) and not list(desk.glob("other*"))

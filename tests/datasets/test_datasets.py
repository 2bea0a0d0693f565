"""The long-tail profile, the choice of images, the two kinds of data, and every way in which files can be wrong."""

import http.client
import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import URLError

import numpy as np
import pytest
import torchvision
from sklearn.datasets import load_digits as sklearn_digits

from datasets import load_dataset
from datasets.cifar import CIFAR10, CIFAR100, Layout, load_cifar
from datasets.long_tail import (
    LongTailedData,
    Profile,
    Split,
    long_tail_counts,
    refuse_blank_images,
    select_subset,
    split_holdout,
    subset_identity,
)
from utils.errors import UserError

# The real layouts with few images: 4 classes of 6 for training and 2 for the test.
SMALL = {"num_classes": 4, "test_per_class": 2}
SMALL100 = replace(CIFAR100, train_per_class=6, **SMALL)
SMALL10 = replace(CIFAR10, train_per_class=10, **SMALL)


def content_of(layout: Layout, per_class: int, seed: int = 0) -> dict[str, Any]:
    """What one file of images holds: labels in a shuffled order, random pixels, none of them zero."""
    generator = np.random.RandomState(seed)
    labels = generator.permutation(np.repeat(np.arange(layout.num_classes), per_class))
    data = generator.randint(1, 256, (len(labels), 3072)).astype(np.uint8)
    return {"data": data, layout.label_key: labels.tolist(), "filenames": [f"{i}.png" for i in range(len(labels))]}


def write_cifar(data_dir: Path, layout: Layout, name: str) -> Path:
    """Write every file of `layout` where `load_cifar` looks for it; return their folder."""
    folder = data_dir / name / layout.folder
    folder.mkdir(parents=True)
    share = layout.train_per_class // len(layout.train_files)
    for i, file in enumerate(layout.train_files):
        (folder / file).write_bytes(pickle.dumps(content_of(layout, share, i), protocol=2))
    (folder / layout.test_file).write_bytes(pickle.dumps(content_of(layout, layout.test_per_class, 99), protocol=2))
    names = {layout.names_key: [f"kind {i}" for i in range(layout.num_classes)]}
    (folder / layout.meta_file).write_bytes(pickle.dumps(names, protocol=2))
    return folder


def load_small(data_dir: Path, layout: Layout = SMALL100, imb_ratio: float = 3, holdout: float = 0.0) -> LongTailedData:
    name = "cifar100" if layout.folder == CIFAR100.folder else "cifar10"
    return load_cifar(layout, name, str(data_dir), Profile(imb_ratio, holdout=holdout))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the dictionary that a file holds."""
    content = pickle.loads(path.read_bytes())
    change(content)
    path.write_bytes(pickle.dumps(content, protocol=2))


def refusal(action: Callable[[], object]) -> str:
    """The message of the UserError that `action` must raise."""
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


# The profile


@pytest.mark.parametrize(
    ("imb_ratio", "images", "groups"),
    [(10, 19573, (69, 31, 0)), (50, 12608, (41, 41, 18)), (100, 10847, (35, 35, 30)), (200, 9502, (30, 31, 39))],
)
def test_cifar100_profile(imb_ratio: float, images: int, groups: tuple[int, int, int]) -> None:
    counts = long_tail_counts(500, 100, imb_ratio)
    assert sum(counts) == images
    assert counts[0] == 500
    assert counts == sorted(counts, reverse=True)
    many, few = sum(n > 100 for n in counts), sum(n < 20 for n in counts)
    assert (many, len(counts) - many - few, few) == groups


def test_cifar10_profile() -> None:
    assert long_tail_counts(5000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(long_tail_counts(5000, 10, 100)) == 12406


def test_step_profile() -> None:
    assert long_tail_counts(500, 100, 100, "step") == [500] * 50 + [5] * 50
    assert long_tail_counts(5000, 10, 10, "step") == [5000] * 5 + [500] * 5


@pytest.mark.parametrize("imb_type", ["exp", "step"])
def test_ratio_of_one_is_balanced(imb_type: str) -> None:
    assert long_tail_counts(500, 100, 1, imb_type) == [500] * 100


@pytest.mark.parametrize("imb_type", ["exp", "step"])
@pytest.mark.parametrize("imb_ratio", [0.99, 0, -100, float("nan"), float("inf"), -float("inf"), 501])
def test_impossible_ratio(imb_ratio: float, imb_type: str) -> None:
    assert "--imb_ratio" in refusal(lambda: long_tail_counts(500, 100, imb_ratio, imb_type))


@pytest.mark.parametrize("n_max", [124, 500, 5000])
def test_largest_ratio_that_the_message_names_works(n_max: int) -> None:
    assert f"at most {n_max}" in refusal(lambda: long_tail_counts(n_max, 10, n_max + 1))
    assert min(long_tail_counts(n_max, 10, n_max)) == 1


def test_unknown_names_list_the_known_ones() -> None:
    assert "cifar10, digits" in refusal(lambda: load_dataset("cifar1000", Profile()))
    assert "exp, step" in refusal(lambda: load_dataset("digits", Profile(imb_ratio=25, imb_type="linear")))
    assert "first, shuffle" in refusal(lambda: load_dataset("digits", Profile(imb_ratio=25, subset="last")))


# The choice of images


@pytest.fixture(scope="module")
def file_labels() -> np.ndarray:
    """Labels of 100 classes of 500 in a shuffled file order."""
    return np.random.RandomState(3).permutation(np.repeat(np.arange(100), 500))


def test_first_subset_is_the_head_of_every_class(file_labels: np.ndarray) -> None:
    counts = long_tail_counts(500, 100, 100)
    left, expected = list(counts), []
    for index, label in enumerate(file_labels.tolist()):
        if left[label] > 0:
            left[label] -= 1
            expected.append(index)
    assert sorted(select_subset(file_labels, counts, "first").tolist()) == expected


def test_shuffled_subset_is_that_of_ldam(file_labels: np.ndarray) -> None:
    counts = long_tail_counts(500, 100, 100)
    before = np.random.get_state()
    try:
        np.random.seed(0)  # as LDAM-DRW's IMBALANCECIFAR10 does, on the global generator
        chosen = []
        for label, count in zip(np.unique(file_labels), counts, strict=True):
            idx = np.where(file_labels == label)[0]
            np.random.shuffle(idx)
            chosen.extend(idx[:count].tolist())
    finally:
        np.random.set_state(before)
    ours = select_subset(file_labels, counts, "shuffle", seed=0)
    assert len(ours) == 10847
    assert sorted(ours.tolist()) == sorted(chosen)
    assert set(ours.tolist()) != set(select_subset(file_labels, counts, "shuffle", seed=1).tolist())
    assert set(ours.tolist()) != set(select_subset(file_labels, counts, "first").tolist())


def test_choice_leaves_the_global_generator_alone(file_labels: np.ndarray) -> None:
    np.random.seed(11)
    expected = np.random.rand()
    np.random.seed(11)
    select_subset(file_labels, [3] * 100, "shuffle", seed=0)
    split_holdout(file_labels, 0.1, seed=0)
    assert np.random.rand() == expected


def test_profile_larger_than_the_class() -> None:
    assert "class 1 has 2 images" in refusal(lambda: select_subset(np.array([0, 0, 0, 1, 1]), [3, 3]))


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5, 0.9])
def test_holdout_shares(fraction: float) -> None:
    sizes = [100, 37, 10, 5, 3, 2, 1]
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept, out = split_holdout(labels, fraction, seed=0)
    assert sorted([*kept.tolist(), *out.tolist()]) == list(range(len(labels)))  # disjoint and complete
    held = np.bincount(labels[out], minlength=len(sizes))
    for size, count in zip(sizes, held.tolist(), strict=True):
        if size == 1:
            assert count == 0
        else:
            assert 1 <= count <= size - 1
            assert abs(count - fraction * size) <= 0.5 or count in (1, size - 1)


def test_holdout_is_reproducible_and_seeded() -> None:
    labels = np.repeat(np.arange(5), 20)
    first = split_holdout(labels, 0.25, seed=4)
    again = split_holdout(labels, 0.25, seed=4)
    other = split_holdout(labels, 0.25, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    assert len(split_holdout(labels, 0.0, seed=4)[1]) == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0, float("nan")])
def test_impossible_holdout(fraction: float) -> None:
    assert "--holdout" in refusal(lambda: split_holdout(np.array([0, 0]), fraction, 0))


def some_split(count: int = 12) -> Split:
    generator = np.random.RandomState(5)
    images = generator.randint(1, 256, (count, 4, 4, 3)).astype(np.uint8)
    return Split(images, np.arange(count) % 3, np.arange(count) * 7)


def test_identity_tells_pictures_from_indices() -> None:
    split = some_split()
    identity = subset_identity(split)
    assert subset_identity(split.take(np.random.RandomState(0).permutation(len(split)))) == identity

    reordered_files = subset_identity(replace(split, ids=split.ids + 1))  # the same pictures stand elsewhere
    assert reordered_files["content_sha256"] == identity["content_sha256"]
    assert reordered_files["index_sha256"] != identity["index_sha256"]

    pixels = split.images.copy()
    pixels[7, 0, 0, 0] ^= 1
    other_picture = subset_identity(replace(split, images=pixels))
    assert other_picture["content_sha256"] != identity["content_sha256"]
    assert other_picture["index_sha256"] == identity["index_sha256"]

    swapped = split.labels.copy()
    swapped[[0, 1]] = swapped[[1, 0]]  # the same pictures and labels, paired otherwise
    assert subset_identity(replace(split, labels=swapped))["content_sha256"] != identity["content_sha256"]


def test_blank_image_is_refused_by_its_index() -> None:
    split = some_split()
    refuse_blank_images(split, "training")
    images = split.images.copy()
    images[5] = 0
    assert "index 35" in refusal(lambda: refuse_blank_images(replace(split, images=images), "training"))
    images[5, 3, 3, 2] = 1  # a single grey level is a picture
    refuse_blank_images(replace(split, images=images), "training")


# Digits


def test_digits() -> None:
    data = load_dataset("digits", Profile(imb_ratio=25))
    assert data.num_classes == 10
    assert np.bincount(data.test.labels).tolist() == [50] * 10
    counts = np.bincount(data.train.labels).tolist()
    assert counts == data.class_counts.tolist() == long_tail_counts(124, 10, 25)
    assert (counts[0], counts[-1]) == (124, 4)
    assert any(n > 100 for n in counts) and any(20 <= n <= 100 for n in counts) and any(n < 20 for n in counts)
    assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())
    assert not data.augmentation.mirror


def test_digits_are_the_ones_of_scikit_learn() -> None:
    data, source = load_dataset("digits", Profile(imb_ratio=25, subset="shuffle")), sklearn_digits()
    for split in (data.train, data.test):
        np.testing.assert_array_equal(split.labels, source.target[split.ids])
        assert split.images.dtype == np.uint8
        for channel in range(3):
            np.testing.assert_array_equal(split.images[..., channel], source.images[split.ids] * 15)


def test_digits_normalisation_constants_are_those_of_the_set() -> None:
    grey = sklearn_digits().images * 15 / 255
    augmentation = load_dataset("digits", Profile(imb_ratio=25)).augmentation
    assert augmentation.mean == pytest.approx((grey.mean(),) * 3, abs=1e-3)
    assert augmentation.std == pytest.approx((grey.std(),) * 3, abs=1e-3)


def test_holdout_comes_off_the_training_set() -> None:
    whole = load_dataset("digits", Profile(imb_ratio=25))
    data = load_dataset("digits", Profile(imb_ratio=25, holdout=0.2, holdout_seed=1))
    train, out = set(data.train.ids.tolist()), set(data.holdout.ids.tolist())
    assert not train & out
    assert train | out == set(whole.train.ids.tolist())
    assert data.class_counts.tolist() == np.bincount(data.train.labels).tolist()
    assert (np.bincount(data.holdout.labels, minlength=10) >= 1).all()
    assert len(whole.holdout) == 0


# CIFAR files


@pytest.mark.parametrize("layout", [SMALL100, SMALL10], ids=["cifar100", "cifar10"])
def test_cifar_layout_is_read(tmp_path: Path, layout: Layout) -> None:
    folder = write_cifar(tmp_path, layout, "cifar100" if layout is SMALL100 else "cifar10")
    data = load_small(tmp_path, layout, imb_ratio=1)
    contents = [pickle.loads((folder / file).read_bytes()) for file in layout.train_files]
    rows = np.concatenate([content["data"] for content in contents])
    labels = np.concatenate([content[layout.label_key] for content in contents])
    np.testing.assert_array_equal(data.train.labels, labels[data.train.ids])
    assert data.class_names == ["kind 0", "kind 1", "kind 2", "kind 3"]
    assert len(data.test) == 8
    for image, index in zip(data.train.images, data.train.ids, strict=True):
        for channel in range(3):  # a file's row is the red plane, the green and the blue, each row by row
            plane = rows[index, 1024 * channel : 1024 * (channel + 1)].reshape(32, 32)
            np.testing.assert_array_equal(image[:, :, channel], plane)


def test_small_cifar_is_long_tailed(tmp_path: Path) -> None:
    write_cifar(tmp_path, SMALL100, "cifar100")
    data = load_small(tmp_path)
    assert data.class_counts.tolist() == [6, 4, 2, 2]
    assert data.augmentation.padding == 4 and data.augmentation.mirror
    assert data.augmentation.mean == (0.4914, 0.4822, 0.4465)
    assert data.augmentation.std == (0.2023, 0.1994, 0.2010)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes and text as Python 2 wrote its `str`, which is what the official files hold."""

    dispatch: ClassVar[dict[type, Any]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_str(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)
        self.memoize(value)

    dispatch[bytes] = save_str
    dispatch[str] = save_str


def test_official_python_2_pickles_are_read(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, SMALL100, "cifar100")
    expected = load_small(tmp_path)
    for path in folder.iterdir():
        buffer = io.BytesIO()
        Python2Pickler(buffer, protocol=2).dump(pickle.loads(path.read_bytes()))
        path.write_bytes(buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"_codecs" not in (folder / "train").read_bytes()
    data = load_small(tmp_path)
    np.testing.assert_array_equal(data.train.images, expected.train.images)
    assert data.class_names == expected.class_names


class Payload:
    """Unpickled the usual way, it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_crafted_pickle_does_not_run(tmp_path: Path, file: str, protocol: int) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / file
    marker = tmp_path / "marker"
    content = pickle.loads(path.read_bytes())
    crafted = pickle.dumps({**content, "batch_label": Payload(marker)}, protocol=protocol)
    pickle.loads(crafted)
    assert marker.exists()  # the payload works where nothing holds it back
    marker.rmdir()
    path.write_bytes(crafted)
    message = refusal(lambda: load_small(tmp_path))
    assert not marker.exists()
    assert str(path) in message and "mkdir" in message


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "numpy.load", "numpy._core.multiarray.scalar"])
def test_other_globals_are_refused(tmp_path: Path, name: str) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / "train"
    module, _, attribute = name.rpartition(".")
    path.write_bytes(f"c{module}\n{attribute}\n.".encode())
    message = refusal(lambda: load_small(tmp_path))
    assert str(path) in message and attribute in message


@pytest.mark.parametrize("file", ["train", "test", "meta"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, file: str, share: float) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / file
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in refusal(lambda: load_small(tmp_path))


def test_file_that_is_no_dictionary(tmp_path: Path) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / "test"
    path.write_bytes(pickle.dumps([1, 2]))
    assert str(path) in refusal(lambda: load_small(tmp_path))


WRONG: dict[str, Callable[[dict[str, Any]], object]] = {
    "wrong dtype": lambda content: content.update(data=content["data"].astype(np.float32)),
    "wrong width": lambda content: content.update(data=content["data"][:, :1024]),
    "images already shaped": lambda content: content.update(data=content["data"].reshape(-1, 3, 32, 32)),
    "no images": lambda content: content.pop("data"),
    "a list of images": lambda content: content.update(data=content["data"].tolist()),
    "no labels": lambda content: content.pop("fine_labels"),
    "a label short": lambda content: content["fine_labels"].pop(),
    "a label too many": lambda content: content["fine_labels"].append(0),
    "a label of no class": lambda content: content["fine_labels"].__setitem__(3, 4),
    "a negative label": lambda content: content["fine_labels"].__setitem__(3, -1),
    "labels that are text": lambda content: content.update(fine_labels=[str(v) for v in content["fine_labels"]]),
}


@pytest.mark.parametrize("file", ["train", "test"])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_wrong_content_is_named(tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / file
    edit(path, change)
    assert str(path) in refusal(lambda: load_small(tmp_path))


@pytest.mark.parametrize("file", ["train", "test"])
def test_wrong_images_per_class(tmp_path: Path, file: str) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / file

    def relabel(content: dict[str, Any]) -> None:
        content["fine_labels"][content["fine_labels"].index(2)] = 3

    edit(path, relabel)
    message = refusal(lambda: load_small(tmp_path))
    assert "class 2" in message and file in message and str(path.parent) in message


def test_wrong_class_names(tmp_path: Path) -> None:
    path = write_cifar(tmp_path, SMALL100, "cifar100") / "meta"
    edit(path, lambda content: content["fine_label_names"].pop())
    assert str(path) in refusal(lambda: load_small(tmp_path))


@pytest.mark.parametrize("file", ["train", "test", "meta"])
def test_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    def no_download(*args: object, **kwargs: object) -> None:
        raise AssertionError("a folder with some of the files must not be downloaded over")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "__init__", no_download)
    folder = write_cifar(tmp_path, SMALL100, "cifar100")
    (folder / file).unlink()
    message = refusal(lambda: load_small(tmp_path))
    assert str(folder) in message and f"lacks {file}" in message


def test_blank_images_in_the_chosen_subset_only(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, SMALL100, "cifar100")
    whole = load_small(tmp_path, imb_ratio=1)
    chosen = set(load_small(tmp_path, imb_ratio=3).train.ids.tolist())
    spare = next(index for index in whole.train.ids.tolist() if index not in chosen)
    edit(folder / "train", lambda content: content["data"].__setitem__(spare, 0))
    load_small(tmp_path, imb_ratio=3)
    assert f"index {spare}" in refusal(lambda: load_small(tmp_path, imb_ratio=1))
    edit(folder / "test", lambda content: content["data"].__setitem__(4, 0))
    assert "test images" in refusal(lambda: load_small(tmp_path, imb_ratio=3))


@pytest.mark.parametrize("name", ["cifar100", "cifar10"])
def test_failing_download_points_to_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def unreachable(data: torchvision.datasets.CIFAR10) -> None:
        Path(data.root).mkdir(parents=True)  # as torchvision does
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", unreachable)  # CIFAR100 inherits it
    message = refusal(lambda: load_dataset(name, Profile(), str(tmp_path / "new" / "data")))
    assert "--dataset digits" in message and "no route to host" in message
    assert str(tmp_path / "new" / "data" / name) in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []  # no folder is left


def test_corrupt_download_points_to_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half_a_file(url: str, filename: str | Path, *args: object, **kwargs: object) -> None:
        Path(filename).write_bytes(b"half an archive")

    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, *args, **kwargs: url)
    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", half_a_file)
    message = refusal(lambda: load_dataset("cifar100", Profile(), str(tmp_path)))
    assert "--dataset digits" in message and "corrupted" in message


@pytest.mark.parametrize("error", [http.client.BadStatusLine("<html>"), http.client.IncompleteRead(b"half")])
def test_broken_answer_of_the_server_points_to_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A proxy that speaks no HTTP, or hangs up: urllib lets http.client's own errors through, which are no OSError."""

    def broken(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", broken)
    assert "--dataset digits" in refusal(lambda: load_dataset("cifar100", Profile(), str(tmp_path)))


def test_wrong_ratio_is_told_before_anything_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_download(*args: object, **kwargs: object) -> None:
        raise AssertionError("downloaded for nothing")

    monkeypatch.setattr(torchvision.datasets.CIFAR100, "__init__", no_download)
    assert "--imb_ratio" in refusal(lambda: load_dataset("cifar100", Profile(imb_ratio=1000), str(tmp_path)))


def test_real_cifar100(cifar100_dir: Path) -> None:
    data = load_dataset("cifar100", Profile(imb_ratio=100), str(cifar100_dir))
    assert data.train.images.shape == (10847, 32, 32, 3) and data.train.images.dtype == np.uint8
    assert np.bincount(data.train.labels).tolist() == long_tail_counts(500, 100, 100)
    assert np.bincount(data.test.labels).tolist() == [100] * 100
    assert data.class_names[:3] == ["apple", "aquarium_fish", "baby"] and len(set(data.class_names)) == 100
    # Natural images: neighbouring pixels are alike, along rows and columns, and the three planes go together.
    pixels = data.test.images[:500].astype(float)
    for axis in (1, 2):
        assert np.abs(np.diff(pixels, axis=axis)).mean() < 0.35 * pixels.std()

"""Class folders: nested, of many endings, under many names of splits, without images, with litter."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks.robustness.everyday_inputs.case import CHECK, Case, Ended, Judge, Words, differs, first_of
from benchmarks.robustness.everyday_inputs.pictures import TEST, TRAIN, TRAINED, colour, fill, folder_at, tree

FOLDER = ("--dataset", "folder", "--data_dir", "{data}/set")
LOOK: Words = (*CHECK, *FOLDER, "--decode", "all", "--json", "{out}/report.json", "--out", "{out}")
TRAIN_IT: Words = ("main_stage1.py", *FOLDER, *TRAINED)


def sizes(train: Mapping[str, int], test: Mapping[str, int], holdout: Mapping[str, int] | None = None) -> Judge:
    """Return a judge of the check's report: the classes and the images of each in every split."""
    right = {"train": train, "test": test, **({"holdout": holdout} if holdout else {})}
    wanted = {split: [sizes.get(name, 0) for name in train] for split, sizes in right.items()}

    def judged(ended: Ended) -> str | None:
        report = ended.report()
        return first_of(
            differs("classes", report["class_names"], list(train)), differs("images", report["by_class"], wanted)
        )

    return judged


def nested(folder: Path) -> None:
    tree(folder / "set")
    place = folder / "set" / "train" / "calcite"
    for i, path in enumerate(sorted(place.glob("*.png"))[1:]):
        path.rename(folder_at(place / ("vein" if i % 2 else "vein/deep")) / path.name)


def endings(folder: Path) -> None:
    tree(folder / "set", end=".jpg")
    for i, path in enumerate(sorted((folder / "set" / "train" / "azurite").glob("*.jpg"))):
        path.rename(path.with_suffix((".jpg", ".jfif", ".JPE", ".Jpeg")[i % 4]))


def strange_files(folder: Path) -> None:
    tree(folder / "set")
    for name in ("scan1.heic", "scan2.heic", "notes.docx"):
        (folder / "set" / "train" / "calcite" / name).write_bytes(b"not decoded")
    colour("calcite", 1).save(folder / "set" / "train" / "outside.png")


def strange_files_named(ended: Ended) -> str | None:
    before, found, _ = ended.text.partition("epoch  ")
    unsaid = [name for name in ("scan1.heic", "notes.docx", "outside.png") if name not in before]
    if not found:
        return "no epoch"
    return f"not named before training: {', '.join(unsaid)}" if unsaid else None


def plain(folder: Path) -> None:
    tree(folder / "set")
    tree(folder / "set", train="val", test=None)


def valid_beside_test(folder: Path) -> None:
    tree(folder / "set")
    tree(folder / "set", train="valid", test=None)


def capitals(folder: Path) -> None:
    tree(folder / "set", train="Training", test="Validation")


def one_folder(folder: Path) -> None:
    for name, size in TRAIN.items():
        fill(folder / "set" / name, name, size)


def other_splits(folder: Path) -> None:
    tree(folder / "set", train="learn", test="exam")


def absent_in_test(folder: Path) -> None:
    tree(folder / "set")
    for path in (folder / "set" / "test" / "malachite").iterdir():
        path.unlink()
    (folder / "set" / "test" / "malachite").rmdir()


def without_malachite(ended: Ended) -> str | None:
    """Judge a report in which one class has no test image: no accuracy of it, and it is in no mean."""
    scores = ended.scores()
    found = scores["per_class_accuracy"]
    return first_of(
        differs("accuracy of the absent class", found[2], None),
        differs("few", scores["few"], sum(found[:2]) / 2),
        None if "malachite" in ended.text else "no word about the class without test images",
    )


def empty_class(folder: Path) -> None:
    tree(folder / "set")
    for split in ("train", "test"):
        folder_at(folder / "set" / split / "borax")


def litter(folder: Path) -> None:
    tree(folder / "set")
    for split in ("train", "test"):
        for name in ("@eaDir", ".ipynb_checkpoints", "__MACOSX"):
            folder_at(folder / "set" / split / name)
    colour("azurite", 5).save(folder / "set" / "train" / "@eaDir" / "SYNOPHOTO_THUMB.png")
    (folder / "set" / "train" / "azurite" / "._az0.png").write_bytes(b"Mac OS X")
    (folder / "set" / "train" / "azurite" / "Thumbs.db").write_bytes(b"thumbs")


def taken_with_borax(ended: Ended) -> str:
    return f"taken as {ended.report()['by_class']['train']} without a word"


QUARTER = {name: max(1, round(size / 4)) for name, size in TRAIN.items()}
REST = {name: size - QUARTER[name] for name, size in TRAIN.items()}
VANISH, SPLITS, EMPTY = "images that vanish", "names of splits", "classes without images"
WHOLE = sizes(TRAIN, TEST)
CASES = (
    Case(VANISH, "folders in a class folder", "24 training images, imbalance 3", nested, [LOOK], WHOLE),
    Case(VANISH, "endings .jfif, .JPE, .Jpeg", "24 training images", endings, [LOOK], WHOLE),
    Case(
        VANISH,
        "files that no decoder reads",
        "named before the first epoch",
        strange_files,
        [TRAIN_IT],
        strange_files_named,
    ),
    Case(
        SPLITS,
        "valid beside test",
        "valid is held out, 24 images",
        valid_beside_test,
        [LOOK],
        sizes(TRAIN, TEST, TRAIN),
    ),
    Case(SPLITS, "Training and Validation, no test", "24 and 6 images", capitals, [LOOK], WHOLE),
    Case(
        SPLITS,
        "one folder, --test_share 0.25",
        f"{sum(REST.values())} and {sum(QUARTER.values())} images, by class",
        one_folder,
        [(*LOOK, "--test_share", "0.25")],
        sizes(REST, QUARTER),
    ),
    Case(
        SPLITS,
        "learn and exam",
        "refused, with what was found and what is wanted",
        other_splits,
        [LOOK],
        lambda ended: "taken without a word",
        way=("learn", "exam", "train"),
        refuse=True,
    ),
    Case(
        EMPTY,
        "a class folder that test lacks",
        "no accuracy, in no mean, a warning",
        absent_in_test,
        [TRAIN_IT],
        without_malachite,
    ),
    Case(
        EMPTY,
        "a training folder without images",
        "refused, with --drop_empty_classes",
        empty_class,
        [LOOK],
        taken_with_borax,
        way=("borax", "--drop_empty_classes"),
        refuse=True,
    ),
    Case(
        EMPTY, "the same with --drop_empty_classes", "3 classes", empty_class, [(*LOOK, "--drop_empty_classes")], WHOLE
    ),
    Case(EMPTY, "litter of systems and tools", "3 classes, 24 training images", litter, [LOOK], WHOLE),
    Case("plain files", "train, val and test", "24, 24 and 6 images", plain, [LOOK], sizes(TRAIN, TEST, TRAIN)),
)

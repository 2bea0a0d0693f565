"""Photos: stored turned, of 12 bits, large, damaged, and such whose mirror is another class."""

from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.robustness.everyday_inputs.case import CHECK, Case, Ended, Words, differs, first_of, near, taken
from benchmarks.robustness.everyday_inputs.pictures import (
    SIDE,
    STORED_AS,
    TRAINED,
    colour,
    folder_at,
    noisy,
    save_deep,
    save_turned,
    saw,
    stripes,
    tree,
)

FOLDER = ("--dataset", "folder", "--data_dir", "{data}/set")
TRAIN: Words = ("main_stage1.py", *FOLDER, *TRAINED)
PREDICT: Words = ("predict.py", "--pretrained_pth", "{run}", "--images", "{data}/new", "--csv", "{out}/predictions.csv")
LARGE = (12000, 9000)  # 108 million pixels, as phones take them
GREYS = {"chalk": 190, "shale": 50}  # of 255


def stripe_set(folder: Path) -> None:
    """Write upright stripes to train and test on."""
    for split, size, seed in (("train", 12, 0), ("test", 4, 500)):
        for name in ("columns", "strata"):
            place = folder_at(folder / "set" / split / name)
            for i in range(size):
                stripes(name == "columns", seed + i).save(place / f"{i}.jpg", quality=95)


def turned_test(folder: Path) -> None:
    stripe_set(folder)
    for path in sorted((folder / "set" / "test").rglob("*.jpg")):
        save_turned(Image.open(path).copy(), path, list(STORED_AS)[int(path.stem) % 3])


def turned_new(folder: Path) -> None:
    stripe_set(folder)
    folder_at(folder / "new")
    for i, end in enumerate(("jpg", "png", "webp", "jpg")):
        save_turned(stripes(True, 900 + i), folder / "new" / f"columns{i}.{end}", list(STORED_AS)[i % 3])
        save_turned(stripes(False, 950 + i), folder / "new" / f"strata{i}.{end}", list(STORED_AS)[i % 3])


def accuracy_100(ended: Ended) -> str | None:
    return near("accuracy", ended.scores()["all"], 100)


def named_as_files(ended: Ended) -> str | None:
    """Judge predictions of files whose names begin with their class."""
    wrong = [f"{name} is {row['class']}" for name, row in ended.predictions().iterrows() if row["class"] not in name]
    return ", ".join(wrong) or None


def turned_as_upright(ended: Ended) -> str | None:
    kinds = {kind: entry["files"] for kind, entry in ended.report()["files"]["kinds"].items()}
    found = [number for kind, number in kinds.items() if "turned" in kind]
    return first_of(accuracy_100(ended), differs("photos counted as turned", found, [8]))


def grey_set(folder: Path) -> None:
    """Write grey classes of 8 bits to train on, and to test on of 12 bits as a sensor stores them, in 16-bit PNG."""
    for name, level in GREYS.items():
        train, test = (folder_at(folder / "set" / split / name) for split in ("train", "test"))
        for i in range(10):
            noisy(np.full((SIDE, SIDE, 3), level, float), i).save(train / f"{i}.png")
        for i in range(3):
            save_deep(test / f"{i}.png", deep_grey(name, i))


def deep_grey(name: str, seed: int) -> np.ndarray:
    """Return a class in values of 12 bits, some of which no scaling to 16 bits makes."""
    return np.random.default_rng(seed).normal(16 * GREYS[name], 90, (SIDE, SIDE)).clip(0, 4095)


def declared(folder: Path) -> None:
    grey_set(folder)
    for path in sorted((folder / "set" / "test").rglob("*.png")):
        save_deep(path, deep_grey(path.parent.name, int(path.stem)), significant=12)


def mineral_set(folder: Path) -> None:
    tree(folder / "set")


def large(folder: Path) -> None:
    mineral_set(folder)
    folder_at(folder / "new")
    Image.new("RGB", LARGE, (40, 70, 200)).save(folder / "new" / "azurite.jpg")


def one_bad(folder: Path) -> None:
    mineral_set(folder)
    folder_at(folder / "new")
    for i, name in enumerate(("azurite", "calcite", "malachite")):
        colour(name, 700 + i).save(folder / "new" / f"{name}.png")
    whole = (folder / "new" / "calcite.png").read_bytes()
    (folder / "new" / "broken.png").write_bytes(whole[: len(whole) // 3])


def one_bad_reported(ended: Ended) -> str | None:
    rows = ended.predictions()
    good = rows.drop("broken.png")
    wrong = [f"{name} is {row['class']}" for name, row in good.iterrows() if row["class"] not in name]
    return first_of(
        differs("rows", len(rows), 4),
        ", ".join(wrong) or None,
        differs("class of the bad file", rows.loc["broken.png", "class"], ""),
        None if rows.loc["broken.png", "error"] else "no reason in the bad file's row",
        differs("exit status", ended.status, 1),
    )


def saw_set(folder: Path) -> None:
    for split, size, seed in (("train", 14, 0), ("test", 5, 500)):
        for name in ("falling", "rising"):
            place = folder_at(folder / "set" / split / name)
            for i in range(size):
                saw(name == "rising", seed + i).save(place / f"{i}.png")


def not_mirrored(ended: Ended) -> str | None:
    return accuracy_100(ended) or differs("recorded mirroring", ended.config()["settings"].get("mirror"), "off")


TURNED, DEEP, LARGE_BAD = "photos stored turned", "12-bit images", "large and bad photos"
CASES = (
    Case(
        TURNED,
        "test photos (JPEG) turned",
        "accuracy 100, as upright; the check counts 8",
        turned_test,
        [(*CHECK, *FOLDER, "--json", "{out}/report.json", "--out", "{out}"), TRAIN],
        turned_as_upright,
    ),
    Case(
        TURNED,
        "new photos (JPEG, PNG, WebP) turned",
        "the classes of the upright photos",
        turned_new,
        [TRAIN, PREDICT],
        named_as_files,
    ),
    Case(
        DEEP,
        "12 bits in 16-bit PNG, nothing declared",
        "refused, with the --bits that fits",
        grey_set,
        [TRAIN],
        taken,
        way=("--bits 12",),
        refuse=True,
    ),
    Case(DEEP, "the same with --bits 12", "accuracy 100", grey_set, [(*TRAIN, "--bits", "12")], accuracy_100),
    Case(DEEP, "12 bits, declared in sBIT", "accuracy 100", declared, [TRAIN], accuracy_100),
    Case(LARGE_BAD, "new photo of 108 MP", "its class", large, [TRAIN, PREDICT], named_as_files, ("--max_pixels",)),
    Case(
        LARGE_BAD,
        "a damaged file among new photos",
        "the others predicted, the bad one in the CSV, exit status 1",
        one_bad,
        [TRAIN, PREDICT],
        one_bad_reported,
        way=("--skip_bad",),
        statuses=(1,),
    ),
    Case(
        "mirroring",
        "classes that are each other's mirror, --mirror off",
        "accuracy 100, recorded",
        saw_set,
        [(*TRAIN, "--mirror", "off")],
        not_mirrored,
    ),
)

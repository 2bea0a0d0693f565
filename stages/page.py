"""The page of a run that `evaluate.py --html` writes: its tables, its figures, the images it is most wrong about."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.decode import decode_rgb
from datasets.features import holds_features
from datasets.on_disk.listed_split import ListedSplit
from engine.finish import weight_norms
from evaluation.csv_files import read_csv
from evaluation.per_class.confusion import class_table
from evaluation.per_class.page import Picture, Section, figure_picture, page_html
from evaluation.per_class.texts import group_rows, pair_rows, worst_rows
from evaluation.plots import accuracy_per_class, logits_per_class, training_curves
from evaluation.text_tables import MEASURES
from runs.checkpoint import Checkpoint
from runs.run_record import decode_options
from runs.session import LoadedModel
from utils.errors import UserError
from utils.text import shown

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

MISTAKES = 24  # images that are shown
SIDE = 160  # pixels of the longer side of an image that is shown


def run_page(loaded: LoadedModel, checkpoint: Checkpoint, records: Mapping[str, dict[str, Any]]) -> str:
    """Return the page of what evaluate.py reported: `records` of the checkpoints, the first of them with `confusion`
    and `mistakes`, whose weights the loaded model has now."""
    import pandas as pd

    data, settings = loaded.data, loaded.settings
    name, record = next(iter(records.items()))
    confusion = record["confusion"]
    accuracy = record["plain"]["per_class_accuracy"]
    classes = class_table(confusion, accuracy, data.class_names, data.class_counts, data.shot_bounds)
    what = f"{name}, plain"
    title = f"{checkpoint.path.parent.name}: {data.name}, {data.num_classes} classes"
    about = [
        f"{len(data.train)} training images of {data.num_classes} classes, {data.class_counts.max()} to "
        f"{data.class_counts.min()} a class; {len(data.test)} test images; protocol {settings.protocol}.",
        f"Checkpoint {shown(str(checkpoint.path))}, epoch {checkpoint.epoch}, sha256 {checkpoint.sha256}.",
    ]
    groups, pairs = group_rows(confusion["groups"]), pair_rows(confusion["pairs"], data.class_names)
    sections = [
        Section("What was measured", about, {"In percent but for Brier score and NLL": measures(records)}),
        Section("Figures", figures=figures(loaded, checkpoint, record)),
        Section("Worst classes", tables={what: pd.DataFrame(worst_rows(classes))}),
        Section(
            "What is taken for what",
            tables={
                f"Test images in percent, right or taken for another class, {what}": pd.DataFrame(groups),
                f"The worst pairs, {what}": pd.DataFrame(pairs),
            },
        ),
        mistakes(loaded, record["mistakes"]),
        Section("All classes", tables={what: classes}, folded=True),
    ]
    return page_html(title, sections)


def measures(records: Mapping[str, dict[str, Any]]) -> pd.DataFrame:
    """Return what was measured of the test images, a column a checkpoint and way of testing."""
    import pandas as pd

    columns = {
        f"{name}, {way}": record[way]
        for name, record in records.items()
        for way in ("plain", "flip")
        if record[way] is not None
    }
    rows = [
        {"measure": words, **{title: report.get(key) for title, report in columns.items()}}
        for key, words in MEASURES.items()
        if any(report.get(key) is not None for report in columns.values())
    ]
    return pd.DataFrame(rows)


def figures(loaded: LoadedModel, checkpoint: Checkpoint, record: dict[str, Any]) -> list[Picture]:
    """Return the figures of a run: the curves of its log, where it lies beside the checkpoint, and its classes."""
    shown_of = {
        "class_counts": loaded.data.class_counts.tolist(),
        "shot_bounds": loaded.data.shot_bounds._asdict(),
        "last": record,
        "logits": record["logits"],
        "weight_norm": weight_norms(loaded.model.fc, loaded.data.num_classes),
    }
    found = []
    log = checkpoint.path.parent / "log.csv"
    if checkpoint.content is not None and log.is_file():
        needed = ["epoch", "loss", "lr", "train_accuracy", "plain_all", "plain_many", "plain_medium", "plain_few"]
        found.append(figure_picture(training_curves(read_csv(log, needed)), "Training, epoch by epoch"))
    found.append(figure_picture(accuracy_per_class(shown_of), "Test accuracy over the training images of a class"))
    return [*found, figure_picture(logits_per_class(shown_of), "Logits Magnitude and weight norm of every class")]


def mistakes(loaded: LoadedModel, wrong: list[dict[str, Any]]) -> Section:
    """Return the section of the misclassified images that the classifier is surest of."""
    title, names = "Surest mistakes", loaded.data.class_names
    if not wrong:
        return Section(title, ["No test image is misclassified."])
    if holds_features(loaded.data):
        return Section(title, ["The data are features: there are no images to show."])
    pictures, lost, small = [], 0, True
    for each in wrong:
        picture = test_image(loaded, each["row"])
        if picture is None:
            lost += 1
            continue
        small &= max(picture.size) < SIDE
        file = io.BytesIO()
        picture.save(file, format="PNG")
        words = f"{names[each['true']]}, taken for {names[each['predicted']]} ({100 * each['probability']:.1f} %)"
        pictures.append(Picture(file.getvalue(), words + where(loaded, each["row"])))
    text = ["Test images that are taken for a wrong class with the highest probability, before any temperature."]
    text += [f"{lost} of them cannot be read any more."] * (lost > 0)
    return Section(title, text, pictures=pictures, pixels=small)


def where(loaded: LoadedModel, row: int) -> str:
    """Return the name of a test image's file, where it has one."""
    test = loaded.data.test
    return f", {shown(os.fsdecode(test.images[row]))}" if isinstance(test, ListedSplit) else ""


def test_image(loaded: LoadedModel, row: int) -> Image.Image | None:
    """Return a test image, at most `SIDE` pixels long; None for a file that cannot be read any more."""
    from PIL import Image

    test = loaded.data.test
    if not isinstance(test, ListedSplit):
        return Image.fromarray(np.ascontiguousarray(test.images[row]))
    try:
        pixels = decode_rgb(test.path(row), options=decode_options(loaded.settings))
    except UserError:
        return None
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture.thumbnail((SIDE, SIDE))
    return picture

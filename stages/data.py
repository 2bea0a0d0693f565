"""The data set of a run: loaded, checked against a checkpoint, put on the device."""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import load_dataset
from datasets.augment.normalisation import describe_constants, recorded_constants, with_given
from datasets.device_images import DeviceImages
from datasets.features import DeviceFeatures, features_data, holds_features
from datasets.identity.content import CONTENT, relabelled, with_identity
from datasets.identity.early_look import EarlyLook, images_root, looking_early
from datasets.long_tail import LongTailedData, Profile
from datasets.on_disk.folder_splits import with_written_lists
from datasets.on_disk.layouts import ListFiles, list_files
from datasets.on_disk.listed_split import ListedSplit, without_rows
from datasets.on_disk.long_tailed import with_splits
from datasets.streamed import StreamedImages
from datasets.workers import Reading, find_unreadable
from evaluation.measure import Images
from evaluation.metrics import third_bounds
from runs.checkpoint import Checkpoint
from runs.dependencies import class_places, comparable, describe_data, identity_differences, unnamed
from runs.run_record import decode_options
from settings.checks import THIRDS, parse_bounds
from settings.declare import Facet
from settings.fields import Settings, with_facet
from settings.image_sizes import image_sizes
from utils.device import Execution
from utils.distributed import from_main, is_main, launch_of
from utils.errors import UserError
from utils.text import counted, shown, tell


def loader_processes(settings: Settings, execution: Execution) -> int:
    """Return how many processes read images from disk: the cores of this process's share of the machine, at most 16; on
    a CPU, where the network needs the cores, 2."""
    if settings.workers is not None:
        return settings.workers
    cores = len(os.sched_getaffinity(0)) // launch_of().local_count
    return min(max(cores, 1), 2 if execution.device.type == "cpu" else 16)


def stage1_seed(settings: Settings) -> int:
    """Return the seed of the stage-1 run that stage 2 uses."""
    return settings.seed if settings.stage1_seed is None else settings.stage1_seed


def load_data(
    settings: Settings, holdout_seed: int, checkpoint: Checkpoint | None = None, *, report: bool = False
) -> LongTailedData:
    """Load the data set that the settings describe; `holdout_seed` is the seed of stage 1.

    Where a `checkpoint` holds the features of its images these are the data set. For a `report` the lists of a split
    that is made are not written: the training has written them. Raises UserError where `--num_class` does not fit it.
    """
    files = list_files(settings)
    hashed = is_main() and settings.identity == CONTENT and (checkpoint is None or checkpoint.features is None)
    root = images_root(settings.dataset, settings.data_dir, files) if hashed else None
    with looking_early(identity_folder(settings), root) as early:
        if checkpoint is not None and checkpoint.features is not None:
            data = load_features(checkpoint)
        else:
            data = load_images(settings, holdout_seed, files, report)
        if settings.num_class is not None and settings.num_class != data.num_classes:
            raise UserError(
                f"--num_class {settings.num_class} does not fit {data.name}, which has {data.num_classes} classes; "
                "leave it out"
            )
        return identified(data, settings, early)


def load_images(settings: Settings, holdout_seed: int, files: ListFiles, report: bool) -> LongTailedData:
    """Load the images that the settings describe, without the bad ones that may be skipped."""
    profile = Profile(
        **{name: getattr(settings, name) for name in with_facet(Facet.PROFILE)}, holdout_seed=holdout_seed
    )
    data = load_dataset(settings.dataset, profile, settings.data_dir, files)
    data = replace(data, augmentation=with_given(data.augmentation, settings.mean, settings.std, settings.mirror))
    if is_main() and not report:
        data = with_written_lists(data, Path(settings.out))
    tell_notes(data.notes)
    if settings.skip_bad > 0:
        data = from_main(without_bad(data, settings) if is_main() else data)
    return data


def identity_folder(settings: Settings) -> Path:
    """Return where what identities cost is kept."""
    return Path(settings.out) / "identity"


def tell_notes(notes: Sequence[str]) -> None:
    """Say how a data set was read; of many processes the first one says it."""
    for note in notes if is_main() else ():
        tell(note, file=sys.stderr if note.startswith("warning") else None, flush=True)


def identified(data: LongTailedData, settings: Settings, early: EarlyLook | None = None) -> LongTailedData:
    """Return a data set with its identity; of many processes the first one reads the files for all."""
    if is_main():
        share = settings.holdout > 0
        data = with_identity(data, settings.identity, identity_folder(settings), held_out_share=share, early=early)
    return replace(data, identity=from_main(data.identity))


def without_bad(data: LongTailedData, settings: Settings) -> LongTailedData:
    """Return a data set without the images that cannot be read, and list these.

    Raises UserError where they are more than `--skip_bad`, and where a class loses its last image.
    """
    workers = len(os.sched_getaffinity(0)) if settings.workers is None else settings.workers
    kept, left = [], settings.skip_bad
    for name, split in (("training", data.train), ("held-out", data.holdout), ("test", data.test)):
        assert isinstance(split, ListedSplit)
        bad = find_unreadable(split, workers, left, decode_options(settings))
        for _, reason in bad:
            tell(f"skipped, of the {name} images: {shown(reason)}")
        left -= len(bad)
        if left < 0:
            raise UserError(
                f"more than --skip_bad {settings.skip_bad} images cannot be read, the last one: {bad[-1][1]}"
            )
        kept.append(without_rows(split, [row for row, _ in bad]))
    tell(f"{counted(settings.skip_bad - left, 'image')} skipped", flush=True)
    if left == settings.skip_bad:
        return data
    train, holdout, test = kept
    made = with_splits(data, train, holdout, test, drop_empty_classes=settings.drop_empty_classes)
    tell_notes([note for note in made.notes if note not in data.notes])
    return made


def grouped_as_asked(data: LongTailedData, given: str | None) -> LongTailedData:
    """Return data with the bounds of the shot groups that `--shots` asks for, where it was given."""
    if given is None:
        return data
    bounds = third_bounds(data.class_counts) if given == THIRDS else parse_bounds(given)
    return replace(data, shot_bounds=bounds)


def load_features(checkpoint: Checkpoint) -> LongTailedData:
    """Return the features that a checkpoint holds as a data set; a UserError says what is wrong with them."""
    assert checkpoint.content is not None and checkpoint.features is not None
    names, mirror = checkpoint.content["class_names"], bool(checkpoint.content["augmentation"].get("mirror"))
    config = checkpoint.config
    try:
        data = checkpoint.content.get("data")
        if data is None:
            data = features_data(config["settings"]["dataset"], checkpoint.features, names, mirror, config["subset"])
        elif data.subset["index_sha256"] != config["subset"].get("index_sha256"):
            raise UserError("its rows are not those that its configuration names")
        data = replace(data, name=config["settings"]["dataset"], subset=config["subset"])
        if data.class_counts.tolist() != config["class_counts"]:
            raise UserError("'train_labels' are not as many of each class as its configuration says")
    except UserError as error:
        raise UserError(f"{checkpoint.path} ({checkpoint.kind}): {error}") from error
    return data


def report_overlaps(data: LongTailedData) -> None:
    """Warn of images under two labels, and of test images that are trained on."""
    if data.identity is not None and is_main():
        for line in data.identity.warnings:
            tell(f"warning: {line}", file=sys.stderr)


def in_order_of(checkpoint: Checkpoint, data: LongTailedData, settings: Settings) -> LongTailedData:
    """Return a data set with its classes in the order in which a checkpoint of ours learned them, and say so.

    Raises UserError for classes of other names, and for an order that is another one and cannot be known.
    """
    config, now = checkpoint.config, describe_data(data)
    if checkpoint.features is not None or not isinstance(config.get("class_names"), list):
        return data
    learned = config["class_names"]
    if len(learned) != data.num_classes:
        return data  # the network's size is refused, in its own words
    places = class_places(config, now)
    if places is None:
        refuse_other_classes(checkpoint, data)
        return data
    if places == list(range(data.num_classes)):
        return data
    label = next(label for label, place in enumerate(places) if place != label)
    tell(
        f"classes: in another order than {checkpoint.path} learned them, mapped onto that one (class {label} here is "
        f"class {places[label]} there)"
    )
    names = [data.class_names[places.index(place)] for place in range(data.num_classes)]
    return identified(relabelled(data, places, learned if unnamed(data.class_names) else names), settings)


def refuse_other_classes(checkpoint: Checkpoint, data: LongTailedData) -> None:
    """Raise UserError where the classes of `data` are others than a checkpoint's, or may be in another order.

    Where neither names nor contents can tell, as of runs that did not record them, the labels have to.
    """
    learned, now = checkpoint.config["class_names"], describe_data(data)
    if not unnamed(learned) and not unnamed(data.class_names):
        label = next(label for label, name in enumerate(learned) if name != data.class_names[label])
        raise UserError(
            f"{checkpoint.path} learned other classes than the ones here: class {label} is '{shown(learned[label])}' "
            f"there and '{shown(data.class_names[label])}' here; name the data that it was trained on"
        )
    if comparable(checkpoint.config, now) is not None:
        raise UserError(
            f"{checkpoint.path}: which class is which cannot be known: they have no names, and other images than "
            "then; name the data that it was trained on, or, where the labels can be trusted, add --identity names"
        )


def refuse_other_images(checkpoint: Checkpoint, data: LongTailedData, *, warn: bool = False) -> None:
    """Raise UserError where a checkpoint of ours learned from other images than those of `data`, or `warn` of it.

    Stage 2 would re-train on images that stage 1 has not seen; a report on the test images is still right.
    """
    config, now = checkpoint.config, describe_data(data)
    if checkpoint.content is None or checkpoint.features is not None:
        return
    identities, found = comparable(config, now), []
    if identities is not None:
        contents = [record[part] for record in identities for part in ("train", "holdout")]
        if any(a["content_sha256"] != b["content_sha256"] for a, b in zip(contents[:2], contents[2:], strict=True)):
            found = identity_differences(*identities, parts=("train", "holdout"))
    if warn:
        report_other_test(checkpoint, data)
    if not found and config.get("subset", data.subset) == data.subset:
        return
    why = ", ".join(found) or "their sha256 differ"
    text = f"{checkpoint.path} learned from other training images than the ones here: {why}"
    if checkpoint.settings().get("skip_bad"):
        text += f" (it was trained with --skip_bad {checkpoint.settings()['skip_bad']})"
    if not warn:
        raise UserError(f"{text}; train stage 1 on these, or use the copy of the data that it was trained on")
    affected = "only the numbers on training images are affected"
    if identities is None and unnamed(data.class_names):
        affected += ", if the labels mean the same classes: that is not known"
    tell(f"warning: {text}; {affected}", file=sys.stderr)


def report_other_test(checkpoint: Checkpoint, data: LongTailedData) -> None:
    """Say where a report is on other test images than the run's own."""
    identities = comparable(checkpoint.config, describe_data(data))
    found = [] if identities is None else identity_differences(*identities, parts=("test",))
    if found:
        tell(f"note: {checkpoint.path} was tested on another test set: {', '.join(found)}", file=sys.stderr)


def report_other_constants(checkpoint: Checkpoint, data: LongTailedData, whose: str) -> None:
    """Say where images undergo something else than those that a checkpoint of ours, `whose` file it is, learned from.

    Checkpoints of earlier versions, and of features, do not say what that was.
    """
    learned = recorded_constants(checkpoint.config.get("images"))
    if learned is None or checkpoint.features is not None or holds_features(data):
        return
    here = replace(data.augmentation, padding=learned.padding)
    if learned != here:
        text = f"learned from images of {describe_constants(learned)}; here they are of {describe_constants(here)}"
        tell(f"note: {whose} {text}", file=sys.stderr)


def device_images(data: LongTailedData, execution: Execution, settings: Settings, augment: str = "crop") -> Images:
    """Put the three splits on the device, or make ready to stream them to it.

    `augment` is what a training image undergoes (`datasets.augment.autoaugment`).
    """
    splits = {"train": data.train, "holdout": data.holdout, "test": data.test}
    if holds_features(data):
        return {name: DeviceFeatures(split, execution.device) for name, split in splits.items()}
    kinds = {"train": augment}
    if isinstance(data.train, ListedSplit):
        size, resize = image_sizes(settings, data)
        reading = Reading(loader_processes(settings, execution), decode_options(settings), crop_area=settings.crop_area)
        return {
            name: StreamedImages(
                split,
                data.augmentation,
                execution.device,
                size=size,
                resize=resize,
                augment=kinds.get(name, "crop"),
                reading=reading,
            )
            for name, split in splits.items()
            if isinstance(split, ListedSplit)
        }
    return {
        name: DeviceImages(split, data.augmentation, execution.device, kinds.get(name, "crop"))
        for name, split in splits.items()
    }

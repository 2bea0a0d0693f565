"""What is about to run, in a few lines: data, shots, identity, arithmetic, processes, folder."""

from pathlib import Path

from datasets.augment.normalisation import describe_constants
from datasets.decode import decoder_reason
from datasets.features import holds_features
from datasets.long_tail import LongTailedData
from datasets.on_disk.listed_split import ListedSplit
from evaluation.metrics import shot_groups, thirds_fill
from losses.los import optimal_gap
from methods.plan import Plan, describe_parameters
from runs.run_record import decode_options
from runs.session import LoadedModel, Session
from settings.checks import THIRDS
from settings.declare import Facet
from settings.fields import with_facet
from settings.image_sizes import image_sizes
from stages.data import loader_processes
from utils.distributed import process_count
from utils.text import shown, tell


def announce(loaded: LoadedModel, folder: Path) -> None:
    """Print what is about to run: the data with its shots and identity, the arithmetic, the folder."""
    settings, data = loaded.settings, loaded.data
    held_out = f", {len(data.holdout)} held out" if len(data.holdout) else ""
    profile = f"{settings.imb_type} profile, imbalance factor {settings.imb_ratio or data.imbalance_factor:g}"
    largest, smallest = data.class_counts.max(), data.class_counts.min()
    whole = "all images" if settings.imb_ratio is None else f"subset {settings.subset}"
    index, content = (data.subset[f"{kind}_sha256"][:16] for kind in ("index", "content"))
    tell(f"data: {data.name}, {profile}: {len(data.train)} training images{held_out}")
    tell(f"      {data.num_classes} classes of {largest} to {smallest} images ({shot_words(data, settings.shots)})")
    tell(f"      {whole}\n      index sha256 {index}, content sha256 {content}")
    tell("\n".join(loaded.execution.reasons))
    if isinstance(data.train, ListedSplit):
        size, resize = image_sizes(settings, data)
        tell(
            f"images: read from {shown(str(data.train.root))} by {loader_processes(settings, loaded.execution)} "
            f"processes, crops of {size} pixels (evaluation: shorter side {resize}), "
            f"{decode_options(settings).words()}, {decoder_reason()}"
        )
    if not holds_features(data):
        tell(f"pixels: {pixels(loaded)}")
    if process_count() > 1:
        tell(f"processes: {process_count()}, which share every batch of {settings.batch_size}")
    tell(f"protocol: {settings.protocol}; network: {settings.network}; seed: {settings.seed}")
    tell(f"run folder: {folder}", flush=True)


def shot_words(data: LongTailedData, given: str | None) -> str:
    """Return how many classes are in each shot group, with the bounds where they were `given` (`--shots`), and with
    what gives others where a group of the field's bounds is empty and need not be."""
    groups, bounds = shot_groups(data.class_counts, data.shot_bounds), data.shot_bounds
    sizes = ", ".join(f"{int(members.sum())} {name}" for name, members in groups.items())
    if given is not None:
        return f"{sizes}: many > {bounds.many_above}, few < {bounds.few_below}"
    return f"{sizes}; --shots {THIRDS}: by their sizes" if thirds_fill(data.class_counts) else sizes


def pixels(loaded: LoadedModel) -> str:
    """Return what normalises the images and whether they are mirrored, and where that is from."""
    settings = loaded.settings
    given = [f"--{name}" for name in with_facet(Facet.CONSTANTS) if getattr(settings, name) is not None]
    text = f"{describe_constants(loaded.data.augmentation)};\n        {' '.join(given) or 'those of the data set'}"
    source = loaded.source
    if source is not None and source.content is None:
        text += f"; {source.path.name} does not say what it was trained with: --mean and --std do"
    return text


def announce_method(session: Session, plan: Plan) -> None:
    """Print what stage 2 starts from, its method with the numbers, and its target."""
    stage1, (true, other) = session.checkpoint, session.target
    assert stage1 is not None
    tell(f"stage 1: {stage1.path} ({stage1.kind}), sha256 {stage1.sha256[:16]}")
    source = "" if plan.recipe.citation == "-" else f" ({plan.recipe.citation})"
    numbers = describe_parameters(plan)
    tell(f"method: {plan.method}, {plan.recipe.title}{source}{f'; {numbers}' if numbers else ''}")
    tell(f"target: {true:.6g} for the true class, {other:.6g} for each other; gap {optimal_gap(session.target):.3f}")

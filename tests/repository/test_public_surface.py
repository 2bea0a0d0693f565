"""What a program of its own may import: it imports without a warning, is typed, and says what it takes and gives."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from losses import LOSSES
from methods.closed_form import CLOSED_FORM
from models.heads import HEADS

ROOT = Path(__file__).resolve().parent.parent.parent

PUBLIC = {
    "api": ["Comparison", "InputError", "RetrainedClassifier", "compare", "retrain"],
    "datasets.pytorch": ["ClassBalancedSampler", "SplitImages"],
    "losses": ["LOSSES", "Focal", "LogitAdjustment", "build_loss", "loss_parameters"],
    "losses.los": [
        "ONE_HOT",
        "CrossEntropy",
        "Target",
        "optimal_gap",
        "rest_target",
        "smoothing_for_gap",
        "torch_target",
    ],
    "models": ["build_model"],
    "models.heads": ["HEADS", "Cosine", "DisAlign", "build_head", "head_parameters"],
    "methods.closed_form": ["CLOSED_FORM", "build_closed_form", "closed_form_parameters"],
    "datasets": ["DATASETS", "ListFiles", "LongTailedData", "Profile", "load_dataset"],
    "datasets.long_tail": ["Augmentation", "BalancedData", "Split", "long_tail_counts", "make_long_tailed"],
    "datasets.sampling": ["SAMPLERS", "class_probabilities", "sampled_order"],
    "evaluation.metrics": [
        "calibration_error",
        "class_balanced_accuracy",
        "class_wise_column_means",
        "classification_report",
        "column_means",
        "feature_variance_ratio",
        "fit_temperature",
        "prediction_report",
        "rebalance",
        "rebalanced_predictions",
        "shot_groups",
    ],
    "evaluation.class_accuracies": ["class_measures"],
    "evaluation.probabilities": ["probability_scores", "top_accuracy"],
    "evaluation.logits_magnitude": ["MagnitudeStatistics", "logits_magnitude", "summarise"],
    "utils.errors": ["UserError"],
}

USER_FILE = """
import torch
from torch import Tensor, nn

from datasets import LongTailedData, Profile, load_dataset
from datasets.sampling import class_probabilities, sampled_order
from evaluation.logits_magnitude import logits_magnitude
from evaluation.metrics import classification_report
from losses import LOSSES, build_loss, loss_parameters
from losses.los import CrossEntropy, optimal_gap, torch_target
from methods.closed_form import build_closed_form
from models import build_model
from models.heads import build_head


def main() -> None:
    data: LongTailedData = load_dataset("digits", Profile(imb_ratio=25))
    counts: list[int] = data.class_counts.tolist()
    model = build_model("resnet8", data.num_classes)
    features: Tensor = model.features(torch.rand(12, 3, 8, 8))
    labels = torch.arange(12) % data.num_classes
    linear = nn.Linear(features.shape[1], data.num_classes)
    head: nn.Linear = build_head("cosine", linear, scale=20.0)
    computed: nn.Linear = build_closed_form("tau_norm", linear, features, labels, counts, tau=1.0)
    loss: nn.Module = build_loss("ce", counts, torch_target(0.98, data.num_classes))
    value: Tensor = CrossEntropy(torch_target(0.98, data.num_classes))(head(features), labels)
    assert torch.equal(loss(head(features), labels), value)
    defaults: dict[str, float | str] = {name: value for each in LOSSES for name, value in loss_parameters(each).items()}
    gap: float = optimal_gap(torch_target(0.98, data.num_classes))
    order: Tensor = sampled_order(torch.from_numpy(data.train.labels), data.num_classes, "class_balanced", 0, 0, 10)
    shares: Tensor = class_probabilities(counts, "sqrt")
    report: dict[str, object] = classification_report(computed(features), labels, data.class_counts)
    readings: dict[str, dict[str, list[float | None]]] = logits_magnitude(computed(features), labels)
    assert len(order) == len(data.train) and abs(float(shares.sum()) - 1) < 1e-9 and gap > 0
    print(sorted(report), sorted(readings), defaults["tau"])


main()
"""


def members() -> Iterator[tuple[str, Any]]:
    """Every public function and class, by its full name; the losses, heads and closed forms of the tables too."""
    for module, names in PUBLIC.items():
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if inspect.isfunction(value) or inspect.isclass(value):
                yield f"{module}.{name}", value
    for title, table in (("losses", LOSSES), ("models.heads", HEADS), ("methods.closed_form", CLOSED_FORM)):
        yield from ((f"{title}: {name}", value) for name, value in table.items())


MEMBERS = dict(members())


def run_python(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, with nothing but this repository on the path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, timeout=300)


def test_a_program_of_its_own_runs_without_a_warning(tmp_path: Path) -> None:
    everything = "".join(f"from {module} import {', '.join(names)}\n" for module, names in PUBLIC.items())
    (tmp_path / "program.py").write_text(everything + USER_FILE)
    outcome = run_python("-W", "error", "program.py", folder=tmp_path)
    assert outcome.returncode == 0 and outcome.stderr == "", outcome.stderr
    assert (
        outcome.stdout.startswith("['all', 'brier', 'class_balanced', ")
        and "['column', 'row', 'uncentred']" in outcome.stdout
    )


def test_a_program_of_its_own_is_checked_by_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    everything = "".join(f"from {module} import {', '.join(names)}\n" for module, names in PUBLIC.items())
    (tmp_path / "program.py").write_text(everything + USER_FILE)
    gap = "optimal_gap(torch_target(0.98, data.num_classes))"
    wrong = USER_FILE.replace("Profile(imb_ratio=25)", "profile=3").replace(gap, "optimal_gap(0.98)")
    (tmp_path / "wrong.py").write_text(wrong.replace("import LongTailedData,", "import Nothing,"))
    skipped = "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "torchvision", "numpy", "PIL"))
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\nfollow_imports = silent\n{skipped}")
    outcome = run_python("-m", "mypy", "program.py", "wrong.py", folder=tmp_path)
    assert "program.py" not in outcome.stdout, outcome.stdout
    wrong_name = 'Module "datasets" has no attribute "Nothing"'
    wrong_type = 'Argument "profile" to "load_dataset" has incompatible type "int"; expected "Profile"'
    wrong_target = 'Argument 1 to "optimal_gap" has incompatible type'
    for fault in (wrong_name, wrong_type, wrong_target):
        assert fault in outcome.stdout, outcome.stdout


SHAPE = re.compile(r"\([A-Za-z],( ?[\w +]+,?)*\)|scalar|`shape`")
SOURCE = re.compile(r"\b(19|20)\d\d\b|arXiv")


def doc(value: Any) -> str:
    return inspect.getdoc(value) or ""


@pytest.mark.parametrize("name", MEMBERS)
def test_what_is_public_is_described(name: str) -> None:
    assert len(doc(MEMBERS[name])) > 20 and doc(MEMBERS[name])[-1] in ".)", name


def methods_of(value: Any) -> list[Any]:
    """The function itself, or the public methods that a class defines, its constructor included."""
    if inspect.isfunction(value):
        return [value]
    functions = [method for method in vars(value).values() if inspect.isfunction(method)]
    written = [method for method in functions if method.__code__.co_filename != "<string>"]  # not by `dataclass`
    return [method for method in written if method.__name__ == "__init__" or not method.__name__.startswith("_")]


@pytest.mark.parametrize("name", MEMBERS)
def test_tensors_have_shapes(name: str) -> None:
    """A class describes its constructor; each method describes its own arguments."""
    value = MEMBERS[name]
    for method in methods_of(value):
        text = str(inspect.signature(method))
        if "Tensor" in text or "ndarray" in text:
            described = doc(value) if method.__name__ == "__init__" else doc(method)
            assert SHAPE.search(described), f"{name}.{method.__name__}"


@pytest.mark.parametrize("name", MEMBERS)
def test_errors_are_named(name: str) -> None:
    value = MEMBERS[name]
    for method in methods_of(value):
        source = inspect.getsource(method)
        if "raise UserError" in source or re.search(r"\bcheck_\w+\(", source):
            assert "UserError" in doc(method) + doc(value), f"{name}.{method.__name__}"


MEASURES = [
    name for name in MEMBERS if name.startswith(("evaluation.", "losses: ", "models.heads: ", "methods.closed_form: "))
]


@pytest.mark.parametrize(
    "name", [name for name in MEASURES if name not in ("models.heads: linear", "evaluation.logits_magnitude.summarise")]
)
def test_losses_heads_and_metrics_name_their_source(name: str) -> None:
    assert SOURCE.search(doc(MEMBERS[name])), name

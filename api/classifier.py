"""A re-trained classifier as an estimator of scikit-learn's kind, and one call that fits it."""

import copy
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from api.arrays import Array, InputError, class_numbers, column_names, feature_rows, known_labels, label_row
from api.conventions import Estimator
from api.training import (
    ALLOWED,
    BATCHES,
    PROBE_DECAY,
    Rows,
    ScaledHead,
    Steps,
    check_numbers,
    choose_device,
    fit_heads,
    make_plan,
)
from engine.many_heads import Trained
from evaluation.metrics import Report, classification_report, fit_temperature
from methods.plan import Plan
from models.neighbours import Neighbours
from utils.errors import DivergedError, UserError

BLOCK = 1 << 24  # logits, or features that they are made of, that are handled together
DECAY = 1e-5  # of the linear probe, as `main_stage1.py --features` has it


@contextmanager
def in_python() -> Iterator[None]:
    """Raise InputError for what is refused below, with hyper-parameters under their names in Python."""
    try:
        yield
    except (InputError, DivergedError):
        raise
    except UserError as error:
        text = re.sub(r"--method (\w+)", r"the method '\1'", str(error))
        raise InputError(re.sub(r"--(?=\w)", "", text)) from error


class RetrainedClassifier(Estimator):
    """A classifier re-trained on features for long-tailed data, by any method of `methods.recipes`.

    By default it is label over-smoothing (LOS; Sun et al., ICLR 2025, arXiv 2403.00250) from a linear probe. `fit`
    brings the features to one scale first, so that the published learning rates hold for any.

    - `method`: a row of `methods.recipes.RECIPES`;
    - `epochs`, `learning_rate`, `label_smooth`: None for the method's own. Below 100 classes over-smoothing has the gap
      of 0.98 at 100 classes unless `label_smooth` is given (`api.training.default_smoothing`);
    - `parameters`: the method's other numbers by name, as `{"tau": 1.5}`, and `weight_decay`, `sampler`, `max_norm`,
      `reinit`, `schedule`, `ema`, `batch_size` (64), `momentum` (0.9), `probe_decay` (1e-5; of the probe);
    - `random_state`: the seed, a whole number of at least 0, of everything that is drawn;
    - `device`: "cpu", "cuda", or "auto" for CUDA where there is one. What is fitted lies on the CPU.

    After `fit` it has `classes_` (K,), `class_counts_` (K,), `n_features_in_`, `head_` (a module that maps features
    (B, d) to logits (B, K)), `plan_` (every number that was used) and `temperature_`, which is 1 without held-out
    rows and where they ask for no finite one.
    """

    head_: ScaledHead
    plan_: Plan
    temperature_: float
    classes_: np.ndarray
    class_counts_: np.ndarray
    n_features_in_: int
    feature_names_in_: np.ndarray

    def __init__(
        self,
        method: str = "los",
        epochs: int | None = None,
        learning_rate: float | None = None,
        label_smooth: float | None = None,
        parameters: Mapping[str, Any] | None = None,
        random_state: int = 0,
        device: str = "auto",
    ) -> None:
        self.method = method
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.label_smooth = label_smooth
        self.parameters = parameters
        self.random_state = random_state
        self.device = device

    def fit(
        self,
        X: Array,  # scikit-learn's name
        y: Array,
        held_out: tuple[Array, Array] | None = None,
        start: tuple[Array, Array] | Array | None = None,
    ) -> Self:
        """Re-train on features X (N, d) with labels y (N,) of any kind; return the classifier itself.

        `held_out` are features (M, d) and labels (M,) that neither the features' model nor this classifier learns from:
        they give the temperature, and some methods (`offsets`) are fitted on them. `start` is a linear classifier to
        start from, weight (K, d) or (weight, bias (K,)), its rows in the order of the sorted classes; without it one is
        fitted. Raises InputError, a ValueError, for what cannot be, and DivergedError where a loss stops being finite.
        """
        with in_python():
            rows, classes = read_rows(X, y, held_out, start)
            fit_together([self], rows, classes)
        self._note_columns(X)
        return self

    def _note_columns(self, features: Array) -> None:
        names = column_names(features)
        if names is not None:
            self.feature_names_in_ = names
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _plan(self, num_classes: int) -> tuple[Plan, Steps]:
        """Return the plan, and how steps are made."""
        if not isinstance(self.method, str):
            raise InputError(f"method must be the name of one, not {self.method!r}")
        if not isinstance(self.parameters, Mapping | None):
            raise InputError(f"parameters must be a dictionary, not {self.parameters!r}")
        seed = self.random_state
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**32:
            raise InputError(f"random_state must be a whole number of at least 0 and below 2**32, not {seed!r}")
        numbers = {"epochs": self.epochs, "learning_rate": self.learning_rate, "label_smooth": self.label_smooth}
        further = {str(name): value for name, value in (self.parameters or {}).items()}
        if twice := sorted(numbers.keys() & further):
            raise InputError(f"parameters must not name {', '.join(twice)}: it has an argument of its own")
        check_numbers({name: value for name, value in {**numbers, **further}.items() if name in ALLOWED})
        plan = make_plan(self.method, num_classes, {**numbers, **further})
        common = {**BATCHES, PROBE_DECAY: DECAY}
        common |= {name: further[name] for name in common if further.get(name) is not None}
        batch_size, momentum, decay = common.values()
        return plan, Steps(batch_size, momentum, decay, int(seed), choose_device(self.device))

    def _take(self, head: ScaledHead, trained: Trained, rows: Rows, classes: np.ndarray) -> None:
        """Keep what was fitted. Raises DivergedError where a loss stopped being finite."""
        if trained.diverged:
            raise DivergedError(
                f"the loss of the method '{self.method}' is not finite from {trained.diverged} on; try a lower "
                "learning_rate"
            )
        self.head_, self.plan_, self.classes_ = head, trained.plan, classes
        self.class_counts_ = np.asarray(rows.class_counts)
        self.n_features_in_ = rows.features.shape[1]
        self.temperature_ = 1.0
        if rows.held_out is not None:
            self.temperature_ = fit_temperature(logits_of(head, rows.held_out[0]), rows.held_out[1]) or 1.0

    def logits(self, X: Array) -> Tensor:
        """Return the logits (N, K) float64 of features X (N, d), on the CPU. Raises InputError for other shapes."""
        self._require_fitted()
        rows = feature_rows(X)
        if rows.shape[1] != self.n_features_in_:
            raise InputError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        names = column_names(X)
        if names is not None and hasattr(self, "feature_names_in_") and list(names) != list(self.feature_names_in_):
            raise InputError("The feature names should match those that were passed during fit, in their order")
        return logits_of(self.head_, torch.from_numpy(rows))

    def decision_function(self, X: Array) -> np.ndarray:
        """Return the logits (N, K) of features X (N, d); of two classes the difference (N,) of the second and first."""
        logits = self.logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Array) -> np.ndarray:
        """Return the probabilities (N, K) float64 of the classes, softmax(logits / `temperature_`).

        Those of LOS are flat by design unless held-out rows gave a temperature.
        """
        return (self.logits(X) / self.temperature_).softmax(dim=1).numpy()

    def predict(self, X: Array) -> np.ndarray:
        """Return the most probable class (N,) of features X (N, d)."""
        numbers = self.logits(X).argmax(dim=1).numpy()
        return self.classes_[numbers]

    def score(self, X: Array, y: Array) -> float:
        """Return the share of features X (N, d) whose class is y (N,), as scikit-learn's classifiers do."""
        predicted = self.predict(X)
        return float(np.mean(predicted == label_row(y, len(predicted))))

    def report(self, X: Array, y: Array) -> Report:
        """Return `evaluation.metrics.classification_report` on features X (N, d) with labels y (N,).

        It has accuracies in percent (`all`, `many`, `medium`, `few` by the training rows of each class, `harmonic`,
        `worst`, ...) and what the probabilities at the temperature are worth (`nll`, `ece`, ...). Raises InputError for
        a label that no training row has.
        """
        logits = self.logits(X)
        labels = known_labels(label_row(y, len(logits)), self.classes_)
        scaled = logits / self.temperature_
        return classification_report(scaled, torch.from_numpy(labels), self.class_counts_)


@torch.no_grad()
def logits_of(head: ScaledHead, features: Tensor) -> Tensor:
    """Return the logits (N, K) float64 of features (N, d), a part at a time.

    In double precision they do not depend on which rows stand together. Neighbours convert what they keep themselves.
    """
    exact = head if isinstance(head.head, Neighbours) else copy.deepcopy(head).double()
    rows = max(BLOCK // max(features.shape[1], head.head.out_features), 1)
    return torch.cat([exact(part.double()) for part in features.split(rows)])


def read_rows(
    features: Array, labels: Array, held_out: tuple[Array, Array] | None, start: tuple[Array, Array] | Array | None
) -> tuple[Rows, np.ndarray]:
    """Return what is fitted on, and the classes (K,). Raises InputError for what cannot be."""
    rows = feature_rows(features)
    classes, numbers = class_numbers(label_row(labels, len(rows)))
    width, counts = rows.shape[1], np.bincount(numbers, minlength=len(classes)).tolist()
    held = None
    if held_out is not None:
        held_rows = feature_rows(held_out[0], "held_out features")
        if held_rows.shape[1] != width:
            raise InputError(f"the held_out features have {held_rows.shape[1]} columns, X has {width}")
        held_labels = label_row(held_out[1], len(held_rows), "held_out labels")
        held_numbers = known_labels(held_labels, classes, "held_out labels")
        held = (torch.from_numpy(held_rows), torch.from_numpy(held_numbers))
    given = None if start is None else read_start(start, len(classes), width)
    return Rows(torch.from_numpy(rows), torch.from_numpy(numbers), counts, held, given), classes


def read_start(start: tuple[Array, Array] | Array, classes: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the weight (K, d) and bias (K,) of a linear classifier that is given, with or without a bias."""
    weight, bias = start if isinstance(start, tuple) else (start, np.zeros(classes))
    rows = feature_rows(weight, "the weight of start")
    column = feature_rows(np.reshape(bias, (-1, 1)), "the bias of start")[:, 0]
    if rows.shape != (classes, width) or len(column) != classes:
        raise InputError(
            f"start needs a weight of {classes} x {width} and a bias of {classes} numbers, not {rows.shape[0]} x "
            f"{rows.shape[1]} and {len(column)}"
        )
    return torch.from_numpy(rows), torch.from_numpy(column)


def fit_together(classifiers: list[RetrainedClassifier], rows: Rows, classes: np.ndarray) -> None:
    """Fit classifiers on the same rows, those together whose steps are alike (`engine.many_heads`)."""
    asked = [each._plan(rows.num_classes) for each in classifiers]
    groups: dict[Steps, list[int]] = {}
    for place, (_, steps) in enumerate(asked):
        groups.setdefault(steps, []).append(place)
    for steps, places in groups.items():
        fitted = fit_heads(rows, [asked[place][0] for place in places], steps)
        for place, (head, trained) in zip(places, fitted, strict=True):
            classifiers[place]._take(head, trained, rows, classes)


def retrain(
    features: Array,
    labels: Array,
    method: str = "los",
    *,
    held_out: tuple[Array, Array] | None = None,
    start: tuple[Array, Array] | Array | None = None,
    **numbers: Any,
) -> RetrainedClassifier:
    """Return a classifier re-trained on features (N, d) with labels (N,).

    `held_out` and `start` are those of `RetrainedClassifier.fit`, `numbers` the other arguments of its constructor, or
    entries of its `parameters`. Raises InputError for what cannot be.
    """
    return make_classifier(method, numbers).fit(features, labels, held_out=held_out, start=start)


def make_classifier(method: str, numbers: Mapping[str, Any]) -> RetrainedClassifier:
    """Return a classifier that is not fitted yet; numbers that are no arguments go to its `parameters`."""
    known = RetrainedClassifier._parameters()
    own = {name: value for name, value in numbers.items() if name in known and name != "method"}
    further = {name: value for name, value in numbers.items() if name not in own}
    if further:
        own["parameters"] = {**(own.get("parameters") or {}), **further}
    return RetrainedClassifier(method, **own)

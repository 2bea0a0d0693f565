"""Hyper-parameters of losses and heads: their names, their defaults, which values each may take.

Defaults stand in the constructors, as keyword-only parameters.
"""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

from utils.errors import UserError


class Range(NamedTuple):
    """Numbers from `low` to `high`; `ends` says with a bracket that an end belongs to them, with a parenthesis not."""

    low: float
    high: float
    ends: str = "[]"

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        number: Any = value  # as it is: an integer may be too large for a float; comparisons with NaN are false
        above = number >= self.low if self.ends[0] == "[" else number > self.low
        return bool(above and (number <= self.high if self.ends[1] == "]" else number < self.high))

    def lower_end(self) -> str:
        """Return the lower end in words."""
        return f"{'at least' if self.ends[0] == '[' else 'above'} {self.low:g}"

    def __str__(self) -> str:
        if self.high == float("inf"):
            return f"a finite number {self.lower_end()}"
        high = "at most" if self.ends[1] == "]" else "below"
        return f"{self.lower_end()} and {high} {self.high:g}"


LOSS_ARGUMENTS = ("class_counts", "target")  # what the constructor of a loss can ask for beside its hyper-parameters
SMOOTHING = Range(0, 1, "[)")  # values of --label_smooth; `losses.los.rest_target` takes fewer
GAP = Range(1e-6, 100)  # values of --loma_target
TEMPERATURES = Range(1e-4, 1e4)  # of logits: those that can be given and fitted


class Hyperparameter(NamedTuple):
    """A hyper-parameter: what it is, in words, and the values that it may take, a range or a choice of words.

    `before` is what it was in runs that do not record it, being older than it; None where that is its default. One that
    is not `listed` stands in `--help-all` alone.
    """

    help: str
    values: Range | tuple[str, ...]
    before: str | None = None
    listed: bool = True


# Every hyper-parameter of losses, heads and closed forms, declared once: setting, flag, help and check follow from its
# line. Run folders name those that differ from the default in this order, so a new one goes to the end.
# Upper ends lie far beyond any use; they keep every constant, and a norm to the power of tau, finite in float32.
HYPERPARAMETERS: dict[str, Hyperparameter] = {
    "tau": Hyperparameter("weight of the class prior, or exponent of the weight norm", Range(0, 10)),
    "gamma": Hyperparameter("exponent of focal loss, or of vector scaling's factors", Range(0, 100)),
    "beta": Hyperparameter("effective number of samples: (1 - beta^n) / (1 - beta)", Range(0, 1, "[)")),
    "rho": Hyperparameter("exponent of inverse class frequencies as weights", Range(0, 100)),
    "max_margin": Hyperparameter("LDAM's largest margin, before scaling", Range(0, 100)),
    "scale": Hyperparameter("scale of a cosine classifier", Range(0, 1000, "(]")),
    "noise": Hyperparameter("largest width of GCL's clouds, before scaling", Range(0, 100)),
    "smooth_head": Hyperparameter("label-aware smoothing of the largest class", Range(0, 1, "[)")),
    "smooth_tail": Hyperparameter("label-aware smoothing of the smallest class", Range(0, 1, "[)")),
    "lambda1": Hyperparameter("weight of GALA's margin for the class of the logit", Range(0, 100)),
    "lambda2": Hyperparameter("weight of GALA's margin for the true class", Range(0, 100)),
    "gala_margin": Hyperparameter("GALA's margins: paper (of other classes), released (of all)", ("paper", "released")),
    "gala_accumulation": Hyperparameter("GALA's gradients: single (sums), double (sums of sums)", ("single", "double")),
    "cb_mean": Hyperparameter("cb_ce's mean: over batch (Cui) or weight (LDAM)", ("batch", "weight")),
    "las_target": Hyperparameter("las: eps / (K - 1) (paper), eps / K (released)", ("paper", "released"), "paper"),
    "gcl_loss": Hyperparameter("GCL: paper (clouds), released (margin, focus too)", ("paper", "released"), "paper"),
    "norm_bias": Hyperparameter("bias of normalised rows: keep, drop, centre", ("keep", "drop", "centre"), "drop"),
    "anchor": Hyperparameter("weight of the squared distance to stage 1 (ridge: to 0)", Range(1e-9, 1e9)),
    "start_tau": Hyperparameter("weight of the class prior in proximal LOS's start", Range(0, 10), listed=False),
    "distance": Hyperparameter("what proximal LOS's anchor measures", ("weights", "logits", "fisher"), listed=False),
    "fit_on": Hyperparameter("features that proximal LOS is fitted on", ("plain", "views"), listed=False),
}


def check_parameter(name: str, value: float | str) -> None:
    """Refuse a value that the hyper-parameter `name` cannot take, NaN included, with a `UserError`."""
    values = HYPERPARAMETERS[name].values
    if value not in values:
        may = values if isinstance(values, Range) else f"one of {', '.join(values)}"
        raise UserError(f"--{name} must be {may}, not {value}")


def keyword_parameters(
    kind: str, name: str, table: Mapping[str, Callable[..., Any]], shared: Sequence[str] | None = None
) -> dict[str, float | str]:
    """Return the keyword-only parameters of the entry `name` of `table` with their defaults.

    Raises UserError for an unknown name (`kind` says what it should be a name of), for a hyper-parameter that
    `HYPERPARAMETERS` lacks or that has no default, since no flag could set it, and for another parameter that is not
    among the `shared` ones, where these are given.
    """
    own = [item for item in constructor_parameters(kind, name, table).values() if item.kind is item.KEYWORD_ONLY]
    for parameter in own:
        if parameter.name not in HYPERPARAMETERS:
            raise UserError(
                f"the {kind} '{name}' has a hyper-parameter '{parameter.name}' that utils.parameters.HYPERPARAMETERS "
                "does not declare; give it a line there"
            )
        if parameter.default is parameter.empty:
            raise UserError(f"the hyper-parameter '{parameter.name}' of the {kind} '{name}' needs a default value")
    for parameter_name in constructor_parameters(kind, name, table) if shared is not None else ():
        if parameter_name not in (*(shared or ()), *(item.name for item in own)):
            raise UserError(
                f"the {kind} '{name}' takes '{parameter_name}', which is neither {' nor '.join(shared or ())}; a "
                "hyper-parameter stands behind the * of its constructor"
            )
    return {parameter.name: parameter.default for parameter in own}


def constructor_parameters(
    kind: str, name: str, table: Mapping[str, Callable[..., Any]]
) -> Mapping[str, inspect.Parameter]:
    """Return all parameters of the entry `name` of `table`; a UserError lists the known names."""
    if name not in table:
        raise UserError(f"unknown {kind} '{name}'; known: {', '.join(table)}")
    return inspect.signature(table[name]).parameters


def check_given(kind: str, name: str, given: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse with a UserError a parameter that is not among the `known` ones, or a value that it cannot take."""
    for parameter, value in given.items():
        if parameter not in known:
            has = ", ".join(f"--{own}" for own in known) or "no parameters"
            raise UserError(f"the {kind} '{name}' has no parameter --{parameter}; it has {has}")
        check_parameter(parameter, value)


def check_counts(class_counts: Sequence[int], num_classes: int | None = None) -> None:
    """Refuse with a UserError class counts that are not whole numbers of at least 1, two or more, or `num_classes`."""
    try:
        whole = [operator.index(count) for count in class_counts]
    except TypeError:
        raise UserError("class_counts must be whole numbers, the training images of each class") from None
    if len(whole) < 2 or min(whole) < 1:
        raise UserError("class_counts must name at least two classes and at least one training image of each")
    if num_classes is not None and len(whole) != num_classes:
        raise UserError(f"class_counts has {len(whole)} entries for a classifier of {num_classes} classes")

"""Hyper-parameters of losses and heads: their names, their defaults, which values each may take.

Defaults stand in the constructors, as keyword-only parameters. A leaf: every room may import it.
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
        number = float(value)  # every comparison with NaN is false
        above = number >= self.low if self.ends[0] == "[" else number > self.low
        return above and (number <= self.high if self.ends[1] == "]" else number < self.high)

    def __str__(self) -> str:
        low = "at least" if self.ends[0] == "[" else "above"
        high = "at most" if self.ends[1] == "]" else "below"
        return f"{low} {self.low:g} and {high} {self.high:g}"


# Upper ends lie far beyond any use; they keep every constant, and a norm to the power of tau, finite in float32.
PARAMETER_RANGES = {
    "gamma": Range(0, 100),
    "beta": Range(0, 1, "[)"),
    "rho": Range(0, 100),
    "tau": Range(0, 10),
    "max_margin": Range(0, 100),
    "scale": Range(0, 1000, "(]"),
    "smooth_head": Range(0, 1, "[)"),
    "smooth_tail": Range(0, 1, "[)"),
    "noise": Range(0, 100),
    "lambda1": Range(0, 100),
    "lambda2": Range(0, 100),
}

PARAMETER_CHOICES = {"gala_margin": ("paper", "released"), "gala_accumulation": ("single", "double")}


def check_parameter(name: str, value: float | str) -> None:
    """Refuse a value that the hyper-parameter `name` cannot take, NaN included, with a `UserError`."""
    if name in PARAMETER_CHOICES:
        if value not in PARAMETER_CHOICES[name]:
            raise UserError(f"--{name} must be one of {', '.join(PARAMETER_CHOICES[name])}, not {value}")
    elif value not in PARAMETER_RANGES[name]:
        raise UserError(f"--{name} must be {PARAMETER_RANGES[name]}, not {value}")


def keyword_parameters(kind: str, name: str, table: Mapping[str, Callable[..., Any]]) -> dict[str, float | str]:
    """Return the keyword-only parameters of the entry `name` of `table` with their defaults.

    Raises UserError for an unknown name: `kind` says what it should be a name of.
    """
    own = constructor_parameters(kind, name, table).values()
    return {parameter.name: parameter.default for parameter in own if parameter.kind is parameter.KEYWORD_ONLY}


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

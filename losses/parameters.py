"""The hyper-parameters of all losses: which values each may take. Defaults stand in the losses' constructors."""

from numbers import Real
from typing import NamedTuple

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

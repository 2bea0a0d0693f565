"""What a comparison of builds runs: the ways of a case."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Way:
    """A command of a case, in this build or in the `earlier` one; where it `prints`, seconds are what it prints."""

    name: str
    words: tuple[str, ...]
    earlier: bool = False
    prints: bool = False
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Ways of one thing, and the ratio that the last is to keep below; the first is what all are compared with."""

    name: str
    ways: tuple[Way, ...]
    target: float
    counted: str

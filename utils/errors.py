"""The one-line error for everything that a user can cause."""

from utils.text import one_line


class UserError(Exception):
    """What is wrong and what to do about it, in one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class DivergedError(UserError):
    """A training whose loss or logits stopped being finite: of many in a table, the others can go on."""

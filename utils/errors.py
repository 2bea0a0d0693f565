"""The one-line error for everything that a user can cause. A leaf: every room may import it."""

LONGEST = 2000  # characters of a message, whatever long flags and strangers' files put into it


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return text as one line that any terminal shows as it is: what is not printable is escaped, the end cut off."""
    line = " ".join(text.split())
    line = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line[:longest])
    return line if len(line) < longest else f"{line[: longest - 3]}..."


class UserError(Exception):
    """What is wrong and what to do about it, in one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class DivergedError(UserError):
    """A training whose loss or logits stopped being finite: of many in a table, the others can go on."""

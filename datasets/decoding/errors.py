"""What can be wrong with an image file, in one line that names it."""

from utils.errors import UserError
from utils.text import one_line, utf8_text


class Unreadable(UserError):
    """An image file that cannot be decoded."""


class TooLarge(Unreadable):
    """An image of more pixels than are decoded."""


class UnknownRange(Unreadable):
    """An image of 16-bit pixels of which few are used, and it is not known how many."""


class BeyondRange(Unreadable):
    """An image of 16-bit pixels that have more bits than they are said to have."""


def unreadable(path: str, why: str, kind: type[Unreadable] = Unreadable) -> Unreadable:
    """Return the error that names an image file and what is wrong with it, whatever bytes its name is made of."""
    return kind(f"{words_before(path)} {why}")


def reason_alone(path: str, line: str) -> str:
    """Return why an image file cannot be read, of the line that `unreadable` makes: without its name."""
    return line.removeprefix(one_line(words_before(path))).lstrip()


def words_before(path: str) -> str:
    """Return how the line on an unreadable image begins."""
    return f"cannot read the image {utf8_text(path)}:"


def too_many_pixels(path: str, limit: int | None) -> Unreadable:
    """Return the error of an image above the limit of pixels."""
    why = f"it has more than {limit or 0:,} pixels, the limit for files that can be trusted; --max_pixels N raises it"
    return unreadable(path, why, TooLarge)

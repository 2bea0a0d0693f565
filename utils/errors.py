"""The one-line error for everything that a user can cause, and memory that was not enough."""

import contextlib
import errno
from collections.abc import Callable, Iterator

from utils.text import one_line


class UserError(Exception):
    """What is wrong and what to do about it, in one line."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class DivergedError(UserError):
    """A training whose loss or logits stopped being finite: of many in a table, the others can go on."""


# How libraries that have no exception of their own for it say that memory, of the host or a device, was not enough.
WORDS_FOR_NO_MEMORY = (
    "out of memory",
    "not enough memory",
    "DefaultCPUAllocator",
    "bad_alloc",
    "bad alloc",
    "ALLOC_FAILED",
    "Cannot allocate memory",
    "can't allocate memory",
    "memory allocation of",
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Tell whether an error, or one that it was raised from, is of memory that was not enough."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            return True
        by_library = not isinstance(error, UserError | OSError)
        if by_library and any(words in str(error) for words in WORDS_FOR_NO_MEMORY):
            return True
        error = error.__cause__
    return False


def no_memory(what: str, lower: str) -> UserError:
    """Return the line for memory that was not enough for `what`; `lower` are the flags that make it less."""
    return UserError(f"out of memory, with {what}; lower {lower}")


@contextlib.contextmanager
def memory_for(what: str | Callable[[], str], lower: str) -> Iterator[None]:
    """Raise UserError where what happens inside needs more memory than there is, of the host or of a device.

    The innermost of these says most, and is believed. A `what` that takes time to say may be a function.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_out_of_memory(error):
            raise
        raise no_memory(what if isinstance(what, str) else what(), lower) from error

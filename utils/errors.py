"""The one-line error for everything that a user can cause. A leaf: every room may import it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """What is wrong and what to do about it, in one line."""


class DivergedError(UserError):
    """A training whose loss or logits stopped being finite: of many in a table, the others can go on."""


def run_command(command: Callable[[], object], interrupted: str = "") -> None:
    """Run a script's `main` and turn what a user can cause into an exit status.

    Status 2 with one line for a `UserError`, 130 for Ctrl-C (the convention for SIGINT), when `interrupted` says what
    it leaves behind. Anything else is a defect of ours and keeps its traceback.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted{interrupted}", file=sys.stderr)
        sys.exit(130)

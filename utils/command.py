"""How a command ends: its exit status, and one line where a user is to blame. It imports leaves alone: every room may
import it."""

import os
import sys
import time
from collections.abc import Callable

from utils.distributed import disconnect
from utils.errors import UserError

# Seconds in which torchrun ends the other processes once one has failed: of all that fail alike only the first speaks.
TURN = 3


def run_command(command: Callable[[], object], interrupted: str = "") -> None:
    """Run a script's `main` and turn what a user can cause into an exit status.

    Status 2 with one line for a `UserError`, 130 for Ctrl-C (the convention for SIGINT), when `interrupted` says what
    it leaves behind. Anything else is a defect of ours and keeps its traceback.
    """
    try:
        command()
        disconnect()
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(TURN)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"interrupted{interrupted}", file=sys.stderr)
        sys.exit(130)

"""A process that runs commands of one checkout, each in a fork of its own: Python and its packages start only once.

    python child.py CHECKOUT

A line of standard input is a command as JSON: `words` behind `python`, the working `folder`, the file `out` of both
streams, in their order.
The answer is a line with the exit status and the seconds that the command took.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback
from typing import Any

LOADED = ("main_stage1", "main_stage2", "evaluate", "predict")  # with what they import
LONGEST = 300  # seconds after which a command is ended


def run(words: list[str], checkout: str) -> None:
    """Run what stands behind `python`: a script of the checkout, a module after `-m`, or code after `-c`."""
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<code>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(os.path.join(checkout, words[0]), run_name="__main__")


def run_and_exit(command: dict[str, Any], checkout: str) -> None:
    """Run a command in this process and end it with the status that Python would have."""
    signal.alarm(LONGEST)
    os.chdir(command["folder"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    out = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for number in (1, 2):
        os.dup2(out, number)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    status = 0
    try:
        run(command["words"], checkout)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def serve(checkout: str) -> None:
    """Answer commands until standard input ends."""
    sys.path[0] = checkout
    for name in LOADED:
        importlib.import_module(name)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        start = time.monotonic()
        process = os.fork()
        if process == 0:
            run_and_exit(json.loads(line), checkout)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        print(json.dumps({"status": status, "seconds": time.monotonic() - start}), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])

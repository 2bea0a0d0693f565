"""The one command of an installation, which starts the scripts and tools by name: `longtail-los main_stage2 --help`.

In a clone `python -m tools.installation.console main_stage2 ...` is the same as `python main_stage2.py ...`.
"""

import runpy
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from utils.command import run_command
from utils.errors import UserError
from utils.text import shown, tell

SCRIPTS = ("main_stage1", "main_stage2", "evaluate", "predict", "reproduce")
TOOLS = ("check_dataset", "compare", "export_features", "export_model", "extract", "release")
HOME = (__package__ or "tools.installation").removesuffix("tools.installation")  # what stands before the name of a room
USAGE = "usage: longtail-los NAME [flags], NAME --help for its flags"


def find_module(argv: Sequence[str]) -> str:
    """Return the module that the first word of a command line names; a UserError lists them where it names none."""
    name = argv[0].removesuffix(".py").removeprefix("tools.") if argv else ""
    module = f"{HOME}{name}" if name in SCRIPTS else f"{HOME}tools.{name}"
    if name not in (*SCRIPTS, *TOOLS) or find_spec(module) is None:
        what = f"'{shown(argv[0])}' is none of the commands" if argv else "which command"
        raise UserError(f"{what}: {', '.join((*SCRIPTS, *TOOLS))}; {USAGE}")
    return module


def main() -> None:
    """Run the script or tool that the command line names, as Python runs it."""
    argv = sys.argv[1:]
    if argv[:1] in (["--help"], ["-h"]):
        tell(f"{USAGE}\n\nscripts: {', '.join(SCRIPTS)}\ntools: {', '.join(TOOLS)}")
        return
    found: list[str] = []
    run_command(lambda: found.append(find_module(argv)))
    sys.argv = [argv[0], *argv[1:]]
    runpy.run_module(found[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

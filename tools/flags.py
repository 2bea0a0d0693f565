"""Write docs/flags.md, the flags of main_stage1.py, main_stage2.py and evaluate.py, from their declarations.

    python -m tools.flags

A test compares the page with them.
"""

from collections.abc import Sequence
from pathlib import Path

from settings.command_line import flag_help, used_flags
from settings.declare import EVERYWHERE, Facet, Flag, Group
from settings.fields import FLAGS
from utils.arguments import CommandParser
from utils.command import run_command
from utils.files import make_folder, write_text
from utils.parameters import HYPERPARAMETERS, Range
from utils.text import tell

PAGE = Path(__file__).parent.parent / "docs" / "flags.md"
BEYOND = 1e6
SHORT = {"main_stage1": "1", "main_stage2": "2", "evaluate": "E"}
HEAD = """# Flags

The flags of `main_stage1.py`, `main_stage2.py` and `evaluate.py`. All three accept all of them; one that a script does
not read is named as not used. `--help` lists those that a script reads, but for three of one method; `--help-all` lists
all. The columns say which script reads a flag: stage 1, stage 2, evaluate (E). A value comes from the command line,
else from the protocol, else from the preset of the data set, the loss or the method, else from the default below.

`predict.py`, `reproduce.py`, `python -m tools.NAME` and `python -m benchmarks.ROOM.NAME` have their own `--help`.
`python -m tools.flags` writes this page from the declarations in `settings/fields.py`.
"""


def flags_page() -> str:
    """Return the page: a table for each group of flags, hyper-parameters of single methods last."""
    flags = sorted(FLAGS.values(), key=lambda flag: Facet.HYPERPARAMETER in flag.facets)
    used = {script: used_flags(script) for script in EVERYWHERE}
    parts = [HEAD]
    for group in Group:
        title = group.value[0].upper() + group.value[1:]
        lines = [f"## {title}\n", "| flag | default | read by | what |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([*lines, *(row(flag, used) for flag in flags if flag.group is group)]))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def row(flag: Flag, used: dict[str, set[str]]) -> str:
    """Return the line of a flag; `used` are the flags that each script reads."""
    value, text = flag_help(flag)
    text = text.removesuffix(f" [{flag.default}]")
    if value is not None and value.startswith("{"):
        text += f": {', '.join(flag.choices or ())}"
    name = flag.name if value is None or value.startswith("{") else f"{flag.name} {value}"
    default = "off" if flag.kind is bool else "" if flag.default is None else f"`{flag.default}`"
    readers = " ".join(SHORT[script] for script in EVERYWHERE if flag.name in used[script])
    return f"| `--{name}` | {default} | {readers} | {text}{bounds_of(flag)} |"


def bounds_of(flag: Flag) -> str:
    """Return the bounds of a number as they end the text; an upper end beyond any use is left out."""
    bounds = HYPERPARAMETERS[flag.name].values if flag.name in HYPERPARAMETERS else flag.bounds
    if not isinstance(bounds, Range):
        return ""
    return f"; {bounds if bounds.high < BEYOND else bounds.lower_end()}"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page of flags."""
    CommandParser("python -m tools.flags", __doc__).parse_args(argv)
    make_folder(PAGE.parent)
    write_text(PAGE, flags_page())
    tell(f"written to {PAGE}")


if __name__ == "__main__":
    run_command(main)

"""What has to be copied to another machine for a job there, and whether it stays below a limit."""

import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.text import counted, tell

MIB = 2**20
LARGEST = 5  # entries that are named


def files_of_tree(root: Path) -> list[Path]:
    """Return the files of a checkout that git tracks or does not ignore, those that are there, relative to it."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"--travel: git does not list the files of {root}; run it in a clone") from error
    names = {Path(os.fsdecode(name)) for name in listed.split(b"\0") if name}
    return sorted(name for name in names if (root / name).is_file())


def files_below(root: Path, named: str) -> list[Path]:
    """Return the files at a path that is named, relative to the checkout where it is inside; UserError without any."""
    path = root / named
    found = [Path(folder) / name for folder, _, names in os.walk(path, followlinks=True) for name in names]
    found = [path] if path.is_file() else sorted(found)
    if not found:
        raise UserError(f"--travel: there is nothing at {named}")
    return [file.relative_to(root) if file.is_relative_to(root) else file for file in found]


def check_travel(root: Path, named: Sequence[str], limit_mib: float) -> None:
    """Say how much is to be copied: the files of a checkout, and what is named beside them.

    Raises UserError, which names the largest entries, where it is more than `limit_mib`.
    """
    files = dict.fromkeys([*files_of_tree(root), *(file for path in named for file in files_below(root, path))])
    sizes = {file: (root / file).stat().st_size for file in files}
    whole = sum(sizes.values())
    entries: Counter[str] = Counter()
    for file, size in sizes.items():
        entries["/".join(file.parts[:2])] += size
    largest = ", ".join(f"{name} {size / MIB:.1f}" for name, size in entries.most_common(LARGEST))
    words = f"{counted(len(files), 'file')} of {whole / MIB:.1f} MiB"
    if whole > limit_mib * MIB:
        raise UserError(f"to be copied: {words}, more than {limit_mib:g} MiB; the largest in MiB: {largest}")
    tell(f"to be copied: {words}, at most {limit_mib:g} MiB; the largest in MiB: {largest}")

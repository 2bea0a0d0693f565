"""A checkout of the repository whose commands are run: the files that are here, or an earlier revision."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from benchmarks.command import ROOT
from utils.errors import UserError
from utils.files import make_folder

CHILD = Path(__file__).with_name("child.py")
CHECKS = ("tools.check_dataset", "datasets.check")  # names that the check of a data set has had, the latest first


@dataclass(frozen=True)
class Done:
    """How a command ended: exit status, both of its streams in their order, seconds without Python's start."""

    status: int
    text: str
    seconds: float


def export(revision: str, folder: Path) -> None:
    """Write the files of a revision below `folder`; UserError in one line where this clone does not have it."""
    try:
        found = subprocess.run(["git", "archive", f"{revision}^{{commit}}"], cwd=ROOT, capture_output=True)
    except OSError as error:
        raise UserError(f"the revision {revision} cannot be read: no git ({error.strerror})") from error
    if found.returncode:
        raise UserError(f"the revision {revision} is not in this clone; git fetch --unshallow brings all of them")
    with tarfile.open(fileobj=io.BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")


class Checkout:
    """Runs commands of the checkout `root` one after the other, on one thread and no GPU; streams go into `folder`."""

    def __init__(self, root: Path, folder: Path) -> None:
        make_folder(folder)
        self.root, self.folder = root, folder
        self.flags: dict[str, set[str]] = {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD), str(root)],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Checkout":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.kill()  # it waits for the next command; Python's own end would take a second
        self.process.wait()
        self.process.stdout.close()

    def run(self, words: Sequence[str]) -> Done:
        """Run `python WORDS` as they stand; scripts are those of the checkout."""
        assert self.process.stdin is not None and self.process.stdout is not None
        out = self.folder / "out.txt"
        command = {"words": list(words), "folder": str(self.folder), "out": str(out)}
        print(json.dumps(command), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise UserError(f"the commands of {self.root} do not start with this Python and its packages")
        return Done(**json.loads(answer), text=out.read_text(encoding="utf-8", errors="replace"))

    def translate(self, words: Sequence[str]) -> list[str]:
        """Return a command of today in the words of the checkout: its check, without flags that it does not have."""
        if words[0] == "-c":
            return list(words)
        name = 2 if words[0] == "-m" else 1
        script = list(words[:name])
        if script[-1] == CHECKS[0]:
            script[-1] = next(one for one in CHECKS if (self.root / f"{one.replace('.', '/')}.py").is_file())
        known = self.known(script)
        kept: list[str] = []
        dropping = False
        for word in words[name:]:
            if word.startswith("--"):
                dropping = word not in known
            if not dropping:
                kept.append(word)
        return [*script, *kept]

    def known(self, script: Sequence[str]) -> set[str]:
        """Return the flags that a command's help names."""
        key = " ".join(script)
        if key not in self.flags:
            text = self.run([*script, "--help"]).text
            if "--help-all" in text:
                text += self.run([*script, "--help-all"]).text
            self.flags[key] = set(re.findall(r"--[a-z]\w*", text))
        return self.flags[key]

"""Killing a command again and again, and comparing what comes out at last with a run that nobody disturbed."""

import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.robustness.kills.children import (
    after,
    being_written,
    finish,
    last_line,
    meet,
    must_finish,
    printed_epoch,
    saved_epoch,
    start,
    state_of,
    temporaries,
)
from benchmarks.robustness.kills.commands import AIMS, DisturbedCommand, write_tree
from benchmarks.robustness.kills.contents import contents
from utils.files import LOCK, make_folder


@dataclass
class KillExperiment:
    """What is prepared once for all kills, and what came of them."""

    folder: Path
    chance: random.Random
    rows: list[dict[str, Any]] = field(default_factory=list)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)

    def fresh(self, command: DisturbedCommand) -> Path:
        """Return a folder in which a command may begin."""
        folder = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        return Path(shutil.copytree(self.folder / "prepared" / command.name, folder))

    def prepare(self, command: DisturbedCommand) -> None:
        """Run a command as it is without a disturbance."""
        folder = self.folder / "prepared" / command.name
        make_folder(folder)
        if any("images" in words for words in (command.words, *command.needs)):
            write_tree(folder / "images")
        for words in command.needs:
            must_finish(words, folder)
        whole = self.fresh(command)
        began = time.monotonic()
        must_finish(command.words, whole)
        self.durations[command.name] = time.monotonic() - began
        self.references[command.name] = contents(whole)

    def chain(self, command: DisturbedCommand, moments: Sequence[str]) -> None:
        """Disturb a command at the moments given, let it end, and compare."""
        folder = self.fresh(command)
        rows, words = [], command.words
        for moment in moments:
            before = saved_epoch(folder)
            process = start(words, folder)
            row = self.disturb(command, process, folder, moment)
            if row is None:  # it ended first
                break
            row["lost"] = max(row["printed"], before) - row["saved"] if row["readable"] else None
            rows.append(row)
            words = (*command.words, *command.resume_flags)
        status = finish(words, folder)
        try:
            same = contents(folder) == self.references[command.name]
        except Exception:
            same = False
        clean = not temporaries(folder) and not list(folder.rglob(LOCK))
        for row in rows:
            row |= {"resumed": status == 0, "identical": same, "left": not clean, "end": last_line(folder)}
        self.rows += rows
        shutil.rmtree(folder.parent)

    def disturb(
        self, command: DisturbedCommand, process: subprocess.Popen[bytes], folder: Path, moment: str
    ) -> dict[str, Any] | None:
        """Meet a child at a moment and send the signal; return what was found, None where it had ended before."""
        began = time.monotonic()
        number = getattr(signal, moment) if moment.startswith("SIG") else signal.SIGKILL
        if moment in AIMS:
            at = being_written(folder, AIMS[moment], self.chance.choice([1, 1, 2, 3, 5, 8]))
        else:
            at = after(self.chance.uniform(0.0, self.durations[command.name]))
        if not meet(process, at):
            return None
        process.send_signal(number)
        seconds = time.monotonic() - began
        status = process.wait()
        if number != signal.SIGKILL and status == 0:
            return None
        readable = True
        try:
            contents(folder)
        except Exception:
            readable = False
        saved = saved_epoch(folder) if readable else -1
        epochs = printed_epoch(folder)
        lines = (folder / "err").read_text(errors="replace").splitlines()
        # Before the script's own code, while Python imports, a signal ends the process as it ends any.
        proper = status == -number or (status == 128 + number and len(lines) == 1)
        return {
            "work": command.name,
            "aim": moment if moment in AIMS else "any",
            "signal": signal.Signals(number).name,
            "seconds": seconds,
            "state": state_of(folder, epochs),
            "printed": epochs,
            "saved": saved,
            "temporary_files": len(temporaries(folder)),
            "readable": readable,
            "status": status,
            "proper": proper,
        }

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
    kill_one,
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
from benchmarks.robustness.kills.contents import contents, is_continued
from utils.files import LOCK, make_folder


@dataclass
class KillExperiment:
    """What is prepared once for all kills, and what came of them."""

    folder: Path
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
        must_finish(command.words, whole, command.processes)
        self.durations[command.name] = time.monotonic() - began
        self.references[command.name] = contents(whole)

    def chain(self, command: DisturbedCommand, moments: Sequence[str], chance: random.Random) -> None:
        """Disturb a command at the moments given, let it end, and compare."""
        folder = self.fresh(command)
        rows, words = [], command.words
        processes = [command.processes]
        until = None  # the epoch after which processes became more or fewer
        status: int | None = None
        for moment in moments:
            before = saved_epoch(folder)
            process = start(words, folder, processes[-1])
            row = self.disturb(command, process, folder, moment, chance)
            if row is None:  # it ended first
                status = process.returncode
                break
            row["lost"] = max(row["printed"], before) - row["saved"] if row["readable"] else None
            rows.append(row)
            words = (*command.words, *command.resume_flags)
            if command.processes > 1:
                processes.append(chance.choice(command.resumed_by))
                if until is None and processes[-1] != command.processes:
                    until = row["saved"]
        status = finish(words, folder, processes[-1]) if status is None else status
        same = self.is_same(command, folder, until)
        # A file that was whole already is not written twice, and that is said.
        ended = status == 0 or (same and "is there already" in last_line(folder))
        clean = not temporaries(folder) and not list(folder.rglob(LOCK))
        for row in rows:
            row |= {"resumed": ended, "identical": same and until is None, "near": same and until is not None}
            row |= {"left": not clean, "end": last_line(folder), "processes": " ".join(map(str, processes))}
        self.rows += rows
        shutil.rmtree(folder.parent)

    def is_same(self, command: DisturbedCommand, folder: Path, until: int | None) -> bool:
        """Tell whether what came out is what an undisturbed run makes; near it, where its processes changed."""
        reference = self.references[command.name]
        try:
            found = contents(folder)
            return found == reference if until is None else is_continued(found, reference, until)
        except Exception:
            return False

    def disturb(
        self,
        command: DisturbedCommand,
        process: subprocess.Popen[bytes],
        folder: Path,
        moment: str,
        chance: random.Random,
    ) -> dict[str, Any] | None:
        """Meet a child at a moment and send the signal; return what was found, None where it had ended before."""
        began = time.monotonic()
        number = getattr(signal, moment) if moment.startswith("SIG") else signal.SIGKILL
        if moment in AIMS:
            at = being_written(folder, AIMS[moment], chance.choice([1, 1, 2, 3, 5, 8]))
        else:
            at = after(chance.uniform(0.0, self.durations[command.name]))
        if not meet(process, at):
            return None
        if command.processes > 1:
            kill_one(process, chance)
        else:
            process.send_signal(number)
        seconds = time.monotonic() - began
        status = process.wait()
        if status == 0 and (number != signal.SIGKILL or command.processes > 1):
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

"""A command whose images lie on a slow disk, so that hashing them takes seconds and what is hashed is kept on the way.

    python -m benchmarks.robustness.kills.slow_disk main_stage1 --dataset folder ...

`benchmarks.robustness.kills.commands` has a command that is started like this.
"""

import importlib
import sys
import time

from datasets.identity import file_hashes
from utils.command import run_command

SECONDS_PER_FILE = 0.02
FILES_AT_ONCE = 4


def slow_down() -> None:
    """Make every file take a while, a few files at a time, and keep the hashes after each few."""
    hash_file = file_hashes.hash_file

    def slowly(path: bytes) -> tuple[bytes, tuple[int, int, int, int]]:
        time.sleep(SECONDS_PER_FILE)
        return hash_file(path)

    file_hashes.hash_file = slowly
    file_hashes.CHUNK, file_hashes.THREADS = FILES_AT_ONCE, 1
    file_hashes.SAVE_SECONDS = file_hashes.WORTH_SECONDS = 0.0


def start() -> None:
    """Run the script that the first word names, with the words behind it."""
    slow_down()
    importlib.import_module(sys.argv.pop(1)).main()


if __name__ == "__main__":
    run_command(start)

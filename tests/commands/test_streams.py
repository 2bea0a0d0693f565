"""Standard streams that fail, close or were never there: a command goes on to its end, without a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, folder_of
from utils.command import Unfailing, run_command, standard_output
from utils.errors import UserError

EPOCHS = 3
# What a shell does to the streams, and what the command then says on standard error, where that is left.
STREAMS = {
    "the reader of its output goes away": ("| head -n 1", "(Broken pipe): going on without it"),
    "its output is on a full disk": ("> /dev/full", "(No space left on device): going on without it"),
    "its output is closed": (">&-", ""),
    "all is closed": ("<&- >&- 2>&-", None),
    "all is on a full disk": ("> /dev/full 2>&1", None),
    "there is no terminal": ("< /dev/null > /dev/null", ""),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no disk that is always full")
@pytest.mark.parametrize("case", STREAMS)
def test_training_goes_on_to_its_end(case: str, tmp_path: Path) -> None:
    words, said = STREAMS[case]
    command = (
        f"{sys.executable} {ROOT / 'main_stage1.py'} --dataset digits --width 4 --epochs {EPOCHS} --out {tmp_path}"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    script = f"set -o pipefail; {command} {words}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    folder = folder_of(tmp_path, f"stage1_epochs{EPOCHS}_width4")
    assert (folder / "metrics.json").exists()
    assert len((folder / "log.csv").read_text().splitlines()) == 1 + EPOCHS
    if said is None or said == "":
        assert done.stderr == ""
    else:
        assert done.stderr == f"warning: standard output cannot be written {said}\n"


@pytest.mark.parametrize("words", ["| true", "> /dev/full", ">&-"])
def test_results_on_a_stream_are_whole_or_refused(words: str) -> None:
    """What a program reads from standard output is another matter than what a person reads there."""
    work = "run_command(lambda: (standard_output().write('x' * 100000), standard_output().flush()))"
    code = f"from utils.command import run_command, standard_output; {work}"
    script = f'set -o pipefail; {sys.executable} -c "{code}" {words}'
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0


def test_a_closed_standard_stream_has_its_number_back(tmp_path: Path) -> None:
    """Or the next file that is opened would have it, and whatever a library prints would go into that file."""
    place = tmp_path / "number"
    work = f"open('{place}', 'w').write(str(os.open('{os.devnull}', os.O_RDONLY)))"
    code = f"import os; from utils.command import run_command; run_command(lambda: {work})"
    script = f'{sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", script], cwd=ROOT, timeout=60).returncode == 0
    assert int(place.read_text()) > 2


def test_streams_are_what_they_were(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    run_command(lambda: print("said", isinstance(sys.stdout, Unfailing)))
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr().out == "said True\n"


def test_closed_output_is_no_place_for_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Unfailing(sys.stdout, "output", closed_from_the_start=True))
    with pytest.raises(UserError, match="standard output is closed"):
        standard_output()

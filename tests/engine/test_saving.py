"""When a run is written: by time, at the end, and what is kept in memory until then."""

import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import engine.fit
import engine.saving
from engine.saving import Saver, StateBuffer, tensors_in, with_tensors
from runs.run_folder import Run
from tests.helpers import folder_of, run, stage1
from utils.background import Background


def state(epoch: int) -> dict[str, Any]:
    """What a run saves, as small as it may be, with the epoch in every tensor."""
    filled = torch.full((3,), float(epoch))
    log = [{"epoch": done} for done in range(1, epoch + 1)]
    return {"stage": "stage1", "epoch": epoch, "model": {"w": filled}, "config": {}, "history": {"log": log}}


def saved(path: Path) -> int:
    """The epoch of a file, 0 where there is none; its tensors must be of the same epoch."""
    if not path.exists():
        return 0
    content = torch.load(path, weights_only=True)
    assert set(content["model"]["w"].tolist()) == {float(content["epoch"])}
    return int(content["epoch"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine.saving, "write_log", lambda run, log: (run.folder / "log").write_text(str(len(log))))
    return Run(tmp_path, {})


def test_a_buffer_keeps_what_was_and_is_filled_again_in_the_same_memory() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    buffer = StateBuffer()
    whole = {"model": {"weight": parameter}, "optimizer": optimizer.state_dict(), "epoch": 3, "list": [1.5]}
    buffer.fill(whole)
    before = parameter.detach().clone()
    optimizer.step()
    kept = buffer.stored()
    torch.testing.assert_close(kept["model"]["weight"], before)
    assert kept["epoch"] == 3 and kept["list"] == [1.5] and not kept["model"]["weight"].requires_grad
    places = [tensor.data_ptr() for tensor in buffer.room]
    buffer.fill(whole)
    torch.testing.assert_close(buffer.stored()["model"]["weight"], parameter.detach())
    assert [tensor.data_ptr() for tensor in buffer.room] == places and buffer.size == 24


def test_tensors_are_found_and_replaced_in_one_order() -> None:
    nested = {"a": torch.zeros(1), "b": [torch.ones(2), {"c": torch.ones(3)}], "d": "text"}
    assert [len(tensor) for tensor in tensors_in(nested)] == [1, 2, 3]
    assert with_tensors(nested, iter("xyz")) == {"a": "x", "b": ["y", {"c": "z"}], "d": "text"}  # type: ignore[arg-type]


def test_nothing_is_written_before_its_time_and_all_at_the_end(folder: Run) -> None:
    with Background() as background:
        saver = Saver(folder, background, 1000.0)
        for epoch in (1, 2, 3):
            saver.keep(state(epoch) if epoch == 2 else None, state(epoch), final=False)
            assert saver.kept == epoch
        assert (saved(folder.last), saved(folder.best)) == (0, 0)
        saver.write()
        background.finish()
        assert (saved(folder.last), saved(folder.best)) == (3, 2)
        saver.write()  # nothing is left
        saver.keep(None, state(4), final=True)
    assert (saved(folder.last), saved(folder.best), (folder.folder / "log").read_text()) == (4, 2, "4")


def test_every_epoch_is_written_with_0_seconds(folder: Run) -> None:
    with Background() as background:
        saver = Saver(folder, background, 0.0)
        for epoch in (1, 2):
            saver.keep(state(epoch), state(epoch), final=False)
            background.finish()
            assert (saved(folder.last), saved(folder.best)) == (epoch, epoch)


def test_a_writing_that_is_under_way_holds_nothing_up_and_keeps_its_content(
    folder: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = engine.saving.save_checkpoint

    def slow(path: Path, content: dict[str, Any]) -> None:
        time.sleep(0.3)
        write(path, content)

    monkeypatch.setattr(engine.saving, "save_checkpoint", slow)
    with Background() as background:
        saver = Saver(folder, background, 1e-9)
        started = time.monotonic()
        for epoch in range(1, 6):
            saver.keep(None, state(epoch), final=False)
            time.sleep(0.001)
        assert time.monotonic() - started < 0.3
        background.finish()
        assert saved(folder.last) == 1
        saver.write()
    assert saved(folder.last) == 5


def test_large_states_are_copied_as_often_as_time_allows(folder: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.saving, "SMALL", 8)
    with Background() as background:
        saver = Saver(folder, background, 1000.0)
        saver.keep(None, state(1), final=False)
        saver.copy_seconds = 1000.0
        saver.keep(None, state(2), final=False)
        assert saver.kept == 1
        saver.copy_seconds = 0.0
        saver.keep(None, state(3), final=False)
        assert saver.kept == 3
        saver.copy_seconds = 1000.0
        saver.keep(None, state(4), final=True)
        assert saver.kept == 4
    assert saved(folder.last) == 4


def test_a_signal_leaves_the_finished_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the usual 10 seconds, which the run does not take."""
    original, calls = engine.fit.train_one, []

    def interrupting(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(engine.fit, "train_one", interrupting)
    outcome = run("main_stage1", "--dataset", "digits", "--width", 2, "--epochs", 4, "--out", tmp_path)
    assert outcome.status == 130
    made = folder_of(tmp_path, "stage1_epochs4_width2")
    assert torch.load(made / "last.pth", weights_only=True)["epoch"] == 2
    assert len(pd.read_csv(made / "log.csv")) == 2
    monkeypatch.undo()
    assert "after epoch 2 of 4" in stage1(tmp_path, "--width", 2, "--epochs", 4, "--resume").out

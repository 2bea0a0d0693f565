"""Work behind the caller's back: nothing that it raises is lost, and what it writes does not change meanwhile."""

import threading

import pytest

import utils.background
from utils.background import Background
from utils.errors import UserError


def fail() -> None:
    raise UserError("the disk is full")


def test_jobs_are_done_in_order_and_all_of_them() -> None:
    done: list[int] = []
    with Background() as background:
        for number in range(20):
            background.start(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(20))


def test_an_error_comes_out_at_the_next_start() -> None:
    done: list[int] = []
    with pytest.raises(UserError, match="disk is full"), Background() as background:
        background.start(fail)
        background.start(lambda: done.append(1))
    assert done == []


def test_an_error_comes_out_at_the_end() -> None:
    with pytest.raises(UserError, match="disk is full"), Background() as background:
        background.start(fail)


def test_an_interruption_of_the_wait_loses_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the next epoch waits for the checkpoint: the write that failed is still reported."""
    wait = utils.background.wait
    presses = iter([True, False])

    def wait_or_stop(jobs: list[object]) -> object:
        if next(presses):
            raise KeyboardInterrupt
        return wait(jobs)  # type: ignore[arg-type]

    monkeypatch.setattr(utils.background, "wait", wait_or_stop)
    with pytest.raises(UserError, match="disk is full") as caught, Background() as background:
        background.start(fail)
        background.finish()
    assert isinstance(caught.value.__context__, KeyboardInterrupt)


def test_an_error_of_the_caller_waits_for_the_job() -> None:
    begun, done = threading.Event(), []

    def slow() -> None:
        begun.wait(10)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), Background() as background:
        background.start(slow)
        begun.set()
        raise KeyboardInterrupt
    assert done == [1]


def test_it_is_busy_while_a_job_is_under_way() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def job() -> None:
        begun.set()
        go_on.wait(10)

    with Background() as background:
        assert not background.busy
        background.start(job)
        begun.wait(10)
        assert background.busy
        go_on.set()
        background.finish()
        assert not background.busy

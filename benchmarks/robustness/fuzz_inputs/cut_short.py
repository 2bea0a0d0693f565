"""Commands that end where their work would begin, so that a case takes milliseconds."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock
from urllib.error import URLError

import sklearn.datasets

import benchmarks.command
from benchmarks.robustness.fuzz_inputs.cases import ReachedError
from runs.session import LoadedModel

# What a command does first once it has said no to all that it says no to.
WORK = (
    "benchmarks.speed.decode.write_photos",
    "benchmarks.speed.startup.write_lists",
    "benchmarks.jobs.paper_runs.work",
    "benchmarks.robustness.image_trees.write_trees",
    "tools.extract.features_of",
)
COMPUTATION = (
    "stages.session.announce",
    "tables.rows.train_heads",
    "tables.selection.train_heads",
    "tables.path.end_point",
    "tables.path.walk",
)


def stop(first: object = None, *_: object, **__: object) -> None:
    """Stand in for a function where work begins; where its first argument is a loaded model, its command is noted."""
    raise ReachedError(first.command if isinstance(first, LoadedModel) else None)


def offline(*_: object, **__: object) -> None:
    """Stand in for a download."""
    raise URLError("no network in a test")


@contextlib.contextmanager
def cut_short() -> Iterator[None]:
    """Stop every command where its work would begin, after all that it says no to; what is read often is read once."""
    digits = sklearn.datasets.load_digits()
    parse = benchmarks.command.Benchmark.parse

    def parse_and_stop(self: Any, *arguments: Any, **named: Any) -> None:
        parse(self, *arguments, **named)
        stop()

    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch("datasets.digits.sklearn_digits", lambda: digits))
        patches.enter_context(mock.patch("engine.finish.draw_plots", lambda *_: None))
        patches.enter_context(mock.patch("torch.cuda.is_available", lambda: False))
        patches.enter_context(mock.patch("torchvision.datasets.CIFAR10.download", offline))  # CIFAR100 inherits it
        patches.enter_context(mock.patch.object(benchmarks.command.Benchmark, "parse", parse_and_stop))
        for name in WORK:
            patches.enter_context(mock.patch(name, stop))
        yield


@contextlib.contextmanager
def no_work() -> Iterator[None]:
    """Stop the stages and reports before they compute."""
    with contextlib.ExitStack() as patches:
        for name in COMPUTATION:
            patches.enter_context(mock.patch(name, stop))
        yield

"""Several runs in one command, each as if alone: one after another or, on one GPU and on request, stage 1s all at once.

`--seeds` of the scripts gives runs that differ in their seeds; other commands can stand beside one another too.

At once each trains in a thread of its own, with its own CUDA stream and its own CUDA graph: a small network leaves most
of a GPU idle. Everything random is a function of (seed, epoch, image), but for what a loss or a network draws itself,
from the one generator of PyTorch: runs that draw follow one another. So do those for which memory is not enough.
"""

import contextlib
import copy
import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from datasets import ON_DISK
from engine.steps import MOST_AT_ONCE
from runs.run_folder import saved_or_removed
from runs.session import Session
from settings.fields import STAGE1
from settings.resolve import Command
from stages.commands.stage1 import has_epochs, run_stage1, train_stage1
from stages.commands.stage2 import run_stage2
from stages.session import open_session
from utils.distributed import launch_of
from utils.errors import UserError, is_out_of_memory
from utils.progress import beside_others
from utils.text import counted, labelled, tell

# Graphs that are replayed at once shared memory of cuBLAS in earlier versions (`engine.steps`). They should not any
# more, but no GPU has shown it yet (tests/stages/test_seeds.py): nobody's seeds train so without being asked to.
UNCHECKED = "at once they are not yet shown to be what they are alone"


@dataclass
class RunBeside:
    """A run beside others: what it made, why it failed, or that there was no memory for it beside them.

    Its lines begin with `label`.
    """

    command: Command
    label: str
    session: Session | None = None
    metrics: dict[str, Any] | None = None
    error: Exception | None = None
    no_memory: bool = False

    def attempt(self, work: Callable[[], dict[str, Any] | None]) -> None:
        """Do `work`, which returns the metrics of a finished run, and keep how it ended."""
        try:
            self.metrics = work()
        except Exception as error:
            if is_out_of_memory(error):
                self.no_memory = True
            self.error = error


def run_seeds(commands: Sequence[Command]) -> dict[str, Any]:
    """Run the commands, which differ in their seeds, and return what metrics.json of each holds, by its seed.

    Raises what `run_all` raises.
    """
    runs = [RunBeside(command, f"seed {command.settings.seed}") for command in commands]
    run_all(runs, "seed", UNCHECKED)
    return {str(run.command.settings.seed): run.metrics for run in runs}


def run_all(runs: Sequence[RunBeside], noun: str, doubt: str | None = None) -> None:
    """Run the commands of all, at once where they can be and there is no `doubt`; `noun` is what one of them is called.

    One that fails stops no other. Raises UserError, with the first reason, where any has failed; a defect of ours is
    raised as it is.
    """
    reasons = [reason for run in runs if (reason := reason_against_threads(run.command)) is not None]
    if len({run.command.settings.deterministic for run in runs}) > 1:
        reasons.append("--deterministic is a switch of the whole process")
    reasons += [f"more than {MOST_AT_ONCE} share streams of the GPU"] if len(runs) > MOST_AT_ONCE else []
    reasons += [doubt] if doubt is not None else []
    if not reasons:
        run_at_once(runs, noun)
    else:
        tell(f"{noun}s: one after another ({reasons[0]})")
        run_in_turn(runs)
    failed = [run for run in runs if run.error is not None]
    for run in failed:
        if not (isinstance(run.error, UserError) or run.no_memory):
            assert run.error is not None
            raise run.error
    if failed:
        words = f"{failed[0].label}: {failed[0].error}"
        raise UserError(f"{len(failed)} of {counted(len(runs), noun)} failed; {words}") from failed[0].error


def reason_against_threads(command: Command) -> str | None:
    """Return why a command's run cannot train beside others, None where it can."""
    settings = command.settings
    if command.script != STAGE1 or not has_epochs(command):
        return "a classifier takes seconds"
    if launch_of().count > 1:
        return "torchrun's processes share each of them"
    if settings.device == "cpu" or not torch.cuda.is_available():
        return "a CPU has no room beside one"
    if settings.dataset in ON_DISK:
        return "each wants all processes that read images"
    return "--compile on" if settings.compile == "on" else None


def run_in_turn(runs: Sequence[RunBeside]) -> None:
    """Run commands one after another."""
    for run in runs:
        run_alone = run_stage1 if run.command.script == STAGE1 else run_stage2
        with labelled(run.label):
            run.attempt(lambda run=run, run_alone=run_alone: run_alone(run.command))  # type: ignore[misc]
            report(run)


def report(run: RunBeside) -> None:
    """Say why a run has failed."""
    if run.error is not None:
        tell(f"failed: {run.error}", flush=True)


def run_at_once(runs: Sequence[RunBeside], noun: str) -> None:
    """Open all runs, train them in threads and, where there was no memory for some, these alone, one after another."""
    for run in runs:
        with labelled(run.label):
            run.attempt(lambda run=run: open_run(run))  # type: ignore[misc]
    opened = [run for run in runs if run.session is not None and run.error is None]
    waiting = [run for run in opened if run.session is not None and not run.session.run.finished]
    if any(draws(run.session) for run in waiting):
        tell(f"{noun}s: one after another (the loss or the network draws from PyTorch's generator)")
        for run in opened:
            with labelled(run.label):
                run.attempt(lambda run=run: train_stage1(run.session))  # type: ignore[misc]
    else:
        tell(f"{noun}s: {len(opened)} at once, each in its own stream of the GPU", flush=True)
        train_in_threads(opened)
    alone = [run for run in runs if run.no_memory]
    for run in runs:
        if run not in alone:
            with labelled(run.label):
                report(run)
    if alone:
        for run in runs:
            let_go(run)
        gc.collect()
        torch.cuda.empty_cache()
        tell(f"{', '.join(run.label for run in alone)}: no memory beside the others; now alone", flush=True)
        run_in_turn([again(run) for run in alone])


def open_run(run: RunBeside) -> None:
    """Open the session of a run."""
    run.session = open_session(run.command)


def draws(session: Session | None) -> bool:
    """Tell whether a training step draws from PyTorch's global generators: dropout does, and a loss with noise.

    A copy of network and loss makes one on two images.
    """
    assert session is not None
    model, loss = copy.deepcopy((session.model, session.loss))
    inputs, labels = next(iter(session.images["train"].training_batches(2, 0, 0, False)))
    before = generator_states(session.execution.device)
    with torch.no_grad(), session.execution.autocast():
        logits = model.train()(inputs)
    with torch.no_grad():
        loss(logits.float(), labels)
    after = generator_states(session.execution.device)
    return not all(map(torch.equal, before, after))


def generator_states(device: torch.device) -> list[Tensor]:
    """Return the states of PyTorch's generators, of the CPU and of a CUDA device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def train_in_threads(runs: Sequence[RunBeside]) -> None:
    """Train opened runs, each in its thread; an interruption ends all, which save what they have, and is raised."""
    ending, reporting = threading.Event(), threading.Lock()
    threads = [
        threading.Thread(target=train_in_stream, args=(run, ending, reporting), name=run.label, daemon=True)
        for run in runs
    ]
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what opened them was in another stream
    with contextlib.ExitStack() as stack:
        for run in runs:
            if run.session is not None:
                stack.enter_context(saved_or_removed(run.session.run))
        start_and_join(threads, ending)


def start_and_join(threads: Sequence[threading.Thread], ending: threading.Event) -> None:
    """Start threads and wait for them; what interrupts that sets `ending`, and is raised once they have ended."""
    started: list[threading.Thread] = []
    try:
        for thread in threads:
            started.append(thread)
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        ending.set()
        for thread in started:
            if thread.ident is not None:
                thread.join()
        raise


def train_in_stream(run: RunBeside, ending: threading.Event, reporting: threading.Lock) -> None:
    """Train an opened run in a stream of its own; one at a time reports.

    Gradients are computed in this thread: PyTorch's own thread for them is one for all, with one handle of cuBLAS and
    cuDNN and the memory that these work in, which runs at once would share.
    """
    session = run.session
    assert session is not None
    device = session.execution.device
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    in_stream = contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)
    alone = torch.autograd.set_multithreading_enabled(False)
    with labelled(run.label), beside_others(ending), in_stream, alone, contextlib.suppress(KeyboardInterrupt):
        run.attempt(lambda: train_stage1(session, reporting))
        if stream is not None:
            stream.synchronize()


def let_go(run: RunBeside) -> None:
    """Forget a session, and of an error that memory was not enough what it holds."""
    if run.session is not None and run.session.run.lock is not None:
        run.session.run.lock.release()
    run.session = None
    if run.no_memory:
        run.error = None


def again(run: RunBeside) -> RunBeside:
    """Return a run that is to go on where it was, in the place of the first attempt."""
    run.command, run.no_memory = run.command.replace(resume=True), False
    return run

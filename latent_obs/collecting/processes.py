"""Runs workers as processes of this machine: starts them, listens to them, and sees each of them end.

A worker tells its progress through a pipe, and where it is through shared memory, which can be read
even while its environment hangs. A worker is done when it has said so: one that ends without a word,
with whatever exit code, has failed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any

from latent_obs.collecting.worker import Plan, Pulse, Tally, collect_share, describe, one_thread
from latent_obs.progress import say, stop_on_signals

# Seconds in which a worker may finish its shard after its parent died, and end after it said that it is done.
_GRACE_SECONDS = 5.0
# Seconds between two lines about workers that do not end when asked to.
_PATIENCE = 10.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Ended:
    """A worker's last message."""

    failure: str | None
    """what went wrong, on one line"""
    stopped: bool
    """whether it stopped because a signal told it to"""


@dataclass
class _Worker:
    """A process and what is known of it."""

    plan: Plan
    process: BaseProcess
    pulse: Pulse
    ended: Ended | None = None
    ended_at: float = 0.0
    late: bool = False  # its environment took longer than it may

    @property
    def where(self) -> str:
        return self.plan.where(self.pulse)

    @property
    def call_seconds(self) -> float:
        """How long the present call of the environment has taken; 0 outside of calls."""
        since = self.pulse.since
        return time.monotonic() - since if since else 0.0

    def failure(self, asked: bool) -> str | None:
        """Return what went wrong, if anything did, once the process has ended.

        Args:
            asked: It was asked to end.
        """
        if self.late:
            limit = self.plan.config.step_timeout
            return f"{self.where} was ended: its environment took longer than {limit:g} s"
        if self.ended is None:
            code = self.process.exitcode
            if asked and code == -signal.SIGTERM:
                return None  # before it could listen
            return f"{self.where} died with exit code {code}"
        if self.ended.failure is not None:
            return f"{self.where}: {self.ended.failure}"
        if self.ended.stopped and not asked:
            return f"{self.where} was stopped by a signal from outside"
        return None


def run_processes(
    plans: list[Plan],
    update: Callable[[int, Tally], None],
    stop: threading.Event,
    lock: int | None = None,
) -> list[str]:
    """Run a process for each plan and wait for all of them.

    Args:
        plans: What to collect.
        update: Called with a worker's number and its newest tally.
        stop: Once set, workers commit what they have and end.
        lock: The descriptor of the folder's lock, which the workers hold too.

    Returns:
        What failed, in words; empty when all went well.

    Raises:
        KeyboardInterrupt: After a second signal; the workers are killed.
    """
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, _Worker] = {}
    failures: list[str] = []
    try:
        for plan in plans:
            receiver, sender = context.Pipe(duplex=False)
            pulse = context.RawValue(Pulse)
            pulse.shard = -1
            arguments = (plan, sender, pulse, sys.path, None if lock is None else _Lock(lock))
            process: BaseProcess = context.Process(target=_process_main, args=arguments, daemon=True)
            workers[receiver] = _Worker(plan, process, pulse)
            with _ctrl_c_ignored():  # inherited: Ctrl-C reaches workers through this process
                process.start()
            sender.close()
        _listen(dict(workers), update, stop, failures)
    finally:
        for worker in workers.values():
            if worker.process.pid is not None:
                worker.process.kill()
                worker.process.join()
    return failures


def _listen(
    pipes: dict[Connection, _Worker],
    update: Callable[[int, Tally], None],
    stop: threading.Event,
    failures: list[str],
) -> None:
    """Pass on what workers tell until each of them has ended."""
    running = list(pipes.values())
    asked = False
    told = 0.0
    while running:
        # A signal does not end wait(), hence the short timeout.
        wait([*pipes, *(worker.process.sentinel for worker in running)], timeout=0.2)
        over = [worker for worker in running if worker.process.exitcode is not None]
        for pipe, worker in list(pipes.items()):
            try:
                while pipe.poll():
                    message = pipe.recv()
                    if isinstance(message, Ended):
                        worker.ended, worker.ended_at = message, time.monotonic()
                    else:
                        update(worker.plan.worker, message)
            except (EOFError, OSError):
                del pipes[pipe]
        for worker in over:  # their pipes are empty now
            running.remove(worker)
            if failure := worker.failure(asked):
                failures.append(failure)
        for worker in running:
            limit = worker.plan.config.step_timeout
            if limit is not None and worker.call_seconds > limit:
                worker.late = True
                worker.process.kill()
            # Threads that the environment started may keep a process alive that has done its work.
            if worker.ended is not None and time.monotonic() - worker.ended_at > _GRACE_SECONDS:
                worker.process.kill()
        if (stop.is_set() or failures) and not asked:
            asked, told = True, time.monotonic()
            for worker in running:
                worker.process.terminate()
        if asked and time.monotonic() - told >= _PATIENCE:
            told = time.monotonic()
            for worker in running:
                state = "it is finishing its shard"
                if worker.call_seconds >= 1:
                    state = f"its environment has not answered for {worker.call_seconds:.0f} s"
                keys = "Ctrl-C ends" if stop.is_set() else "Ctrl-C, pressed twice, ends"
                say(f"Still waiting for {worker.where}: {state}. {keys} it at once.")


def _process_main(
    plan: Plan, pipe: Connection, pulse: Pulse, user_path: list[str], lock: _Lock | None
) -> None:
    """Run one worker process, which holds the folder's lock too; it ends when the parent does."""
    sys.path[:] = user_path
    one_thread()
    # The next run waits for the lock, so an orphan that holds it may finish its shard.
    seconds = 0.0 if lock is None else _GRACE_SECONDS
    _die_after_parent(at_once=seconds == 0)
    with stop_on_signals(signal.SIGTERM, worker=True) as stop:
        threading.Thread(target=_end_with_parent, args=(stop, seconds), daemon=True).start()

        def report(tally: Tally) -> None:
            try:
                pipe.send(tally)
            except OSError:
                stop.set()

        failure: str | None = None
        try:
            collect_share(plan, stop, report, pulse)
        except BaseException as error:
            failure = describe(error)
        with contextlib.suppress(OSError):
            pipe.send(Ended(failure, stop.is_set()))


def _end_with_parent(stop: threading.Event, seconds: float) -> None:
    """Stop once the parent is dead, however it died, and end soon after even if the environment hangs."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    stop.set()
    time.sleep(seconds)
    os._exit(1)


def _die_after_parent(at_once: bool) -> None:
    """Let the kernel end this process when its parent is dead, at once or in five seconds, on Linux.

    The thread of ``_end_with_parent`` cannot run while the environment holds the interpreter's lock; this
    does. Five seconds come about so: the parent's death sends SIGTRAP, whose number is 5, and its handler
    is the C function ``alarm``. Called with the signal's number, it asks for SIGALRM in 5 seconds, and
    SIGALRM ends a process.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # a libc without these functions
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        if not at_once:
            libc.signal(signal.SIGTRAP, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL if at_once else signal.SIGTRAP), 0, 0, 0)


class _Lock:
    """A descriptor that a spawned process inherits."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return DupFd(self.descriptor)

    def __setstate__(self, state: Any) -> None:
        self.descriptor = state.detach()


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

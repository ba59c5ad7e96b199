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
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from typing import Any, NoReturn

from latent_obs.collecting.worker import Plan, Pulse, Tally, collect_share, describe, one_thread
from latent_obs.progress import say, stop_on_signals

# Seconds in which a worker may end after it said that it is done, and finish its shard after its parent died,
# which must be less than the five of _die_after_parent.
GRACE_SECONDS = 4.0
# Seconds between two lines about workers that do not end when asked to.
_PATIENCE = 10.0
# The exit code of a process that could not import the script of the one that started it.
IMPORT_FAILED = 1
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

    def failure(self, asked: bool) -> str | None:
        """Return what went wrong, if anything did, once the process has ended.

        Args:
            asked: It was asked to end.
        """
        if self.late:
            limit = self.plan.config.step_timeout
            call = f"its environment's {self.pulse.call}"
            return f"{self.where} was ended: {call} took longer than the {limit:g} s of --step-timeout"
        if self.ended is None:
            code = self.process.exitcode
            if asked and code == -signal.SIGTERM:
                return None  # before it could listen
            return f"{self.where} {died(code, self.pulse)}"
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
    end_if_imported_again()
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, _Worker] = {}
    failures: list[str] = []
    try:
        for plan in plans:
            receiver, sender = context.Pipe(duplex=False)
            pulse = context.RawValue(Pulse)
            pulse.shard = -1
            arguments = (plan, sender, pulse, sys.path, None if lock is None else _Lock(lock))
            process: BaseProcess = context.Process(target=_process_main, args=arguments)
            workers[receiver] = _Worker(plan, process, pulse)
            with ctrl_c_held_back():
                process.start()
            sender.close()
        _listen(dict(workers), update, stop, failures)
    finally:
        for worker in workers.values():
            if worker.process.pid is not None:
                end_group(worker.process)
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
            end_group(worker.process)
            if failure := worker.failure(asked):
                failures.append(failure)
        for worker in running:
            limit = worker.plan.config.step_timeout
            if limit is not None and worker.pulse.seconds > limit:
                worker.late = True
                end_group(worker.process)
            # Threads that the environment started may keep a process alive that has done its work.
            if worker.ended is not None and time.monotonic() - worker.ended_at > GRACE_SECONDS:
                end_group(worker.process)
        if (stop.is_set() or failures) and not asked:
            asked, told = True, time.monotonic()
            for worker in running:
                worker.process.terminate()
        if asked and time.monotonic() - told >= _PATIENCE:
            told = time.monotonic()
            for worker in running:
                state = "it is finishing its shard"
                if (seconds := worker.pulse.seconds) >= 1:
                    state = f"its environment's {worker.pulse.call} has not returned for {seconds:.0f} s"
                keys = "Ctrl-C ends" if stop.is_set() else "Ctrl-C, pressed twice, ends"
                say(f"Still waiting for {worker.where}: {state}. {keys} it at once.")


def _process_main(
    plan: Plan, pipe: Connection, pulse: Pulse, user_path: list[str], lock: _Lock | None
) -> None:
    """Run one worker process, which holds the folder's lock too; it ends when the parent does."""
    # The next run waits for the lock, so an orphan that holds it may finish its shard.
    with begin_worker(user_path, 0.0 if lock is None else GRACE_SECONDS) as stop:

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


@contextlib.contextmanager
def begin_worker(user_path: list[str], seconds: float) -> Iterator[threading.Event]:
    """Make this process a worker: it leads a session of its own, and ends when its parent does.

    In that session is whatever the environment starts, such as a game's server, so that it can be
    ended with the worker, and that Ctrl-C in the terminal does not reach it.

    Args:
        user_path: The parent's ``sys.path``.
        seconds: How long it may go on without its parent.

    Yields:
        What SIGTERM and the parent's death set.
    """
    sys.path[:] = user_path
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it reaches workers through their parent
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        os.setsid()
    one_thread()
    _die_after_parent()
    parent = multiprocessing.parent_process()
    assert parent is not None
    with stop_on_signals(signal.SIGTERM, worker=True) as stop:
        threading.Thread(target=_end_with_parent, args=(parent.sentinel, stop, seconds), daemon=True).start()
        yield stop
    if wait([parent.sentinel], 0):
        _end_session()


def end_if_imported_again() -> None:
    """End this process without a word where it only imports the script of the process that started it.

    A spawned process imports its parent's script, and one without ``if __name__ == "__main__":`` does all its
    work again there. Processes cannot be started in that moment; the parent says why with :func:`died`.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(IMPORT_FAILED)


def died(exit_code: int | None, pulse: Pulse) -> str:
    """Say how a process ended that did not say so itself."""
    said = f"died with exit code {exit_code}"
    if exit_code == IMPORT_FAILED and not pulse.began:
        said += (
            ". Each process imports your script again: check that its work stands under "
            'if __name__ == "__main__":, and that it can be imported'
        )
    return said


def end_group(process: BaseProcess) -> None:
    """Kill a worker and whatever it started, which may outlive it."""
    assert process.pid is not None
    if sys.platform != "win32":
        with contextlib.suppress(OSError):  # it has not begun its session yet, or all of it has ended
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()


def _end_with_parent(sentinel: int, stop: threading.Event, seconds: float) -> None:
    """Stop once the parent is dead, however it died, and end soon after even if the environment hangs."""
    wait([sentinel])
    stop.set()
    time.sleep(seconds)
    _end_session()


def _end_session() -> NoReturn:
    """End this process and whatever the environment started, for nobody else will."""
    if sys.platform != "win32":
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _die_after_parent() -> None:
    """Let the kernel end this process five seconds after its parent, on Linux.

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
        libc.signal(signal.SIGTRAP, ctypes.cast(libc.alarm, ctypes.c_void_p))
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTRAP), 0, 0, 0)


class _Lock:
    """A descriptor that a spawned process inherits."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return DupFd(self.descriptor)

    def __setstate__(self, state: Any) -> None:
        self.descriptor = state.detach()


@contextlib.contextmanager
def ctrl_c_held_back() -> Iterator[None]:
    """Hold Ctrl-C back from this thread, and from processes that it starts meanwhile.

    A process inherits what its parent holds back, so Ctrl-C cannot end it before :func:`begin_worker`. Were
    the signal ignored instead, one that arrived meanwhile would be lost to this process too.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # started later, it would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

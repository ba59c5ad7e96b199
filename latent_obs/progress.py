"""What every command shares with the person at the terminal: plain text, a bar of progress, and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# A launcher such as torchrun passes on a signal that the terminal has already sent to every process:
# signals within this many seconds of the first count as the same one.
_SAME_SIGNAL_SECONDS = 0.5


def plain_console(*, stderr: bool = False) -> Console:
    """Return the console that every command prints with: it shows text as it is.

    Rich reads ``[red]`` and ``:smile:`` in a text as instructions, and fails on ``[/a]``. Paths,
    environment ids and cards may hold such words, so this console has none of it, in tables and
    titles neither. A character that the terminal's encoding lacks is shown as its number.

    Args:
        stderr: Print to standard error instead of standard output.
    """
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Write a line to standard error at once; a signal handler may call this."""
    with contextlib.suppress(OSError):
        os.write(2, f"\n{text}\n".encode())  # first ends the line of a bar


class Bar:
    """One line of progress with a rate and whatever else is worth watching."""

    def __init__(self, progress: Progress, task: TaskID, unit: str, completed: int, scale: int) -> None:
        self._progress, self._task, self._unit, self._scale = progress, task, unit, scale
        self._begun, self._before, self._done = time.monotonic(), completed, completed
        self._note = ""

    def advance(self, amount: int = 1) -> None:
        """Move the bar by ``amount``."""
        self._done += amount
        rate = self._scale * (self._done - self._before) / max(time.monotonic() - self._begun, 1e-9)
        note = f"{rate:,.0f} {self._unit}/s{self._note}"
        self._progress.update(self._task, advance=amount, note=note)

    def aim(self, total: int) -> None:
        """Let the bar end at ``total``."""
        self._progress.update(self._task, total=total)

    def note(self, text: str) -> None:
        """Show ``text`` after the rate from the next :meth:`advance` on."""
        self._note = f"  {text}"


@contextlib.contextmanager
def progress_bar(
    name: str, total: int, unit: str, enabled: bool, completed: int = 0, scale: int = 1
) -> Iterator[Bar]:
    """Show a bar from ``completed`` to ``total``; nothing at all when not ``enabled``.

    Its rate is in ``unit`` a second, ``scale`` of which make one of what ``total`` counts.
    """
    progress = Progress(
        TextColumn("{task.description:>9}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=plain_console(stderr=True),
        disable=not enabled,
    )
    with progress:
        task = progress.add_task(name, total=total, completed=completed, note="")
        yield Bar(progress, task, unit, completed, scale)


@contextlib.contextmanager
def stop_on_signals(*signals: signal.Signals, worker: bool = False) -> Iterator[threading.Event]:
    """Turn the first signal into an event, so that no work is cut in the middle; the second ends it.

    The first signal is answered with a line on standard error. A second one, half a second later or
    more, raises ``KeyboardInterrupt`` wherever the program is. Outside the main thread, which
    alone receives signals, the event is never set.

    Args:
        *signals: Which signals; default: Ctrl-C and SIGTERM.
        worker: This process is a worker of another one that answers for both: every signal sets the
            event, and no more.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    first = 0.0

    def receive(*_: object) -> None:
        nonlocal first
        if worker:
            stop.set()
        elif not stop.is_set():
            first = time.monotonic()
            stop.set()
            say("Stopping: what is begun is being finished and saved. A second Ctrl-C ends it at once.")
        elif time.monotonic() - first >= _SAME_SIGNAL_SECONDS:
            say("Ending at once: what was begun and not saved is lost.")
            raise KeyboardInterrupt

    signals = signals or (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, receive) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)

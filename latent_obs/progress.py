"""What all long work does: show its progress on standard error, and stop cleanly when told to."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


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
        TextColumn("{task.description:>9}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        disable=not enabled,
    )
    with progress:
        task = progress.add_task(name, total=total, completed=completed, note="")
        yield Bar(progress, task, unit, completed, scale)


@contextlib.contextmanager
def stop_on_signals(
    *signals: signal.Signals,
) -> Iterator[threading.Event]:
    """Turn signals, by default Ctrl-C and SIGTERM, into an event, so that no work is cut in the middle.

    Outside the main thread, which alone receives signals, the event is never set.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    signals = signals or (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)

"""How fast a run goes: with how many threads it is fastest, and how many steps are left in a given time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator

import torch

StepsLeft = Callable[[float, int], int]
# A trial of some threads takes so many steps. Before it come the first steps of a run, or the first one with
# other threads: they are slower, as libraries choose their kernels in them.
TRIED, WARM = 10, 5
# More threads have to be so many times as fast. A trial of more ends after this many times the time of fewer.
FASTER, PATIENCE = 1.1, 2.0
# The pace is taken again after a quarter of what is left, while that is at least so many steps, or after so
# many seconds.
LEAST, SECONDS = 20, 15.0
# Then fewer threads are tried where the pace fell below this share. Where fewer run than could, more are
# tried after so many seconds, then after twice as many.
SLOWER, RETRY_SECONDS = 0.6, 20.0


class Pace:
    """Takes the pace of a run after its first steps and again and again, and plans by it.

    The threads of a step wait for each other many times. So where other processes keep cores busy, or a
    container may use fewer cores than it sees, a few threads are faster than many, tenfold at times.

    Args:
        planned: Called with steps a second and steps taken, returns how many more to take.
        most: PyTorch threads to use at the most. There is one from now to the first steps.
    """

    def __init__(self, planned: StepsLeft, most: int) -> None:
        self._planned, self._most = planned, most
        self._step = 0
        self._more: int | None = None
        self._course = self._run()
        next(self._course)

    def after(self, step: int) -> int | None:
        """Return how many more steps to take after a step; ``None`` where it is not the time to say that."""
        self._step, self._more = step, None
        next(self._course, None)
        return self._more

    def _run(self) -> Generator[None, None, None]:
        threads, rate, patience = 1, (yield from self._try(1, WARM, TRIED)), RETRY_SECONDS
        while True:
            while threads < self._most:
                more = min(2 * threads, self._most)
                other = yield from self._try(more, 1, TRIED, PATIENCE * TRIED / rate)
                if other < FASTER * rate:
                    break
                threads, rate = more, other
            tried = time.monotonic()
            while threads == self._most or time.monotonic() - tried < patience:
                self._more = self._planned(rate, self._step)
                if self._more // 4 < LEAST:
                    torch.set_num_threads(threads)
                    return
                before, rate = rate, (yield from self._try(threads, 0, self._more // 4, SECONDS))
                if threads > 1 and rate < SLOWER * before:
                    other = yield from self._try(threads // 2, 1, TRIED)
                    if other > rate:
                        threads, rate, patience = threads // 2, other, RETRY_SECONDS
            patience *= 2

    def _try(
        self, threads: int, warm: int, steps: int, seconds: float = math.inf
    ) -> Generator[None, None, float]:
        """Let some steps or seconds pass with so many threads; return steps a second after the first ones."""
        torch.set_num_threads(threads)
        end = time.monotonic() + seconds
        for _ in range(warm):
            yield
        begun, taken = time.monotonic(), 0
        while taken < steps and (not taken or time.monotonic() < end):
            yield
            taken += 1
        return taken / (time.monotonic() - begun)

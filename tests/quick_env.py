"""Environments that cost next to nothing, for workers that are killed, measured or hung up."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np


class QuickEnv(gym.Env[Any, Any]):
    """A dot jumps about; episodes last 5 to 40 steps; all of it follows from the seed and the actions.

    In the step of a number given as ``..._after`` it sleeps for long, holds the interpreter's lock for
    long, raises an error, calls ``sys.exit(0)``, ends its process with status 0 or 1, or starts a thread that
    keeps its process alive. ``hang_in`` and ``hold_in`` name the call, ``"constructor"`` or ``"reset"``, that
    sleeps or holds the lock. ``server`` names a file: a process is started, as games do, and its number
    added to the file; with ``"multiprocessing:"`` before the name, multiprocessing starts it.
    ``interrupt`` names a file: the first environment that closes makes it and sends SIGINT to its parent.
    """

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space: gym.Space[Any] = gym.spaces.Discrete(4)

    def __init__(
        self,
        pause: float = 0.0,
        hang_after: int | None = None,
        hold_after: int | None = None,
        break_after: int | None = None,
        exit_after: int | None = None,
        vanish_after: int | None = None,
        crash_after: int | None = None,
        linger_after: int | None = None,
        hang_in: str | None = None,
        hold_in: str | None = None,
        server: str | None = None,
        interrupt: str | None = None,
    ) -> None:
        self.hang_in, self.hold_in, self.interrupt = hang_in, hold_in, interrupt
        self.pause, self.steps = pause, 0
        self.hang_after, self.hold_after, self.break_after = hang_after, hold_after, break_after
        self.exit_after, self.vanish_after, self.linger_after = exit_after, vanish_after, linger_after
        self.crash_after = crash_after
        self.server_ended = (lambda: None) if server is None else start_server(server)
        self._trouble("constructor")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._trouble("reset")
        self.left = int(self.np_random.integers(5, 41))
        return self._image(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.hang_after:
            time.sleep(1000)
        if self.steps == self.hold_after:
            hold()
        if self.steps == self.exit_after:
            sys.exit(0)
        if self.steps == self.vanish_after:
            os._exit(0)
        if self.steps == self.crash_after:
            os._exit(1)
        if self.steps == self.linger_after:
            threading.Thread(target=time.sleep, args=(1000,)).start()
        if self.steps == self.break_after:
            raise RuntimeError("the cable came off")
        if self.server_ended() is not None:
            raise RuntimeError("the server is gone")
        if self.pause:
            time.sleep(self.pause)
        self.left -= 1
        return self._image(int(action)), float(action), self.left == 0, False, {}

    def close(self) -> None:
        if self.interrupt is not None and not os.path.exists(self.interrupt):
            open(self.interrupt, "w").close()
            os.kill(os.getppid(), signal.SIGINT)

    def _trouble(self, call: str) -> None:
        if self.hang_in == call:
            time.sleep(1000)
        if self.hold_in == call:
            hold()

    def _image(self, action: int) -> Any:
        image = np.full((64, 64, 3), 10 * action, np.uint8)
        y, x = self.np_random.integers(0, 64, 2)
        image[y, x] = 255
        return image


def hold() -> None:
    """Spend minutes in C, which never looks for signals."""
    deque(itertools.repeat(0, 10**11), maxlen=0)


def start_server(file: str) -> Callable[[], int | None]:
    """Start a process that nobody ends, and add its number to a file; return what tells how it ended."""
    kind, _, name = file.rpartition(":")
    if kind:
        process: Any = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
        process.start()
    else:
        code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(600)"
        process = subprocess.Popen([sys.executable, "-c", code])
    with open(name, "a") as listed:
        print(process.pid, file=listed)
    return (lambda: process.exitcode) if kind else process.poll


gym.register("Quick-v0", "tests.quick_env:QuickEnv", disable_env_checker=True)

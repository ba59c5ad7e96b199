"""Environments that cost next to nothing, for workers that are killed, measured or hung up."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np


class QuickEnv(gym.Env[Any, Any]):
    """A dot jumps about; episodes last 5 to 40 steps; all of it follows from the seed and the actions.

    In the step of a number given as ``..._after`` it sleeps for ever, holds the interpreter's lock for
    ever, raises an error, calls ``sys.exit(0)``, ends its process with status 0, or starts a thread that
    keeps its process alive.
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
        linger_after: int | None = None,
    ) -> None:
        self.pause, self.steps = pause, 0
        self.hang_after, self.hold_after, self.break_after = hang_after, hold_after, break_after
        self.exit_after, self.vanish_after, self.linger_after = exit_after, vanish_after, linger_after

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(5, 41))
        return self._image(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.hang_after:
            time.sleep(1000)
        if self.steps == self.hold_after:
            deque(itertools.repeat(0), maxlen=0)  # a loop in C that never looks for signals
        if self.steps == self.exit_after:
            sys.exit(0)
        if self.steps == self.vanish_after:
            os._exit(0)
        if self.steps == self.linger_after:
            threading.Thread(target=time.sleep, args=(1000,)).start()
        if self.steps == self.break_after:
            raise RuntimeError("the cable came off")
        if self.pause:
            time.sleep(self.pause)
        self.left -= 1
        return self._image(int(action)), float(action), self.left == 0, False, {}

    def _image(self, action: int) -> Any:
        image = np.full((64, 64, 3), 10 * action, np.uint8)
        y, x = self.np_random.integers(0, 64, 2)
        image[y, x] = 255
        return image


gym.register("Quick-v0", "tests.quick_env:QuickEnv", disable_env_checker=True)

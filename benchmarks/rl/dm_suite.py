"""DMControl's tasks as Gymnasium environments of 64x64 images, drawn by the processor.

    gym.make("dm_suite:DMControl-v0", task="cartpole-swingup", repeat=8)

Needs ``pip install shimmy dm_control==1.0.50 mujoco==3.17.0`` and, where there is no GPU, Mesa's EGL
(``apt-get install libegl1 libgl1-mesa-dri``). This dm_control reads a field that mujoco 4.0.0 lacks.
"""

from __future__ import annotations

import os
import sys
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.wrappers import AddRenderObservation, TimeLimit

SIZE = 64
# Mesa draws a frame in a quarter to an eighth of the time, and its values change by less than 0.5 of 255 on
# average.
QUALITY = {"shadowsize": 256, "numslices": 12, "numstacks": 6}


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Takes each action several times and sums the rewards."""

    def __init__(self, env: gym.Env[Any, Any], repeat: int) -> None:
        super().__init__(env)
        self.repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        for _ in range(self.repeat):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += float(reward)
            if terminated or truncated:
                break
        return obs, total, terminated, truncated, info


def make(task: str, repeat: int = 1, frames: int = 1000) -> gym.Env[Any, Any]:
    """Make a task, such as ``cartpole-swingup``, whose observations are images of shape (64, 64, 3).

    Args:
        task: Domain and task of DMControl's suite, with a hyphen between them.
        repeat: Frames for which each action is taken; the last one is drawn.
        frames: Frames after which an episode ends, 1000 at most.

    Raises:
        ImportError: If dm_control or shimmy is not installed.
        ValueError: If there is no such task.
    """
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's threads cost more than they bring at this size
    from dm_control import suite
    from shimmy.dm_control_compatibility import DmControlCompatibilityV0

    domain, _, name = task.partition("-")
    if (domain, name) not in suite.ALL_TASKS:
        raise ValueError(f"DMControl has no task {task!r}. Write domain-task, such as cartpole-swingup.")
    found = suite.load(domain, name)
    visual = found.physics.model.vis
    visual.global_.offwidth = visual.global_.offheight = SIZE
    for option, value in QUALITY.items():
        setattr(visual.quality, option, value)
    view = {"height": SIZE, "width": SIZE, "camera_id": 0}
    env = DmControlCompatibilityV0(found, render_mode="rgb_array", render_kwargs=view)
    return AddRenderObservation(ActionRepeat(TimeLimit(env, frames), repeat))


gym.register("DMControl-v0", "dm_suite:make")

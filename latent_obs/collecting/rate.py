"""How fast an environment gives frames."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym

from latent_obs.collecting.policies import make_policy
from latent_obs.frames import FrameSpec, check_frame_space, preprocess


def frames_per_second(env: gym.Env[Any, Any], policy: str, seconds: float) -> float:
    """Measure at which rate one process collects frames of an environment.

    Args:
        env: The environment. It is played, and not closed.
        policy: What acts, as :class:`~latent_obs.CollectConfig` takes it.
        seconds: How long to play.

    Raises:
        ValueError: If its observations are no images, or the policy does not fit.
    """
    check_frame_space(env.observation_space, "latent-obs fit", env)
    actor, spec = make_policy(policy, env), FrameSpec()
    actor.reset(0)
    obs, _ = env.reset(seed=0)
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < seconds:
        obs, _, terminated, truncated, _ = env.step(actor.act(obs))
        preprocess(obs, spec)
        count += 1
        if terminated or truncated:
            obs, _ = env.reset()
    return max(1.0, count / (time.monotonic() - begun))

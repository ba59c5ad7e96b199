"""What acts during collection.

Every policy is an object with two methods: ``reset(seed)``, called at the start of every
shard, and ``act(obs)``, called before every step. After ``reset(seed)`` a policy's actions
depend on its seed and the observations alone, which is what makes collection repeatable.
"""

from __future__ import annotations

import importlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np


class Policy(Protocol):
    """Chooses actions while frames are collected."""

    def reset(self, seed: int) -> None:
        """Forget the past and seed the policy's randomness."""

    def act(self, obs: Any) -> Any:
        """Return an action for the raw observation ``obs``."""


class RandomPolicy:
    """Samples the action space uniformly, as in World Models' Atari ports.

    Example:
        >>> policy = RandomPolicy(gym.spaces.Discrete(6))
        >>> policy.reset(seed=0)
        >>> policy.act(None) in policy.action_space
        True
    """

    def __init__(self, action_space: gym.Space[Any]) -> None:
        self.action_space = action_space

    def reset(self, seed: int) -> None:
        """Seed the action space."""
        self.action_space.seed(seed)

    def act(self, obs: Any) -> Any:
        """Return a uniformly random action."""
        return self.action_space.sample()


class StickyPolicy(RandomPolicy):
    """Repeats each random action for a geometric number of steps, 8 on average.

    Uniform actions cancel each other out and leave paddles and cars near where they started;
    repeated ones reach more of the game.
    """

    mean_steps = 8

    def reset(self, seed: int) -> None:
        """Seed the action space and the lengths."""
        super().reset(seed)
        self._rng = np.random.default_rng(seed)
        self._left = 0

    def act(self, obs: Any) -> Any:
        """Return the current action, or a new one when its steps are used up."""
        if self._left == 0:
            self._action = super().act(obs)
            self._left = int(self._rng.geometric(1 / self.mean_steps))
        self._left -= 1
        return self._action


class BrownianPolicy:
    """Takes a random walk through a bounded continuous action space.

    Each step adds Gaussian noise of ``scale`` times the width of the space and clips.
    World Models ports use this on CarRacing, where independent actions brake as often as
    they drive and the car never leaves the start.

    Args:
        action_space: A bounded ``Box``.

    Raises:
        ValueError: If the action space is not a bounded ``Box``.
    """

    scale = 0.1

    def __init__(self, action_space: gym.Space[Any]) -> None:
        if not isinstance(action_space, gym.spaces.Box) or not action_space.is_bounded():
            raise ValueError(
                f"The brownian policy needs a bounded continuous action space, got {action_space}. "
                "Use --policy sticky."
            )
        self.action_space = action_space

    def reset(self, seed: int) -> None:
        """Seed the walk and start it at a random action."""
        self._rng = np.random.default_rng(seed)
        self.action_space.seed(seed)
        self._action = self.action_space.sample()

    def act(self, obs: Any) -> Any:
        """Return the next point of the walk."""
        low, high = self.action_space.low, self.action_space.high
        noise = self._rng.normal(size=low.shape) * self.scale * (high - low)
        self._action = np.clip(self._action + noise, low, high).astype(self.action_space.dtype)
        return self._action


class CallablePolicy:
    """Acts through a user's function ``act(obs, action_space) -> action``.

    Args:
        function: Called before every step. If it has a method ``reset(seed)``, that is called
            at the start of every shard.
        action_space: Passed on; seeded at the start of every shard.
    """

    def __init__(self, function: Callable[[Any, gym.Space[Any]], Any], action_space: gym.Space[Any]):
        self.function, self.action_space = function, action_space

    def reset(self, seed: int) -> None:
        """Seed the action space and, where it can be, the function."""
        self.action_space.seed(seed)
        if hasattr(self.function, "reset"):
            self.function.reset(seed)

    def act(self, obs: Any) -> Any:
        """Call the function."""
        return self.function(obs, self.action_space)


class SB3Policy:
    """Acts with a saved Stable-Baselines3 model, sampling its actions.

    Loading a Stable-Baselines3 zip unpickles parts of it: only load files you trust.

    Args:
        path: A ``.zip`` written by ``model.save``.
        env: The environment that the model will act in; its spaces must be the model's.

    Raises:
        ValueError: If the file is no Stable-Baselines3 zip, or was trained on other spaces.
        ImportError: If Stable-Baselines3 is not installed.
    """

    def __init__(self, path: Path, env: gym.Env[Any, Any]) -> None:
        try:
            import stable_baselines3
        except ImportError as error:
            raise ImportError(
                f"The policy {path} needs Stable-Baselines3: pip install 'latent_obs[sb3]'."
            ) from error
        algorithm = getattr(stable_baselines3, _sb3_algorithm(path))
        self.model = algorithm.load(path, device="cpu")
        for name in ("observation_space", "action_space"):
            wanted, got = getattr(self.model, name), getattr(env, name)
            if wanted != got:
                raise ValueError(
                    f"The model {path} was trained with the {name} {wanted}, the environment has {got}."
                )

    def reset(self, seed: int) -> None:
        """Seed the model's sampling."""
        self.model.set_random_seed(seed)

    def act(self, obs: Any) -> Any:
        """Sample an action from the model."""
        return self.model.predict(obs, deterministic=False)[0]


def _sb3_algorithm(path: Path) -> str:
    """Name the algorithm of a saved model from the JSON in its zip, which needs no unpickling."""
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        module = data["policy_class"]["__module__"]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a model saved by Stable-Baselines3.") from error
    if module == "stable_baselines3.common.policies":
        return "PPO" if "clip_range" in data else "A2C"
    for name in ("DQN", "SAC", "TD3"):
        if module == f"stable_baselines3.{name.lower()}.policies":
            return name
    raise ValueError(f"{path} holds a policy of {module}; only Stable-Baselines3's own are known.")


def make_policy(name: str, env: gym.Env[Any, Any]) -> Policy:
    """Build a policy from its name.

    Args:
        name: ``"random"``, ``"sticky"``, ``"brownian"``, the path of a Stable-Baselines3
            ``.zip``, or ``"module:callable"`` for a function ``act(obs, action_space)``.
        env: The environment it will act in.

    Raises:
        ValueError: If the name is unknown or the policy does not fit the environment.

    Example:
        >>> type(make_policy("sticky", gym.make("CartPole-v1"))).__name__
        'StickyPolicy'
    """
    if name == "random":
        return RandomPolicy(env.action_space)
    if name == "sticky":
        return StickyPolicy(env.action_space)
    if name == "brownian":
        return BrownianPolicy(env.action_space)
    if name.endswith(".zip"):
        if not Path(name).is_file():
            raise ValueError(f"The policy {name} does not exist.")
        return SB3Policy(Path(name), env)
    module, _, attribute = name.partition(":")
    if attribute:
        try:
            function = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"The policy {name!r} could not be imported: {error}.") from error
        if not callable(function):
            raise ValueError(f"The policy {name!r} is a {type(function).__name__}, not callable.")
        return CallablePolicy(function, env.action_space)
    raise ValueError(
        f"Unknown policy {name!r}. Use random, sticky, brownian, the .zip of a Stable-Baselines3 "
        "model, or module:callable."
    )

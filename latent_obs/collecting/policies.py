"""What acts during collection.

Every policy is an object with two methods: ``reset(seed)``, called at the start of every
episode, and ``act(obs)``, called before every step. After ``reset(seed)`` a policy's actions
depend on its seed and the observations alone, which is what makes collection repeatable.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from latent_obs.adapter import open_encoder
from latent_obs.collecting import models
from latent_obs.encoders.encoder import Encoder
from latent_obs.encoders.resolve import resolve, resolve_auto
from latent_obs.frames import frame_source
from latent_obs.images import MadeBy


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
            at the start of every episode.
        action_space: Passed on; seeded at the start of every episode.
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


class MixedPolicy:
    """Draws one of several policies for each episode.

    Args:
        policies: What to draw from.
        weights: How often each acts, relative to the others; they count episodes, not frames.
    """

    def __init__(self, policies: list[Policy], weights: list[float]) -> None:
        self.policies, self.chances = policies, np.array(weights) / sum(weights)

    def reset(self, seed: int) -> None:
        """Draw the policy of this episode and seed it."""
        rng = np.random.default_rng(seed)
        self.acting = self.policies[rng.choice(len(self.policies), p=self.chances)]
        self.acting.reset(int(rng.integers(2**32)))

    def act(self, obs: Any) -> Any:
        """Return the action of the policy that was drawn."""
        return self.acting.act(obs)


def make_policy(
    name: str, env: gym.Env[Any, Any], encoder: str | None = None, normalize: bool | None = None
) -> Policy:
    """Build a policy from its name.

    Args:
        name: ``"random"``, ``"sticky"``, ``"brownian"``, the path of a model in an ``.onnx`` file or in
            a Stable-Baselines3 ``.zip``, ``"module:callable"`` for a function ``act(obs, action_space)``,
            or several of them with weights, such as ``"random:0.5,agent.onnx:0.5"``.
        env: The environment it will act in.
        encoder: Encoder whose latents the saved models were trained on, as
            :class:`~latent_obs.LatentObservationWrapper` takes it.
        normalize: What that wrapper was given when they were trained; nothing in their files tells.

    Raises:
        ValueError: If the name is unknown or the policy does not fit the environment.

    Example:
        >>> type(make_policy("sticky", gym.make("CartPole-v1"))).__name__
        'StickyPolicy'
        >>> make_policy("random:3,sticky:1", gym.make("CartPole-v1")).chances.tolist()
        [0.75, 0.25]
    """
    parts = parse_mix(name)
    loaded = None
    if encoder is not None:
        if not any(part.endswith(models.SUFFIXES) for part, _ in parts):
            raise ValueError(
                f"The policy {name!r} takes no encoder: only a saved model, .onnx or .zip, acts on latents. "
                "Leave --policy-encoder out."
            )
        loaded = open_encoder(encoder, frame_source(env), normalize, made=MadeBy.of(env))
    policies = [_make_one(part, env, loaded) for part, _ in parts]
    return policies[0] if len(policies) == 1 else MixedPolicy(policies, [weight for _, weight in parts])


def default_policy(env: gym.Env[Any, Any]) -> str:
    """Name what acts where nobody says what: independent continuous actions would cancel each other out.

    Example:
        >>> default_policy(gym.make("CartPole-v1"))
        'random'
    """
    return "brownian" if isinstance(env.action_space, gym.spaces.Box) else "random"


def parse_mix(name: str) -> list[tuple[str, float]]:
    """Split a policy's name into the policies it mixes and their weights.

    What follows the last colon is a weight if it is a number, which no callable's name is.

    Raises:
        ValueError: If a part is empty, or a weight is missing or not positive.

    Example:
        >>> parse_mix("random:0.5,my.module:act:2")
        [('random', 0.5), ('my.module:act', 2.0)]
        >>> parse_mix("my.module:act")
        [('my.module:act', 1.0)]
    """
    parts: list[tuple[str, float]] = []
    words = name.split(",")
    for word in map(str.strip, words):
        part, _, tail = word.rpartition(":")
        try:
            weight = float(tail) if part else None
        except ValueError:
            weight = None
        if weight is None:
            if len(words) > 1:
                raise ValueError(
                    f"Every policy of the mix {name!r} needs a weight, {word!r} has none: write it as "
                    f"{word or 'random'}:0.5."
                )
            return [(word, 1.0)]
        if not 0 < weight < math.inf:
            raise ValueError(f"The weight of {part!r} in the policy {name!r} must be above 0, got {tail}.")
        parts.append((part, weight))
    return parts


def policy_files(name: str, env: gym.Env[Any, Any], encoder: str | None = None) -> dict[str, str] | None:
    """Return a digest of every file that decides a policy's actions; ``None`` without files.

    A model trained further under the same name must not go on with another's frames.
    """
    files = {
        part: hashlib.sha256(Path(part).read_bytes()).hexdigest()
        for part, _ in parse_mix(name)
        if part.endswith(models.SUFFIXES)
    }
    if encoder is not None:
        ref = resolve_auto(frame_source(env), MadeBy.of(env)) if encoder == "auto" else encoder
        files[ref] = resolve(ref).sha256()
    return {ref: digest[:16] for ref, digest in files.items()} or None


def _make_one(name: str, env: gym.Env[Any, Any], encoder: Encoder | None) -> Policy:
    if name == "random":
        return RandomPolicy(env.action_space)
    if name == "sticky":
        return StickyPolicy(env.action_space)
    if name == "brownian":
        return BrownianPolicy(env.action_space)
    if name.endswith(models.SUFFIXES):
        if not Path(name).is_file():
            raise ValueError(f"The policy {name} does not exist.")
        model = models.OnnxPolicy if name.endswith(".onnx") else models.SB3Policy
        return model(Path(name), env, encoder)
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
        f"Unknown policy {name!r}. Use random, sticky, brownian, a saved model (.onnx, or the .zip of "
        "Stable-Baselines3), module:callable, or a mix such as random:0.5,sticky:0.5."
    )

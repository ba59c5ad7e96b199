"""Watches whether live latents still are distributed as they were over the training frames.

A policy that gets better reaches screens that the collection never saw, and a frozen encoder does not say
so. A number does here: the KL divergence of the last latents from the training frames' latents, both taken
as Gaussians with independent dimensions, in nats per active dimension. It is 0 when they are alike, and
grows when latents shift, spread or stop changing. ``benchmarks/drift.py`` measures it with ``pong-v0`` over
windows of 500 steps: at most 0.24 on Pong, also at another difficulty; 1.4 to 1.5 on Pong in gray, 5.6 to
6.1 with red and blue exchanged, 4.9 on a black picture, 11.5 on one that stands still; 14 on Breakout and
1.5 to 2.1 on Space Invaders. Small changes of the whole picture show little: Pong made 8% brighter has 0.17
to 0.34, which is below the default threshold of 0.5. The number cannot show what the encoder does not see.
"""

from __future__ import annotations

import warnings
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from latent_obs.encoders.encoder import Encoder
from latent_obs.encoders.folder import ACTIVE_VARIANCE, Latents
from latent_obs.encoders.resolve import level_of_caller
from latent_obs.wrappers import LatentObservationWrapper

INFO_KEY = "latent_drift"
# A screen that stands still has no variance; this floor keeps its drift finite.
_MIN_VARIANCE = 1e-4


class Drift:
    """The drift of a running window of latents.

    Args:
        encoder: It knows the mean and standard deviation of its latents over the training frames.
        window: Latents, of all environments together, in the window.
        threshold: Nats per dimension above which the latents have left the training distribution.
        command: What somebody types to train the encoder on with frames of its agent, for the warning.

    Attributes:
        value: The drift of the last ``window`` latents, at first of as many as there were; 0 at
            the start. Until the window is full it is high, for few frames resemble each other.
            It is worked out anew for every hundredth of the window.
        exceeded: Whether the window is full and its drift above the threshold.

    Raises:
        ValueError: If ``window`` or ``threshold`` is out of range, or the encoder has collapsed.

    Example:
        >>> from latent_obs import load_encoder
        >>> encoder = load_encoder("pong-v0")
        >>> drift, rng = Drift(encoder, window=1000, threshold=3.0), np.random.default_rng(0)
        >>> usual = rng.normal(drift.mean, drift.std, (1000, 32)).astype(np.float32)
        >>> drift.update(usual) < 0.01
        True
        >>> 1.9 < drift.update(usual + 2 * drift.std) < 2.1
        True
    """

    def __init__(
        self,
        encoder: Encoder,
        window: int = 1000,
        threshold: float = 0.5,
        command: str = "latent-obs refresh ENCODER ENV AGENT",
    ) -> None:
        if window < 2:
            raise ValueError(f"window must be at least 2, got {window}.")
        if not threshold > 0:
            raise ValueError(f"threshold must be positive, got {threshold}.")
        self.encoder, self.threshold, self.command = encoder, threshold, command
        self.mean, self.std = encoder.statistics  # scaled as the latents are, so the drift is the same
        self._active = np.square(self.std) > ACTIVE_VARIANCE
        if not self._active.any():
            raise ValueError(f"The encoder {encoder.ref} has collapsed: no dimension varied in training.")
        self._window = np.zeros((window, len(self.mean)), np.float32)
        # A hundredth of the window changes little: that often the drift is worked out.
        self._interval, self._since, self._seen = max(1, window // 100), 0, 0
        self.value, self._warned = 0.0, False

    @property
    def exceeded(self) -> bool:
        """Whether the window is full and its drift above the threshold."""
        return self._seen >= len(self._window) and self.value > self.threshold

    def update(self, latents: Latents) -> float:
        """Add latents and return the drift.

        Args:
            latents: Of one observation, shape (latent_dim,), or of several, (N, latent_dim).

        Warns:
            UserWarning: When the drift comes to exceed the threshold.
        """
        size = len(self._window)
        new = latents.reshape(-1, len(self.mean))[-size:]
        place = self._seen % size
        if place + len(new) <= size:
            self._window[place : place + len(new)] = new
        else:
            self._window[np.arange(place, place + len(new)) % size] = new
        self._seen += len(new)
        self._since += len(new)
        if self._since < self._interval:
            return self.value
        self._since = 0
        live, std = self._window[: self._seen], self.std[self._active]
        shift = (live.mean(0) - self.mean)[self._active] / std
        variance = np.maximum(live.var(0)[self._active] / np.square(std), _MIN_VARIANCE)
        self.value = float(0.5 * (np.square(shift) + variance - 1 - np.log(variance)).mean())
        if self.exceeded and not self._warned:
            warnings.warn(
                f"The last {size} latents have left the training distribution of the encoder "
                f"{self.encoder.ref}: drift {self.value:.2f} nats per dimension, threshold {self.threshold}. "
                f"Save the agent and train the encoder on with what it sees: {self.command}",
                UserWarning,
                stacklevel=level_of_caller(),
            )
        self._warned = self.exceeded
        return self.value


class LatentDriftMonitor(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Adds ``info["latent_drift"]`` and warns when the latents leave the training distribution.

    Put it anywhere above :class:`latent_obs.LatentObservationWrapper`: it watches that wrapper's latents,
    whatever wrappers between make of them; of several entries, the first one's. It changes nothing else.
    See :class:`Drift` for the number.

    Args:
        env: An environment with a :class:`latent_obs.LatentObservationWrapper` inside.
        window: Steps in the running window.
        threshold: Nats per dimension above which it warns, once each time the window gets there.

    Raises:
        ValueError: If there is no :class:`latent_obs.LatentObservationWrapper` inside, or an
            argument is out of range.

    Warns:
        UserWarning: When the drift of a full window comes to exceed the threshold.

    Example:
        >>> env = LatentDriftMonitor(gym.make("latent_obs:LatentObs/Pong-v5"), window=500)
        >>> env.drift.threshold
        0.5
    """

    def __init__(self, env: gym.Env[Any, Any], window: int = 1000, threshold: float = 0.5) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, window=window, threshold=threshold)
        gym.Wrapper.__init__(self, env)
        self._watched = find_wrapper(env, LatentObservationWrapper)
        command = self._watched._entries.refresh_command()
        self.drift = Drift(self._watched.encoder, window, threshold, command)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment; the window goes on."""
        obs, info = self.env.reset(seed=seed, options=options)
        return obs, {**info, INFO_KEY: self.drift.update(self._watched._newest)}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and add the drift to its info."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        info = {**info, INFO_KEY: self.drift.update(self._watched._newest)}
        return obs, reward, terminated, truncated, info


def find_wrapper(env: Any, kind: type[Any]) -> Any:
    """Return the wrapper of a kind inside an environment.

    Raises:
        ValueError: If there is none.
    """
    inner = env
    while not isinstance(inner, kind):
        if not hasattr(inner, "env"):
            raise ValueError(
                f"LatentDriftMonitor watches latents, but there is no {kind.__module__}.{kind.__name__} "
                f"inside {env}. Put it above that wrapper."
            )
        inner = inner.env
    return inner

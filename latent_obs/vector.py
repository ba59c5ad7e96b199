"""The observation wrapper for vector environments: one encoder and one batch for all of them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from latent_obs.adapter import (
    EncoderLike,
    LatentStack,
    arrangement,
    as_rgb,
    encode_images,
    latent_space,
    open_encoder,
    warn_of_other_source,
)
from latent_obs.drift import INFO_KEY, Drift, find_wrapper, newest
from latent_obs.encoders.folder import Latents
from latent_obs.frames import frame_source

_VectorEnv = gym.vector.VectorEnv[Any, Any, Any]


class LatentObservationWrapper(gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Replaces the image observations of a vector environment with latents.

    Does what :class:`latent_obs.LatentObservationWrapper` does in every sub-environment, but
    with one encoder, in this process, and with all observations of a step in one batch, final
    ones included. All three autoreset modes are supported. Encoding above the environments
    rather than in each also keeps worker processes from fighting for cores.

    Besides Gymnasium's own vector environments it takes ALE's ``AtariVectorEnv`` with
    ``stack_num=1, grayscale=False`` (asynchronous ``batch_size`` included) and EnvPool's
    planar ``(N, 3, H, W)`` images. Frames that already are 64x64 are not resized.

    Args:
        env: Its single observations are ``uint8`` RGB images, or a ``Dict`` with such an entry.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        stack: Latents of the last ``stack`` observations, oldest first, concatenated; an episode
            begins with its first latent in all places.
        key: The entry of a ``Dict`` observation to encode; the others stay as they are.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.

    Raises:
        ValueError: If the observations are no RGB images, ``key`` does not fit, the encoder
            is damaged, or ``encoder`` says otherwise than ``normalize``.
        FileNotFoundError: If there is no such encoder.

    Example:
        >>> import ale_py
        >>> envs = gym.make_vec("ALE/Pong-v5", num_envs=2, vectorization_mode="sync")
        >>> envs = LatentObservationWrapper(envs, stack=4)
        >>> envs.single_observation_space.shape, envs.reset(seed=0)[0].shape
        ((128,), (2, 128))
    """

    def __init__(
        self,
        env: _VectorEnv,
        encoder: EncoderLike = "auto",
        *,
        stack: int = 1,
        key: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        source = frame_source(env)
        self.encoder = open_encoder(encoder, source, normalize)
        gym.utils.RecordConstructorArgs.__init__(
            self, encoder=self.encoder.spec, stack=stack, key=key, normalize=self.encoder.normalize
        )
        gym.vector.VectorWrapper.__init__(self, env)
        self.stack, self.key = stack, key
        single = _single_space(env)
        self._arranged = arrangement(single if key is None else getattr(single, "spaces", {}).get(key))
        self.single_observation_space = latent_space(as_rgb(single, key), self.encoder, stack, key)
        # Asynchronous ALE returns fewer observations than there are environments.
        batch = getattr(env.unwrapped, "batch_size", None) or env.num_envs
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, batch)
        # Read now: ale-py writes the mode into metadata that all of its environments share.
        mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
        self._autoreset = str(getattr(mode, "value", mode or "NextStep"))
        self._stack = LatentStack(stack, self.encoder.latent_dim, env.num_envs)
        warn_of_other_source(source, self.encoder)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``, and encode."""
        mask = None if options is None else options.get("reset_mask")
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        images = self._entry(obs)
        rows = self._rows(infos, len(images))
        # Environments that are not reset report their last observation again: no second push.
        began = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool)
        self._stack.begin(np.flatnonzero(began))
        fresh = began[rows]
        self._stack.push(self._encode(images[fresh]), rows[fresh])
        return self._replace(obs, self._stack.read(rows)), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments and encode their observations, final ones included."""
        return self._encode_step(*self.env.step(actions))

    def send(self, actions: Any) -> None:
        """Pass actions on to an asynchronous environment."""
        self.env.send(actions)  # type: ignore[attr-defined]

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Encode what an asynchronous environment returns."""
        return self._encode_step(*self.env.recv())  # type: ignore[attr-defined]

    def _encode_step(
        self, obs: Any, rewards: Any, terminations: Any, truncations: Any, infos: dict[str, Any]
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        live, done = self._entry(obs), np.logical_or(terminations, truncations)
        rows = self._rows(infos, len(live))
        ended: npt.NDArray[np.intp] = np.flatnonzero(done)
        if len(ended) and self._autoreset == "SameStep":
            # Live and final observations go through the encoder as one batch.
            final = [self._entry(infos["final_obs"][i]) for i in ended]
            latents = self._encode([*live, *final])
            stacks = self._stack.push(latents[len(live) :], rows[ended])
            infos = {**infos, "final_obs": self._final(infos["final_obs"], ended, stacks)}
            self._stack.begin(rows[ended])
            latents = latents[: len(live)]
        else:
            latents = self._encode(live)
        flat = self._stack.push(latents, rows)
        if self._autoreset == "NextStep":
            self._stack.begin(rows[ended])
        return self._replace(obs, flat), rewards, terminations, truncations, infos

    def _encode(self, images: Any) -> Latents:
        return encode_images(self.encoder, images, self._arranged)

    def _rows(self, infos: dict[str, Any], size: int) -> npt.NDArray[np.intp]:
        """Return which environments a batch comes from: all, unless an asynchronous one says so."""
        return np.arange(size) if size == self.num_envs else np.asarray(infos["env_id"], np.intp)

    def _entry(self, obs: Any) -> Any:
        return obs if self.key is None else obs[self.key]

    def _replace(self, obs: Any, flat: Latents) -> Any:
        return flat if self.key is None else {**obs, self.key: flat}

    def _final(self, final: Any, ended: Any, flat: Latents) -> npt.NDArray[Any]:
        """Return ``final_obs`` with latents, in the environment's own form."""
        if isinstance(final, np.ndarray) and final.dtype != object:  # ALE: a batch without a mask
            batch = np.zeros((len(final), flat.shape[1]), np.float32)
            batch[ended] = flat
            return batch
        objects = np.full(len(final), None, dtype=object)
        for row, latent in zip(ended, flat, strict=True):
            objects[row] = latent if self.key is None else {**final[row], self.key: latent}
        return objects


def _single_space(env: _VectorEnv) -> gym.Space[Any]:
    """Return the space of one environment's observation."""
    single = getattr(env, "single_observation_space", None)
    return env.observation_space if single is None else single  # EnvPool has no batched space


class LatentDriftMonitor(gym.vector.VectorWrapper, gym.utils.RecordConstructorArgs):
    """Adds ``infos["latent_drift"]`` and warns when the latents leave the training distribution.

    Does what :class:`latent_obs.LatentDriftMonitor` does, with one window over all environments,
    hence one number.

    Args:
        env: A vector environment with this module's :class:`LatentObservationWrapper` inside.
        window: Observations, of all environments together, in the running window.
        threshold: Nats per dimension above which it warns, once each time the window gets there.

    Raises:
        ValueError: If there is no :class:`LatentObservationWrapper` inside, or an argument is out
            of range.

    Warns:
        UserWarning: When the drift of a full window comes to exceed the threshold.

    Example:
        >>> envs = gym.make_vec("latent_obs:LatentObs/Pong-v5", num_envs=8)
        >>> LatentDriftMonitor(envs).drift.threshold
        0.5
    """

    def __init__(self, env: _VectorEnv, window: int = 1000, threshold: float = 0.5) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, window=window, threshold=threshold)
        gym.vector.VectorWrapper.__init__(self, env)
        wrapper = find_wrapper(env, LatentObservationWrapper)
        self.drift, self._key = Drift(wrapper.encoder, window, threshold), wrapper.key

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments; the window goes on."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return obs, {**infos, INFO_KEY: self.drift.update(newest(obs, self._key, self.drift))}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments and add the drift to their infos."""
        obs, rewards, terminations, truncations, infos = self.env.step(actions)
        infos = {**infos, INFO_KEY: self.drift.update(newest(obs, self._key, self.drift))}
        return obs, rewards, terminations, truncations, infos

"""The observation wrapper for vector environments: one encoder and one batch for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from latent_obs.adapter import EncoderLike, Key, check_is_env
from latent_obs.drift import INFO_KEY, Drift, find_wrapper
from latent_obs.encoders.folder import Latents
from latent_obs.entries import ImageEntries

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
        env: Its single observations are as :class:`latent_obs.LatentObservationWrapper` takes them.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it. For ``"auto"`` a vector
            environment without a spec asks its environments for theirs.
        stack: Latents of the last ``stack`` observations, oldest first, concatenated; an episode
            begins with its first latent in all places.
        key: As :class:`latent_obs.LatentObservationWrapper` takes it.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.

    Attributes:
        encoder: The loaded encoder; where each key has its own, that of the first.

    Raises:
        ValueError: As :class:`latent_obs.LatentObservationWrapper` does.
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
        encoder: EncoderLike | Mapping[str, EncoderLike] = "auto",
        *,
        stack: int = 1,
        key: Key = None,
        normalize: bool | None = None,
        fingerprint: str | Mapping[str, str | None] | None = None,
    ) -> None:
        check_is_env(env, gym.vector.VectorEnv, "vector.LatentObservationWrapper")
        self._entries = ImageEntries(
            _single_space(env),
            encoder,
            key=key,
            stack=stack,
            normalize=normalize,
            fingerprint=fingerprint,
            env=env,
        )
        gym.utils.RecordConstructorArgs.__init__(self, **self._entries.arguments)
        gym.vector.VectorWrapper.__init__(self, env)
        self.encoder, self.stack, self.key = self._entries.encoder, stack, key
        self.single_observation_space = self._entries.space
        # Asynchronous ALE returns fewer observations than there are environments.
        batch = getattr(env.unwrapped, "batch_size", None) or env.num_envs
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, batch)
        # Read now: ale-py writes the mode into metadata that all of its environments share.
        mode = getattr(env.unwrapped, "autoreset_mode", None) or env.metadata.get("autoreset_mode")
        self._autoreset = str(getattr(mode, "value", mode or "NextStep"))
        self._stacks = self._entries.stacks(env.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those of ``options["reset_mask"]``, and encode."""
        mask = None if options is None else options.get("reset_mask")
        obs, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        images = self._entries.images(obs)
        rows = self._rows(infos, len(images[0]))
        # Environments that are not reset report their last observation again: no second push.
        began = np.ones(self.num_envs, bool) if mask is None else np.asarray(mask, bool)
        fresh = began[rows]
        latents = self._entries.encode([batch[fresh] for batch in images])
        self._newest = latents[0]  # for LatentDriftMonitor
        for stack, each in zip(self._stacks, latents, strict=True):
            stack.begin(np.flatnonzero(began))
            stack.push(each, rows[fresh])
        return self._entries.put(obs, [stack.read(rows) for stack in self._stacks]), infos

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
        live, done = self._entries.images(obs), np.logical_or(terminations, truncations)
        rows = self._rows(infos, len(live[0]))
        ended: npt.NDArray[np.intp] = np.flatnonzero(done)
        if len(ended) and self._autoreset == "SameStep":
            # Live and final observations go through the encoder as one batch.
            finals = [self._entries.images(infos["final_obs"][i]) for i in ended]
            both = [[*batch, *final] for batch, final in zip(live, zip(*finals, strict=True), strict=True)]
            latents = self._entries.encode(both)
            stacks = [
                stack.push(each[len(rows) :], rows[ended])
                for stack, each in zip(self._stacks, latents, strict=True)
            ]
            infos = {**infos, "final_obs": self._final(infos["final_obs"], ended, stacks)}
            for stack in self._stacks:
                stack.begin(rows[ended])
            latents = [each[: len(rows)] for each in latents]
        else:
            latents = self._entries.encode(live)
        self._newest = latents[0]
        flat = [stack.push(each, rows) for stack, each in zip(self._stacks, latents, strict=True)]
        if self._autoreset == "NextStep":
            for stack in self._stacks:
                stack.begin(rows[ended])
        return self._entries.put(obs, flat), rewards, terminations, truncations, infos

    def _rows(self, infos: dict[str, Any], size: int) -> npt.NDArray[np.intp]:
        """Return which environments a batch comes from: all, unless an asynchronous one says so."""
        return np.arange(size) if size == self.num_envs else np.asarray(infos["env_id"], np.intp)

    def _final(self, final: Any, ended: Any, stacks: list[Latents]) -> npt.NDArray[Any]:
        """Return ``final_obs`` with latents, in the environment's own form."""
        if isinstance(final, np.ndarray) and final.dtype != object:  # ALE: a batch without a mask
            batch = np.zeros((len(final), stacks[0].shape[1]), np.float32)
            batch[ended] = stacks[0]
            return batch
        objects = np.full(len(final), None, dtype=object)
        for row, entries in zip(ended, zip(*stacks, strict=True), strict=True):
            objects[row] = self._entries.put(final[row], entries)
        return objects


class RegisteredLatents(LatentObservationWrapper):
    """The wrapper in a vector environment that :mod:`latent_obs.envs` registers: its id stands for both."""

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's spec; its arguments name the encoder that was taken, and its weights."""
        return self._entries.name_encoder(self.env.spec)


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
        self._watched = find_wrapper(env, LatentObservationWrapper)
        command = self._watched._entries.refresh_command()
        self.drift = Drift(self._watched.encoder, window, threshold, command)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the environments; the window goes on."""
        obs, infos = self.env.reset(seed=seed, options=options)
        return obs, {**infos, INFO_KEY: self.drift.update(self._watched._newest)}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step the environments and add the drift to their infos."""
        return self._with_drift(*self.env.step(actions))

    def send(self, actions: Any) -> None:
        """Pass actions on to an asynchronous environment."""
        self.env.send(actions)  # type: ignore[attr-defined]

    def recv(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Add the drift to the infos of what an asynchronous environment returns."""
        return self._with_drift(*self.env.recv())  # type: ignore[attr-defined]

    def _with_drift(
        self, obs: Any, rewards: Any, terminations: Any, truncations: Any, infos: dict[str, Any]
    ) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        infos = {**infos, INFO_KEY: self.drift.update(self._watched._newest)}
        return obs, rewards, terminations, truncations, infos

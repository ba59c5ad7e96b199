"""Stable-Baselines3: latents for all environments of a ``VecEnv`` in one batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec

from latent_obs.adapter import (
    EncoderLike,
    arrangement,
    as_rgb,
    encode_images,
    latent_space,
    open_encoder,
    warn_of_other_source,
)
from latent_obs.drift import INFO_KEY, Drift, newest
from latent_obs.extras import needs
from latent_obs.frames import FrameSource, frame_source

with needs("latent_obs.sb3", "sb3"):
    from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, unwrap_vec_wrapper
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn


class VecLatentObservation(VecEnvWrapper):
    """Replaces the image observations of a ``VecEnv`` with latents.

    Does what :class:`latent_obs.LatentObservationWrapper` does in every environment, but with one
    encoder, in this process, and with all observations of a step in one batch; the
    ``terminal_observation`` of episodes that end is in the same batch. Images may be ``(H, W, 3)``
    or, after ``VecTransposeImage``, ``(3, H, W)``.

    ``VecMonitor``, ``VecNormalize`` and ``VecFrameStack`` go above it. ``VecFrameStack(venv, 4)``
    concatenates the last four latents, oldest first, so that the agent sees speed; it fills a new
    episode's stack with zeros, where the ``stack`` of the wrapper repeats the first latent.

    Args:
        venv: Its observations are ``uint8`` RGB images, or a ``Dict`` with such an entry.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        key: The entry of a ``Dict`` observation to encode; the others stay as they are.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it. Unlike ``VecNormalize`` it has
            no running statistics, hence nothing to save.

    Raises:
        ValueError: If the observations are no RGB images, ``key`` does not fit, the encoder
            is damaged, or ``encoder`` says otherwise than ``normalize``.
        FileNotFoundError: If there is no such encoder.

    Example:
        >>> import ale_py
        >>> from stable_baselines3.common.env_util import make_vec_env
        >>> venv = VecLatentObservation(make_vec_env("ALE/Pong-v5", n_envs=2))
        >>> venv.observation_space
        Box(-inf, inf, (32,), float32)
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: EncoderLike = "auto",
        *,
        key: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        space = venv.observation_space
        image = space if key is None else getattr(space, "spaces", {}).get(key)
        if getattr(image, "shape", None) in ((84, 84, 1), (1, 84, 84)):
            raise ValueError(
                "VecLatentObservation needs RGB images, got the grayscale 84x84 ones of make_atari_env. Make "
                'the environments with make_vec_env("ALE/Pong-v5", n_envs=8) instead. Of the Atari wrappers '
                "all but WarpFrame, and hence AtariWrapper, may go below."
            )
        source = _source(venv)
        self.encoder = open_encoder(encoder, source, normalize)
        self.key = key
        self._arranged = arrangement(image)
        latents = latent_space(as_rgb(space, key), self.encoder, 1, key, "VecLatentObservation")
        super().__init__(venv, observation_space=latents)
        warn_of_other_source(source, self.encoder)

    def reset(self) -> VecEnvObs:
        """Reset all environments and encode their observations."""
        obs = self.venv.reset()
        images = self._entry(obs)
        encoded: VecEnvObs = self._replace(obs, encode_images(self.encoder, images, self._arranged))
        return encoded

    def step_wait(self) -> VecEnvStepReturn:
        """Encode what the environments return, terminal observations included."""
        obs, rewards, dones, infos = self.venv.step_wait()
        live = self._entry(obs)
        ended = [i for i in np.flatnonzero(dones) if "terminal_observation" in infos[i]]
        terminal = [infos[i]["terminal_observation"] for i in ended]
        images = [*live, *map(self._entry, terminal)] if ended else live
        latents = encode_images(self.encoder, images, self._arranged)
        for i, observation, latent in zip(ended, terminal, latents[len(live) :], strict=True):
            infos[i]["terminal_observation"] = self._replace(observation, latent)
        return self._replace(obs, latents[: len(live)]), rewards, dones, infos

    def _entry(self, obs: Any) -> Any:
        return obs if self.key is None else obs[self.key]

    def _replace(self, obs: Any, latents: Any) -> Any:
        return latents if self.key is None else {**obs, self.key: latents}


class VecLatentDriftMonitor(VecEnvWrapper):
    """Adds ``info["latent_drift"]`` and warns when the latents leave the training distribution.

    Does what :class:`latent_obs.LatentDriftMonitor` does, with one window over all environments. With
    ``VecMonitor(venv, "log", info_keywords=("latent_drift",))`` above it the number at the end of
    each episode is in the log.

    Args:
        venv: A ``VecEnv`` with a :class:`VecLatentObservation` inside, not yet normalised.
        window: Observations, of all environments together, in the running window.
        threshold: Nats per dimension above which it warns, once each time the window gets there.

    Raises:
        ValueError: If there is no :class:`VecLatentObservation` inside, or an argument is out of range.

    Warns:
        UserWarning: When the drift of a full window comes to exceed the threshold.
    """

    def __init__(self, venv: VecEnv, window: int = 1000, threshold: float = 0.5) -> None:
        wrapper = unwrap_vec_wrapper(venv, VecLatentObservation)
        if wrapper is None:
            raise ValueError(
                "VecLatentDriftMonitor watches latents, but there is no VecLatentObservation inside. Put it "
                "above that wrapper."
            )
        super().__init__(venv)
        self.drift, self._key = Drift(wrapper.encoder, window, threshold), wrapper.key

    def reset(self) -> VecEnvObs:
        """Reset the environments; the window goes on."""
        obs = self.venv.reset()
        self.drift.update(newest(obs, self._key, self.drift))
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """Add the drift to the infos of what the environments return."""
        obs, rewards, dones, infos = self.venv.step_wait()
        value = self.drift.update(newest(obs, self._key, self.drift))
        for info in infos:
            info[INFO_KEY] = value
        return obs, rewards, dones, infos


def _source(venv: VecEnv) -> FrameSource:
    """Read off the first environment where its frames come from."""
    try:
        spec = venv.get_attr("spec", 0)[0]
    except AttributeError:  # native vector environments, such as Procgen's, have no environments
        return FrameSource()
    return frame_source(spec) if isinstance(spec, EnvSpec) else FrameSource()

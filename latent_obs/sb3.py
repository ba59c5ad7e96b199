"""Stable-Baselines3: latents for all environments of a ``VecEnv`` in one batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.adapter import EncoderLike, ImageEntries, Key, is_trained_on_gray
from latent_obs.drift import INFO_KEY, Drift, newest
from latent_obs.encoders.encoder import Encoder
from latent_obs.extras import needs

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
        venv: Its observations are as :class:`latent_obs.LatentObservationWrapper` takes them.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        key: As :class:`latent_obs.LatentObservationWrapper` takes it; Stable-Baselines3 has no nested keys.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it. Unlike ``VecNormalize`` it has
            no running statistics, hence nothing to save.

    Attributes:
        encoder: The loaded encoder; where each key has its own, that of the first.

    Raises:
        ValueError: As :class:`latent_obs.LatentObservationWrapper` does.
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
        encoder: EncoderLike | Mapping[str, EncoderLike] = "auto",
        *,
        key: Key = None,
        normalize: bool | None = None,
    ) -> None:
        space, who = venv.observation_space, "VecLatentObservation"
        if space.shape in ((84, 84, 1), (1, 84, 84)):
            self._refuse_atari_frames(encoder, who)
        self._entries = ImageEntries(space, encoder, key=key, normalize=normalize, env=_specs(venv), who=who)
        self.encoder, self.key = self._entries.encoder, key
        super().__init__(venv, observation_space=self._entries.space)

    @staticmethod
    def _refuse_atari_frames(encoder: Any, who: str) -> None:
        """Refuse make_atari_env's gray frames, but for an encoder that was trained on gray ones."""
        if encoder == "auto" or not (
            isinstance(encoder, (str, Path, Encoder))
            and is_trained_on_gray(encoder.ref if isinstance(encoder, Encoder) else encoder)
        ):
            raise ValueError(
                f"{who} needs RGB images, got the grayscale 84x84 ones of make_atari_env, and an encoder "
                "that was not trained on gray ones. Make the environments with "
                'make_vec_env("ALE/Pong-v5", n_envs=8) instead. '
                "Of the Atari wrappers all but WarpFrame, and hence AtariWrapper, may go below."
            )

    def reset(self) -> VecEnvObs:
        """Reset all environments and encode their observations."""
        obs = self.venv.reset()
        encoded: VecEnvObs = self._entries.put(obs, self._entries.encode(self._entries.images(obs)))
        return encoded

    def step_wait(self) -> VecEnvStepReturn:
        """Encode what the environments return, terminal observations included."""
        obs, rewards, dones, infos = self.venv.step_wait()
        live = self._entries.images(obs)
        ended = [i for i in np.flatnonzero(dones) if "terminal_observation" in infos[i]]
        terminal = [infos[i]["terminal_observation"] for i in ended]
        if ended:
            finals = zip(*map(self._entries.images, terminal), strict=True)
            live = [[*batch, *final] for batch, final in zip(live, finals, strict=True)]
        latents = self._entries.encode(live)
        for row, (i, observation) in enumerate(zip(ended, terminal, strict=True), len(dones)):
            infos[i]["terminal_observation"] = self._entries.put(observation, [one[row] for one in latents])
        encoded = self._entries.put(obs, [one[: len(dones)] for one in latents])
        return encoded, rewards, dones, infos


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
        self.drift, self._entries = Drift(wrapper.encoder, window, threshold), wrapper._entries

    def reset(self) -> VecEnvObs:
        """Reset the environments; the window goes on."""
        obs = self.venv.reset()
        self.drift.update(newest(obs, self._entries, self.drift))
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """Add the drift to the infos of what the environments return."""
        obs, rewards, dones, infos = self.venv.step_wait()
        value = self.drift.update(newest(obs, self._entries, self.drift))
        for info in infos:
            info[INFO_KEY] = value
        return obs, rewards, dones, infos


def _specs(venv: VecEnv) -> list[Any]:
    """Return the specs of the environments; empty for native vector environments, which have none."""
    try:
        return list(venv.get_attr("spec"))
    except AttributeError:
        return []

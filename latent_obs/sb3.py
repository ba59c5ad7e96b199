"""Stable-Baselines3: latents for all environments of a ``VecEnv`` in one batch, or inside the policy."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, WrapperSpec

from latent_obs.adapter import (
    EncoderLike,
    Key,
    check_is_env,
    encode_images,
    is_trained_on_gray,
    open_named_encoder,
    to_frames,
)
from latent_obs.drift import INFO_KEY, Drift
from latent_obs.encoders.encoder import Encoder
from latent_obs.entries import ImageEntries
from latent_obs.extras import needs

with needs("latent_obs.sb3", "sb3"):
    import torch
    from stable_baselines3.common.preprocessing import is_image_space_channels_first
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper, unwrap_vec_wrapper
    from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

# Where an Atari environment keeps the emulator's settings, and the wrappers that change them.
_ATARI_SETTINGS = {
    "game": "_game",
    "frameskip": "_frameskip",
    "mode": "_game_mode",
    "difficulty": "_game_difficulty",
}
_ATARI_WRAPPERS = {
    "AtariPreprocessing": {"frame_skip": "frame_skip", "noop_max": "noop_max"},
    "MaxAndSkipObservation": {"skip": "_skip"},
    "MaxAndSkipEnv": {"skip": "_skip"},
    "NoopResetEnv": {"noop_max": "noop_max"},
}


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
        who = "VecLatentObservation"
        check_is_env(venv, VecEnv, who)
        space = venv.observation_space
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
        latents = self._entries.encode(self._entries.images(obs))
        self._newest = latents[0]  # for VecLatentDriftMonitor
        encoded: VecEnvObs = self._entries.put(obs, latents)
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
        self._newest = latents[0][: len(dones)]
        encoded = self._entries.put(obs, [one[: len(dones)] for one in latents])
        return encoded, rewards, dones, infos


class LatentExtractor(BaseFeaturesExtractor):
    """A policy's features extractor that encodes images: pixels stay in the environment and the buffer.

    It is for those who keep pixels in the replay buffer, or train the encoder along with the policy.
    Where neither is needed, :class:`VecLatentObservation` encodes each frame once and stores 32 numbers
    for it; this one encodes each frame of every minibatch again. Frozen, it gives the policy exactly what
    :class:`latent_obs.LatentObservationWrapper` does. Images of 64x64 save the resizing:
    ``gym.wrappers.ResizeObservation(env, (64, 64))`` makes the frames that this package would.

    Args:
        observation_space: The policy's, which Stable-Baselines3 passes: ``uint8`` images of 3 channels, or
            of 3k where ``VecFrameStack(venv, k)`` stacks them; their k latents are concatenated.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it, but for ``"auto"``. As a name or
            a path, the saved model stays small, and finds the encoder again as
            :func:`latent_obs.load_encoder` does.
        freeze: Keep the encoder as it is. ``False`` trains it with the policy, from these weights; the
            trained ones are saved with the model.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        normalized_image: As of Stable-Baselines3's ``NatureCNN``: ``True`` if the policy was made with
            ``normalize_images=False``, so that images arrive in [0, 255].

    Raises:
        ValueError: If the observations are no RGB images, or as :class:`VecLatentObservation` does.
        FileNotFoundError: If there is no such encoder.

    Example:
        >>> import ale_py
        >>> from stable_baselines3 import PPO
        >>> extractor = {"features_extractor_class": LatentExtractor}
        >>> policy = {**extractor, "features_extractor_kwargs": {"encoder": "pong-v0"}}
        >>> model = PPO("CnnPolicy", "ALE/Pong-v5", policy_kwargs=policy, device="cpu")
        >>> model.policy.features_dim
        32
    """

    def __init__(
        self,
        observation_space: gym.Space[Any],
        encoder: EncoderLike,
        freeze: bool = True,
        *,
        normalize: bool | None = None,
        fingerprint: str | None = None,
        normalized_image: bool = False,
    ) -> None:
        shape = observation_space.shape or ()
        self.planar = (
            isinstance(observation_space, gym.spaces.Box)
            and len(shape) == 3
            and is_image_space_channels_first(observation_space)
        )
        channels = 0 if len(shape) != 3 else shape[0 if self.planar else 2]
        if observation_space.dtype != np.uint8 or channels == 0 or channels % 3:
            raise ValueError(
                "LatentExtractor needs uint8 RGB images, of shape (H, W, 3) or (3, H, W), or k of them that "
                f"VecFrameStack(venv, k) stacks, got {observation_space}."
            )
        loaded = open_named_encoder(encoder, "LatentExtractor", normalize, fingerprint)
        frames = channels // 3
        super().__init__(observation_space, frames * loaded.latent_dim)
        self.encoder, self.freeze = loaded, freeze
        self.frames, self.scale = frames, 1 if normalized_image else 255
        if not freeze:
            from latent_obs.vae import load_vae

            vae, config = load_vae(loaded.ref)
            self.convolutions, self.mean = vae.encoder.requires_grad_(True), vae.mean.requires_grad_(True)
            shift, scale = config.scaling if loaded.normalize else (np.zeros(1), np.ones(1))
            self.register_buffer("shift", torch.from_numpy(shift.astype(np.float32)))
            self.register_buffer("deviation", torch.from_numpy(scale.astype(np.float32)))

    def apply(self, fn: Callable[[torch.nn.Module], None]) -> LatentExtractor:
        """Leave the weights alone: actor-critic policies initialise their extractor's weights anew."""
        del fn
        return self

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Encode a batch of observations as Stable-Baselines3 prepares them.

        Args:
            observations: float32, in [0, 1] or with ``normalized_image`` in [0, 255].

        Returns:
            float32, shape (N, features_dim).
        """
        planar = observations if self.planar else observations.permute(0, 3, 1, 2)
        images = planar.reshape(-1, 3, *planar.shape[2:])  # (N * frames, 3, H, W)
        pixels = (images * self.scale).round().to(torch.uint8)
        if self.freeze:
            encoded = torch.from_numpy(encode_images(self.encoder, _channels_last(pixels)))
            return encoded.to(observations.device).reshape(len(observations), -1)
        if self.encoder.frame_spec.crop is not None or images.shape[1:] != (3, 64, 64):
            frames = torch.from_numpy(to_frames(self.encoder, _channels_last(pixels)))
            pixels = frames.to(observations.device).permute(0, 3, 1, 2)
        features = self.convolutions(pixels.float() / 255).flatten(1)
        latents: torch.Tensor = (self.mean(features) - self.shift) / self.deviation
        return latents.reshape(len(observations), -1)


def _channels_last(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


class VecLatentDriftMonitor(VecEnvWrapper):
    """Adds ``info["latent_drift"]`` and warns when the latents leave the training distribution.

    Does what :class:`latent_obs.LatentDriftMonitor` does, with one window over all environments. With
    ``VecMonitor(venv, "log", info_keywords=("latent_drift",))`` above it the number at the end of
    each episode is in the log.

    Args:
        venv: A ``VecEnv`` with a :class:`VecLatentObservation` inside.
        window: Observations, of all environments together, in the running window.
        threshold: Nats per dimension above which it warns, once each time the window gets there.

    Raises:
        ValueError: If there is no :class:`VecLatentObservation` inside, or an argument is out of range.

    Warns:
        UserWarning: When the drift of a full window comes to exceed the threshold.
    """

    def __init__(self, venv: VecEnv, window: int = 1000, threshold: float = 0.5) -> None:
        watched = unwrap_vec_wrapper(venv, VecLatentObservation)
        if watched is None:
            raise ValueError(
                "VecLatentDriftMonitor watches latents, but there is no VecLatentObservation inside. Put it "
                "above that wrapper."
            )
        super().__init__(venv)
        self._watched = watched
        self.drift = Drift(watched.encoder, window, threshold, watched._entries.refresh_command())

    def reset(self) -> VecEnvObs:
        """Reset the environments; the window goes on."""
        obs = self.venv.reset()
        self.drift.update(self._watched._newest)
        return obs

    def step_wait(self) -> VecEnvStepReturn:
        """Add the drift to the infos of what the environments return."""
        obs, rewards, dones, infos = self.venv.step_wait()
        value = self.drift.update(self._watched._newest)
        for info in infos:
            info[INFO_KEY] = value
        return obs, rewards, dones, infos


def _specs(venv: VecEnv) -> list[Any]:
    """Return the specs of the environments; empty for native vector environments, which have none.

    A spec may hold a lambda, and a worker of ``SubprocVecEnv`` that is asked for such a spec ends. So those
    workers are asked for the names of their environments, and for the few settings that matter here.
    """
    if isinstance(venv.unwrapped, SubprocVecEnv):
        return [_spec_of(venv, index, name) for index, name in enumerate(venv.env_method("__str__"))]
    try:
        return list(venv.get_attr("spec"))
    except AttributeError:
        return []


def _spec_of(venv: VecEnv, index: int, name: str) -> EnvSpec | None:
    """Rebuild a spec from a name such as ``<TimeLimit<AtariEnv<ALE/Pong-v5>>>``; ``None`` if it has no id."""
    match = re.fullmatch(r"((?:<\w+)+)<([^<>]+)>+", name)
    if match is None:
        return None
    *classes, env_class = match[1].split("<")[1:]
    kwargs = _ATARI_SETTINGS if env_class == "AtariEnv" else {}

    def settings(names: Mapping[str, str]) -> dict[str, Any]:
        return {n: venv.get_attr(attribute, index)[0] for n, attribute in names.items()}

    wrappers = [WrapperSpec(c, "", settings(_ATARI_WRAPPERS.get(c, {}))) for c in reversed(classes)]
    registered = gym.registry.get(match[2])
    return EnvSpec(
        match[2],
        registered.entry_point if registered else "ale_py" if kwargs else None,
        kwargs=settings(kwargs),
        additional_wrappers=tuple(wrappers),
    )

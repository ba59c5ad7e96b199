"""The observation wrapper: pixels in, latents out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from latent_obs.adapter import EncoderLike, Key, check_is_env
from latent_obs.entries import ImageEntries


class LatentObservationWrapper(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replaces image observations with the latent of a frozen VAE encoder.

    Every observation is cropped and resized as the encoder's frame spec says and encoded; the
    observation is the posterior mean, hence deterministic. The space is
    ``Box(-inf, inf, (32,), float32)`` for an encoder with 32 latent dimensions.

    Args:
        env: Its observations are images, or a ``Dict`` with such entries. Images are RGB or gray, with
            channels last, first or (gray) absent, ``uint8`` or floats in [0, 1] or [0, 255]; the bounds of
            the space tell which.
        encoder: Name of a bundled encoder, path of an encoder folder, ``hf://USER/NAME`` for one on the
            Hugging Face Hub (``hf://USER/NAME@COMMIT`` for the same weights for ever), a dictionary of
            :func:`~latent_obs.load_encoder`'s arguments such as ``{"ref": "pong-v0", "precision":
            "float32"}``, or a loaded :class:`~latent_obs.Encoder`. ``"auto"`` takes the one that
            ``latent-obs fit`` made of this environment, else the most specific bundled one; ``"fit"`` fits
            one first, which takes a minute and the extra ``make``. With several keys it may be a
            dictionary with one of these for each key.
        stack: Latents of the last ``stack`` observations, oldest first, concatenated to
            ``(32 * stack,)``; velocity is visible then. An episode's first latent fills all places.
        key: The entry of a ``Dict`` observation to encode; the others stay as they are. Several, such as
            ``("front", "wrist")``, are encoded in one batch. ``"cameras/front"`` is the entry ``front`` of
            the ``Dict`` that is the entry ``cameras``.
        normalize: Scale latents to zero mean and unit variance over the encoder's training frames, as
            :func:`~latent_obs.load_encoder` does. ``None`` (default): use the loaded encoder's own setting;
            an encoder that is not loaded yet is scaled.
        fingerprint: SHA-256 of the encoder's weights. ``env.spec`` records it, so that ``gym.make`` of the
            spec finds an encoder folder that moved and refuses another encoder. ``None`` (default) takes
            any weights.

    Attributes:
        encoder: The loaded encoder; where each key has its own, that of the first.

    Raises:
        ValueError: If ``env`` is of another kind, the observations are no images or can be read in two ways,
            ``key`` does not fit, the encoder is damaged, ``encoder`` says otherwise than ``normalize``, or
            its weights are not those of ``fingerprint``. The error holds the line to type.
        FileNotFoundError: If there is no such encoder.
        OSError: If an encoder is on the Hub, which refuses access or cannot be reached.

    Warns:
        UserWarning: If the environment is the encoder's, but draws its frames otherwise than the
            training frames were drawn, or shows gray images to an encoder that was trained on colour.

    Example:
        >>> import ale_py
        >>> env = LatentObservationWrapper(gym.make("ALE/Pong-v5"))
        >>> env.observation_space
        Box(-inf, inf, (32,), float32)
        >>> obs, info = env.reset(seed=0)
        >>> obs.shape
        (32,)
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        encoder: EncoderLike | Mapping[str, EncoderLike] = "auto",
        *,
        stack: int = 1,
        key: Key = None,
        normalize: bool | None = None,
        fingerprint: str | Mapping[str, str | None] | None = None,
    ) -> None:
        check_is_env(env, gym.Env, "LatentObservationWrapper")
        self._entries = ImageEntries(
            env.observation_space,
            encoder,
            key=key,
            stack=stack,
            normalize=normalize,
            fingerprint=fingerprint,
            env=env,
        )
        # The first to record wins, and JSON values make env.spec round-trip.
        gym.utils.RecordConstructorArgs.__init__(self, **self._entries.arguments)
        gym.Wrapper.__init__(self, env)
        self.encoder, self.stack, self.key = self._entries.encoder, stack, key
        self.observation_space = self._entries.space
        self._stacks = self._entries.stacks()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and encode its observation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._begin()
        return self._observation(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and encode its observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        encoded = self._observation(obs)
        if terminated or truncated:  # below may be Autoreset, whose next step begins an episode
            self._begin()
        return encoded, reward, terminated, truncated, info

    def _begin(self) -> None:
        """Let the next observation be an episode's first."""
        for stack in self._stacks:
            stack.begin()

    def _observation(self, obs: Any) -> Any:
        latents = self._entries.encode_one(obs)
        self._newest = latents[0]  # for LatentDriftMonitor
        stacked = [stack.push(latent)[0] for stack, latent in zip(self._stacks, latents, strict=True)]
        return self._entries.put(obs, stacked)


class RegisteredLatents(LatentObservationWrapper):
    """The wrapper in an environment that :mod:`latent_obs.envs` registers: its id stands for both."""

    @property
    def spec(self) -> EnvSpec | None:  # type: ignore[override]
        """The environment's spec; its arguments name the encoder that was taken, and its weights."""
        return self._entries.name_encoder(self.env.spec)

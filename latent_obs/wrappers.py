"""The observation wrapper: pixels in, latents out."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from latent_obs.adapter import EncoderLike, LatentStack, latent_space, open_encoder, warn_of_other_source
from latent_obs.frames import frame_source, preprocess


class LatentObservationWrapper(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Replaces image observations with the latent of a frozen VAE encoder.

    Every observation is cropped and resized as the encoder's frame spec says and encoded; the
    observation is the posterior mean, hence deterministic. The space is
    ``Box(-inf, inf, (32,), float32)`` for an encoder with 32 latent dimensions.

    Args:
        env: Its observations are ``uint8`` RGB images of shape ``(H, W, 3)``, or a ``Dict``
            with such an entry.
        encoder: Name of a bundled encoder, path of an encoder folder, ``hf://USER/NAME`` for one on the
            Hugging Face Hub (``hf://USER/NAME@COMMIT`` for the same weights for ever), a dictionary of
            :func:`~latent_obs.load_encoder`'s arguments such as ``{"ref": "pong-v0", "precision":
            "float32"}``, or a loaded :class:`~latent_obs.Encoder`; ``"auto"`` takes the most
            specific bundled one.
        stack: Latents of the last ``stack`` observations, oldest first, concatenated to
            ``(32 * stack,)``; velocity is visible then. A reset fills all of them.
        key: The entry of a ``Dict`` observation to encode; the others stay as they are.
        normalize: Scale latents to zero mean and unit variance over the encoder's training frames, as
            :func:`~latent_obs.load_encoder` does. ``None`` leaves it to ``encoder``, and without a word
            there they are scaled.

    Raises:
        ValueError: If the observations are no RGB images, ``key`` does not fit, the encoder
            is damaged, or ``encoder`` says otherwise than ``normalize``.
        FileNotFoundError: If there is no such encoder.
        OSError: If an encoder is on the Hub, which refuses access or cannot be reached.

    Warns:
        UserWarning: If the environment is the encoder's, but its emulator settings differ from
            those of the training frames.

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
        encoder: EncoderLike = "auto",
        *,
        stack: int = 1,
        key: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        source = frame_source(env)
        self.encoder = open_encoder(encoder, source, normalize)
        # The first to record wins, and JSON values make env.spec round-trip.
        gym.utils.RecordConstructorArgs.__init__(
            self, encoder=self.encoder.spec, stack=stack, key=key, normalize=self.encoder.normalize
        )
        gym.Wrapper.__init__(self, env)
        self.stack, self.key = stack, key
        self.observation_space = latent_space(env.observation_space, self.encoder, stack, key)
        self._stack = LatentStack(stack, self.encoder.latent_dim)
        warn_of_other_source(source, self.encoder)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and encode its observation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._stack.begin()
        return self._observation(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and encode its observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._observation(obs), reward, terminated, truncated, info

    def _observation(self, obs: Any) -> Any:
        image = obs if self.key is None else obs[self.key]
        latent = self.encoder(preprocess(image, self.encoder.frame_spec))
        stacked = self._stack.push(latent[None])[0]
        return stacked if self.key is None else {**obs, self.key: stacked}

"""The observation wrapper: pixels in, latents out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

from latent_obs.encoder import Encoder, load_encoder, resolve_auto
from latent_obs.encoder_folder import Latents
from latent_obs.frames import FrameSource, check_frame_space, frame_source, preprocess

EncoderLike = str | Path | Encoder | Mapping[str, Any]

# What `normalize=None` means, here and wherever latents are handed to an agent: PPO's MlpPolicy learns faster
# on normalised ones (benchmarks/rl/normalize.py).
NORMALIZE = True


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
        self._latents = np.zeros((stack, self.encoder.latent_dim), np.float32)
        warn_of_other_source(source, self.encoder)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and encode its observation."""
        obs, info = self.env.reset(seed=seed, options=options)
        self._latents[:] = self._encode(obs)
        return self._observation(obs), info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and encode its observation."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        latent = self._encode(obs)
        self._latents[:-1] = self._latents[1:]
        self._latents[-1] = latent
        return self._observation(obs), reward, terminated, truncated, info

    def _encode(self, obs: Any) -> Latents:
        image = obs if self.key is None else obs[self.key]
        return self.encoder(preprocess(image, self.encoder.frame_spec))

    def _observation(self, obs: Any) -> Any:
        latent = self._latents.reshape(-1).copy()
        return latent if self.key is None else {**obs, self.key: latent}


def latent_space(
    space: gym.Space[Any],
    encoder: Encoder,
    stack: int,
    key: str | None,
    who: str = "LatentObservationWrapper",
) -> gym.spaces.Box | gym.spaces.Dict:
    """Return the observation space after encoding, having checked that encoding is possible.

    Raises:
        ValueError: If ``stack`` or ``key`` is wrong or the observations are no RGB images.
    """
    if not isinstance(stack, (int, np.integer)) or isinstance(stack, bool) or stack < 1:
        raise ValueError(f"{who} needs stack to be an integer of at least 1, got {stack!r}.")
    shape = (encoder.latent_dim * int(stack),)
    latent = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
    if key is None:
        check_frame_space(space, who)
        _check_crop(space, encoder)
        return latent
    if not isinstance(space, gym.spaces.Dict) or key not in space.spaces:
        got = f"a Dict with the keys {sorted(space)}" if isinstance(space, gym.spaces.Dict) else f"{space}"
        raise ValueError(f"{who} was told key={key!r}, but the observation space is {got}.")
    check_frame_space(space[key], f"{who}(key={key!r})")
    _check_crop(space[key], encoder)
    entries: Mapping[str, gym.Space[Any]] = {**space.spaces, key: latent}
    return gym.spaces.Dict(dict(entries))


def _check_crop(space: gym.Space[Any], encoder: Encoder) -> None:
    assert space.shape is not None
    preprocess(np.zeros(space.shape, np.uint8), encoder.frame_spec)


def open_encoder(encoder: EncoderLike, source: FrameSource, normalize: bool | None = None) -> Encoder:
    """Load what a wrapper's ``encoder`` argument names.

    Args:
        encoder: As :class:`LatentObservationWrapper` takes it.
        source: Where the observations come from, for ``"auto"``.
        normalize: As :class:`LatentObservationWrapper` takes it.

    Raises:
        ValueError: If ``encoder`` does not fit :func:`~latent_obs.load_encoder`, or says otherwise than
            ``normalize``.
    """
    given = encoder.get("normalize") if isinstance(encoder, Mapping) else getattr(encoder, "normalize", None)
    if None not in (given, normalize) and given != normalize:
        raise ValueError(
            f"encoder= comes with normalize={given!r}, but normalize={normalize!r} was asked for. Load the "
            f"encoder with normalize={normalize!r}, or leave normalize out here."
        )
    if isinstance(encoder, Encoder):
        return encoder
    options: dict[str, Any] = dict(encoder) if isinstance(encoder, Mapping) else {"ref": encoder}
    options.setdefault("normalize", NORMALIZE if normalize is None else normalize)
    if options.get("ref") == "auto":
        options["ref"] = resolve_auto(source)
    try:
        return load_encoder(**options)
    except TypeError as error:
        raise ValueError(f"encoder={encoder!r} does not fit load_encoder: {error}.") from error


def open_named_encoder(encoder: EncoderLike, who: str, normalize: bool | None = None) -> Encoder:
    """Load an encoder where no environment says which one ``"auto"`` would be.

    Raises:
        ValueError: If ``encoder`` is ``"auto"``, does not fit :func:`~latent_obs.load_encoder`, or says
            otherwise than ``normalize``.
    """
    if encoder == "auto" or (isinstance(encoder, Mapping) and encoder.get("ref") == "auto"):
        raise ValueError(
            f"{who} does not know its environment, so encoder='auto' cannot be resolved. Name the encoder, "
            "such as 'pong-v0' or 'hf://USER/NAME', or pass the path of an encoder folder."
        )
    return open_encoder(encoder, FrameSource(), normalize)


def warn_of_other_source(source: FrameSource, encoder: Encoder) -> None:
    """Warn when an ALE environment is set up otherwise than for the encoder's training frames."""
    if differences := encoder.config.source.differences(source):
        warnings.warn(
            f"The encoder {encoder.ref} was trained on frames with {'; '.join(differences)}. Its latents "
            "may be off: make the environment alike, or train an encoder on this one.",
            UserWarning,
            stacklevel=3,
        )

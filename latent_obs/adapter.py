"""What the wrapper and the adapters for other libraries share: opening an encoder, the latent space, batches.

Libraries arrange images in their own ways; here they become frames, and a batch of them latents in one call.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.folder import Latents
from latent_obs.encoders.resolve import resolve_auto
from latent_obs.frames import FRAME_SHAPE, FrameSource, check_frame_space, preprocess

EncoderLike = str | Path | Encoder | Mapping[str, Any]

# What `normalize=None` means, here and wherever latents are handed to an agent: PPO's MlpPolicy learns faster
# on normalised ones (benchmarks/rl/results/report.md, "latents" and "latents-raw").
NORMALIZE = True
Arrangement = Literal["rgb", "planar", "stack of one"]


def arrangement(space: gym.Space[Any] | None) -> Arrangement:
    """Recognise how an RGB image is arranged: ``(H, W, 3)``, ``(3, H, W)`` or ``(1, H, W, 3)``.

    Args:
        space: The space of one image. What is none of these counts as ``"rgb"``, to be refused by
            :func:`~latent_obs.frames.check_frame_space`.

    Example:
        >>> arrangement(gym.spaces.Box(0, 255, (3, 84, 84), np.uint8))
        'planar'
    """
    shape: tuple[int, ...] = getattr(space, "shape", None) or ()
    if len(shape) == 4 and shape[0] == 1 and shape[3] == 3:
        return "stack of one"  # ALE's, with stack_num=1
    if len(shape) == 3 and shape[0] == 3 and shape[2] != 3:
        return "planar"  # EnvPool's, and Stable-Baselines3's VecTransposeImage
    return "rgb"


def as_rgb(space: gym.Space[Any], key: str | None) -> gym.Space[Any]:
    """Return the space with the image in (H, W, 3) order, so that it can be checked as such."""
    if key is not None:
        entries = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {}
        return gym.spaces.Dict({**entries, key: as_rgb(entries[key], None)}) if key in entries else space
    if arrangement(space) == "rgb":
        return space
    assert isinstance(space, gym.spaces.Box)
    height, width = space.shape[1:3]
    return gym.spaces.Box(0, 255, (height, width, 3), space.dtype.type)


def encode_images(encoder: Encoder, images: Any, arranged: Arrangement = "rgb") -> Latents:
    """Turn images into frames as the encoder's frame spec says, and encode them as one batch.

    Args:
        encoder: Its frame spec says how to crop and resize.
        images: ``uint8`` images of shape (N, ...), or a sequence of N of them. They may differ in
            size. Those that already are 64x64 are not resized.
        arranged: The order of their axes, see :func:`arrangement`.

    Returns:
        float32, shape (N, latent_dim).

    Raises:
        ValueError: If an image is not ``uint8`` RGB, or too small for the crop.
    """
    spec = encoder.frame_spec
    if isinstance(images, np.ndarray) and spec.crop is None:
        rgb = _image(images, arranged)
        if rgb.shape[1:] == FRAME_SHAPE:
            return encoder(rgb)
    frames = np.empty((len(images), *FRAME_SHAPE), np.uint8)
    for frame, image in zip(frames, images, strict=True):
        frame[...] = preprocess(_image(image, arranged), spec)
    return encoder(frames)


def _image(image: Any, arranged: Arrangement) -> Any:
    """View one image, or a batch of them, in (H, W, 3) order."""
    if arranged == "stack of one":
        return image[..., 0, :, :, :]
    return np.moveaxis(image, -3, -1) if arranged == "planar" else image


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

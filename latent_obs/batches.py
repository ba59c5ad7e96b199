"""Batches of images: how libraries arrange them, and how they become latents in one call."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from latent_obs.encoder import Encoder
from latent_obs.encoder_folder import Latents
from latent_obs.frames import FRAME_SHAPE, preprocess

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

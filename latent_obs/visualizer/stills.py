"""Draws pictures of an encoder for papers and READMEs: traversals, an interpolation, an episode as a GIF.

The interpolation and the episode show each decoded pixel as a square of 3x3 pixels, without labels.
"""

from __future__ import annotations

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from latent_obs.encoders.resolve import EncoderFolder
from latent_obs.frames import Frames

if TYPE_CHECKING:
    from latent_obs.vae import VAE

Picture = Literal["traversals", "interpolation", "episode"]

SCALE = 3  # a frame becomes 192 pixels wide
GAP = 6  # pixels of white between pictures
STEPS = 9  # pictures from one end of an interpolation to the other
FRAME_MS = 70  # about ALE's 15 frames a second; GIF counts hundredths of a second


def draw(picture: Picture, encoder: EncoderFolder, gallery: Frames, episode: Frames) -> bytes:
    """Draw one of the pictures.

    Args:
        picture: Which picture.
        encoder: The encoder that encodes, and whose decoder draws.
        gallery: ``uint8``, shape (N, 64, 64, 3). Traversals start at the first frame, the
            interpolation goes from the first to the last.
        episode: ``uint8``, shape (N, 64, 64, 3), consecutive frames.

    Returns:
        The content of a PNG file, or of a GIF file for ``"episode"``.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the encoder is damaged.
    """
    from latent_obs.vae import load_vae

    vae, config = load_vae(encoder)
    if picture == "interpolation":
        return _png(interpolation(vae, gallery[0], gallery[-1]))
    if picture == "episode":
        return _gif(beside_reconstruction(vae, episode))
    from latent_obs.evaluation.pictures import traversals

    with TemporaryDirectory() as folder:
        path = Path(folder) / "traversals.png"
        traversals(vae, config, gallery[0], path)
        return path.read_bytes()


def interpolation(vae: VAE, first: Frames, last: Frames, steps: int = STEPS) -> Frames:
    """Decode points on the straight line between the latents of two frames.

    Args:
        vae: The model.
        first: The frame at one end, ``uint8``, shape (64, 64, 3).
        last: The frame at the other end, ``uint8``, shape (64, 64, 3).
        steps: How many points are decoded, both ends included.

    Returns:
        One picture, ``uint8``, shape (H, W, 3): from left to right ``first``, the decoded points, and
        ``last``.
    """
    import torch

    from latent_obs.vae import to_frames

    with torch.no_grad():
        ends = vae(torch.from_numpy(np.stack([first, last])))
        share = torch.linspace(0, 1, steps)[:, None]
        decoded = to_frames(vae.decode((1 - share) * ends[0] + share * ends[1]))
    return _side_by_side([first, *decoded, last])


def beside_reconstruction(vae: VAE, episode: Frames) -> Frames:
    """Put each frame of an episode beside its reconstruction.

    Args:
        vae: The model.
        episode: Consecutive frames, ``uint8``, shape (N, 64, 64, 3).

    Returns:
        Pictures, ``uint8``, shape (N, H, W, 3).
    """
    from latent_obs.vae import reconstruct

    pairs = zip(episode, reconstruct(vae, episode), strict=True)
    return np.stack([_side_by_side([frame, decoded]) for frame, decoded in pairs])


def _side_by_side(frames: list[Frames]) -> Frames:
    enlarged = [frame.repeat(SCALE, 0).repeat(SCALE, 1) for frame in frames]
    gap = np.full((len(enlarged[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([part for frame in enlarged for part in (frame, gap)][:-1], 1)


def _png(picture: Frames) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", optimize=True)
    return file.getvalue()


def _gif(pictures: Frames) -> bytes:
    # One palette for all pictures keeps colours from flickering. Dithering would draw noise that moves.
    stacked = Image.fromarray(pictures[:: max(1, len(pictures) // 8)].reshape(-1, *pictures.shape[2:]))
    palette = stacked.quantize(256)
    images = [
        Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures
    ]
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=FRAME_MS, loop=0)
    return file.getvalue()

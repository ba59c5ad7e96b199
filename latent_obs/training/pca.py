"""PCA in the shape of an encoder, for environments of which a VAE keeps less than PCA does.

Three convolutions that only rearrange pixels, followed by a linear layer, are principal component analysis
exactly. The decoder rearranges back, and its last two layers approximate the logit, whose sigmoid is the
pixel.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import VAEConfig, read_calibration, read_config, write_encoder_folder
from latent_obs.encoders.provenance import Run
from latent_obs.frames import Frames
from latent_obs.training.config import TrainConfig
from latent_obs.training.held_out import latent_statistics
from latent_obs.vae import VAE, in_parts

# The decoder's logit is linear between these levels: closer together where the logit bends more.
KNOTS = (0.004, 0.02, 0.05, 0.1, 0.2, 0.37, 0.63, 0.8, 0.9, 0.95, 0.98, 0.996)
# A quarter of the image's height and width goes into the channels with each convolution: 3, 12, 48, 192.
CHANNELS = (12 * len(KNOTS), 48, 192)
# A linear code has no posterior; this is that of a latent that is known to a tenth of its deviation.
DEVIATION = 0.1
# PCA is fitted to so many frames, and this is its name as an objective.
PCA_FRAMES, OBJECTIVE = 4096, "pca"
# A component whose singular value is a smaller share of the largest one is rounding noise.
LEAST_VALUE = 3e-5


def write_pca(train: TrainConfig, frames: FramesFolder, out: Path) -> None:
    """Write PCA on the training episodes as an encoder folder, in the place of the VAE of this training.

    Args:
        train: The training; its encoder folder is there.
        frames: Its frames.
        out: The encoder folder to write.
    """
    trained = read_config(train.out)
    images = frames.sample(PCA_FRAMES, frames.split(train.validation, train.seed)[0], train.seed)
    vae = pca_vae(images, train.latent_dim)
    how = {**train.to_json(), "objective": OBJECTIVE, "channels": list(CHANNELS)}
    provenance = replace(trained.provenance, run=Run(how, frames.identity, None), steps=0, kept_step=0)
    statistics = latent_statistics(vae, images[::4])  # these convolutions take 4 ms a frame
    config = replace(trained, vae=vae.config, latents=statistics, scaled_as=None, provenance=provenance)
    write_encoder_folder(out, config, vae.tensors(), read_calibration(train.out))


@torch.no_grad()
def pca_vae(frames: Frames, latent_dim: int) -> VAE:
    """Fit PCA on the pixels of frames, and return the VAE that computes it.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        latent_dim: Number of components. Each has unit variance over the frames; if the frames span fewer
            dimensions, the rest are 0.

    Returns:
        A VAE whose posterior mean is the projection, and whose decoder gives the image of it, clipped to what
        a pixel can be.

    Example:
        >>> frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
        >>> vae = pca_vae(frames, latent_dim=39)  # 40 points span 39 dimensions
        >>> decoded = vae.decode(vae(torch.from_numpy(frames))) * 255
        >>> float((decoded - torch.from_numpy(frames)).abs().mean()) < 1
        True

    Source: Pearson (1901); the singular vectors by Halko et al. (2011).
    """
    vae = VAE(VAEConfig(latent_dim, CHANNELS)).eval().requires_grad_(False)
    for parameter in vae.parameters():
        parameter.zero_()
    pixels = _unshuffled(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255)
    average = pixels.mean(0)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        rank = min(latent_dim + 16, *pixels.shape)
        _, values, right = torch.svd_lowrank(pixels - average, rank, niter=4)
    values = torch.nn.functional.pad(values, (0, latent_dim))[:latent_dim]
    kept = values > LEAST_VALUE * values[0]
    deviation = torch.where(kept, values / len(pixels) ** 0.5, 1.0)
    components = torch.nn.functional.pad(right, (0, latent_dim))[:, :latent_dim] * kept

    layers, (first, bends) = vae.state_dict(), _logit()
    # The output channel 4 * c + 2 * dy + dx of a convolution is the pixel (dy, dx) of its input's 2x2 blocks;
    # a kernel of 4x4 with a padding of 1 has it at (dy + 1, dx + 1).
    for layer, inputs in enumerate((3, 12, 48)):
        for channel in range(4 * inputs):
            c, place = divmod(channel, 4)
            y, x = place // 2 + 1, place % 2 + 1
            layers[f"encoder.conv{layer}.weight"][channel, c, y, x] = 1
            if layer == 1:
                layers["decoder.conv1.weight"][channel, c::12, y, x] = 1
            elif layer == 2:
                layers["decoder.conv0.weight"][channel, c, y, x] = 1
            else:
                layers["decoder.conv2.weight"][channel::12, c, y, x] = bends
    layers["decoder.conv1.bias"].copy_(-torch.tensor(KNOTS).repeat_interleave(12))
    layers["output_bias"].fill_(first)
    layers["mean.weight"].copy_((components / deviation).T)
    layers["mean.bias"].copy_(-(average @ components) / deviation)
    layers["log_variance.bias"].fill_(2 * float(np.log(DEVIATION)))
    layers["decoder.linear.weight"].copy_(components * deviation)
    layers["decoder.linear.bias"].copy_(average)
    some = frames[:: math.ceil(len(frames) / 256)]
    errors = [(vae.decode(vae(part)) - part / 255).square() for part in in_parts(vae, some)]
    layers["decoder_variance"].copy_(torch.cat(errors).mean().clamp(min=1e-6))
    return vae


def _unshuffled(images: torch.Tensor) -> torch.Tensor:
    """Rearrange images as the three convolutions do; float32, shape (N, 12288)."""
    for _ in range(3):
        images = torch.nn.functional.pixel_unshuffle(images, 2)
    return images.flatten(1)


def _logit() -> tuple[float, torch.Tensor]:
    """Return the logit as a constant and the change of its slope at each knot, fitted in units of pixels."""
    levels = np.linspace(KNOTS[0], KNOTS[-1], 2000)
    logits, weights = np.log(levels / (1 - levels)), levels * (1 - levels)  # the sigmoid's slope
    hinges = np.maximum(levels[:, None] - np.array(KNOTS[:-1]), 0)
    basis = np.hstack([np.ones((len(levels), 1)), hinges])
    first, *bends = np.linalg.lstsq(basis * weights[:, None], logits * weights, rcond=None)[0]
    return float(first), torch.tensor([*bends, -sum(bends)], dtype=torch.float32)  # flat above the last knot

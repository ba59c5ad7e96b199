"""What an encoder must beat: PCA with as many dimensions, and a network that was never trained.

Both are fitted on episodes that the report card does not measure on. PCA is the best linear
code there is for squared error. The random encoder is the same network with PyTorch's initial weights; as
nothing trained its decoder, its frames are decoded by the best linear map from its latents to pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from latent_obs.encoders.folder import VAEConfig
from latent_obs.frames import FRAME_SHAPE, Frames
from latent_obs.vae import VAE

Features = npt.NDArray[np.float32]  # (N, D)


@dataclass(frozen=True)
class Code:
    """A way to turn frames into a few numbers and back.

    Attributes:
        encode: Frames (N, 64, 64, 3) to features (N, D).
        decode: Features to frames.
    """

    encode: Callable[[Frames], Features]
    decode: Callable[[Features], Frames]

    def reconstruct(self, frames: Frames) -> Frames:
        """Encode and decode."""
        return self.decode(self.encode(frames))


def pca_code(frames: Frames, dims: int) -> Code:
    """Fit principal component analysis on the pixels of some frames.

    The components are found by randomised subspace iteration (Halko et al. 2011). Features are
    scaled to unit variance over the frames, as those of a VAE nearly are.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        dims: Number of components; fewer where the frames span fewer.
    """
    pixels = _pixels(frames)
    mean = pixels.mean(0)
    rank = min(dims, len(pixels) - 1)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        oversampled = min(rank + 16, *pixels.shape)
        _, values, right = torch.svd_lowrank(torch.from_numpy(pixels - mean), oversampled, niter=6)
    kept = values[:rank] > 1e-5 * values[0].clamp(min=1e-12)
    components = right[:, :rank][:, kept].numpy()
    scale = (values[:rank][kept] / max(len(pixels), 1) ** 0.5).numpy()

    def encode(frames: Frames) -> Features:
        features: Features = (_pixels(frames) - mean) @ components / scale
        return features

    return Code(encode, lambda features: _frames(features * scale @ components.T + mean))


def random_code(frames: Frames, config: VAEConfig, seed: int = 0) -> Code:
    """Fit a linear decoder to the latents of an untrained encoder.

    Args:
        frames: To fit the decoder on: ``uint8``, shape (N, 64, 64, 3).
        config: Shape of the network.
        seed: Of its weights.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        vae = VAE(config).eval().requires_grad_(False)

    def encode(frames: Frames) -> Features:
        parts = [vae(torch.from_numpy(frames[i : i + 256])).numpy() for i in range(0, len(frames), 256)]
        return np.concatenate(parts)

    latents, pixels = encode(frames), _pixels(frames)
    mean, average = latents.mean(0), pixels.mean(0)
    solution = np.linalg.lstsq(latents - mean, pixels - average, rcond=1e-6)[0]
    return Code(encode, lambda features: _frames((features - mean) @ solution + average))


def fit_baselines(frames: Frames, config: VAEConfig) -> dict[str, Code]:
    """Fit what an encoder of this shape must beat.

    Args:
        frames: Of episodes that are not measured on: ``uint8``, shape (N, 64, 64, 3).
        config: Shape of the encoder's network.

    Returns:
        ``"pca"`` and ``"random"``.
    """
    return {"pca": pca_code(frames, config.latent_dim), "random": random_code(frames, config)}


def _pixels(frames: Frames) -> npt.NDArray[np.float32]:
    return frames.reshape(len(frames), -1).astype(np.float32)


def _frames(pixels: npt.NDArray[np.float32]) -> Frames:
    return pixels.round().clip(0, 255).astype(np.uint8).reshape(-1, *FRAME_SHAPE)

"""What an encoder must beat: PCA with as many dimensions, and the same network without training.

Both are fitted on episodes that the report card does not measure on. PCA has the smallest squared error of
all linear codes on the frames that it is fitted on. The untrained network has PyTorch's initial weights.
Nothing trained its decoder, so its latents are decoded by the linear map with the smallest squared error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """A way to turn frames into features, a few numbers each, and back.

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
        dims: Number of components. There are fewer if the frames span fewer dimensions.
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
        frames: The frames to fit the decoder on, ``uint8`` of shape (N, 64, 64, 3).
        config: Shape of the network.
        seed: Seed of the network's weights.
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


def fit_baselines(
    frames: Frames, config: VAEConfig, names: Sequence[str] = ("pca", "random")
) -> dict[str, Code]:
    """Fit what an encoder of this shape must beat.

    Args:
        frames: Frames of episodes that are not measured on, ``uint8`` of shape (N, 64, 64, 3).
        config: Shape of the encoder's network.
        names: Which of the two.

    Returns:
        ``"pca"`` and ``"random"``.
    """
    fits = {"pca": lambda: pca_code(frames, config.latent_dim), "random": lambda: random_code(frames, config)}
    return {name: fits[name]() for name in names}


def _pixels(frames: Frames) -> npt.NDArray[np.float32]:
    return frames.reshape(len(frames), -1).astype(np.float32)


def _frames(pixels: npt.NDArray[np.float32]) -> Frames:
    return pixels.round().clip(0, 255).astype(np.uint8).reshape(-1, *FRAME_SHAPE)

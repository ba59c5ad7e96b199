"""The affine map between the latents of two encoders, and how it is folded into the weights of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latent_obs.encoders.folder import Latents
from latent_obs.vae import VAE


@dataclass(frozen=True)
class AffineMap:
    """An affine map between latents: ``latents @ matrix.T + offset``.

    Args:
        matrix: Shape (latent_dim, latent_dim).
        offset: Shape (latent_dim,).

    Example:
        >>> new = np.random.default_rng(0).normal(size=(100, 3))
        >>> found = AffineMap.fit(new, new @ np.diag([1, 2, 3]) + 1)
        >>> np.round(found.matrix.diagonal(), 3).tolist(), np.round(found.offset, 3).tolist()
        ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
    """

    matrix: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    @classmethod
    def fit(cls, new: npt.NDArray[Any], old: npt.NDArray[Any]) -> AffineMap:
        """Return the map from ``new`` to ``old``, both (N, latent_dim), of least squares."""
        rows = np.column_stack([new, np.ones(len(new))]).astype(np.float64)
        solution = np.asarray(np.linalg.lstsq(rows, old.astype(np.float64), rcond=None)[0], np.float64)
        return cls(solution[:-1].T, solution[-1])

    def __call__(self, latents: npt.NDArray[Any]) -> Latents:
        """Map latents of shape (N, latent_dim)."""
        mapped: Latents = (latents @ self.matrix.T + self.offset).astype(np.float32)
        return mapped


def r2(predicted: npt.NDArray[Any], old: npt.NDArray[Any], scale: npt.NDArray[Any]) -> float:
    """Return how much of the variance of old latents others explain, all dimensions together.

    Args:
        predicted: Latents in the old ones' coordinates, shape (N, latent_dim).
        old: The old ones of the same frames.
        scale: What the wrapper divides each dimension by.

    Returns:
        1 - squared error / variance, summed over the dimensions as an agent sees them; at most 1.

    Example:
        >>> old = np.random.default_rng(0).normal(size=(10_000, 2))
        >>> round(r2(old + 0.1, old, np.ones(2)), 2)
        0.99
    """
    error, variance = (np.square(x / scale).sum() for x in (predicted - old, old - old.mean(0)))
    return float(1 - error / variance) if variance else 1.0


def fold_map(vae: VAE, to: AffineMap) -> VAE:
    """Return a VAE whose latents are mapped, and whose decoder takes them so.

    Args:
        vae: The model, without normalisation layers.
        to: Near the identity. The posterior's variance is mapped by the diagonal of ``matrix`` alone, for a
            diagonal posterior has no room for more; all else is exact.

    Returns:
        Another model. Means are ``to`` of the means of ``vae``; what it decodes from them is the same.
    """
    inverse = np.linalg.inv(to.matrix)
    tensors = {name: value.astype(np.float64) for name, value in vae.tensors().items()}
    tensors["mean.weight"] = to.matrix @ tensors["mean.weight"]
    tensors["mean.bias"] = to(tensors["mean.bias"][None])[0]
    tensors["log_variance.bias"] = tensors["log_variance.bias"] + np.log(np.square(np.diag(to.matrix)))
    weight = tensors["decoder.linear.weight"] @ inverse
    tensors["decoder.linear.bias"] = tensors["decoder.linear.bias"] - weight @ to.offset
    tensors["decoder.linear.weight"] = weight
    ready = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    return VAE.from_tensors(vae.config, ready).to(torch.device("cpu"))

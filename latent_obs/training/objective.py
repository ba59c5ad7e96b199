"""The objective of a VAE: the negative ELBO in nats per frame.

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes"; the decoder's variance is calibrated as in
Rybkin et al. (2021), "Simple and effective VAE training with calibrated decoders".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latent_obs.frames import FRAME_BYTES
from latent_obs.vae import VAE, as_images

# A pixel is known to 1/255, so a variance below a rounding error's says nothing (1/12 level^2).
MIN_VARIANCE = (1 / 255) ** 2 / 12
# The emphasis on foreground pixels is full up to this share of a frame, and bounded above it.
EMPHASIS_SHARE = 0.05
# Far above the prior's 0.
MAX_LOG_VARIANCE = 4.0


def init_output_bias(vae: VAE, frames: npt.NDArray[np.uint8]) -> None:
    """Start the decoder at the mean frame, so that training begins with what moves."""
    mean = torch.from_numpy(frames.mean(0, dtype=np.float64)).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        vae.output_bias.copy_(mean.clamp(0.01, 0.99).logit())


@dataclass(frozen=True)
class Terms:
    """The parts of the objective for one batch; sums over pixels and dimensions.

    Attributes:
        squared_error: Per frame, pixels in [0, 1], shape (N,).
        weighted_error: The same with the foreground emphasis, shape (N,).
        kl: KL divergence of the posterior from the standard normal in nats, (N, latent_dim).
        mean: Posterior mean, shape (N, latent_dim).
    """

    squared_error: Tensor
    weighted_error: Tensor
    kl: Tensor
    mean: Tensor


def terms(
    vae: VAE,
    frames: Tensor,
    *,
    foreground: Tensor | None = None,
    foreground_weight: float = 0.0,
    rarity: Tensor | None = None,
    rarity_weight: float = 0.0,
    sample: bool = True,
    generator: torch.Generator | None = None,
    noise: Tensor | None = None,
) -> Terms:
    """Run the VAE on a batch and return the parts of its objective.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).
        foreground: Kinds of foreground of each frame, masks of shape (N, kinds, 64, 64), as
            :meth:`~latent_obs.FramesFolder.batches_and_foreground` gives them.
        foreground_weight: Weight that each kind of foreground adds to the 1 of all pixels' errors;
            lowered in frames with more than 5% of that kind in proportion, so that a scene that
            changes as a whole does not drown the small objects of all others.
        rarity: How rare each pixel's colour is (:func:`~latent_obs.measures.color_rarity`), in [0, 1], of
            shape (N, 64, 64).
        rarity_weight: Weight that a rare colour adds in the same way; no camera that moves makes the
            background rare.
        sample: Decode a sample of the posterior rather than its mean.
        generator: Source of that sample.
        noise: That sample before it is scaled, standard normal of shape (N, latent_dim), where the
            caller has drawn it.
    """
    mean, log_variance = vae.encode(frames)
    variance, latents = bounded_exp(log_variance), mean
    if sample:
        if noise is None:
            noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        # The square root of a variance of zero, as an outlier of little KL weight gets, has no gradient.
        latents = mean + noise * bounded_exp(log_variance, 0.5)
    error = (vae.decode_logits(latents).sigmoid() - as_images(frames)).square()  # (N, 3, 64, 64)
    squared_error = weighted_error = error.sum((1, 2, 3))
    pixel_error = error.sum(1)  # (N, 64, 64)
    if foreground_weight and foreground is not None:
        emphasis = _emphasis(foreground).sum(1)
        weighted_error = weighted_error + foreground_weight * (pixel_error * emphasis).sum((1, 2))
    if rarity_weight and rarity is not None:
        weighted_error = weighted_error + rarity_weight * (pixel_error * _emphasis(rarity)).sum((1, 2))
    kl = 0.5 * (mean.square() + variance - 1 - log_variance)
    return Terms(squared_error, weighted_error, kl, mean)


def bounded_exp(log_variance: Tensor, power: float = 1.0) -> Tensor:
    """Return a power of the exponential, which goes on as its tangent above ``MAX_LOG_VARIANCE``.

    No posterior is wider than the prior by choice. But a rare frame unlike all others, such as a flash,
    can get a log-variance of 80, whose exponential and gradient would ruin the weights.

    Args:
        log_variance: Any shape.
        power: 1 gives the variance, 0.5 the standard deviation.

    Example:
        >>> [round(float(x), 1) for x in bounded_exp(torch.tensor([0.0, 4.0, 5.0]))]
        [1.0, 54.6, 109.2]
    """
    bounded = log_variance.clamp(max=MAX_LOG_VARIANCE)
    return (power * bounded).exp() * (1 + log_variance - bounded) ** power


def _emphasis(foreground: Tensor) -> Tensor:
    """Return the foreground, in [0, 1], lowered where it is more than 5% of a frame; of its shape."""
    foreground = foreground.float()
    share = foreground.mean((-2, -1), keepdim=True)
    return foreground * (EMPHASIS_SHARE / share.clamp(min=EMPHASIS_SHARE))


def floored_kl(kl: Tensor, free_bits: float) -> tuple[Tensor, Tensor]:
    """Charge each latent dimension at least ``free_bits`` nats, so that none gains by saying less.

    Args:
        kl: KL of each dimension in nats, averaged over the batch, shape (latent_dim,).
        free_bits: The floor of each dimension in nats; 0 leaves the KL as it is.

    Returns:
        The sum over dimensions of ``max(free_bits, kl)``, and which dimensions lie above the floor
        and hence have a gradient, 0 or 1 of shape (latent_dim,).

    Example:
        >>> total, charged = floored_kl(torch.tensor([0.1, 3.0]), free_bits=0.5)
        >>> round(float(total), 3), charged.tolist()
        (3.5, [0.0, 1.0])

    Source: Kingma et al. (2016), "Improving variational inference with inverse autoregressive flow".
    """
    return kl.clamp(min=free_bits).sum(), (kl > free_bits).to(kl.dtype)


def gaussian_nll(squared_error: Tensor, variance: Tensor) -> Tensor:
    """Return -log p(frame | z) of a Gaussian decoder in nats per frame, for 8-bit levels.

    Args:
        squared_error: Sum over the 12,288 values of a frame, pixels in [0, 1].
        variance: Decoder variance for pixels in [0, 1].

    Returns:
        Nats, the density taken over levels 0 to 255, so that dividing by 12,288 ln 2 gives
        bits per dimension.

    Example:
        >>> level = torch.tensor(1 / 255**2)  # an error of one level everywhere
        >>> bits = gaussian_nll(12288 * level, level) / (12288 * math.log(2))
        >>> round(float(bits), 2)
        2.05
    """
    log_levels = (2 * math.pi * variance * 255**2).log()
    return FRAME_BYTES / 2 * log_levels + squared_error / (2 * variance)

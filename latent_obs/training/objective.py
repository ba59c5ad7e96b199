"""The objective of a VAE: the negative ELBO in nats per frame.

:func:`terms` runs the model on a batch, and :func:`negative_elbo` turns what it returns into the loss. The
rest of this file is what those two need.

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes"; the decoder's variance is calibrated as in
Rybkin et al. (2021), "Simple and effective VAE training with calibrated decoders".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latent_obs.frames import FRAME_BYTES
from latent_obs.vae import VAE, as_images

if TYPE_CHECKING:
    from latent_obs.training.config import TrainConfig

# 8-bit pixels are rounded, so a decoder variance below that of the rounding (1/12 level^2) has no meaning.
MIN_VARIANCE = (1 / 255) ** 2 / 12
# An emphasis counts in full while it covers at most this share of a frame; above it, it is scaled down.
EMPHASIS_SHARE = 0.05
# The prior's log-variance is 0; 4 is far above anything that a trained posterior uses.
MAX_LOG_VARIANCE = 4.0
# The decoder variance is a running mean over the last 50 steps or so: this much of it stays at each step.
VARIANCE_MEMORY = 0.98


@dataclass(frozen=True)
class Terms:
    """The parts of the objective for each of N frames, summed over pixels.

    Attributes:
        squared_error: Squared error of the decoded frame, pixels in [0, 1], shape (N,).
        weighted_error: The same, each pixel's error times its weight (:func:`pixel_weights`), shape (N,).
        kl: KL divergence of the posterior from the standard normal in nats, shape (N, latent_dim).
        mean: Mean of the posterior, shape (N, latent_dim).
    """

    squared_error: Tensor
    weighted_error: Tensor
    kl: Tensor
    mean: Tensor


@dataclass(frozen=True)
class Means(Terms):
    """The same parts, each averaged over the frames of a batch: scalars, and vectors of (latent_dim,).

    Attributes:
        active_units: Dimensions of the latent whose mean varies by more than 0.01 in the batch.
    """

    active_units: float


def terms(
    vae: VAE,
    frames: Tensor,
    noise: Tensor | None = None,
    weights: Tensor | None = None,
    *,
    pairs: bool = False,
    held: int = 0,
) -> Terms:
    """Encode a batch, draw one sample of each posterior, decode it and compare.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).
        noise: Standard normal noise, shape (N, latent_dim), from which the samples are made; ``None``
            (default): decode the mean of each posterior.
        weights: Weight of each pixel in ``weighted_error``, shape (N, 64, 64); ``None`` (default): 1.
        pairs: Whether the second half of the frames are partners of the first, see :func:`share_posteriors`.
        held: How many dimensions, the first ones, have a mean that the decoder takes as it is: the error of
            the decoded frame has no gradient with respect to it.
    """
    mean, log_variance = vae.encode(frames)  # q(z | frame) = N(mean, exp(log_variance)), each (N, latent_dim)
    if pairs:
        mean, log_variance = share_posteriors(mean, log_variance)
    taken = torch.cat([mean[:, :held].detach(), mean[:, held:]], 1)
    latents = taken if noise is None else taken + noise * bounded_exp(log_variance, 0.5)
    decoded = vae.decode_logits(latents).sigmoid()  # the mean of p(frame | z), (N, 3, 64, 64)
    error = (decoded - as_images(frames)).square().sum(1)  # (N, 64, 64)
    squared_error = weighted_error = error.sum((1, 2))
    if weights is not None:
        weighted_error = (error * weights).sum((1, 2))
    return Terms(squared_error, weighted_error, kl_divergence(mean, log_variance), mean)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return the KL divergence of each posterior from the standard normal in nats, of the same shape."""
    return 0.5 * (mean.square() + bounded_exp(log_variance) - 1 - log_variance)


def share_posteriors(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """Let the frames of a pair share the posterior of every dimension but the one that differs most.

    Mean and variance of the shared ones are averaged over the pair. So what changes between two frames has
    to be in a single dimension, and what stays has to be in others.

    Args:
        mean: Of the posteriors, shape (2 N, latent_dim); the partner of row i is row N + i.
        log_variance: Of the same shape.

    Returns:
        Both, of the same shapes.

    Source: Locatello et al. (2020), "Weakly-supervised disentanglement without compromises", with one
    factor known to change, and averages as in Hosoya (2019), "Group-based learning of disentangled
    representations with generalizability for novel contents".
    """
    first, second = mean.chunk(2)
    variances = bounded_exp(log_variance)
    one, other = variances.chunk(2)
    with torch.no_grad():  # the symmetric KL divergence, but for constants
        distance = (first - second).square() * (1 / one + 1 / other) + one / other + other / one
        shared = torch.ones_like(distance, dtype=torch.bool)
        shared.scatter_(1, distance.argmax(1, keepdim=True), False)
    both = shared.repeat(2, 1)
    return (
        torch.where(both, ((first + second) / 2).repeat(2, 1), mean),
        torch.where(both, ((one + other) / 2).log().repeat(2, 1), log_variance),
    )


def negative_elbo(
    parts: Terms, means: Means, variance: Tensor, beta: float, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """Return the reconstruction and the whole loss of each frame in nats.

    Args:
        parts: Of some frames; ``means`` itself gives the values for the mean of the batch.
        means: Over the whole batch that the frames belong to. They decide which latent dimensions lie
            above the floor of ``free_bits``.
        variance: Variance of the Gaussian decoder on the weighted error.
        beta: Weight of the KL term.
        config: Has the kind of ``objective`` and ``free_bits``.

    Returns:
        -log p(frame | z), and the same plus ``beta`` times the KL divergence; both of shape (N,). With the
        objective ``sse`` the first is the plain squared error.
    """
    if config.objective == "sse":
        reconstruction = parts.squared_error
    else:
        reconstruction = gaussian_nll(parts.weighted_error, variance)
    return reconstruction, reconstruction + beta * floored_kl(parts.kl, means.kl, config.free_bits)


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


def floored_kl(kl: Tensor, mean_kl: Tensor, free_bits: float) -> Tensor:
    """Return the KL divergence in which each latent dimension costs at least ``free_bits`` nats.

    A dimension that says less than that on average costs ``free_bits`` and has no gradient, so it gains
    nothing by saying even less: that is what keeps it from collapsing.

    Args:
        kl: KL of each dimension in nats, shape (..., latent_dim).
        mean_kl: The same averaged over the batch, shape (latent_dim,).
        free_bits: The floor in nats; 0 leaves the KL as it is.

    Returns:
        Nats, summed over the dimensions, shape (...).

    Example:
        >>> kl = torch.tensor([0.1, 3.0])
        >>> round(float(floored_kl(kl, kl, free_bits=0.5)), 3)
        3.5

    Source: Kingma et al. (2016), "Improving variational inference with inverse autoregressive flow".
    """
    return torch.where(mean_kl > free_bits, kl, free_bits).sum(-1)


def calibrated_variance(variance: Tensor, squared_error: Tensor, step: int) -> Tensor:
    """Move a decoder variance towards its optimum for a batch: the mean squared error of a value.

    Args:
        variance: The variance before the step.
        squared_error: Mean over the batch of a frame's error, summed over its 12,288 values.
        step: Optimiser steps taken; the first ones give a plain mean over all batches so far.
    """
    keep = min(VARIANCE_MEMORY, step / (step + 1))
    return (keep * variance + (1 - keep) * squared_error / FRAME_BYTES).clamp(min=MIN_VARIANCE)


def kl_weight(step: int, config: TrainConfig) -> float:
    """Return beta at a step: over the first ``kl_warmup`` of all steps it rises from zero.

    With ``beta_start`` it goes from there by a constant factor per step instead.
    """
    warmup = config.kl_warmup * config.steps
    done = min(1.0, step / warmup) if warmup else 1.0
    if config.beta_start:
        return config.beta_start * math.pow(config.beta / config.beta_start, done)
    return config.beta * done


def learning_rate(step: int, config: TrainConfig) -> float:
    """Return Adam's learning rate at a step: half a cosine from its full value down to zero."""
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def pixel_weights(
    foreground: Tensor, foreground_weight: float, rarity: Tensor, rarity_weight: float
) -> Tensor:
    """Return the weight of each pixel's error: 1, and more for what is small and must not be lost.

    In a frame where more than 5% are foreground or rare, that emphasis is scaled down to 5%, so that a scene
    that changes as a whole does not drown the small objects of all others.

    Args:
        foreground: Kinds of foreground, masks of shape (N, kinds, 64, 64), as
            :meth:`~latent_obs.FramesFolder.batches_and_foreground` gives them. Their weights add up.
        foreground_weight: Weight that a pixel gains by each kind.
        rarity: How rare each pixel's colour is (:func:`~latent_obs.measures.color_rarity`), in [0, 1], of
            shape (N, 64, 64). No camera that moves makes the background rare.
        rarity_weight: Weight that a pixel of the rarest colours gains.

    Returns:
        float32, at least 1, shape (N, 64, 64).
    """
    return 1 + foreground_weight * _bounded(foreground).sum(1) + rarity_weight * _bounded(rarity)


def _bounded(emphasis: Tensor) -> Tensor:
    """Return an emphasis in [0, 1], scaled down where it covers more than 5% of a frame; of its shape."""
    emphasis = emphasis.float()
    share = emphasis.mean((-2, -1), keepdim=True)
    return emphasis * (EMPHASIS_SHARE / share.clamp(min=EMPHASIS_SHARE))


def bounded_exp(log_variance: Tensor, power: float = 1.0) -> Tensor:
    """Return a power of the exponential, continued by its tangent above ``MAX_LOG_VARIANCE``.

    No posterior is wider than the prior by choice. But a rare frame unlike all others, such as a flash, can
    get a log-variance of 80, whose exponential and gradient would ruin the weights.

    The deviation is the power 0.5 rather than the square root of the variance: a square root has no gradient
    at zero, and that is what the variance of an outlier can be.

    Args:
        log_variance: Any shape.
        power: 1 gives the variance, 0.5 the standard deviation.

    Example:
        >>> bounded_exp(torch.tensor([0.0, 2.0]), 0.5)
        tensor([1.0000, 2.7183])
    """
    bounded = log_variance.clamp(max=MAX_LOG_VARIANCE)
    return (power * bounded).exp() * (1 + log_variance - bounded) ** power


def init_output_bias(vae: VAE, frames: npt.NDArray[np.uint8]) -> None:
    """Make the untrained decoder show the mean frame, so that training begins with what moves.

    Args:
        vae: Its ``output_bias`` is set to the logit of the mean frame.
        frames: ``uint8``, shape (N, 64, 64, 3).
    """
    mean = torch.from_numpy(frames.mean(0, dtype=np.float64)).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        vae.output_bias.copy_(mean.clamp(0.01, 0.99).logit())

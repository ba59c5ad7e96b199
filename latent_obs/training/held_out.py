"""What training measures of an encoder: metrics on held-out episodes, and statistics of its latents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latent_obs.encoders.folder import ACTIVE_VARIANCE
from latent_obs.frames import FRAME_BYTES
from latent_obs.measures import reconstruction_metrics
from latent_obs.training.objective import gaussian_nll, kl_divergence, terms
from latent_obs.vae import VAE, in_parts, reconstruct

# The deviation that is written for a dimension whose latent is the same for all frames.
MIN_STD = 1e-6


@torch.no_grad()
def latent_statistics(vae: VAE, frames: npt.NDArray[np.uint8]) -> dict[str, list[float]]:
    """Return per-dimension ``mean`` and ``std`` of the latent and its mean ``kl`` in nats.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).
    """
    posteriors = [vae.encode(part) for part in in_parts(vae, frames)]
    mean, log_variance = (torch.cat(parts).cpu() for parts in zip(*posteriors, strict=True))
    kl = kl_divergence(mean, log_variance)
    return {
        "mean": [float(x) for x in mean.mean(0)],
        "std": [max(float(x), MIN_STD) for x in mean.std(0)],
        "kl": [float(x) for x in kl.mean(0)],
    }


@torch.no_grad()
def evaluate_vae(
    vae: VAE, frames: npt.NDArray[np.uint8], known: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Measure a VAE on frames it has not seen.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3), from held-out episodes.
        known: What :func:`~latent_obs.measures.reconstruction_metrics` returns of these frames, if that was
            measured already; ``None`` (default): it is measured.

    Returns:
        A dictionary with

        - ``frames``: N.
        - ``negative_elbo``: nats per frame, the decoder's density taken over 8-bit levels.
        - ``bits_per_dim``: the same over 12,288 ln 2.
        - ``reconstruction``, ``kl``: its two parts in nats per frame.
        - ``active_units``: dimensions whose mean varies by more than 0.01 over the frames.
        - ``psnr``: of the reconstruction from the mean, in dB.
        - ``moving_r2``: 1 - residual energy / energy over the pixels that differ from the
          per-pixel median frame. A lost ball lowers it, and hardly lowers PSNR; 0 means that
          decoding is no better than showing the median. Frames that differ in more than half
          of their pixels (a flash, another scene) are left out if they are the exception,
          because one of them outweighs thousands of balls.
        - ``rare_r2``: the same over pixels whose colour, at three bits a channel, at most one
          pixel in 2,000 of these frames has. A monster that is lost in front of walls lowers it,
          wherever the camera looks.
        - ``foreground``: the share of pixels that differ from the median frame. It is large where
          the camera moves; the median frame and ``moving_r2`` mean little there.
    """
    sampled = _sampled_terms(vae, frames)
    variance = vae.decoder_variance.cpu().double()
    reconstruction = float(gaussian_nll(sampled["squared_error"], variance).mean())
    kl = float(sampled["kl"].sum(1).mean())
    return {
        "frames": len(frames),
        "negative_elbo": reconstruction + kl,
        "bits_per_dim": (reconstruction + kl) / (FRAME_BYTES * math.log(2)),
        "reconstruction": reconstruction,
        "kl": kl,
        "active_units": int((sampled["mean"].var(0, correction=0) > ACTIVE_VARIANCE).sum()),
        **(known or reconstruction_metrics(frames, partial(reconstruct, vae))),
    }


def _sampled_terms(vae: VAE, frames: npt.NDArray[np.uint8]) -> dict[str, torch.Tensor]:
    generator = torch.Generator(vae.output_bias.device).manual_seed(0)
    rows: dict[str, list[torch.Tensor]] = {"squared_error": [], "kl": [], "mean": []}
    for part in in_parts(vae, frames):
        shape = (len(part), vae.config.latent_dim)
        measured = terms(vae, part, torch.randn(shape, generator=generator, device=part.device))
        for name, values in rows.items():
            values.append(getattr(measured, name).cpu())
    return {name: torch.cat(values) for name, values in rows.items()}

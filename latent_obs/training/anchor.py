"""Holds the latents of a VAE while it trains on: near those of the encoder that it started from.

A policy that was trained on the old latents then goes on with the new encoder, because each latent still says
what it said.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latent_obs.encoders.resolve import EncoderRef
from latent_obs.vae import load_vae


class Anchor:
    """The log-likelihood of the old encoder's latents under a Gaussian around the new ones.

    Args:
        ref: The old encoder.
        deviation: Standard deviation of that Gaussian, in standard deviations of each latent dimension. With
            0.1, a new latent that is a tenth of a standard deviation off in all of 32 dimensions costs 16
            nats.
        device: Where the model is that trains.

    Example:
        >>> from latent_obs.vae import load_vae
        >>> vae, _ = load_vae("pong-v0")
        >>> frames = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
        >>> Anchor("pong-v0", 0.1, "cpu").nll(vae(frames), frames)
        tensor([0., 0.])

    Source: Hinton et al. (2015), "Distilling the knowledge in a neural network", and Li & Hoiem (2016),
    "Learning without forgetting", with the latent in the place of the outputs.
    """

    def __init__(self, ref: EncoderRef, deviation: float, device: torch.device | str) -> None:
        vae, config = load_vae(ref)
        del vae.decoder
        self._old = vae.to(device)
        scale = torch.from_numpy(config.scaling[1]).float().to(device)
        self._precision = 1 / (scale * deviation).square()

    def nll(self, mean: Tensor, frames: Tensor) -> Tensor:
        """Return -log p(old latent | new latent) but for a constant, in nats per frame, shape (N,).

        Args:
            mean: Mean of the new posterior, shape (N, latent_dim).
            frames: ``uint8``, shape (N, 64, 64, 3).
        """
        with torch.no_grad():
            old = self._old(frames)
        nats: Tensor = ((mean - old).square() * self._precision).sum(1) / 2
        return nats

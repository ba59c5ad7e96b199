"""The networks of the variational autoencoder, in torch.

They follow Ha & Schmidhuber (2018), "World Models": convolutions of 4x4 with stride 2 down, transposed
ones up. How they are trained is in :mod:`latent_obs.training`.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import EncoderConfig, Tensors, VAEConfig
from latent_obs.encoders.resolve import EncoderRef, resolve
from latent_obs.extras import needs

with needs("latent_obs.vae"):
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

# Frames that are encoded or decoded at once.
PART = 64


class VAE(nn.Module):
    """A convolutional VAE of 64x64 RGB frames.

    Scaling to [0, 1] and the change of layout happen inside: callers pass frames as they are.

    Args:
        config: Sizes of the networks.
        norm: Called with a number of channels, it returns the layer that normalises them while training, such
            as :class:`~latent_obs.training.batch_norm.BatchNorm`. ``None`` (default): no such layer, as in a
            saved VAE.

    Attributes:
        output_bias: Added to the decoder's logits, shape (3, 64, 64); the mean frame's logit.
        decoder_variance: Variance of the Gaussian decoder for pixels in [0, 1], a scalar.

    Example:
        >>> vae = VAE(VAEConfig(latent_dim=8, channels=(4, 8)))
        >>> mean, log_variance = vae.encode(torch.zeros(5, 64, 64, 3, dtype=torch.uint8))
        >>> tuple(mean.shape), tuple(vae.decode(mean).shape)
        ((5, 8), (5, 64, 64, 3))
    """

    output_bias: Tensor
    decoder_variance: Tensor

    def __init__(self, config: VAEConfig, *, norm: Callable[[int], nn.Module] | None = None) -> None:
        super().__init__()
        self.config = config
        features = math.prod(config.feature_shape)
        widths = (3, *config.channels)
        down: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            down[f"conv{i}"] = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=norm is None)
            if norm is not None:
                down[f"norm{i}"] = norm(after)
            down[f"relu{i}"] = nn.ReLU(inplace=True)
        up: OrderedDict[str, nn.Module] = OrderedDict()
        up["linear"] = nn.Linear(config.latent_dim, features)
        up["unflatten"] = nn.Unflatten(1, config.feature_shape)
        for i, (before, after) in enumerate(itertools.pairwise(widths[::-1])):
            if norm is not None:
                up[f"norm{i}"] = norm(before)
            up[f"relu{i}"] = nn.ReLU(inplace=True)
            bias = after != 3 and norm is None
            up[f"conv{i}"] = _TransposedConv(before, after, 4, stride=2, padding=1, bias=bias)
        self.encoder = nn.Sequential(down)
        self.mean = nn.Linear(features, config.latent_dim)
        self.log_variance = nn.Linear(features, config.latent_dim)
        self.decoder = nn.Sequential(up)
        self.output_bias = nn.Parameter(torch.zeros(3, 64, 64))
        self.register_buffer("decoder_variance", torch.tensor(1.0))
        # The same values in another order of memory, in which convolutions are faster.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance of the posterior q(z | frame).

        Args:
            frames: ``uint8`` frames, shape (N, 64, 64, 3).

        Returns:
            Two float32 tensors of shape (N, latent_dim).
        """
        features = self.encoder(as_images(frames)).flatten(1)  # (N, C * H * W)
        return self.mean(features).float(), self.log_variance(features).float()

    def decode(self, latents: Tensor) -> Tensor:
        """Return the decoder's mean image.

        Args:
            latents: float32, shape (N, latent_dim).

        Returns:
            float32 RGB in [0, 1], shape (N, 64, 64, 3).
        """
        return self.decode_logits(latents).sigmoid().permute(0, 2, 3, 1)

    def decode_logits(self, latents: Tensor) -> Tensor:
        """Return the image before its sigmoid, float32 of shape (N, 3, 64, 64)."""
        logits: Tensor = self.decoder(latents).float()
        return logits + self.output_bias

    def forward(self, frames: Tensor) -> Tensor:
        """Return the latent of each frame: the posterior mean, float32 (N, latent_dim)."""
        return self.encode(frames)[0]

    def tensors(self) -> Tensors:
        """Return the weights as ``model.safetensors`` names them."""
        return {name: tensor.detach().cpu().float().numpy() for name, tensor in self.state_dict().items()}

    @classmethod
    def from_tensors(cls, config: VAEConfig, tensors: Tensors) -> VAE:
        """Build a VAE in evaluation mode from :meth:`tensors`' value."""
        vae = cls(config)
        vae.load_state_dict({name: torch.from_numpy(value) for name, value in tensors.items()})
        return vae.eval().requires_grad_(False)


class _TransposedConv(nn.ConvTranspose2d):
    """A transposed convolution that adds its bias in an operation of its own.

    The gradient of a bias inside the convolution costs oneDNN as much as that of the weights (15 ms in a step
    of 64 frames); outside, it is a sum.
    """

    def forward(self, features: Tensor, output_size: list[int] | None = None) -> Tensor:
        del output_size
        convolved = F.conv_transpose2d(features, self.weight, stride=2, padding=1)
        if self.bias is None:
            return convolved
        # Adding a float32 bias to a bfloat16 tensor in place would convert the tensor twice.
        return convolved.add_(self.bias.to(convolved.dtype)[:, None, None])


def as_images(frames: Tensor) -> Tensor:
    """Turn ``uint8`` frames (N, 64, 64, 3) into float32 images (N, 3, 64, 64) in [0, 1]."""
    return frames.permute(0, 3, 1, 2).float() / 255


def load_vae(ref: EncoderRef) -> tuple[VAE, EncoderConfig]:
    """Load both halves of a saved VAE as a torch module, to look at or to fine-tune.

    Args:
        ref: As :func:`latent_obs.load_encoder` takes it.

    Raises:
        FileNotFoundError: If there is no such encoder, or it is incomplete.
        ValueError: If it is damaged.

    Example:
        >>> vae, config = load_vae("shapes-v0")
        >>> tuple(vae.decode(torch.zeros(1, config.vae.latent_dim)).shape)
        (1, 64, 64, 3)
    """
    found = resolve(ref)
    return VAE.from_tensors(found.config.vae, found.tensors()), found.config


@torch.no_grad()
def latents(vae: VAE, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Encode any number of frames; float32, shape (N, latent_dim)."""
    encoded: npt.NDArray[np.float32] = torch.cat([vae(part) for part in in_parts(vae, frames)]).cpu().numpy()
    return encoded


@torch.no_grad()
def reconstruct(vae: VAE, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Decode the mean of each frame's posterior.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).

    Returns:
        ``uint8`` frames of the same shape.
    """
    return np.concatenate([to_frames(vae.decode(vae(part))) for part in in_parts(vae, frames)])


def to_frames(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Round decoded images in [0, 1] to ``uint8`` frames."""
    rounded: npt.NDArray[np.uint8] = (images * 255).round().to(torch.uint8).cpu().numpy()
    return rounded


def in_parts(vae: VAE, frames: npt.NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    """Yield some frames after others, where the model is; what a model makes of few stays in the cache."""
    for start in range(0, len(frames), PART):
        yield as_tensor(vae, frames[start : start + PART])


def as_tensor(vae: VAE, frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Put frames where the model is."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(vae.output_bias.device)

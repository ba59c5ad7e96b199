"""Batch normalisation that exists only while a VAE trains.

With normalised activations the place of a small object reaches the latent in a fraction of the steps.
After training, each normalisation is a fixed scale and shift of its channels, so it is folded into the
weights of the layer before: encoder folders, runtimes and pages need not know of it.

Source: Ioffe & Szegedy (2015), "Batch normalization".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from latent_obs.vae import VAE

EPSILON = 1e-5
MOMENTUM = 0.1  # of the running statistics: torch's default


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the whole batch, also when several processes share it.

    torch's ``SyncBatchNorm`` runs on GPUs only.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, EPSILON, MOMENTUM)

    def forward(self, features: Tensor) -> Tensor:
        """Normalise features of shape (N, C, H, W)."""
        processes = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not (self.training and processes and torch.distributed.get_world_size() > 1):
            normalised: Tensor = super().forward(features)
            return normalised

        def total(values: Tensor) -> Tensor:
            summed: Tensor = _SumOverProcesses.apply(values.sum((0, 2, 3)))  # type: ignore[no-untyped-call]
            return summed

        own = features.float()
        rows = total(torch.ones_like(own[:, :1]))
        mean = total(own) / rows
        centred = own - mean[:, None, None]
        variance = total(centred.square()) / rows
        assert self.running_mean is not None
        assert self.running_var is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, MOMENTUM)
            self.running_var.lerp_(variance * rows / (rows - 1), MOMENTUM)
        scale = self.weight * (variance + EPSILON).rsqrt()
        whole: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return whole.to(features.dtype)


class _SumOverProcesses(torch.autograd.Function):
    """A sum whose gradient reaches every process; the one in ``torch.distributed.nn`` is deprecated."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        torch.distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        torch.distributed.all_reduce(summed)
        return summed


@torch.no_grad()
def fold(vae: VAE) -> VAE:
    """Return a VAE without normalisation that computes what this one computes in evaluation mode.

    Args:
        vae: A VAE made with :class:`BatchNorm`; a VAE without normalisation is copied.
    """
    plain = type(vae)(vae.config)
    tensors = {name: tensor.double() for name, tensor in vae.state_dict().items()}
    for layer, before, norm in _normalised(vae):
        gain = tensors.pop(f"{norm}.weight") / (tensors.pop(f"{norm}.running_var") + EPSILON).sqrt()
        shift = tensors.pop(f"{norm}.bias") - gain * tensors.pop(f"{norm}.running_mean")
        del tensors[f"{norm}.num_batches_tracked"]
        # A linear layer's outputs are the values of all channels, one channel after the other.
        values = layer.out_features // len(gain) if isinstance(layer, nn.Linear) else 1
        gain, shift = gain.repeat_interleave(values), shift.repeat_interleave(values)
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        shape = [-1 if i == axis else 1 for i in range(layer.weight.dim())]
        tensors[f"{before}.weight"] = tensors[f"{before}.weight"] * gain.reshape(shape)
        tensors[f"{before}.bias"] = gain * tensors.get(f"{before}.bias", 0.0) + shift
    plain.load_state_dict(tensors)
    return plain.to(vae.output_bias.device).eval()


@torch.no_grad()
def unfold(plain: VAE, frames: Tensor) -> VAE:
    """Return a VAE with normalisation, to train further, that computes the same for batches like ``frames``.

    Args:
        plain: A VAE without normalisation.
        frames: ``uint8``, shape (N, 64, 64, 3); the normalisation starts with their statistics.
    """
    vae = type(plain)(plain.config, norm=BatchNorm)
    tensors = plain.state_dict()
    vae.load_state_dict(tensors, strict=False)
    bias = torch.zeros(())
    features = frames.permute(0, 3, 1, 2).float() / 255
    for part, layers in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        if part == "decoder":
            features = vae.mean(features.flatten(1))
        for name, layer in layers.eval().named_children():
            if isinstance(layer, BatchNorm):
                variance, mean = torch.var_mean(features, (0, 2, 3), correction=0)
                layer.running_mean, layer.running_var = mean, variance
                layer.weight.copy_((variance + EPSILON).sqrt())
                layer.bias.copy_(mean + bias)
            elif hasattr(layer, "weight"):
                # The normalised convolutions have no bias of their own.
                lost = layer.bias is None and f"{part}.{name}.bias" in tensors
                bias = tensors[f"{part}.{name}.bias"] if lost else torch.zeros(())
            features = layer.forward(features)
    return vae.train()


def _normalised(vae: VAE) -> Iterator[tuple[Any, str, str]]:
    """Yield the layers that are normalised, their names and the names of their normalisation."""
    for part, layers in (("encoder", vae.encoder), ("decoder", vae.decoder)):
        previous: tuple[Any, str] | None = None
        for name, layer in layers.named_children():
            if isinstance(layer, BatchNorm):
                assert previous is not None
                yield *previous, f"{part}.{name}"
            elif hasattr(layer, "weight"):
                previous = layer, f"{part}.{name}"

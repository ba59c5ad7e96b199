"""Normalisation leaves no trace: folding and unfolding keep the function."""

import pytest
import torch
from torch import Tensor

from latent_obs.batch_norm import BatchNorm, fold, unfold
from latent_obs.encoder_folder import VAEConfig
from latent_obs.vae import VAE

CONFIGS = [VAEConfig(4, (8, 4)), VAEConfig(6, (4, 8, 4, 8))]


def frames(count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def trained(config: VAEConfig) -> VAE:
    """A VAE whose normalisation is far from its first state."""
    torch.manual_seed(0)
    vae = VAE(config, batch_norm=True)
    for layer in vae.modules():
        if isinstance(layer, BatchNorm):
            torch.nn.init.uniform_(layer.weight, -2, 2)
            torch.nn.init.normal_(layer.bias)
    for _ in range(30):
        vae.decode(vae(frames()))
    return vae


@pytest.mark.parametrize("config", CONFIGS)
def test_folding_keeps_the_function_that_is_evaluated(config: VAEConfig) -> None:
    vae = trained(config).eval()
    plain = fold(vae)
    assert not any(isinstance(layer, BatchNorm) for layer in plain.modules())
    assert plain.state_dict().keys() == VAE(config).state_dict().keys()
    for ours, theirs in zip(plain.encode(frames()), vae.encode(frames()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    latents = torch.randn(5, config.latent_dim)
    torch.testing.assert_close(plain.decode(latents), vae.decode(latents), rtol=1e-4, atol=1e-4)


def test_a_vae_without_normalisation_folds_to_itself() -> None:
    vae = VAE(CONFIGS[0])
    torch.testing.assert_close(dict(fold(vae).state_dict()), dict(vae.state_dict()))


@pytest.mark.parametrize("config", CONFIGS)
def test_unfolding_keeps_the_function_while_training(config: VAEConfig) -> None:
    plain = fold(trained(config))
    vae = unfold(plain, frames())
    assert vae.training
    assert sum(isinstance(layer, BatchNorm) for layer in vae.modules()) == 2 * len(config.channels)
    torch.testing.assert_close(vae(frames()), plain(frames()), rtol=1e-3, atol=1e-3)
    latents = plain(frames())
    torch.testing.assert_close(vae.decode(latents), plain.decode(latents), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fold(unfold(plain, frames())).decode(latents), plain.decode(latents))

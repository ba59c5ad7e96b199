"""Normalisation leaves no trace: folding and unfolding keep the function."""

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from latent_obs.encoders.folder import VAEConfig
from latent_obs.training.batch_norm import BatchNorm, fold, unfold
from latent_obs.vae import VAE

CONFIGS = [VAEConfig(4, (8, 4)), VAEConfig(6, (4, 8, 4, 8))]


def frames(count: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)


def trained(config: VAEConfig) -> VAE:
    """A VAE whose normalisation is far from its first state."""
    torch.manual_seed(0)
    vae = VAE(config, norm=BatchNorm)
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


def one_share(rank: int, processes: int, port: int, path: Path) -> None:
    """Normalise this process's share of seven frames and write the gradients over all of them."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=processes)
    torch.manual_seed(0)
    features, weights = torch.randn(2, 7, 3, 4, 4)
    before, norm = torch.nn.Conv2d(3, 3, 3), BatchNorm(3)
    mine = slice(7 * rank // processes, 7 * (rank + 1) // processes)
    (norm(before(features[mine])).square() * weights[mine, :, :2, :2]).sum().backward()
    gradients = [parameter.grad for parameter in (*before.parameters(), *norm.parameters())]
    for gradient in gradients:
        torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save([*gradients, norm.running_mean, norm.running_var], path)
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_statistics_and_gradients_of_one(tmp_path: Path) -> None:
    results = []
    for processes in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        path = tmp_path / f"{processes}.pt"
        spawn(one_share, (processes, port, path), processes)  # type: ignore[no-untyped-call]
        results.append(torch.load(path))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

from __future__ import annotations

import pytest
import torch
from torch import nn

from latent_obs.encoders.folder import VAEConfig
from latent_obs.training.batch_norm import BatchNorm
from latent_obs.training.optimizer import Optimizer
from latent_obs.vae import VAE

RATE = 0.01


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    vae = VAE(VAEConfig(latent_dim=8, channels=(4, 8)), norm=BatchNorm)
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def give_gradients(vae: nn.Module, seed: int = 0) -> None:
    """Give every parameter a gradient whose singular values, as a matrix, span four orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in vae.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            flat = gradient.flatten(1)
            left, values, right = torch.linalg.svd(flat, full_matrices=False)
            gradient = (left @ torch.diag(torch.logspace(0, -4, len(values))) @ right).view_as(gradient)
        parameter.grad = gradient


def test_muon_moves_every_direction_of_a_kernel_alike(vae: VAE) -> None:
    """All singular values of a step are near 0.2 sqrt(max(rows, columns)) times the learning rate."""
    optimizer = Optimizer(vae, "muon", RATE)
    before = {name: parameter.detach().clone() for name, parameter in vae.named_parameters()}
    give_gradients(vae)
    gradients = {name: torch.as_tensor(parameter.grad) for name, parameter in vae.named_parameters()}
    optimizer.step(RATE)
    kernels = 0
    for name, parameter in vae.named_parameters():
        step = parameter.detach() - before[name]
        if parameter.dim() == 1 or name == "output_bias":  # Adam's first step has the gradient's sign
            torch.testing.assert_close(step, -RATE * gradients[name].sign(), atol=2e-4, rtol=1e-2)
            continue
        kernels += 1
        values = torch.linalg.svdvals(step.flatten(1)) / (RATE * 0.2 * max(step.flatten(1).shape) ** 0.5)
        assert 0.3 < float(values[: len(values) // 2].min()), name  # the gradient's span a factor of 100
        assert float(values.max()) < 1.5, name
    assert kernels == 7  # two convolutions, two transposed ones, three linear layers


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_a_state_that_is_loaded_goes_on_as_the_one_that_was_saved(vae: VAE, kind: str) -> None:
    optimizer = Optimizer(vae, kind, RATE)  # type: ignore[arg-type]
    give_gradients(vae, 0)
    optimizer.step(RATE)
    saved = {name: tensor.clone() for name, tensor in optimizer.tensors().items()}
    other = VAE(vae.config, norm=BatchNorm).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    other.load_state_dict(vae.state_dict())
    resumed = Optimizer(other, kind, RATE)  # type: ignore[arg-type]
    resumed.load(saved)
    for model, one in ((vae, optimizer), (other, resumed)):
        give_gradients(model, 1)
        one.step(RATE / 2)
    for (name, a), b in zip(vae.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_torch_without_muon_is_named(vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(ImportError, match=r"needs torch 2\.9 or newer, found .*pip install"):
        Optimizer(vae, "muon", RATE)

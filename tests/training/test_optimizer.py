from __future__ import annotations

from typing import Any

import numpy as np
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
    return VAE(VAEConfig(latent_dim=8, channels=(4, 8)), norm=BatchNorm)


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
    other = VAE(vae.config, norm=BatchNorm)
    other.load_state_dict(vae.state_dict())
    resumed = Optimizer(other, kind, RATE)  # type: ignore[arg-type]
    resumed.load(saved)
    for model, one in ((vae, optimizer), (other, resumed)):
        give_gradients(model, 1)
        one.step(RATE / 2)
    for (name, a), b in zip(vae.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def muons_singular_values(values: np.ndarray) -> np.ndarray:
    """Return what Muon makes of a gradient's singular values, as Jordan et al. (2024) define it."""
    values = values / np.linalg.norm(values)
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


@pytest.mark.parametrize("shape", [(4, 3, 4, 4), (8, 4, 4, 4), (8, 128), (128, 8)])
def test_two_steps_of_muon_are_those_of_its_paper(shape: tuple[int, ...]) -> None:
    """Computed from singular value decompositions in float64, with Nesterov's momentum of 0.95."""
    torch.manual_seed(1)
    model = nn.Module()
    model.weight, model.bias = nn.Parameter(torch.randn(shape)), nn.Parameter(torch.zeros(1))
    if len(shape) == 4:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Optimizer(model, "muon", RATE)
    expected = model.weight.detach().numpy().astype(float).reshape(shape[0], -1)
    momentum = np.zeros_like(expected)
    for _ in range(2):
        gradient = torch.randn(shape)
        model.weight.grad = gradient
        optimizer.step(RATE)
        flat = gradient.numpy().astype(float).reshape(shape[0], -1)
        momentum = 0.95 * momentum + 0.05 * flat
        left, values, right = np.linalg.svd(0.05 * flat + 0.95 * momentum, full_matrices=False)
        step = left @ np.diag(muons_singular_values(values)) @ right
        expected -= RATE * 0.2 * max(expected.shape) ** 0.5 * step
    np.testing.assert_allclose(model.weight.detach().reshape(shape[0], -1), expected, atol=2e-6)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon from 2.9 on")
def test_a_step_of_muon_is_torchs_own() -> None:
    """But for torch's bfloat16, in which the gradient must not span orders of magnitude."""
    torch.manual_seed(2)
    model, other = (nn.Linear(48, 16) for _ in range(2))
    other.load_state_dict(model.state_dict())
    before = model.weight.detach().clone()
    for one in (model, other):
        one.weight.grad = torch.linspace(-1, 1, 16 * 48).sin().view(16, 48) + torch.eye(16, 48)
    Optimizer(model, "muon", RATE).step(RATE)
    muon: Any = torch.optim.Muon([other.weight], RATE, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    muon.step()
    step, torchs = model.weight.detach() - before, other.weight.detach() - before
    assert float((step - torchs).norm() / torchs.norm()) < 0.03


def test_muon_skips_a_kernel_without_a_gradient(vae: VAE) -> None:
    optimizer = Optimizer(vae, "muon", RATE)
    give_gradients(vae)
    vae.mean.weight.grad = None
    before = vae.mean.weight.detach().clone()
    optimizer.step(RATE)
    assert torch.equal(vae.mean.weight, before)


def test_a_gradient_of_zero_moves_nothing() -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone()
    model.weight.grad = torch.zeros(3, 4)
    Optimizer(model, "muon", RATE).step(RATE)
    assert torch.equal(model.weight, before)

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.encoders.folder import VAEConfig
from latent_obs.measures import RARE_SHARE, color_bins, color_rarity
from latent_obs.training.objective import (
    MAX_LOG_VARIANCE,
    bounded_exp,
    floored_kl,
    gaussian_nll,
    init_output_bias,
    pixel_weights,
    terms,
)
from latent_obs.vae import VAE
from tests.conftest import TINY_VAE, random_tensors


@pytest.mark.parametrize("channels", [(4,), (4, 8, 8), (4, 8, 8, 8)])
def test_the_tensors_are_those_that_the_config_names(channels: tuple[int, ...]) -> None:
    config = VAEConfig(latent_dim=6, channels=channels)
    shapes = {name: tensor.shape for name, tensor in VAE(config).tensors().items()}
    assert shapes == config.tensor_shapes()


def test_the_default_encoder_has_the_tutorials_size() -> None:
    """32-64-128 and the mean's head: 0.43 million parameters."""
    shapes = VAEConfig().tensor_shapes()
    acting = [s for name, s in shapes.items() if name.startswith(("encoder.", "mean."))]
    assert sum(math.prod(s) for s in acting) == 427_776


def test_weights_survive_the_way_through_numpy() -> None:
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    again = VAE.from_tensors(TINY_VAE, vae.tensors())
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    assert torch.equal(vae(frames), again(frames))


def test_the_gaussian_likelihood_is_that_of_torch_distributions() -> None:
    image, decoded, variance = torch.rand(5, 12288), torch.rand(5, 12288), torch.tensor(0.03)
    density = torch.distributions.Normal(decoded * 255, variance.sqrt() * 255)
    expected = -density.log_prob(image * 255).sum(1)  # type: ignore[no-untyped-call]
    actual = gaussian_nll((image - decoded).square().sum(1), variance)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0.1)


def test_the_kl_is_that_of_torch_distributions(frames: Any) -> None:
    vae, batch = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE)), torch.from_numpy(frames(4))
    vae.mean.weight.mul_(0.01)
    vae.log_variance.weight.mul_(0.01)
    mean, log_variance = vae.encode(batch)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(terms(vae, batch).kl, expected, rtol=1e-4, atol=1e-4)


def decoded_error(vae: VAE, batch: Any) -> Any:
    """Squared error of each value of what the posterior's mean decodes to, by NumPy."""
    decoded = vae.decode(vae.encode(torch.from_numpy(batch))[0]).numpy()
    return (decoded - batch / 255.0) ** 2


def test_foreground_pixels_weigh_more_up_to_a_bound(frames: Any) -> None:
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    median = frames(1)[0]
    batch = np.stack([median, median, 255 - median])
    batch[1, 10:12, 20:24] ^= 255  # 8 pixels; all of them in the third frame
    foreground = torch.from_numpy((batch != median).any(-1)[:, None])
    weights = pixel_weights(foreground, 20.0, torch.zeros(3, 64, 64), 0.0)
    parts = terms(vae, torch.from_numpy(batch), weights=weights)
    error = decoded_error(vae, batch)
    extra = [0.0, 20 * error[1, 10:12, 20:24].sum(), 20 * 0.05 * error[2].sum()]
    np.testing.assert_allclose(parts.weighted_error, error.sum((1, 2, 3)) + extra, rtol=1e-4)
    np.testing.assert_allclose(parts.squared_error, error.sum((1, 2, 3)), rtol=1e-4)


def test_the_weights_of_both_kinds_of_foreground_and_of_rare_colours_add_up() -> None:
    """One pixel that is all three, one that is the first kind alone, one that is plain."""
    foreground = torch.zeros(1, 2, 64, 64, dtype=torch.bool)
    foreground[0, :, 3, 5] = True
    foreground[0, 0, 60, 7] = True
    rarity = torch.zeros(1, 64, 64)
    rarity[0, 3, 5] = 0.5
    weights = pixel_weights(foreground, 20.0, rarity, 60.0)
    assert weights[0, 3, 5] == pytest.approx(1 + 20 + 20 + 0.5 * 60)
    assert weights[0, 60, 7] == pytest.approx(1 + 20)
    assert weights[0, 0, 0] == 1


def test_rare_colours_weigh_more_up_to_a_bound() -> None:
    """A camera that moves makes everything foreground; what has colours of its own still stands out."""
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    batch = np.full((200, 64, 64, 3), 100, np.uint8)
    batch[0, 10:12, 20:24] = 200  # 8 of 819,200 pixels
    batch[1] = 250  # 4,096 of them
    rarity = torch.from_numpy(color_rarity(batch))
    whites, usual = RARE_SHARE / (4096 / 819_200), RARE_SHARE / (1 - 4104 / 819_200)
    inputs = torch.from_numpy(batch[:4])
    none = torch.zeros(4, 2, 64, 64, dtype=torch.bool)
    parts = terms(vae, inputs, weights=pixel_weights(none, 20.0, rarity[color_bins(inputs.int())], 60.0))
    error = decoded_error(vae, batch[:4])
    weights = np.full((4, 64, 64, 1), usual)
    weights[0, 10:12, 20:24] = 1.0
    weights[1] = whites
    share = weights.mean((1, 2, 3), keepdims=True)
    assert share[0] < 0.05 < share[1], "one below the bound, one above"
    weights *= 0.05 / np.maximum(share, 0.05)
    wanted = error.sum((1, 2, 3)) + 60 * (weights * error).sum((1, 2, 3))
    np.testing.assert_allclose(parts.weighted_error, wanted, rtol=1e-4)
    np.testing.assert_allclose(parts.squared_error, error.sum((1, 2, 3)), rtol=1e-4)


def test_a_wild_log_variance_keeps_the_objective_and_its_gradient_finite() -> None:
    """Below the bound it is the exponential; a log-variance of 86 was seen on a flash in Pong."""
    usual = torch.linspace(-20, MAX_LOG_VARIANCE, 50)
    torch.testing.assert_close(bounded_exp(usual), usual.exp())
    wild = torch.tensor([MAX_LOG_VARIANCE, MAX_LOG_VARIANCE + 1e-3, 86.0], requires_grad=True)
    values = bounded_exp(wild)
    values.sum().backward()  # type: ignore[no-untyped-call]
    assert wild.grad is not None
    tangent = math.exp(MAX_LOG_VARIANCE)
    torch.testing.assert_close(wild.grad, torch.full((3,), tangent))
    assert values[1].item() == pytest.approx(tangent * 1.001)
    assert values[2].item() < 100 * tangent


def test_a_posterior_without_width_keeps_its_gradient_finite() -> None:
    """Its variance is zero in float32, and the square root of that has no gradient; seen on 49 games."""
    narrow = torch.tensor([-200.0, -90.0, 0.0, 9.0], requires_grad=True)
    deviation = bounded_exp(narrow, 0.5)
    deviation.sum().backward()  # type: ignore[no-untyped-call]
    assert narrow.grad is not None
    assert narrow.grad.isfinite().all()
    torch.testing.assert_close(deviation.square()[1:], bounded_exp(narrow)[1:])


def test_free_bits_take_the_gradient_of_what_lies_below_the_floor() -> None:
    """Dimensions of 0.2 and 3 nats on average, a floor of 0.5: 3.5 nats, and only the second gives way."""
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    mean = kl.detach().mean(0)
    charged = floored_kl(kl, mean, 0.5)
    torch.testing.assert_close(charged, torch.tensor([2.5, 4.5]))
    charged.sum().backward()  # type: ignore[no-untyped-call]
    assert kl.grad is not None
    assert kl.grad.tolist() == [[0, 1], [0, 1]]
    assert floored_kl(mean, mean, 0.5) == pytest.approx(3.5)
    assert floored_kl(mean, mean, 0.0) == pytest.approx(3.2)


def test_the_decoder_is_that_of_torchs_own_layers() -> None:
    """Output and gradients of the layers whose bias is added apart."""
    ours = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE)).requires_grad_(True)
    layer = ours.decoder.get_submodule("conv0")
    plain = torch.nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)
    plain.load_state_dict(layer.state_dict())
    features = torch.randn(3, 8, 16, 16)
    weights = torch.randn(3, 4, 32, 32)
    torch.testing.assert_close(layer(features), plain(features), rtol=1e-5, atol=1e-5)
    for module in (layer, plain):
        (module(features) * weights).sum().backward()
    for a, b in zip(layer.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)


def test_an_untrained_decoder_shows_the_mean_frame() -> None:
    """Of frames that are dark above, bright below, red on the left and blue on the right."""
    mean = np.zeros((64, 64, 3))
    mean[..., 1] = np.linspace(20, 220, 64)[:, None]
    mean[:, :20, 0] = 200
    mean[:, 50:, 2] = 180
    spread = np.random.default_rng(0).integers(-10, 11, (400, 64, 64, 3))
    seen = np.clip(mean + spread, 0, 255).astype(np.uint8)
    vae = VAE(TINY_VAE)
    init_output_bias(vae, seen)
    shown = vae.decode(torch.zeros(1, 32))[0].detach().numpy() * 255
    assert np.abs(shown - mean).mean() < 5
    logit = np.log(seen[:, 40, 10, 0].mean() / (255 - seen[:, 40, 10, 0].mean()))
    assert vae.output_bias[0, 40, 10].item() == pytest.approx(logit, rel=1e-4)


def test_a_sample_lies_noise_times_the_deviation_from_the_mean() -> None:
    """Decoding it is what torch.distributions' own reparameterisation decodes to."""
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    vae.log_variance.weight.mul_(0.02)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    noise = torch.randn(3, 32)
    mean, log_variance = vae.encode(batch)
    assert log_variance.abs().min() > 1e-3, "else the deviation would equal the variance"
    latents = mean + noise * torch.distributions.Normal(mean, log_variance.exp().sqrt()).stddev
    wanted = (vae.decode(latents) - batch / 255).square().sum((1, 2, 3))
    torch.testing.assert_close(terms(vae, batch, noise).squared_error, wanted, rtol=1e-4, atol=0.0)


def test_the_error_has_no_gradient_with_respect_to_means_that_are_held() -> None:
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE)).requires_grad_(True)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8))
    noise = torch.randn(3, 32)
    free, held = terms(vae, batch, noise), terms(vae, batch, noise, held=5)
    torch.testing.assert_close(free.squared_error, held.squared_error, rtol=0, atol=0)
    for parts, count in ((free, 0), (held, 5)):
        (gradient,) = torch.autograd.grad(parts.squared_error.sum(), vae.mean.bias, retain_graph=True)
        assert (gradient[:count] == 0).all()
        assert (gradient[count:] != 0).all()
    (gradient,) = torch.autograd.grad(held.mean.sum(), vae.mean.bias)
    assert (gradient == 3).all(), "what holds them reaches them"


@pytest.mark.parametrize("fields", [{"latent_dim": 0}, {"channels": ()}, {"channels": (4,) * 7}])
def test_impossible_sizes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        VAEConfig(**fields)

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latent_obs.encoders.folder import VAEConfig
from latent_obs.evaluation.baselines import pca_code, random_code
from latent_obs.vae import VAE


def drawn(count: int, dims: int = 3, seed: int = 0) -> Any:
    """Frames that really have a few dimensions: sums of fixed pictures, and a little noise."""
    rng = np.random.default_rng(seed)
    pictures = np.random.default_rng(7).normal(size=(dims, 64, 64, 3))
    sums = 128 + 20 * np.tensordot(rng.uniform(-1, 1, (count, dims)), pictures, 1)
    return (sums + rng.normal(size=sums.shape)).round().clip(0, 255).astype(np.uint8)


def test_pca_is_numpys_singular_value_decomposition() -> None:
    frames, others = drawn(80), drawn(20, seed=1)
    pixels, unseen = (part.reshape(len(part), -1).astype(np.float64) for part in (frames, others))
    mean = pixels.mean(0)
    components = np.linalg.svd(pixels - mean, full_matrices=False)[2][:3]
    expected = ((unseen - mean) @ components.T @ components + mean).round().clip(0, 255)
    expected = expected.reshape(others.shape)
    decoded = pca_code(frames, 3).reconstruct(others)
    assert decoded.dtype == np.uint8
    assert np.abs(decoded - expected).max() <= 1  # a value on the edge of rounding
    assert np.mean(decoded != expected) < 0.001


def test_pcas_features_have_unit_variance() -> None:
    frames = drawn(80)
    np.testing.assert_allclose(pca_code(frames, 3).encode(frames).std(0), 1, rtol=1e-3)


def test_pca_has_no_more_components_than_the_frames_span() -> None:
    frames = np.repeat(drawn(3), 5, 0)
    assert pca_code(frames, 32).encode(frames).shape == (15, 2)
    np.testing.assert_array_equal(pca_code(frames, 32).reconstruct(frames), frames)
    same = np.repeat(drawn(1), 5, 0)
    np.testing.assert_array_equal(pca_code(same, 32).reconstruct(same), same)


def test_the_random_baseline_is_an_untrained_network_with_the_best_linear_decoder() -> None:
    config, frames = VAEConfig(latent_dim=4, channels=(4,)), drawn(40)
    code = random_code(frames, config)
    torch.manual_seed(0)
    latents = VAE(config)(torch.from_numpy(frames)).detach().numpy()
    np.testing.assert_allclose(code.encode(frames), latents, atol=1e-6)
    design = np.column_stack([latents, np.ones(40)]).astype(np.float64)
    pixels = frames.reshape(40, -1).astype(np.float64)
    expected = (design @ np.linalg.pinv(design) @ pixels).clip(0, 255)
    decoded = code.reconstruct(frames).reshape(40, -1)
    assert np.abs(decoded - expected).max() < 1


def test_baselines_do_not_depend_on_torchs_seed_nor_change_it() -> None:
    frames = drawn(30)
    torch.manual_seed(1)
    first = random_code(frames, VAEConfig(4, (4,))).reconstruct(frames)
    drawn_after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == drawn_after
    np.testing.assert_array_equal(random_code(frames, VAEConfig(4, (4,))).reconstruct(frames), first)

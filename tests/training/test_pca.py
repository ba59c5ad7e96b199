from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.evaluation.baselines import pca_code
from latent_obs.training.pca import pca_vae
from latent_obs.vae import latents, reconstruct


def test_its_latents_span_the_principal_components(pong_frames: FramesFolder) -> None:
    """And its images are those of NumPy's singular vectors, but for the logit's corners and the clipping."""
    frames, unseen = pong_frames.sample(400), pong_frames.sample(100, seed=1)
    vae = pca_vae(frames, latent_dim=8)
    pixels, others = (part.reshape(len(part), -1) / 255.0 for part in (frames, unseen))
    _, _, right = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    expected = (others - pixels.mean(0)) @ right[:8].T
    found = latents(vae, unseen)
    solution, *_ = np.linalg.lstsq(found, expected, rcond=None)
    assert np.abs(found @ solution - expected).max() < 0.05 * expected.std()
    np.testing.assert_allclose(latents(vae, frames).std(0), 1, atol=0.01)
    image = np.clip(expected @ right[:8] + pixels.mean(0), 0.004, 0.996).reshape(unseen.shape)
    assert np.abs(reconstruct(vae, unseen) / 255.0 - image).mean() < 0.004


def test_fitting_it_takes_memory_for_its_frames_alone() -> None:
    """The images between its layers took two megabytes a frame, four gigabytes for 2,048."""
    code = """
import resource, sys
import numpy as np
from latent_obs.training.pca import pca_vae
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
frames = np.random.default_rng(0).integers(0, 256, (1024, 64, 64, 3), dtype=np.uint8)
pca_vae(frames[:64], 8)
before = peak()
pca_vae(frames, 8)
print((peak() - before) / len(frames))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 500, "kilobytes a frame, of which its pixels as floats are 48"


def test_it_keeps_as_much_as_the_baseline(pong_frames: FramesFolder) -> None:
    frames, unseen = pong_frames.sample(400), pong_frames.sample(100, seed=1)
    pca = pca_code(frames, 32).reconstruct(unseen).astype(float)
    own = reconstruct(pca_vae(frames, 32), unseen).astype(float)
    errors = [np.square(each - unseen).mean() for each in (own, pca)]
    assert errors[0] < 1.1 * errors[1] + 1


def test_its_posterior_is_a_tenth_of_a_deviation_wide(pong_frames: FramesFolder) -> None:
    vae = pca_vae(pong_frames.sample(100), latent_dim=4)
    _, log_variance = vae.encode(torch.from_numpy(pong_frames.sample(10)))
    torch.testing.assert_close(log_variance.exp().sqrt(), torch.full((10, 4), 0.1))


@pytest.mark.parametrize("count", [200, 12])
def test_frames_that_span_fewer_dimensions_leave_the_others_at_zero(count: int) -> None:
    """Rounding noise of unit variance would differ between backends, and between one frame and many."""
    rng = np.random.default_rng(0)
    frames = np.full((count, 64, 64, 3), 100, np.uint8)
    frames[:, :16, :40:8] += rng.integers(0, 100, (count, 1, 5, 1), dtype=np.uint8)  # five stripes
    vae = pca_vae(frames, latent_dim=16)
    many = latents(vae, frames)
    assert (many.var(0) > 0.01).sum() == 5
    single = np.concatenate([latents(vae, frames[i : i + 1]) for i in range(count)])
    np.testing.assert_allclose(single, many, atol=1e-3)
    assert np.abs(reconstruct(vae, frames) - frames.astype(float)).mean() < 1

from __future__ import annotations

import numpy as np
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

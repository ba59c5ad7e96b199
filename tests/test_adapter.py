from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.adapter import LatentStack, to_frames
from latent_obs.vae import load_vae
from tests.conftest import TINY_VAE, FrameEnv, random_tensors


def test_a_stack_holds_the_last_latents_of_its_row_oldest_first() -> None:
    """Three rows of which only some get a latent each time; the histories are kept by hand."""
    rng = np.random.default_rng(0)
    stack, history = LatentStack(3, latent_dim=2, rows=3), {row: [] for row in range(3)}  # type: ignore[var-annotated]
    for step in range(30):
        rows = rng.permutation(3)[: rng.integers(1, 4)]
        latents = rng.normal(size=(len(rows), 2)).astype(np.float32)
        if step % 7 == 3:
            stack.begin([1])
            history[1] = []
        found = stack.push(latents, rows)
        for row, latent in zip(rows, latents, strict=True):
            history[row] = [*history[row], latent] if history[row] else [latent] * 3
        for flat, row in zip(found, rows, strict=True):
            np.testing.assert_array_equal(flat, np.concatenate(history[row][-3:]))
    for row in range(3):
        np.testing.assert_array_equal(stack.read([row])[0], np.concatenate(history[row][-3:]))


def test_what_a_stack_returns_never_changes() -> None:
    stack = LatentStack(2, latent_dim=1)
    first = stack.push(np.array([[1]], np.float32))
    read = stack.read()
    stack.push(np.array([[2]], np.float32))
    assert first.tolist() == read.tolist() == [[1, 1]]
    assert stack.read().tolist() == [[1, 2]]


@pytest.mark.parametrize("size", [1, 3])
def test_a_stack_goes_on_from_a_flat_observation(size: int) -> None:
    stack = LatentStack(size, latent_dim=2, rows=2)
    stack.resume(1, np.arange(2 * size, dtype=np.float32))
    found = stack.push(np.full((2, 2), 9, np.float32))
    assert found[0].tolist() == [9] * 2 * size
    assert found[1].tolist() == [*range(2, 2 * size), 9, 9]


@pytest.mark.parametrize("given", ["name", "options", "encoder"])
def test_latents_are_scaled_unless_told_otherwise(given: str, tmp_path: Path) -> None:
    """However the encoder is given; the scaling is worked out from the torch model and the config."""
    from latent_obs.encoders.folder import EncoderConfig, write_encoder_folder
    from latent_obs.frames import FrameSpec, preprocess

    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=32), rng.uniform(0.5, 2, 32)
    latents = {"mean": mean.tolist(), "std": std.tolist(), "kl": [1.0] * 32}
    folder = tmp_path / "tiny"
    write_encoder_folder(folder, EncoderConfig(FrameSpec(), TINY_VAE, latents), random_tensors(TINY_VAE))
    makers: dict[str, Any] = {"name": folder, "options": {"ref": folder}, "encoder": load_encoder(folder)}
    frame = preprocess(FrameEnv().reset(seed=0)[0], FrameSpec())
    with torch.inference_mode():
        raw = load_vae(folder)[0].encode(torch.from_numpy(frame[None]))[0].numpy()[0]
    env = LatentObservationWrapper(FrameEnv(), makers[given])
    np.testing.assert_allclose(env.reset(seed=0)[0], (raw - mean) / std, rtol=0.02, atol=0.02)
    plain = LatentObservationWrapper(FrameEnv(), load_encoder(folder, normalize=False))
    np.testing.assert_allclose(plain.reset(seed=0)[0], raw, rtol=0.02, atol=0.02)


def test_batches_of_the_frames_size_that_are_no_bytes_are_refused(encoder: Path) -> None:
    with pytest.raises(ValueError, match="float32"):
        to_frames(load_encoder(encoder), np.zeros((2, 64, 64, 3), np.float32))

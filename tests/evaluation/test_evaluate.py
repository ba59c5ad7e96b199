from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder, held_out_episodes
from latent_obs.frames import FrameSpec
from latent_obs.training.config import TrainConfig
from latent_obs.training.held_out import evaluate_vae
from latent_obs.training.train import train_vae
from latent_obs.vae import VAE
from tests.conftest import TINY_VAE, random_tensors, save_encoder


def constant_vae(image: Any, variance: float) -> VAE:
    """A VAE that knows nothing of the frame and decodes everything to one image."""
    zeros = {name: np.zeros_like(t) for name, t in random_tensors(TINY_VAE).items()}
    pixels = np.clip(image / 255, 1e-4, 1 - 1e-4).transpose(2, 0, 1)
    zeros["output_bias"] = np.log(pixels / (1 - pixels)).astype(np.float32)
    zeros["decoder_variance"] = np.array(variance, np.float32)
    return VAE.from_tensors(TINY_VAE, zeros)


def test_the_numbers_of_an_encoder_that_shows_the_median_frame() -> None:
    """Every other pixel value known by hand: 40 frames with one pixel 100 levels brighter."""
    background = np.full((64, 64, 3), 100, np.uint8)
    frames = np.repeat(background[None], 40, 0)
    for i, frame in enumerate(frames):
        frame[i, i] = 200
    report = evaluate_vae(constant_vae(background, 0.01), frames)
    mse = 3 * 100**2 / 12288
    assert report["psnr"] == pytest.approx(10 * math.log10(255**2 / mse), abs=1e-3)
    assert report["moving_r2"] == pytest.approx(0, abs=1e-6)
    assert report["kl"] == 0
    assert report["active_units"] == 0
    nats = 12288 / 2 * math.log(2 * math.pi * 0.01 * 255**2) + 12288 * mse / (2 * 0.01 * 255**2)
    assert report["negative_elbo"] == pytest.approx(nats, rel=1e-4)
    assert report["bits_per_dim"] == pytest.approx(nats / 12288 / math.log(2), rel=1e-4)


def test_a_flash_does_not_hide_a_lost_ball() -> None:
    """One frame in another colour, even perfectly decoded, must not raise the score."""
    background = np.full((64, 64, 3), 100, np.uint8)
    frames = np.repeat(background[None], 40, 0)
    for i, frame in enumerate(frames):
        frame[i, i] = 200
    frames[7] = 30
    assert evaluate_vae(constant_vae(background, 0.01), frames)["moving_r2"] == pytest.approx(0, abs=1e-6)
    frames = np.random.default_rng(0).integers(0, 256, (40, 64, 64, 3), dtype=np.uint8)
    assert evaluate_vae(constant_vae(background, 0.01), frames)["moving_r2"] < 0


@pytest.mark.filterwarnings("ignore:.*(COLLAPSE|collapsed in training)")
def test_only_held_out_episodes_of_the_training_folder_are_used(
    pong_frames: FramesFolder, tmp_path: Path
) -> None:
    config = TrainConfig(pong_frames.path, tmp_path / "encoder", steps=3, channels=(4,), batch_size=8)
    train_vae(config, progress=False)
    episodes = held_out_episodes(resolve(config.out), pong_frames)
    assert episodes == pong_frames.split(config.validation, config.seed)[1]
    report = evaluate_encoder(EvaluateConfig(config.out, pong_frames.path))
    assert report["frames"] == len(pong_frames.load(episodes)) < len(pong_frames)
    assert set(report["encode_us"]) == {"openvino", "torch"}


def test_an_encoder_from_elsewhere_is_measured_on_every_frame(
    encoder: Path, pong_frames: FramesFolder
) -> None:
    assert held_out_episodes(resolve(encoder), pong_frames) is None


def test_frames_of_another_frame_spec_are_refused(pong_frames: FramesFolder, tmp_path: Path) -> None:
    cropped = save_encoder(tmp_path / "cropped", frame_spec=FrameSpec(crop=(34, 194, 0, 160)))
    with pytest.raises(ValueError, match="same crop"):
        evaluate_encoder(EvaluateConfig(cropped, pong_frames.path))


def test_evaluation_does_not_depend_on_torchs_seed(frames: Any) -> None:
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    images = frames(30)
    torch.manual_seed(1)
    first = evaluate_vae(vae, images)
    torch.manual_seed(2)
    assert evaluate_vae(vae, images) == first

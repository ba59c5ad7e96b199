from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder
from latent_obs.evaluation.positions import position_r2
from latent_obs.evaluation.selection import evaluation_split, held_out_episodes
from latent_obs.frames import FrameSpec
from latent_obs.training.config import TrainConfig
from latent_obs.training.held_out import evaluate_vae
from latent_obs.training.train import train_vae
from latent_obs.vae import VAE, load_vae, reconstruct
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
    held_out = pong_frames.split(config.validation, config.seed)[1]
    assert held_out_episodes(resolve(config.out), pong_frames) == held_out
    card = evaluate_encoder(EvaluateConfig(config.out, pong_frames.path))
    assert card.frames == len(pong_frames.load(held_out)) < len(pong_frames)
    assert card.data.held_out
    assert card.data.episodes == len(held_out)
    assert card.data.baseline_episodes == len(pong_frames.episodes()) - len(held_out)
    assert set(card.encode_us) == {"openvino", "torch"}


def test_of_a_folder_from_elsewhere_half_of_the_episodes_are_measured(
    encoder: Path, pong_frames: FramesFolder
) -> None:
    """The other half is for the baselines, which need episodes of their own."""
    assert held_out_episodes(resolve(encoder), pong_frames) is None
    fitted, measured = evaluation_split(resolve(encoder), pong_frames)
    assert sorted(fitted + measured) == sorted(pong_frames.episodes())
    counts = pong_frames.episodes()
    assert sum(counts[episode] for episode in measured) == pytest.approx(len(pong_frames) / 2, rel=0.3)


def test_baselines_are_fitted_on_episodes_that_are_not_measured(
    encoder: Path, pong_frames: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PCA's PSNR by NumPy, and the frames that positions are fitted on."""
    asked: list[Any] = []

    def watched(fitted: Any, measured: Any, codes: Any) -> dict[str, float | None]:
        asked.extend((fitted, measured))
        return position_r2(fitted, measured, codes)

    monkeypatch.setattr("latent_obs.evaluation.evaluate.position_r2", watched)
    card = evaluate_encoder(EvaluateConfig(encoder, pong_frames.path, limit=10_000))
    fitted, measured = (pong_frames.load(part) for part in pong_frames.split(0.5))
    np.testing.assert_array_equal(asked[0], fitted)
    np.testing.assert_array_equal(asked[1], measured)

    def psnr(fitted: Any, measured: Any) -> float:
        pixels, unseen = (part.reshape(len(part), -1).astype(np.float64) for part in (fitted, measured))
        mean = pixels.mean(0)
        values, vectors = np.linalg.eigh((pixels - mean) @ (pixels - mean).T)
        basis = (pixels - mean).T @ vectors[:, -32:] / np.sqrt(values[-32:])
        decoded = ((unseen - mean) @ basis @ basis.T + mean).round().clip(0, 255)
        return float(10 * np.log10(255**2 / np.square(decoded - unseen).mean()))

    wrong = psnr(measured, measured)
    assert card.baselines["pca"].psnr == pytest.approx(psnr(fitted, measured), abs=0.05)
    assert abs(card.baselines["pca"].psnr - wrong) > 0.5


def test_what_changes_is_measured_on_the_episodes_that_are_measured(
    encoder: Path, pong_frames: FramesFolder
) -> None:
    """By NumPy, from the encoder's reconstructions of each episode's first frames."""
    card = evaluate_encoder(EvaluateConfig(encoder, pong_frames.path, limit=500))
    vae, scores, sums = load_vae(encoder)[0], [], np.zeros(2)
    for episode in pong_frames.split(0.5)[1]:
        frames = pong_frames.load([episode])[:256]
        now, before, decoded = (
            part.astype(np.float64) for part in (frames[1:], frames[:-1], reconstruct(vae, frames[1:]))
        )
        changed = (now != before).any(-1)
        changed[changed.mean((1, 2)) > 0.5] = False
        residual, energy = (np.square(now - other)[changed].sum() for other in (decoded, before))
        scores.append(1 - residual / energy)
        sums += residual, energy
    assert card.by_episode["changing_r2"] == pytest.approx(scores)
    assert card.changing_r2 == pytest.approx(1 - sums[0] / sums[1])


def test_the_elbo_is_that_of_samples_from_the_posterior(frames: Any) -> None:
    """By torch.distributions, with the mean over 40 samples of a broad posterior of its own."""
    tensors = random_tensors(TINY_VAE)
    tensors["log_variance.weight"] *= 0
    tensors["log_variance.bias"][:] = 1.0
    vae, images = VAE.from_tensors(TINY_VAE, tensors), frames(20)
    wanted = torch.from_numpy(images) / 255
    with torch.no_grad():
        mean, log_variance = vae.encode(torch.from_numpy(images))
        posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
        prior = torch.distributions.Normal(torch.zeros_like(mean), 1.0)
        kl = torch.distributions.kl_divergence(posterior, prior).sum(1).mean()

        def nats(latents: torch.Tensor) -> float:
            decoded = torch.distributions.Normal(vae.decode(latents), 0.1)
            density = decoded.log_prob(wanted)  # type: ignore[no-untyped-call]
            levels = density.sum((1, 2, 3)) - 12288 * math.log(255)
            return -float(levels.mean())

        torch.manual_seed(0)
        sampled = [nats(posterior.rsample()) for _ in range(40)]
        unsampled = nats(mean)
    report = evaluate_vae(vae, images)
    assert report["kl"] == pytest.approx(float(kl), rel=1e-4)
    assert report["reconstruction"] == pytest.approx(np.mean(sampled), abs=5 * float(np.std(sampled)))
    assert abs(unsampled - np.mean(sampled)) > 10 * np.std(sampled)
    assert report["negative_elbo"] == pytest.approx(report["reconstruction"] + float(kl), rel=1e-5)


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


@pytest.mark.parametrize("limit", [-1, 0, 9])
def test_a_limit_that_no_report_card_can_rest_on_is_refused_at_once(limit: int) -> None:
    with pytest.raises(ValueError, match=rf"limit must be at least 10, got {limit}\."):
        EvaluateConfig("pong-v0", limit=limit)

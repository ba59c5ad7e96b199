"""A training step, against the same arithmetic written down a second time with plain torch functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_obs.encoders.provenance import Run
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import make_fabric
from latent_obs.training.run import TrainingRun

RUN = Run(config={}, data={}, init_from=None)
BATCH, LATENTS, CHANNELS = 8, 6, (4, 8)


def scenes(count: int, brightness: int, seed: int) -> Any:
    """A grey gradient with noise, and a square of a colour of its own somewhere."""
    rng = np.random.default_rng(seed)
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    frames[:] = np.linspace(brightness, brightness + 60, 64)[None, :, None, None]
    frames += rng.integers(0, 10, frames.shape, np.uint8)
    for frame in frames:
        y, x = rng.integers(0, 58, 2)
        frame[y : y + 4, x : x + 4] = (250, 30, 90)
    return frames


class Frames:
    """As much of a frames folder as a run needs: episode 0 to train on, a brighter episode 1 held out."""

    def __init__(self) -> None:
        self.parts = scenes(64, 20, seed=0), scenes(24, 120, seed=1)

    def split(self, *_: Any) -> tuple[list[int], list[int]]:
        return [0], [1]

    def episodes(self) -> dict[int, int]:
        return {0: 64, 1: 24}

    def medians(self) -> dict[str, Any]:
        return {"": np.median(self.parts[0], 0).astype(np.uint8)}

    def sample(self, count: int, episodes: list[int], _: int) -> Any:
        return self.parts[episodes[0]][:count]

    def batches_and_foreground(
        self, size: int, _: Any, episodes: list[int], *, seed: int, skip: int = 0
    ) -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        for step in range(1000):
            frames = np.roll(self.parts[episodes[0]], -step * size, 0)[:size]
            # The kinds of foreground overlap in some pixels, and cover more than 5% of every other frame.
            share = np.where(np.arange(size) % 2, 0.2, 0.01)
            masks = rng.random((size, 2, 64, 64)) < share[:, None, None, None]
            if step >= skip:
                yield frames, masks


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        "frames",
        tmp_path,
        latent_dim=LATENTS,
        channels=CHANNELS,
        steps=8,
        batch_size=BATCH,
        learning_rate=3e-3,
        beta=4.0,
        kl_warmup=0.5,
        batch_norm=False,
        evaluate_every=100,
        precision="float32",
        seed=3,
    )


def start(config: TrainConfig) -> TrainingRun:
    return TrainingRun(make_fabric(1, 1, "float32"), config, Frames(), RUN)  # type: ignore[arg-type]


def encode_and_decode(weights: dict[str, Tensor], frames: Tensor, noise: Tensor) -> tuple[Tensor, Any]:
    """Return the decoded images (N, 3, 64, 64) and the posterior; normalised where there are statistics."""

    def normalised(x: Tensor, name: str) -> Tensor:
        if f"{name}.weight" not in weights:
            return x
        mean, variance, gain, bias = (
            weights[f"{name}.{each}"][:, None, None]
            for each in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    x = frames.permute(0, 3, 1, 2).float() / 255
    for i in range(len(CHANNELS)):
        x = F.conv2d(x, weights[f"encoder.conv{i}.weight"], weights.get(f"encoder.conv{i}.bias"), 2, 1)
        x = F.relu(normalised(x, f"encoder.norm{i}"))
    x = x.flatten(1)
    mean = F.linear(x, weights["mean.weight"], weights["mean.bias"])
    variance = F.linear(x, weights["log_variance.weight"], weights["log_variance.bias"]).exp()
    posterior = torch.distributions.Normal(mean, variance.sqrt())
    latents = mean + noise * posterior.stddev
    x = F.linear(latents, weights["decoder.linear.weight"], weights["decoder.linear.bias"])
    x = x.view(-1, CHANNELS[-1], 16, 16)
    for i in range(len(CHANNELS)):
        x = F.relu(normalised(x, f"decoder.norm{i}"))
        bias = weights.get(f"decoder.conv{i}.bias")
        x = F.conv_transpose2d(x, weights[f"decoder.conv{i}.weight"], bias, 2, 1)
    return (x + weights["output_bias"]).sigmoid(), posterior


def kl_of(posterior: Any) -> Tensor:
    """Nats of each frame and dimension."""
    divergence: Tensor = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    return divergence


def weights_by_hand(frames: Any, masks: Any, rarity: Any) -> Any:
    """1, 20 more for each kind of foreground, up to 60 more for rare colours; full up to 5% of a frame."""
    bins = (frames[..., 0] // 32).astype(int) * 64 + (frames[..., 1] // 32) * 8 + frames[..., 2] // 32
    weights = np.ones((len(frames), 64, 64))
    for strength, emphasis in ((20, masks[:, 0]), (20, masks[:, 1]), (60, rarity[bins])):
        for i, each in enumerate(emphasis.astype(float)):
            weights[i] += strength * each * min(1.0, 0.05 / each.mean())
    return weights


@pytest.mark.parametrize("resumed", [False, True])
def test_steps_are_adam_on_the_negative_elbo(config: TrainConfig, resumed: bool) -> None:
    """Six steps, in one go or in two runs; beta rises over the first four of the eight."""
    run = start(config)
    batches = Frames().batches_and_foreground(BATCH, None, [0], seed=0)
    leaves = {n: p.detach().clone().contiguous().requires_grad_(True) for n, p in run.vae.named_parameters()}
    adam = torch.optim.Adam(leaves.values(), config.learning_rate, foreach=False)
    variances, usual = {"squared": 0.0, "weighted": 0.0}, 0.0
    for step in range(6):
        if resumed and step == 3:
            run.save_checkpoint()
            run = start(config)
            assert run.step == 3
        frames, masks = next(batches)
        noise = run._noise(BATCH, step)
        row = run.take_step(torch.from_numpy(frames), torch.from_numpy(masks))

        decoded, posterior = encode_and_decode(leaves, torch.from_numpy(frames), noise)
        error = (decoded - torch.from_numpy(frames).permute(0, 3, 1, 2) / 255).square().sum(1)
        weighted = error * torch.from_numpy(weights_by_hand(frames, masks, run.rarity.numpy()))
        errors = {"squared": error.sum((1, 2)), "weighted": weighted.sum((1, 2))}
        for name, each in errors.items():  # the mean over the steps so far
            variances[name] += (each.mean().item() / 12288 - variances[name]) / (step + 1)
        normal = 6144 * math.log(2 * math.pi * variances["weighted"] * 255**2)
        reconstruction = normal + errors["weighted"].mean() / (2 * variances["weighted"])
        kl, beta = kl_of(posterior).sum(1).mean(), 4 * min(1, step / 4)
        loss = reconstruction + beta * kl
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        limit = 2 * usual if step else norm
        for gradient in gradients:
            gradient *= min(1.0, limit / norm)
        usual += (min(norm, limit) - usual) / (step + 1)
        rate = 3e-3 * (1 + math.cos(math.pi * step / 8)) / 2
        adam.param_groups[0]["lr"] = rate
        adam.step()

        wanted = {
            "step": step + 1,
            "loss": loss.item(),
            "reconstruction": reconstruction.item(),
            "kl": kl.item(),
            "beta": beta,
            "squared_error": errors["squared"].mean().item(),
            "learning_rate": rate,
        }
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
        assert float(run.vae.decoder_variance) == pytest.approx(variances["squared"], rel=1e-4)
        assert float(run.weighted_variance) == pytest.approx(variances["weighted"], rel=1e-4)
        for name, parameter in run.vae.named_parameters():
            expected, actual = leaves[name].grad, parameter.grad
            assert expected is not None
            assert actual is not None
            scale = float(expected.abs().max())
            torch.testing.assert_close(actual, expected, rtol=2e-3, atol=2e-3 * scale)
    for name, parameter in run.vae.named_parameters():
        # Where a gradient is all but zero, Adam steps by the sign of a rounding error.
        far = (parameter - leaves[name]).abs() > 1e-3
        assert far.float().mean() < 0.01, name


def test_training_starts_at_the_mean_of_the_training_frames(config: TrainConfig) -> None:
    """A gradient from top to bottom: transposed it would run from left to right."""
    mean = Frames().parts[0].mean(0) / 255
    logit = np.log(mean / (1 - mean)).transpose(2, 0, 1)
    np.testing.assert_allclose(start(config).vae.output_bias.detach(), logit, rtol=1e-3)


def test_each_step_has_noise_of_its_own_and_a_resumed_one_the_same(config: TrainConfig) -> None:
    run = start(config)
    noises = [run._noise(4000, step) for step in (0, 1, -1)]
    for noise in noises:
        assert abs(float(noise.mean())) < 0.05
        assert float(noise.std()) == pytest.approx(1, abs=0.05)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        correlation = float((noises[i] * noises[j]).mean())
        assert abs(correlation) < 0.05
    assert torch.equal(start(config)._noise(4000, 1), noises[1])


@pytest.mark.parametrize("objective", ["calibrated", "sse"])
def test_the_held_out_loss_is_that_of_held_out_frames_as_they_are_encoded_later(
    config: TrainConfig, objective: Any
) -> None:
    """With the running statistics of the normalisation and the full beta, in parts of 16 and 8 frames."""
    config = replace(config, objective=objective, batch_norm=True, batch_size=16, evaluate_every=30)
    run = start(config)
    for _ in range(3):
        frames, masks = next(Frames().batches_and_foreground(16, None, [0], seed=0))
        run.take_step(torch.from_numpy(frames), torch.from_numpy(masks))
    noise = torch.randn(24, LATENTS)
    parts = iter((noise[:16], noise[16:]))
    run._noise = lambda *_: next(parts)  # type: ignore[method-assign]
    state = {name: tensor.clone() for name, tensor in run.vae.state_dict().items()}
    told = run._evaluate()
    assert run.vae.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in run.vae.state_dict().items())

    frames, masks = next(Frames().batches_and_foreground(24, None, [1], seed=3))
    decoded, posterior = encode_and_decode(state, torch.from_numpy(frames), noise)
    error = (decoded - torch.from_numpy(frames).permute(0, 3, 1, 2) / 255).square().sum(1)
    weights = torch.from_numpy(weights_by_hand(frames, masks, run.rarity.numpy()))
    if objective == "sse":
        reconstruction = error.sum((1, 2)).mean()
    else:
        variance = run.weighted_variance
        weighted = (error * weights).sum((1, 2)).mean()
        reconstruction = 6144 * (2 * math.pi * variance * 255**2).log() + weighted / (2 * variance)
    kl = kl_of(posterior).sum(1).mean()
    wanted = {
        "held_out_loss": (reconstruction + 4 * kl).item(),
        "held_out_reconstruction": reconstruction.item(),
        "held_out_kl": kl.item(),
        "held_out_active_units": float((posterior.mean.var(0, correction=0) > 0.01).sum()),
    }
    assert told == pytest.approx(wanted, rel=1e-3)

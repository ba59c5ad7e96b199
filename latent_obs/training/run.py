"""The steps of a training run, in one process or shared out between several."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import ACTIVE_VARIANCE
from latent_obs.evaluation.positions import PositionReadout
from latent_obs.measures import color_bins, color_rarity
from latent_obs.progress import Bar
from latent_obs.training.batch_norm import BatchNorm, unfold
from latent_obs.training.checkpoint import (
    CHECKPOINT,
    load_optimizer_tensors,
    optimizer_tensors,
    read_checkpoint,
    write_checkpoint,
)
from latent_obs.training.distributed import keep_freed_memory, share, sum_over_processes
from latent_obs.training.history import Monitor, Row
from latent_obs.training.objective import (
    MIN_VARIANCE,
    Terms,
    floored_kl,
    gaussian_nll,
    init_output_bias,
    terms,
)
from latent_obs.vae import VAE, load_vae, reconstruct

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from latent_obs.training.config import TrainConfig

CHECKPOINT_SECONDS = 30.0
LOG_EVERY = 50
PICTURE_FRAMES = 12
# Gradients are scaled down to at most this many times their usual norm.
MAX_GRADIENT = 2.0
HELD_OUT = ("held_out_loss", "held_out_reconstruction", "held_out_kl", "held_out_active_units")
_PROGRESS = ("step", "seconds", "best_loss", "best_step", "waited")


class TrainingRun:
    """A training run: everything that a checkpoint has to hold, and the steps.

    Each process has one. They hold the same weights, take their share of every batch and agree on
    what concerns all of it, so that two processes take the steps that one would.

    Args:
        fabric: The processes.
        config: Settings of the run.
        folder: Frames to train on.
        identity: What tells the run from others.

    Attributes:
        vae: The model as it is now.
        positions: What reads positions from its latents while it trains.
        step: Optimiser steps taken.
        seconds: Time that they took.
        best: State of the lowest held-out loss, when there is ``patience``; else empty.
        best_step: Steps taken to reach it.
        weighted_variance: Decoder variance of the error with emphasis.
        gradient_norm: Running mean of the gradient's norm.
        monitor: What the run shows of itself, in the first process.

    Raises:
        ValueError: If a batch is too small to share, or the checkpoint is damaged or another run's.
    """

    def __init__(
        self, fabric: Fabric, config: TrainConfig, folder: FramesFolder, identity: dict[str, Any]
    ) -> None:
        self.fabric, self.config, self.folder, self.identity = fabric, config, folder, identity
        self.precision = "bfloat16" if fabric.strategy.precision.precision == "bf16-mixed" else "float32"
        if config.batch_size < fabric.world_size:
            raise ValueError(
                f"A batch of {config.batch_size} cannot be shared by {fabric.world_size} processes. "
                "Raise --batch-size."
            )
        self.episodes, self.held_out_episodes = folder.split(config.validation, config.seed)
        sample = folder.sample(1024, self.episodes, config.seed)
        if config.init_from is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.vae = VAE(config.vae, norm=BatchNorm if config.batch_norm else None)
            init_output_bias(self.vae, sample)
        else:
            self.vae = load_vae(config.init_from)[0].train().requires_grad_(True)
            if config.batch_norm:
                self.vae = unfold(self.vae, torch.from_numpy(sample))
        device = fabric.device
        if device.type == "cpu":
            keep_freed_memory()
        # Oblivious to the order of memory, but convolutions are faster in this one.
        self.vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        reads = config.objective == "calibrated" and config.position_weight > 0
        self.positions = PositionReadout(sample if reads else sample[:0], config.latent_dim).to(device)
        self.trained = nn.ModuleDict({"vae": self.vae, "positions": self.positions})
        self.optimizer = torch.optim.Adam(self.trained.parameters(), config.learning_rate, fused=True)
        self.generator = torch.Generator(device)
        self.medians = folder.medians()
        self.rarity = torch.from_numpy(color_rarity(sample)).to(device)
        # Forward alone costs a third of a step, so this many frames cost 2% of the steps between.
        count = min(2048, max(1, config.evaluate_every * config.batch_size // 20))
        counts = folder.episodes()
        count = min(count, sum(counts[episode] for episode in self.held_out_episodes))
        batches = folder.batches_and_foreground(count, self.medians, self.held_out_episodes, seed=config.seed)
        self.held_out = next(batches)
        self.shown = folder.sample(PICTURE_FRAMES, self.held_out_episodes, config.seed)
        self.weighted_variance = torch.tensor(0.0, device=device)
        self.gradient_norm = torch.tensor(0.0, device=device)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step, self.waited = math.inf, 0, 0
        history = self._resume()
        self.monitor = Monitor(config.out, config.tensorboard, history) if fabric.is_global_zero else None

    def train(self, bar: Bar, stop: threading.Event) -> bool:
        """Take the remaining steps; return whether some process was told to stop before."""
        config = self.config
        batches = self.folder.batches_and_foreground(
            config.batch_size, self.medians, self.episodes, seed=config.seed, skip=self.step
        )
        mine = share(self.fabric, config.batch_size)
        saved = begun = time.monotonic()
        spent = self.seconds
        while self.step < config.steps and not (config.patience and self.waited >= config.patience):
            # Every process draws the whole batch, which costs next to nothing, and takes its share.
            frames, foreground = (torch.from_numpy(a[mine]).to(self.fabric.device) for a in next(batches))
            row = self.take_step(frames, foreground, stop)
            if row is None:
                return True
            self.seconds = spent + time.monotonic() - begun
            last = self.step == config.steps
            evaluates = last or self.step % config.evaluate_every == 0
            row.update(self._evaluate() if evaluates else dict.fromkeys(HELD_OUT, math.nan))
            if self.monitor is not None and (evaluates or self.step % LOG_EVERY == 0 or self.step == 1):
                self.monitor.log(row)
                bar.note(f"loss {row['loss']:,.0f}  KL {row['kl']:.1f}  active {row['active_units']:.0f}")
            if evaluates:
                self._keep_best(row["held_out_loss"])
                if self.monitor is not None:
                    self.monitor.show(self.shown, reconstruct(self.vae.eval(), self.shown), self.step)
                    self.vae.train()
            bar.advance()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save_checkpoint()
                saved = time.monotonic()
        return False

    def take_step(self, frames: Tensor, foreground: Tensor, stop: threading.Event) -> Row | None:
        """Take a step on this process's share of a batch; ``None``, and no step, when told to stop."""
        config, vae = self.config, self.vae
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        warmup = config.kl_warmup * config.steps
        beta = config.beta * (min(1.0, self.step / warmup) if warmup else 1.0)
        # What running the model changes, to put it back where the step is not taken.
        changed = [self.positions.variance, *(b for name, b in vae.named_buffers() if ".norm" in name)]
        before = {buffer: buffer.clone() for buffer in changed}
        colors = color_bins(frames.int())
        parts = self._terms(frames, colors, foreground, self._noise(config.batch_size, self.step))
        misread, counted = self.positions(parts.mean, colors)
        sums, stops = _sums(parts), torch.tensor(float(stop.is_set()), device=frames.device)
        reads = [misread.detach().sum(0), counted.sum(0)]
        sum_over_processes(self.fabric, [sums, stops, *reads])
        if stops:
            _restore(before)
            return None
        means = Means.of(sums, config.batch_size)
        # The decoder variances move towards this batch's optimum, the mean squared error.
        keep = min(0.98, self.step / (self.step + 1))  # a plain mean at first
        variances = {
            buffer: (keep * buffer + (1 - keep) * error / (64 * 64 * 3)).clamp(min=MIN_VARIANCE)
            for buffer, error in (
                (vae.decoder_variance, means.squared_error),
                (self.weighted_variance, means.weighted_error),
            )
        }
        reconstruction, kl, loss = self._objective(means, variances[self.weighted_variance], beta)
        self.positions.update(*reads)
        self._backward(parts, means, variances[self.weighted_variance], beta, (misread, counted))
        norm = torch.stack([p.grad.norm() for p in vae.parameters() if p.grad is not None]).norm()
        if not math.isfinite(loss) or not norm.isfinite():
            _restore(before)
            self.save_checkpoint()
            what = f"loss became {loss}" if not math.isfinite(loss) else "gradient of the loss overflowed"
            raise FloatingPointError(
                f"The {what} at step {self.step + 1}; the state before it is kept in "
                f"{config.out / CHECKPOINT}. Lower --learning-rate or use --precision float32."
            )
        for buffer, value in variances.items():
            buffer.copy_(value)
        # Adam remembers one huge gradient, as of a batch with a flash, for a thousand steps.
        limit = MAX_GRADIENT * self.gradient_norm if self.step else norm
        if norm > limit:
            for parameter in vae.parameters():
                if parameter.grad is not None:
                    parameter.grad *= limit / norm
        self.gradient_norm.mul_(keep).add_((1 - keep) * torch.minimum(norm, limit))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.step += 1
        return {
            "step": self.step,
            "loss": loss,
            "reconstruction": reconstruction,
            "kl": kl,
            "beta": beta,
            "active_units": means.active_units,
            "squared_error": float(means.squared_error),
            "learning_rate": rate,
        }

    def _terms(self, frames: Tensor, colors: Tensor, foreground: Tensor, noise: Tensor) -> Terms:
        with self.fabric.autocast():
            return terms(
                self.vae,
                frames,
                foreground=foreground,
                foreground_weight=self.config.foreground_weight,
                rarity=self.rarity[colors],
                rarity_weight=self.config.rarity_weight,
                noise=noise,
            )

    def _objective(self, means: Means, variance: Tensor, beta: float) -> tuple[float, float, float]:
        """Return reconstruction, KL and the loss in nats per frame, over the whole batch."""
        if self.config.objective == "sse":
            reconstruction = float(means.squared_error)
        else:  # linear in the error, so that of the mean is the mean
            reconstruction = float(gaussian_nll(means.weighted_error, variance))
        kl, _ = floored_kl(means.kl, self.config.free_bits)
        return reconstruction, float(means.kl.sum()), reconstruction + beta * float(kl)

    def _backward(
        self, parts: Terms, means: Means, variance: Tensor, beta: float, read: tuple[Tensor, Tensor]
    ) -> None:
        """Set the gradients of the loss over the whole batch, and of how well positions are read."""
        if self.config.objective == "sse":
            reconstruction = parts.squared_error
        else:
            reconstruction = gaussian_nll(parts.weighted_error, variance)
            reconstruction = reconstruction + self.config.position_weight * self.positions.loss(*read)
        _, charged = floored_kl(means.kl, self.config.free_bits)
        loss = (reconstruction + beta * (parts.kl * charged).sum(1)).sum() / self.config.batch_size
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        sum_over_processes(self.fabric, [p.grad for p in self.trained.parameters() if p.grad is not None])

    def _noise(self, rows: int, seed: int) -> Tensor:
        """Return this process's share of standard normal noise for ``rows`` frames."""
        self.generator.manual_seed(self.config.seed * 1_000_003 + seed)
        noise = torch.randn(rows, self.config.latent_dim, generator=self.generator, device=self.fabric.device)
        return noise[share(self.fabric, rows)]

    @torch.no_grad()
    def _evaluate(self) -> Row:
        """Return the objective on held-out frames, the KL with its full weight."""
        size, width = self.config.batch_size, 2 + 3 * self.config.latent_dim
        sums = torch.zeros(width, dtype=torch.float64, device=self.fabric.device)
        frames, foreground = (torch.from_numpy(array) for array in self.held_out)
        self.vae.eval()
        for start in range(0, len(frames), size):
            rows = len(frames[start : start + size])
            mine = share(self.fabric, rows)
            rows_of = (a[start : start + size][mine] for a in (frames, foreground))
            batch, kinds = (part.to(self.fabric.device) for part in rows_of)
            noise = self._noise(rows, -1 - start)
            if len(batch):
                sums += _sums(self._terms(batch, color_bins(batch.int()), kinds, noise))
        self.vae.train()
        sum_over_processes(self.fabric, [sums])
        means = Means.of(sums, len(frames))
        reconstruction, kl, loss = self._objective(means, self.weighted_variance, self.config.beta)
        values = (loss, reconstruction, kl, means.active_units)
        return dict(zip(HELD_OUT, values, strict=True))

    def _keep_best(self, loss: float) -> None:
        """Remember the state if no earlier one had a lower held-out loss, for early stopping."""
        if not self.config.patience:
            return
        self.waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.waited = loss, self.step, 0
            self.best = {name: tensor.clone() for name, tensor in self.vae.state_dict().items()}

    def save_checkpoint(self) -> None:
        """Write everything needed to go on."""
        if not self.fabric.is_global_zero:
            return
        assert self.monitor is not None
        tensors = dict(self.trained.state_dict())
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= optimizer_tensors(self.trained, self.optimizer)
        tensors |= {"weighted_variance": self.weighted_variance, "gradient_norm": self.gradient_norm}
        progress = {name: getattr(self, name) for name in _PROGRESS}
        progress["history"] = self.monitor.history
        write_checkpoint(self.config.out, self.identity, tensors, progress)

    def _resume(self) -> list[Row]:
        """Go on from the checkpoint, which the first process reads for all; return its history."""
        found = None
        if self.fabric.is_global_zero:
            found = read_checkpoint(self.config.out, self.identity, self.config.overwrite)
        found = self.fabric.broadcast(found)
        if found is None:
            return []
        tensors, progress = found
        self.trained.load_state_dict({name: tensors[name] for name in self.trained.state_dict()})
        load_optimizer_tensors(self.trained, self.optimizer, tensors)
        self.weighted_variance.copy_(tensors["weighted_variance"])
        self.gradient_norm.copy_(tensors["gradient_norm"])
        self.best = {k[5:]: v.to(self.fabric.device) for k, v in tensors.items() if k.startswith("best.")}
        for name in _PROGRESS:
            setattr(self, name, progress[name])
        history: list[Row] = progress["history"]
        return history


@dataclass(frozen=True)
class Means:
    """What the objective needs of a whole batch, over all processes: means over its frames.

    Attributes:
        squared_error: See :class:`~latent_obs.vae.Terms`; a scalar, as the next.
        weighted_error: The same with the foreground emphasis.
        kl: Nats of each latent dimension, shape (latent_dim,).
        active_units: Dimensions whose latent varies by more than 0.01 in this batch.
    """

    squared_error: Tensor
    weighted_error: Tensor
    kl: Tensor
    active_units: float

    @classmethod
    def of(cls, sums: Tensor, frames: int) -> Means:
        """Build from what :func:`_sums` returned, added up."""
        means = sums / frames
        kl, latent, square = means[2:].chunk(3)
        active = (square - latent.square() > ACTIVE_VARIANCE).sum()
        return cls(means[0], means[1], kl, float(active))


def _sums(parts: Terms) -> Tensor:
    """Return sums over frames of errors, KL, latent and its square; float64, (2 + 3 * latent_dim,)."""
    mean = parts.mean.detach()
    errors = torch.stack([parts.squared_error, parts.weighted_error], 1).detach()
    return torch.cat([errors, parts.kl.detach(), mean, mean.square()], 1).double().sum(0)


def _restore(tensors: dict[Tensor, Tensor]) -> None:
    for tensor, before in tensors.items():
        tensor.copy_(before)

"""The steps of a training run, in one process or shared out between several."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import ACTIVE_VARIANCE
from latent_obs.encoders.provenance import Run
from latent_obs.encoders.resolve import resolve
from latent_obs.frames import Frame
from latent_obs.measures import color_bins, color_rarity
from latent_obs.progress import Bar
from latent_obs.training.anchor import Anchor
from latent_obs.training.batch_norm import BatchNorm, unfold
from latent_obs.training.checkpoint import (
    CHECKPOINT,
    Progress,
    damaged,
    read_checkpoint,
    write_checkpoint,
)
from latent_obs.training.distributed import (
    Processes,
    keep_freed_memory,
    read_once,
    share,
    sum_over_processes,
)
from latent_obs.training.history import Monitor, Row
from latent_obs.training.moments import ImageMoments
from latent_obs.training.objective import (
    Means,
    Terms,
    calibrated_variance,
    init_output_bias,
    kl_weight,
    learning_rate,
    negative_elbo,
    pixel_weights,
    terms,
)
from latent_obs.training.optimizer import Optimizer
from latent_obs.training.places import Places
from latent_obs.vae import VAE, load_vae, reconstruct

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from latent_obs.training.config import TrainConfig
    from latent_obs.training.pace import Pace

CHECKPOINT_SECONDS = 30.0
LOG_EVERY = 50
# Frames of each half of the split that are kept in memory, and how many of them what is set before the first
# step is made from.
SAMPLE_FRAMES = 4096
START_FRAMES = 1024
PLACES_FRAMES = 2048  # to choose colours and places on
# A short run keeps fewer held-out frames, one for each 32 that it trains on: measuring must take little time.
LEAST_HELD_OUT, TRAINED_FOR_EACH_HELD_OUT = 512, 32
PICTURE_FRAMES = 12
# Gradients are scaled down to at most this many times their usual norm.
MAX_GRADIENT = 2.0
HELD_OUT = ("held_out_loss", "held_out_reconstruction", "held_out_kl", "held_out_active_units")


class TrainingRun:
    """A training run: everything that a checkpoint has to hold, and the steps.

    With several processes each of them has one. They hold the same weights and each takes its share of every
    batch; sums over all processes make their steps those that one process would take.

    Args:
        fabric: The processes.
        config: Settings of the run.
        folder: Frames to train on.
        run: What identifies the run.

    Attributes:
        vae: The model as it is now.
        step: Optimiser steps taken.
        seconds: Time that they took.
        best: State of the lowest held-out loss, when there is ``patience``; else empty.
        best_step: Steps taken to reach it.
        weighted_variance: Decoder variance of the weighted error.
        gradient_norm: Running mean of the gradient's norm.
        sample: Some of the frames to train on, ``uint8`` of shape (N, 64, 64, 3), in random order.
        held_out_sample: At most as many of the held-out frames; none but in the first process.
        monitor: What the run shows of itself, in the first process.

    Raises:
        ValueError: If a batch is too small to share, or the checkpoint is damaged or another run's.
    """

    def __init__(self, fabric: Fabric, config: TrainConfig, folder: FramesFolder, run: Run) -> None:
        self.fabric, self.config, self.folder, self.run = fabric, config, folder, run
        if config.batch_size < fabric.world_size:
            raise ValueError(
                f"A batch of {config.batch_size} cannot be shared by {fabric.world_size} processes. "
                "Raise --batch-size."
            )
        if config.pairs and fabric.world_size > 1:
            raise ValueError(
                f"pairs trains in one process, got {fabric.world_size}. Start it without torchrun."
            )
        # The frames folder may be larger than this machine, so it is sampled once for all that needs samples.
        self.episodes, self.held_out_episodes = folder.split(config.validation, config.seed)
        self.sample = read_once(fabric, lambda: folder.sample(SAMPLE_FRAMES, self.episodes, config.seed))
        trained = config.steps * config.batch_size
        wanted = min(SAMPLE_FRAMES, max(LEAST_HELD_OUT, trained // TRAINED_FOR_EACH_HELD_OUT))
        wanted = wanted if fabric.is_global_zero else 0
        self.held_out_sample = folder.sample(wanted, self.held_out_episodes, config.seed)
        start = self.sample[:START_FRAMES]
        if config.init_from is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.vae = VAE(config.vae, norm=BatchNorm if config.batch_norm else None)
            init_output_bias(self.vae, start)
        else:
            self.vae = load_vae(config.init_from)[0].train().requires_grad_(True)
            if config.batch_norm:
                self.vae = unfold(self.vae, torch.from_numpy(start))
        device = fabric.device
        if device.type == "cpu":
            keep_freed_memory()
        self.vae.to(device)
        self.optimizer = Optimizer(self.vae, config.optimizer, config.learning_rate)
        self.generator = torch.Generator(device)
        self.medians = read_once(fabric, folder.medians)
        self.moments = self._image_moments() if config.moments else None
        self.places = self._places() if config.places else None
        self.anchor: Anchor | None = None
        if config.anchor and config.init_from is not None:
            self.anchor = Anchor(config.init_from, config.anchor, device)
        self.rarity = torch.from_numpy(color_rarity(start)).to(device)
        # Forward alone costs a third of a step, so this many frames cost 2% of the steps between.
        count = min(2048, max(1, config.evaluate_every * config.batch_size // 20))
        counts = folder.episodes()
        count = min(count, sum(counts[episode] for episode in self.held_out_episodes))
        batches = folder.batches_and_foreground(count, self.medians, self.held_out_episodes, seed=config.seed)
        self.held_out = read_once(fabric, lambda: next(batches))
        self.weighted_variance = torch.tensor(0.0, device=device)
        self.gradient_norm = torch.tensor(0.0, device=device)
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Tensor] = {}
        self.best_loss, self.best_step, self.waited = math.inf, 0, 0
        history = self._resume()
        self.monitor = Monitor(config.out, config.tensorboard, history) if fabric.is_global_zero else None

    def train(self, bar: Bar, stop: threading.Event, pace: Pace | None = None) -> bool:
        """Take the remaining steps; return whether some process was told to stop before.

        Args:
            bar: Shows how far the run is.
            stop: Set by who tells this process to stop.
            pace: Says how many steps are left, in place of ``config.steps``.
        """
        batches = self._batches()
        saved = begun = time.monotonic()
        spent = self.seconds
        while self.step < self.config.steps and not self._waited_enough():
            if self._told_to_stop(stop):
                return True
            frames, foreground = (torch.from_numpy(a).to(self.fabric.device) for a in next(batches))
            with self._undone_if_it_fails():
                row = self.take_step(frames, foreground)
            self.seconds = spent + time.monotonic() - begun
            if pace is not None and (more := pace.after(self.step)) is not None:
                self._plan(self.step + more, bar)
            last = self.step == self.config.steps
            evaluates = last or self.step % self.config.evaluate_every == 0
            row.update(self._evaluate() if evaluates else dict.fromkeys(HELD_OUT, math.nan))
            if self.monitor is not None and (evaluates or self.step % LOG_EVERY == 0 or self.step == 1):
                self.monitor.log(row)
                bar.note(f"loss {row['loss']:,.0f}  KL {row['kl']:.1f}  active {row['active_units']:.0f}")
            if evaluates:
                self._keep_best(row["held_out_loss"])
                if self.monitor is not None:
                    shown = self.held_out_sample[:PICTURE_FRAMES]
                    self.monitor.show(shown, reconstruct(self.vae.eval(), shown), self.step)
                    self.vae.train()
            bar.advance()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save_checkpoint()
                saved = time.monotonic()
        return self._told_to_stop(stop)

    def _plan(self, steps: int, bar: Bar) -> None:
        """Decide to take so many steps in place of ``config.steps``."""
        self.config = replace(self.config, steps=steps)
        self.run = replace(self.run, config=self.config.to_json())
        bar.aim(steps)

    def _batches(self) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]]:
        """Yield what is left of the batches to train on, with the masks of their foreground."""
        config = self.config
        if not config.pairs:
            return self.folder.batches_and_foreground(
                config.batch_size,
                self.medians,
                self.episodes,
                seed=config.seed,
                skip=self.step,
                team=Processes(self.fabric) if self.fabric.world_size > 1 else None,
            )
        none = np.zeros((config.batch_size, 0, 64, 64), np.bool_)
        pairs = self.folder.pairs(config.batch_size, self.episodes, seed=config.seed, skip=self.step)
        return ((frames, none) for frames in pairs)

    def take_step(self, frames: Tensor, foreground: Tensor) -> Row:
        """Take one optimiser step and return its row of the history.

        Args:
            frames: This process's share of the batch, ``uint8`` of shape (n, 64, 64, 3).
            foreground: Its masks, shape (n, kinds, 64, 64).

        Raises:
            FloatingPointError: If the loss or its gradient is not finite; no weight has changed then.
        """
        config, vae = self.config, self.vae
        beta, rate = kl_weight(self.step, config), learning_rate(self.step, config)

        # Encode the frames, sample the posterior, decode: the error and the KL divergence of each frame.
        noise = self._noise(config.batch_size, self.step)
        parts = self._terms(frames, foreground, noise, config.pairs)
        means = self._means([parts], config.batch_size)

        # The decoder's variances follow the mean squared error, which is their optimum.
        variance = calibrated_variance(vae.decoder_variance, means.squared_error, self.step)
        weighted_variance = calibrated_variance(self.weighted_variance, means.weighted_error, self.step)

        # The loss is the negative ELBO, in nats per frame, averaged over the batch.
        _, losses = negative_elbo(parts, means, weighted_variance, beta, config)
        self.optimizer.zero_grad()
        if self.moments is not None:
            losses = losses + self.moments.nll(parts.mean, frames)
        if self.places is not None:
            losses = losses + self.places.nll(parts.mean, frames, foreground[:, 1])
        if self.anchor is not None:
            losses = losses + self.anchor.nll(parts.mean, frames)
        (losses.sum() / config.batch_size).backward()  # type: ignore[no-untyped-call]
        self._sum_gradients()

        reconstruction, loss = negative_elbo(means, means, weighted_variance, beta, config)
        norm = torch.stack([gradient.norm() for gradient in self._gradients()]).norm()
        self._check_finite(loss, norm)
        self._limit_gradient(norm)

        self.optimizer.step(rate)
        vae.decoder_variance.copy_(variance)
        self.weighted_variance.copy_(weighted_variance)
        self.step += 1
        return {
            "step": self.step,
            "loss": float(loss),
            "reconstruction": float(reconstruction),
            "kl": float(means.kl.sum()),
            "beta": beta,
            "active_units": means.active_units,
            "squared_error": float(means.squared_error),
            "learning_rate": rate,
        }

    def _of_one_environment(self, which: str) -> Frame:
        """Return the median of the frames, which must be of one environment."""
        if len(self.medians) > 1:
            raise ValueError(
                f"{which}={getattr(self.config, which)} needs frames of one environment; {self.folder} has "
                f"those of {', '.join(self.medians)}. Train with {which}=0 (--{which} 0)."
            )
        (median,) = self.medians.values()
        return median

    def _image_moments(self) -> ImageMoments:
        median = self._of_one_environment("moments")
        return ImageMoments(self.sample[:START_FRAMES], median, self.config.moments)

    def _places(self) -> Places:
        """Choose places, or take those of the encoder that training starts from."""
        if self.config.init_from is not None:
            held = resolve(self.config.init_from).config.provenance.places
            if held is not None:
                return Places.of(held)
        median = self._of_one_environment("places")
        episodes = self.folder.episodes()
        size = min(PLACES_FRAMES, sum(episodes[episode] for episode in self.episodes))
        batches = self.folder.batches_and_foreground(size, self.medians, self.episodes, seed=self.config.seed)
        frames, foreground = read_once(self.fabric, lambda: next(batches))
        return Places(frames, median, self.config.places, foreground[:, 1])

    def _terms(self, frames: Tensor, foreground: Tensor, noise: Tensor, pairs: bool = False) -> Terms:
        config = self.config
        rarity = self.rarity[color_bins(frames.int())]
        weights = pixel_weights(foreground, config.foreground_weight, rarity, config.rarity_weight)
        held = 0 if self.places is None else len(self.places.names)
        with self.fabric.autocast():
            return terms(self.vae, frames, noise, weights, pairs=pairs, held=held)

    def _noise(self, rows: int, seed: int) -> Tensor:
        """Return this process's share of standard normal noise for ``rows`` frames."""
        self.generator.manual_seed(self.config.seed * 1_000_003 + seed)
        noise = torch.randn(rows, self.config.latent_dim, generator=self.generator, device=self.fabric.device)
        return noise[share(self.fabric, rows)]

    def _means(self, parts: list[Terms], frames: int) -> Means:
        """Average over a batch of so many frames, of which this process computed ``parts``."""
        latent_dim = self.config.latent_dim
        sums = torch.zeros(2 + 3 * latent_dim, dtype=torch.float64, device=self.fabric.device)
        for each in parts:
            mean = each.mean.detach()
            errors = torch.stack([each.squared_error, each.weighted_error], 1).detach()
            sums += torch.cat([errors, each.kl.detach(), mean, mean.square()], 1).double().sum(0)
        sum_over_processes(self.fabric, [sums])
        means = sums / frames
        kl, latent, square = means[2:].chunk(3)
        active = (square - latent.square() > ACTIVE_VARIANCE).sum()
        return Means(means[0], means[1], kl, latent, float(active))

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.vae.parameters() if parameter.grad is not None]

    def _sum_gradients(self) -> None:
        sum_over_processes(self.fabric, self._gradients())

    def _limit_gradient(self, norm: Tensor) -> None:
        """Scale down a gradient far above the usual; Adam would remember it for a thousand steps.

        A batch with a flash has one.
        """
        limit = MAX_GRADIENT * self.gradient_norm if self.step else norm
        if norm > limit:
            for gradient in self._gradients():
                gradient *= limit / norm
        keep = min(0.98, self.step / (self.step + 1))
        self.gradient_norm.mul_(keep).add_((1 - keep) * torch.minimum(norm, limit))

    def _check_finite(self, loss: Tensor, norm: Tensor) -> None:
        if loss.isfinite() and norm.isfinite():
            return
        what = "gradient of the loss overflowed" if loss.isfinite() else f"loss became {float(loss)}"
        raise FloatingPointError(
            f"The {what} at step {self.step + 1}; the state before it is kept in "
            f"{self.config.out / CHECKPOINT}. Lower --learning-rate or use --precision float32."
        )

    @contextlib.contextmanager
    def _undone_if_it_fails(self) -> Iterator[None]:
        """Save the state before a step that fails; running the model has changed its normalisation."""
        before = {buffer: buffer.clone() for name, buffer in self.vae.named_buffers() if ".norm" in name}
        try:
            yield
        except FloatingPointError:
            for buffer, value in before.items():
                buffer.copy_(value)
            self.save_checkpoint()
            raise

    def _told_to_stop(self, stop: threading.Event) -> bool:
        """Say whether any process was told to stop, which they all have to know at the same step."""
        told = torch.tensor(float(stop.is_set()), device=self.fabric.device)
        sum_over_processes(self.fabric, [told])
        return bool(told)

    @torch.no_grad()
    def _evaluate(self) -> Row:
        """Return the objective on held-out frames, the KL with its full weight."""
        size, device = self.config.batch_size, self.fabric.device
        frames, foreground = (torch.from_numpy(array) for array in self.held_out)
        if self.config.pairs:
            foreground = foreground[:, :0]  # as in training, where no pair has masks
        parts = []
        self.vae.eval()
        for start in range(0, len(frames), size):
            rows = len(frames[start : start + size])
            mine = share(self.fabric, rows)
            batch, kinds = (a[start : start + size][mine].to(device) for a in (frames, foreground))
            noise = self._noise(rows, -1 - start)
            if len(batch):
                parts.append(self._terms(batch, kinds, noise))
        self.vae.train()
        means = self._means(parts, len(frames))
        reconstruction, loss = negative_elbo(
            means, means, self.weighted_variance, self.config.beta, self.config
        )
        values = (float(loss), float(reconstruction), float(means.kl.sum()), means.active_units)
        return dict(zip(HELD_OUT, values, strict=True))

    def _waited_enough(self) -> bool:
        return bool(self.config.patience) and self.waited >= self.config.patience

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
        tensors = dict(self.vae.state_dict())
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors |= self.optimizer.tensors()
        tensors |= {"weighted_variance": self.weighted_variance, "gradient_norm": self.gradient_norm}
        progress = Progress(
            step=self.step,
            seconds=self.seconds,
            best_loss=self.best_loss if math.isfinite(self.best_loss) else None,
            best_step=self.best_step,
            waited=self.waited,
            history=[
                {k: None if math.isnan(v) else v for k, v in row.items()} for row in self.monitor.history
            ],
        )
        write_checkpoint(self.config.out, self.run, tensors, progress)

    def _resume(self) -> list[Row]:
        """Go on from the checkpoint, which the first process reads for all; return its history."""
        found = None
        if self.fabric.is_global_zero:
            found = read_checkpoint(self.config.out, self.run, self.config.overwrite)
        found = self.fabric.broadcast(found)
        if found is None:
            return []
        tensors, progress = found
        try:
            self.vae.load_state_dict({name: tensors[name] for name in self.vae.state_dict()})
            if progress.step:
                self.optimizer.load(tensors)
            self.weighted_variance.copy_(tensors["weighted_variance"])
            self.gradient_norm.copy_(tensors["gradient_norm"])
            best = {k[5:]: v.to(self.fabric.device) for k, v in tensors.items() if k.startswith("best.")}
            if best and _shapes(best) != _shapes(self.vae.state_dict()):
                raise KeyError("a tensor of the best state")
        except (KeyError, RuntimeError) as error:
            raise damaged(self.config.out, error) from error
        self.best = best
        self.step, self.seconds = progress.step, progress.seconds
        self.best_loss = math.inf if progress.best_loss is None else progress.best_loss
        self.best_step, self.waited = progress.best_step, progress.waited
        return [{k: math.nan if v is None else v for k, v in row.items()} for row in progress.history]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}

"""Trains a VAE offline on a frames folder and writes an encoder folder."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
import threading
import time
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.torch
import torch

from latent_obs.dataset import FramesFolder
from latent_obs.encoder_folder import (
    ACTIVE_VARIANCE,
    CALIBRATION_FRAMES,
    EncoderConfig,
    VAEConfig,
    read_config,
    write_atomically,
    write_encoder_folder,
)
from latent_obs.evaluate import evaluate_vae, latent_statistics
from latent_obs.progress import Bar, progress_bar, stop_on_signals
from latent_obs.vae import MIN_VARIANCE, VAE, gaussian_nll, init_output_bias, terms

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINT_SECONDS = 30.0
# Fewer active units than this means that the latent says next to nothing about the frame.
COLLAPSED_BELOW = 2


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE on a folder of frames."""

    data: Path
    """frames folder written by `latent-obs collect`"""
    out: Path = Path("encoder")
    """encoder folder to write; an unfinished run of the same settings is resumed"""
    latent_dim: int = 32
    """size of the latent"""
    channels: tuple[int, ...] = (32, 64, 128)
    """output channels of the encoder's convolutions; the decoder mirrors them"""
    steps: int = 10_000
    """optimiser steps"""
    batch_size: int = 64
    """frames in a step"""
    learning_rate: float = 1e-3
    """Adam's learning rate; falls to zero along a half cosine"""
    objective: Literal["calibrated", "sse"] = "calibrated"
    """calibrated: Gaussian decoder whose variance is the running mean squared error; sse: squared
    error + KL as in World Models, without emphasis, which collapses on games with small objects"""
    kl_weight: float = 1.0
    """weight of the KL term (beta); losses are in nats per frame"""
    kl_warmup: float = 0.2
    """fraction of the steps over which the KL weight rises from zero"""
    foreground_weight: float = 20.0
    """extra weight of pixels that differ from the median frame, so that small objects survive"""
    validation: float = 0.1
    """fraction of the frames held out, by whole episodes"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 trains faster where the hardware has it; auto takes it there"""
    seed: int = 0
    """seed of weights, batches and noise"""
    overwrite: bool = False
    """replace whatever encoder is in `out`"""

    def __post_init__(self) -> None:
        VAEConfig(self.latent_dim, tuple(self.channels))
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("kl_weight", "kl_warmup", "foreground_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be between 0 and 1, got {self.learning_rate}.")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation must be between 0 and 1, got {self.validation}.")

    @property
    def vae(self) -> VAEConfig:
        """Sizes of the networks."""
        return VAEConfig(self.latent_dim, tuple(self.channels))

    def to_json(self) -> dict[str, Any]:
        """Return what identifies a run; where it lies and whether it overwrites do not."""
        fields = asdict(self)
        for name in ("data", "out", "overwrite"):
            del fields[name]
        return {**fields, "channels": list(self.channels)}


def train_vae(config: TrainConfig, *, progress: bool = True) -> EncoderConfig:
    """Train a VAE and write the encoder folder ``config.out``.

    A checkpoint is written about twice a minute and after Ctrl-C; the same call resumes from
    it. A finished encoder of the same settings and data is kept as it is.

    Args:
        config: Data, networks, objective and optimiser.
        progress: Show a progress bar on standard error.

    Returns:
        The content of the folder's ``config.json``, with the metrics on held-out episodes.

    Raises:
        FileNotFoundError: If there are no frames.
        ValueError: If the frames cannot be split by episode, or ``out`` holds another encoder.
        FloatingPointError: If the loss stops being finite; the last checkpoint stays.

    Warns:
        RuntimeWarning: If the encoder collapsed: hardly any latent dimension is active.

    Example:
        >>> config = TrainConfig(Path("frames"), Path("encoder"), steps=2_000, latent_dim=16)
        >>> config.vae
        VAEConfig(latent_dim=16, channels=(32, 64, 128))
    """
    folder = FramesFolder(config.data)
    train, held_out = folder.split(config.validation, config.seed)
    identity = {"config": config.to_json(), "data": folder.identity}
    if not config.overwrite and (config.out / "config.json").exists():
        finished = read_config(config.out)
        if finished.provenance.get("run") == identity:
            return finished
        raise ValueError(
            f"{config.out} already holds an encoder trained with other settings or frames. "
            "Choose another --out, or --overwrite it."
        )
    config.out.mkdir(parents=True, exist_ok=True)
    run = _Run(config, folder, train, identity)
    with progress_bar("train", config.steps, "steps", progress, run.step) as bar, stop_on_signals() as stop:
        run.train(bar, stop)
    run.save_checkpoint()  # also when it is done: what follows may be interrupted too
    if stop.is_set():
        raise KeyboardInterrupt

    vae = run.vae.eval().requires_grad_(False)
    result = EncoderConfig(
        frame_spec=folder.frame_spec,
        vae=config.vae,
        latents=latent_statistics(vae, folder.sample(4096, train, config.seed)),
        source=folder.source,
        provenance={
            "run": identity,
            "seconds": round(run.seconds, 1),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {run.precision}",
            "libraries": {"torch": torch.__version__, "numpy": np.__version__},
        },
        metrics=evaluate_vae(vae, folder.sample(4096, held_out, config.seed)),
    )
    collapsed = result.metrics["active_units"] < COLLAPSED_BELOW
    result.metrics["collapsed"] = collapsed
    write_atomically(config.out / "history.csv", run.history_csv().encode())
    calibration = folder.sample(CALIBRATION_FRAMES, train, config.seed)
    write_encoder_folder(config.out, result, vae.tensors(), calibration)
    (config.out / CHECKPOINT).unlink(missing_ok=True)
    if collapsed:
        warnings.warn(
            f"POSTERIOR COLLAPSE: the encoder {config.out} has {result.metrics['active_units']} active "
            f"units of {config.latent_dim}, so its latents say next to nothing about the frame. Use "
            "--objective calibrated, train longer, or lower --kl-weight.",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


class _Run:
    """A training run: everything that a checkpoint has to hold."""

    def __init__(
        self, config: TrainConfig, folder: FramesFolder, episodes: list[int], identity: dict[str, Any]
    ) -> None:
        self.config, self.folder, self.episodes, self.identity = config, folder, episodes, identity
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = config.precision
        if config.precision == "auto":
            self.precision = "bfloat16" if _has_fast_bfloat16(self.device) else "float32"
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.vae = VAE(config.vae)
        sample = folder.sample(1024, episodes, config.seed)
        init_output_bias(self.vae, sample)
        self.median = torch.from_numpy(np.median(sample, 0).astype(np.uint8)).to(self.device)
        # Oblivious to the order of memory, but convolutions are faster in this one.
        self.vae.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.vae.parameters(), config.learning_rate, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.weighted_variance = torch.tensor(0.0, device=self.device)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        if (config.out / CHECKPOINT).exists():
            self._load_checkpoint()

    def train(self, bar: Bar, stop: threading.Event) -> None:
        """Take the remaining steps, or those until ``stop`` is set."""
        config = self.config
        batches = self.folder.batches(config.batch_size, self.episodes, seed=config.seed, skip=self.step)
        saved = begun = time.monotonic()
        spent = self.seconds
        while self.step < config.steps and not stop.is_set():
            frames = torch.from_numpy(next(batches)).to(self.device)
            log = self.step % 50 == 0 or self.step == config.steps - 1
            row = self._take_step(frames, log)
            self.step += 1
            self.seconds = spent + time.monotonic() - begun
            if row is not None:
                if not math.isfinite(row["loss"]):
                    raise FloatingPointError(
                        f"The loss became {row['loss']} at step {self.step}; the last checkpoint in "
                        f"{config.out} is kept. Lower --learning-rate or use --precision float32."
                    )
                self.history.append(row)
                bar.note(f"loss {row['loss']:,.0f}  KL {row['kl']:.1f}  active {row['active_units']:.0f}")
            bar.advance()
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save_checkpoint()
                saved = time.monotonic()

    def _take_step(self, frames: torch.Tensor, log: bool) -> dict[str, float] | None:
        config, vae = self.config, self.vae
        rate = config.learning_rate * 0.5 * (1 + math.cos(math.pi * self.step / config.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        warmup = config.kl_warmup * config.steps
        kl_weight = config.kl_weight * (min(1.0, self.step / warmup) if warmup else 1.0)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            parts = terms(
                vae,
                frames,
                median=self.median,
                foreground_weight=config.foreground_weight,
                generator=self.generator,
            )
        kl = parts.kl.sum(1).mean()
        self._track_variances(parts.squared_error, parts.weighted_error)
        if config.objective == "sse":
            reconstruction = parts.squared_error.mean()
        else:
            reconstruction = gaussian_nll(parts.weighted_error, self.weighted_variance).mean()
        loss = reconstruction + kl_weight * kl
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if not log:
            return None
        active = (parts.mean.detach().var(0) > ACTIVE_VARIANCE).sum()
        return {
            "step": self.step,
            "loss": float(loss.detach()),
            "reconstruction": float(reconstruction.detach()),
            "kl": float(kl.detach()),
            "kl_weight": kl_weight,
            "active_units": float(active),
            "squared_error": float(parts.squared_error.detach().mean()),
            "learning_rate": rate,
        }

    @torch.no_grad()
    def _track_variances(self, squared: torch.Tensor, weighted: torch.Tensor) -> None:
        """Move the decoder variances towards this batch's optimum, the mean squared error."""
        pixels = 64 * 64 * 3
        keep = min(0.98, self.step / (self.step + 1))  # a plain mean at first
        for variance, error in ((self.vae.decoder_variance, squared), (self.weighted_variance, weighted)):
            variance.mul_(keep).add_((1 - keep) * error.mean() / pixels).clamp_(min=MIN_VARIANCE)

    def save_checkpoint(self) -> None:
        """Write everything needed to go on, atomically and without pickle."""
        tensors = {f"vae.{k}": v.contiguous() for k, v in self.vae.state_dict().items()}
        names = [name for name, _ in self.vae.named_parameters()]
        for index, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"adam.{names[index]}.{key}"] = value.contiguous()
        tensors["weighted_variance"] = self.weighted_variance
        tensors["generator"] = self.generator.get_state()
        metadata = {
            "run": json.dumps(self.identity),
            "step": str(self.step),
            "seconds": str(self.seconds),
            "history": json.dumps(self.history),
        }
        write_atomically(self.config.out / CHECKPOINT, safetensors.torch.save(tensors, metadata))

    def _load_checkpoint(self) -> None:
        path = self.config.out / CHECKPOINT
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it to start again.") from error
        if json.loads(metadata["run"]) != self.identity:
            if self.config.overwrite:
                return
            raise ValueError(
                f"{self.config.out} holds an unfinished run with other settings or frames. Repeat its "
                "command to finish it, choose another --out, or --overwrite it."
            )
        own = [k for k in tensors if k.startswith("vae.")]
        self.vae.load_state_dict({k[4:]: tensors[k] for k in own})
        state = self.optimizer.state_dict()
        for index, (name, parameter) in enumerate(self.vae.named_parameters()):
            # The fused optimiser walks through memory, so moments must lie as their parameter does.
            moments = {
                key: torch.empty_like(parameter).copy_(tensors[f"adam.{name}.{key}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            state["state"][index] = {"step": tensors[f"adam.{name}.step"], **moments}
        self.optimizer.load_state_dict(state)
        self.weighted_variance.copy_(tensors["weighted_variance"])
        self.generator.set_state(tensors["generator"].cpu())
        self.step, self.seconds = int(metadata["step"]), float(metadata["seconds"])
        self.history = json.loads(metadata["history"])

    def history_csv(self) -> str:
        """Return the logged steps as CSV."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.history)
        return out.getvalue()


def _has_fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

"""Trains a VAE offline on a frames folder and writes an encoder folder."""

from __future__ import annotations

import hashlib
import math
import platform
import warnings
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from latent_obs import __version__
from latent_obs.batch_norm import fold
from latent_obs.checkpoint import CHECKPOINT
from latent_obs.dataset import FramesFolder
from latent_obs.encoder import find_encoder
from latent_obs.encoder_folder import (
    CALIBRATION_FRAMES,
    EncoderConfig,
    VAEConfig,
    read_config,
    write_encoder_folder,
)
from latent_obs.evaluate import evaluate_vae, latent_statistics
from latent_obs.monitor import check_tensorboard
from latent_obs.processes import has_fast_bfloat16, launch, make_fabric
from latent_obs.progress import progress_bar, stop_on_signals
from latent_obs.training_run import TrainingRun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Fewer active units than this means that the latent says next to nothing about the frame.
COLLAPSED_BELOW = 2


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE on a folder of frames."""

    data: str | Path
    """frames folder written by `latent-obs collect`, a path or a URL"""
    out: Path = Path("encoder")
    """encoder folder to write; an unfinished run of the same settings is resumed"""
    init_from: str | Path | None = None
    """name, folder or hf://USER/NAME of an encoder of the same sizes whose weights to start from"""
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
    error + KL as in World Models and nothing else, which collapses on games with small objects"""
    beta: float = 1.0
    """weight of the KL term; losses are in nats per frame"""
    kl_warmup: float = 0.2
    """fraction of the steps over which beta rises from zero"""
    free_bits: float = 0.0
    """nats that each latent dimension may say for nothing (Kingma et al. 2016), against collapse"""
    foreground_weight: float = 20.0
    """extra weight of pixels that differ from the median frame, and again of those that are about to change
    or just did, so that small objects survive"""
    rarity_weight: float = 60.0
    """extra weight of pixels whose colour is rare in the frames, so that small objects survive in front of a
    moving camera too"""
    position_weight: float = 0.0
    """weight of telling the position of each rare colour from the latent by a linear layer, which is thrown
    away in the end, so that ridge regression reads small objects; 1000 does, and PPO gains nothing"""
    batch_norm: bool = True
    """normalise activations while training, which learns small objects in fewer steps; it is folded into
    the weights in the end"""
    validation: float = 0.1
    """fraction of the frames held out, by whole episodes"""
    evaluate_every: int = 500
    """steps between evaluations on held-out frames; each takes about 2% of the time of those steps"""
    patience: int = 0
    """stop after this many evaluations without a better held-out loss and keep the best state; 0: never"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 trains faster where the hardware has it; auto takes it there"""
    seed: int = 0
    """seed of weights, batches and noise"""
    devices: int = 1
    """processes on this machine, one a GPU if there are any; they share each batch"""
    num_nodes: int = 1
    """machines; torchrun sets this and the one before by itself"""
    tensorboard: bool = False
    """write TensorBoard event files to `out`/tensorboard as well"""
    overwrite: bool = False
    """replace whatever encoder is in `out`"""

    def __post_init__(self) -> None:
        VAEConfig(self.latent_dim, tuple(self.channels))
        for name in ("steps", "batch_size", "evaluate_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        weights = ("beta", "free_bits", "foreground_weight", "rarity_weight", "position_weight")
        for name in (*weights, "kl_warmup", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be between 0 and 1, got {self.learning_rate}.")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation must be between 0 and 1, got {self.validation}: without held-out episodes "
                "nobody could tell what the encoder has learned from what it has memorised."
            )

    @property
    def vae(self) -> VAEConfig:
        """Sizes of the networks."""
        return VAEConfig(self.latent_dim, tuple(self.channels))

    def to_json(self) -> dict[str, Any]:
        """Return what identifies a run; where it lies and which machines run it do not."""
        fields = asdict(self)
        for name in ("data", "out", "devices", "num_nodes", "tensorboard", "overwrite"):
            del fields[name]
        fields["init_from"] = None if self.init_from is None else str(self.init_from)
        return {**fields, "channels": list(self.channels)}


def train_vae(config: TrainConfig, *, progress: bool = True) -> EncoderConfig:
    """Train a VAE and write the encoder folder ``config.out``.

    A checkpoint is written about twice a minute and after Ctrl-C; the same call resumes from
    it. A finished encoder of the same settings and data is kept as it is.

    With several ``devices`` or under ``torchrun`` each batch is shared out between processes, which
    take the same steps as one process would. All of them read ``config.data``; the first one alone
    writes ``config.out``.

    Args:
        config: Data, networks, objective and optimiser.
        progress: Show a progress bar on standard error.

    Returns:
        The content of the folder's ``config.json``, with the metrics on held-out episodes.

    Raises:
        FileNotFoundError: If there are no frames, or no encoder to start from.
        ValueError: If the frames cannot be split by episode, the encoder to start from does not
            fit, or ``out`` holds another encoder.
        ImportError: If ``tensorboard`` is asked for and missing.
        FloatingPointError: If the loss or its gradient stops being finite; the state before that
            step stays in the checkpoint.

    Warns:
        RuntimeWarning: If the encoder collapsed: hardly any latent dimension is active.

    Example:
        >>> config = TrainConfig(Path("frames"), Path("encoder"), steps=2_000, latent_dim=16)
        >>> config.vae
        VAEConfig(latent_dim=16, channels=(32, 64, 128))
    """
    folder = FramesFolder(config.data)
    folder.split(config.validation, config.seed)  # refuses what it cannot split before more is done
    identity = {"config": config.to_json(), "data": folder.identity, "init_from": _check_init(config, folder)}
    if config.tensorboard:
        check_tensorboard()
    if not config.overwrite and (config.out / "config.json").exists():
        finished = read_config(config.out)
        if finished.provenance.get("run") == identity:
            return finished
        raise ValueError(
            f"{config.out} already holds an encoder trained with other settings or frames. "
            "Choose another --out, or --overwrite it."
        )
    precision = config.precision
    if precision == "auto":
        precision = "bfloat16" if has_fast_bfloat16() else "float32"
    fabric = make_fabric(config.devices, config.num_nodes, precision)
    config.out.mkdir(parents=True, exist_ok=True)
    result = launch(fabric, _train, config, folder, identity, progress)
    if result is None:
        raise KeyboardInterrupt
    if result.metrics["collapsed"] and fabric.is_global_zero:
        warnings.warn(
            f"POSTERIOR COLLAPSE: the encoder {config.out} has {result.metrics['active_units']} active "
            f"units of {config.latent_dim}, so its latents say next to nothing about the frame. Use "
            "--objective calibrated, train longer, lower --beta or raise --free-bits.",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def _train(
    fabric: Fabric, config: TrainConfig, folder: FramesFolder, identity: dict[str, Any], progress: bool
) -> EncoderConfig | None:
    """Train in one of the processes; ``None`` when it was told to stop."""
    run = TrainingRun(fabric, config, folder, identity)
    shown = progress and fabric.is_global_zero
    bar_of = progress_bar("train", config.steps, "frames", shown, run.step, config.batch_size)
    with bar_of as bar, stop_on_signals() as stop:
        stopped = run.train(bar, stop)
    run.save_checkpoint()  # also when it is done: what follows may be interrupted too
    if stopped:
        return None
    finished = _write_encoder(run, config) if fabric.is_global_zero else None
    return fabric.broadcast(finished)


def _write_encoder(run: TrainingRun, config: TrainConfig) -> EncoderConfig:
    """Measure the encoder on held-out episodes and write its folder."""
    folder = run.folder
    assert run.monitor is not None
    if run.best:
        run.vae.load_state_dict(run.best)
    vae = fold(run.vae).requires_grad_(False)
    metrics = evaluate_vae(vae, folder.sample(4096, run.held_out_episodes, config.seed))
    metrics["collapsed"] = metrics["active_units"] < COLLAPSED_BELOW
    device = run.fabric.device.type
    result = EncoderConfig(
        frame_spec=folder.frame_spec,
        vae=config.vae,
        latents=latent_statistics(vae, folder.sample(4096, run.episodes, config.seed)),
        source=folder.source,
        provenance={
            "run": run.identity,
            "steps": run.step,
            "kept_step": run.best_step if run.best else run.step,
            "collapsed": metrics["collapsed"],
            "seconds": round(run.seconds, 1),
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": f"{platform.machine()}, {device}, {torch.get_num_threads()} threads",
            "processes": run.fabric.world_size,
            "precision": run.precision,
            "libraries": {
                "latent_obs": __version__,
                **{name: version(name) for name in ("torch", "lightning-fabric", "numpy")},
            },
        },
        metrics=metrics,
    )
    run.monitor.write_history()
    run.monitor.close()
    calibration = folder.sample(CALIBRATION_FRAMES, run.episodes, config.seed)
    write_encoder_folder(config.out, result, vae.tensors(), calibration)
    (config.out / CHECKPOINT).unlink(missing_ok=True)
    return result


def _check_init(config: TrainConfig, folder: FramesFolder) -> str | None:
    """Check that the encoder to start from fits, and return the SHA-256 of its weights.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If its networks have other sizes, or its frames were made in another way.
    """
    if config.init_from is None:
        return None
    path = find_encoder(config.init_from)[1]
    start = read_config(path)
    if start.vae != config.vae:
        channels = " ".join(map(str, start.vae.channels))
        raise ValueError(
            f"The encoder {config.init_from} has latent_dim {start.vae.latent_dim} and channels "
            f"{start.vae.channels}; this run has {config.latent_dim} and {config.vae.channels}. To start "
            f"from it: --latent-dim {start.vae.latent_dim} --channels {channels}"
        )
    if start.frame_spec != folder.frame_spec:
        raise ValueError(
            f"The encoder {config.init_from} takes frames made with {start.frame_spec}, those in "
            f"{folder} were made with {folder.frame_spec}. Collect frames for it with the same crop."
        )
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()

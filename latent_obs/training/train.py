"""Trains a VAE offline on a frames folder and writes an encoder folder."""

from __future__ import annotations

import platform
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from latent_obs import __version__
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import (
    CALIBRATION_FRAMES,
    EncoderConfig,
    read_config,
    write_encoder_folder,
)
from latent_obs.encoders.resolve import resolve
from latent_obs.progress import progress_bar, stop_on_signals
from latent_obs.training.batch_norm import fold
from latent_obs.training.checkpoint import CHECKPOINT
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import choose_precision, launch, make_fabric
from latent_obs.training.held_out import evaluate_vae, latent_statistics
from latent_obs.training.history import check_tensorboard
from latent_obs.training.run import TrainingRun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Fewer active units than this means that the latent says next to nothing about the frame.
COLLAPSED_BELOW = 2


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
        >>> config = TrainConfig("frames", steps=2_000, latent_dim=16)
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
    precision, _ = choose_precision(config.precision)
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
    metrics = evaluate_vae(vae, run.held_out_sample)
    metrics["collapsed"] = metrics["active_units"] < COLLAPSED_BELOW
    device = run.fabric.device.type
    result = EncoderConfig(
        frame_spec=folder.frame_spec,
        vae=config.vae,
        latents=latent_statistics(vae, run.sample),
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
    write_encoder_folder(config.out, result, vae.tensors(), run.sample[:CALIBRATION_FRAMES])
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
    found = resolve(config.init_from)
    start = found.config
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
    return found.sha256()

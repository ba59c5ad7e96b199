"""Trains a VAE offline on a frames folder and writes an encoder folder."""

from __future__ import annotations

import contextlib
import platform
import warnings
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console

from latent_obs import __version__
from latent_obs.data.folder import FramesFolder
from latent_obs.data.storage import locked
from latent_obs.encoders.folder import (
    CALIBRATION_FRAMES,
    EncoderConfig,
    read_config,
    write_encoder_folder,
)
from latent_obs.encoders.provenance import Metrics, Provenance, Run
from latent_obs.encoders.resolve import resolve
from latent_obs.progress import progress_bar, stop_on_signals
from latent_obs.training.batch_norm import fold
from latent_obs.training.checkpoint import checkpointed_run, remove_checkpoint
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import choose_precision, join, launch, make_fabric, read_once
from latent_obs.training.held_out import evaluate_vae, latent_statistics
from latent_obs.training.history import check_tensorboard
from latent_obs.training.pace import Pace, StepsLeft
from latent_obs.training.places import LOUDNESS
from latent_obs.training.run import TrainingRun

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Fewer active units than this means that the latent says next to nothing about the frame.
COLLAPSED_BELOW = 2
# The card that a recipe writes beside an encoder.
CARD_FILES = ("README.md", "card.png", "labels.json", "reports.json")


def train_vae(
    config: TrainConfig, *, progress: bool = True, steps_left: StepsLeft | None = None
) -> EncoderConfig:
    """Train a VAE and write the encoder folder ``config.out``.

    A checkpoint is written about twice a minute and after Ctrl-C; the same call resumes from
    it. A finished encoder of the same settings and data is kept as it is. One run at a time writes to a
    folder.

    With several ``devices`` or under ``torchrun``, each batch is shared out between processes, which
    take the same steps as one process would. Each of them reads its part of ``config.data``. The first
    one also opens the folder and draws samples, for all of them, and it alone writes ``config.out``.

    Args:
        config: Data, networks, objective and optimiser.
        progress: Show a progress bar on standard error.
        steps_left: For one process. Called with the steps a second that it takes and with the steps taken,
            after the first ones and again after each quarter of what is left, it returns how many to take;
            ``config.steps`` is a first guess then. PyTorch gets, and keeps, the number of threads that is
            fastest. A call goes on with an interrupted run if its ``config.steps`` is what
            :func:`steps_of` returns. ``None`` (default): ``config.steps`` are taken.

    Returns:
        The content of the folder's ``config.json``: provenance, statistics of the latents, and metrics on
        held-out episodes.

    Raises:
        FileNotFoundError: If there are no frames, or no encoder to start from.
        ValueError: If the frames cannot be split by episode, the encoder to start from does not
            fit, ``out`` holds another encoder, or another process is writing there.
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
    precision, because = choose_precision(config.precision)
    fabric = make_fabric(config.devices, config.num_nodes, precision)
    join(fabric)
    folder = read_once(fabric, lambda: _open(config))
    run = Run(config=config.to_json(), data=folder.identity, init_from=_check_init(config, folder))
    if config.tensorboard:
        check_tensorboard()
    if (finished := _finished(config, run)) is not None:
        return finished
    config.out.mkdir(parents=True, exist_ok=True)
    # Of the processes that torchrun started, each comes here; the first one writes.
    writes = fabric.is_global_zero
    with locked(config.out) if writes else contextlib.nullcontext():
        # An equal run may have finished while this one waited for the lock. Where torchrun started several
        # processes, the others would not see that.
        if fabric.world_size == 1 and (finished := _finished(config, run)) is not None:
            return finished
        if progress and writes:
            console = Console(stderr=True, markup=False, highlight=False)
            console.print(f"Training in {precision}, because {because}.", soft_wrap=True)
        result = launch(fabric, _train, config, folder, run, (precision, because), progress, steps_left)
    if result is None:
        raise KeyboardInterrupt
    if result.metrics.collapsed and fabric.is_global_zero:
        cure = "Train" if config.objective == "calibrated" else "Use --objective calibrated, train"
        warnings.warn(
            f"POSTERIOR COLLAPSE: the encoder {config.out} has {result.metrics.active_units} active "
            f"units of {config.latent_dim}, so its latents say next to nothing about the frame. "
            f"{cure} longer, lower --beta or raise --free-bits.",
            RuntimeWarning,
            stacklevel=2,
        )
    return result


def steps_of(out: Path) -> int | None:
    """Return how many steps the run in an encoder folder is to take; ``None`` where there is no run.

    Raises:
        ValueError: If its checkpoint, or what is there already of the encoder, is damaged.
    """
    run = run_of(out)
    steps = None if run is None else run.config.get("steps")
    return steps if isinstance(steps, int) else None


def run_of(out: Path) -> Run | None:
    """Return the run in an encoder folder, finished or not; ``None`` where there is none.

    Raises:
        ValueError: As :func:`steps_of` raises it.
    """
    return read_config(out).provenance.run if (out / "config.json").exists() else checkpointed_run(out)


def _open(config: TrainConfig) -> FramesFolder:
    """Open the frames folder and read its episode numbers; refuse what cannot be split."""
    folder = FramesFolder(config.data)
    folder.split(config.validation, config.seed)
    return folder


def _finished(config: TrainConfig, run: Run) -> EncoderConfig | None:
    """Return the encoder that is in ``config.out`` already; ``None`` if there is none, or it is replaced.

    Raises:
        ValueError: If it is another run's and must not be replaced.
    """
    if config.overwrite or not (config.out / "config.json").exists():
        return None
    found = read_config(config.out)
    if found.provenance.run != run:
        raise ValueError(
            f"{config.out} already holds an encoder trained with other settings or frames. "
            "Choose another --out, or --overwrite it."
        )
    remove_checkpoint(config.out, run)  # left by a process that was killed just after its last write
    return found


def _train(
    fabric: Fabric,
    config: TrainConfig,
    folder: FramesFolder,
    run: Run,
    precision: tuple[str, str],
    progress: bool,
    steps_left: StepsLeft | None,
) -> EncoderConfig | None:
    """Train in one of the processes; ``None`` when it was told to stop."""
    pace = None if steps_left is None else Pace(steps_left, torch.get_num_threads())
    training = TrainingRun(fabric, config, folder, run)
    shown = progress and fabric.is_global_zero
    bar_of = progress_bar("train", config.steps, "frames", shown, training.step, config.batch_size)
    with bar_of as bar, stop_on_signals() as stop:
        stopped = training.train(bar, stop, pace)
    training.save_checkpoint()  # also when it is done: what follows may be interrupted too
    if stopped:
        return None
    finished = _write_encoder(training, precision) if fabric.is_global_zero else None
    return fabric.broadcast(finished)


def _write_encoder(training: TrainingRun, precision: tuple[str, str]) -> EncoderConfig:
    """Measure the encoder on held-out episodes and publish its folder."""
    config, device = training.config, training.fabric.device.type
    assert training.monitor is not None
    if training.best:
        training.vae.load_state_dict(training.best)
    vae = fold(training.vae).requires_grad_(False)
    measured = evaluate_vae(vae, training.held_out_sample)
    collapsed = measured["active_units"] < COLLAPSED_BELOW
    statistics = latent_statistics(vae, training.sample)
    louder = 0 if training.places is None else len(training.places.names)
    libraries = {name: version(name) for name in ("torch", "lightning-fabric", "numpy")}
    result = EncoderConfig(
        frame_spec=training.folder.frame_spec,
        vae=config.vae,
        latents=statistics,
        scaled_as=_louder(statistics, louder) if louder else None,
        source=training.folder.source,
        provenance=Provenance(
            run=training.run,
            steps=training.step,
            kept_step=training.best_step if training.best else training.step,
            collapsed=collapsed,
            seconds=round(training.seconds, 1),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=f"{platform.machine()}, {device}, {torch.get_num_threads()} threads",
            processes=training.fabric.world_size,
            precision=precision[0],
            precision_because=precision[1],
            libraries={"latent_obs": __version__, **libraries},
            places=None if training.places is None else training.places.record(),
        ),
        metrics=Metrics.from_json({**measured, "collapsed": collapsed}),
    )
    training.monitor.write_history()
    training.monitor.close()
    remove_card(config.out)
    result = write_encoder_folder(config.out, result, vae.tensors(), training.sample[:CALIBRATION_FRAMES])
    remove_checkpoint(config.out, training.run)
    return result


def _louder(statistics: dict[str, list[float]], count: int) -> dict[str, list[float]]:
    """Return what scales latents so that the first ``count`` dimensions are ``LOUDNESS`` times louder."""
    # A dimension without variance, whose std is 0.1 or less, is not scaled, and none must look like one.
    first = [max(std / LOUDNESS, min(std, 0.101)) for std in statistics["std"][:count]]
    return {"mean": statistics["mean"], "std": first + statistics["std"][count:]}


def remove_card(out: Path) -> None:
    """Remove the card of an encoder that is about to be replaced: its figures are not the new one's."""
    if not (out / "config.json").exists():
        return
    for name in CARD_FILES:
        path = out / name
        # Somebody's own README.md says nothing of this package in its first lines.
        if name != "README.md" or (path.is_file() and b"library_name: latent_obs" in path.read_bytes()[:500]):
            path.unlink(missing_ok=True)


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

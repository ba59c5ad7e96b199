"""The report card of an encoder: numbers measured on frames it was not trained on."""

from __future__ import annotations

import importlib.util
import statistics
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.folder import EncoderConfig
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.encoders.runtimes import Backend
from latent_obs.evaluation.baselines import Code, fit_baselines
from latent_obs.evaluation.labelling import measure_labels
from latent_obs.evaluation.labels import Labels, read_labels
from latent_obs.evaluation.positions import position_r2
from latent_obs.evaluation.report import Measured, ReportCard, Scores, find_faults
from latent_obs.evaluation.selection import (
    MIN_FRAMES,
    Selection,
    evaluation_split,
    held_out_episodes,
    select_frames,
)
from latent_obs.evaluation.variables import observe
from latent_obs.measures import (
    Foreground,
    Residuals,
    changing_r2,
    changing_residuals,
    compare_latents,
    total_r2,
)
from latent_obs.training.held_out import evaluate_vae, latent_statistics
from latent_obs.vae import VAE, latents, load_vae, reconstruct

# What dimensions do is measured on so many frames.
LABEL_FRAMES = 2000


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure an encoder on frames it was not trained on.

    ``latent-obs evaluate --help`` lists the options and says what each means.

    Example:
        >>> EvaluateConfig("pong-v0", "frames").limit
        4096
    """

    encoder: str | Path
    """name of a bundled encoder, encoder folder written by `latent-obs train`, or hf://USER/NAME"""
    frames: str | Path = Path("frames")
    """frames folder; if the encoder was trained on it, its held-out episodes are measured, else half of its
    episodes; baselines are fitted on the rest"""
    out: Path = Path("report")
    """folder for the report card: card.html and card.json"""
    limit: int = 4096
    """frames to measure on, spread over the episodes"""
    probe: bool = False
    """also read an Atari game's RAM from the latents, in the manner of AtariARI; takes minutes"""
    probe_frames: int = 20_000
    """frames of a random agent to collect for the probe"""
    seed: int = 0
    """chooses the frames"""

    def __post_init__(self) -> None:
        if self.limit < MIN_FRAMES:
            raise ValueError(f"limit must be at least {MIN_FRAMES}, got {self.limit}.")


@dataclass(frozen=True)
class Evaluation:
    """A report card, and what its page shows beside the figures.

    Attributes:
        card: The figures.
        vae: The model.
        encoder: Content of its ``config.json``.
        selection: The frames it was measured on.
        residuals: Errors of its reconstructions of ``selection.frames``.
        labels: What each dimension does, where it could be measured.
    """

    card: ReportCard
    vae: VAE
    encoder: EncoderConfig
    selection: Selection
    residuals: Residuals
    labels: Labels | None = None


def evaluate_encoder(config: EvaluateConfig, *, progress: bool = False) -> ReportCard:
    """Measure an encoder folder on a frames folder, beside the baselines it must beat.

    Of the frames it was trained on, the held-out episodes are measured, and the baselines are fitted on
    the others. Of any other folder, half of the episodes are measured, and the baselines are fitted on the
    rest.

    Args:
        config: Encoder, frames and how many of them.
        progress: Show the probe's progress on standard error.

    Returns:
        The report card; its ``to_json()`` is what ``docs/formats.md`` describes.

    Raises:
        FileNotFoundError: If either folder is missing.
        ValueError: If either is damaged, the frames were made with another frame spec than the
            encoder's, are too few, hold a single episode or never change, or the probe does not know the
            game.

    Example:
        >>> evaluate_encoder(EvaluateConfig("pong-v0", "frames")).moving_r2  # doctest: +SKIP
        0.992
    """
    return evaluate(config, progress=progress).card


def evaluate(config: EvaluateConfig, *, progress: bool = False, brief: bool = False) -> Evaluation:
    """Measure as :func:`evaluate_encoder` does, and keep what the card's page shows.

    Args:
        config: Encoder, frames and how many of them.
        progress: Show the probe's progress on standard error.
        brief: Leave out what takes longest: the untrained network, what each dimension does, and how long
            encoding takes.

    Raises:
        FileNotFoundError: As :func:`evaluate_encoder` raises it, like the next.
        ValueError: If something is damaged or too little.
    """
    found, folder = resolve(config.encoder), FramesFolder(config.frames)
    vae, encoder = load_vae(found)
    source = encoder.source if encoder.source.env_id else folder.source
    if config.probe:
        from latent_obs.evaluation.probe import probe_codes, probed_game

        probed_game(source)
    fitted, measured = evaluation_split(found, folder)
    selection = select_frames(folder, fitted, measured, config.limit, config.seed)
    frames, foreground = selection.frames, Foreground.of(selection.frames)
    codes = fit_baselines(selection.others, encoder.vae, ("pca",) if brief else ("pca", "random"))
    encodings = {"encoder": partial(latents, vae)} | {name: code.encode for name, code in codes.items()}
    positions = position_r2(selection.others, frames, encodings)
    decode = partial(reconstruct, vae)
    residuals = Residuals.of(frames, decode, foreground)
    changes = changing_residuals(selection.stretches, decode)
    labels = None if brief else _labels(found, vae, folder)
    dimensions, drift = compare_latents(encoder.latents, latent_statistics(vae, frames))
    card = ReportCard(
        encoder=str(config.encoder),
        env_id=encoder.source.env_id,
        latent_dim=encoder.vae.latent_dim,
        data=Measured(
            held_out=held_out_episodes(found, folder) is not None,
            episodes=len(measured),
            baseline_episodes=len(fitted),
            folder=str(folder),
            collection=folder.identity,
        ),
        **evaluate_vae(vae, frames, residuals.metrics(foreground)),
        changing_r2=total_r2(changes),
        position_r2=positions["encoder"],
        by_episode={
            "moving_r2": residuals.moving_r2_by_episode(selection.episodes),
            "changing_r2": [1 - residual / energy for residual, energy in changes if energy],
        },
        baselines={
            name: _scores(code, selection, foreground, positions[name]) for name, code in codes.items()
        },
        dimensions=dimensions,
        drift=drift,
        encode_us={
            backend: encode_time(load_encoder(found, backend=backend), frames[0])
            for backend in (() if brief else installed_backends())
        },
        labels=None if labels is None else labels.summary(),
        provenance=encoder.provenance.to_json(),
        created=datetime.now(timezone.utc).date().isoformat(),
    )
    if config.probe:
        probe = probe_codes(source, encoder.frame_spec, encodings, config.probe_frames, progress=progress)
        card = replace(card, probe=probe)
    return Evaluation(replace(card, warnings=find_faults(card)), vae, encoder, selection, residuals, labels)


def _labels(found: EncoderFolder, vae: VAE, folder: FramesFolder) -> Labels | None:
    """Return the labels that the encoder's folder holds, or measure them."""
    config = found.config
    if (known := read_labels(found.path, config.vae.latent_dim)) is not None:
        return known
    if not config.source.env_id:
        found = replace(found, config=replace(config, source=folder.source))
    observed = observe(found, [folder], LABEL_FRAMES)
    return None if observed is None else measure_labels(vae, config, observed, walks=False)


def _scores(code: Code, selection: Selection, foreground: Foreground, positions: float | None) -> Scores:
    """Measure a baseline as the encoder is measured."""
    residuals = Residuals.of(selection.frames, code.reconstruct, foreground)
    return Scores(
        **residuals.metrics(foreground),
        changing_r2=changing_r2(selection.stretches, code.reconstruct),
        position_r2=positions,
    )


def installed_backends() -> list[Backend]:
    """Return the backends that can run here; torch is always one."""
    return [*(("openvino",) if importlib.util.find_spec("openvino") else ()), "torch"]


def encode_time(encoder: Encoder, frame: npt.NDArray[np.uint8], calls: int = 200) -> float:
    """Return the median time in microseconds of encoding one frame."""
    for _ in range(20):
        encoder(frame)
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        encoder(frame)
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1e6

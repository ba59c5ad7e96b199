"""The report card of an encoder: numbers measured on frames it was not trained on."""

from __future__ import annotations

import importlib.util
import statistics
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import Backend, Encoder, load_encoder
from latent_obs.encoders.folder import VAEConfig
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.evaluation.baselines import Code, pca_code, random_code
from latent_obs.evaluation.positions import position_r2
from latent_obs.measures import Foreground, changing_r2, compare_latents, reconstruction_metrics
from latent_obs.training.held_out import evaluate_vae, latent_statistics
from latent_obs.vae import latents, load_vae, reconstruct

# Consecutive frames read of an episode to see what changes.
STRETCH = 256


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure an encoder on frames it was not trained on."""

    encoder: str | Path
    """name of a bundled encoder, encoder folder written by `latent-obs train`, or hf://USER/NAME"""
    frames: str | Path = Path("frames")
    """frames folder; of the one it was trained on, only the held-out episodes are used"""
    out: Path = Path("report")
    """folder for the report card: card.html and card.json"""
    limit: int = 4096
    """frames to measure on, spread over the folder"""
    probe: bool = False
    """also read an Atari game's RAM from the latents, in the manner of AtariARI; takes minutes"""
    probe_frames: int = 20_000
    """frames of a random agent to collect for the probe"""
    seed: int = 0
    """chooses the frames"""


def evaluate_encoder(config: EvaluateConfig, *, progress: bool = False) -> dict[str, Any]:
    """Measure an encoder folder on a frames folder, beside the floors it must beat.

    Of the frames it was trained on, the held-out episodes are measured, and the floors are fitted on
    the others. Of any other folder, half of the episodes are measured, and the floors are fitted on the rest.

    Args:
        config: Encoder, frames and how many of them.
        progress: Show the probe's progress on standard error.

    Returns:
        The report card, as JSON values; ``docs/formats.md`` describes it.

    Raises:
        FileNotFoundError: If either folder is missing.
        ValueError: If either is damaged, the frames were made with another frame spec than the
            encoder's, hold a single episode, or the probe does not know the game.
    """
    found, folder = resolve(config.encoder), FramesFolder(config.frames)
    vae, encoder = load_vae(found)
    source = encoder.source if encoder.source.env_id else folder.source
    if config.probe:
        from latent_obs.evaluation.probe import probe_codes, probed_game

        probed_game(source)
    fitted, measured = evaluation_split(found, folder)
    frames = folder.sample(config.limit, measured, config.seed)
    stretches = [folder.load([episode], STRETCH) for episode in measured[:8]]
    others = folder.sample(config.limit, fitted, config.seed)
    codes, foreground = floors(others, encoder.vae), Foreground.of(frames)
    encodings = {"encoder": partial(latents, vae)} | {name: code.encode for name, code in codes.items()}
    positions = position_r2(others, frames, encodings)
    report = {
        "format": "latent_obs.report_card",
        "version": 1,
        "encoder": str(config.encoder),
        "env_id": encoder.source.env_id,
        "latent_dim": encoder.vae.latent_dim,
        "data": {
            "folder": str(config.frames),
            "held_out": held_out_episodes(found, folder) is not None,
            "episodes": len(measured),
            "floor_episodes": len(fitted),
            **folder.identity,
        },
        **evaluate_vae(vae, frames, foreground),
        "changing_r2": changing_r2(stretches, partial(reconstruct, vae)),
        "position_r2": positions["encoder"],
        "floors": {
            name: {
                **reconstruction_metrics(frames, code.reconstruct, foreground),
                "changing_r2": changing_r2(stretches, code.reconstruct),
                "position_r2": positions[name],
            }
            for name, code in codes.items()
        },
        **compare_latents(encoder.latents, latent_statistics(vae, frames)),
        "encode_us": {
            backend: encode_time(load_encoder(found, backend=backend), frames[0])
            for backend in installed_backends()
        },
        "probe": None,
        "provenance": encoder.provenance.to_json(),
    }
    if config.probe:
        report["probe"] = probe_codes(
            source, encoder.frame_spec, encodings, config.probe_frames, progress=progress
        )
    report["warnings"] = find_faults(report)
    return report


def floors(frames: npt.NDArray[np.uint8], config: VAEConfig) -> dict[str, Code]:
    """Fit what an encoder of this shape must beat on frames that are not measured on."""
    return {"pca": pca_code(frames, config.latent_dim), "random": random_code(frames, config)}


def evaluation_split(encoder: EncoderFolder, folder: FramesFolder) -> tuple[list[int], list[int]]:
    """Return the episodes to fit floors on and those to measure on, without a common one."""
    held_out = held_out_episodes(encoder, folder)
    if held_out is None:
        return folder.split(0.5)
    return [episode for episode in folder.episodes() if episode not in set(held_out)], held_out


def find_faults(report: dict[str, Any]) -> list[str]:
    """Say what a reader of the card must not miss, the worst first."""
    faults = []
    if report["active_units"] < 2:
        faults.append(
            f"COLLAPSED: {report['active_units']} of {report['latent_dim']} units are active, so the latent "
            "says next to nothing about the frame."
        )
    scores = {
        "moving-object R²": (report["moving_r2"], report["floors"]["pca"]["moving_r2"]),
        "R² of what changes": (report["changing_r2"], report["floors"]["pca"]["changing_r2"]),
        "R² of rare colours": (report["rare_r2"], report["floors"]["pca"]["rare_r2"]),
        "PSNR": (report["psnr"], report["floors"]["pca"]["psnr"]),
    }
    if report["position_r2"] is not None:
        scores["linear R² of positions"] = report["position_r2"], report["floors"]["pca"]["position_r2"]
    for reader, table in ((report["probe"] or {}).get("readers") or {}).items():
        scores[f"the {reader} probe's F1"] = table["encoder"]["f1"], table["pca"]["f1"]
    lost = [f"{name} ({own:.3g} against {pca:.3g})" for name, (own, pca) in scores.items() if own <= pca]
    if lost:
        faults.append(
            f"BEATEN BY PCA with {report['latent_dim']} components in {', '.join(lost)}: there, training it "
            "was of no use."
        )
    drift = report["drift"]
    if drift["drifted"]:
        faults.append(
            "DRIFT: these frames are not what it was trained on. The latents' means are "
            f"{drift['shift']:.2f} standard deviations off and their spread is {drift['spread']:.2f} times "
            "that of training."
        )
    if report["foreground"] > 0.5:
        faults.append(
            f"MOVING CAMERA: {report['foreground']:.0%} of the pixels differ from the per-pixel median, so "
            "moving-object R² is about the whole picture here. Read the R² of what changes instead."
        )
    return faults


def installed_backends() -> list[Backend]:
    """Return the backends that can run here; torch is always one."""
    return [*(("openvino",) if importlib.util.find_spec("openvino") else ()), "torch"]


def held_out_episodes(encoder: EncoderFolder, folder: FramesFolder) -> list[int] | None:
    """Return the episodes that training held out; ``None``, all, for a folder it did not use.

    Raises:
        ValueError: If the frames were made with another frame spec than the encoder's.
    """
    config = encoder.config
    if config.frame_spec != folder.frame_spec:
        raise ValueError(
            f"The encoder {encoder.ref} takes frames made with {config.frame_spec}, those in {folder} "
            f"were made with {folder.frame_spec}. Collect frames for it with the same crop."
        )
    run = config.provenance.get("run", {})
    if run.get("data") != folder.identity:
        return None
    return folder.split(run["config"]["validation"], run["config"]["seed"])[1]


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

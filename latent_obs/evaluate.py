"""The report card of an encoder: numbers measured on frames it was not trained on."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latent_obs.dataset import FramesFolder
from latent_obs.encoder import Encoder, find_encoder, load_encoder
from latent_obs.encoder_folder import ACTIVE_VARIANCE, EncoderConfig, read_config, read_tensors
from latent_obs.frames import FRAME_BYTES
from latent_obs.vae import MIN_VARIANCE, VAE, gaussian_nll, terms


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure an encoder on frames it was not trained on."""

    encoder: str | Path
    """name of a bundled encoder, or encoder folder written by `latent-obs train`"""
    frames: str | Path = Path("frames")
    """frames folder; of the one it was trained on, only the held-out episodes are used"""
    limit: int = 4096
    """frames to measure on, spread over the folder"""
    seed: int = 0
    """chooses the frames"""


def evaluate_encoder(config: EvaluateConfig) -> dict[str, Any]:
    """Measure an encoder folder on a frames folder.

    Args:
        config: Encoder, frames and how many of them.

    Returns:
        The dictionary of :func:`evaluate_vae`, and ``encode_us``: median microseconds to encode
        one frame with one thread, by backend.

    Raises:
        FileNotFoundError: If either folder is missing.
        ValueError: If either is damaged, or the frames were made with another frame spec than
            the encoder's.
    """
    vae, folder = load_vae(config.encoder)[0], FramesFolder(config.frames)
    frames = folder.sample(config.limit, held_out_episodes(config.encoder, folder), config.seed)
    report = evaluate_vae(vae, frames)
    report["encode_us"] = {
        backend: encode_time(load_encoder(config.encoder, backend=backend), frames[0])
        for backend in ("openvino", "torch")
    }
    return report


def held_out_episodes(encoder: str | Path, folder: FramesFolder) -> list[int] | None:
    """Return the episodes that training held out; ``None``, all, for a folder it did not use.

    Raises:
        ValueError: If the frames were made with another frame spec than the encoder's.
    """
    config = read_config(find_encoder(encoder)[1])
    if config.frame_spec != folder.frame_spec:
        raise ValueError(
            f"The encoder {encoder} takes frames made with {config.frame_spec}, those in {folder} "
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


def load_vae(ref: str | Path) -> tuple[VAE, EncoderConfig]:
    """Load both halves of a saved VAE as a torch module, to look at or to fine-tune.

    Args:
        ref: Name of a bundled encoder, or path of an encoder folder.

    Raises:
        FileNotFoundError: If there is no such encoder, or it is incomplete.
        ValueError: If it is damaged.
    """
    _, folder = find_encoder(ref)
    config = read_config(folder)
    return VAE.from_tensors(config.vae, read_tensors(folder, config)), config


@torch.no_grad()
def latent_statistics(vae: VAE, frames: npt.NDArray[np.uint8]) -> dict[str, list[float]]:
    """Return per-dimension ``mean`` and ``std`` of the latent and its mean ``kl`` in nats.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).
    """
    parts = _all_terms(vae, frames)
    mean, kl = parts["mean"], parts["kl"]
    return {
        "mean": [float(x) for x in mean.mean(0)],
        "std": [float(x) for x in mean.std(0)],
        "kl": [float(x) for x in kl.mean(0)],
    }


@torch.no_grad()
def evaluate_vae(vae: VAE, frames: npt.NDArray[np.uint8]) -> dict[str, Any]:
    """Measure a VAE on frames it has not seen.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3), from held-out episodes.

    Returns:
        A dictionary with

        - ``frames``: N.
        - ``negative_elbo``: nats per frame, the decoder's density taken over 8-bit levels.
        - ``bits_per_dim``: the same over 12,288 ln 2.
        - ``reconstruction``, ``kl``: its two parts in nats per frame.
        - ``active_units``: dimensions whose mean varies by more than 0.01 over the frames.
        - ``psnr``: of the reconstruction from the mean, in dB.
        - ``moving_r2``: 1 - residual energy / energy over the pixels that differ from the
          per-pixel median frame. A lost ball shows here and hardly in PSNR; 0 means that
          decoding is no better than showing the median. Frames that differ in more than half
          of their pixels (a flash, another scene) are left out where they are the exception:
          one of them outweighs thousands of balls.
    """
    sampled, median = _all_terms(vae, frames, sample=True), np.median(frames, 0)
    variance = vae.decoder_variance.cpu().double()
    reconstruction = float(gaussian_nll(torch.from_numpy(sampled["squared_error"]), variance).mean())
    kl = float(sampled["kl"].sum(1).mean())
    residual = energy = squared = 0.0
    share = foreground_share(frames, median)
    usual = share <= 0.5 if np.median(share) <= 0.5 else np.ones(len(frames), bool)
    for start in range(0, len(frames), 256):
        batch = frames[start : start + 256].astype(np.float32)
        error = np.square(reconstruct(vae, frames[start : start + 256]).astype(np.float32) - batch)
        moving = (batch != median).any(-1) & usual[start : start + 256, None, None]
        squared += float(error.sum(dtype=np.float64))
        residual += float(error[moving].sum(dtype=np.float64))
        energy += float(np.square(batch - median)[moving].sum(dtype=np.float64))
    mse = max(squared / frames.size, MIN_VARIANCE * 255**2)
    return {
        "frames": len(frames),
        "negative_elbo": reconstruction + kl,
        "bits_per_dim": (reconstruction + kl) / (FRAME_BYTES * math.log(2)),
        "reconstruction": reconstruction,
        "kl": kl,
        "active_units": int((sampled["mean"].var(0) > ACTIVE_VARIANCE).sum()),
        "psnr": 10 * math.log10(255**2 / mse),
        "moving_r2": 1 - residual / energy if energy else 1.0,
    }


def foreground_share(frames: npt.NDArray[np.uint8], median: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return, for each frame, the share of its pixels that differ from ``median``; shape (N,)."""
    return np.array([(frame != median).any(-1).mean() for frame in frames])


@torch.no_grad()
def reconstruct(vae: VAE, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Decode the mean of each frame's posterior.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).

    Returns:
        ``uint8`` frames of the same shape.
    """
    return to_frames(vae.decode(vae.encode(_tensor(vae, frames))[0]))


def to_frames(images: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Round decoded images in [0, 1] to ``uint8`` frames."""
    rounded: npt.NDArray[np.uint8] = (images * 255).round().to(torch.uint8).cpu().numpy()
    return rounded


def _tensor(vae: VAE, frames: npt.NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(frames)).to(vae.output_bias.device)


def _all_terms(vae: VAE, frames: npt.NDArray[np.uint8], sample: bool = False) -> dict[str, Any]:
    generator = torch.Generator(vae.output_bias.device).manual_seed(0)
    rows: dict[str, list[npt.NDArray[np.float32]]] = {"squared_error": [], "kl": [], "mean": []}
    for start in range(0, len(frames), 256):
        batch = _tensor(vae, frames[start : start + 256])
        parts = terms(vae, batch, sample=sample, generator=generator)
        for name, values in rows.items():
            values.append(getattr(parts, name).cpu().numpy())
    return {name: np.concatenate(values) for name, values in rows.items()}

"""Encodes a frames folder once, so that a dynamics model can train on latents alone."""

from __future__ import annotations

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_obs.collecting.encode_shard import Job, encode_shard
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import FORMAT, VERSION, LatentsFolder
from latent_obs.data.parquet import staged_folder
from latent_obs.data.storage import name_of
from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.resolve import encoder_name, resolve
from latent_obs.progress import progress_bar, stop_on_signals


@dataclass(frozen=True)
class EncodeConfig:
    """Encode a frames folder into a latents folder, for dynamics models."""

    frames: str | Path
    """frames folder"""
    encoder: str
    """name of a bundled encoder, encoder folder, or hf://USER/NAME"""
    out: Path = Path("latents")
    """latents folder to write; an interrupted run of the same command goes on"""
    num_threads: int | None = None
    """threads of the encoder; default: one per core, and with `ray` one per task"""
    ray: bool = False
    """encode in Ray tasks, on all machines of the cluster; frames and `out` must be reachable from each"""


def encode_frames(config: EncodeConfig, *, progress: bool = True) -> LatentsFolder:
    """Encode every frame of a folder to mean and log-variance of its posterior.

    The latents are stored as the VAE has them, in the precision that :func:`latent_obs.load_encoder`
    chooses for acting. Wrappers scale them unless told otherwise: ``LatentsFolder(out, normalize=True)``
    reads the folder with that scaling, so that a dynamics model learns from what an agent observes.

    Args:
        config: Frames, encoder and where to.
        progress: Show a progress bar on standard error.

    Returns:
        The latents folder; one that was finished before with the same frames and encoder is kept.

    Raises:
        FileNotFoundError: If frames or encoder are missing.
        ValueError: If the frames were made with another frame spec than the encoder's.
        FileExistsError: If ``out`` holds something else.
        ValueError: If another process is writing to ``out``.
        KeyboardInterrupt: After Ctrl-C; the same call goes on with the shard it was in.
        ImportError: If Ray is asked for and not installed.

    Warns:
        UserWarning: If the encoder was trained on another environment.
    """
    folder = FramesFolder(config.frames)
    threads = config.num_threads or (1 if config.ray else os.cpu_count() or 1)
    encoder = load_encoder(config.encoder, num_threads=threads)
    if encoder.frame_spec != folder.frame_spec:
        raise ValueError(
            f"The encoder {config.encoder} takes frames made with {encoder.frame_spec}, those in "
            f"{folder} were made with {folder.frame_spec}. Collect frames for it with the same crop."
        )
    known = encoder.config.source.env_ids
    if known and not set(folder.source.env_ids) <= set(known):
        warnings.warn(
            f"The encoder {config.encoder} was trained on {encoder.config.source.env_id}, the frames come "
            f"from {folder.source.env_id}: its latents may say little about them.",
            UserWarning,
            stacklevel=2,
        )
    shift, scale = encoder.config.scaling
    about = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": _describe(encoder),
        "frames": folder.identity,
        "frame_spec": folder.frame_spec.to_json(),
        "source": folder.source.to_json(),
        "scaling": {"mean": shift.tolist(), "std": scale.tolist()},
    }
    if any(config.out.glob("*.parquet")):
        finished = LatentsFolder(config.out)
        if len(finished) == len(folder) and finished.metadata.items() <= about.items():
            return finished
    with (
        staged_folder(config.out, about) as staging,
        progress_bar("encode", len(folder), "frames", progress) as bar,
        stop_on_signals() as stop,
    ):
        todo: list[Job] = []
        for shard in folder.shards:
            path = staging / name_of(shard.path)
            if path.exists():
                bar.advance(shard.rows)
            else:
                todo.append((shard, path))
        if config.ray:
            from latent_obs.collecting.encode_on_ray import encode_in_tasks

            encode_in_tasks(encoder, todo, about, bar.advance, stop)
        for shard, path in [] if config.ray else todo:
            with contextlib.closing(encode_shard(encoder, shard, path, about)) as row_groups:
                for rows in row_groups:
                    bar.advance(rows)
                    if stop.is_set():
                        raise KeyboardInterrupt
    return LatentsFolder(config.out)


def _describe(encoder: Encoder) -> dict[str, Any]:
    """Return what tells one encoder from another, and how it ran."""
    return {
        "name": encoder_name(encoder.ref),
        "sha256": resolve(encoder.ref).sha256(),
        "latent_dim": encoder.latent_dim,
        "backend": encoder.backend,
        "precision": encoder.precision,
        "source": encoder.config.source.to_json(),
    }

"""Encodes a frames folder once, so that a dynamics model can train on latents alone."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import FORMAT, ROW_GROUP, VERSION, LatentsFolder, latents_schema
from latent_obs.data.parquet import TableWriter, staged_folder
from latent_obs.data.shards import Shard, read_group, read_steps
from latent_obs.data.storage import name_of
from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.resolve import encoder_name, resolve
from latent_obs.frames import Frames
from latent_obs.progress import progress_bar, stop_on_signals

Job = tuple[Shard, Path]  # frames, and where their latents go
_BATCH = 64
_STEPS = ["action", "reward", "terminated", "truncated", "episode", "step"]


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


def encode_shard(
    encoder: Encoder, shard: Shard, path: Path, about: dict[str, Any]
) -> Generator[int, None, None]:
    """Encode one shard, which appears under its name when it is whole.

    Args:
        encoder: The encoder.
        shard: The frames.
        path: The file to write.
        about: What the file says of itself, but for the shard.

    Yields:
        The number of frames after each row group.
    """
    with shard.open() as file:
        schema = latents_schema(encoder.latent_dim, file.schema_arrow.field("action").type)
    options = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": ["reward", "episode"],
        # Random numbers do not compress, but their sign and exponent bytes do.
        "use_byte_stream_split": [f"{name}.list.element" for name in ("mean", "log_variance")],
        "write_page_checksum": True,
    }
    metadata = {**about, "shard": {k: v for k, v in shard.metadata.items() if k != "rows"}}
    with TableWriter(path, schema, metadata, ROW_GROUP, **options) as writer:
        for frames, steps in _read_ahead(shard):
            writer.write(_encode(encoder, frames, steps, schema))
            yield len(frames)


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


def _read_ahead(shard: Shard) -> Iterator[tuple[Frames, pa.Table]]:
    """Yield frames and steps of each row group, reading one ahead in another thread."""
    with shard.open() as file, ThreadPoolExecutor(1) as reader:

        def read(group: int) -> tuple[Frames, pa.Table]:
            return read_group(file, group), read_steps(file, group, _STEPS)

        ahead = reader.submit(read, 0)
        for group in range(shard.row_groups):
            now = ahead
            if group + 1 < shard.row_groups:
                ahead = reader.submit(read, group + 1)
            yield now.result()


def _encode(encoder: Encoder, frames: Frames, steps: pa.Table, schema: pa.Schema) -> pa.Table:
    batches = [encoder.posterior(frames[i : i + _BATCH]) for i in range(0, len(frames), _BATCH)]
    columns = {name: steps[name] for name in _STEPS}
    for name, parts in zip(("mean", "log_variance"), zip(*batches, strict=True), strict=True):
        flat = pa.array(np.concatenate(parts).reshape(-1))
        columns[name] = pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)

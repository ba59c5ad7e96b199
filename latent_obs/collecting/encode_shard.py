"""Encodes one shard of a frames folder; the same function runs in this process and in Ray tasks."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latent_obs.data.latents import ROW_GROUP, latents_schema
from latent_obs.data.parquet import TableWriter
from latent_obs.data.shards import Shard, read_group, read_steps
from latent_obs.encoders.encoder import Encoder
from latent_obs.frames import Frames

Job = tuple[Shard, Path]  # frames, and where their latents go
_BATCH = 64
_STEPS = ["action", "reward", "terminated", "truncated", "episode", "step"]


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

"""The latents folder: Parquet files of encoded frames with the steps they came from.

``latent-obs encode`` writes it, one file for each shard of a frames folder; ``docs/formats.md``
specifies the columns and the metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latent_obs.data.shards import METADATA_KEY
from latent_obs.encoders.folder import Latents
from latent_obs.frames import FrameSource, FrameSpec

FORMAT = "latent_obs.latents"
VERSION = 1
ROW_GROUP = 8192


def latents_schema(latent_dim: int, action: pa.DataType) -> pa.Schema:
    """Return the columns of a file of latents."""
    latent = pa.list_(pa.field("element", pa.float32(), nullable=False), latent_dim)
    return pa.schema(
        [
            pa.field("mean", latent, nullable=False),
            pa.field("log_variance", latent, nullable=False),
            pa.field("action", action),
            pa.field("reward", pa.float64(), nullable=False),
            pa.field("terminated", pa.bool_(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
            pa.field("episode", pa.int64(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
        ]
    )


@dataclass(frozen=True)
class LatentEpisode:
    """One episode as a sequence of T latents.

    Attributes:
        episode: Its number, that of the frames.
        mean: Posterior means, float32 of shape (T, latent_dim).
        log_variance: Their log-variances, float32 of shape (T, latent_dim).
        action: ``action[t]`` led to ``mean[t]``; ``action[0]``, of the reset, is 0. Shape (T,), or
            (T, size) for actions that are arrays.
        reward: float64, shape (T,); ``reward[0]`` is 0.
        terminated: bool, shape (T,).
        truncated: bool, shape (T,).
    """

    episode: int
    mean: Latents
    log_variance: Latents
    action: npt.NDArray[Any]
    reward: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, rng: np.random.Generator) -> Latents:
        """Draw a latent of each step from its posterior, float32 of shape (T, latent_dim)."""
        noise = rng.standard_normal(self.mean.shape, np.float32)
        drawn: Latents = self.mean + noise * np.exp(self.log_variance / 2)
        return drawn


class LatentsFolder:
    """A folder of latents, read lazily.

    Args:
        path: A folder written by ``latent-obs encode``.

    Attributes:
        path: The folder.
        files: Its Parquet files, in order.
        metadata: What all of them say: ``encoder``, ``frames`` (identity of the frames folder), ...
        frame_spec: How the encoded frames were made.
        source: The environment they came from.

    Raises:
        FileNotFoundError: If there is no such folder, or no latents in it.
        ValueError: If a file is damaged, foreign or of another encoding.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.files = sorted(self.path.glob("*.parquet"))
        if not self.files:
            raise FileNotFoundError(
                f"There are no latents in {self.path}. Make them: latent-obs encode FRAMES ENCODER "
                f"--out {self.path}"
            )
        self._rows, found = [], []
        for file in self.files:
            rows, metadata = _read_metadata(file)
            self._rows.append(rows)
            found.append({name: metadata[name] for name in ("encoder", "frames", "frame_spec", "source")})
            if found[-1] != found[0]:
                raise ValueError(
                    f"{file} was encoded by another encoder or from other frames than {self.files[0].name}. "
                    "Keep them in one folder each."
                )
        self.metadata: dict[str, Any] = found[0]
        self.frame_spec = FrameSpec.from_json(self.metadata["frame_spec"])
        self.source = FrameSource.from_json(self.metadata["source"])

    def __len__(self) -> int:
        """Return the number of latents."""
        return sum(self._rows)

    @property
    def latent_dim(self) -> int:
        """Size of a latent."""
        return int(self.metadata["encoder"]["latent_dim"])

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield one Arrow table a file, with all columns or some."""
        for file in self.files:
            yield pq.read_table(file, columns=columns, page_checksum_verification=True)

    def episodes(self) -> Iterator[LatentEpisode]:
        """Yield the episodes in order, holding one file at a time.

        Raises:
            OSError: If a page is corrupt.
        """
        for table in self.tables():
            numbers = table["episode"].to_numpy()
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))
            arrays = {name: as_array(table[name]) for name in table.column_names}
            for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=True):
                mine = slice(int(start), int(stop))
                yield LatentEpisode(
                    int(numbers[start]),
                    *(
                        arrays[name][mine]
                        for name in ("mean", "log_variance", "action", "reward", "terminated", "truncated")
                    ),
                )


def as_array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Turn a column into an array, lists into rows and nulls into 0."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    if pa.types.is_fixed_size_list(array.type):
        flat = array.values.slice(array.offset * array.type.list_size, len(array) * array.type.list_size)
        rows = flat.fill_null(0).to_numpy(zero_copy_only=False).reshape(-1, array.type.list_size).copy()
        rows[array.is_null().to_numpy(zero_copy_only=False)] = 0
        return np.asarray(rows)
    filled = array.fill_null(0) if array.null_count else array
    return np.asarray(filled.to_numpy(zero_copy_only=False))


def _read_metadata(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({str(error).splitlines()[0]}). Encode again."
        ) from error
    try:
        metadata = json.loads((footer.metadata or {})[METADATA_KEY])
        known = metadata["format"] == FORMAT and metadata["version"] == VERSION
    except (KeyError, ValueError, TypeError):
        known = False
    if not known:
        raise ValueError(
            f"{path} holds no latents of a version that this latent_obs reads. Make latents with "
            "latent-obs encode."
        )
    return footer.num_rows, metadata

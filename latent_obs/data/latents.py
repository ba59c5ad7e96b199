"""The latents folder: Parquet files of encoded frames with the steps they came from.

``latent-obs encode`` writes it, one file for each shard of a frames folder; ``docs/formats.md``
specifies the columns and the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latent_obs.data.shards import (
    MAX_GROUP,
    first_line,
    read_metadata,
    read_source,
    without_nulls,
    wrong_action,
)
from latent_obs.data.storage import open_parquet, refuse_url
from latent_obs.encoders.folder import Latents
from latent_obs.frames import FrameSource, FrameSpec

FORMAT = "latent_obs.latents"
VERSION = 1
ROW_GROUP = 8192
MAX_LATENT = 65_536
# What all files of a folder say alike.
_SHARED = ("encoder", "frames", "frame_spec", "source", "scaling")


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
        normalize: Scale latents as a wrapper with ``normalize=True`` does, to zero mean and unit variance
            over the encoder's training frames. The default leaves them as the VAE has them, which is
            what :func:`latent_obs.load_encoder` and a wrapper with ``normalize=False`` give.

    Attributes:
        path: The folder.
        files: Its Parquet files, in order.
        metadata: What all of them say: ``encoder``, ``frames`` (identity of the frames folder), ...
        normalize: Whether :meth:`episodes` yields scaled latents.
        frame_spec: How the encoded frames were made.
        source: The environment they came from.

    Raises:
        FileNotFoundError: If there is no such folder, or no latents in it.
        ValueError: If it is a URL, a file is damaged, foreign or of another encoding, or ``normalize`` is
            asked of a folder that an earlier version wrote, which does not say how.

    Example:
        >>> for episode in LatentsFolder("latents", normalize=True).episodes():  # doctest: +SKIP
        ...     observations = episode.mean  # what the policy saw, step by step
    """

    def __init__(self, path: str | Path, normalize: bool = False) -> None:
        refuse_url(path, "A latents folder")
        self.path, self.normalize = Path(path), normalize
        self.files = sorted(path for path in self.path.glob("*.parquet") if not path.name.startswith("."))
        if not self.files:
            raise FileNotFoundError(
                f"There are no latents in {self.path}. Make them: latent-obs encode FRAMES ENCODER "
                f"--out {self.path}"
            )
        self._rows, found = [], []
        for file in self.files:
            rows, metadata = _read_metadata(file)
            self._rows.append(rows)
            found.append({name: metadata[name] for name in _SHARED if name in metadata})
            if found[-1] != found[0]:
                raise ValueError(
                    f"{file} was encoded by another encoder or from other frames than {self.files[0].name}. "
                    "Keep them in one folder each."
                )
        self.metadata: dict[str, Any] = found[0]
        self.frame_spec = FrameSpec.from_json(self.metadata["frame_spec"])
        self.source = FrameSource.from_json(self.metadata["source"])
        if normalize:
            if "scaling" not in self.metadata:
                raise ValueError(
                    f"The latents in {self.path} were made by a version that did not store how wrappers "
                    "scale them. Encode the frames again into another folder, or leave normalize out."
                )
            self._shift, self._scale = (np.array(self.metadata["scaling"][n]) for n in ("mean", "std"))

    def __len__(self) -> int:
        """Return the number of latents."""
        return sum(self._rows)

    @property
    def latent_dim(self) -> int:
        """Size of a latent."""
        return int(self.metadata["encoder"]["latent_dim"])

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield one Arrow table a file, with all columns or some, as they are stored: never scaled."""
        for file in self.files:
            with open_parquet(file) as opened:
                yield without_nulls(opened.read(columns=columns))

    def episodes(self) -> Iterator[LatentEpisode]:
        """Yield the episodes in order, holding one file at a time.

        Raises:
            OSError: If a page is corrupt.
        """
        for table in self.tables():
            numbers = table["episode"].to_numpy()
            starts = np.flatnonzero(np.diff(numbers, prepend=-1))
            arrays = {name: as_array(table[name]) for name in table.column_names}
            if self.normalize:
                mean, log_variance = arrays["mean"], arrays["log_variance"]
                arrays["mean"] = ((mean - self._shift) / self._scale).astype(np.float32)
                arrays["log_variance"] = (log_variance - 2 * np.log(self._scale)).astype(np.float32)
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
    """Read a file's footer and check everything in it, so that nothing behind this door has to."""
    try:
        with open_parquet(path) as file:
            footer, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is not a readable Parquet file ({first_line(error)}). Encode again."
        ) from error
    metadata = read_metadata(footer, FORMAT)
    if metadata is None or metadata.get("version") != VERSION:
        raise ValueError(
            f"{path} holds no latents of a version that this latent_obs reads. Make latents with "
            "latent-obs encode."
        )
    try:
        for name in ("encoder", "frames"):
            if not isinstance(metadata.get(name), dict):
                raise ValueError(f"its {name} must be an object, got {str(metadata.get(name))[:60]!r}")
        FrameSpec.from_json(metadata.get("frame_spec"))
        read_source(metadata.get("source"))
        size = metadata["encoder"].get("latent_dim")
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MAX_LATENT:
            raise ValueError(
                f"its latent_dim must be an integer from 1 to {MAX_LATENT:,}, got {str(size)[:60]!r}"
            )
        if wrong := _wrong_columns(schema, size):
            raise ValueError("; ".join(wrong))
        if "scaling" in metadata:
            _check_scaling(metadata["scaling"], size)
        rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
        if sum(rows) != footer.num_rows or not all(0 < count <= MAX_GROUP for count in rows):
            raise ValueError(f"its row groups must hold 1 to {MAX_GROUP:,} rows each, and all of its rows")
    except ValueError as error:
        raise ValueError(f"{path} is no file of a latents folder: {error}. Encode again.") from error
    return footer.num_rows, metadata


def _check_scaling(value: Any, size: int) -> None:
    numbers: list[Any] = [value.get(name) for name in ("mean", "std")] if isinstance(value, dict) else []
    whole = [isinstance(one, list) and len(one) == size for one in numbers]
    finite = all(whole) and all(isinstance(x, (int, float)) and abs(x) < 1e30 for one in numbers for x in one)
    if not (numbers and finite and min(numbers[1]) > 0):
        raise ValueError(f"its scaling must have {size} numbers as mean and {size} above 0 as std")


def _wrong_columns(schema: pa.Schema, size: int) -> list[str]:
    wrong = []
    for field in latents_schema(size, pa.int64()):
        if schema.names.count(field.name) != 1:
            wrong.append(f"the column {field.name} is there {schema.names.count(field.name)} times")
        elif field.name == "action":
            wrong += wrong_action(schema)
        elif pa.types.is_fixed_size_list(field.type):
            kind = schema.field(field.name).type
            is_list = pa.types.is_fixed_size_list(kind) and kind.value_type == pa.float32()
            if not is_list or kind.list_size != size:
                wrong.append(f"the column {field.name} is {kind} and not {size} floats")
        elif schema.field(field.name).type != field.type:
            wrong.append(f"the column {field.name} is {schema.field(field.name).type} and not {field.type}")
    return wrong

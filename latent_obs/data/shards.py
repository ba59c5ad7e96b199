"""One file of a frames folder: its columns, and how it is written and recognised.

Each row is what one call returned: the first row of an episode is what ``env.reset`` gave
(its ``action`` is null and its ``reward`` 0), every later row is the action passed to
``env.step`` with everything the step returned. So the terminal frame is a row like any other.
``docs/formats.md`` specifies the columns and the metadata.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latent_obs.data.provenance import MAX_WORKERS, Collection
from latent_obs.data.storage import Location, NewFile, name_of, num_bytes, open_parquet, shown
from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frame, Frames, FrameSource

FORMAT = "latent_obs.frames"
VERSION = 1
ROW_GROUP = 512
METADATA_KEY = b"latent_obs"
_PAGE = 128  # rows of frames
# Bounds of what is believed of a file; a row group is decoded as a whole.
MAX_GROUP = 16_384
_NUMBERS = {"worker": MAX_WORKERS - 1, "shard": 10**6, "rows": 2**40, "episode_offset": 2**62}


def action_type(space: gym.Space[Any]) -> pa.DataType:
    """Return the Arrow type that stores an action space's actions without loss.

    Raises:
        ValueError: If actions of this space have no column type.

    Example:
        >>> print(action_type(gym.spaces.Discrete(6)))
        int64
    """
    if isinstance(space, gym.spaces.Discrete):
        return pa.int64()
    arrays = (gym.spaces.Box, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
    if isinstance(space, arrays) and space.dtype != bool:
        assert space.shape is not None
        assert space.dtype is not None
        return pa.list_(pa.from_numpy_dtype(space.dtype), int(np.prod(space.shape)))
    raise ValueError(
        "Actions must be Discrete, a Box of numbers, MultiDiscrete or MultiBinary to be stored in a frames "
        f"folder, got {space}. Wrap the environment so that its actions are one array of numbers."
    )


def part_name(worker: int, number: int) -> str:
    """Return the file name of a worker's shard.

    Example:
        >>> part_name(1, 20)
        'part-001-00020.parquet'
    """
    return f"part-{worker:03d}-{number:05d}.parquet"


def as_stored(action: Any, kind: pa.DataType) -> Any:
    """Return a copy of an action as a column of a type from :func:`action_type` takes it.

    Raises:
        ValueError: If the column holds numbers, and the action is not one.

    Example:
        >>> as_stored(np.array([2]), pa.int64())
        2
    """
    flat = np.array(action).reshape(-1)
    return flat if pa.types.is_fixed_size_list(kind) else flat.item()


def frames_schema(action: pa.DataType) -> pa.Schema:
    """Return the columns of a shard."""
    return pa.schema(
        [
            pa.field("frame", pa.binary(FRAME_BYTES), nullable=False),
            pa.field("episode", pa.int64(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("action", action),
            pa.field("reward", pa.float64(), nullable=False),
            pa.field("terminated", pa.bool_(), nullable=False),
            pa.field("truncated", pa.bool_(), nullable=False),
        ]
    )


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Return how the columns of a shard are stored, as arguments of ``ParquetWriter``."""
    plain = [name for name in schema.names if name != "frame"]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": [name for name in plain if name != "action"],
        "write_statistics": plain,
        # zstd alone notices fewer than half of the flipped bits; a checksum costs nothing here.
        "write_page_checksum": True,
        # A page of 1.5 MB stays in the cache between being filled and being compressed.
        "write_batch_size": _PAGE,
    }


class ShardWriter:
    """Writes one shard, which appears under its name when it is committed.

    Frames are held for one row group of 512 at a time, so memory does not grow. A killed
    process leaves at most a file named ``*.tmp``, which readers ignore.

    Args:
        path: The path or URL of the committed shard.
        action: The Arrow type of the action column, from :func:`action_type`.
        metadata: JSON values describing where the frames come from.

    Attributes:
        action: The type of the action column.
        rows: Rows appended so far.
        stored: How many of them are written, and as how many bytes.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(self, path: Location, action: pa.DataType, metadata: dict[str, Any]) -> None:
        self.path, self.action, self.rows, self.stored = path, action, 0, (0, 0)
        self._metadata = {"format": FORMAT, "version": VERSION, **metadata}
        self._schema = frames_schema(action)
        self._file = NewFile(path)
        try:
            self._writer = pq.ParquetWriter(self._file.stream, self._schema, **writer_options(self._schema))
        except BaseException:
            self._file.abort()
            raise
        self._frames = np.empty((ROW_GROUP, FRAME_BYTES), np.uint8)
        self._steps: list[tuple[int, int, Any, float, bool, bool]] = []

    def append(
        self,
        frame: Frame,
        episode: int,
        step: int,
        action: Any,
        reward: float,
        terminated: bool,
        truncated: bool,
    ) -> None:
        """Add one row; ``action`` is ``None`` for the frame that a reset returned.

        Raises:
            OSError: If the disk is full; the shard is then lost, committed ones are not.
        """
        self._frames[len(self._steps)] = frame.reshape(-1)
        self._steps.append((episode, step, action, float(reward), bool(terminated), bool(truncated)))
        self.rows += 1
        if len(self._steps) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        rows = len(self._steps)
        if not rows:
            return
        columns: list[pa.Array] = [
            pa.FixedSizeBinaryArray.from_buffers(
                self._schema.field("frame").type, rows, [None, pa.py_buffer(self._frames[:rows])]
            )
        ]
        for values, column in zip(zip(*self._steps, strict=True), list(self._schema)[1:], strict=True):
            columns.append(pa.array(values, type=column.type))
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), ROW_GROUP)
        self._steps.clear()
        self.stored = (self.rows, self._file.stream.tell())

    def commit(self, complete: bool) -> None:
        """Finish the shard, make it durable and give it its name.

        Args:
            complete: Whether the shard holds all it was meant to; an incomplete one is
                collected again when collection resumes.
        """
        self._flush()
        metadata = {**self._metadata, "rows": self.rows, "complete": complete}
        self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(metadata)})
        self._writer.close()
        self.stored = (self.rows, self._file.stream.tell())
        self._file.commit()

    def abort(self) -> None:
        """Delete the unfinished shard."""
        # A full disk fails the footer too; the file goes away all the same.
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._file.abort()


@dataclass(frozen=True)
class Shard:
    """One committed Parquet file of a frames folder.

    Args:
        path: Its path or URL.
        groups: Rows of each of its row groups.
        collection: The collection that it is a part of.
        source: The environment that its frames come from.
        metadata: What the file says of itself; ``docs/formats.md`` lists the fields.
    """

    path: Location
    groups: tuple[int, ...]
    collection: Collection
    source: FrameSource
    metadata: dict[str, Any]

    @property
    def rows(self) -> int:
        """Number of frames."""
        return sum(self.groups)

    @property
    def row_groups(self) -> int:
        """Number of row groups."""
        return len(self.groups)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return name_of(self.path)

    @property
    def env_id(self) -> str:
        """The environment its frames come from; ``""`` where that is not known."""
        return self.source.env_id

    @property
    def complete(self) -> bool:
        """Whether collection finished this shard rather than being interrupted in it."""
        return bool(self.metadata.get("complete"))

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return num_bytes(self.path)

    def open(self) -> pq.ParquetFile:
        """Open the file for reading; use it in a ``with`` statement."""
        return open_parquet(self.path)


def read_shard(path: Location) -> Shard:
    """Read one shard's footer and check everything in it, so that nothing behind this door has to.

    Args:
        path: The path or URL of the file.

    Raises:
        ValueError: If it is no regular file, is truncated, is not Parquet, is not a frames shard, or its
            columns or its metadata are not those of one.
    """
    try:
        with open_parquet(path) as file:
            footer, schema = file.metadata, file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(
            f"{shown(path)} is not a readable Parquet file ({first_line(error)}). "
            "Delete it and collect again: only its own frames are missing then."
        ) from error
    metadata = read_metadata(footer, FORMAT)
    if metadata is None:
        raise ValueError(f"{shown(path)} is a Parquet file, but not a shard written by latent-obs collect.")
    if (version := metadata.get("version")) != VERSION:
        said = f"has version {version}" if "version" in metadata else "does not say which version it has"
        raise ValueError(
            f"{shown(path)} {said} of the frames format; this latent_obs reads version {VERSION}."
        )
    if wrong := wrong_columns(schema):
        raise ValueError(f"{shown(path)} cannot be read as frames: {'; '.join(wrong)}.")
    groups = tuple(footer.row_group(group).num_rows for group in range(footer.num_row_groups))
    try:
        if sum(groups) != footer.num_rows or not all(0 < rows <= MAX_GROUP for rows in groups):
            raise ValueError(f"its row groups must hold 1 to {MAX_GROUP:,} rows each, and all of its rows")
        for name, most in _NUMBERS.items():
            given = metadata.get(name, 0)
            if not isinstance(given, int) or isinstance(given, bool) or not 0 <= given <= most:
                raise ValueError(f"its {name} must be an integer from 0 to {most:,}, got {str(given)[:60]!r}")
        if not isinstance(metadata.get("complete", False), bool):
            raise ValueError(f"its complete must be true or false, got {str(metadata['complete'])[:60]!r}")
        return Shard(
            path, groups, Collection.from_json(metadata), read_source(metadata.get("source")), metadata
        )
    except ValueError as error:
        raise ValueError(f"{shown(path)} is no shard of a frames folder: {error}.") from error


def read_metadata(footer: pq.FileMetaData, wanted: str) -> dict[str, Any] | None:
    """Return what a Parquet file of this package says of itself; ``None`` if it is of another format."""
    try:
        metadata = json.loads((footer.metadata or {})[METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        return None
    known = isinstance(metadata, dict) and metadata.get("format") == wanted
    return metadata if known else None


def read_source(value: Any) -> FrameSource:
    """Read the ``source`` of a file's metadata.

    Raises:
        ValueError: If it is missing, or one of its fields has another type than it must have.
    """
    if not isinstance(value, dict):
        raise ValueError(f"its source must be an object, got {str(value)[:60]!r}")
    for name, kind in (("env_id", str), ("env_kwargs", dict), ("emulator", dict)):
        if not isinstance(value.get(name, kind()), kind):
            raise ValueError(f"the {name} of its source must be a {kind.__name__}")
    return FrameSource.from_json(value)


def wrong_columns(schema: pa.Schema) -> list[str]:
    """Say which columns of a shard are missing or have another type than they must have."""
    wrong = []
    for field in frames_schema(pa.int64()):
        if field.name not in schema.names:
            wrong.append(f"the column {field.name} is missing")
        elif schema.names.count(field.name) > 1:
            wrong.append(f"the column {field.name} is there more than once")
        elif field.name == "action":
            wrong += wrong_action(schema)
        elif schema.field(field.name).type != field.type:
            wrong.append(f"the column {field.name} is {schema.field(field.name).type} and not {field.type}")
    return wrong


def wrong_action(schema: pa.Schema) -> list[str]:
    """Say what is wrong with the type of the ``action`` column, if anything."""
    kind = schema.field("action").type
    numbers = kind.value_type if pa.types.is_fixed_size_list(kind) else kind
    if pa.types.is_integer(numbers) or pa.types.is_floating(numbers):
        return []
    return [f"the column action is {kind} and neither integers nor lists of numbers"]


def one_action_type(files: Sequence[Location], what: str, folder: object) -> pa.DataType:
    """Return the type that the ``action`` columns of a folder's files share.

    Args:
        files: The files, at least one.
        what: What is made of them, for the error.
        folder: What the error calls the folder.

    Raises:
        ValueError: If two differ, which folders merged from several environments may.
    """
    kinds: dict[pa.DataType, str] = {}
    for path in files:
        with open_parquet(path) as file:
            kinds.setdefault(file.schema_arrow.field("action").type, name_of(path))
    if len(kinds) > 1:
        found = " and ".join(f"{kind} in {name}" for kind, name in kinds.items())
        raise ValueError(
            f"The actions of a {what} have one type, and those of {folder} are {found}. Export the folders "
            "it was merged from one by one."
        )
    return next(iter(kinds))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_group(file: pq.ParquetFile, group: int) -> Frames:
    """Read the frames of a row group of an open shard, ``uint8`` of shape ``(N, 64, 64, 3)``.

    Raises:
        ValueError: If a frame is missing.
        OSError: If the row group is corrupt.
    """
    return as_frames(read_steps(file, group, ["frame"])["frame"])


def read_steps(file: pq.ParquetFile, group: int, columns: list[str] | None = None) -> pa.Table:
    """Read some columns of a row group of an open shard, or all; only the ``action`` may be null.

    Raises:
        ValueError: If another value is null.
        OSError: If the row group is corrupt.
    """
    return without_nulls(file.read_row_group(group, columns=columns, use_threads=False))


def read_episodes(shard: Shard) -> npt.NDArray[np.int64]:
    """Read the episode number of every row of a shard.

    Raises:
        ValueError: If one is null.
        OSError: If the column is corrupt.
    """
    with shard.open() as file:
        return episode_numbers(without_nulls(file.read(columns=["episode"], use_threads=False)))


def episode_numbers(table: pa.Table) -> npt.NDArray[np.int64]:
    """View the column ``episode`` of a table of steps, shape (N,); it must hold no null.

    ``to_numpy`` would import pandas, which takes half a second.
    """
    numbers: npt.NDArray[Any] = np.from_dlpack(table["episode"].combine_chunks())
    return numbers


def without_nulls(table: pa.Table) -> pa.Table:
    """Return a table of a shard's columns, having refused nulls in all of them but ``action``.

    Raises:
        ValueError: If there is one.
    """
    for name in table.column_names:
        if name != "action" and table[name].null_count:
            raise ValueError(f"The column {name} of a shard holds nulls, which only action may.")
    return table


def as_frames(column: pa.ChunkedArray) -> Frames:
    """View a ``fixed_size_binary[12288]`` column without nulls as frames; one chunk is not copied."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    data = np.frombuffer(array.buffers()[1], np.uint8)
    data = data[array.offset * FRAME_BYTES : (array.offset + len(array)) * FRAME_BYTES]
    return data.reshape(-1, *FRAME_SHAPE)

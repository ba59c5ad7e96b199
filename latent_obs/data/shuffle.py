"""Draws shuffled batches from a frames folder that need not fit in memory.

A pass over the folder cuts it into places, row groups or parts of them, puts the places in random
order and reads them in blocks, as many at a time as fit in the buffer; the frames of a block come
out in random order. So a batch mixes all places of its block. A buffer that holds few row groups
would mix few episodes, so then a place is every k-th row of a row group, which is decoded k times
in a pass. ``tests/data/test_shuffle.py`` measures how far that is from a true permutation.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from latent_obs.data.shards import ROW_GROUP, Shard, read_group, read_steps
from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frame, Frames

# A block mixes at least about this many places, at the price of decoding a row group up to
# MAX_PARTS times in a pass.
MIN_PLACES, MAX_PARTS = 64, 16
MASK_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1] // 8
# Opening a shard costs as much as reading a third of a row group.
OPEN_FILES = 128

Indices = npt.NDArray[np.int64]


def shuffled_batches(
    reader: GroupReader, folder: str, batch_size: int, seed: int, buffer_frames: int, skip: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield shuffled batches of rows for ever; the work behind :meth:`FramesFolder.batches`.

    Args:
        reader: What to read; it is closed at the end.
        folder: What an error calls the folder.
        batch_size: Rows in a batch.
        seed: Chooses the order.
        buffer_frames: Rows held in memory at most.
        skip: Batches to leave out at the beginning.

    Yields:
        Rows of the reader, shape (batch_size, reader.width).

    Raises:
        ValueError: If there are fewer rows than a batch holds.
    """
    total = int(reader.rows.sum())
    if total < batch_size:
        raise ValueError(
            f"{folder} has {total} frames to train on, fewer than a batch of {batch_size}. "
            "Collect more frames or use a smaller --batch-size."
        )
    capacity = max(buffer_frames, batch_size + ROW_GROUP)
    parts = 1 if total <= capacity else min(MAX_PARTS, -(-MIN_PLACES * ROW_GROUP // capacity))
    # Rows of each place: every parts-th of its row group, from the first, the second, ...
    sizes = (reader.rows[:, None] - np.arange(parts) + parts - 1) // parts
    sizes = np.maximum(sizes, 0).ravel()
    blocks = 1 if total <= capacity else -(-total // max(capacity - int(sizes.max()), 1))
    start, skip = divmod(skip, total // batch_size)
    position = skip * batch_size
    buffer: npt.NDArray[np.uint8] | None = None
    try:
        for epoch in itertools.count(start):
            order = _stream(seed, epoch, 0).permutation(len(sizes))
            # Blocks of nearly equal size: a small last one would mix little.
            block_of = (np.cumsum(sizes[order]) - 1) * blocks // total
            batch, filled = np.empty((batch_size, reader.width), np.uint8), 0
            for block in range(blocks):
                places = order[block_of == block]
                rows = int(sizes[places].sum())
                if position >= rows:  # skipped as a whole
                    position -= rows
                    continue
                if buffer is None:
                    buffer = np.empty((min(total, capacity), reader.width), np.uint8)
                picks = _stream(seed, epoch, 1 + block).permutation(rows)
                reader.fill(buffer, places, sizes[places], parts, picks[position:])
                while position < rows:
                    mine = picks[position : position + batch_size - filled]
                    buffer.take(mine, 0, out=batch[filled : filled + len(mine)], mode="clip")
                    position, filled = position + len(mine), filled + len(mine)
                    if filled == batch_size:
                        yield batch
                        batch, filled = np.empty_like(batch), 0
                position = 0
    finally:
        reader.close()


def _stream(seed: int, *numbers: int) -> np.random.Generator:
    """Return a random stream of its own for each seed and numbers.

    As a tuple they would not do: NumPy pads it with zeros, so ``(seed, epoch)`` and
    ``(seed, epoch, 0)`` are one stream.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=numbers))


def changed_pixels(frames: Frames, episodes: Indices) -> npt.NDArray[np.bool_]:
    """Return which pixels differ from the frame before or after in the same episode.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3), in the order of their steps.
        episodes: Number of each frame's episode, shape (N,).

    Returns:
        Shape (N, 64, 64). A frame at either end has one neighbour, or none.

    Example:
        >>> frames = np.zeros((3, 64, 64, 3), np.uint8)
        >>> frames[1, 5, 7] = 255
        >>> changed_pixels(frames, np.zeros(3)).sum((1, 2)).tolist()
        [1, 1, 1]
    """
    changed = np.zeros((len(frames), *FRAME_SHAPE[:2]), bool)
    steps = _any_channel(frames[1:] != frames[:-1])
    steps &= (episodes[1:] == episodes[:-1])[:, None, None]
    changed[1:] |= steps
    changed[:-1] |= steps
    return changed


def _any_channel(differ: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = differ[..., 0] | differ[..., 1] | differ[..., 2]
    return found  # several times faster than any(-1)


class GroupReader:
    """Reads row groups of a folder, keeping only the frames of some episodes.

    A row is a frame's bytes and, with ``medians``, the bits of two masks: the pixels that differ from
    the median of its environment, and those of :func:`changed_pixels`.

    Args:
        shards: The shards of the folder.
        kept: How many rows of each of their row groups belong to the episodes, shape (row groups,).
        episodes: The episodes to keep; ``None`` means all.
        medians: Median frame of each environment, or ``None`` for frames without masks.

    Attributes:
        width: Bytes of a row.
        rows: Value of ``kept``.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        kept: Indices,
        episodes: Sequence[int] | None,
        medians: Mapping[str, Frame] | None,
    ) -> None:
        self._medians = medians
        self.width = FRAME_BYTES + 2 * MASK_BYTES * (medians is not None)
        self._episodes: Indices = np.unique(np.asarray([] if episodes is None else episodes, np.int64))
        self._groups = [(shard, group) for shard in shards for group in range(len(shard.groups))]
        self._open: OrderedDict[object, pq.ParquetFile] = OrderedDict()
        self.rows = kept

    def _mask(self, file: pq.ParquetFile, group: int) -> npt.NDArray[np.bool_]:
        return np.isin(read_steps(file, group, ["episode"])["episode"].to_numpy(), self._episodes)

    def _read(self, group: int) -> npt.NDArray[np.uint8]:
        """Return the kept rows of a row group, shape (N, width)."""
        shard, number = self._groups[group]
        file = self._open.pop(shard.path, None) or shard.open()
        self._open[shard.path] = file  # the end of the line: the first one is closed
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        frames = read_group(file, number)
        rows = frames.reshape(-1, FRAME_BYTES)
        if self._medians is not None:
            moving = _any_channel(frames != self._medians[shard.env_id])
            episodes = read_steps(file, number, ["episode"])["episode"].to_numpy()
            masks = moving, changed_pixels(frames, episodes)
            rows = np.concatenate([rows, *(np.packbits(m.reshape(len(rows), -1), 1) for m in masks)], 1)
        return rows if self.rows[group] == len(rows) else rows[self._mask(file, number)]

    def fill(
        self, buffer: npt.NDArray[np.uint8], places: Indices, sizes: Indices, parts: int, picks: Indices
    ) -> None:
        """Put the rows of the places into the buffer, one place after the other.

        Random access is left to drawing: random writes cost far more than random reads.

        Args:
            buffer: Shape (N, width).
            places: Row group x parts + part.
            sizes: Rows of each place.
            parts: Parts of a row group.
            picks: The rows of the buffer that will be drawn; places without any are not read.
        """
        ends = np.cumsum(sizes)
        needed = np.bincount(np.searchsorted(ends, picks, "right"), minlength=len(places)) > 0
        for i in np.argsort(places):  # shard by shard
            if needed[i]:
                group, part = divmod(int(places[i]), parts)
                buffer[ends[i] - sizes[i] : ends[i]] = self._read(group)[part::parts]

    def close(self) -> None:
        """Close the shards."""
        for file in self._open.values():
            file.close()
        self._open.clear()

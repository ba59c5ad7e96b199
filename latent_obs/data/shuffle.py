"""Draws shuffled batches from a frames folder that need not fit in memory.

A pass over the folder cuts it into places, row groups or parts of them, puts the places in random
order and reads them in blocks, as many at a time as fit in the buffer; the frames of a block come
out in random order. So a batch mixes all places of its block. A buffer that holds few row groups
would mix few episodes, so then a place is every k-th row of a row group, which is decoded k times
in a pass. ``tests/data/test_shuffle.py`` measures how far that is from a true permutation.

A team of processes draws the same batches as one process would. Each of them reads its part of the
places of a block, and with each batch they exchange the rows that another one takes: a step's rows are
few bytes beside its gradients, which such processes exchange too.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from latent_obs.data.shards import ROW_GROUP, Shard, episode_numbers, read_group, read_steps
from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frame, Frames

# A block mixes at least about this many places, at the price of decoding a row group up to
# MAX_PARTS times in a pass.
MIN_PLACES, MAX_PARTS = 64, 16
MASK_BYTES = FRAME_SHAPE[0] * FRAME_SHAPE[1] // 8
# Opening a shard costs as much as reading a third of a row group.
OPEN_FILES = 128

Indices = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint8]


class Team(Protocol):
    """Processes that draw the same batches, of which each reads and takes its share.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
    """

    rank: int
    size: int

    def agree(self, error: Exception | None) -> None:
        """Raise in all processes the error that one of them met, if one did."""

    def exchange(self, rows: Rows, sent: Indices, received: Indices) -> Rows:
        """Give each process some of the rows, and return those that the processes give this one.

        Args:
            rows: First those for process 0, then those for process 1, ...
            sent: How many are for each process.
            received: How many come from each process.
        """


def share(total: int, rank: int, size: int) -> slice:
    """Return which of so many rows one of ``size`` processes takes.

    Example:
        >>> [share(31, rank, 2) for rank in (0, 1)]
        [slice(0, 15, None), slice(15, 31, None)]
    """
    return slice(total * rank // size, total * (rank + 1) // size)


def shuffled_batches(
    reader: GroupReader,
    folder: str,
    batch_size: int,
    seed: int,
    buffer_frames: int,
    skip: int,
    team: Team | None = None,
) -> Iterator[Rows]:
    """Yield shuffled batches of rows for ever; the work behind :meth:`FramesFolder.batches`.

    Args:
        reader: What to read; it is closed at the end.
        folder: What an error calls the folder.
        batch_size: Rows in a batch.
        seed: Chooses the order.
        buffer_frames: Rows held in memory at most.
        skip: Batches to leave out at the beginning.
        team: The processes that share each batch; ``None``: there is one.

    Yields:
        Rows of the reader, shape (batch_size, reader.width); of a team, this process's share of them.

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
    mine = slice(0, batch_size) if team is None else share(batch_size, team.rank, team.size)
    shape = (mine.stop - mine.start, reader.width)
    buffer: Rows | None = None
    try:
        for epoch in itertools.count(start):
            order = _stream(seed, epoch, 0).permutation(len(sizes))
            # Blocks of nearly equal size: a small last one would mix little.
            block_of = (np.cumsum(sizes[order]) - 1) * blocks // total
            batch, filled = np.empty(shape, np.uint8), 0
            for number in range(blocks):
                places = order[block_of == number]
                rows = int(sizes[places].sum())
                if position >= rows:  # skipped as a whole
                    position -= rows
                    continue
                if buffer is None:
                    most = min(total, capacity)
                    most = most if team is None else most // team.size + int(sizes.max())
                    buffer = np.empty((most, reader.width), np.uint8)
                picks = _stream(seed, epoch, 1 + number).permutation(rows)
                if team is None:
                    block = _Block(reader, buffer, places, sizes[places], parts, picks, position)
                else:
                    block = _SharedBlock(
                        reader, buffer, places, sizes[places], parts, picks, position, batch_size, team
                    )
                while position < rows:
                    count = min(batch_size - filled, rows - position)
                    block.draw(position, count, batch, filled)
                    position, filled = position + count, filled + count
                    if filled == batch_size:
                        yield batch
                        batch, filled = np.empty_like(batch), 0
                position = 0
    finally:
        reader.close()


class _Block:
    """A block of places in memory.

    Args:
        reader: What to read.
        buffer: Where to; shape (N, reader.width).
        places: Row group x parts + part of each place.
        sizes: Rows of each place.
        parts: Parts of a row group.
        picks: Rows of the block in the order in which they are drawn.
        position: How many of them have been drawn already; places without any others are not read.
    """

    def __init__(
        self,
        reader: GroupReader,
        buffer: Rows,
        places: Indices,
        sizes: Indices,
        parts: int,
        picks: Indices,
        position: int,
    ) -> None:
        self._buffer, self._picks = buffer, picks
        reader.fill(buffer, places, sizes, parts, picks[position:])

    def draw(self, position: int, count: int, batch: Rows, filled: int) -> None:
        """Put so many of the picks, from a position on, into a batch that is filled so far."""
        picks = self._picks[position : position + count]
        self._buffer.take(picks, 0, out=batch[filled : filled + count], mode="clip")


class _SharedBlock(_Block):
    """A block of which each process of a team has its part in memory.

    A part is a range of the places in the order of the folder, so that a process opens its own shards.
    """

    def __init__(
        self,
        reader: GroupReader,
        buffer: Rows,
        places: Indices,
        sizes: Indices,
        parts: int,
        picks: Indices,
        position: int,
        batch_size: int,
        team: Team,
    ) -> None:
        self._team, self._edges = team, [share(batch_size, rank, team.size).stop for rank in range(team.size)]
        order = np.argsort(places)
        before = np.cumsum(sizes[order]) - sizes[order]
        owner_of, start_of = np.empty_like(sizes), np.empty_like(sizes)
        # Places without rows may come last, behind all rows.
        owner_of[order] = np.minimum(before * team.size // len(picks), team.size - 1)
        mine = owner_of == team.rank
        for rank in range(team.size):  # where the rows of a place begin in its owner's buffer
            its = owner_of == rank
            start_of[its] = np.cumsum(sizes[its]) - sizes[its]
        place = np.searchsorted(np.cumsum(sizes), picks, "right")
        self._owners = owner_of[place]
        inside = picks - (np.cumsum(sizes) - sizes)[place] + start_of[place]
        error: Exception | None = None
        try:
            needed = inside[position:][self._owners[position:] == team.rank]
            super().__init__(reader, buffer, places[mine], sizes[mine], parts, needed, 0)
        except Exception as failed:
            error = failed
        team.agree(error)
        self._picks = inside

    def draw(self, position: int, count: int, batch: Rows, filled: int) -> None:
        """Send other processes what they take of these picks, and receive this process's own."""
        team = self._team
        owners = self._owners[position : position + count]
        takers = np.searchsorted(self._edges, np.arange(filled, filled + count), "right")
        own, taken = owners == team.rank, np.flatnonzero(takers == team.rank)
        received = team.exchange(
            self._buffer[self._picks[position : position + count][own]],
            np.bincount(takers[own], minlength=team.size),
            np.bincount(owners[taken], minlength=team.size),
        )
        start = share(self._edges[-1], team.rank, team.size).start
        by_sender = taken[np.argsort(owners[taken], kind="stable")]
        batch[by_sender + filled - start] = received


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
        return np.isin(episode_numbers(read_steps(file, group, ["episode"])), self._episodes)

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
            episodes = episode_numbers(read_steps(file, number, ["episode"]))
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

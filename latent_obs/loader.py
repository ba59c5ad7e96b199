"""Draws shuffled batches from a frames folder that need not fit in memory.

A pass over the folder cuts it into places, row groups or parts of them, puts the places in random
order and reads them in blocks, as many at a time as fit in the buffer; the frames of a block come
out in random order. So a batch mixes all places of its block. A buffer that holds few row groups
would mix few episodes, so then a place is every k-th row of a row group, which is decoded k times
in a pass. ``tests/test_loader.py`` measures how far that is from a true permutation.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frames
from latent_obs.shards import ROW_GROUP

if TYPE_CHECKING:
    from latent_obs.dataset import FramesFolder

# A block mixes at least about this many places, at the price of decoding a row group up to
# MAX_PARTS times in a pass.
MIN_PLACES, MAX_PARTS = 64, 16
# Opening a shard costs as much as reading a third of a row group.
OPEN_FILES = 128

Indices = npt.NDArray[np.int64]


def shuffled_batches(
    folder: FramesFolder,
    batch_size: int,
    episodes: Sequence[int] | None,
    seed: int,
    buffer_frames: int,
    skip: int,
) -> Iterator[Frames]:
    """Yield shuffled batches for ever; the work behind :meth:`FramesFolder.batches`."""
    reader = _Reader(folder, episodes)
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
            order = np.random.default_rng((seed, epoch)).permutation(len(sizes))
            # Blocks of nearly equal size: a small last one would mix little.
            block_of = (np.cumsum(sizes[order]) - 1) * blocks // total
            batch, filled = np.empty((batch_size, FRAME_BYTES), np.uint8), 0
            for block in range(blocks):
                places = order[block_of == block]
                rows = int(sizes[places].sum())
                if position >= rows:  # skipped as a whole
                    position -= rows
                    continue
                if buffer is None:
                    buffer = np.empty((min(total, capacity), FRAME_BYTES), np.uint8)
                picks = np.random.default_rng((seed, epoch, block)).permutation(rows)
                reader.fill(buffer, places, sizes[places], parts, picks[position:])
                while position < rows:
                    mine = picks[position : position + batch_size - filled]
                    buffer.take(mine, 0, out=batch[filled : filled + len(mine)], mode="clip")
                    position, filled = position + len(mine), filled + len(mine)
                    if filled == batch_size:
                        yield batch.reshape(-1, *FRAME_SHAPE)
                        batch, filled = np.empty_like(batch), 0
                position = 0
    finally:
        reader.close()


class _Reader:
    """Reads row groups of a folder, keeping only the frames of some episodes.

    Attributes:
        rows: Frames kept of each row group, shape (row groups,).
    """

    def __init__(self, folder: FramesFolder, episodes: Sequence[int] | None) -> None:
        self._folder = folder
        self._episodes: Indices = np.unique(np.asarray([] if episodes is None else episodes, np.int64))
        self._groups = [(shard, group) for shard in folder.shards for group in range(shard.row_groups)]
        self._open: OrderedDict[object, pq.ParquetFile] = OrderedDict()
        kept, self._whole = [], []
        for shard in folder.shards:
            with shard.open() as file:
                for group in range(shard.row_groups):
                    rows = file.metadata.row_group(group).num_rows
                    kept.append(rows if episodes is None else int(self._mask(file, group).sum()))
                    self._whole.append(kept[-1] == rows)
        self.rows: Indices = np.array(kept, np.int64)

    def _mask(self, file: pq.ParquetFile, group: int) -> npt.NDArray[np.bool_]:
        column = file.read_row_group(group, columns=["episode"], use_threads=False)["episode"]
        return np.isin(column.to_numpy(), self._episodes)

    def _read(self, group: int) -> Frames:
        """Return the kept frames of a row group."""
        shard, number = self._groups[group]
        file = self._open.pop(shard.path, None) or shard.open()
        self._open[shard.path] = file  # the end of the line: the first one is closed
        if len(self._open) > OPEN_FILES:
            self._open.popitem(last=False)[1].close()
        frames = self._folder.read_group(file, number)
        return frames if self._whole[group] else frames[self._mask(file, number)]

    def fill(
        self, buffer: npt.NDArray[np.uint8], places: Indices, sizes: Indices, parts: int, picks: Indices
    ) -> None:
        """Put the rows of the places into the buffer, one place after the other.

        Random access is left to drawing: random writes cost far more than random reads.

        Args:
            buffer: Shape (N, 12288).
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
                frames = self._read(group).reshape(-1, FRAME_BYTES)
                buffer[ends[i] - sizes[i] : ends[i]] = frames[part::parts]

    def close(self) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()

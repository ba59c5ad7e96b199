"""Which rows of a frames folder belong to which episode, without reading a frame.

Rows are counted over the whole folder, shard after shard. An episode's frames are consecutive rows
of a shard, so the index holds 16 bytes for each episode of each shard, whatever their length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latent_obs.data.shards import Shard, read_episodes

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Runs:
    """The runs of consecutive rows of one shard that have the same episode number.

    Args:
        numbers: Episode number of each run.
        starts: Row of the shard with which each run begins.
        rows: Rows of the shard.
    """

    numbers: Integers
    starts: Integers
    rows: int


def episode_runs(shard: Shard) -> Runs:
    """Read the ``episode`` column of a shard, and nothing else.

    Raises:
        ValueError: If an episode number is missing.
        OSError: If the column is corrupt.
    """
    column = read_episodes(shard)
    starts = np.flatnonzero(np.concatenate([[True], column[1:] != column[:-1]])[: len(column)])
    return Runs(column[starts], starts, len(column))


class EpisodeIndex:
    """The runs of a folder's shards, one after the other.

    Args:
        shards: The runs of each shard.
    """

    def __init__(self, shards: Sequence[Runs]) -> None:
        starts, numbers, in_shard, row = [], [], [], 0
        for place, runs in enumerate(shards):
            starts.append(runs.starts + row)
            numbers.append(runs.numbers)
            in_shard.append(np.full(len(runs.numbers), place, np.int32))
            row += runs.rows
        self._numbers: Integers = np.concatenate(numbers)
        self._in_shard = np.concatenate(in_shard)
        # Where each run begins, and behind the last one where the folder ends.
        self._starts: Integers = np.concatenate([*starts, [row]])

    def counts(self) -> dict[int, int]:
        """Return the number of frames of each episode, in order of the shards and then of the numbers."""
        numbers, first, inverse = np.unique(self._numbers, return_index=True, return_inverse=True)
        rows = np.bincount(inverse, np.diff(self._starts)).astype(np.int64)
        order = np.lexsort((numbers, self._in_shard[first]))
        return dict(zip(numbers[order].tolist(), rows[order].tolist(), strict=True))

    def keep(self, episodes: Sequence[int]) -> Mask:
        """Return which runs belong to some episodes."""
        return np.isin(self._numbers, np.asarray(episodes, np.int64))

    def kept_before(self, rows: Integers, keep: Mask) -> Integers:
        """Return how many rows of the kept runs lie before each of the given rows."""
        before = np.concatenate([[0], np.cumsum(np.diff(self._starts) * keep)])
        run = np.searchsorted(self._starts, rows, "right") - 1  # the last one, of no rows, is the end
        found: Integers = before[run] + (rows - self._starts[run]) * np.append(keep, False)[run]
        return found

    def numbers(self, rows: Integers) -> Integers:
        """Return the number of the episode of each row."""
        found: Integers = self._numbers[np.searchsorted(self._starts, rows, "right") - 1]
        return found

    def rows(self, ranks: Integers, keep: Mask) -> Integers:
        """Return the row of the folder in which each of the kept rows, counted by themselves, lies."""
        starts, sizes = self._starts[:-1][keep], np.diff(self._starts)[keep]
        ends = np.cumsum(sizes)
        run = np.searchsorted(ends, ranks, "right")
        found: Integers = starts[run] + ranks - (ends - sizes)[run]
        return found

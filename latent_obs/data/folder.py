"""The frames folder: Parquet shards of frames with the steps they came from, read lazily."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.data.index import EpisodeIndex, Integers, Mask, episode_runs
from latent_obs.data.shards import Shard, read_group, read_shard
from latent_obs.data.shuffle import GroupReader, Team, shuffled_batches
from latent_obs.data.storage import Location, for_each, list_files, parse_location, shown
from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frame, Frames, FrameSource, FrameSpec

# A sample of a folder of up to so many frames is drawn from a permutation of all of them, as
# published figures were; a permutation of ten million would take 80 MB.
_PERMUTED = 1_000_000


class FramesFolder:
    """A folder of frames, read lazily.

    Args:
        path: A folder written by ``latent-obs collect``: a path, or a URL such as
            ``s3://bucket/frames``.

    Attributes:
        path: The folder, a :class:`~pathlib.Path` unless it is a URL.
        shards: Its committed shards, in order.
        frame_spec: How its frames were made.
        source: The environment they came from; of a merged folder, all of them.

    Raises:
        FileNotFoundError: If there is no such folder or no shard in it.
        ValueError: If a shard is damaged or foreign, or shards disagree on the frame spec.
    """

    def __init__(self, path: Location) -> None:
        self.path = parse_location(path)
        self.shards = for_each(read_shard, list_files(self.path, ".parquet"), self.path)
        if not self.shards:
            missing = isinstance(self.path, Path) and not self.path.is_dir()
            wrong = "There is no frames folder {}." if missing else "The folder {} holds no frames."
            make = "Make one" if missing else "Fill it"
            raise FileNotFoundError(f"{wrong.format(self)} {make}: latent-obs collect ENV --out {self}")
        specs = {shard.collection.frame_spec for shard in self.shards}
        if len(specs) > 1:
            raise ValueError(
                f"The shards of {self} were made with different frame specs: "
                f"{', '.join(sorted(map(str, specs)))}. Keep them in one folder each."
            )
        self.frame_spec: FrameSpec = self.shards[0].collection.frame_spec
        self.source = FrameSource.combine([shard.source for shard in self.shards])

    def __str__(self) -> str:
        """Return the folder's path or URL, without any password."""
        return shown(self.path)

    def __len__(self) -> int:
        """Return the number of frames."""
        return sum(shard.rows for shard in self.shards)

    @property
    def collections(self) -> list[dict[str, Any]]:
        """What was collected: each :class:`Collection` as JSON, with its number of ``frames``, in order.

        There is one, except in a merged folder.
        """
        found: dict[str, dict[str, Any]] = {}
        for shard in self.shards:
            settings = shard.collection.to_json()
            collection = found.setdefault(json.dumps(settings, sort_keys=True), {"frames": 0, **settings})
            collection["frames"] += shard.rows
        return list(found.values())

    @property
    def identity(self) -> dict[str, Any]:
        """What tells one folder from another, as JSON; stored with the encoder trained on it.

        It is the folder's only collection with the number of ``frames``; of a merged folder, the list of
        its ``collections``. Folders of equal identity hold the same frames.
        """
        collections = self.collections
        if len(collections) == 1:
            return collections[0]
        return {"frames": len(self), "frame_spec": self.frame_spec.to_json(), "collections": collections}

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return sum(shard.num_bytes for shard in self.shards)

    def episodes(self) -> dict[int, int]:
        """Return the number of frames of each episode, in order of collection.

        The first call reads the episode numbers of the whole folder, and later calls remember them.
        """
        return self._index.counts()

    def split(self, validation: float, seed: int = 0) -> tuple[list[int], list[int]]:
        """Split the episodes into training and validation, never the frames of one episode.

        Args:
            validation: Fraction of the frames to hold out, in (0, 1).
            seed: Chooses the episodes.

        Returns:
            Episode numbers for training and for validation, both non-empty.

        Raises:
            ValueError: If the folder holds fewer than two episodes.
        """
        if not 0 < validation < 1:
            raise ValueError(f"The validation fraction must be between 0 and 1, got {validation}.")
        counts = self.episodes()
        if len(counts) < 2:
            raise ValueError(
                f"{self} holds {len(counts)} episode, and validation needs one of its own: "
                "collect more frames, or shorter episodes with "
                "--env-kwargs '{\"max_episode_steps\": 1000}'."
            )
        shuffled = np.random.default_rng(seed).permutation(list(counts))
        held_out: dict[int, None] = {}  # in the order drawn
        rows = 0
        for episode in shuffled[:-1].tolist():
            held_out[episode] = None
            rows += counts[episode]
            if rows >= validation * len(self):
                break
        return [episode for episode in counts if episode not in held_out], list(held_out)

    def read(self, shard: Shard, group: int, episodes: Sequence[int] | None = None) -> Frames:
        """Read the frames of one row group, ``uint8`` of shape ``(N, 64, 64, 3)``.

        Args:
            shard: One of :attr:`shards`.
            group: Row group, 0 to ``shard.row_groups - 1``.
            episodes: Keep only these episodes' frames.
        """
        with shard.open() as file:
            frames = read_group(file, group)
            if episodes is None:
                return frames
            column = file.read_row_group(group, columns=["episode"], use_threads=False)["episode"]
        keep = np.isin(column.to_numpy(), np.asarray(episodes))
        return frames if keep.all() else frames[keep]

    def load(self, episodes: Sequence[int] | None = None, limit: int | None = None) -> Frames:
        """Read frames into memory in order, ``uint8`` of shape ``(N, 64, 64, 3)``.

        Args:
            episodes: Keep only these episodes' frames.
            limit: At most this many, from the beginning of the folder.
        """
        total, keep = self._choose(episodes)
        ranks = np.arange(total if limit is None else min(limit, total))
        return self.take(ranks if keep is None else self._index.rows(ranks, keep))

    def sample(self, count: int, episodes: Sequence[int] | None = None, seed: int = 0) -> Frames:
        """Return up to ``count`` frames spread over the folder, in random order.

        Args:
            count: Number of frames; all of them when the folder holds fewer.
            episodes: Draw from these episodes only.
            seed: Chooses the frames.

        Returns:
            ``uint8`` frames of shape ``(N, 64, 64, 3)``. Only the row groups in which they lie are read.
        """
        rng = np.random.default_rng(seed)
        total, keep = self._choose(episodes)
        if total <= _PERMUTED:
            ranks = rng.permutation(total)[:count]
        else:
            ranks = rng.choice(total, min(count, total), replace=False, shuffle=False)
        ranks = np.sort(ranks)
        order = rng.permutation(len(ranks))
        return self.take(ranks if keep is None else self._index.rows(ranks, keep), order)

    def take(self, rows: Integers, order: Integers | None = None) -> Frames:
        """Read the frames of some rows of the folder; row groups without any are not read.

        Args:
            rows: Row numbers in ascending order, counted from 0 over all shards.
            order: A permutation: frame ``order[i]`` of those rows comes out as the ``i``-th.

        Returns:
            ``uint8`` frames of shape ``(len(rows), 64, 64, 3)``.
        """
        frames = np.empty((len(rows), *FRAME_SHAPE), np.uint8)
        places = np.arange(len(rows))
        if order is not None:
            places[order] = places.copy()
        group = np.searchsorted(self._group_ends, rows, "right")
        first = np.concatenate([[0], np.cumsum([len(shard.groups) for shard in self.shards])])
        edges = np.flatnonzero(np.diff(group, prepend=-1, append=-1)).tolist()
        with contextlib.ExitStack() as stack:
            opened, file = -1, None
            for begin, end in itertools.pairwise(edges):
                number = int(group[begin])
                shard = int(np.searchsorted(first, number, "right")) - 1
                if shard != opened:
                    stack.close()
                    opened, file = shard, stack.enter_context(self.shards[shard].open())
                assert file is not None
                inside = number - int(first[shard])
                start = int(self._group_ends[number]) - self.shards[shard].groups[inside]
                frames[places[begin:end]] = read_group(file, inside)[rows[begin:end] - start]
        return frames

    def batches(
        self,
        batch_size: int,
        episodes: Sequence[int] | None = None,
        *,
        seed: int = 0,
        buffer_frames: int = 50_000,
        skip: int = 0,
    ) -> Iterator[Frames]:
        """Yield shuffled batches for ever, in bounded memory.

        The folder is read in random order into a buffer, and batches are drawn from the buffer
        at random. A pass over the folder ends before the next begins; the last frames of a pass
        that fill no batch are left out of it.

        Args:
            batch_size: Frames in a batch.
            episodes: Read only these episodes' frames.
            seed: Chooses the order; the same seed gives the same batches.
            buffer_frames: Frames held in memory at most (12,288 bytes each).
            skip: Batches to leave out at the beginning, to resume; their frames are not read.

        Yields:
            ``uint8`` frames of shape ``(batch_size, 64, 64, 3)``.

        Raises:
            ValueError: If the episodes hold fewer frames than one batch.
        """
        reader = GroupReader(self.shards, self._kept(episodes), episodes, None)
        for rows in shuffled_batches(reader, str(self), batch_size, seed, buffer_frames, skip):
            yield rows.reshape(-1, *FRAME_SHAPE)

    def batches_and_foreground(
        self,
        batch_size: int,
        medians: Mapping[str, Frame],
        episodes: Sequence[int] | None = None,
        *,
        seed: int = 0,
        buffer_frames: int = 50_000,
        skip: int = 0,
        team: Team | None = None,
    ) -> Iterator[tuple[Frames, npt.NDArray[np.bool_]]]:
        """Yield what :meth:`batches` yields, and which pixels of each frame are foreground.

        Args:
            batch_size: As in :meth:`batches`, like the other arguments.
            medians: Value of :meth:`medians`.
            episodes: Read only these episodes' frames.
            seed: Chooses the order.
            buffer_frames: Frames held in memory at most.
            skip: Batches to leave out.
            team: The processes that share each batch; each of them reads its part of the folder.

        Yields:
            Frames, and masks of shape ``(batch_size, 2, 64, 64)``: the pixels that differ from the
            environment's median frame, and those that differ from the frame before or after in the
            same episode and row group. A score differs from the median and stands still, a ball moves.
            With a ``team``, this process's share of them.
        """
        reader = GroupReader(self.shards, self._kept(episodes), episodes, medians)
        for rows in shuffled_batches(reader, str(self), batch_size, seed, buffer_frames, skip, team):
            frames, bits = np.ascontiguousarray(rows[:, :FRAME_BYTES]), rows[:, FRAME_BYTES:]
            masks = np.unpackbits(bits, 1).astype(bool).reshape(-1, 2, *FRAME_SHAPE[:2])
            yield frames.reshape(-1, *FRAME_SHAPE), masks

    def pairs(
        self, batch_size: int, episodes: Sequence[int] | None = None, *, seed: int = 0, skip: int = 0
    ) -> Iterator[Frames]:
        """Yield pairs of consecutive frames for ever, drawn at random; the frames are held in memory.

        Args:
            batch_size: Frames in a batch, an even number.
            episodes: Read only these episodes' frames.
            seed: Chooses the pairs.
            skip: Batches to leave out.

        Yields:
            ``uint8`` frames of shape ``(batch_size, 64, 64, 3)``: the first frame of each pair, then the
            second of each.

        Raises:
            ValueError: If there is no pair.
        """
        total, keep = self._choose(episodes)
        rows = np.arange(total) if keep is None else self._index.rows(np.arange(total), keep)
        numbers = self._index.numbers(rows)
        first = np.flatnonzero((numbers[1:] == numbers[:-1]) & (rows[1:] == rows[:-1] + 1))
        if not len(first):
            raise ValueError(f"{self} has no two consecutive frames of an episode. Collect longer episodes.")
        frames = self.take(rows)
        for step in itertools.count(skip):
            drawn = np.random.default_rng((seed, step)).choice(first, batch_size // 2)
            yield frames[np.concatenate([drawn, drawn + 1])]

    def medians(self, count: int = 1024) -> dict[str, Frame]:
        """Return the per-pixel median frame of each environment: what stands still in it.

        Args:
            count: About so many frames of each environment, evenly spaced, are taken for it, from at
                most so many row groups.

        Returns:
            ``uint8`` frames of shape ``(64, 64, 3)`` by environment id; a merged folder has several.
        """
        groups: dict[str, list[range]] = {}  # the rows of each row group
        end = 0
        for shard in self.shards:
            for rows in shard.groups:
                groups.setdefault(shard.env_id, []).append(range(end, end + rows))
                end += rows
        medians = {}
        for env_id, mine in groups.items():
            every = max(1, sum(map(len, mine)) // count)
            chosen = np.unique(np.linspace(0, len(mine) - 1, min(count, len(mine))).round().astype(int))
            picked = np.concatenate([np.array(mine[i])[::every] for i in chosen])
            medians[env_id] = np.median(self.take(picked), 0).astype(np.uint8)
        return medians

    @property
    def index(self) -> EpisodeIndex:
        """Which rows belong to which episode, read once."""
        return self._index

    @cached_property
    def _index(self) -> EpisodeIndex:
        return EpisodeIndex(for_each(episode_runs, self.shards, self.path))

    @cached_property
    def _group_ends(self) -> Integers:
        """The row behind each row group."""
        return np.cumsum([rows for shard in self.shards for rows in shard.groups], dtype=np.int64)

    def _choose(self, episodes: Sequence[int] | None) -> tuple[int, Mask | None]:
        """Return how many rows some episodes have, and which runs of the index; ``None`` means all."""
        if episodes is None:
            return len(self), None
        keep = self._index.keep(episodes)
        return int(self._index.kept_before(np.array([len(self)]), keep)[0]), keep

    def _kept(self, episodes: Sequence[int] | None) -> Integers:
        """Return the rows of each row group that belong to some episodes."""
        ends = self._group_ends
        if episodes is not None:
            ends = self._index.kept_before(ends, self._index.keep(episodes))
        return np.diff(ends, prepend=0)

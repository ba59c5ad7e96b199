"""The frames folder: Parquet shards of frames with the steps they came from, read lazily."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.data.shards import Shard, read_group, read_shard
from latent_obs.data.shuffle import shuffled_batches
from latent_obs.data.storage import Location, list_files, parse_location, shown
from latent_obs.frames import FRAME_BYTES, FRAME_SHAPE, Frame, Frames, FrameSource, FrameSpec


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
        self.shards = [read_shard(shard) for shard in list_files(self.path, ".parquet")]
        if not self.shards:
            missing = isinstance(self.path, Path) and not self.path.is_dir()
            wrong = "There is no frames folder {}." if missing else "The folder {} holds no frames."
            make = "Make one" if missing else "Fill it"
            raise FileNotFoundError(f"{wrong.format(self)} {make}: latent-obs collect ENV --out {self}")
        specs = {json.dumps(shard.metadata["frame_spec"]) for shard in self.shards}
        if len(specs) > 1:
            raise ValueError(
                f"The shards of {self} were made with different frame specs: "
                f"{', '.join(sorted(specs))}. Keep them in one folder each."
            )
        self.frame_spec = FrameSpec.from_json(self.shards[0].metadata["frame_spec"])
        sources = [FrameSource.from_json(shard.metadata["source"]) for shard in self.shards]
        self.source = FrameSource.combine(sources)

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
        """Return the number of frames of each episode, in order of collection."""
        counts: dict[int, int] = {}
        for shard in self.shards:
            with shard.open() as file:
                column = file.read(columns=["episode"])["episode"].to_numpy()
            for episode, rows in zip(*np.unique(column, return_counts=True), strict=True):
                counts[int(episode)] = counts.get(int(episode), 0) + int(rows)
        return counts

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
        held_out: list[int] = []
        for episode in shuffled[:-1]:
            held_out.append(int(episode))
            if sum(counts[e] for e in held_out) >= validation * len(self):
                break
        return [e for e in counts if e not in set(held_out)], held_out

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
        parts, rows = [np.empty((0, *FRAME_SHAPE), np.uint8)], 0
        for shard, group in self._groups():
            parts.append(self.read(shard, group, episodes))
            rows += len(parts[-1])
            if limit is not None and rows >= limit:
                break
        return np.concatenate(parts)[:limit]

    def sample(self, count: int, episodes: Sequence[int] | None = None, seed: int = 0) -> Frames:
        """Return up to ``count`` frames spread over the folder, in random order.

        Args:
            count: Number of frames; all of them when the folder holds fewer.
            episodes: Draw from these episodes only.
            seed: Chooses the frames.
        """
        rng = np.random.default_rng(seed)
        total = len(self) if episodes is None else sum(self.episodes()[e] for e in episodes)
        wanted = np.zeros(total, bool)
        wanted[rng.permutation(total)[:count]] = True
        parts, rows = [np.empty((0, *FRAME_SHAPE), np.uint8)], 0
        for shard, group in self._groups():
            frames = self.read(shard, group, episodes)
            parts.append(frames[wanted[rows : rows + len(frames)]])
            rows += len(frames)
        return rng.permutation(np.concatenate(parts))

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
        for rows in shuffled_batches(
            self.shards, str(self), batch_size, episodes, seed, buffer_frames, skip, None
        ):
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
    ) -> Iterator[tuple[Frames, npt.NDArray[np.bool_]]]:
        """Yield what :meth:`batches` yields, and which pixels of each frame are foreground.

        Args:
            batch_size: As in :meth:`batches`, like the other arguments.
            medians: Value of :meth:`medians`.
            episodes: Read only these episodes' frames.
            seed: Chooses the order.
            buffer_frames: Frames held in memory at most.
            skip: Batches to leave out.

        Yields:
            Frames, and masks of shape ``(batch_size, 2, 64, 64)``: the pixels that differ from the
            environment's median frame, and those that differ from the frame before or after in the
            same episode and row group. A score differs from the median and stands still, a ball moves.
        """
        for rows in shuffled_batches(
            self.shards, str(self), batch_size, episodes, seed, buffer_frames, skip, medians
        ):
            frames, bits = np.ascontiguousarray(rows[:, :FRAME_BYTES]), rows[:, FRAME_BYTES:]
            masks = np.unpackbits(bits, 1).astype(bool).reshape(-1, 2, *FRAME_SHAPE[:2])
            yield frames.reshape(-1, *FRAME_SHAPE), masks

    def medians(self, count: int = 1024) -> dict[str, Frame]:
        """Return the per-pixel median frame of each environment: what stands still in it.

        Args:
            count: About so many frames of each environment, evenly spaced, are read for it.

        Returns:
            ``uint8`` frames of shape ``(64, 64, 3)`` by environment id; a merged folder has several.
        """
        shards: dict[str, list[Shard]] = {}
        for shard in self.shards:
            shards.setdefault(shard.env_id, []).append(shard)
        medians = {}
        for env_id, mine in shards.items():
            every = max(1, sum(shard.rows for shard in mine) // count)
            groups = ((shard, group) for shard in mine for group in range(shard.row_groups))
            picked = np.concatenate([self.read(*group)[::every] for group in groups])
            medians[env_id] = np.median(picked, 0).astype(np.uint8)
        return medians

    def _groups(self) -> Iterator[tuple[Shard, int]]:
        return ((shard, group) for shard in self.shards for group in range(shard.row_groups))

"""What a frames folder holds, and whether all of it is whole."""

from __future__ import annotations

import collections
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import Shard, first_line, part_name, read_shard, read_steps
from latent_obs.data.storage import list_files, name_of, parse_location, shown
from latent_obs.progress import progress_bar

_STEPS = ["episode", "step", "action", "reward", "terminated", "truncated"]


@dataclass(frozen=True)
class InfoConfig:
    """Show what a frames folder holds and where it comes from."""

    folder: str | Path
    """frames folder"""
    shards: bool = False
    """list the shards too"""


@dataclass(frozen=True)
class CheckConfig:
    """Read all of a frames folder and name every shard that is not as it should be."""

    folder: str | Path
    """frames folder"""


def frames_info(folder: FramesFolder) -> dict[str, Any]:
    """Count what a frames folder holds; frames themselves are not read.

    Args:
        folder: The folder.

    Returns:
        A dictionary with ``frames``, ``episodes``, ``episode_length`` and ``episode_return``
        (mean, min and max), ``terminated`` and ``truncated`` (episodes), ``actions`` (how often
        each discrete action was taken, or mean, min and max of each dimension; where actions have several
        types, as in some merged folders, a dictionary of these by type), ``bytes_per_frame``,
        ``collections`` (see :attr:`FramesFolder.collections`), ``frame_spec``, ``source`` and
        ``libraries``.

    Raises:
        ValueError: If a value is null that must not be.
        OSError: If a column is corrupt.
    """
    lengths: collections.Counter[int] = collections.Counter()
    returns: collections.Counter[int] = collections.Counter()
    ended = dict.fromkeys(("terminated", "truncated"), 0)
    actions: dict[str, _Actions] = {}
    for shard in folder.shards:
        with shard.open() as file:
            for group in range(shard.row_groups):
                steps = read_steps(file, group, _STEPS)
                episodes, index = np.unique(steps["episode"].to_numpy(), return_inverse=True)
                sums = np.bincount(index, steps["reward"].to_numpy())
                for episode, rows, total in zip(episodes, np.bincount(index), sums, strict=True):
                    lengths[int(episode)] += int(rows)
                    returns[int(episode)] += total
                for flag in ended:
                    ended[flag] += int(steps[flag].to_numpy().sum())
                actions.setdefault(str(steps["action"].type), _Actions()).add(steps["action"])
    taken = {kind: each.report() for kind, each in actions.items()}
    return {
        "frames": len(folder),
        "episodes": len(lengths),
        "episode_length": _spread(list(lengths.values())),
        "episode_return": _spread(list(returns.values())),
        **ended,
        "actions": taken if len(taken) > 1 else next(iter(taken.values())),
        "bytes_per_frame": folder.num_bytes / max(1, len(folder)),
        "frame_spec": folder.frame_spec.to_json(),
        "source": folder.source.to_json(),
        "collections": folder.collections,
        "libraries": folder.shards[0].metadata.get("libraries", {}),
    }


def _spread(values: list[Any]) -> dict[str, float]:
    return {"mean": float(np.mean(values)), "min": float(min(values)), "max": float(max(values))}


class _Actions:
    """Counts discrete actions, or follows the range of continuous ones."""

    def __init__(self) -> None:
        self._counts: collections.Counter[int] = collections.Counter()
        self._sum: Any = 0.0
        self._low: Any = np.inf
        self._high: Any = -np.inf
        self._rows = 0

    def add(self, column: pa.ChunkedArray) -> None:
        column = column.drop_null()
        if len(column) == 0:
            return
        if not pa.types.is_fixed_size_list(column.type):
            values, counts = np.unique(column.to_numpy(), return_counts=True)
            self._counts.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            return
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        rows = flat.reshape(-1, column.type.list_size).astype(np.float64)
        self._sum, self._rows = self._sum + rows.sum(0), self._rows + len(rows)
        self._low, self._high = np.minimum(self._low, rows.min(0)), np.maximum(self._high, rows.max(0))

    def report(self) -> dict[str, Any]:
        if not self._rows:
            return {str(action): self._counts[action] for action in sorted(self._counts)}
        mean = self._sum / self._rows
        return {"mean": mean.tolist(), "min": self._low.tolist(), "max": self._high.tolist()}


def check_frames(folder: str | Path, *, progress: bool = True) -> dict[str, list[str]]:
    """Read every byte of a frames folder and say what is wrong with which shard.

    A shard is bad when it cannot be read, a page's checksum or compression does not fit, its columns are
    not those of the format, its metadata is missing, contradicts it or belongs to another collection, its
    episodes are out of order, cut in pieces, incomplete or also in another shard. A shard that is missing
    from a collection is named too.

    Args:
        folder: The folder.
        progress: Show a progress bar on standard error.

    Returns:
        What is wrong, by file name; empty when nothing is.

    Raises:
        FileNotFoundError: If there is no such folder, or no shard in it.

    Example:
        >>> check_frames(Path("tests"))
        Traceback (most recent call last):
        FileNotFoundError: The folder tests holds no frames: there is no *.parquet file in it.
    """
    location = parse_location(folder)
    if isinstance(location, Path) and not location.is_dir():
        raise FileNotFoundError(f"There is no frames folder {location}.")
    paths = list_files(location, ".parquet")
    if not paths:
        raise FileNotFoundError(
            f"The folder {shown(location)} holds no frames: there is no *.parquet file in it."
        )
    problems: dict[str, list[str]] = {}
    shards: list[Shard] = []
    for path in paths:
        try:
            shards.append(read_shard(path))
        except ValueError as error:
            problems[name_of(path)] = [str(error).removeprefix(f"{shown(path)} ")]
    for name, reason in [*_strangers(shards), *_missing(shards)]:
        problems.setdefault(name, []).append(reason)

    seen: dict[int, str] = {}  # the shard that each episode was found in
    with progress_bar("check", sum(s.rows for s in shards), "frames", progress) as bar:
        for shard in shards:
            found = list(dict.fromkeys(_damage(shard, seen)))
            if found:
                problems.setdefault(name_of(shard.path), []).extend(found)
            bar.advance(shard.rows)
    return problems


def _strangers(shards: list[Shard]) -> Iterator[tuple[str, str]]:
    """Name shards whose metadata does not fit the folder's other shards."""
    if not shards:
        return
    usual = collections.Counter(shard.collection.frame_spec for shard in shards).most_common(1)[0][0]
    for shard in shards:
        if (spec := shard.collection.frame_spec) != usual:
            yield name_of(shard.path), f"its frame spec is {spec}, that of the other shards {usual}"
    # A merged folder holds several collections; elsewhere the name says which shard it is.
    collected = [s for s in shards if name_of(s.path).startswith("part-")]
    # The emulator's settings follow from the collection, but an update of the environment can change them.
    kinds = [json.dumps([s.collection.to_json(), s.metadata["source"]], sort_keys=True) for s in collected]
    typical = kinds.index(collections.Counter(kinds).most_common(1)[0][0]) if kinds else 0
    for shard, kind in zip(collected, kinds, strict=True):
        if kind != kinds[typical]:
            other = collected[typical]
            pairs = shard.collection.differences(other.collection)
            pairs.append(("source", shard.source, other.source))
            differ = [f"{name} {here!r} and not {there!r}" for name, here, there in pairs if here != there]
            yield name_of(shard.path), f"it belongs to another collection: {', '.join(differ)}"
        worker, number = shard.metadata.get("worker"), shard.metadata.get("shard")
        if isinstance(worker, int) and isinstance(number, int):
            name = part_name(worker, number)
            if name_of(shard.path) != name:
                yield name_of(shard.path), f"it was written as {name}"


def _missing(shards: list[Shard]) -> Iterator[tuple[str, str]]:
    """Name shards that a collection must have had."""
    numbers: dict[int, set[int]] = {}
    for shard in shards:
        worker, number = shard.metadata.get("worker"), shard.metadata.get("shard")
        derived = "split" in shard.metadata or not name_of(shard.path).startswith("part-")
        if derived or not isinstance(worker, int) or not isinstance(number, int):
            return  # a part of a collection need not have all its shards
        numbers.setdefault(worker, set()).add(number)
    workers = max((s.metadata.get("workers") or 0 for s in shards), default=0)
    for worker in range(workers):
        has = numbers.get(worker, set())
        found = sorted(has | {-1})
        # A worker without any shard lacks its first, unless there were fewer frames than workers: no shard of
        # theirs has a second frame.
        gaps = list(itertools.pairwise(found)) or [(-1, 1)] * any(shard.rows > 1 for shard in shards)
        for before, after in gaps:
            if (missing := after - before - 1) > 0:
                name = part_name(worker, before + 1)
                yield (
                    name,
                    "it is missing" + (f", as are the {missing - 1:,} after it" if missing > 1 else ""),
                )


def _damage(shard: Shard, seen: dict[int, str]) -> Iterator[str]:
    """Read one shard and say what is wrong in it."""
    if shard.metadata.get("rows", shard.rows) != shard.rows:
        yield f"it holds {shard.rows} frames, its metadata says {shard.metadata['rows']}"
    try:
        with shard.open() as file:
            for name in file.schema_arrow.names:
                if name not in ("frame", *_STEPS):
                    yield f"the column {name} is none of the format's"
            order = _Order(name_of(shard.path), seen)
            for group in range(shard.row_groups):
                try:
                    table = file.read_row_group(group)
                except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                    yield f"row group {group} is corrupt: {first_line(error)}"
                    order.lost(file.metadata.row_group(group).num_rows)
                    continue
                if table["frame"].null_count:
                    yield f"row group {group} holds null frames"
                yield from order.check(table)
    except (pa.ArrowException, OSError, ValueError) as error:
        yield f"it cannot be read: {first_line(error)}"


class _Order:
    """Follows the episodes and steps of a shard from row group to row group."""

    def __init__(self, name: str, seen: dict[int, str]) -> None:
        self._name, self._seen = name, seen
        self._row, self._mine = 0, set[int]()
        self._last: tuple[int, int, bool] | None = None  # episode, step, whether it ended there
        self._lost = False

    def lost(self, rows: int) -> None:
        """Go on after a row group that cannot be read."""
        self._row += rows
        self._last, self._lost = None, True

    def check(self, table: pa.Table) -> Iterator[str]:
        if any(table[name].null_count for name in _STEPS if name != "action"):
            yield "a column that must not be null holds nulls"
            return
        if len(table) == 0:
            return
        episode, step = table["episode"].to_numpy(), table["step"].to_numpy().astype(np.int64)
        ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
        null = table["action"].is_null().to_numpy()
        known = self._last or (int(episode[0]), int(step[0]) - 1, False)
        before = np.concatenate([[known[0]], episode[:-1]])
        after = np.concatenate([[known[1]], step[:-1]]) + 1
        closed = np.concatenate([[known[2]], ended[:-1]])
        begins = episode != before
        if self._last is None and not self._lost:
            begins[0] = True

        def at(wrong: npt.NDArray[np.bool_]) -> str | None:
            where = np.flatnonzero(wrong)
            return f"row {self._row + where[0]}" if len(where) else None

        if row := at(begins & (step != 0)):
            yield f"{row}: an episode does not begin with step 0, its first frames are missing"
        if row := at(~begins & (step != after)):
            yield f"{row}: a step does not follow the one before it, frames are missing or out of order"
        if row := at(~begins & closed):
            yield f"{row}: an episode goes on after its end"
        if row := at(null != (step == 0)):
            yield f"{row}: an action must be null at step 0 and nowhere else"
        for number in episode[begins].tolist():
            if (first := self._seen.setdefault(number, self._name)) != self._name:
                yield f"its episode {number} is also in {first}"
            elif number in self._mine:
                yield f"its episode {number} comes in pieces"
            self._mine.add(number)
        self._row += len(table)
        self._last, self._lost = (int(episode[-1]), int(step[-1]), bool(ended[-1])), False

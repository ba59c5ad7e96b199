"""Makes frames folders from frames folders: several into one, and one into two.

Nothing is decoded and encoded again but where a row has to change, and every shard keeps the
metadata of its collection. ``docs/formats.md`` says what is added to it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from latent_obs.data.folder import FramesFolder
from latent_obs.data.parquet import TableWriter, staged_folder
from latent_obs.data.shards import ROW_GROUP, Shard, frames_schema, read_episodes, read_steps, writer_options
from latent_obs.data.storage import Location, NewFile, name_of, open_file
from latent_obs.progress import progress_bar, stop_on_signals

# Episode numbers of one collection lie within a block of this size.
_BLOCK = 10**12


@dataclass(frozen=True)
class MergeConfig:
    """Put several frames folders, of one game or of many, together in one."""

    folders: tuple[str | Path, ...]
    """frames folders with the same frame spec"""
    out: Path = Path("merged")
    """folder to make"""

    def __post_init__(self) -> None:
        if len(self.folders) < 2:
            raise ValueError(f"Merging needs at least two frames folders, got {len(self.folders)}.")


@dataclass(frozen=True)
class SplitConfig:
    """Split a frames folder by episode into two, for training and for validation."""

    folder: str | Path
    """frames folder"""
    out: Path = Path("split")
    """folder to make; the halves are train and validation in it"""
    validation: float = 0.1
    """fraction of the frames for validation, in whole episodes"""
    seed: int = 0
    """chooses the episodes"""


def merge_frames(config: MergeConfig, *, progress: bool = True) -> FramesFolder:
    """Put frames folders together in one.

    A folder whose episode numbers are free is taken over as hard links, or copies where the file
    system has none. Otherwise its episodes get the next free block of 10^12 numbers, which
    rewrites its shards. The same folders in the same order always give the same numbers.

    Args:
        config: The folders and where to.
        progress: Show a progress bar on standard error.

    Returns:
        The merged folder.

    Raises:
        FileNotFoundError: If a folder is missing or empty.
        ValueError: If the frame specs differ, or an episode is in two of the folders.
        FileExistsError: If ``out`` exists and is not empty.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    folders = [FramesFolder(path) for path in config.folders]
    first = folders[0]
    for folder in folders[1:]:
        if folder.frame_spec != first.frame_spec:
            raise ValueError(
                f"The frames of {first} were made with {first.frame_spec}, those of {folder} with "
                f"{folder.frame_spec}: no encoder could be trained on both. Collect one of them again with "
                "the same crop."
            )
    offsets = _offsets(folders)
    plan = {"merge": [_contents(folder) for folder in folders], "offsets": offsets}
    total = sum(len(folder) for folder in folders)
    with (
        staged_folder(config.out, plan) as staging,
        progress_bar("merge", total, "frames", progress) as bar,
        stop_on_signals() as stop,
    ):
        for i, (folder, offset) in enumerate(zip(folders, offsets, strict=True)):
            for number, shard in enumerate(folder.shards):
                path = staging / f"merged-{i:03d}-{number:05d}.parquet"
                if not path.exists():
                    _take_over(folder, shard, path, offset)
                bar.advance(shard.rows)
                if stop.is_set():
                    raise KeyboardInterrupt
    return FramesFolder(config.out)


def _offsets(folders: list[FramesFolder]) -> list[int]:
    """Return what to add to each folder's episode numbers to make all of them unique."""
    taken: dict[int, str] = {}  # the collected shard that each number stands for
    offsets = []
    for folder in folders:
        mine = _origins(folder)
        for number in mine.keys() & taken.keys():
            if mine[number] == taken[number] and mine[number]:
                raise ValueError(
                    f"The episode {number} of {folder} is also in a folder before it: both come from "
                    f"the same collection. Merge each collection once."
                )
        clash = mine.keys() & taken.keys()
        offset = (max(taken, default=-1) // _BLOCK + 1) * _BLOCK if clash else 0
        taken |= {number + offset: origin for number, origin in mine.items()}
        offsets.append(offset)
    return offsets


def _origins(folder: FramesFolder) -> dict[int, str]:
    """Return for each episode the collected shard it comes from; ``""`` where that is not known."""
    origins: dict[int, str] = {}
    for shard in folder.shards:
        collection, places = shard.collection, ("worker", "shard", "episode_offset")
        where = [collection.origin().to_json(), *(shard.metadata.get(name) for name in places)]
        origin = json.dumps(where, sort_keys=True) if collection.env_id is not None else ""
        origins |= dict.fromkeys(np.unique(read_episodes(shard)).tolist(), origin)
    return origins


def _contents(folder: FramesFolder) -> list[Any]:
    """Return what tells a folder from another one, for a plan."""
    return [[name_of(shard.path), shard.rows, shard.metadata] for shard in folder.shards]


def _take_over(folder: FramesFolder, shard: Shard, path: Path, offset: int) -> None:
    if offset == 0:
        link_or_copy(shard.path, path)
        return
    before = int(shard.metadata.get("episode_offset", 0))
    with shard.open() as file:
        schema = frames_schema(file.schema_arrow.field("action").type)
        metadata = {**shard.metadata, "episode_offset": before + offset}
        with TableWriter(path, schema, metadata, ROW_GROUP, **writer_options(schema)) as writer:
            for group in range(shard.row_groups):
                rows = read_steps(file, group)
                episodes = pa.array(rows["episode"].to_numpy() + offset)
                column = rows.schema.get_field_index("episode")
                writer.write(rows.set_column(column, schema.field("episode"), episodes))


def link_or_copy(source: Location, path: Path) -> None:
    """Make ``path`` another name of the file ``source``, or a copy where that cannot be."""
    if isinstance(source, Path):
        try:
            os.link(source, path)
            return
        except OSError:  # another file system, or one without hard links
            pass
    copy = NewFile(path)
    try:
        with open_file(source) as file:
            shutil.copyfileobj(file, copy.stream, 1 << 22)
        copy.commit()
    except BaseException:
        copy.abort()
        raise


def split_frames(config: SplitConfig, *, progress: bool = True) -> tuple[FramesFolder, FramesFolder]:
    """Split a frames folder by episode, as training splits it; frames keep their bytes and numbers.

    Args:
        config: The folder, the fraction and where to.
        progress: Show a progress bar on standard error.

    Returns:
        The folders ``train`` and ``validation`` in ``config.out``.

    Raises:
        FileNotFoundError: If the folder is missing or empty.
        ValueError: If it holds fewer than two episodes, or the fraction is not in (0, 1).
        FileExistsError: If ``out`` exists and is not empty.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    folder = FramesFolder(config.folder)
    episodes = dict(zip(("train", "validation"), folder.split(config.validation, config.seed), strict=True))
    plan = {"split": _contents(folder), "validation": config.validation, "seed": config.seed}
    with (
        staged_folder(config.out, plan) as staging,
        progress_bar("split", 2 * len(folder), "frames", progress) as bar,
        stop_on_signals() as stop,
    ):
        for part, mine in episodes.items():
            (staging / part).mkdir(exist_ok=True)
            about = {"part": part, "validation": config.validation, "seed": config.seed}
            for shard in folder.shards:
                path = staging / part / name_of(shard.path)
                if not path.exists():
                    _write_part(folder, shard, path, np.array(mine), about)
                bar.advance(shard.rows)
                if stop.is_set():
                    raise KeyboardInterrupt
    return FramesFolder(config.out / "train"), FramesFolder(config.out / "validation")


def _write_part(folder: FramesFolder, shard: Shard, path: Path, episodes: Any, about: dict[str, Any]) -> None:
    """Write those rows of a shard that belong to some episodes; nothing when there are none."""
    # What the collection asked of a shard no longer holds, so nothing can be collected into it.
    metadata = {k: v for k, v in shard.metadata.items() if k not in ("shard_rows", "rows")}
    metadata |= {"split": [*metadata.get("split", []), about], "complete": True}
    keep, start = np.isin(read_episodes(shard), episodes), 0
    if not keep.any():
        return
    with shard.open() as file:
        schema = frames_schema(file.schema_arrow.field("action").type)
        with TableWriter(path, schema, metadata, ROW_GROUP, **writer_options(schema)) as writer:
            for group in range(shard.row_groups):
                rows = file.metadata.row_group(group).num_rows
                mine = keep[start : start + rows]
                start += rows
                if mine.any():
                    writer.write(read_steps(file, group).filter(pa.array(mine)))

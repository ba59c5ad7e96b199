"""Frames folders as LeRobot datasets of format v3.0, without loss: images are PNG inside Parquet, not video.

A LeRobot dataset has a row for each step: what was seen, the action taken on it, and the reward that
followed. A frames folder has a row for each frame, with the action that led to it. So the actions move up
by one row, and the last frame of an episode, on which nobody acted, has no row.

Source: Hugging Face's lerobot, whose ``LeRobotDataset`` reads these files; ``docs/formats.md`` lists them.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import as_array
from latent_obs.data.parquet import TableWriter, staged_folder
from latent_obs.data.shards import Shard, as_frames, one_action_type, without_nulls
from latent_obs.frames import FRAME_SHAPE, Frames
from latent_obs.progress import Bar, progress_bar, stop_on_signals

FORMAT = "v3.0"
_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_FILES = 1000  # in a chunk
_IMAGE = "observation.image"
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
Statistics = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class ExportLerobotConfig:
    """Make a LeRobot dataset, format v3.0, from a frames folder, without loss."""

    folder: str | Path
    """frames folder"""
    out: Path = Path("lerobot")
    """folder of the dataset to make"""
    fps: int = 30
    """steps in a second; LeRobot counts time in seconds, and a frames folder does not"""


def export_lerobot(config: ExportLerobotConfig, *, progress: bool = True) -> dict[str, Any]:
    """Make a LeRobot dataset from a frames folder.

    ``LeRobotDataset("any/name", root=out)`` opens it. Its features are ``observation.image``, ``action``,
    ``next.reward``, ``next.done``, ``next.terminated`` and ``next.truncated``. The task of an episode is
    the id of its environment.

    Args:
        config: Which folder, and where to.
        progress: Show a progress bar on standard error.

    Returns:
        What ``meta/info.json`` says, ``total_episodes`` and ``total_frames`` among it.

    Raises:
        FileNotFoundError: If the folder is missing or empty.
        FileExistsError: If ``out`` exists and is not empty.
        ValueError: If ``fps`` is not positive, no episode has a step, or the folder was merged from
            environments whose actions have different types.
        OSError: If a shard is corrupt, or ``out`` cannot be written.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; ``out`` is not made.

    Warns:
        UserWarning: If an episode of a single frame, hence without a step, is left out.

    Example:
        >>> export_lerobot(ExportLerobotConfig("frames"))["total_frames"]  # doctest: +SKIP
        19977
    """
    if config.fps < 1:
        raise ValueError(f"The steps in a second must be 1 or more, got fps={config.fps}.")
    folder = FramesFolder(config.folder)
    plan = {"lerobot": FORMAT, "frames": folder.identity, "fps": config.fps}
    with (
        staged_folder(config.out, plan) as staging,
        progress_bar("export", len(folder), "frames", progress) as bar,
        stop_on_signals() as stop,
    ):
        return _Export(folder, staging, config.fps).write(bar, stop)


class _Export:
    """One export: its counters, and the statistics of the episodes so far."""

    def __init__(self, folder: FramesFolder, out: Path, fps: int) -> None:
        self.folder, self.out, self.fps = folder, out, fps
        self.about = {"frame_spec": folder.frame_spec.to_json(), "source": folder.source.to_json()}
        self.tasks: list[str] = []
        self.rows = self.files = self.single = 0
        files = [shard.path for shard in folder.shards]
        self.schema = _columns(one_action_type(files, "LeRobot dataset", folder))
        self.totals: dict[str, _Total] = {name: _Total() for name in self.schema.names}

    def write(self, bar: Bar, stop: threading.Event) -> dict[str, Any]:
        meta = self.out / "meta"
        path = meta / "episodes" / _FILE.format(chunk_index=0, file_index=0)
        path.parent.mkdir(parents=True, exist_ok=True)
        number = 0
        with TableWriter(path, _episode_columns(self.schema.names), {}, _FILES) as episodes:
            for shard in self.folder.shards:
                for episode in self._shard(shard, bar, stop):
                    row = {"episode_index": number, **episode}
                    episodes.write(pa.Table.from_pylist([row], _episode_columns(self.schema.names)))
                    number += 1
        if not number:
            raise ValueError(
                f"No episode of {self.folder} has a step, and a LeRobot dataset holds steps. "
                "Collect longer episodes."
            )
        if self.single:
            warnings.warn(
                f"{self.single} episodes of {self.folder} hold a single frame and no step, so they are left "
                "out.",
                UserWarning,
                stacklevel=3,
            )
        pq.write_table(_task_table(self.tasks), meta / "tasks.parquet")
        stats = {name: total.result() for name, total in self.totals.items()}
        _write_json(meta / "stats.json", {name: _as_lists(one) for name, one in stats.items()})
        info = self._info(number)
        _write_json(meta / "info.json", info)
        return info

    def _shard(self, shard: Shard, bar: Bar, stop: threading.Event) -> Iterator[dict[str, Any]]:
        """Write the steps of a shard to a file, and yield what is to be said of each episode."""
        with shard.open() as file:
            table = without_nulls(file.read())
        numbers = table["episode"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        ends = [*starts[1:], len(numbers)]
        frames = as_frames(table["frame"])
        columns = {n: as_array(table[n]) for n in ("action", "reward", "terminated", "truncated")}
        place = {"chunk_index": self.files // _FILES, "file_index": self.files % _FILES}
        path = self.out / "data" / _FILE.format(**place)
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = TableWriter(path, self.schema, self.about, 100)  # row groups as `datasets` writes of images
        task = shard.env_id or "unknown environment"
        try:
            for start, end in zip(starts, ends, strict=True):
                bar.advance(end - start)
                if stop.is_set():
                    raise KeyboardInterrupt
                if end - start == 1:
                    self.single += 1
                    continue
                if task not in self.tasks:
                    self.tasks.append(task)
                length, seen, after = end - start - 1, slice(start, end - 1), slice(start + 1, end)
                ended = columns["terminated"][after] | columns["truncated"][after]
                number = self.totals["episode_index"].episodes
                values: dict[str, npt.NDArray[Any]] = {
                    _IMAGE: frames[seen],
                    "action": columns["action"][after].reshape(length, -1),
                    "next.reward": columns["reward"][after],
                    "next.done": ended,
                    "next.terminated": columns["terminated"][after],
                    "next.truncated": columns["truncated"][after],
                    "timestamp": (np.arange(length) / self.fps).astype(np.float32),
                    "frame_index": np.arange(length),
                    "episode_index": np.full(length, number),
                    "index": np.arange(self.rows, self.rows + length),
                    "task_index": np.full(length, self.tasks.index(task)),
                }
                arrays = [_column(values[field.name], field.type) for field in self.schema]
                writer.write(pa.Table.from_arrays(arrays, schema=self.schema))
                said = {
                    "tasks": [task],
                    "length": length,
                    **{f"data/{name}": index for name, index in place.items()},
                    "dataset_from_index": self.rows,
                    "dataset_to_index": self.rows + length,
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
                self.rows += length
                for name, each in values.items():
                    one = _image_statistics(each) if name == _IMAGE else _statistics(each)
                    self.totals[name].add(one)
                    said |= {f"stats/{name}/{statistic}": v for statistic, v in _as_lists(one).items()}
                yield said
        except BaseException:
            writer.abort()
            raise
        if writer.rows:
            writer.commit()
            self.files += 1
        else:
            writer.abort()

    def _info(self, episodes: int) -> dict[str, Any]:
        features: dict[str, Any] = {}
        for field in self.schema:
            dtype, shape = field.type, [1]
            if pa.types.is_fixed_size_list(dtype):
                dtype, shape = dtype.value_type, [dtype.list_size]
            name = np.dtype(dtype.to_pandas_dtype()).name if field.name != _IMAGE else "image"
            features[field.name] = {"dtype": name, "shape": shape, "names": None}
        features[_IMAGE] |= {"shape": [*FRAME_SHAPE], "names": ["height", "width", "channel"]}
        return {
            "codebase_version": FORMAT,
            "robot_type": None,
            "total_episodes": episodes,
            "total_frames": self.rows,
            "total_tasks": len(self.tasks),
            "chunks_size": _FILES,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": self.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": f"data/{_FILE}",
            "video_path": None,
            "features": features,
        }


class _Total:
    """Statistics of all episodes from those of each; quantiles are averaged, as LeRobot does."""

    def __init__(self) -> None:
        self.episodes, self._sums = 0, {}  # type: int, Statistics

    def add(self, one: Statistics) -> None:
        count = one["count"]
        new = {n: v * count for n, v in one.items() if n not in ("min", "max", "count", "std")}
        new["square"] = (one["std"] ** 2 + one["mean"] ** 2) * count
        new["count"] = count
        for name, value in new.items():
            self._sums[name] = self._sums.get(name, 0) + value
        self._sums["min"] = np.minimum(one["min"], self._sums.get("min", np.inf))
        self._sums["max"] = np.maximum(one["max"], self._sums.get("max", -np.inf))
        self.episodes += 1

    def result(self) -> Statistics:
        sums = dict(self._sums)
        kept = {name: sums.pop(name) for name in ("min", "max", "count")}
        means = {name: value / kept["count"] for name, value in sums.items()}
        variance = means.pop("square") - means["mean"] ** 2
        return {**kept, **means, "std": np.sqrt(np.maximum(variance, 0))}


def _statistics(values: npt.NDArray[Any]) -> Statistics:
    """Return what LeRobot keeps of a feature, each of shape ``(width,)``."""
    table = values.reshape(len(values), -1).astype(np.float64)
    quantiles = np.quantile(table, _QUANTILES, axis=0)
    return {
        "min": table.min(0),
        "max": table.max(0),
        "mean": table.mean(0),
        "std": table.std(0),
        "count": np.array([len(table)]),
        **{_quantile_name(q): value for q, value in zip(_QUANTILES, quantiles, strict=True)},
    }


def _image_statistics(frames: Frames) -> Statistics:
    """Return the same of images in [0, 1], by channel, each of shape ``(3, 1, 1)``."""
    levels = np.arange(256) / 255
    pixels = frames.reshape(-1, 3)
    counts = np.stack([np.bincount(pixels[:, channel], minlength=256) for channel in range(3)])
    share = counts / len(pixels)
    mean = share @ levels
    below = np.cumsum(counts, axis=1)
    found: Statistics = {
        "min": levels[(counts > 0).argmax(1)],
        "max": levels[255 - (counts[:, ::-1] > 0).argmax(1)],
        "mean": mean,
        "std": np.sqrt((share * (levels - mean[:, None]) ** 2).sum(1)),
    }
    for q in _QUANTILES:
        found[_quantile_name(q)] = levels[(below >= q * len(pixels)).argmax(1)]
    shaped: Statistics = {name: value.reshape(3, 1, 1) for name, value in found.items()}
    return {**shaped, "count": np.array([len(frames)])}


def _quantile_name(q: float) -> str:
    return f"q{round(q * 100):02d}"


def _as_lists(statistics: Statistics) -> dict[str, Any]:
    return {name: value.tolist() for name, value in statistics.items()}


def _columns(action: pa.DataType) -> pa.Schema:
    """Return the columns of the steps."""
    if pa.types.is_fixed_size_list(action) and action.list_size == 1:
        action = action.value_type  # LeRobot stores vectors of one number as numbers
    # What `datasets`, and the Hub's viewer by it, takes for an image.
    image = {"info": {"features": {_IMAGE: {"_type": "Image"}}}}
    return pa.schema(
        {
            _IMAGE: pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "action": action,
            "next.reward": pa.float64(),
            "next.done": pa.bool_(),
            "next.terminated": pa.bool_(),
            "next.truncated": pa.bool_(),
            "timestamp": pa.float32(),
            "frame_index": pa.int64(),
            "episode_index": pa.int64(),
            "index": pa.int64(),
            "task_index": pa.int64(),
        },
        metadata={"huggingface": json.dumps(image)},
    )


def _episode_columns(features: list[str]) -> pa.Schema:
    """Return the columns of ``meta/episodes``."""
    fields = {"episode_index": pa.int64(), "tasks": pa.list_(pa.string()), "length": pa.int64()}
    for name in ("data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index"):
        fields[name] = pa.int64()
    numbers = pa.list_(pa.float64())
    statistics = ["min", "max", "mean", "std", "count", *map(_quantile_name, _QUANTILES)]
    for feature in features:
        for statistic in statistics:
            kind = pa.list_(pa.list_(numbers)) if feature == _IMAGE else numbers
            fields[f"stats/{feature}/{statistic}"] = pa.list_(pa.int64()) if statistic == "count" else kind
    return pa.schema(
        {**fields, "meta/episodes/chunk_index": pa.int64(), "meta/episodes/file_index": pa.int64()}
    )


def _column(values: npt.NDArray[Any], kind: pa.DataType) -> pa.Array:
    if values.dtype == np.uint8 and values.ndim == 4:
        return pa.array([{"bytes": _png(frame)} for frame in values], kind)
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind.value_type), type=kind)
    return pa.array(values.reshape(-1), kind)


def _png(frame: Any) -> bytes:
    done, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    assert done
    return data.tobytes()


def _task_table(tasks: list[str]) -> pa.Table:
    """Return the tasks as pandas would store them, whose index they are: LeRobot reads them by pandas."""
    index = "__index_level_0__"
    text = {"pandas_type": "unicode", "numpy_type": "object"}
    number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
    pandas = {
        "index_columns": [index],
        "column_indexes": [{"name": None, "field_name": None, **text, "metadata": {"encoding": "UTF-8"}}],
        "columns": [
            {**number, "metadata": None},
            {"name": None, "field_name": index, **text, "metadata": None},
        ],
    }
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), index: tasks})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False), encoding="utf-8")

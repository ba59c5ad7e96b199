"""Minari datasets, both ways: image observations in as frames, frames or latents out.

Minari stores image observations as JPEG unless told otherwise, which destroys small objects.
What is exported here is told otherwise; what was stored as JPEG by others is imported with a
warning. Versions of Minari before 0.5.4 cannot be told.
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pyarrow as pa

from latent_obs.collecting.sources import open_env
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import LatentsFolder, as_array
from latent_obs.data.parquet import staged_folder
from latent_obs.data.shards import (
    ShardWriter,
    action_type,
    as_frames,
    as_stored,
    one_action_type,
    part_name,
    without_nulls,
)
from latent_obs.extras import needs
from latent_obs.frames import FRAME_SHAPE, FrameSource, FrameSpec, check_frame_space, frame_source, preprocess
from latent_obs.progress import progress_bar, stop_on_signals

_SHARD_ROWS = 8192


@dataclass(frozen=True)
class ImportMinariConfig:
    """Make a frames folder from a local Minari dataset with image observations."""

    dataset: str
    """id, such as atari/pong/expert-v0; looked for where Minari does, see MINARI_DATASETS_PATH"""
    out: Path = Path("frames")
    """frames folder to make"""
    key: str | None = None
    """the image among Dict observations"""
    crop: tuple[int, int, int, int] | None = None
    """rows and columns to keep before resizing: top bottom left right"""


@dataclass(frozen=True)
class ExportMinariConfig:
    """Make a Minari dataset from a frames folder or a latents folder, without loss."""

    folder: str | Path
    """frames folder or latents folder"""
    dataset: str
    """id of the dataset to make, such as pong/latents-v0"""


def import_minari(config: ImportMinariConfig, *, progress: bool = True) -> FramesFolder:
    """Make a frames folder from a Minari dataset.

    Frames are made by :func:`latent_obs.preprocess`; actions, rewards, terminations and truncations
    are kept. A dataset that :func:`export_minari` made gets its frame spec and source back.

    Args:
        config: Which dataset, which images of it, and where to.
        progress: Show a progress bar on standard error.

    Returns:
        The frames folder; its episodes are numbered as in the dataset.

    Raises:
        FileNotFoundError: If there is no such dataset on this machine.
        ValueError: If its observations are no images or its actions no array, or a crop is asked of a
            dataset that :func:`export_minari` made.
        FileExistsError: If ``out`` exists and is not empty.
        ImportError: If Minari is not installed.

    Warns:
        UserWarning: If Minari stored the images as JPEG.
    """
    minari = _need_minari()
    try:
        dataset = minari.load_dataset(config.dataset)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"There is no Minari dataset {config.dataset!r} here ({error}). Get it: "
            f"minari download {config.dataset}, or set MINARI_DATASETS_PATH."
        ) from error
    space = dataset.observation_space
    if config.key is not None:
        if not isinstance(space, gym.spaces.Dict) or config.key not in space.spaces:
            raise ValueError(f"The observations of {config.dataset} have no key {config.key!r}: {space}.")
        space = space[config.key]
    check_frame_space(space, "latent-obs frames import-minari")
    column = action_type(dataset.action_space)
    if dataset.storage.jpeg_encoding:
        warnings.warn(
            f"Minari stored the images of {config.dataset} as JPEG, which blurs small objects: an encoder "
            "trained on them meets sharper frames when it acts.",
            UserWarning,
            stacklevel=2,
        )
    own = dataset.storage.metadata.get("latent_obs", {}) if space.shape == FRAME_SHAPE else {}
    if own and config.crop is not None:
        raise ValueError(
            f"The observations of {config.dataset} are frames already, made with "
            f"{FrameSpec.from_json(own['frame_spec'])}, and are not cropped again: leave --crop out."
        )
    spec = FrameSpec.from_json(own["frame_spec"]) if own else FrameSpec(crop=config.crop)
    if own:
        source = FrameSource.from_json(own["source"])
    else:
        source = frame_source(dataset.env_spec) if dataset.env_spec else FrameSource()
    about = {
        "env_id": source.env_id,
        "env_kwargs": source.env_kwargs,
        "frame_spec": spec.to_json(),
        "policy": dataset.storage.metadata.get("algorithm_name"),
        "seed": None,
        "workers": 1,
        "minari": {"id": config.dataset, "jpeg": dataset.storage.jpeg_encoding, "key": config.key},
        "source": source.to_json(),
        "libraries": {"minari": version("minari"), "cv2": cv2.__version__},
        "worker": 0,
    }
    plan = {**about, "total_steps": int(dataset.total_steps)}
    total = int(dataset.total_steps) + int(dataset.total_episodes)
    with (
        staged_folder(config.out, plan) as staging,
        progress_bar("import", total, "frames", progress) as bar,
        stop_on_signals() as stop,
    ):
        number, writer = 0, None
        try:
            for episode in dataset.iterate_episodes():
                if writer is None:
                    path = staging / part_name(0, number)
                    writer = ShardWriter(path, column, {**about, "shard": number})
                observations = episode.observations
                images = observations if config.key is None else observations[config.key]
                _append(writer, int(episode.id), images, episode, spec)
                bar.advance(len(images))
                if writer.rows >= _SHARD_ROWS:
                    writer.commit(complete=True)
                    number, writer = number + 1, None
                if stop.is_set():
                    raise KeyboardInterrupt
            if writer is not None:
                writer.commit(complete=True)
        except BaseException:
            if writer is not None:
                writer.abort()
            raise
    return FramesFolder(config.out)


def _append(writer: ShardWriter, number: int, images: Any, episode: Any, spec: FrameSpec) -> None:
    writer.append(preprocess(np.asarray(images[0]), spec), number, 0, None, 0.0, False, False)
    for t in range(len(episode.rewards)):
        writer.append(
            preprocess(np.asarray(images[t + 1]), spec),
            number,
            t + 1,
            as_stored(episode.actions[t], writer.action),
            float(episode.rewards[t]),
            bool(episode.terminations[t]),
            bool(episode.truncations[t]),
        )


def export_minari(config: ExportMinariConfig, *, progress: bool = True) -> Any:
    """Make a Minari dataset from a frames folder or a latents folder.

    Frames become ``uint8`` observations of shape (64, 64, 3), stored as they are; latents become
    float32 observations of shape (latent_dim,), the posterior means. Minari numbers episodes from 0.

    Args:
        config: Which folder, and the id of the dataset.
        progress: Show a progress bar on standard error.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        FileNotFoundError: If the folder is missing or empty.
        ValueError: If there is such a dataset already, the id is none, or the folder was merged from
            environments whose actions have different types.
        ImportError: If Minari is not installed.
        KeyboardInterrupt: After Ctrl-C or SIGTERM; no dataset is left.

    Warns:
        UserWarning: If the action space is not known but guessed from the actions, or an episode of
            a single frame is left out, which Minari cannot store.
    """
    minari = _need_minari()
    from minari.storage.datasets_root_dir import get_dataset_path

    path = Path(get_dataset_path(config.dataset))
    if path.exists():
        raise ValueError(f"There is a Minari dataset {config.dataset} already, in {path}. Choose another id.")
    folder: FramesFolder | LatentsFolder = _open(config.folder)
    about: dict[str, Any] = {"frame_spec": folder.frame_spec.to_json(), "source": folder.source.to_json()}
    if isinstance(folder, LatentsFolder):
        about |= {"encoder": folder.metadata["encoder"], "frames": folder.metadata["frames"]}
        space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (folder.latent_dim,), np.float32)
        identity = folder.metadata["frames"]
    else:
        about["frames"] = identity = folder.identity
        space = gym.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
    files = [shard.path for shard in folder.shards] if isinstance(folder, FramesFolder) else folder.files
    kind = one_action_type(files, "Minari dataset", folder)
    env = _open_env(identity, kind)
    actions = _guess_actions(folder, kind) if env is None else env.action_space
    done = False
    try:
        with (
            warnings.catch_warnings(),
            progress_bar("export", len(folder), "frames", progress) as bar,
            stop_on_signals() as stop,
        ):
            # Minari asks for an author, a permalink and more in warnings.
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")
            dataset = minari.create_dataset_from_buffers(
                config.dataset,
                _episodes(folder, actions, bar.advance, stop),
                env=None if env is None else env.unwrapped,  # the specs of wrappers need not be JSON
                observation_space=space,
                action_space=actions,
                algorithm_name=str(identity.get("policy")),
                description=f"{'Latents' if 'encoder' in about else 'Frames'} made by latent_obs.",
                jpeg_encoding=False,
            )
            dataset.storage.update_metadata({"latent_obs": about})
        done = True
    finally:
        if env is not None:
            env.close()
        if not done:
            shutil.rmtree(path, ignore_errors=True)
    return minari.load_dataset(config.dataset)


def _open(path: str | Path) -> FramesFolder | LatentsFolder:
    try:
        return FramesFolder(path)
    except ValueError as error:
        try:
            return LatentsFolder(Path(path))
        except ValueError:
            raise error from None


def _open_env(identity: dict[str, Any], kind: pa.DataType) -> gym.Env[Any, Any] | None:
    """Make the environment again as it was collected from, if its actions still have the type stored."""
    said = identity.get
    if not (env_id := said("env_id")):
        return None  # a merged folder, or one whose environment is not known
    render, wrapper = bool(said("render")), said("wrapper")
    try:
        env = open_env(env_id, said("env_kwargs"), said("key"), render=render, wrapper=wrapper)
    except Exception:  # its constructor, or what is put around it, may raise anything
        return None
    with contextlib.suppress(ValueError):
        if action_type(env.action_space) == kind:
            return env
    env.close()
    return None


def _guess_actions(folder: FramesFolder | LatentsFolder, kind: pa.DataType) -> gym.Space[Any]:
    """Return a space that holds every action of a folder whose environment does not tell."""
    space: gym.Space[Any]
    if pa.types.is_fixed_size_list(kind):
        dtype = np.dtype(kind.value_type.to_pandas_dtype())
        low, high = (-np.inf, np.inf) if dtype.kind == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        space = gym.spaces.Box(low, high, (kind.list_size,), dtype.type)
    else:
        columns = [as_array(table["action"]) for table in _tables(folder, ["action"])]
        start = min(int(column.min(initial=0)) for column in columns)
        most = max(int(column.max(initial=0)) for column in columns)
        space = gym.spaces.Discrete(most - start + 1, start=start)
    warnings.warn(
        f"The environment of {folder} cannot be made here, or takes other actions here, so its action space "
        f"is not known; {space} holds the actions that occur.",
        UserWarning,
        stacklevel=3,
    )
    return space


def _tables(folder: FramesFolder | LatentsFolder, columns: list[str]) -> Iterator[pa.Table]:
    if isinstance(folder, FramesFolder):
        for shard in folder.shards:
            with shard.open() as file:
                yield without_nulls(file.read(columns=columns))
    else:
        yield from folder.tables(columns)


def _episodes(
    folder: FramesFolder | LatentsFolder,
    actions: gym.Space[Any],
    report: Callable[[int], None],
    stop: threading.Event,
) -> Iterator[Any]:
    """Yield episodes as Minari's buffers, holding one shard at a time."""
    from minari.data_collector import EpisodeBuffer

    image = "frame" if isinstance(folder, FramesFolder) else "mean"
    single = 0
    for table in _tables(folder, [image, "action", "reward", "terminated", "truncated", "episode"]):
        numbers = table["episode"].to_numpy()
        starts = np.flatnonzero(np.diff(numbers, prepend=-1)).tolist()
        observations = as_frames(table[image]) if image == "frame" else as_array(table[image])
        taken = as_array(table["action"]).astype(actions.dtype)
        taken = taken.reshape(-1, *(actions.shape or ()))
        columns = {name: as_array(table[name]) for name in ("reward", "terminated", "truncated")}
        for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            report(end - start)
            if stop.is_set():
                raise KeyboardInterrupt
            if end - start == 1:
                single += 1
                continue
            after = slice(start + 1, end)
            yield EpisodeBuffer(
                observations=observations[start:end],
                actions=taken[after],
                rewards=columns["reward"][after],
                terminations=columns["terminated"][after],
                truncations=columns["truncated"][after],
            )
    if single:
        warnings.warn(
            f"{single} episodes of {folder} hold a single frame and no step; Minari cannot store such, "
            "so they are left out.",
            UserWarning,
            stacklevel=1,  # Minari calls this, and its own warnings are ignored
        )


def _need_minari() -> Any:
    with needs("A Minari dataset (on Python >= 3.11)"):
        importlib.import_module("h5py")
        return importlib.import_module("minari")

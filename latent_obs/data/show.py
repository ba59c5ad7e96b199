"""Pictures of a frames folder for a person to look at: a contact sheet and an episode as a clip."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import matplotlib.figure
import numpy as np

from latent_obs.data.folder import FramesFolder
from latent_obs.data.storage import name_of, refuse_url
from latent_obs.files import write_atomically
from latent_obs.frames import Frames

# Frames of a clip are enlarged, or players blur them.
_SCALE = 4


@dataclass(frozen=True)
class ShowConfig:
    """Draw a contact sheet of a frames folder, and one of its episodes as a clip."""

    folder: str | Path
    """frames folder"""
    out: Path = Path("shown")
    """folder for sheet.png and the clip"""
    frames: int = 48
    """frames on the contact sheet, spread evenly over the folder"""
    episode: int | None = None
    """episode of the clip; default: the first"""
    clip: Literal["gif", "mp4"] = "gif"
    """gif plays everywhere; mp4 (MPEG-4 Visual) is smaller, but not every browser plays it"""
    fps: int = 15
    """frames of the clip in a second"""
    limit: int = 600
    """frames of the clip at most"""

    def __post_init__(self) -> None:
        for name in ("frames", "fps", "limit"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")


def show_frames(config: ShowConfig) -> list[Path]:
    """Write ``sheet.png`` and ``episode-<number>.gif`` or ``.mp4``.

    Args:
        config: Which folder, and what of it.

    Returns:
        The files written.

    Raises:
        FileNotFoundError: If the folder is missing or empty.
        ValueError: If it has no such episode, or ``out`` is a URL.
        FileExistsError: If a file is there already.
    """
    refuse_url(config.out, "--out")
    folder = FramesFolder(config.folder)
    episode = next(iter(folder.episodes())) if config.episode is None else config.episode
    clip = config.out / f"episode-{episode}.{config.clip}"
    sheet = config.out / "sheet.png"
    for path in (sheet, clip):
        if path.exists():
            raise FileExistsError(f"{path} exists already. Choose another --out, or delete it first.")
    frames = folder.load([episode], config.limit)
    if len(frames) == 0:
        known = list(folder.episodes())
        raise ValueError(
            f"{folder} has no episode {episode}; it has {len(known)}, the first is {known[0]} and the "
            f"last {known[-1]}."
        )
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomically(sheet, contact_sheet(folder, config.frames))
    write_atomically(clip, (_gif if config.clip == "gif" else _mp4)(frames, config.fps))
    return [sheet, clip]


def contact_sheet(folder: FramesFolder, count: int) -> bytes:
    """Draw frames spread evenly over a folder, with episode and step above each.

    Args:
        folder: The folder.
        count: How many frames; all of them when the folder holds fewer.

    Returns:
        A PNG picture.
    """
    frames, labels = _spread(folder, count)
    columns = min(8, len(frames))
    rows = -(-len(frames) // columns)
    figure = matplotlib.figure.Figure(
        figsize=(columns * 1.25, rows * 1.45 + 0.5), dpi=110, layout="constrained"
    )
    title = f"{len(folder):,} frames of {folder.source.env_id or name_of(folder.path)}"
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, frame, label in zip(axes.flat, frames, labels, strict=False):
        axis.imshow(frame, interpolation="nearest")
        axis.set_title(label, fontsize=6, pad=2)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _spread(folder: FramesFolder, count: int) -> tuple[Frames, list[str]]:
    """Return evenly spread frames, and the episode, by its place in the folder, and step of each."""
    wanted = np.unique(np.linspace(0, len(folder) - 1, count).round().astype(int))
    place = {episode: i for i, episode in enumerate(folder.episodes())}
    labels: list[str] = []
    start = 0
    for shard in folder.shards:
        mine = wanted[(wanted >= start) & (wanted < start + shard.rows)] - start
        start += shard.rows
        if len(mine) == 0:
            continue
        with shard.open() as file:
            steps = file.read(columns=["episode", "step"])
        for episode, step in zip(*(c.to_numpy()[mine] for c in steps.columns), strict=True):
            labels.append(f"episode {place[int(episode)]}, step {step}")
    return folder.take(wanted), labels


def _enlarged(frames: Frames) -> Frames:
    return frames.repeat(_SCALE, 1).repeat(_SCALE, 2)


def _gif(frames: Frames, fps: int) -> bytes:
    from PIL import Image

    images = [Image.fromarray(frame) for frame in _enlarged(frames)]
    file = io.BytesIO()
    # GIF counts in hundredths of a second, and players slow down below two of them.
    duration = max(20, round(100 / fps) * 10)
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return file.getvalue()


def write_gif(frames: Frames, fps: int, path: Path) -> None:
    """Write an animated GIF, enlarged.

    Args:
        frames: ``uint8``, shape (N, height, width, 3).
        fps: Frames a second.
        path: The file.
    """
    write_atomically(path, _gif(frames, fps))


def _mp4(frames: Frames, fps: int) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "clip.mp4"
        size = (64 * _SCALE, 64 * _SCALE)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise ValueError("This build of OpenCV writes no mp4: use --clip gif.")
        for frame in _enlarged(frames):
            writer.write(np.ascontiguousarray(frame[:, :, ::-1]))  # OpenCV wants BGR
        writer.release()
        return path.read_bytes()

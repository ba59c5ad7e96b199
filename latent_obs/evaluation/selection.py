"""Which frames of a folder a report card is measured on, and how they are read: once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.resolve import EncoderFolder
from latent_obs.frames import Frames

# Consecutive frames of so many episodes are read to see what changes from one frame to the next.
STRETCHES, STRETCH = 16, 256
# Neither a figure nor a baseline means anything on fewer frames.
MIN_FRAMES = 10


@dataclass(frozen=True)
class Selection:
    """Frames to measure on, and frames of other episodes to fit the baselines on.

    Attributes:
        frames: Frames to measure on, spread over their episodes, ``uint8`` of shape (N, 64, 64, 3).
        episodes: Number of each frame's episode, shape (N,).
        stretches: The first consecutive frames of some of these episodes, (at most 256, 64, 64, 3) each.
        others: Frames to fit the baselines on, shape (M, 64, 64, 3).
    """

    frames: Frames
    episodes: npt.NDArray[np.int64]
    stretches: tuple[Frames, ...]
    others: Frames


def evaluation_split(encoder: EncoderFolder, folder: FramesFolder) -> tuple[list[int], list[int]]:
    """Choose the episodes to fit baselines on and those to measure on, without a common one.

    Of the folder that the encoder was trained on, the held-out episodes are measured on, and those that came
    later. Of any other folder, half of the episodes are, and the other half is for the baselines, which need
    episodes of their own.

    Returns:
        Episode numbers for the baselines, and episode numbers to measure on.
    """
    held_out = held_out_episodes(encoder, folder)
    if held_out is None:
        return folder.split(0.5)
    return [episode for episode in folder.episodes() if episode not in set(held_out)], held_out


def held_out_episodes(encoder: EncoderFolder, folder: FramesFolder) -> list[int] | None:
    """Return the episodes that training held out, or ``None`` for a folder that training did not use.

    If more was collected into the folder since, the episodes that came with it are among them.

    Raises:
        ValueError: If the frames were made with another frame spec than the encoder's.
    """
    config = encoder.config
    if config.frame_spec != folder.frame_spec:
        raise ValueError(
            f"The encoder {encoder.ref} takes frames made with {config.frame_spec}, those in {folder} "
            f"were made with {folder.frame_spec}. Collect frames for it with the same crop."
        )
    run = config.provenance.get("run", {})
    data, now = run.get("data", {}), folder.identity
    if data == now:
        return folder.split(run["config"]["validation"], run["config"]["seed"])[1]
    held, grown = data.get("frames", 0), {**data, "frames": len(folder)} == now
    if not grown or not 0 < held < len(folder) or not data.get("workers"):
        return None
    earlier = _Earlier(folder, held)
    trained = set(earlier.split(run["config"]["validation"], run["config"]["seed"])[0])
    return [episode for episode in folder.episodes() if episode not in trained]


class _Earlier(FramesFolder):
    """The episodes of a collected folder as they were when it held fewer frames.

    Each worker held its share of the frames then, and has gone on from there.
    """

    def __init__(self, folder: FramesFolder, frames: int) -> None:
        super().__init__(folder.path)
        workers = self.shards[0].metadata["workers"]
        left = [frames // workers + (worker < frames % workers) for worker in range(workers)]
        self._rows, first = Counter[int](), 0
        for shard in self.shards:
            worker = shard.metadata["worker"]
            held = min(shard.rows, left[worker])
            left[worker] -= held
            self._rows.update(folder.index.numbers(np.arange(first, first + held)).tolist())
            first += shard.rows

    def episodes(self) -> dict[int, int]:
        return self._rows

    def __len__(self) -> int:
        return self._rows.total()


def select_frames(
    folder: FramesFolder, fitted: Sequence[int], measured: Sequence[int], limit: int, seed: int
) -> Selection:
    """Choose frames and read them, each row group at most once.

    Args:
        folder: Where they are.
        fitted: Episodes for the baselines.
        measured: Episodes to measure on.
        limit: At most so many frames for each purpose, beside the stretches.
        seed: Chooses them.

    Raises:
        ValueError: If there are too few frames, or if nothing moves in them.
    """
    rng = np.random.default_rng(seed)
    rows, others = (_draw(folder, episodes, limit, rng) for episodes in (measured, fitted))
    if min(len(rows), len(others)) < MIN_FRAMES:
        raise ValueError(
            f"A report card needs at least {MIN_FRAMES} frames to measure on and as many of other episodes "
            f"to fit the baselines on; {folder} with a limit of {limit} gives {len(rows)} and {len(others)}. "
            "Collect more frames, or raise --limit."
        )
    stretches = [_draw(folder, [episode], STRETCH) for episode in measured[:STRETCHES]]
    wanted = np.unique(np.concatenate([rows, others, *stretches]))
    images = folder.take(wanted)
    places = [np.searchsorted(wanted, chosen) for chosen in (rows, others, *stretches)]
    frames, fits, *stretched = (images[place] for place in places)
    for part, purpose in ((frames, "to measure on"), (fits, "to fit the baselines on")):
        if (part == part[0]).all():
            raise ValueError(
                f"The {len(part):,} frames of {folder} {purpose} all show the same picture, so there is "
                "nothing that an encoder could keep or lose. Collect frames in which something moves; "
                f"`latent-obs frames show {folder}` shows those that are there."
            )
    return Selection(frames, folder.index.numbers(rows), tuple(stretched), fits)


def _draw(
    folder: FramesFolder, episodes: Sequence[int], limit: int, rng: np.random.Generator | None = None
) -> npt.NDArray[np.int64]:
    """Return, in ascending order, rows of some episodes: the first ones, or with ``rng`` random ones."""
    keep = folder.index.keep(episodes)
    total = int(folder.index.kept_before(np.array([len(folder)]), keep)[0])
    ranks = np.arange(total) if rng is None else rng.permutation(total)
    return folder.index.rows(np.sort(ranks[:limit]), keep)

"""How good the shuffling is, measured against a true permutation, and what it costs."""

from __future__ import annotations

import itertools
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latent_obs.data import shuffle
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import Shard, read_group
from latent_obs.frames import FRAME_BYTES
from tests.data.test_folder import numbers, write_shard

FRAMES, EPISODE, BATCH, BUFFER = 12_000, 100, 64, 1_500


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    """12,000 numbered frames in 120 episodes and three shards, one after the other."""
    path = tmp_path_factory.mktemp("long")
    for shard in range(3):
        number = np.arange(FRAMES // 3) + shard * FRAMES // 3
        frames = np.zeros((len(number), 64, 64, 3), np.uint8)
        frames[:, 0, 0, 0], frames[:, 0, 0, 1] = number % 256, number // 256
        write_shard(path / f"part-000-{shard:05d}.parquet", (number // EPISODE).tolist(), frames)
    return FramesFolder(path)


def one_pass(folder: FramesFolder, seed: int = 0, **options: Any) -> Any:
    """Return the numbers of the frames of a pass, shape (batches, BATCH)."""
    batches = folder.batches(BATCH, seed=seed, buffer_frames=BUFFER, **options)
    return np.stack([numbers(next(batches)) for _ in range(len(folder) // BATCH)])


def distinct_episodes(passed: Any) -> float:
    """Mean number of different episodes in a batch."""
    return float(np.mean([len(np.unique(batch // EPISODE)) for batch in passed]))


def neighbours_together(passed: Any) -> float:
    """Share of the pairs of consecutive frames that meet in a batch."""
    batch_of = np.full(FRAMES, -1)
    batch_of[passed.ravel()] = np.repeat(np.arange(len(passed)), BATCH)
    return float(np.mean((batch_of[1:] == batch_of[:-1]) & (batch_of[1:] >= 0)))


def true_permutation(seed: int) -> Any:
    order = np.random.default_rng(seed).permutation(FRAMES)
    return order[: FRAMES // BATCH * BATCH].reshape(-1, BATCH)


def test_a_small_buffer_shuffles_nearly_like_a_permutation(long_folder: FramesFolder) -> None:
    """The buffer holds an eighth of the folder, three row groups."""
    passes = [one_pass(long_folder, seed) for seed in range(3)]
    ideal = [true_permutation(seed) for seed in range(3)]
    episodes = np.mean([distinct_episodes(p) for p in passes])
    assert episodes > 0.9 * np.mean([distinct_episodes(p) for p in ideal])
    together = np.mean([neighbours_together(p) for p in passes])
    assert together < 2 * np.mean([neighbours_together(p) for p in ideal])
    # The 384 places of the folder come in random order, so this is about 1 / sqrt(384).
    drift = [np.corrcoef(np.arange(p.size), p.ravel())[0, 1] for p in passes]
    assert np.sqrt(np.mean(np.square(drift))) < 0.1
    # Nor does a batch come from one end of the folder: its mean is near that of the folder.
    assert all(abs(p.mean(1) - FRAMES / 2).mean() < 0.1 * FRAMES for p in passes)


def test_whole_row_groups_in_such_a_buffer_would_not(
    long_folder: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the parts of row groups are for, and proof that the measures see the difference."""
    monkeypatch.setattr(shuffle, "MIN_PLACES", 1)
    passed, ideal = one_pass(long_folder), true_permutation(0)
    assert distinct_episodes(passed) < 0.5 * distinct_episodes(ideal)
    assert neighbours_together(passed) > 4 * neighbours_together(ideal)


@pytest.mark.parametrize("buffer_frames", [BUFFER, 4_000, 50_000])
def test_a_pass_has_every_frame_once_but_for_the_last_partial_batch(
    long_folder: FramesFolder, buffer_frames: int
) -> None:
    batches = long_folder.batches(BATCH, buffer_frames=buffer_frames)
    for _ in range(2):
        seen = np.concatenate([numbers(next(batches)) for _ in range(FRAMES // BATCH)])
        assert len(np.unique(seen)) == len(seen) == FRAMES // BATCH * BATCH


def test_passes_differ_from_each_other(long_folder: FramesFolder) -> None:
    batches = long_folder.batches(BATCH, buffer_frames=BUFFER)
    first, second = (
        np.concatenate([numbers(next(batches)) for _ in range(FRAMES // BATCH)]) for _ in range(2)
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    begin = BUFFER // 2  # drawn from the first block of a pass, which holds other places in each pass
    assert len(np.intersect1d(first[:begin], second[:begin])) < begin / 3


def test_resuming_reads_no_block_that_it_skips(
    long_folder: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = read_group

    def counted(file: Any, group: int) -> Any:
        read.append(group)
        return plain(file, group)

    monkeypatch.setattr("latent_obs.data.shuffle.read_group", counted)
    monkeypatch.setattr(shuffle, "MIN_PLACES", 1)
    straight = one_pass(long_folder)
    whole = len(read)
    read.clear()
    last = FRAMES // BATCH - 1
    batches = long_folder.batches(BATCH, buffer_frames=BUFFER, skip=5 * (last + 1) + last)
    next(batches)
    assert 0 < len(read) <= whole / 4
    read.clear()
    resumed = long_folder.batches(BATCH, buffer_frames=BUFFER, skip=last)
    assert np.array_equal(numbers(next(resumed)), straight[last])
    assert 0 < len(read) <= whole / 4


def test_memory_holds_the_buffer_and_little_more(long_folder: FramesFolder) -> None:
    """12,000 frames are 147 MB, the buffer 18 MB, a row group 6 MB."""
    before = pa.default_memory_pool()
    arrow = pa.proxy_memory_pool(before)
    pa.set_memory_pool(arrow)
    tracemalloc.start()
    try:
        batches = long_folder.batches(BATCH, buffer_frames=BUFFER)
        for _ in range(FRAMES // BATCH + 1):
            next(batches)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert peak < (BUFFER + 4 * BATCH) * FRAME_BYTES + 4_000_000
    assert arrow.max_memory() < 4 * 512 * FRAME_BYTES
    assert pa.total_allocated_bytes() < 4 * 512 * FRAME_BYTES


def test_closing_a_loader_closes_its_files(
    long_folder: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    plain = Shard.open

    def recorded(shard: Shard) -> Any:
        opened.append(plain(shard))
        return opened[-1]

    monkeypatch.setattr(Shard, "open", recorded)
    folder = FramesFolder(long_folder.path)
    batches: Any = folder.batches(BATCH)
    next(batches)
    batches.close()
    assert opened
    assert all(file.closed for file in opened)


def test_the_foreground_is_what_differs_from_the_games_own_median_and_what_changes(tmp_path: Path) -> None:
    """Two games of 40 frames whose backgrounds differ; in each a score stands still and a ball moves."""
    for game, background in enumerate((10, 200)):
        frames = np.full((40, 64, 64, 3), background, np.uint8)
        frames[30:, 0, :10] = 99  # the score of the last quarter
        frames[np.arange(40), 20, np.arange(40)] = 99  # the ball
        path = tmp_path / f"part-{game:03d}-00000.parquet"
        write_shard(path, [1000 * game + i // 20 for i in range(40)], frames, env_id=f"game-{game}")
    folder = FramesFolder(tmp_path)
    medians = folder.medians()
    assert {name: frame[5, 5].tolist() for name, frame in medians.items()} == {
        "game-0": [10] * 3,
        "game-1": [200] * 3,
    }
    frames, masks = next(folder.batches_and_foreground(80, medians))
    assert masks.shape == (80, 2, 64, 64)
    np.testing.assert_array_equal(masks[:, 0], (frames == 99).any(-1))
    # The ball, and where it was and will be; at either end of an episode one of the two. The score
    # appears between two frames.
    moving = masks[:, 1, 20].sum(1)
    assert sorted(moving.tolist()) == [2] * 8 + [3] * 72
    assert masks[:, 1, 0, :10].all(1).sum() == 4
    assert not masks[:, 1, 1:20].any()


def test_the_order_of_reading_and_the_order_of_drawing_are_independent(tmp_path: Path) -> None:
    """16 shards of one frame: a frame comes out in its own place once in a pass on average.

    Were one permutation applied twice, that would happen twice on average.
    """
    for number in range(16):
        frame = np.full((1, 64, 64, 3), number, np.uint8)
        write_shard(tmp_path / f"part-000-{number:05d}.parquet", [number], frame)
    folder = FramesFolder(tmp_path)
    passes = [next(folder.batches(16, seed=seed))[:, 0, 0, 0] for seed in range(200)]
    assert 0.7 < np.mean([(one == np.arange(16)).sum() for one in passes]) < 1.3


class Threads:
    """A team of threads; they leave what they send on a table that all of them see."""

    def __init__(self, rank: int, table: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._table, self._barrier = rank, len(table), table, barrier

    def agree(self, error: Exception | None) -> None:
        met = [other for other in self._all(error) if other is not None]
        if met:
            raise met[0]

    def exchange(self, rows: Any, sent: Any, received: Any) -> Any:
        parts = [each[self.rank] for each in self._all(np.split(rows, np.cumsum(sent)[:-1]))]
        assert [len(part) for part in parts] == received.tolist()
        return np.concatenate(parts)

    def _all(self, mine: Any) -> list[Any]:
        self._table[self.rank] = mine
        self._barrier.wait(60)
        found = list(self._table)
        self._barrier.wait(60)
        return found


def in_team(size: int, function: Callable[[Threads], Any]) -> list[Any]:
    table, barrier = [None] * size, threading.Barrier(size)
    with ThreadPoolExecutor(size) as pool:
        calls = [pool.submit(function, Threads(rank, table, barrier)) for rank in range(size)]
        return [call.exception() or call.result() for call in calls]


@pytest.mark.parametrize(("buffer_frames", "batches"), [(BUFFER, 30), (50_000, 6000 // BATCH + 3)])
@pytest.mark.parametrize("size", [2, 5])
def test_a_team_draws_the_batches_of_one_process(
    long_folder: FramesFolder, size: int, buffer_frames: int, batches: int
) -> None:
    """Each takes its share of every batch, also of those that begin in one block or pass and end in another.

    The episodes kept leave row groups without any frame, at the end of the folder too.
    """
    kept = [*range(20), *range(50, 90)]
    options: dict[str, Any] = {"seed": 1, "buffer_frames": buffer_frames, "skip": 5}
    medians = {"": np.zeros((64, 64, 3), np.uint8)}

    def draw(team: Threads | None) -> list[Any]:
        folder = FramesFolder(long_folder.path)
        drawn = folder.batches_and_foreground(BATCH, medians, kept, team=team, **options)
        return list(itertools.islice(drawn, batches))

    alone, shares = draw(None), in_team(size, draw)
    for step, whole in enumerate(alone):
        for part in (0, 1):
            np.testing.assert_array_equal(np.concatenate([mine[step][part] for mine in shares]), whole[part])
    lengths = {len(mine[0][0]) for mine in shares}
    assert max(lengths) - min(lengths) <= 1


def test_each_process_of_a_team_reads_its_own_part(
    long_folder: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pass every row group is decoded by one of them, but for those where two parts meet."""
    read: dict[int, list[Any]] = {}
    plain = read_group

    def recorded(file: Any, group: int) -> Any:
        read.setdefault(threading.get_ident(), []).append(group)
        return plain(file, group)

    monkeypatch.setattr("latent_obs.data.shuffle.read_group", recorded)

    def one_pass_of(team: Threads) -> int:
        medians = {"": np.zeros((64, 64, 3), np.uint8)}
        folder = FramesFolder(long_folder.path)
        batches = folder.batches_and_foreground(BATCH, medians, buffer_frames=50_000, team=team)
        for _ in range(FRAMES // BATCH):
            next(batches)
        return threading.get_ident()

    threads = in_team(3, one_pass_of)
    groups = [len(read[thread]) for thread in threads]
    assert sum(groups) == sum(shard.row_groups for shard in long_folder.shards)
    assert max(groups) - min(groups) <= 1


def test_an_error_of_one_process_of_a_team_ends_all(
    long_folder: FramesFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the others would wait for its rows."""
    plain = read_group

    def broken(file: Any, group: int) -> Any:
        frames = plain(file, group)
        if numbers(frames)[0] == 0:
            raise OSError("the first row group is corrupt")
        return frames

    monkeypatch.setattr("latent_obs.data.shuffle.read_group", broken)
    medians = {"": np.zeros((64, 64, 3), np.uint8)}

    def draw(team: Threads) -> Any:
        return next(FramesFolder(long_folder.path).batches_and_foreground(BATCH, medians, team=team))

    errors = in_team(2, draw)
    assert [str(error) for error in errors] == ["the first row group is corrupt"] * 2

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data import folder as folder_module
from latent_obs.data.check import check_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import ROW_GROUP, ShardWriter, action_type, read_episodes, read_group, read_shard
from latent_obs.frames import FrameSpec, preprocess
from tests.conftest import FrameEnv


def write_shard(
    path: Path,
    episodes: list[int],
    frames: Any,
    spec: FrameSpec | None = None,
    commit: bool = True,
    action: pa.DataType | None = None,
    env_id: str = "",
) -> ShardWriter:
    source = {"env_id": env_id} if env_id else {}
    metadata = {"frame_spec": (spec or FrameSpec()).to_json(), "source": source, "worker": 0}
    writer = ShardWriter(path, action or pa.int64(), metadata)
    for row, (episode, frame) in enumerate(zip(episodes, frames, strict=True)):
        first = row == 0 or episodes[row - 1] != episode
        writer.append(frame, episode, row, None if first else row % 3, row / 3, False, row == 5)
    if commit:
        writer.commit(complete=True)
    return writer


@pytest.fixture
def folder(tmp_path: Path) -> tuple[FramesFolder, Any]:
    """1,500 numbered frames in 15 episodes and two shards."""
    frames = np.zeros((1500, 64, 64, 3), np.uint8)
    frames[:, 0, 0, 0], frames[:, 0, 0, 1] = np.arange(1500) % 256, np.arange(1500) // 256
    episodes = [i // 100 for i in range(1500)]
    write_shard(tmp_path / "part-000-00000.parquet", episodes[:900], frames[:900])
    write_shard(tmp_path / "part-000-00001.parquet", episodes[900:], frames[900:])
    return FramesFolder(tmp_path), frames


def numbers(frames: Any) -> Any:
    return frames[:, 0, 0, 0].astype(int) + 256 * frames[:, 0, 0, 1].astype(int)


def test_frames_come_back_bit_for_bit(tmp_path: Path, frames: Any) -> None:
    written = frames(700)
    write_shard(tmp_path / "a.parquet", [0] * 300 + [1] * 400, written)
    folder = FramesFolder(tmp_path)
    assert len(folder) == 700
    assert folder.episodes() == {0: 300, 1: 400}
    assert np.array_equal(folder.load(), written)
    assert np.array_equal(folder.load([1]), written[300:])
    assert np.array_equal(folder.load(limit=10), written[:10])


def test_any_parquet_reader_opens_a_shard(tmp_path: Path, frames: Any) -> None:
    written = frames(8)
    write_shard(tmp_path / "a.parquet", [0] * 4 + [1] * 4, written)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert rows[6]["frame"] == written[6].tobytes()
    assert [row["action"] for row in rows] == [None, 1, 2, 0, None, 2, 0, 1]
    assert rows[5]["reward"] == 5 / 3
    assert rows[5]["truncated"] is True
    assert rows[0].keys() == {"frame", "episode", "step", "action", "reward", "terminated", "truncated"}


def test_the_frame_column_is_stored_as_the_format_says(folder: tuple[FramesFolder, Any]) -> None:
    metadata = pq.read_metadata(folder[0].shards[0].path)
    column = metadata.row_group(0).column(0)
    assert metadata.row_group(0).num_rows == ROW_GROUP
    assert column.compression == "ZSTD"
    assert column.statistics is None
    assert "RLE_DICTIONARY" not in column.encodings


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (gym.spaces.Discrete(3), pa.int64()),
        (gym.spaces.Box(-1, 1, (3,), np.float32), pa.list_(pa.float32(), 3)),
        (gym.spaces.MultiDiscrete([2, 3]), pa.list_(pa.int64(), 2)),
        (gym.spaces.MultiBinary(4), pa.list_(pa.int8(), 4)),
    ],
)
def test_actions_are_stored_in_their_own_type(
    space: gym.Space[Any], expected: pa.DataType, tmp_path: Path, frames: Any
) -> None:
    assert action_type(space) == expected
    space.seed(0)
    action = space.sample()
    writer = ShardWriter(tmp_path / "a.parquet", expected, {})
    writer.append(frames(1)[0], 0, 1, action if np.ndim(action) == 0 else action.ravel(), 0, False, False)
    writer.commit(complete=True)
    stored = pq.read_table(tmp_path / "a.parquet")["action"][0].as_py()
    assert np.array_equal(np.asarray(stored, space.dtype), action)


@pytest.mark.parametrize(
    "space",
    [gym.spaces.Dict(a=gym.spaces.Discrete(2)), gym.spaces.Box(0, 1, (2,), np.bool_)],  # type: ignore[arg-type]
)
def test_an_action_space_without_a_column_type_is_refused(space: gym.Space[Any]) -> None:
    with pytest.raises(ValueError, match="one array of numbers"):
        action_type(space)


def test_an_unfinished_shard_is_invisible_until_committed(tmp_path: Path, frames: Any) -> None:
    writer = write_shard(tmp_path / "a.parquet", [0] * 600, frames(600), commit=False)
    assert list(tmp_path.glob("*.parquet")) == []
    with pytest.raises(FileNotFoundError, match="holds no frames"):
        FramesFolder(tmp_path)
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_reading_frames_does_not_wait_for_pandas(folder: tuple[FramesFolder, Any]) -> None:
    """pyarrow imports it for half a second wherever a column becomes a NumPy array by itself."""
    code = f"""
import sys
from latent_obs.data.folder import FramesFolder
folder = FramesFolder({str(folder[0].path)!r})
folder.sample(8, folder.split(0.5)[0], 0)
next(folder.batches_and_foreground(4, folder.medians(), folder.split(0.5)[0]))
print("pandas" in sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert importlib.util.find_spec("pandas") is not None
    assert out.strip() == "False"


def test_a_missing_folder_is_named_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="latent-obs collect"):
        FramesFolder(tmp_path / "nowhere")


def test_a_truncated_shard_is_named(folder: tuple[FramesFolder, Any]) -> None:
    path = folder[0].shards[1].path
    assert isinstance(path, Path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"part-000-00001\.parquet is not a readable"):
        FramesFolder(folder[0].path)


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="not a shard"):
        FramesFolder(tmp_path)


def test_shards_with_different_frame_specs_are_refused(tmp_path: Path, frames: Any) -> None:
    write_shard(tmp_path / "a.parquet", [0], frames(1))
    write_shard(tmp_path / "b.parquet", [1], frames(1), FrameSpec(crop=(0, 64, 0, 64)))
    with pytest.raises(ValueError, match="different frame specs"):
        FramesFolder(tmp_path)


def test_a_shard_says_whether_it_is_complete(tmp_path: Path, frames: Any) -> None:
    write_shard(tmp_path / "a.parquet", [0], frames(1), commit=False).commit(complete=False)
    assert not read_shard(tmp_path / "a.parquet").complete


def test_the_split_is_by_episode_and_repeatable(folder: tuple[FramesFolder, Any]) -> None:
    train, held_out = folder[0].split(0.2, seed=3)
    assert sorted(train + held_out) == list(range(15))
    assert len(held_out) == 3
    assert folder[0].split(0.2, seed=3) == (train, held_out)
    assert folder[0].split(0.2, seed=4) != (train, held_out)


def test_one_episode_cannot_be_split(tmp_path: Path, frames: Any) -> None:
    write_shard(tmp_path / "a.parquet", [0] * 9, frames(9))
    with pytest.raises(ValueError, match="max_episode_steps"):
        FramesFolder(tmp_path).split(0.1)


@pytest.mark.parametrize("buffer_frames", [50_000, 600])
def test_a_pass_draws_every_frame_of_its_episodes_once(
    folder: tuple[FramesFolder, Any], buffer_frames: int
) -> None:
    episodes = [0, 3, 4, 9, 14]
    batches = folder[0].batches(50, episodes, buffer_frames=buffer_frames)
    for _ in range(2):
        seen = np.concatenate([numbers(next(batches)) for _ in range(10)])
        assert sorted(seen) == [i for i in range(1500) if i // 100 in episodes]


def test_batches_are_shuffled_and_repeatable(folder: tuple[FramesFolder, Any]) -> None:
    first = numbers(next(folder[0].batches(64, seed=1)))
    assert np.array_equal(first, numbers(next(folder[0].batches(64, seed=1))))
    assert not np.array_equal(first, numbers(next(folder[0].batches(64, seed=2))))
    assert np.ptp(first) > 1000


@pytest.mark.parametrize("skip", [1, 22, 23, 24, 50])
def test_skipping_batches_resumes_the_sequence(folder: tuple[FramesFolder, Any], skip: int) -> None:
    """23 batches of 64 are a pass over 1,500 frames, so this crosses passes."""
    straight = folder[0].batches(64, seed=5, buffer_frames=700)
    for _ in range(skip):
        next(straight)
    resumed = folder[0].batches(64, seed=5, buffer_frames=700, skip=skip)
    for _ in range(3):
        assert np.array_equal(next(straight), next(resumed))


def test_fewer_frames_than_a_batch_are_refused(folder: tuple[FramesFolder, Any]) -> None:
    with pytest.raises(ValueError, match="smaller --batch-size"):
        next(folder[0].batches(101, [2]))


def test_a_sample_is_drawn_from_the_whole_folder(folder: tuple[FramesFolder, Any]) -> None:
    drawn = numbers(folder[0].sample(300, seed=1))
    assert len(set(drawn)) == 300
    assert np.ptp(drawn) > 1300
    assert set(numbers(folder[0].sample(9999, [3, 12]))) == {*range(300, 400), *range(1200, 1300)}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that were decoded, in order."""
    groups: list[int] = []
    plain = read_group

    def counted(file: Any, group: int) -> Any:
        groups.append(group)
        return plain(file, group)

    monkeypatch.setattr("latent_obs.data.folder.read_group", counted)
    return groups


@pytest.mark.parametrize("episodes", [None, [3, 12], [14, 0, 1, 2]])
@pytest.mark.parametrize("count", [1, 70, 9999])
def test_a_sample_is_what_a_permutation_of_all_frames_begins_with(
    folder: tuple[FramesFolder, Any], episodes: list[int] | None, count: int
) -> None:
    """Published figures rest on these draws."""
    frames = folder[1]
    mine = frames if episodes is None else frames[np.isin(np.arange(1500) // 100, episodes)]
    rng = np.random.default_rng(5)
    wanted = np.sort(rng.permutation(len(mine))[:count])
    np.testing.assert_array_equal(folder[0].sample(count, episodes, seed=5), rng.permutation(mine[wanted]))


def test_a_sample_of_a_large_folder_needs_no_permutation_of_it(
    folder: tuple[FramesFolder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "_PERMUTED", 1000)
    drawn = np.array([numbers(folder[0].sample(100, seed=seed)) for seed in range(30)])
    assert all(len(set(one)) == 100 for one in drawn)
    assert np.bincount(drawn.ravel() // 100, minlength=15).min() > 0.7 * 3000 / 15
    order = [np.corrcoef(np.arange(100), one)[0, 1] for one in drawn]
    assert abs(np.mean(order)) < 0.1
    assert set(numbers(folder[0].sample(9999))) == set(range(1500))


def test_only_row_groups_with_something_chosen_are_read(
    folder: tuple[FramesFolder, Any], read: list[int]
) -> None:
    """Row groups of 512: two in the first shard of 900 frames and two in the second of 600."""
    frames = folder[0]
    assert numbers(frames.load([9])).tolist() == list(range(900, 1000))
    assert read == [0]
    read.clear()
    assert numbers(frames.load([5, 14], limit=50)).tolist() == list(range(500, 550))
    assert read == [0, 1]
    read.clear()
    assert len(frames.load(limit=3)) == 3
    assert read == [0]
    read.clear()
    assert set(numbers(frames.sample(20, [0, 1, 2]))) <= set(range(300))
    assert read == [0]
    read.clear()
    assert numbers(frames.take(np.array([899, 900, 1499]))).tolist() == [899, 900, 1499]
    assert read == [1, 0, 1]
    assert frames.load([]).shape == frames.load([77]).shape == (0, 64, 64, 3)


def test_medians_are_of_evenly_spaced_frames_and_of_no_more_row_groups_than_frames(
    tmp_path: Path, read: list[int]
) -> None:
    """A pixel that is lit in a quarter of the frames is dark in the median, and not in the mean."""
    frames = np.full((2000, 64, 64, 3), 10, np.uint8)
    frames[np.arange(2000) // 25 % 4 == 0, 0] = 250
    frames[:, 1, 1, 1] = np.arange(2000) // 10  # grows, so its median is that of the middle
    for number in range(4):
        part = slice(500 * number, 500 * number + 500)
        write_shard(tmp_path / f"part-000-{number:05d}.parquet", [number] * 500, frames[part], env_id="a")
    folder = FramesFolder(tmp_path)
    median = folder.medians(100)["a"]
    assert abs(int(median[1, 1, 1]) - 100) <= 2
    assert len(read) == 4
    assert np.array_equal(median, np.median(frames[::20], 0).astype(np.uint8))
    assert (median[0] == 10).all()
    read.clear()
    folder.medians(2)
    assert len(read) == 2, "the first row group and the last"


def test_episode_numbers_are_read_once(
    folder: tuple[FramesFolder, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Path] = []
    plain = read_episodes

    def counted(shard: Any) -> Any:
        paths.append(shard.path)
        return plain(shard)

    monkeypatch.setattr("latent_obs.data.index.read_episodes", counted)
    frames = folder[0]
    frames.sample(9), frames.load(limit=9), next(frames.batches(9))
    assert paths == [], "they are not needed for all episodes"
    frames.split(0.5), frames.episodes(), frames.sample(9, [1]), next(frames.batches(9, [1]))
    assert paths == [shard.path for shard in frames.shards]


def test_an_episode_may_go_on_in_another_shard_and_numbers_may_come_in_any_order(tmp_path: Path) -> None:
    frames = np.zeros((12, 64, 64, 3), np.uint8)
    frames[:, 0, 0, 0] = np.arange(12)
    write_shard(tmp_path / "a.parquet", [7, 7, 3, 3, 3, 7], frames[:6])
    write_shard(tmp_path / "b.parquet", [1, 1, 3, 7, 7, 7], frames[6:])
    folder = FramesFolder(tmp_path)
    assert list(folder.episodes().items()) == [(3, 4), (7, 6), (1, 2)]
    assert numbers(folder.load([7])).tolist() == [0, 1, 5, 9, 10, 11]
    assert numbers(folder.load([3, 1], limit=5)).tolist() == [2, 3, 4, 6, 7]
    assert sorted(numbers(next(folder.batches(6, [7])))) == [0, 1, 5, 9, 10, 11]


@pytest.mark.parametrize(("validation", "held_out"), [(0.5, 8), (0.999, 14), (0.001, 1), (1 / 15, 1)])
def test_a_split_holds_out_the_fraction_in_whole_episodes_and_keeps_one_to_train_on(
    folder: tuple[FramesFolder, Any], validation: float, held_out: int
) -> None:
    """15 episodes of 100 frames: half of 1,500 frames needs eight of them."""
    train, validating = folder[0].split(validation)
    assert len(validating) == held_out
    assert validating == np.random.default_rng(0).permutation(15)[:held_out].tolist()
    assert train == [episode for episode in range(15) if episode not in validating]


@pytest.mark.parametrize("validation", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_split_of_all_or_nothing_is_refused(folder: tuple[FramesFolder, Any], validation: float) -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        folder[0].split(validation)


def test_worker_shard_and_seed_number_the_episodes_and_seed_the_first_of_each_shard(tmp_path: Path) -> None:
    """As docs/formats.md says, so that a folder can be made again and no number occurs twice."""
    gym.register("Folder-v0", lambda **_: FrameEnv(), disable_env_checker=True)
    try:
        config = CollectConfig("Folder-v0", tmp_path / "frames", frames=54, workers=1, shard_rows=18, seed=3)
        folder = collect_frames(config, progress=False)
    finally:
        gym.registry.pop("Folder-v0")
    assert list(folder.episodes()) == [shard * 10**5 + episode for shard in range(3) for episode in range(3)]
    assert check_frames(folder.path, progress=False) == {}
    for shard, start in enumerate(range(0, 54, 18)):
        env_seed = int(np.random.SeedSequence((3, 0, shard)).generate_state(2)[0])
        image, _ = FrameEnv().reset(seed=env_seed)
        assert np.array_equal(folder.take(np.array([start]))[0], preprocess(image, FrameSpec()))

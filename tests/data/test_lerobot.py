"""Datasets that others open: Hugging Face's `datasets`, pandas, and lerobot itself where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from latent_obs.cli import main
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.lerobot import ExportLerobotConfig, export_lerobot
from latent_obs.data.shards import ShardWriter
from tests.data.test_curate import collection, rows


@pytest.fixture
def pong(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "pong", "Pong")


def export(folder: FramesFolder, out: Path, **options: Any) -> dict[str, Any]:
    return export_lerobot(ExportLerobotConfig(folder.path, out, **options), progress=False)


def read(out: Path, what: str) -> Any:
    """All rows of the Parquet files of ``data`` or ``meta/episodes``, by Hugging Face's `datasets`."""
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, (out / what).glob("*/*.parquet")))
    return datasets.Dataset.from_parquet(files, cache_dir=str(out.parent / "cache"))


def of_actions(folder: Path, kind: pa.DataType, actions: list[Any]) -> FramesFolder:
    """One episode, in which ``actions`` are taken, and one of a single frame."""
    folder.mkdir()
    about = {
        "env_id": "",
        "env_kwargs": {},
        "frame_spec": {"crop": None, "interpolation": "area"},
        "source": {},
    }
    writer = ShardWriter(
        folder / "part-000-00000.parquet", kind, {**about, "policy": "random", "seed": 0, "workers": 1}
    )
    frames = np.random.default_rng(1).integers(0, 256, (len(actions) + 2, 64, 64, 3), dtype=np.uint8)
    for step, action in enumerate([None, *actions]):
        writer.append(frames[step], 0, step, action, 0.1 * step, False, step == len(actions))
    writer.append(frames[-1], 1, 0, None, 0.0, False, False)
    writer.commit(complete=True)
    return FramesFolder(folder)


def test_every_step_is_there_bit_for_bit(pong: FramesFolder, tmp_path: Path) -> None:
    """Each row has what was seen before the action, as LeRobot wants it, and not what came of it."""
    info = export(pong, tmp_path / "out", fps=15)
    data = read(tmp_path / "out", "data")
    frames, stored = pong.load(), rows(pong)
    assert (info["total_episodes"], info["total_frames"], len(data)) == (6, 354, 354)
    for number, row in enumerate(data):
        episode, step = divmod(number, 59)
        seen = episode * 60 + step
        came = stored[seen + 1]
        assert np.array_equal(np.asarray(row["observation.image"]), frames[seen])
        assert (row["action"], row["next.reward"]) == (came["action"], came["reward"])
        assert row["next.done"] == row["next.terminated"] == (step == 58)
        assert not row["next.truncated"]
        assert (row["index"], row["episode_index"], row["frame_index"]) == (number, episode, step)
        assert row["timestamp"] == np.float32(step / 15)


def test_the_metadata_lead_to_the_steps(pong: FramesFolder, tmp_path: Path) -> None:
    info = export(pong, tmp_path / "out")
    assert info == json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    episodes = read(tmp_path / "out", "meta/episodes")
    assert [episode["episode_index"] for episode in episodes] == list(range(6))
    for episode in episodes:
        place = {"chunk_index": episode["data/chunk_index"], "file_index": episode["data/file_index"]}
        file = pa.parquet.read_table(tmp_path / "out" / info["data_path"].format(**place))
        inside = set(range(episode["dataset_from_index"], episode["dataset_to_index"]))
        assert inside <= set(file["index"].to_pylist())
        assert len(inside) == episode["length"] == 59
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")], "no traces of the making"


def test_each_environment_is_a_task(pong: FramesFolder, tmp_path: Path) -> None:
    """pandas finds the tasks in the index, where LeRobot looks."""
    pandas = pytest.importorskip("pandas")
    other = collection(tmp_path / "boxing", "Boxing", seed=1)
    both = merge_frames(MergeConfig((pong.path, other.path), tmp_path / "both"), progress=False)
    export(both, tmp_path / "out")
    tasks = pandas.read_parquet(tmp_path / "out" / "meta" / "tasks.parquet")
    assert tasks.index.tolist() == ["Pong", "Boxing"]
    assert tasks["task_index"].tolist() == [0, 1]
    assert read(tmp_path / "out", "data")["task_index"][:] == [0] * 354 + [1] * 354
    assert [e["tasks"] for e in read(tmp_path / "out", "meta/episodes")] == [["Pong"]] * 6 + [["Boxing"]] * 6


def test_the_statistics_are_those_of_all_steps(pong: FramesFolder, tmp_path: Path) -> None:
    export(pong, tmp_path / "out")
    stats = json.loads((tmp_path / "out" / "meta" / "stats.json").read_text())
    seen = np.concatenate([pong.load([episode])[:-1] for episode in pong.episodes()]) / 255
    rewards = [row["reward"] for row in rows(pong) if row["step"]]
    for name, values in (("observation.image", seen), ("next.reward", np.array(rewards))):
        axes = (0, 1, 2) if values.ndim == 4 else 0
        for statistic in ("min", "max", "mean", "std"):
            wanted = getattr(values, statistic)(axes)
            shape = (3, 1, 1) if values.ndim == 4 else (1,)
            np.testing.assert_allclose(stats[name][statistic], np.reshape(wanted, shape), rtol=1e-6)
        assert stats[name]["count"] == [354]
    first = read(tmp_path / "out", "meta/episodes")[0]
    pixels = pong.load([0])[:-1] / 255
    q10 = np.quantile(pixels, 0.1, axis=(0, 1, 2), method="inverted_cdf")
    np.testing.assert_allclose(np.ravel(first["stats/observation.image/q10"]), q10)
    assert np.shape(first["stats/observation.image/q10"]) == (3, 1, 1)


@pytest.mark.parametrize(("width", "actions"), [(2, [[0.5, -1], [0, 2]]), (1, [[0.5], [-1]])])
def test_continuous_actions_are_vectors(tmp_path: Path, width: int, actions: list[Any]) -> None:
    """LeRobot's vectors of one number are numbers; an episode without a step is left out."""
    folder = of_actions(tmp_path / "frames", pa.list_(pa.float32(), width), actions)
    with pytest.warns(UserWarning, match="1 episodes of .* hold a single frame and no step"):
        info = export(folder, tmp_path / "out")
    assert info["features"]["action"] == {"dtype": "float32", "shape": [width], "names": None}
    assert (info["total_episodes"], info["total_frames"]) == (1, 2)
    assert read(tmp_path / "out", "data")["action"][:] == (actions if width > 1 else [0.5, -1])


def test_what_cannot_be_a_dataset_is_refused_and_leaves_nothing(pong: FramesFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be 1 or more, got fps=0"):
        export(pong, tmp_path / "out", fps=0)
    other = of_actions(tmp_path / "other", pa.list_(pa.float32(), 1), [[0.5]])
    both = merge_frames(MergeConfig((pong.path, other.path), tmp_path / "both"), progress=False)
    wanted = r"have one type, and those .* are int64 in merged-000-00000.parquet and fixed_size_list"
    with pytest.raises(ValueError, match=wanted):
        export(both, tmp_path / "out")
    with pytest.raises(ValueError, match=r"No episode of .* has a step"):
        export(of_actions(tmp_path / "still", pa.int64(), []), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    with pytest.raises(FileExistsError, match="taken exists already"):
        export(pong, tmp_path / "taken")


def test_the_command_says_what_it_made(
    pong: FramesFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["frames", "export-lerobot", str(pong.path), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 6 episodes, 354 steps, LeRobot v3.0\n"


def test_lerobot_opens_it(pong: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the library itself, two frames at a time, as its policies ask for them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opener = pytest.importorskip("lerobot.datasets.lerobot_dataset")
    export(pong, tmp_path / "out", fps=10)
    two = {"observation.image": [-0.1, 0.0], "action": [0.0]}
    data = opener.LeRobotDataset("any/name", root=tmp_path / "out", delta_timestamps=two)
    frames, stored = pong.load(), rows(pong)
    assert (data.num_episodes, len(data)) == (6, 354)
    for number in (0, 1, 58, 59, 353):
        seen = number + number // 59
        item = data[number]
        image = (item["observation.image"] * 255).round().byte().permute(0, 2, 3, 1).numpy()
        before = seen - 1 if number % 59 else seen
        assert np.array_equal(image, frames[[before, seen]])
        assert item["action"].tolist() == [stored[seen + 1]["action"]]
        assert item["task"] == "Pong"
    assert data.meta.stats["observation.image"]["mean"].shape == (3, 1, 1)

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_obs.cli import main
from latent_obs.data import curate
from latent_obs.data.check import check_frames
from latent_obs.data.curate import MergeConfig, SplitConfig, merge_frames, split_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import METADATA_KEY, ShardWriter
from latent_obs.frames import FrameSpec
from latent_obs.training.config import TrainConfig
from latent_obs.training.train import train_vae


def collection(
    folder: Path, env_id: str, seed: int = 0, spec: FrameSpec | None = None, **settings: Any
) -> FramesFolder:
    """Two shards of three episodes of 60 random frames each, written as a collection's."""
    folder.mkdir()
    rng = np.random.default_rng([seed, *env_id.encode()])
    for number in range(2):
        metadata = {
            "env_id": env_id,
            "env_kwargs": {},
            "frame_spec": (spec or FrameSpec()).to_json(),
            "policy": "random",
            "seed": seed,
            "workers": 1,
            "shard_rows": 180,
            "worker": 0,
            "shard": number,
            "source": {"env_id": env_id, "env_kwargs": {}, "emulator": {"frameskip": 4, "game": env_id}},
            **settings,
        }
        writer = ShardWriter(folder / f"part-000-{number:05d}.parquet", pa.int64(), metadata)
        for episode in range(3):
            for step in range(60):
                frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                action = int(rng.integers(4)) if step else None
                writer.append(frame, number * 10**5 + episode, step, action, step / 7, step == 59, False)
        writer.commit(complete=True)
    return FramesFolder(folder)


def rows(folder: FramesFolder) -> list[dict[str, Any]]:
    """Every row of a folder, in order."""
    return [row for shard in folder.shards for row in pq.read_table(shard.path).to_pylist()]


def without_episode(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "episode"} for row in rows]


@pytest.fixture
def pong(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "pong", "Pong")


@pytest.fixture
def merged(pong: FramesFolder, tmp_path: Path) -> FramesFolder:
    tennis = collection(tmp_path / "tennis", "Tennis")
    return merge_frames(MergeConfig((pong.path, tennis.path), tmp_path / "both"), progress=False)


def test_merging_keeps_every_row_and_makes_episodes_unique(
    merged: FramesFolder, pong: FramesFolder, tmp_path: Path
) -> None:
    tennis = FramesFolder(tmp_path / "tennis")
    assert without_episode(rows(merged)) == without_episode(rows(pong) + rows(tennis))
    assert list(merged.episodes()) == [*pong.episodes(), *(10**12 + e for e in tennis.episodes())]
    assert check_frames(merged.path, progress=False) == {}
    assert sorted(os.listdir(tmp_path)) == ["both", "pong", "tennis"]


def test_a_folder_whose_numbers_are_free_is_taken_over_as_hard_links(
    merged: FramesFolder, pong: FramesFolder
) -> None:
    for before, after in zip(pong.shards, merged.shards[:2], strict=True):
        assert os.path.samefile(before.path, after.path)


def test_without_hard_links_shards_are_copied(
    pong: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    curate.link_or_copy(pong.shards[0].path, tmp_path / "copy.parquet")
    assert (tmp_path / "copy.parquet").read_bytes() == Path(pong.shards[0].path).read_bytes()


def test_a_merged_folder_says_what_it_is_made_of(merged: FramesFolder) -> None:
    assert merged.source.env_id == "Pong + Tennis"
    assert merged.source.env_ids == ("Pong", "Tennis")
    assert merged.source.emulator == {"frameskip": 4}
    assert [(c["env_id"], c["frames"]) for c in merged.identity["collections"]] == [
        ("Pong", 360),
        ("Tennis", 360),
    ]
    assert merged.shards[3].metadata["source"]["env_id"] == "Tennis"


@pytest.mark.filterwarnings("ignore:POSTERIOR COLLAPSE")
def test_an_encoder_trains_on_a_merged_folder(merged: FramesFolder, tmp_path: Path) -> None:
    config = TrainConfig(merged.path, tmp_path / "encoder", steps=2, channels=(4, 4), batch_size=8)
    trained = train_vae(config, progress=False)
    assert trained.source.env_id == "Pong + Tennis"
    assert trained.provenance["run"]["data"] == json.loads(json.dumps(merged.identity))


def test_merging_what_was_merged_goes_on_counting(merged: FramesFolder, tmp_path: Path) -> None:
    other = collection(tmp_path / "other", "Pong", seed=1)
    config = MergeConfig((merged.path, other.path), tmp_path / "three")
    three = merge_frames(config, progress=False)
    assert len(three.episodes()) == 18
    assert max(three.episodes()) == 2 * 10**12 + 100_002
    assert [c["seed"] for c in three.collections] == [0, 0, 1]


def test_the_same_collection_twice_is_refused(pong: FramesFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both come from the same collection"):
        merge_frames(MergeConfig((pong.path, pong.path), tmp_path / "out"), progress=False)
    assert not (tmp_path / "out").exists()


def test_folders_with_other_frame_specs_are_refused(pong: FramesFolder, tmp_path: Path) -> None:
    cropped = collection(tmp_path / "cropped", "Tennis", spec=FrameSpec(crop=(0, 64, 0, 64)))
    with pytest.raises(ValueError, match="no encoder could be trained on both"):
        merge_frames(MergeConfig((pong.path, cropped.path), tmp_path / "out"), progress=False)


def test_the_split_is_by_episode_lossless_and_that_of_training(pong: FramesFolder, tmp_path: Path) -> None:
    parts = split_frames(SplitConfig(pong.path, tmp_path / "out", 0.3, seed=5), progress=False)
    wanted = pong.split(0.3, seed=5)
    for part, episodes in zip(parts, wanted, strict=True):
        assert sorted(part.episodes()) == sorted(episodes)
        assert rows(part) == [row for row in rows(pong) if row["episode"] in episodes]
        assert check_frames(part.path, progress=False) == {}
    assert parts[0].identity != parts[1].identity != pong.identity


def test_merging_the_halves_of_a_split_gives_the_folder_back(pong: FramesFolder, tmp_path: Path) -> None:
    parts = split_frames(SplitConfig(pong.path, tmp_path / "out"), progress=False)
    whole = merge_frames(MergeConfig((parts[0].path, parts[1].path), tmp_path / "again"), progress=False)
    ordered = sorted(rows(whole), key=lambda row: (row["episode"], row["step"]))
    assert ordered == rows(pong)


def test_nothing_is_overwritten(pong: FramesFolder, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(FileExistsError, match="exists already"):
        split_frames(SplitConfig(pong.path, out), progress=False)
    assert os.listdir(out) == ["mine"]


def test_an_interrupted_split_goes_on_where_it_was(
    pong: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain = SplitConfig(pong.path, tmp_path / "out"), curate._write_part
    calls, stop_at = 0, 3

    def write(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        plain(*arguments)

    monkeypatch.setattr(curate, "_write_part", write)
    with pytest.raises(KeyboardInterrupt):
        split_frames(config, progress=False)
    assert not (tmp_path / "out").exists(), "a folder appears whole or not at all"
    calls = -10
    parts = split_frames(config, progress=False)
    assert sum(len(part) for part in parts) == len(pong)
    assert calls == -10 + 2, "what was written before was written again"
    assert sorted(os.listdir(tmp_path)) == ["out", "pong"]


def test_a_folder_that_could_not_get_its_name_gets_it_later(
    pong: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SplitConfig(pong.path, tmp_path / "out")

    def refuse(*_: Any) -> None:
        raise OSError("Device or resource busy")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(OSError, match="busy"):
            split_frames(config, progress=False)
    assert sum(len(part) for part in split_frames(config, progress=False)) == len(pong)
    assert sorted(os.listdir(tmp_path)) == ["out", "pong"]
    assert sorted(os.listdir(tmp_path / "out")) == ["train", "validation"]


def test_a_link_is_followed_to_the_folder_that_it_names(pong: FramesFolder, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "large" / "disk")
    train, _ = split_frames(SplitConfig(pong.path, tmp_path / "out"), progress=False)
    assert (tmp_path / "out").is_symlink()
    assert len(FramesFolder(tmp_path / "large" / "disk" / "train")) == len(train)


def test_the_current_folder_and_the_top_of_a_disk_are_refused_at_once(
    pong: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, disk = tmp_path / "here", tmp_path / "disk"
    here.mkdir()
    disk.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == disk)
    for out, name in ((Path("."), "here, the current folder"), (disk, "disk, the top of a disk")):
        with pytest.raises(ValueError, match=f"{name}. Choose a folder in it"):
            split_frames(SplitConfig(pong.path, out), progress=False)
    assert sorted(os.listdir(tmp_path)) == ["disk", "here", "pong"]


def test_collection_never_goes_on_in_a_split_folder(pong: FramesFolder, tmp_path: Path) -> None:
    """Its shards look like those of the collection, which would fill them up again."""
    train, _ = split_frames(SplitConfig(pong.path, tmp_path / "out"), progress=False)
    stored = json.loads(pq.read_metadata(train.shards[0].path).metadata[METADATA_KEY])
    assert "shard_rows" not in stored
    assert stored["split"] == [{"part": "train", "validation": 0.1, "seed": 0}]


def test_the_commands_say_what_they_made(
    pong: FramesFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["frames", "split", str(pong.path), "--out", out, "--validation", "0.2"]) == 0
    assert "out/train: 240 frames, 4 episodes" in capsys.readouterr().out
    merge = ["frames", "merge", f"{out}/train", f"{out}/validation", "--out", str(tmp_path / "again")]
    assert main(merge) == 0
    assert "again: 360 frames, 6 episodes" in capsys.readouterr().out
    assert main(merge) == 1

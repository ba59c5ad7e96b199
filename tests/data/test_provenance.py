"""What tells one collection from another, and everything that relies on it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.provenance import Collection
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.selection import held_out_episodes
from latent_obs.frames import FrameSpec
from latent_obs.training import train
from latent_obs.training.config import TrainConfig
from latent_obs.training.train import train_vae
from tests.data.test_curate import collection

AGENT: dict[str, Any] = {
    "policy": "agent.zip",
    "policy_encoder": "pong-v0",
    "policy_normalize": True,
    "policy_files": {"agent.zip": "0123456789abcdef", "pong-v0": "fedcba9876543210"},
}
# What can change behind the same command, or between two commands that differ only in this.
OTHERS = [
    {"policy_files": {"agent.zip": "1123456789abcdef", "pong-v0": "fedcba9876543210"}},
    {"policy_encoder": "general-v0"},
    {"policy_normalize": False},
]
PONG = Collection("Pong", {}, FrameSpec(), "random", 0, 1, 180)


@pytest.fixture
def first(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "first", "Pong", **AGENT)


@pytest.fixture(params=OTHERS, ids=lambda change: next(iter(change)))
def anew(request: pytest.FixtureRequest, tmp_path: Path) -> FramesFolder:
    """The folder of the same command after its policy has changed."""
    return collection(tmp_path / "anew", "Pong", **{**AGENT, **request.param})


@pytest.mark.filterwarnings("ignore:POSTERIOR COLLAPSE")
def test_frames_of_another_policy_are_other_frames_to_training_and_evaluation(
    first: FramesFolder, anew: FramesFolder, tmp_path: Path
) -> None:
    config = TrainConfig(first.path, tmp_path / "encoder", steps=2, channels=(4, 4), batch_size=8)
    train_vae(config, progress=False)
    assert train_vae(config, progress=False).provenance["steps"] == 2
    with pytest.raises(ValueError, match="other settings or frames"):
        train_vae(replace(config, data=anew.path), progress=False)
    found = resolve(str(config.out))
    assert held_out_episodes(found, first) == first.split(0.1)[1]
    assert held_out_episodes(found, anew) is None


def test_a_checkpoint_is_not_continued_on_frames_of_another_policy(
    first: FramesFolder, anew: FramesFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    config = TrainConfig(first.path, tmp_path / "encoder", steps=2, channels=(4, 4), batch_size=8)
    monkeypatch.setattr(train, "_write_encoder", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_vae(config, progress=False)
    with pytest.raises(ValueError, match="unfinished run with other settings or frames"):
        train_vae(replace(config, data=anew.path), progress=False)


def test_latents_of_another_policys_frames_are_not_kept_as_these(
    first: FramesFolder, anew: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    encode_frames(EncodeConfig(first.path, str(encoder), tmp_path / "latents"), progress=False)
    with pytest.raises(FileExistsError, match="exists already"):
        encode_frames(EncodeConfig(anew.path, str(encoder), tmp_path / "latents"), progress=False)


@pytest.mark.parametrize("other", [{"key": "left"}, {"env_kwargs": {"camera": "left"}}, *OTHERS])
def test_two_views_of_one_environment_can_be_merged(other: dict[str, Any], tmp_path: Path) -> None:
    """With one seed, so episode numbers, workers and shards are the same too."""
    right = collection(tmp_path / "right", "Doom", **{**AGENT, "key": "right"})
    second = collection(tmp_path / "second", "Doom", **{**AGENT, "key": "right", **other})
    config = MergeConfig((right.path, second.path), tmp_path / "both")
    both = merge_frames(config, progress=False)
    assert (len(both), len(both.episodes()), len(both.collections)) == (720, 12, 2)


def test_a_collection_begun_with_other_workers_or_shards_has_the_same_episodes(tmp_path: Path) -> None:
    """Worker and shard alone seed an episode, so merging the two would hold it twice."""
    pong = collection(tmp_path / "pong", "Pong")
    again = collection(tmp_path / "again", "Pong", workers=2, shard_rows=500)
    with pytest.raises(ValueError, match="both come from the same collection"):
        merge_frames(MergeConfig((pong.path, again.path), tmp_path / "both"), progress=False)


def test_what_an_older_encoder_says_of_its_frames_is_still_recognised(tmp_path: Path) -> None:
    """Encoders made before a field existed, from frames that have nothing to say in it."""
    data = {
        "frames": 360,
        "env_id": "Pong",
        "env_kwargs": {},
        "frame_spec": {"crop": None, "interpolation": "area"},
        "policy": "random",
        "seed": 0,
        "workers": 1,
        "shard_rows": 180,
    }
    nothing: dict[str, Any] = dict.fromkeys(("key", *AGENT)) | {"policy": "random"}
    assert collection(tmp_path / "a", "Pong", **nothing).identity == data
    assert collection(tmp_path / "b", "Pong").identity == data


def test_a_collection_comes_back_from_json() -> None:
    for whole in (PONG, replace(PONG, **AGENT), replace(PONG, frame_spec=FrameSpec((0, 9, 0, 9)), key="x")):
        assert Collection.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@pytest.mark.parametrize("name", [*Collection.__dataclass_fields__])
def test_each_field_decides(name: str, tmp_path: Path) -> None:
    """None may be forgotten by resuming, by the identity or by what stores it."""
    values: dict[str, Any] = {
        "env_kwargs": {"a": 1},
        "render": True,
        "frame_spec": FrameSpec((0, 9, 0, 9)),
        "policy_normalize": False,
        "policy_files": {"a": "b"},
        "minari": {"id": "x"},
        "split": [{"part": "train"}],
        **dict.fromkeys(("seed", "workers", "shard_rows"), 77),
    }
    other = replace(PONG, **{name: values.get(name, "other")})
    assert [entry[0] for entry in PONG.differences(other)] == [name]
    assert PONG.to_json() != other.to_json()
    assert Collection.from_json(other.to_json()) == other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 10**9}, "its workers must be from 1 to 100,000, got 1000000000"),
        ({"workers": True}, "its workers must be an integer, got True"),
        ({"seed": 1.5}, "its seed must be an integer, got 1.5"),
        ({"seed": -1}, "its seed must not be negative"),
        ({"env_kwargs": []}, "its env_kwargs must be an object"),
        ({"policy_files": "x"}, "its policy_files must be an object"),
        ({"policy_normalize": 1}, "its policy_normalize must be true or false"),
        ({"split": {}}, "its split must be a list"),
        ({"frame_spec": None}, "its frame_spec must be an object"),
        ({"frame_spec": {"crop": None}}, "exactly the fields"),
    ],
)
def test_metadata_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Collection.from_json({**PONG.to_json(), **change})

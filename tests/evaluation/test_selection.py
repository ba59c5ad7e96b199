from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import read_group
from latent_obs.encoders.provenance import Provenance, Run
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.evaluation.selection import evaluation_split, held_out_episodes, select_frames
from latent_obs.frames import Frames
from tests.conftest import save_encoder

gym.register("Noisy-v0", "tests.conftest:FrameEnv", kwargs={"length": 30}, disable_env_checker=True)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    """About 25 episodes of 31 frames, all different, in several shards of two workers."""
    config = CollectConfig(
        f"{__name__}:Noisy-v0", tmp_path_factory.mktemp("noisy"), frames=800, workers=2, shard_rows=100
    )
    return collect_frames(config, progress=False)


def test_frames_come_from_the_episodes_that_they_should(noisy: FramesFolder) -> None:
    fitted, measured = noisy.split(0.5)
    chosen = select_frames(noisy, fitted, measured, 200, 0)
    assert chosen.frames.shape == chosen.others.shape == (200, 64, 64, 3)
    whole = {episode: [frame.tobytes() for frame in noisy.load([episode])] for episode in noisy.episodes()}
    for frame, episode in zip(chosen.frames, chosen.episodes, strict=True):
        assert episode in measured
        assert frame.tobytes() in whole[episode]
    allowed = {frame for episode in fitted for frame in whole[episode]}
    assert all(frame.tobytes() in allowed for frame in chosen.others)
    assert len({frame.tobytes() for frame in chosen.frames}) == 200
    assert len(set(chosen.episodes.tolist())) > 5
    for episode, stretch in zip(measured, chosen.stretches, strict=False):
        assert [frame.tobytes() for frame in stretch] == whole[episode]
    assert len(chosen.stretches) == min(16, len(measured))


def test_no_row_group_is_read_twice(noisy: FramesFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def counted(file: Any, group: int) -> Frames:
        reads.append(group)
        return read_group(file, group)

    monkeypatch.setattr("latent_obs.data.folder.read_group", counted)
    select_frames(noisy, *noisy.split(0.5), 10_000, 0)
    assert len(reads) == sum(len(shard.groups) for shard in noisy.shards)


def test_all_frames_are_measured_where_the_limit_allows_it(noisy: FramesFolder) -> None:
    fitted, measured = noisy.split(0.5)
    chosen = select_frames(noisy, fitted, measured, 10_000, 0)
    np.testing.assert_array_equal(chosen.frames, noisy.load(measured))
    np.testing.assert_array_equal(chosen.others, noisy.load(fitted))


def test_another_seed_chooses_other_frames(noisy: FramesFolder) -> None:
    split = noisy.split(0.5)
    first, again, other = (select_frames(noisy, *split, 50, seed).frames for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def trained_on(folder: FramesFolder, out: Path) -> EncoderFolder:
    """An encoder that says of itself that it was trained on a folder."""
    run = Run({"validation": 0.3, "seed": 0}, folder.identity, None)
    return resolve(save_encoder(out, provenance=Provenance(run=run)))


def grow(out: Path) -> tuple[EncoderFolder, set[bytes], FramesFolder]:
    """An encoder that was trained on a folder, the frames that it saw, and the folder with more frames."""
    config = CollectConfig(f"{__name__}:Noisy-v0", out / "frames", frames=501, workers=2, shard_rows=100)
    folder = collect_frames(config, progress=False)
    encoder = trained_on(folder, out / "old")
    seen = {frame.tobytes() for frame in folder.load(folder.split(0.3, 0)[0])}
    return encoder, seen, collect_frames(replace(config, frames=800), progress=False)


def test_episodes_that_were_trained_on_are_not_measured_on_after_the_folder_grew(tmp_path: Path) -> None:
    encoder, seen, folder = grow(tmp_path)
    fitted, measured = evaluation_split(encoder, folder)
    assert sorted(fitted + measured) == sorted(folder.episodes())
    assert not any(frame.tobytes() in seen for frame in folder.load(measured))
    assert len(folder.load(measured)) > 800 - 501
    assert all(any(frame.tobytes() in seen for frame in folder.load([each])) for each in fitted)


def test_a_folder_that_lost_frames_is_not_taken_for_one_that_grew(
    noisy: FramesFolder, tmp_path: Path
) -> None:
    less = shutil.copytree(str(noisy), tmp_path / "less")
    (less / noisy.shards[-1].name).unlink()
    assert held_out_episodes(trained_on(noisy, tmp_path / "encoder"), FramesFolder(less)) is None


class Still(gym.Env[Any, Any]):
    """A picture of one colour for ever; episodes of 5 steps."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, level: int) -> None:
        self.level = level

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.left = 5
        return np.full((64, 64, 3), self.level, np.uint8), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return np.full((64, 64, 3), self.level, np.uint8), 0.0, self.left == 0, False, {}


gym.register("Still-v0", f"{__name__}:Still", disable_env_checker=True)


@pytest.mark.parametrize(
    ("level", "frames", "message"),
    [
        (0, 200, "all show the same picture"),
        (90, 200, "Collect frames in which something moves"),
        (0, 3, "holds 1 episode"),
        (0, 12, r"at least 10 frames to measure on .* gives 6 and 6"),
    ],
)
def test_frames_that_a_card_cannot_be_made_of_are_refused(
    level: int, frames: int, message: str, encoder: Path, tmp_path: Path
) -> None:
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder

    config = CollectConfig(
        f"{__name__}:Still-v0", tmp_path / "still", frames=frames, workers=1, env_kwargs={"level": level}
    )
    collect_frames(config, progress=False)
    with pytest.raises(ValueError, match=message):
        evaluate_encoder(EvaluateConfig(encoder, tmp_path / "still"))

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.sources import open_env
from latent_obs.frames import FrameSpec, preprocess

needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed; it is optional"
)


@pytest.mark.skipif(importlib.util.find_spec("envpool") is not None, reason="EnvPool is installed")
def test_a_missing_envpool_is_named() -> None:
    with pytest.raises(ImportError, match="envpool"):
        open_env("envpool/CarRacing-v3")


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_frames_of_envpool_are_what_it_returns_for_these_actions(tmp_path: Path) -> None:
    """Rows equal stepping EnvPool by hand with the shard's seed and actions, episode for episode."""
    import envpool

    config = CollectConfig("envpool/CarRacing-v3", tmp_path, frames=130, workers=1, shard_rows=60)
    config = CollectConfig(**{**vars(config), "policy": "brownian", "env_kwargs": {"max_episode_steps": 40}})
    folder = collect_frames(config, progress=False)
    assert folder.source.env_id == "envpool/CarRacing-v3"
    for number, shard in enumerate(folder.shards):
        with shard.open() as file:
            rows = file.read().to_pydict()
        seed = int(np.random.SeedSequence((0, 0, number)).generate_state(2)[0]) % 2**31
        envs = envpool.make(
            "CarRacing-v3", env_type="gymnasium", num_envs=1, num_threads=1, seed=seed, max_episode_steps=40
        )
        for frame, step, action in zip(rows["frame"], rows["step"], rows["action"], strict=True):
            image = envs.reset()[0] if step == 0 else envs.step(np.array([action], np.float32))[0]
            assert frame == preprocess(image[0], FrameSpec()).tobytes()
        assert max(rows["step"]) > 0


def test_one_entry_of_dict_observations_is_collected(tmp_path: Path) -> None:
    """Rows equal stepping MiniGrid by hand, whose observations also hold a direction and a mission."""
    pytest.importorskip("minigrid")
    config = CollectConfig("minigrid:MiniGrid-Empty-6x6-v0", tmp_path, frames=60, key="image")
    folder = collect_frames(replace(config, workers=1), progress=False)
    env = open_env(config.env_id)
    with folder.shards[0].open() as file:
        rows = file.read().to_pydict()
    seed = int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0])
    obs, _ = env.reset(seed=seed)
    for number, (frame, step, action) in enumerate(
        zip(rows["frame"], rows["step"], rows["action"], strict=True)
    ):
        if number:
            obs = env.reset()[0] if step == 0 else env.step(action)[0]
        assert frame == preprocess(obs["image"], FrameSpec()).tobytes()
    assert len(set(rows["frame"])) > 5
    assert folder.identity["key"] == "image"
    env.close()


@pytest.mark.parametrize(
    ("env_id", "found"),
    [
        ("minigrid:MiniGrid-Empty-6x6-v0", r"the keys \['direction', 'image', 'mission'\]"),
        ("ALE/Pong-v5", "no keys"),
    ],
)
def test_an_entry_that_is_not_there_is_refused(env_id: str, found: str) -> None:
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=f"have no key 'screen': they have {found}"):
        open_env(env_id, key="screen")


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_a_seed_repeats_an_episode_of_envpool() -> None:
    env = open_env("envpool/CarRacing-v3")
    first = [env.reset(seed=seed)[0] for seed in (3, 3, 4)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    env.close()


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("envpool/Pong-v5", {}, "collect from ALE/Pong-v5"),
        ("envpool/Pongg-v5", {}, "no task 'Pongg-v5'"),
        ("envpool/CarRacing-v3", {"wheels": 3}, "no option 'wheels'"),
    ],
)
def test_a_task_that_cannot_be_collected_from_is_refused(
    env_id: str, kwargs: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_env(env_id, kwargs)

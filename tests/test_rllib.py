"""`make rllib` runs these in an environment that has RLlib, which pins an older Gymnasium."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs import LatentObservationWrapper, load_encoder
from tests.conftest import DictEnv, FrameEnv

pytest.importorskip("ray.rllib", exc_type=ImportError)

from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.connectors.env_to_module import EnvToModulePipeline
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.tune.registry import register_env

from latent_obs.rllib import LatentObservationConnector

pytestmark = [
    # Of RLlib's own doing.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def connector(encoder: Any, env: Any, **options: Any) -> LatentObservationConnector:
    return LatentObservationConnector(
        encoder,
        input_observation_space=env.observation_space,
        input_action_space=env.action_space,
        **options,
    )


@pytest.mark.parametrize(("stack", "normalize"), [(1, True), (3, False)])
@pytest.mark.parametrize("make", [FrameEnv, DictEnv])
def test_episodes_hold_the_wrappers_latents(make: Any, stack: int, normalize: bool, trained: Path) -> None:
    """Also where a runner cuts an episode into chunks, in the middle here."""
    key = "image" if make is DictEnv else None
    envs = [make() for _ in range(3)]
    options: dict[str, Any] = {"stack": stack, "key": key, "normalize": normalize}
    wrapped = [LatentObservationWrapper(make(), trained, **options) for _ in range(3)]
    piece = connector(trained, envs[0], **options)
    assert piece.observation_space == wrapped[0].observation_space
    episodes = [SingleAgentEpisode(observation_space=env.observation_space) for env in envs]
    for i, (episode, env) in enumerate(zip(episodes, envs, strict=True)):
        episode.add_env_reset(env.reset(seed=i)[0])
    expected = [[env.reset(seed=i)[0]] for i, env in enumerate(wrapped)]
    piece(rl_module=None, batch={}, episodes=episodes)
    for step in range(5):
        for episode, env, twin, history in zip(episodes, envs, wrapped, expected, strict=True):
            obs, reward, terminated, truncated, _ = env.step(step % 4)
            episode.add_env_step(obs, step % 4, float(reward), terminated=terminated, truncated=truncated)
            history.append(twin.step(step % 4)[0])
        piece(rl_module=None, batch={}, episodes=episodes)
        if step == 2:
            chunks, episodes = episodes, [episode.cut() for episode in episodes]
    for chunk, episode, history in zip(chunks, episodes, expected, strict=True):
        assert episode.is_done
        observations = [*chunk.get_observations(), *episode.get_observations()[1:]]
        for got, wanted in zip(observations, history, strict=True):
            if key:
                np.testing.assert_array_equal(got["speed"], wanted["speed"])
                got, wanted = got[key], wanted[key]
            np.testing.assert_array_equal(got, wanted)


def test_all_episodes_are_one_batch(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    env = FrameEnv()
    piece = connector(loaded, env)
    loaded(np.zeros((64, 64, 3), np.uint8))
    run, sizes = loaded._run, []
    assert run is not None
    loaded._run = lambda frames: sizes.append(len(frames)) or run(frames)  # type: ignore[func-returns-value]
    episodes = [SingleAgentEpisode(observation_space=env.observation_space) for _ in range(4)]
    for episode in episodes:
        episode.add_env_reset(env.reset()[0])
    piece(rl_module=None, batch={}, episodes=episodes)
    assert sizes == [4]


def test_it_travels_in_a_pipeline(encoder: Path) -> None:
    env = FrameEnv()
    pipeline = EnvToModulePipeline(
        input_observation_space=env.observation_space,
        input_action_space=env.action_space,
        connectors=[LatentObservationConnector(encoder)],
    )
    assert pipeline.observation_space == gym.spaces.Box(-np.inf, np.inf, (32,), np.float32)


def test_what_cannot_be_encoded_is_refused(encoder: Path) -> None:
    with pytest.raises(ValueError, match="LatentObservationConnector needs uint8 RGB"):
        connector(encoder, FrameEnv(dtype=np.float32, high=np.inf))
    with pytest.raises(ValueError, match="key='image'"):
        connector(encoder, DictEnv())
    with pytest.raises(ValueError, match="was told key='eye'"):
        connector(encoder, DictEnv(), key="eye")
    with pytest.raises(ValueError, match="does not know its environment"):
        LatentObservationConnector("auto")


@pytest.mark.slow
def test_ppo_learns(encoder: Path) -> None:
    make = functools.partial(LatentObservationConnector, encoder, stack=2)
    register_env("frames", lambda config: FrameEnv())
    config = (
        PPOConfig()
        .environment("frames")
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=2,
            env_to_module_connector=lambda env, spaces, device: make(),
        )
        .training(train_batch_size_per_learner=32, minibatch_size=16, num_epochs=1)
        .learners(num_learners=0)
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
        module = algorithm.get_module()
        assert module is not None
        assert module.observation_space.shape == (64,)
        assert result["env_runners"]["num_env_steps_sampled"] >= 32
        assert np.isfinite(result["learners"]["default_policy"]["total_loss"])
    finally:
        algorithm.stop()

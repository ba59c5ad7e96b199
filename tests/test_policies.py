from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO, SAC

from latent_obs.policies import StickyPolicy, make_policy
from tests.conftest import FrameEnv

BOX = gym.spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))


class Acting(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, action_space: gym.Space[Any] | None = None) -> None:
        self.action_space = action_space or gym.spaces.Discrete(6)


def shouting(obs: Any, space: gym.Space[Any]) -> int:
    return int(obs.sum()) % 6


@pytest.mark.parametrize(("name", "space"), [("random", None), ("sticky", None), ("brownian", BOX)])
def test_a_reset_with_the_same_seed_repeats_the_actions(name: str, space: Any) -> None:
    policy = make_policy(name, Acting(space))
    runs = []
    for seed in (7, 7, 8):
        policy.reset(seed)
        runs.append(np.array([policy.act(None) for _ in range(50)]))
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_sticky_actions_last_eight_steps_on_average() -> None:
    policy = StickyPolicy(gym.spaces.Box(0, 1, (1,), np.float64))
    policy.reset(0)
    actions = np.array([policy.act(None) for _ in range(20_000)]).ravel()
    assert 1 / np.mean(np.diff(actions) != 0) == pytest.approx(8, rel=0.1)


def test_the_brownian_walk_is_continuous_and_stays_inside() -> None:
    policy = make_policy("brownian", Acting(BOX))
    policy.reset(0)
    walk = np.array([policy.act(None) for _ in range(2000)])
    assert all(BOX.contains(action) for action in walk)
    steps = np.diff(walk[:, 0])
    assert steps.std() < 0.25  # a tenth of the width, 2
    assert np.corrcoef(walk[:-1, 0], walk[1:, 0])[0, 1] > 0.9


def test_brownian_needs_a_bounded_box() -> None:
    with pytest.raises(ValueError, match="bounded continuous action space"):
        make_policy("brownian", Acting())


def test_a_function_acts_on_observations() -> None:
    policy = make_policy("tests.test_policies:shouting", Acting())
    policy.reset(0)
    assert policy.act(np.array([4.0, 5.0])) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("walk", "Unknown policy 'walk'"),
        ("no_such_module:act", "could not be imported"),
        ("tests.test_policies:BOX", "not callable"),
        ("missing.zip", "does not exist"),
    ],
)
def test_a_policy_that_cannot_be_made_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(name, Acting())


@pytest.mark.parametrize("algorithm", [A2C, DQN, PPO, SAC])
def test_a_saved_sb3_model_of_any_algorithm_acts(algorithm: Any, tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1") if algorithm is SAC else gym.make("CartPole-v1")
    algorithm("MlpPolicy", env, device="cpu").save(tmp_path / "model.zip")
    policy = make_policy(str(tmp_path / "model.zip"), env)
    policy.reset(0)
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.act(obs))


def test_an_sb3_model_of_another_environment_is_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="was trained with the observation_space"):
        make_policy(str(tmp_path / "model.zip"), FrameEnv())


def test_a_zip_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="not a model saved by Stable-Baselines3"):
        make_policy(str(tmp_path / "model.zip"), Acting())

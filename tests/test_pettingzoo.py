from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pettingzoo import ParallelEnv

from latent_obs import load_encoder, preprocess
from latent_obs.pettingzoo import LatentObservationWrapper
from tests.conftest import FrameEnv


class TwoFrameEnvs(ParallelEnv[str, Any, Any]):
    """Two agents, each in its own FrameEnv; the second one's episode is longer."""

    metadata = {"name": "two", "render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(self, **options: Any) -> None:
        self.envs = {"a": FrameEnv(length=3, **options), "b": FrameEnv(length=5, **options)}
        self.possible_agents = list(self.envs)
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> Any:
        return self.envs[agent].observation_space

    def action_space(self, agent: str) -> Any:
        return self.envs[agent].action_space

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents = list(self.possible_agents)
        both = {name: env.reset(seed=seed) for name, env in self.envs.items()}
        return {n: r[0] for n, r in both.items()}, {n: r[1] for n, r in both.items()}

    def step(self, actions: Any) -> Any:
        both = {name: self.envs[name].step(actions[name]) for name in self.agents}
        self.agents = [name for name, r in both.items() if not (r[2] or r[3])]
        return tuple({name: r[i] for name, r in both.items()} for i in range(5))


@pytest.mark.parametrize("normalize", [False, True])
def test_every_agent_sees_the_latent_of_its_image(normalize: bool, trained: Path) -> None:
    encode = load_encoder(trained, normalize=normalize)
    env = LatentObservationWrapper(TwoFrameEnvs(), trained, normalize=normalize)
    plain = TwoFrameEnvs()
    a: Any = env.reset(seed=1)
    b: Any = plain.reset(seed=1)
    seen = 0
    while True:
        assert a[0].keys() == b[0].keys()
        for agent, latent in a[0].items():
            seen += 1
            assert latent in env.observation_space(agent)
            np.testing.assert_array_equal(latent, encode(preprocess(b[0][agent], encode.frame_spec)))
        assert env.agents == plain.agents
        if not env.agents:
            break
        actions = dict.fromkeys(env.agents, 1)
        a, b = env.step(actions), plain.step(actions)
    assert seen == 4 + 6


# The package of that test imports environments the deprecated way.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pettingzoos_own_test_passes(encoder: Path) -> None:
    from pettingzoo.test import parallel_api_test

    parallel_api_test(LatentObservationWrapper(TwoFrameEnvs(), encoder), num_cycles=20)


def test_what_cannot_be_encoded_is_refused_by_the_constructor(encoder: Path) -> None:
    with pytest.raises(ValueError, match="Agent 'a' needs uint8 RGB"):
        LatentObservationWrapper(TwoFrameEnvs(dtype=np.float32, high=np.inf), encoder)
    assert isinstance(TwoFrameEnvs().observation_space("a"), gym.spaces.Box)

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.sb3 import VecLatentObservation
from tests.conftest import DictEnv, FrameEnv

gym.register_envs(ale_py)
NUM = 3


def makers() -> list[Any]:
    """Environments whose episodes end at different times."""
    return [functools.partial(FrameEnv, length=length) for length in (3, 5, 4)]


def wrapped(make: Any, encoder: Any, **options: Any) -> Any:
    return LatentObservationWrapper(make(), encoder, **options)


def actions(step: int) -> Any:
    return np.array([(step + 2 * i) % 4 for i in range(NUM)])


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("kind", "normalize"),
    [
        ("dummy", False),
        ("dummy", True),
        ("subprocess", False),
        ("transposed", False),
        ("dict", True),
        ("transposed dict", False),
    ],
)
def test_encoding_above_equals_wrapping_each_env(kind: str, normalize: bool, trained: Path) -> None:
    """Same latents either way, terminal observations included."""
    key = "image" if "dict" in kind else None
    make = [DictEnv] * NUM if key else makers()
    venv: Any = SubprocVecEnv(make) if kind == "subprocess" else DummyVecEnv(make)
    if "transposed" in kind:
        venv = VecTransposeImage(venv)
    options: dict[str, Any] = {"key": key, "normalize": normalize}
    outer = VecLatentObservation(venv, trained, **options)
    inner = DummyVecEnv([functools.partial(wrapped, m, trained, **options) for m in make])
    assert outer.observation_space == inner.observation_space
    terminal = 0
    try:
        outer.seed(7)
        inner.seed(7)
        assert_same(outer.reset(), inner.reset())
        for step in range(14):
            a, b = outer.step(actions(step)), inner.step(actions(step))
            for i in range(3):
                assert_same(a[i], b[i])
            for mine, theirs in zip(a[3], b[3], strict=True):
                assert_same(mine, theirs)
                terminal += "terminal_observation" in mine
    finally:
        outer.close()
    assert terminal > 5


def test_live_and_terminal_observations_are_one_batch(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    venv = VecLatentObservation(DummyVecEnv([FrameEnv] * NUM), loaded)
    venv.reset()
    sizes: list[int] = []
    run = loaded._run
    assert run is not None

    def counting(frames: Any) -> Any:
        sizes.append(len(frames))
        return run(frames)

    loaded._run = counting
    for step in range(5):
        venv.step(actions(step))
    assert sizes == [NUM] * 4 + [2 * NUM]


def test_the_other_vec_wrappers_compose(encoder: Path, tmp_path: Path) -> None:
    def make() -> Any:
        venv = VecMonitor(VecLatentObservation(DummyVecEnv(makers()), encoder), str(tmp_path / "log"))
        return VecFrameStack(venv, 2)

    venv = VecNormalize(make())
    model = PPO("MlpPolicy", venv, n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(48)
    assert venv.observation_space.shape == (64,)
    assert len(model.ep_info_buffer or ()) > 5
    assert "t_start" in (tmp_path / "log.monitor.csv").read_text()
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "normalize.pkl"))
    again = VecNormalize.load(str(tmp_path / "normalize.pkl"), make())
    np.testing.assert_array_equal(again.obs_rms.mean, venv.obs_rms.mean)  # type: ignore[attr-defined]
    loaded = PPO.load(tmp_path / "model.zip", again, device="cpu")
    obs = again.reset()
    np.testing.assert_array_equal(
        loaded.predict(obs, deterministic=True)[0],
        model.predict(obs, deterministic=True)[0],
    )
    loaded.learn(24)
    for each in (venv, again):
        each.close()  # the log


def test_a_stack_of_latents_is_the_last_ones_oldest_first(encoder: Path) -> None:
    single = VecLatentObservation(DummyVecEnv(makers()), encoder)
    stacked = VecFrameStack(VecLatentObservation(DummyVecEnv(makers()), encoder), 2)
    for venv in (single, stacked):
        venv.seed(1)
    last: Any = single.reset()
    np.testing.assert_array_equal(stacked.reset(), np.hstack([np.zeros_like(last), last]))
    for step in range(2):
        now, both = single.step(actions(step))[0], stacked.step(actions(step))[0]
        np.testing.assert_array_equal(both, np.hstack([last, now]))  # type: ignore[list-item]
        last = now
    final = stacked.step(actions(2))[3][0]["terminal_observation"]  # the first one's episode ends
    np.testing.assert_array_equal(final[:32], last[0])


class ContinuousEnv(FrameEnv):
    """Takes what CarRacing takes."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space: Any = gym.spaces.Box(-1, 1, (3,), np.float32)

    def step(self, action: Any) -> Any:
        return super().step(int(action[0] > 0))


@pytest.mark.parametrize(
    ("algorithm", "make", "options"),
    [
        (PPO, FrameEnv, {"n_steps": 16, "batch_size": 16}),
        (DQN, FrameEnv, {"learning_starts": 10, "buffer_size": 100}),
        (SAC, ContinuousEnv, {"learning_starts": 10, "buffer_size": 100, "batch_size": 8}),
        (PPO, DictEnv, {"n_steps": 16, "batch_size": 16}),
    ],
)
def test_algorithms_learn_save_and_predict(
    algorithm: Any, make: Any, options: Any, encoder: Path, tmp_path: Path
) -> None:
    key = "image" if make is DictEnv else None
    venv = VecLatentObservation(DummyVecEnv([make] * 2), encoder, key=key)
    model = algorithm("MultiInputPolicy" if key else "MlpPolicy", venv, device="cpu", **options)
    before = model.policy.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    model.learn(40)
    assert any(not np.array_equal(before[n], v) for n, v in model.policy.state_dict().items())
    model.save(tmp_path / "model.zip")
    action, _ = algorithm.load(tmp_path / "model.zip", device="cpu").predict(venv.reset(), deterministic=True)
    assert action[0] in venv.action_space
    # A policy learnt in the vec env serves in a single environment with the wrapper.
    obs, _ = wrapped(make, encoder, key=key).reset(seed=0)
    assert model.predict(obs)[0] in venv.action_space


def test_make_vec_env_takes_the_wrapper(encoder: Path) -> None:
    options = {"encoder": str(encoder), "stack": 2}
    venv = make_vec_env(FrameEnv, 2, wrapper_class=LatentObservationWrapper, wrapper_kwargs=options)
    PPO("MlpPolicy", venv, n_steps=8, batch_size=8, device="cpu").learn(16)
    assert venv.observation_space.shape == (64,)


def test_auto_knows_the_game_behind_a_vec_env() -> None:
    elsewhere = SubprocVecEnv([functools.partial(gym.make, "ale_py:ALE/Pong-v5")])
    for venv in (make_vec_env("ALE/Pong-v5", 1), elsewhere):
        assert VecLatentObservation(venv).encoder.ref == "pong-v0"
        venv.close()


def test_other_emulator_settings_than_in_training_bring_a_warning() -> None:
    with pytest.warns(UserWarning, match="frameskip 4, here 2"):
        VecLatentObservation(make_vec_env("ALE/Pong-v5", 1, env_kwargs={"frameskip": 2}))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: make_atari_env("ALE/Pong-v5", 1), {}, "make_atari_env"),
        (lambda: VecTransposeImage(make_atari_env("ALE/Pong-v5", 1)), {}, "make_atari_env"),
        (lambda: VecFrameStack(DummyVecEnv([FrameEnv]), 4), {}, "stack latents"),
        (lambda: make_vec_env("CartPole-v1", 1), {}, "AddRenderObservation"),
        (lambda: DummyVecEnv([DictEnv]), {}, "key='image'"),
        (lambda: DummyVecEnv([DictEnv]), {"key": "eye"}, "was told key='eye'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_the_constructor(
    encoder: Path, make: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        VecLatentObservation(make(), **{"encoder": encoder, **options})
    assert "LatentObservationWrapper" not in str(caught.value)

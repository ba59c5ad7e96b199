from __future__ import annotations

import functools
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from latent_obs import LatentDriftMonitor, LatentObservationWrapper, load_encoder, vector
from latent_obs.drift import Drift
from latent_obs.encoders.folder import EncoderConfig, write_encoder_folder
from latent_obs.frames import FrameSpec
from latent_obs.sb3 import VecLatentDriftMonitor, VecLatentObservation
from tests.conftest import TINY_VAE, DictEnv, FrameEnv, needs_native_ale, random_tensors


def gaussian_kl(latents: Any, mean: Any, std: Any) -> float:
    """KL between two diagonal Gaussians, the textbook's way, in nats per dimension."""
    live_mean, live_std = latents.mean(0), latents.std(0)
    kl = np.log(std / live_std) + (live_std**2 + (live_mean - mean) ** 2) / (2 * std**2) - 0.5
    return float(kl.mean())


class DarkEnv(FrameEnv):
    """Has another look than the one that the encoder knows."""

    def _image(self) -> Any:
        return super()._image() // 4 + 150


@pytest.mark.parametrize("sizes", [[1] * 60, [7] * 9, [64], [3, 50, 1, 30]])
def test_the_drift_is_the_kl_of_the_window(sizes: list[int], trained: Path) -> None:
    encoder = load_encoder(trained)
    drift = Drift(encoder, window=20, threshold=1e9)
    latents = np.random.default_rng(0).normal(0.3, 2, (sum(sizes), 32)).astype(np.float32)
    place = 0
    for size in sizes:
        value = drift.update(latents[place : place + size])
        place += size
        window = latents[max(0, place - 20) : place]
        if len(window) > 2:
            assert value == pytest.approx(gaussian_kl(window, drift.mean, drift.std), rel=1e-3)


def play(env: Any, steps: int) -> list[float]:
    drift = [env.reset(seed=1)[1]["latent_drift"]]
    for step in range(steps):
        _, _, terminated, truncated, info = env.step(step % 4)
        drift.append(info["latent_drift"])
        if terminated or truncated:
            drift.append(env.reset()[1]["latent_drift"])
    return drift


@pytest.mark.parametrize("stack", [1, 3])
def test_known_frames_bring_no_warning_and_unknown_ones_do(stack: int, trained: Path) -> None:
    def make(env: Any) -> Any:
        return LatentDriftMonitor(LatentObservationWrapper(env, trained, stack=stack), window=200)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        known = play(make(FrameEnv(length=20)), 400)
    assert known[-1] < 0.1
    with pytest.warns(UserWarning, match=r"left the training distribution .*drift \d+\.\d\d nats") as caught:
        unknown = play(make(DarkEnv(length=20)), 400)
    assert unknown[-1] > 1
    assert len(caught) == 1  # once, not at every step


def test_the_warning_points_at_the_line_that_steps(trained: Path) -> None:
    watched: Any = (
        LatentDriftMonitor(LatentObservationWrapper(FrameEnv(), trained), 2, threshold=1e-9),
        vector.LatentDriftMonitor(
            vector.LatentObservationWrapper(SyncVectorEnv([FrameEnv]), trained), 2, threshold=1e-9
        ),
    )
    for env, action in zip(watched, (1, [1]), strict=True):
        env.reset(seed=0)
        with pytest.warns(UserWarning, match="left the training distribution") as caught:
            env.step(action)
        assert caught[0].filename == __file__


def test_scaling_the_latents_leaves_the_drift(trained: Path) -> None:
    raw, scaled = (
        LatentDriftMonitor(LatentObservationWrapper(FrameEnv(), trained, stack=2, normalize=normalize))
        for normalize in (False, True)
    )
    np.testing.assert_allclose(play(raw, 30), play(scaled, 30), rtol=1e-3)
    np.testing.assert_array_equal(scaled.drift.mean, 0)
    np.testing.assert_array_equal(scaled.drift.std, 1)


def test_it_passes_everything_else_on(trained: Path) -> None:
    plain = LatentObservationWrapper(FrameEnv(), trained)
    watched = LatentDriftMonitor(LatentObservationWrapper(FrameEnv(), trained))
    np.testing.assert_array_equal(plain.reset(seed=2)[0], watched.reset(seed=2)[0])
    a, b = plain.step(1), watched.step(1)
    np.testing.assert_array_equal(a[0], b[0])
    assert a[1:4] == b[1:4]
    assert {**a[4], "latent_drift": b[4]["latent_drift"]} == b[4]
    again = pickle.loads(pickle.dumps(watched))
    np.testing.assert_array_equal(again.step(2)[0], watched.step(2)[0])


def test_a_dict_observation_is_watched_at_its_key(trained: Path) -> None:
    env = LatentDriftMonitor(LatentObservationWrapper(DictEnv(), trained, key="image"))
    plain = LatentDriftMonitor(LatentObservationWrapper(FrameEnv(), trained))
    assert play(env, 10) == play(plain, 10)


def flat(env: Any) -> Any:
    """Put the latents into a Dict, beside a speed, and make one vector of it."""
    both = gym.spaces.Dict(latent=env.observation_space, speed=gym.spaces.Box(0, 9, (2,), np.float32))
    speed = np.ones(2, np.float32)
    beside = gym.wrappers.TransformObservation(env, lambda z: {"latent": z, "speed": speed}, both)
    return gym.wrappers.FlattenObservation(beside)


@pytest.mark.parametrize(
    "between",
    [
        lambda env: gym.wrappers.TransformObservation(env, lambda z: z * 0.1, env.observation_space),
        lambda env: gym.wrappers.FrameStackObservation(env, 4),
        flat,
    ],
    ids=["transformed", "stacked", "flat"],
)
def test_no_wrapper_in_between_changes_the_drift(between: Any, trained: Path) -> None:
    plain = LatentDriftMonitor(LatentObservationWrapper(FrameEnv(), trained), window=20)
    watched = LatentDriftMonitor(between(LatentObservationWrapper(FrameEnv(), trained)), window=20)
    assert play(watched, 40) == play(plain, 40)


@pytest.mark.filterwarnings("ignore:.*left the training distribution")
def test_no_wrapper_in_between_changes_the_drift_of_many(trained: Path) -> None:
    def drifts(between: Any, above: Any) -> list[list[float]]:
        inner = vector.LatentObservationWrapper(SyncVectorEnv([FrameEnv] * 2), trained)
        envs = vector.LatentDriftMonitor(between(inner), window=20)
        venv: Any = VecLatentDriftMonitor(
            above(VecLatentObservation(DummyVecEnv([FrameEnv] * 2), trained)), 20
        )
        found = [[envs.reset(seed=1)[1]["latent_drift"]], []]
        venv.seed(1)
        venv.reset()
        for step in range(30):
            found[0].append(envs.step(np.full(2, step % 4))[-1]["latent_drift"])
            found[1].append(venv.step(np.full(2, step % 4))[-1][0]["latent_drift"])
        return found

    plain = drifts(lambda envs: envs, lambda venv: venv)
    transformed = drifts(
        lambda envs: gym.wrappers.vector.TransformObservation(envs, lambda z: z * 0.1),
        lambda venv: VecNormalize(VecFrameStack(venv, 3)),
    )
    assert transformed == plain


@needs_native_ale
@pytest.mark.filterwarnings("ignore:The encoder pong-v0 was trained on frames with")
def test_asynchronous_ale_is_watched() -> None:
    """The drift is that of the latents that are seen."""
    envs = ale_py.AtariVectorEnv("pong", num_envs=4, batch_size=2, grayscale=False, stack_num=1)
    watched = vector.LatentDriftMonitor(vector.LatentObservationWrapper(envs, "pong-v0"))
    expected = Drift(load_encoder("pong-v0"))
    obs, infos = watched.reset(seed=0)
    for _ in range(10):
        assert infos["latent_drift"] == expected.update(obs)
        watched.send(np.zeros(2, np.int64))
        obs, *_, infos = watched.recv()
    watched.close()


def test_the_spec_makes_it_again(trained: Path) -> None:
    gym.register("Frame-v1", "tests.conftest:FrameEnv", disable_env_checker=True)
    try:
        wrapped = LatentObservationWrapper(gym.make("Frame-v1"), str(trained))
        env = LatentDriftMonitor(wrapped, window=10, threshold=3.0)
        assert env.spec is not None
        again: Any = gym.make(type(env.spec).from_json(env.spec.to_json()))
        assert (again.drift.threshold, len(again.drift._window)) == (3.0, 10)
    finally:
        del gym.registry["Frame-v1"]


@pytest.mark.filterwarnings("ignore:.*left the training distribution")
def test_vector_and_sb3_monitors_share_one_window(trained: Path, tmp_path: Path) -> None:
    make: list[Any] = [functools.partial(DarkEnv, length=n) for n in (9, 7, 8)]
    envs = vector.LatentDriftMonitor(
        vector.LatentObservationWrapper(SyncVectorEnv(make), trained, stack=2), window=30
    )
    expected = Drift(load_encoder(trained, normalize=True), window=30)
    obs, infos = envs.reset(seed=0)
    for step in range(12):
        assert infos["latent_drift"] == expected.update(obs[:, 32:])
        obs, *_, infos = envs.step(np.full(3, step % 4))
    assert infos["latent_drift"] == envs.drift.value > 0.5

    watched = VecLatentDriftMonitor(VecLatentObservation(DummyVecEnv(make), trained), window=30)
    venv = VecMonitor(watched, str(tmp_path / "log"), info_keywords=("latent_drift",))
    expected = Drift(load_encoder(trained, normalize=True), window=30)
    expected.update(venv.reset())  # type: ignore[arg-type]
    for step in range(12):
        live, _, _, each = venv.step(np.full(3, step % 4))
        assert [info["latent_drift"] for info in each] == [expected.update(live)] * 3  # type: ignore[arg-type]
    venv.close()
    assert "latent_drift" in (tmp_path / "log.monitor.csv").read_text()


def test_what_cannot_be_watched_is_refused_by_the_constructor(trained: Path, tmp_path: Path) -> None:
    pairs: Any = (
        (LatentDriftMonitor, FrameEnv()),
        (vector.LatentDriftMonitor, SyncVectorEnv([FrameEnv])),
        (VecLatentDriftMonitor, DummyVecEnv([FrameEnv])),
    )
    for make, inner in pairs:
        with pytest.raises(ValueError, match=r"there is no .*Latent\w+ inside"):
            make(inner)
    with pytest.raises(ValueError, match="window"):
        Drift(load_encoder(trained), window=1)
    with pytest.raises(ValueError, match="threshold"):
        Drift(load_encoder(trained), threshold=0)
    flat = {"mean": [0.0] * 32, "std": [0.01] * 32, "kl": [0.0] * 32}
    config = EncoderConfig(FrameSpec(), TINY_VAE, flat)
    write_encoder_folder(tmp_path / "flat", config, random_tensors(TINY_VAE))
    with pytest.raises(ValueError, match="has collapsed"):
        Drift(load_encoder(tmp_path / "flat"))


def test_the_warning_names_the_command_that_refreshes_the_encoder() -> None:
    """With what makes the environment, and how the agent's latents are scaled."""
    env = gym.make("ale_py:ALE/Breakout-v5", repeat_action_probability=0.0)
    raw = LatentDriftMonitor(
        LatentObservationWrapper(env, "breakout-v0", normalize=False), window=2, threshold=1e-9
    )
    line = (
        "latent-obs refresh breakout-v0 ALE/Breakout-v5 --env-kwargs '{\"repeat_action_probability\": 0.0}'"
    )
    with pytest.warns(UserWarning, match=re.escape(f"{line} agent.zip --no-policy-normalize")):
        play(raw, 3)
    envs = gym.make_vec("latent_obs:LatentObs/Pong-v5", num_envs=2)
    assert vector.LatentDriftMonitor(envs).drift.command == "latent-obs refresh pong-v0 ALE/Pong-v5 agent.zip"
    envs.close()
    venv = VecLatentObservation(DummyVecEnv([lambda: gym.make("ale_py:ALE/Pong-v5")]))
    assert VecLatentDriftMonitor(venv).drift.command == "latent-obs refresh pong-v0 ALE/Pong-v5 agent.zip"

from __future__ import annotations

import functools
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from latent_obs import FrameSpec, LatentObservationWrapper, load_encoder, preprocess
from latent_obs.encoders.provenance import Provenance, Run
from latent_obs.frames import frame_source
from latent_obs.sb3 import LatentExtractor, VecLatentObservation
from tests.conftest import DictEnv, FrameEnv, save_encoder

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


def test_auto_asks_a_process_for_the_games_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    with gym.make("ALE/Pong-v5", mode=1) as env:
        how = Provenance(run=Run({}, {}, None))
        fitted = save_encoder(tmp_path / "encoders" / "mode", source=frame_source(env), provenance=how)
    cases: list[tuple[dict[str, Any], str]] = [({"mode": 1}, str(fitted)), ({}, "pong-v0")]
    for options, ref in cases:
        venv = SubprocVecEnv([functools.partial(gym.make, "ale_py:ALE/Pong-v5", **options)])
        assert VecLatentObservation(venv).encoder.ref == ref
        venv.close()


def pong_with_a_lambda(**options: Any) -> gym.Env[Any, Any]:
    """Pong whose spec holds a lambda, which does not pickle."""
    game = gym.make("ale_py:ALE/Pong-v5", **options)
    return gym.wrappers.TransformObservation(game, lambda image: image, game.observation_space)


def test_auto_knows_a_game_in_a_process_that_cannot_send_its_spec() -> None:
    venv = SubprocVecEnv([pong_with_a_lambda] * 2)
    latent = VecLatentObservation(venv)
    assert latent.encoder.ref == "pong-v0"
    obs: Any = latent.reset()
    assert obs.shape == (2, 32), "its workers are alive"
    venv.close()


def test_emulator_settings_are_compared_across_processes() -> None:
    """Both the emulator's own and those of a wrapper around it."""
    venv = SubprocVecEnv([functools.partial(pong_with_a_lambda, frameskip=2)])
    with pytest.warns(UserWarning, match="frameskip 4, here 2"):
        VecLatentObservation(venv)
    venv.close()
    skipping = SubprocVecEnv([pong_that_skips])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        VecLatentObservation(skipping)
    assert not [w for w in caught if "frameskip" in str(w.message)], "1 frame, skipped 4 times, is 4"
    skipping.close()


def pong_that_skips() -> gym.Env[Any, Any]:
    return gym.wrappers.MaxAndSkipObservation(gym.make("ale_py:ALE/Pong-v5", frameskip=1), skip=4)


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


def extractor(encoder: Any, **options: Any) -> dict[str, Any]:
    return {
        "features_extractor_class": LatentExtractor,
        "features_extractor_kwargs": {"encoder": str(encoder), **options},
    }


def features(model: Any, obs: Any) -> Any:
    """What the extractor makes of observations, by the way that the policy takes."""
    with torch.no_grad():
        tensor, _ = model.policy.obs_to_tensor(obs)
        found: Any = model.policy.extract_features(tensor)
    return (found[0] if isinstance(found, tuple) else found).numpy()


@pytest.mark.parametrize(("stack", "shape"), [(1, (80, 72, 3)), (3, (80, 72, 3)), (2, (64, 64, 3))])
@pytest.mark.parametrize("freeze", [True, False])
def test_the_extractor_gives_a_policy_what_the_wrapper_does(
    freeze: bool, stack: int, shape: Any, trained: Path
) -> None:
    """Frozen bit for bit; trainable ones begin with the same up to float32's rounding."""
    options = {"ref": str(trained), "precision": "float32"}
    make = functools.partial(FrameEnv, shape)
    images: Any = VecFrameStack(DummyVecEnv([make]), stack) if stack > 1 else DummyVecEnv([make])
    policy = extractor(trained, freeze=freeze)
    policy["features_extractor_kwargs"]["encoder"] = options
    model = PPO("CnnPolicy", images, n_steps=8, batch_size=8, device="cpu", policy_kwargs=policy)
    venv = model.get_env()
    assert venv is not None
    latents = DummyVecEnv([functools.partial(wrapped, make, options, stack=stack)])
    venv.seed(3)
    latents.seed(3)
    obs: Any = venv.reset()
    expected: Any = latents.reset()
    for step in range(4):  # VecFrameStack begins with zeros
        if step >= stack - 1:
            got = features(model, obs)
            assert got.shape == (1, 32 * stack)
            if freeze:
                np.testing.assert_array_equal(got, expected)
            else:
                np.testing.assert_allclose(got, expected, atol=1e-4)
        obs, expected = venv.step(np.array([1]))[0], latents.step(np.array([1]))[0]


def test_the_extractor_takes_images_that_are_not_scaled(trained: Path) -> None:
    policy = {**extractor(trained, normalized_image=True), "normalize_images": False}
    model = PPO(
        "CnnPolicy", DummyVecEnv([FrameEnv]), n_steps=8, batch_size=8, device="cpu", policy_kwargs=policy
    )
    obs = model.get_env().reset()  # type: ignore[union-attr]
    image = obs[0] if obs.shape[-1] == 3 else obs[0].transpose(1, 2, 0)  # type: ignore[index, union-attr]
    expected = load_encoder(trained)(preprocess(image, FrameSpec()))
    np.testing.assert_array_equal(features(model, obs)[0], expected)


@pytest.mark.parametrize(("freeze", "learns"), [(True, False), (False, True)])
def test_only_an_encoder_that_is_not_frozen_learns(
    freeze: bool, learns: bool, encoder: Path, tmp_path: Path
) -> None:
    make = functools.partial(FrameEnv, (64, 64, 3))
    venv = DummyVecEnv([make])
    options: dict[str, Any] = {"learning_starts": 8, "buffer_size": 40, "batch_size": 8, "device": "cpu"}
    model = DQN("CnnPolicy", venv, policy_kwargs=extractor(encoder, freeze=freeze), **options)
    obs = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    before = features_of_q(model, obs)
    model.learn(24)
    after = features_of_q(model, obs)
    assert np.array_equal(before, after) != learns
    assert model.replay_buffer is not None
    assert model.replay_buffer.observations.dtype == np.uint8, "pixels stay in the buffer"
    model.save(tmp_path / "model.zip")
    again = DQN.load(tmp_path / "model.zip", device="cpu")
    np.testing.assert_array_equal(features_of_q(again, obs), after)


def features_of_q(model: Any, obs: Any) -> Any:
    with torch.no_grad():
        tensor, _ = model.policy.obs_to_tensor(obs)
        return model.policy.q_net.extract_features(tensor, model.policy.q_net.features_extractor).numpy()


@pytest.mark.parametrize(
    "space", [gym.spaces.Box(0, 255, (84, 84, 4), np.uint8), gym.spaces.Box(-1, 1, (4,), np.float32)]
)
def test_the_extractor_refuses_what_is_no_rgb(space: Any, encoder: Path) -> None:
    with pytest.raises(ValueError, match="LatentExtractor needs uint8 RGB images"):
        LatentExtractor(space, encoder)


LATER = """
import sys
from stable_baselines3 import A2C, DQN, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from latent_obs.sb3 import VecLatentObservation
from tests.test_sb3 import ContinuousEnv, FrameEnv
import numpy as np

name, encoder, folder = sys.argv[1:]
make = ContinuousEnv if name == "SAC" else FrameEnv
venv = VecNormalize.load(f"{folder}/normalize.pkl", VecLatentObservation(DummyVecEnv([make]), encoder))
model = {"A2C": A2C, "DQN": DQN, "SAC": SAC}[name].load(f"{folder}/model.zip", venv, device="cpu")
obs = np.load(f"{folder}/obs.npy")
np.testing.assert_allclose(venv.normalize_obs(obs), np.load(f"{folder}/normalized.npy"), atol=1e-6)
action = model.predict(venv.normalize_obs(obs), deterministic=True)[0]
np.testing.assert_allclose(action, np.load(f"{folder}/action.npy"), atol=1e-5)
model.learn(20, reset_num_timesteps=False)
print(model.num_timesteps)
"""


@pytest.mark.parametrize("algorithm", [A2C, DQN, SAC])
def test_training_goes_on_in_a_new_process(algorithm: Any, encoder: Path, tmp_path: Path) -> None:
    """With the running statistics of VecNormalize, which are of latents."""
    make = ContinuousEnv if algorithm is SAC else FrameEnv
    venv = VecNormalize(VecLatentObservation(DummyVecEnv([make]), encoder))
    off: dict[str, Any] = {} if algorithm is A2C else {"learning_starts": 10, "buffer_size": 100}
    model = algorithm("MlpPolicy", venv, device="cpu", **off)
    model.learn(40)
    model.save(tmp_path / "model.zip")
    venv.save(str(tmp_path / "normalize.pkl"))
    obs = VecLatentObservation(DummyVecEnv([make]), encoder).reset()
    scaled = venv.normalize_obs(obs)  # type: ignore[arg-type]
    np.save(tmp_path / "obs.npy", obs)  # type: ignore[arg-type]
    np.save(tmp_path / "normalized.npy", scaled)  # type: ignore[arg-type]
    np.save(tmp_path / "action.npy", model.predict(scaled, deterministic=True)[0])
    arguments = [algorithm.__name__, str(encoder), str(tmp_path)]
    run = subprocess.run(
        [sys.executable, "-c", LATER, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 60


def test_several_entries_of_a_vec_env_are_one_batch(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    venv = VecLatentObservation(DummyVecEnv([TwoCameras] * 2), loaded, key=("left", "right"))
    each = [LatentObservationWrapper(TwoCameras(), loaded, key=("left", "right")) for _ in range(2)]
    venv.seed(5)
    obs: Any = venv.reset()
    expected = [env.reset(seed=5 + i)[0] for i, env in enumerate(each)]
    for step in range(7):
        for i, one in enumerate(expected):
            assert_same({key: value[i] for key, value in obs.items()}, one)
        obs, _, dones, infos = venv.step(actions(step)[:2])
        results = [env.step(actions(step)[i]) for i, env in enumerate(each)]
        expected = [result[0] for result in results]
        for i in map(int, np.flatnonzero(dones)):
            assert_same(infos[i]["terminal_observation"], expected[i])
            expected[i] = each[i].reset()[0]


class TwoCameras(gym.ObservationWrapper[Any, Any, Any]):
    """FrameEnv seen from two sides."""

    def __init__(self) -> None:
        super().__init__(FrameEnv())
        image = self.env.observation_space
        self.observation_space = gym.spaces.Dict(left=image, right=image, speed=gym.spaces.Box(0, 1, (1,)))

    def observation(self, observation: Any) -> Any:
        return {"left": observation, "right": observation[:, ::-1].copy(), "speed": np.ones(1, np.float32)}

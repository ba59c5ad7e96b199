from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

import latent_obs
from latent_obs import LatentObservationWrapper, load_encoder, vector
from latent_obs.encoders.provenance import Provenance, Run
from latent_obs.encoders.resolve import resolve
from latent_obs.frames import frame_source
from tests.conftest import save_encoder

gym.register_envs(ale_py)
# In float32, so that nothing depends on which precisions this processor has.
PONG = {"ref": "pong-v0", "precision": "float32"}


def rollout(env: Any, steps: int = 20) -> list[Any]:
    observations = [env.reset(seed=3)[0]]
    env.action_space.seed(3)
    return [*observations, *(env.step(env.action_space.sample())[0] for _ in range(steps))]


def ref_of(env: Any) -> Any:
    return (
        env.encoder if isinstance(env, vector.LatentObservationWrapper) else env.get_wrapper_attr("encoder")
    ).ref


def test_every_ale_game_and_car_racing_has_an_id() -> None:
    assert latent_obs.__version__
    games = [name for name in gym.registry if name.startswith("ALE/")]
    # ale-py before 0.11 has other ids for a game's memory.
    theirs = {name.removeprefix("ALE/") for name in games if not name.endswith("-ram-v5")}
    mine = {name.removeprefix("LatentObs/") for name in gym.registry if name.startswith("LatentObs/")}
    several_players = {"Combat-v5", "Joust-v5", "MazeCraze-v5", "Warlords-v5"}  # which old ones register too
    assert mine == theirs - several_players | {"CarRacing-v3"}
    assert len(mine) > 100


def test_registering_is_light() -> None:
    code = "import latent_obs, sys, gymnasium; print(len(gymnasium.registry), *sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, *modules = out.stdout.split()
    assert int(number) > 100
    assert not {"ale_py", "torch", "openvino", "pygame", "latent_obs.wrappers"} & set(modules)


def test_gym_make_finds_the_package_by_its_name() -> None:
    code = "import gymnasium; print(gymnasium.make('latent_obs:LatentObs/Pong-v5').observation_space)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "Box(-inf, inf, (32,), float32)"


def test_the_id_is_the_wrapped_game() -> None:
    mine = gym.make("LatentObs/Pong-v5", encoder=PONG, stack=2)
    wrapped = LatentObservationWrapper(gym.make("ALE/Pong-v5"), PONG, stack=2)
    assert mine.observation_space == wrapped.observation_space
    for a, b in zip(rollout(mine), rollout(wrapped), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_spec_survives_json() -> None:
    env = gym.make("LatentObs/Pong-v5", encoder=PONG, stack=2, frameskip=4)
    assert env.spec is not None
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.spec == env.spec
    for a, b in zip(rollout(env), rollout(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:The encoder pong-v0 was trained on frames with repeat_action_prob")
def test_make_vec_is_the_same_environment_with_one_encoder() -> None:
    """Same latents from ALE's C++ as from the wrapped game, while nothing is random."""
    settings: dict[str, Any] = {"encoder": PONG, "repeat_action_probability": 0.0}
    envs = gym.make_vec("LatentObs/Pong-v5", num_envs=3, **settings)
    one = gym.make("LatentObs/Pong-v5", **settings)
    obs, first = envs.reset(seed=0)[0], one.reset(seed=0)[0]
    for step in range(60):
        np.testing.assert_array_equal(obs, np.tile(first, (3, 1)))
        obs, reward, *_ = envs.step(np.full(3, step % 6))
        first, single_reward, *_ = one.step(step % 6)
        assert reward[0] == single_reward
    envs.close()


def test_make_vec_gives_the_games_own_rewards() -> None:
    """Space Invaders', 5 to 30 points, which clipping would make 1; Pong's are 1 anyway."""
    settings: dict[str, Any] = {"encoder": PONG, "repeat_action_probability": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the other game's encoder
        envs = gym.make_vec("LatentObs/SpaceInvaders-v5", num_envs=1, **settings)
        one = gym.make("ALE/SpaceInvaders-v5", repeat_action_probability=0.0)
    envs.reset(seed=0)
    one.reset(seed=0)
    rewards = [(float(envs.step(np.array([1]))[1][0]), float(one.step(1)[1])) for _ in range(120)]
    assert [ours for ours, _ in rewards] == [theirs for _, theirs in rewards]
    assert max(ours for ours, _ in rewards) >= 5
    envs.close()


def test_the_vector_spec_survives_json() -> None:
    envs = gym.make_vec("LatentObs/Pong-v5", num_envs=3, encoder=PONG, stack=4)
    assert envs.spec is not None
    again = gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))
    assert (again.num_envs, again.observation_space.shape) == (3, (3, 128))


def test_the_spec_finds_an_encoder_that_moved_and_refuses_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then = tmp_path / "first", tmp_path / "then"
    save_encoder(first)
    env = gym.make("LatentObs/Pong-v5", encoder=first)
    envs = gym.make_vec("LatentObs/Pong-v5", num_envs=2, encoder=first)
    assert env.spec is not None
    assert envs.spec is not None
    specs = [EnvSpec.from_json(spec.to_json()) for spec in (env.spec, envs.spec)]
    first.rename(then)
    monkeypatch.setenv("LATENT_OBS_PATH", str(tmp_path))
    save_encoder(first, seed=1)
    assert ref_of(gym.make(specs[0])) == ref_of(gym.make_vec(specs[1])) == str(then)
    shutil.rmtree(then)
    with pytest.raises(ValueError, match="its latents would mean something else"):
        gym.make(specs[0])
    with pytest.raises(ValueError, match="its latents would mean something else"):
        gym.make_vec(specs[1])


def test_the_spec_names_the_encoder_that_auto_took() -> None:
    env, envs = gym.make("LatentObs/Pong-v5", stack=2), gym.make_vec("LatentObs/Pong-v5", num_envs=2)
    for spec in (env.spec, envs.spec):
        assert spec is not None
        assert spec.kwargs["encoder"] == "pong-v0"
        weights = resolve("pong-v0").path / "model.safetensors"
        assert spec.kwargs["fingerprint"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert env.spec is not None
    many = gym.make_vec(env.spec, num_envs=3)
    assert many.observation_space.shape == (3, 64)


@pytest.mark.parametrize(
    ("env_id", "option"), [("ALE/Pong-v5", "frameskip"), ("CarRacing-v3", "lap_complete_percent")]
)
def test_make_and_make_vec_take_the_same_encoder(
    env_id: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    made = "LatentObs/" + env_id.rpartition("/")[2]
    options: list[dict[str, Any]] = [{option: 1}, {option: 2}]
    for each in options:
        with gym.make(env_id, **each) as env:
            fit, source = Provenance(run=Run({}, {}, None)), frame_source(env)
        save_encoder(tmp_path / "encoders" / str(each[option]), source=source, provenance=fit)
    for each in options:
        taken = str(tmp_path / "encoders" / str(each[option]))
        assert ref_of(gym.make(made, **each)) == ref_of(gym.make_vec(made, num_envs=1, **each)) == taken


def test_normalised_ids_survive_json(trained: Path) -> None:
    options: dict[str, Any] = {"encoder": str(trained), "normalize": True}
    env = gym.make("LatentObs/Pong-v5", **options)
    envs = gym.make_vec("LatentObs/Pong-v5", num_envs=2, **options)
    plain = LatentObservationWrapper(gym.make("ALE/Pong-v5"), trained, normalize=True)
    first = plain.reset(seed=0)[0]
    assert env.spec is not None
    assert envs.spec is not None
    for one in (env, gym.make(EnvSpec.from_json(env.spec.to_json()))):
        np.testing.assert_array_equal(one.reset(seed=0)[0], first)
    for many in (envs, gym.make_vec(EnvSpec.from_json(envs.spec.to_json()))):
        np.testing.assert_array_equal(many.reset(seed=0)[0], [first, first])
        many.close()


def test_make_vec_loads_one_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []

    def load(**options: Any) -> Any:
        loaded.append(options)
        return load_encoder(**options)

    monkeypatch.setattr("latent_obs.adapter.load_encoder", load)
    gym.make_vec("LatentObs/Pong-v5", num_envs=4)
    assert [options["ref"].name for options in loaded] == ["pong-v0"]


def test_a_cropped_encoder_sees_whole_images(tmp_path: Path) -> None:
    spec = latent_obs.FrameSpec(crop=(34, 194, 0, 160))
    folder = str(save_encoder(tmp_path / "cropped", frame_spec=spec))
    envs = gym.make_vec("LatentObs/Pong-v5", num_envs=2, encoder=folder)
    one = gym.make("LatentObs/Pong-v5", encoder=folder)
    np.testing.assert_array_equal(envs.reset(seed=0)[0][0], one.reset(seed=0)[0])


@pytest.mark.parametrize("subprocesses", [False, True])
def test_car_racing(subprocesses: bool, encoder: Path) -> None:
    one = gym.make("LatentObs/CarRacing-v3", encoder=str(encoder), lap_complete_percent=0.9)
    assert one.spec is not None
    assert one.spec.max_episode_steps == 1000
    assert one.spec.reward_threshold == 900
    envs = gym.make_vec("LatentObs/CarRacing-v3", 2, encoder=str(encoder), subprocesses=subprocesses)
    try:
        np.testing.assert_array_equal(envs.reset(seed=5)[0][0], one.reset(seed=5)[0])
        action = np.array([0.1, 0.5, 0.0], np.float32)
        np.testing.assert_array_equal(envs.step(np.tile(action, (2, 1)))[0][0], one.step(action)[0])
    finally:
        envs.close()


@pytest.mark.parametrize("game", ["CarRacing-v3", "Pong-v5"])
def test_the_time_limit_can_be_set(game: str, encoder: Path) -> None:
    envs = gym.make_vec(f"LatentObs/{game}", 1, encoder=str(encoder), max_episode_steps=3)
    envs.reset(seed=0)
    action = np.zeros_like(envs.action_space.sample())
    truncated = [bool(envs.step(action)[3][0]) for _ in range(3)]
    assert truncated == [False, False, True]


def test_a_game_without_an_encoder_of_its_own_gets_the_general_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    with pytest.warns(UserWarning, match="latent-obs fit ALE/Pooyan-v5"):
        env = gym.make("LatentObs/Pooyan-v5")
    envs = gym.make_vec("LatentObs/Pooyan-v5", num_envs=2)  # told once
    assert env.get_wrapper_attr("encoder").ref == "general-v0"
    assert isinstance(envs, vector.LatentObservationWrapper)
    assert envs.encoder.ref == "general-v0"


def test_an_unknown_argument_is_reported() -> None:
    with pytest.raises(TypeError, match="LatentObs/Pong-v5"):
        gym.make("LatentObs/Pong-v5", no_such_argument=1)

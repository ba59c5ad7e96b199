from __future__ import annotations

import io
import json
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from sb3_contrib import QRDQN, TQC, CrossQ, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from latent_obs import LatentObservationWrapper
from latent_obs.collecting.policies import StickyPolicy, make_policy, parse_mix, policy_files
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
    policy = make_policy("tests.collecting.test_policies:shouting", Acting())
    policy.reset(0)
    assert policy.act(np.array([4.0, 5.0])) == 3


class Constant:
    """A function with a state, for mixes: it always takes the action that it is made with."""

    def __init__(self, action: int) -> None:
        self.action = action

    def __call__(self, obs: Any, space: gym.Space[Any]) -> int:
        return self.action


always_one, always_two = Constant(1), Constant(2)
ONE, TWO = "tests.collecting.test_policies:always_one", "tests.collecting.test_policies:always_two"


def test_a_mix_draws_one_policy_an_episode_by_weight() -> None:
    policy = make_policy(f"{ONE}:1,{TWO}:3", Acting())
    actions: list[int] = []
    for seed in range(2000):
        policy.reset(seed)
        episode = {policy.act(None) for _ in range(3)}
        assert len(episode) == 1
        actions += episode
    assert np.mean(np.array(actions) == 2) == pytest.approx(0.75, abs=0.03)


def test_a_mix_repeats_itself_with_its_seed() -> None:
    policy = make_policy(f"random:0.4, sticky:0.4,{ONE}:0.2", Acting())
    runs = []
    for seed in (*range(8), *range(8)):
        policy.reset(seed)
        runs.append([policy.act(None) for _ in range(30)])
    assert runs[:8] == runs[8:]
    assert runs[0] != runs[1]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("random", [("random", 1)]),
        ("random:0.5,sticky:0.5", [("random", 0.5), ("sticky", 0.5)]),
        ("a.b:act", [("a.b:act", 1)]),
        ("a.b:act:0.3,folder/agent.zip:1e-1", [("a.b:act", 0.3), ("folder/agent.zip", 0.1)]),
        ("C:/agent.zip:2,random:1", [("C:/agent.zip", 2), ("random", 1)]),
    ],
)
def test_a_mix_is_split_into_policies_and_weights(name: str, parts: list[tuple[str, float]]) -> None:
    assert parse_mix(name) == parts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:0.5,sticky", "'sticky' has none: write it as sticky:0.5"),
        ("random:0.5,", "needs a weight"),
        ("random:0.5,a.b:act", "'a.b:act' has none"),
        ("random:0,sticky:1", "must be above 0, got 0"),
        ("random:nan,sticky:1", "must be above 0"),
        ("random:0.5,walk:0.5", "Unknown policy 'walk'"),
        ("walk", "Unknown policy 'walk'"),
        ("no_such_module:act", "could not be imported"),
        ("tests.collecting.test_policies:BOX", "not callable"),
        ("missing.zip", "does not exist"),
        ("missing.onnx", "does not exist"),
    ],
)
def test_a_policy_that_cannot_be_made_is_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(name, Acting())


@pytest.mark.parametrize("algorithm", [A2C, DQN, PPO, SAC, TD3, CrossQ, QRDQN, TQC])
def test_a_saved_sb3_model_of_any_algorithm_acts(algorithm: Any, tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1") if algorithm in (SAC, TD3, CrossQ, TQC) else gym.make("CartPole-v1")
    algorithm("MlpPolicy", env, device="cpu").save(tmp_path / "model.zip")
    policy = make_policy(str(tmp_path / "model.zip"), env)
    policy.reset(0)
    obs, _ = env.reset(seed=0)
    assert env.action_space.contains(policy.act(obs))


def test_a_model_that_needs_its_state_or_a_missing_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = gym.make("CartPole-v1")
    RecurrentPPO("MlpLstmPolicy", env, device="cpu").save(tmp_path / "recurrent.zip")
    with pytest.raises(ValueError, match=r"sb3_contrib.common.recurrent.policies. Take a model of A2C, PPO"):
        make_policy(str(tmp_path / "recurrent.zip"), env)
    QRDQN("MlpPolicy", env, device="cpu").save(tmp_path / "model.zip")
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(ImportError, match=r"model of QRDQN .* pip install sb3-contrib"):
        make_policy(str(tmp_path / "model.zip"), env)


def test_an_sb3_model_of_another_environment_is_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match="was trained with the observation_space"):
        make_policy(str(tmp_path / "model.zip"), FrameEnv())


def test_a_model_of_returns_over_several_steps_loads_without_a_warning_about_its_memory(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    env = gym.make("CartPole-v1")
    DQN("MlpPolicy", env, n_steps=3, device="cpu").save(tmp_path / "model.zip")
    make_policy(str(tmp_path / "model.zip"), env)
    assert [str(warning.message) for warning in recwarn if "n_steps" in str(warning.message)] == []


def test_a_zip_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="not a model saved by Stable-Baselines3"):
        make_policy(str(tmp_path / "model.zip"), Acting())


@pytest.mark.parametrize(("stack", "normalize"), [(1, False), (3, False), (3, True)])
def test_a_model_trained_on_latents_acts_as_in_the_wrapped_env(
    stack: int, normalize: bool, trained: Path, tmp_path: Path
) -> None:
    """A PPO that learned a little on latents takes the same actions above raw observations."""
    wrapped = LatentObservationWrapper(FrameEnv(), str(trained), stack=stack, normalize=normalize)
    model = PPO("MlpPolicy", wrapped, n_steps=32, batch_size=32, n_epochs=2, device="cpu", seed=0)
    model.learn(64).save(tmp_path / "agent.zip")
    raw = FrameEnv()
    policy = make_policy(str(tmp_path / "agent.zip"), raw, str(trained), normalize)
    taken = []
    for seed in range(6):  # stacks begin anew with each episode
        latents, _ = wrapped.reset(seed=seed)
        model.set_random_seed(seed)
        expected, over = [], False
        while not over:
            expected.append(int(model.predict(latents)[0]))
            latents, _, terminated, truncated, _ = wrapped.step(expected[-1])
            over = terminated or truncated
        obs, _ = raw.reset(seed=seed)
        policy.reset(seed)
        actions, over = [], False
        while not over:
            actions.append(int(policy.act(obs)))
            obs, _, terminated, truncated, _ = raw.step(actions[-1])
            over = terminated or truncated
        assert actions == expected
        taken += actions
    assert len(set(taken)) > 1


def test_a_model_that_does_not_fit_its_encoder_is_refused(encoder: Path, tmp_path: Path) -> None:
    wrapped = LatentObservationWrapper(FrameEnv(), str(encoder))
    path = str(tmp_path / "agent.zip")
    PPO("MlpPolicy", wrapped, device="cpu").save(path)
    with pytest.raises(ValueError, match="--policy-encoder"):
        make_policy(path, FrameEnv())
    with pytest.raises(ValueError, match="takes no encoder"):
        make_policy("random", FrameEnv(), str(encoder))
    wrapped.observation_space = gym.spaces.Box(-1, 1, (33,), np.float32)
    PPO("MlpPolicy", wrapped, device="cpu").save(path)
    with pytest.raises(ValueError, match="no whole number of 32-dimensional latents"):
        make_policy(path, FrameEnv(), str(encoder))


def write_onnx(path: Path, inputs: list[Any], weights: Any, act: str | None = None, dtype: int = 1) -> Path:
    """A model that flattens its input, multiplies it by a matrix and, if told so, takes the largest."""
    nodes = [
        helper.make_node("Cast", ["obs"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
    ]
    last, kind = "logits", TensorProto.FLOAT
    if act == "ArgMax":
        nodes.append(helper.make_node("ArgMax", ["logits"], ["action"], axis=1, keepdims=0))
        last, kind = "action", TensorProto.INT64
    graph = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info("obs", dtype, inputs)],
        [helper.make_tensor_value_info(last, kind, None)],
        [numpy_helper.from_array(np.asarray(weights, np.float32), "weights")],
    )
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_an_onnx_model_draws_actions_by_its_logits(tmp_path: Path) -> None:
    weights = np.log([[0.1, 0.2, 0.3, 0.1, 0.2, 0.1], *np.ones((3, 6))])
    path = write_onnx(tmp_path / "agent.onnx", ["batch", 4], weights)
    policy = make_policy(str(path), Acting())
    runs = []
    for seed in (5, 5, 6):
        policy.reset(seed)
        runs.append([policy.act(np.array([1, 0, 0, 0], np.float32)) for _ in range(6000)])
    assert runs[0] == runs[1] != runs[2]
    taken = np.bincount(runs[0], minlength=6) / 6000
    assert taken == pytest.approx([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], abs=0.03)
    policy.reset(0)
    assert {policy.act(np.array([1000, 0, 0, 0], np.float32)) for _ in range(20)} == {2}


def test_an_onnx_model_may_answer_with_actions(tmp_path: Path) -> None:
    argmax = write_onnx(tmp_path / "argmax.onnx", [1, 4], np.eye(4, 6), "ArgMax")
    policy = make_policy(str(argmax), Acting())
    policy.reset(0)
    assert policy.act(np.array([0, 1, 3, 2], np.float32)) == 2
    box = write_onnx(tmp_path / "box.onnx", ["n", 4], np.eye(4, 3))
    policy = make_policy(str(box), Acting(BOX))
    policy.reset(0)
    action = policy.act(np.array([-5, 0.25, 7, 0], np.float32))
    assert action.tolist() == [-1, 0.25, 1]  # within the bounds
    assert action.dtype == np.float32


def test_an_onnx_model_sees_planar_images(tmp_path: Path) -> None:
    """It reads the red value in row 2, column 5; networks of torch want colours first."""
    env = FrameEnv()
    weights = np.zeros((3, 80, 72, 4), np.float32)
    weights[0, 2, 5] = [0, 1, 2, 3]
    path = write_onnx(
        tmp_path / "agent.onnx", ["n", 3, 80, 72], weights.reshape(-1, 4), "ArgMax", TensorProto.UINT8
    )
    policy = make_policy(str(path), env)
    policy.reset(0)
    obs = np.zeros((80, 72, 3), np.uint8)
    assert policy.act(obs) == 0
    obs[2, 5, 0] = 200
    assert policy.act(obs) == 3


def test_an_onnx_model_on_latents_sees_what_the_wrapper_shows(trained: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    path = write_onnx(tmp_path / "agent.onnx", ["n", 64], weights, "ArgMax")
    wrapped = LatentObservationWrapper(FrameEnv(), str(trained), stack=2)
    raw = FrameEnv()
    policy = make_policy(str(path), raw, str(trained), True)
    taken = []
    for seed in range(6):
        latents, _ = wrapped.reset(seed=seed)
        obs, _ = raw.reset(seed=seed)
        policy.reset(seed)
        for _ in range(5):
            expected = int(np.argmax(latents @ weights))
            assert policy.act(obs) == expected
            taken.append(expected)
            latents, obs = wrapped.step(expected)[0], raw.step(expected)[0]
    assert len(set(taken)) > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_network_of_a_stable_baselines3_model_acts_as_an_onnx_file(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu", seed=0)

    class Actor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = model.policy

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.policy.action_net(self.policy.mlp_extractor.forward_actor(obs))
            return logits

    path, example = str(tmp_path / "agent.onnx"), torch.zeros(1, 4)
    torch.onnx.export(Actor(), (example,), path, input_names=["obs"], dynamo=False)
    policy = make_policy(path, gym.make("CartPole-v1"))
    obs = np.array([0.01, -0.02, 0.03, 0.04], np.float32)
    chance = model.policy.get_distribution(torch.tensor(obs)[None]).log_prob(torch.tensor([1])).exp().item()
    policy.reset(0)
    assert np.mean([policy.act(obs) for _ in range(4000)]) == pytest.approx(chance, abs=0.03)


@pytest.mark.parametrize(
    ("inputs", "weights", "message"),
    [
        (["n", 5], np.ones((5, 6)), r"takes observations of shape \(5,\), the environment's have \(4,\)"),
        (["n", 4], np.ones((4, 5)), "neither an action of Discrete"),
        ([2, 4], np.ones((4, 6)), "cannot act on a batch of one"),
    ],
)
def test_an_onnx_model_that_does_not_fit_is_refused(
    inputs: list[Any], weights: Any, message: str, tmp_path: Path
) -> None:
    path = write_onnx(tmp_path / "agent.onnx", inputs, weights)
    with pytest.raises(ValueError, match=message):
        make_policy(str(path), Acting())


def test_an_onnx_model_that_fits_no_latents_or_is_damaged_is_refused(encoder: Path, tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "agent.onnx", ["n", 33], np.ones((33, 4)))
    with pytest.raises(ValueError, match="no whole number of 32-dimensional latents"):
        make_policy(str(path), FrameEnv(), str(encoder))
    write_onnx(path, ["n", 32], np.ones((32, 4)), dtype=TensorProto.INT64)
    with pytest.raises(ValueError, match=r"must have one input, .* got int64 of shape"):
        make_policy(str(path), FrameEnv(), str(encoder))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ValueError, match="is not a whole ONNX model"):
        make_policy(str(path), FrameEnv(), str(encoder))


@pytest.mark.parametrize("inner", [False, True])
def test_an_archive_that_unpacks_to_gigabytes_is_refused(inner: bool, tmp_path: Path) -> None:
    """A bomb of 100 kB; in torch's archive inside as well as outside."""
    data = json.dumps({"policy_class": {"__module__": "stable_baselines3.common.policies"}})
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", data)
        archive.writestr("big", bytes(100_000_000))
    path = tmp_path / "agent.zip"
    path.write_bytes(bomb.getvalue())
    if inner:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data", data)
            archive.writestr("policy.pth", bomb.getvalue())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"would unpack to 100,000,\d\d\d"):
            make_policy(str(path), gym.make("CartPole-v1"))
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_damaged_zips_are_one_line(tmp_path: Path) -> None:
    """Cut anywhere, or with bytes changed: the model acts, or a ValueError says what file it is."""
    path = tmp_path / "agent.zip"
    PPO("MlpPolicy", gym.make("CartPole-v1"), device="cpu").save(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    damaged = [whole[: len(whole) * part // 8] for part in range(8)]
    for _ in range(40):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 200):
            changed[place] = rng.integers(256)
        damaged.append(bytes(changed))
    nested = whole.replace(b"{", b'{"a":' + b"[" * 100_000, 1)
    messages = []
    for content in (*damaged, nested):
        path.write_bytes(content)
        try:
            make_policy(str(path), gym.make("CartPole-v1"))
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 40
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_a_digest_tells_one_model_from_the_next(encoder: Path, tmp_path: Path) -> None:
    env = FrameEnv()
    (tmp_path / "agent.zip").write_bytes(b"first")
    name = f"random:1,{tmp_path}/agent.zip:1"
    first = policy_files(name, env, str(encoder))
    assert first == policy_files(name, env, str(encoder))
    assert first is not None
    assert len(first) == 2
    (tmp_path / "agent.zip").write_bytes(b"second")
    assert first != policy_files(name, env, str(encoder))
    assert policy_files("random", env) is None

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from latent_obs import FrameSpec, LatentObservationWrapper, load_encoder, preprocess, vector
from latent_obs.encoders.folder import VAEConfig
from tests.conftest import AUTORESET_MODES, DictEnv, FrameEnv, needs_native_ale, save_encoder, vector_env

gym.register_envs(ale_py)
NUM = 3


def wrapped(make: Any, encoder: Any, **options: Any) -> Any:
    return LatentObservationWrapper(make(), encoder, **options)


def actions(step: int, n: int = NUM) -> Any:
    return np.array([(step + 2 * i) % 4 for i in range(n)])


def makers() -> list[Any]:
    """Environments whose episodes end at different times."""
    return [functools.partial(FrameEnv, length=length) for length in (3, 5, 4)]


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("stack", "normalize"), [(1, False), (3, True)])
@pytest.mark.parametrize("mode", AUTORESET_MODES)
@pytest.mark.parametrize("kind", ["sync", "async", "dict"])
def test_vector_wrapper_equals_wrapping_each_env(
    kind: str, mode: Any, stack: int, normalize: bool, trained: Path
) -> None:
    """Same latents either way, terminal frames included."""
    options: dict[str, Any] = {"stack": stack, "normalize": normalize}
    make: list[Any] = makers()
    if kind == "dict":
        make, options = [DictEnv] * NUM, {**options, "key": "image"}
    collection: Any = AsyncVectorEnv if kind == "async" else SyncVectorEnv
    outer = vector.LatentObservationWrapper(vector_env(make, mode, collection), trained, **options)
    inner = vector_env([functools.partial(wrapped, m, trained, **options) for m in make], mode)
    assert outer.single_observation_space == inner.single_observation_space
    assert outer.observation_space == inner.observation_space
    finals = 0
    try:
        a: Any = outer.reset(seed=7)
        b: Any = inner.reset(seed=7)
        assert_same(a[0], b[0])
        for step in range(14):
            a, b = outer.step(actions(step)), inner.step(actions(step))
            assert_same(a[0], b[0])
            for i in (1, 2, 3):
                np.testing.assert_array_equal(a[i], b[i])
            assert ("final_obs" in a[4]) == ("final_obs" in b[4])
            if "final_obs" in b[4]:
                np.testing.assert_array_equal(a[4]["_final_obs"], b[4]["_final_obs"])
                for mine, theirs in zip(a[4]["final_obs"], b[4]["final_obs"], strict=True):
                    assert (mine is None) == (theirs is None)
                    if mine is not None:
                        finals += 1
                        assert_same(mine, theirs)
            done = np.logical_or(a[2], a[3])
            if mode == "Disabled" and done.any():
                a = outer.reset(options={"reset_mask": done.copy()})
                b = inner.reset(options={"reset_mask": done.copy()})
                assert_same(a[0], b[0])
    finally:
        outer.close()
        inner.close()
    assert (finals > 3) == (mode == "SameStep")


@pytest.mark.skipif("SameStep" not in AUTORESET_MODES, reason="Gymnasium 1.0 has no final observations")
def test_live_and_final_rows_are_encoded_as_one_batch(encoder: Path) -> None:
    loaded = load_encoder(encoder)
    env = vector.LatentObservationWrapper(vector_env([FrameEnv] * NUM, "SameStep"), loaded)
    env.reset(seed=0)
    sizes: list[int] = []
    run = loaded._run
    assert run is not None

    def counting(frames: Any) -> Any:
        sizes.append(len(frames))
        return run(frames)

    loaded._run = counting
    for step in range(5):
        env.step(actions(step))
    assert sizes == [NUM] * 4 + [2 * NUM]


def test_observations_are_new_arrays(encoder: Path) -> None:
    env = vector.LatentObservationWrapper(SyncVectorEnv([FrameEnv] * NUM), encoder, stack=2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(actions(0))
    np.testing.assert_array_equal(first, kept)


def ale_envs(mode: str = "NextStep", **options: Any) -> Any:
    settings = {"img_height": 64, "img_width": 64, "grayscale": False, "stack_num": 1, **options}
    return gym.make_vec(
        "ALE/Pong-v5", num_envs=NUM, autoreset_mode=mode, max_num_frames_per_episode=240, **settings
    )


@needs_native_ale
@pytest.mark.filterwarnings("ignore:The encoder pong-v0 was trained on frames with")
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])  # ALE has no other
def test_ales_vector_env_is_encoded_as_its_frames(mode: str) -> None:
    encode = load_encoder("pong-v0")
    envs = ale_envs(mode)
    ale_envs({"NextStep": "SameStep", "SameStep": "NextStep"}[mode]).close()  # changes the others' metadata
    outer, plain = vector.LatentObservationWrapper(envs, encode), ale_envs(mode)
    np.testing.assert_array_equal(outer.reset(seed=1)[0], encode(plain.reset(seed=1)[0][:, 0]))
    ends = 0
    for step in range(150):
        a, b = outer.step(actions(step)), plain.step(actions(step))
        np.testing.assert_array_equal(a[0], encode(b[0][:, 0]))
        done = np.logical_or(b[2], b[3])
        ends += int(done.sum())
        if mode == "SameStep" and done.any():
            np.testing.assert_array_equal(a[4]["final_obs"][done], encode(b[4]["final_obs"][done, 0]))
    assert ends >= NUM


class Reticent(gym.vector.VectorEnv[Any, Any, Any]):
    """Tells its autoreset mode in its metadata, or nowhere, as EnvPool does."""

    def __init__(self, env: SyncVectorEnv, metadata: dict[str, Any]) -> None:
        self.reset, self.step, self.num_envs = env.reset, env.step, env.num_envs  # type: ignore[method-assign]
        self.single_observation_space, self.metadata = env.single_observation_space, metadata
        self.single_action_space, self.action_space = env.single_action_space, env.action_space
        self.observation_space = env.observation_space


@pytest.mark.parametrize("mode", [*(mode for mode in AUTORESET_MODES if mode != "Disabled"), None])
def test_the_autoreset_mode_is_read_from_metadata_and_else_is_next_step(mode: Any, encoder: Path) -> None:
    def make() -> Any:
        return vector_env(makers(), mode or "NextStep")

    metadata = {} if mode is None else {"autoreset_mode": mode}
    outer = vector.LatentObservationWrapper(Reticent(make(), metadata), encoder, stack=2)
    known = vector.LatentObservationWrapper(make(), encoder, stack=2)
    assert_same(outer.reset(seed=0)[0], known.reset(seed=0)[0])
    for step in range(12):
        told, wanted = outer.step(actions(step)), known.step(actions(step))
        np.testing.assert_array_equal(told[0], wanted[0])
        if "final_obs" in wanted[4]:
            for final, other in zip(told[4]["final_obs"], wanted[4]["final_obs"], strict=True):
                np.testing.assert_array_equal(final, other)


class BatchedFinals(SyncVectorEnv):
    """Reports final observations as ALE does: one batch, rows of running environments unspecified."""

    def step(self, actions: Any) -> Any:
        obs, rewards, terminations, truncations, infos = super().step(actions)
        if "final_obs" in infos:
            rows = [np.full_like(obs[0], 77) if one is None else one for one in infos["final_obs"]]
            infos = {"final_obs": np.stack(rows)}
        return obs, rewards, terminations, truncations, infos


@pytest.mark.skipif("SameStep" not in AUTORESET_MODES, reason="Gymnasium 1.0 has no final observations")
@pytest.mark.parametrize("stack", [1, 2])
def test_final_rows_of_a_batch_are_those_of_the_envs_that_ended(stack: int, encoder: Path) -> None:
    """Episodes of 3, 5 and 4 steps, so that one ends while others run; finals by hand from each env."""
    encode = load_encoder(encoder)
    envs = vector.LatentObservationWrapper(
        vector_env(makers(), "SameStep", BatchedFinals), encode, stack=stack
    )
    twins = [make() for make in makers()]
    seen = [[twin.reset(seed=4 + i)[0]] for i, twin in enumerate(twins)]
    envs.reset(seed=4)
    alone = 0
    for step in range(13):
        *_, terminations, truncations, infos = envs.step(actions(step))
        done = np.logical_or(terminations, truncations)
        for i, twin in enumerate(twins):
            seen[i].append(twin.step(actions(step)[i])[0])
            if done[i]:
                last = [encode(preprocess(image, FrameSpec())) for image in seen[i][-stack:]]
                np.testing.assert_array_equal(infos["final_obs"][i], np.concatenate(last))
                alone += done.sum() == 1
                seen[i] = [twin.reset()[0]] * stack
    assert alone > 2


@needs_native_ale
def test_ales_frames_at_64x64_are_our_frames() -> None:
    """The claim behind not resizing them: same settings, same pixels, terminal frames aside."""
    native = ale_envs(noop_max=0, maxpool=False, use_fire_reset=False, repeat_action_probability=0.0)
    plain = gym.make("ALE/Pong-v5", repeat_action_probability=0.0)
    obs, (image, _) = native.reset(seed=0)[0], plain.reset(seed=0)
    for step in range(50):
        np.testing.assert_array_equal(obs[0, 0], preprocess(image, FrameSpec()))
        obs = native.step(np.full(NUM, step % 6))[0]
        image = plain.step(step % 6)[0]


@needs_native_ale
@pytest.mark.parametrize("stack", [1, 3])
def test_asynchronous_ale_keeps_each_envs_stack(stack: int, tmp_path: Path) -> None:
    encode = load_encoder(save_encoder(tmp_path / "e", VAEConfig(32, (4, 8))))

    def make() -> Any:
        return ale_py.AtariVectorEnv(
            "pong", num_envs=6, batch_size=2, img_height=64, img_width=64, grayscale=False, stack_num=1,
            max_num_frames_per_episode=160,
        )  # fmt: skip

    env = make()
    seen: dict[str, Any] = {}
    observe = env.recv
    env.recv = lambda: seen.setdefault("last", observe())  # what the wrapper was given
    outer = vector.LatentObservationWrapper(env, encode, stack=stack)
    assert outer.observation_space.shape == (2, 32 * stack)
    history: dict[int, list[Any]] = {}
    obs, infos = outer.reset(seed=0)
    first = obs.reshape(2, stack, 32)
    for i, latents in zip(infos["env_id"], first, strict=True):
        history[i] = list(latents)
        assert all(np.array_equal(latents[0], latent) for latent in latents)
    ended: set[int] = set()
    for step in range(200):
        seen.clear()
        outer.send(actions(step, 2))
        obs, _, terminations, truncations, infos = outer.recv()
        given = encode(seen["last"][0][:, 0])
        for row, i in enumerate(infos["env_id"]):
            begins = i not in history or i in ended
            history[i] = [given[row]] * stack if begins else [*history[i][1:], given[row]]
            ended.discard(i)
            if terminations[row] or truncations[row]:
                ended.add(i)
            np.testing.assert_array_equal(obs[row].reshape(stack, 32), history[i])
    assert len(history) == 6


class PlanarVectorEnv(SyncVectorEnv):
    """Delivers planar images, as EnvPool does."""

    def __init__(self, make: list[Any]) -> None:
        super().__init__(make)
        shape = self.single_observation_space.shape
        assert shape is not None
        self.single_observation_space = gym.spaces.Box(0, 255, (3, *shape[:2]), np.uint8)

    def reset(self, **kwargs: Any) -> Any:
        obs, infos = super().reset(**kwargs)
        return np.ascontiguousarray(obs.transpose(0, 3, 1, 2)), infos

    def step(self, actions: Any) -> Any:
        obs, *rest = super().step(actions)
        return np.ascontiguousarray(obs.transpose(0, 3, 1, 2)), *rest


@pytest.mark.parametrize("shape", [(80, 72, 3), (64, 64, 3)])
def test_planar_images_are_encoded_as_what_they_show(encoder: Path, shape: Any) -> None:
    make = [functools.partial(FrameEnv, shape)] * NUM
    # What a batched space would be is of no interest to the wrapper, nor to SyncVectorEnv's buffer.
    planar = vector.LatentObservationWrapper(PlanarVectorEnv(make), encoder)
    plain = vector.LatentObservationWrapper(SyncVectorEnv(make), encoder)
    np.testing.assert_array_equal(planar.reset(seed=2)[0], plain.reset(seed=2)[0])
    for step in range(8):
        np.testing.assert_array_equal(planar.step(actions(step))[0], plain.step(actions(step))[0])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: SyncVectorEnv([lambda: FrameEnv((4, 80, 72))]), {}, "needs uint8 RGB"),
        (lambda: SyncVectorEnv([lambda: gym.make("CartPole-v1")]), {}, "AddRenderObservation"),
        (lambda: SyncVectorEnv([DictEnv]), {}, "key='image'"),
        (lambda: SyncVectorEnv([DictEnv]), {"key": "eye"}, "was told key='eye'"),
        (lambda: SyncVectorEnv([FrameEnv]), {"stack": 0}, "stack"),
        pytest.param(
            lambda: gym.make_vec("ALE/Pong-v5", num_envs=3),
            {},
            r'gym.make_vec\("ALE/Pong-v5", 3, stack_num=1, grayscale=False\), and stack latents with stack=4',
            marks=needs_native_ale,
        ),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_the_constructor(
    encoder: Path, make: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        vector.LatentObservationWrapper(make(), encoder, **options)


@needs_native_ale
def test_the_native_env_with_its_defaults_brings_a_warning() -> None:
    with pytest.warns(UserWarning, match="max_pool False, here True; noop_max 0, here 30"):
        vector.LatentObservationWrapper(ale_envs())


@needs_native_ale
def test_the_native_env_set_up_like_the_plain_one_brings_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector.LatentObservationWrapper(ale_envs(maxpool=False, noop_max=0))

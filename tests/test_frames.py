from __future__ import annotations

import inspect
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from latent_obs.frames import FrameSource, FrameSpec, check_frame_space, frame_source, preprocess

gym.register_envs(ale_py)


def test_a_frame_is_the_area_average_of_the_observation() -> None:
    obs = np.random.default_rng(0).integers(0, 256, (192, 128, 3), dtype=np.uint8)
    expected = obs.reshape(64, 3, 64, 2, 3).mean((1, 3))
    frame = preprocess(obs, FrameSpec())
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert frame.flags.c_contiguous
    assert np.abs(frame - expected).max() <= 0.5 + 1e-9


def test_a_64x64_observation_is_its_own_frame() -> None:
    obs = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(preprocess(obs, FrameSpec()), obs)
    assert preprocess(obs[::-1], FrameSpec()).flags.c_contiguous


def test_the_crop_is_taken_before_resizing() -> None:
    obs = np.zeros((210, 160, 3), np.uint8)
    obs[34:194] = 200
    assert (preprocess(obs, FrameSpec(crop=(34, 194, 0, 160))) == 200).all()


@pytest.mark.parametrize(
    ("obs", "got"),
    [
        (np.zeros((64, 64), np.uint8), r"uint8 of shape \(64, 64\)"),
        (np.zeros((3, 64, 64), np.uint8), r"\(3, 64, 64\)"),
        (np.zeros((64, 64, 3), np.float32), "float32"),
        ([1, 2], "list"),
    ],
)
def test_preprocess_refuses_what_is_no_rgb_image(obs: Any, got: str) -> None:
    with pytest.raises(ValueError, match=got):
        preprocess(obs, FrameSpec())


def test_a_crop_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="another image size"):
        preprocess(np.zeros((96, 96, 3), np.uint8), FrameSpec(crop=(0, 210, 0, 96)))


@pytest.mark.parametrize("spec", [FrameSpec(), FrameSpec(crop=(1, 20, 3, 40))])
def test_a_spec_survives_json(spec: FrameSpec) -> None:
    assert FrameSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"crop": None},
        {"crop": [1, 2, 3], "interpolation": "area"},
        {"crop": [5, 5, 0, 9], "interpolation": "area"},
        {"crop": "all", "interpolation": "area"},
        {"crop": None, "interpolation": "linear"},
        {"crop": None, "interpolation": "area", "gamma": 2},
    ],
)
def test_an_invalid_spec_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"FrameSpec|frame spec"):
        FrameSpec.from_json(value)


@pytest.mark.parametrize(
    ("space", "cure"),
    [
        (gym.spaces.Box(0, 255, (84, 84), np.uint8), "obs_type='rgb'"),
        (gym.spaces.Box(0, 255, (84, 84, 1), np.uint8), "obs_type='rgb'"),
        (gym.spaces.Box(0, 1, (96, 96, 3), np.float32), "before wrappers that scale or transpose"),
        (gym.spaces.Box(0, 255, (3, 96, 96), np.uint8), "before wrappers that scale or transpose"),
        (gym.spaces.Box(0, 255, (4, 96, 96, 3), np.uint8), "stack latents instead with stack=4"),
        (gym.spaces.Box(-1, 1, (4,), np.float32), "AddRenderObservation"),
        (gym.spaces.Discrete(5), "AddRenderObservation"),
        (gym.spaces.Dict(image=gym.spaces.Box(0, 255, (9, 9, 3), np.uint8)), "key='image'"),
    ],
)
def test_a_space_without_rgb_images_is_refused_with_the_cure(space: Any, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        check_frame_space(space, "Me")


def test_the_source_of_an_atari_env_holds_its_emulator_settings() -> None:
    plain = frame_source(gym.make("ALE/Pong-v5", repeat_action_probability=0.0))
    assert plain.env_id == "ALE/Pong-v5"
    assert plain.emulator == {
        "game": "pong",
        "frameskip": 4,
        "repeat_action_probability": 0.0,
        "max_pool": False,
        "noop_max": 0,
    }
    pooled = frame_source(
        gym.wrappers.AtariPreprocessing(
            gym.make("ALE/Pong-v5", frameskip=1), screen_size=64, grayscale_obs=False
        )
    )
    assert pooled.emulator["frameskip"] == 4
    assert pooled.emulator["max_pool"] is True
    assert pooled.emulator["noop_max"] == 30
    assert len(plain.differences(pooled)) == 3
    assert FrameSource.from_json(plain.to_json()) == plain


@pytest.mark.skipif(
    not hasattr(ale_py, "AtariVectorEnv"), reason="ale-py before 0.11 has no vector environment"
)
def test_what_is_not_said_is_the_default_of_the_env_that_is_made() -> None:
    """ALE's vector environment has other defaults than its plain one: both are read off their signatures."""
    native = inspect.signature(ale_py.AtariVectorEnv.__init__).parameters
    plain = inspect.signature(ale_py.AtariEnv.__init__).parameters
    spec = EnvSpec("X-v0", "ale_py.env:AtariEnv", kwargs={"game": "pong"})
    found = frame_source(spec).emulator
    assert found["repeat_action_probability"] == plain["repeat_action_probability"].default
    vectorised = {"game": "pong", "vectorization_mode": "vector_entry_point"}
    found = frame_source(EnvSpec("X-v0", "ale_py.env:AtariEnv", kwargs=vectorised)).emulator
    for name, theirs in (
        ("repeat_action_probability", "repeat_action_probability"),
        ("frameskip", "frameskip"),
        ("noop_max", "noop_max"),
        ("max_pool", "maxpool"),
    ):
        assert found[name] == native[theirs].default, name


def test_sources_without_an_emulator_never_differ() -> None:
    assert frame_source(gym.make("CartPole-v1")).differences(FrameSource("x", {}, {"game": "pong"})) == []

"""The scene of known factors: what it says of a frame, against what is measured in the frame."""

from __future__ import annotations

import colorsys
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from latent_obs.scenes import ShapesEnv


def scenes(count: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """Return frames and their factors."""
    env = ShapesEnv()
    drawn = [env.reset(seed=seed)]
    drawn += [env.step(np.int64(0))[::4] for _ in range(count - 1)]
    frames = np.stack([frame for frame, _ in drawn])
    return frames, {
        name: np.array([info["factors"][name] for _, info in drawn]) for name in drawn[0][1]["factors"]
    }


def test_shapes_is_an_environment_that_gymnasium_accepts() -> None:
    env = gym.make("Scenes/Shapes-v0")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(100)]
    assert ends[:99] == [(False, False)] * 99
    assert ends[99] == (False, True)


def test_the_same_seed_draws_the_same_scenes() -> None:
    (first, _), (again, _), (other, _) = scenes(5, 3), scenes(5, 3), scenes(5, 4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_factors_are_those_of_the_picture() -> None:
    """The shape is the only thing whose colour is saturated; its moments and its colour give the factors."""
    frames, factors = scenes(200)
    y, x = np.mgrid[:64, :64]
    for i, frame in enumerate(frames):
        ground = frame[0, 0].astype(float)
        colour = np.array(colorsys.hsv_to_rgb(factors["hue"][i], 0.85, 1.0)) * 255
        # How much of each pixel the shape covers, found along the line between the two colours.
        along = colour - ground
        covered = (frame - ground) @ along / (along @ along)
        assert np.abs(frame - (ground + covered[..., None] * along)).max() < 2
        area = covered.sum()
        assert (covered * x).sum() / area == pytest.approx(factors["x"][i], abs=0.15)
        assert (covered * y).sum() / area == pytest.approx(factors["y"][i], abs=0.15)
        assert np.sqrt(area) == pytest.approx(factors["size"][i], rel=0.06)
        assert colorsys.rgb_to_hsv(*ground / 255)[0] == pytest.approx(factors["background"][i], abs=0.02)
        # The second moment of a shape of area 1: 1/(3 sqrt 3), 1/6 and 1/(2 pi).
        spread = (covered * ((x - factors["x"][i]) ** 2 + (y - factors["y"][i]) ** 2)).sum() / area**2
        nearest = np.abs(np.array([1 / (3 * 3**0.5), 1 / 6, 1 / (2 * np.pi)]) - spread).argmin()
        if factors["shape"][i] == 0:
            assert nearest == 0
        else:  # a square and a disc of few pixels are told apart by their corners
            assert nearest > 0
            size, place = factors["size"][i], (factors["x"][i], factors["y"][i])
            corner = np.hypot(x - place[0], y - place[1]) > 0.62 * size
            assert (covered[corner].sum() > 0.02 * area) == (factors["shape"][i] == 1)


def test_the_factors_are_independent_and_fill_their_ranges() -> None:
    env = ShapesEnv()
    env.reset(seed=0)
    drawn = [env.reset()[1]["factors"] for _ in range(4000)]
    factors = {name: np.array([each[name] for each in drawn]) for name in drawn[0]}
    correlation = np.corrcoef(list(factors.values()))
    assert np.abs(correlation - np.eye(6)).max() < 0.06  # four standard errors
    ranges = {
        "x": (21, 43, 12),
        "y": (26, 38, 9),
        "size": (18, 27, 6),
        "hue": (0, 1 / 6, 8),
        "background": (0.5, 0.85, 8),
        "shape": (0, 2, 3),
    }
    for name, (low, high, count) in ranges.items():
        values, often = np.unique(factors[name].round(9), return_counts=True)
        np.testing.assert_allclose(values, np.linspace(low, high, count), atol=1e-8)
        assert often.min() > 0.8 * 4000 / count


def test_a_step_changes_one_factor_each_as_often() -> None:
    _, factors = scenes(3000)
    changed = np.stack([values[1:] != values[:-1] for values in factors.values()])
    assert (changed.sum(0) == 1).all()
    assert changed.mean(1) == pytest.approx([1 / 6] * 6, abs=0.03)


def test_every_scene_is_whole_and_its_shape_visible() -> None:
    frames, _ = scenes(500)
    edges = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], 1).astype(int)
    touched = (np.abs(edges - edges[:, :1]) > 0).any(-1)
    assert touched.sum(1).max() <= 3, "at most the tip of a triangle"
    assert (np.abs(frames.astype(int) - frames[:, :1, :1].astype(int)).max((1, 2, 3)) > 80).all()

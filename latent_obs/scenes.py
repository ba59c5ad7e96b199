"""Environments to train encoders on: scenes of random shapes, scenes of known factors, and rendered states.

``latent-obs collect latent_obs.scenes:Scenes/DeadLeaves-v0`` imports this module, which registers them.
"""

from __future__ import annotations

import colorsys
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt

from latent_obs.frames import FRAME_SHAPE, Frame

# Environments of states whose rendering is the observation.
RENDERED = (
    "Acrobot-v1",
    "BipedalWalker-v3",
    "CartPole-v1",
    "LunarLander-v3",
    "MountainCar-v0",
    "Pendulum-v1",
)


class DeadLeavesEnv(gym.Env[Frame, np.int64]):
    """Leaves of random shape, colour and texture that drift over each other.

    The dead-leaves model, opaque shapes whose sizes follow a power law and that occlude each other, has
    the statistics of natural images (Lee, Mumford & Huang 2001, "Occlusion models for natural images").
    Leaves move, each in its own direction, and every action does the same: nothing. The
    observation is ``uint8`` RGB of shape ``(64, 64, 3)``; an episode is truncated after 100 steps.

    Example:
        >>> env = DeadLeavesEnv()
        >>> env.reset(seed=0)[0].shape
        (64, 64, 3)
    """

    steps, leaves = 100, 16

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.action_space = gym.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Strew new leaves."""
        super().reset(seed=seed)
        rng, count = self.np_random, self.leaves
        # Few large leaves and many small ones, small ones on top: density of radii ~ r^-3.
        radii = 1 / np.sqrt(rng.uniform(1 / 40**2, 1 / 3**2, count))
        self._radii = np.sort(radii)[::-1]
        self._places = rng.uniform(-8, 72, (count, 2))
        self._speeds = rng.normal(0, 1, (count, 2)) * rng.uniform(0, 1.5, (count, 1))
        palette = rng.integers(0, 256, (int(rng.integers(3, 12)), 3))
        colours = palette[rng.integers(0, len(palette), count)] + rng.normal(0, 20, (count, 3))
        self._colours = colours.clip(0, 255)
        self._corners = rng.choice([3, 4, 4, 6, 24], count)
        self._angles, self._flatness = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.3, 1, count)
        self._textures = rng.normal(0, 1, (count, 8, 8)) * rng.exponential(12, count)[:, None, None]
        self._ground = rng.integers(0, 256, 3).astype(np.float32)
        self._time = 0
        return self._draw(), {}

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Let the leaves drift."""
        self._places += self._speeds
        self._time += 1
        return self._draw(), 0.0, False, self._time >= self.steps, {}

    def _draw(self) -> Frame:
        image = np.empty(FRAME_SHAPE, np.float32)
        image[:] = self._ground
        for i in range(self.leaves):
            mask = np.zeros(FRAME_SHAPE[:2], np.uint8)
            # An outline in 1/16 of a pixel, so that slow leaves do not jump.
            cv2.fillPoly(mask, [self._outline(i)], 255, cv2.LINE_AA, shift=4)
            texture = cv2.resize(self._textures[i], FRAME_SHAPE[:2], interpolation=cv2.INTER_CUBIC)
            leaf = self._colours[i] + texture[..., None]
            image += (leaf - image) * (mask[..., None] / 255)
        return image.round().clip(0, 255).astype(np.uint8)

    def _outline(self, leaf: int) -> npt.NDArray[np.int32]:
        corners = self._corners[leaf]
        turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
        points = np.stack([np.cos(turn), np.sin(turn) * self._flatness[leaf]], 1) * self._radii[leaf]
        cos, sin = np.cos(self._angles[leaf]), np.sin(self._angles[leaf])
        turned = points @ np.array([[cos, sin], [-sin, cos]]) + self._places[leaf]
        outline: npt.NDArray[np.int32] = (turned * 16).round().astype(np.int32)
        return outline


# The values that each factor of ShapesEnv can have, evenly spaced: the least, the greatest, and how many.
FACTORS = {
    "x": (21.0, 43.0, 12),
    "y": (26.0, 38.0, 9),
    "size": (18.0, 27.0, 6),
    "hue": (0.0, 1 / 6, 8),
    "background": (0.5, 0.85, 8),
    "shape": (0.0, 2.0, 3),
}


class ShapesEnv(gym.Env[Frame, np.int64]):
    """One shape on a background, drawn from six independent factors, of which each step draws one anew.

    It is a scene for disentanglement, as dSprites and 3D Shapes are: an encoder does well if each of its
    dimensions follows one factor. ``info["factors"]`` has their values, each one drawn from a few evenly
    spaced ones, all as often:

    - ``x``: of the shape's centroid in pixels, twelve values from 21 to 43.
    - ``y``: the same downwards, nine values from 26 to 38.
    - ``size``: square root of the area in pixels, six values from 18 to 27, so that shapes of one size have
      one area.
    - ``hue``: of the shape, eight values from 0 (red) to 1/6 (yellow).
    - ``background``: hue of the background, eight values from 0.5 (cyan) to 0.85 (magenta); it is darker and
      paler than the shape.
    - ``shape``: 0 (triangle), 1 (square) or 2 (disc).

    Every action does the same: nothing. The observation is ``uint8`` RGB of shape ``(64, 64, 3)``; an episode
    is truncated after 100 steps.

    Example:
        >>> obs, info = ShapesEnv().reset(seed=0)
        >>> obs.shape, list(info["factors"])
        ((64, 64, 3), ['x', 'y', 'size', 'hue', 'background', 'shape'])

    Source: the factors are those of Matthey et al. (2017), "dSprites", without its rotation, and the hues of
    Burgess & Kim (2018), "3D Shapes".
    """

    steps = 100

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(0, 255, FRAME_SHAPE, np.uint8)
        self.action_space = gym.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Draw all factors anew."""
        super().reset(seed=seed)
        self._time = 0
        self._places = {name: int(self.np_random.integers(each[2])) for name, each in FACTORS.items()}
        return self._show()

    def step(self, action: np.int64) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Give one factor another value."""
        self._time += 1
        name = list(FACTORS)[int(self.np_random.integers(len(FACTORS)))]
        count = FACTORS[name][2]
        self._places[name] = (self._places[name] + 1 + int(self.np_random.integers(count - 1))) % count
        frame, info = self._show()
        return frame, 0.0, False, self._time >= self.steps, info

    def _show(self) -> tuple[Frame, dict[str, Any]]:
        factors = {
            name: low + (high - low) * self._places[name] / (count - 1)
            for name, (low, high, count) in FACTORS.items()
        }
        return draw_shape(**factors), {"factors": factors}


def draw_shape(x: float, y: float, size: float, hue: float, background: float, shape: float) -> Frame:
    """Draw a scene of :class:`ShapesEnv`, which has the meaning of each factor.

    Returns:
        RGB image, ``uint8`` in [0, 255], shape ``(64, 64, 3)``.
    """
    corners = (3, 4, 64)[round(shape)]
    # A regular polygon of area 1 has this radius; its first side lies flat.
    radius = size / np.sqrt(corners / 2 * np.sin(2 * np.pi / corners))
    turn = np.pi / 2 + np.pi / corners * (1 + 2 * np.arange(corners))
    outline = np.stack([x + radius * np.cos(turn), y + radius * np.sin(turn)], 1)
    # Drawn four times as large and averaged: OpenCV's own smooth edges make a shape wider by a pixel.
    large = np.zeros((256, 256), np.uint8)
    points: npt.NDArray[np.int32] = ((outline + 0.5) * 4 * 256 - 128).round().astype(np.int32)
    cv2.fillPoly(large, [points], 255, shift=8)
    mask = cv2.resize(large, FRAME_SHAPE[:2], interpolation=cv2.INTER_AREA)
    ground = np.array(colorsys.hsv_to_rgb(background, 0.6, 0.45))
    colour = np.array(colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    image = ground + (colour - ground) * (mask[..., None] / 255)
    frame: Frame = (image * 255).round().astype(np.uint8)
    return frame


def rendered(env_id: str) -> gym.Env[Any, Any]:
    """Make an environment of states with its rendering as the observation.

    Args:
        env_id: Such as ``"CartPole-v1"``; its registered form is ``latent_obs.scenes:Scenes/CartPole-v1``.
    """
    return gym.wrappers.AddRenderObservation(gym.make(env_id, render_mode="rgb_array"))


gym.register("Scenes/DeadLeaves-v0", "latent_obs.scenes:DeadLeavesEnv")
gym.register("Scenes/Shapes-v0", "latent_obs.scenes:ShapesEnv")
for _env_id in RENDERED:
    gym.register(f"Scenes/{_env_id}", "latent_obs.scenes:rendered", kwargs={"env_id": _env_id})

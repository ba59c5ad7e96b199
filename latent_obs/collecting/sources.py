"""The environments that frames are collected from: Gymnasium's, ALE's and EnvPool's."""

from __future__ import annotations

import functools
import importlib
import operator
import os
import sys
from typing import Any

import gymnasium as gym
import numpy as np

from latent_obs.images import entry_path, image_layout

ENVPOOL = "envpool/"
_OLD_GYM = (
    " Its package imports the old Gym, whose environments Gymnasium does not know. Write a class as "
    "examples/environments.py does for Crafter, register it in a module of this folder, and pass module:Id."
)


def open_env(
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    key: str | None = None,
    *,
    render: bool = False,
    wrapper: str | None = None,
) -> gym.Env[Any, Any]:
    """Make an environment, registering ALE's games or EnvPool's tasks when the id asks for one.

    Args:
        env_id: Gymnasium id, or ``envpool/`` and a task of EnvPool, such as ``envpool/CarRacing-v3``.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        key: The entry of ``Dict`` observations that alone is left of them, such as ``screen`` of ViZDoom's;
            ``outer/inner`` for one of a nested ``Dict``.
        render: Draw the environment, and let the drawing be the observation.
        wrapper: ``module:callable`` that is given the environment and returns the one to use, such as
            ``minigrid.wrappers:RGBImgObsWrapper``.

    Returns:
        The environment. Gray, planar or float images have become ``uint8`` RGB of shape ``(H, W, 3)``.

    Raises:
        ValueError: If the id is unknown, its arguments or the wrapper are wrong, it does not render, or its
            observations have no such entry.
        ImportError: If the package behind the environment is not installed.
    """
    options = {**(env_kwargs or {}), **({"render_mode": "rgb_array"} if render else {})}
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        # Else SDL, which draws many environments, looks for a screen and prints an error that is none. Its
        # driver "dummy" alone would leave highway-env's images black.
        os.environ.setdefault("SDL_VIDEODRIVER", "offscreen,dummy")
    try:
        if env_id.startswith("ALE/"):
            import ale_py

            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
            gym.register_envs(ale_py)
        elif env_id.startswith(ENVPOOL) and env_id not in gym.registry:
            gym.register(
                env_id,
                "latent_obs.collecting.sources:EnvPoolEnv",
                kwargs={"task": env_id.removeprefix(ENVPOOL)},
            )
        env = gym.make(env_id, **options)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f"The environment {env_id} needs a package that is missing: {error}") from error
    except gym.error.Error as error:
        cure = _OLD_GYM if "gym" in sys.modules else ""
        raise ValueError(f"Gymnasium cannot make the environment {env_id!r}: {error}{cure}") from error
    except TypeError as error:
        raise ValueError(f"The environment {env_id!r} refuses env_kwargs {options}: {error}") from error
    try:
        if render:
            if env.render_mode != "rgb_array":
                raise ValueError(f"{env_id!r} does not draw itself: it has no render_mode 'rgb_array'.")
            # The wrapper resets without a seed, and MuJoCo places its camera by the first reset.
            env.reset(seed=0)
            env.render()
            env = gym.wrappers.AddRenderObservation(env)
        if wrapper is not None:
            env = _wrapped(env, wrapper)
        if key is not None:
            env = _entry(env, env_id, key)
        return _as_rgb(env)
    except BaseException:
        env.close()
        raise


def _wrapped(env: gym.Env[Any, Any], wrapper: str) -> gym.Env[Any, Any]:
    """Put what ``module:callable`` names around an environment."""
    module, _, attribute = wrapper.partition(":")
    try:
        wrap = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"The wrapper {wrapper!r} could not be imported: {error}. Write module:callable, such as "
            "minigrid.wrappers:RGBImgObsWrapper; a module in this folder will do."
        ) from error
    wrapped: Any = wrap(env)
    if not isinstance(wrapped, gym.Env):
        raise ValueError(
            f"The wrapper {wrapper!r} returned a {type(wrapped).__name__}, no environment. It is given the "
            "environment and returns the one to use."
        )
    return wrapped


def _entry(env: gym.Env[Any, Any], env_id: str, key: str) -> gym.Env[Any, Any]:
    """Leave one entry of Dict observations."""
    path = entry_path(env.observation_space, key)
    if path is None:
        entries = env.observation_space
        kind = f"the keys {sorted(entries)}" if isinstance(entries, gym.spaces.Dict) else "no keys"
        raise ValueError(f"The observations of {env_id!r} have no key {key!r}: they have {kind}.")
    return gym.wrappers.TransformObservation(
        env,
        functools.partial(_follow, path=path),
        _follow(env.observation_space, path),
    )


def _follow(tree: Any, path: tuple[str, ...]) -> Any:
    return functools.reduce(operator.getitem, path, tree)


def _as_rgb(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Turn gray, planar and float images into RGB ones; leave what is no image as it is."""
    try:
        layout = image_layout(env.observation_space, "", env)
    except ValueError:
        return env  # whoever needs images says what is wrong
    if layout is None:
        return env
    shape = layout.to_rgb(np.zeros(env.observation_space.shape or (), env.observation_space.dtype)).shape
    return gym.wrappers.TransformObservation(env, layout.to_rgb, gym.spaces.Box(0, 255, shape, np.uint8))


class EnvPoolEnv(gym.Env[Any, Any]):
    """One environment of EnvPool, which steps in C++.

    Its CarRacing takes six to nine times less processor time than Gymnasium's
    (``benchmarks/native_step.py``). It draws a little otherwise, hence has an id of its own, which
    frames and encoders remember. Its Atari games are refused: they are slower than ALE's own here, and
    at least one no-op after each reset keeps their frames from being equal.

    Args:
        task: EnvPool's name for it, such as ``"CarRacing-v3"``.
        **options: Keyword arguments for ``envpool.make``.

    Raises:
        ImportError: If EnvPool is not installed.
        ValueError: If it has no such task, or an Atari game is asked for.
    """

    def __init__(self, task: str, **options: Any) -> None:
        import envpool

        if task not in envpool.list_all_envs():
            raise ValueError(f"EnvPool has no task {task!r}; envpool.list_all_envs() names them.")
        config = envpool.make_spec(task).config._asdict()
        if "use_fire_reset" in config:
            raise ValueError(
                f"EnvPool's {task} cannot give the frames of ALE/{task}, and is slower: "
                f"collect from ALE/{task}."
            )
        if unknown := set(options) - set(config):
            raise TypeError(f"EnvPool's {task} has no option {sorted(unknown)[0]!r}.")
        self._make = envpool.make
        self._task, self._options = task, options
        self._open(seed=0)
        space = self._envs.observation_space
        self.action_space = self._envs.action_space
        shape: tuple[int, ...] = getattr(space, "shape", None) or ()
        self._planar = len(shape) == 3 and shape[0] == 3 and shape[2] != 3
        if self._planar:
            space = gym.spaces.Box(0, 255, (*shape[1:], 3), space.dtype.type)
        self.observation_space = space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; EnvPool takes a seed only when it makes an environment."""
        super().reset(seed=seed)
        if seed is not None:
            self._open(seed)
        return self._image(self._envs.reset()[0]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the one environment."""
        obs, rewards, terminations, truncations, _ = self._envs.step(np.asarray(action)[None])
        return self._image(obs), float(rewards[0]), bool(terminations[0]), bool(truncations[0]), {}

    def close(self) -> None:
        """Close the environment."""
        self._envs.close()

    def _open(self, seed: int) -> None:
        self._envs = self._make(
            self._task, env_type="gymnasium", num_envs=1, num_threads=1, seed=seed % 2**31, **self._options
        )

    def _image(self, obs: Any) -> Any:
        return np.moveaxis(obs[0], 0, -1) if self._planar else obs[0]

"""The environments that frames are collected from: Gymnasium's, ALE's and EnvPool's."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import gymnasium as gym
import numpy as np

ENVPOOL = "envpool/"


def open_env(
    env_id: str, env_kwargs: dict[str, Any] | None = None, key: str | None = None
) -> gym.Env[Any, Any]:
    """Make an environment, registering ALE's games or EnvPool's tasks when the id asks for one.

    Args:
        env_id: Gymnasium id, or ``envpool/`` and a task of EnvPool, such as ``envpool/CarRacing-v3``.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        key: The entry of ``Dict`` observations that alone is left of them, such as ``screen`` of ViZDoom's.

    Raises:
        ValueError: If the id is unknown, its arguments are wrong, or its observations have no such entry.
        ImportError: If the package behind the environment is not installed.
    """
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
        env = gym.make(env_id, **(env_kwargs or {}))
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f"The environment {env_id} needs a package that is missing: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"Gymnasium cannot make the environment {env_id!r}: {error}") from error
    except TypeError as error:
        raise ValueError(f"The environment {env_id!r} refuses env_kwargs {env_kwargs}: {error}") from error
    if key is None:
        return env
    entries = env.observation_space
    if not isinstance(entries, gym.spaces.Dict) or key not in entries.spaces:
        env.close()
        kind = f"the keys {sorted(entries)}" if isinstance(entries, gym.spaces.Dict) else "no keys"
        raise ValueError(f"The observations of {env_id!r} have no key {key!r}: they have {kind}.")
    return gym.wrappers.TransformObservation(env, itemgetter(key), entries[key])


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

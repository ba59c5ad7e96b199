"""Environments that come with latents: the ids ``LatentObs/<Game>-v5`` and ``LatentObs/CarRacing-v3``.

``import latent_obs`` registers them, so that ``gym.make("latent_obs:LatentObs/Pong-v5")`` works
anywhere Gymnasium ids do. Registering imports neither ale_py nor an inference runtime.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

if TYPE_CHECKING:
    from latent_obs.adapter import EncoderLike

NAMESPACE = "LatentObs"
# Games of several players only: ale-py has their ROMs, but registers no environment for them.
_MULTIPLAYER = {"combat", "joust", "maze_craze", "warlords"}


def register() -> None:
    """Register an id for every ALE game of the installed ale-py, and for CarRacing."""
    for base_id in (*(f"ALE/{game}-v5" for game in _ale_games()), "CarRacing-v3"):
        about = gym.registry.get(base_id)  # Gymnasium's own; ale-py's have no time limit
        gym.register(
            f"{NAMESPACE}/{base_id.rpartition('/')[2]}",
            entry_point="latent_obs.envs:make_env",
            vector_entry_point="latent_obs.envs:make_vec_env",
            max_episode_steps=about.max_episode_steps if about else None,
            reward_threshold=about.reward_threshold if about else None,
            disable_env_checker=True,  # it would warn of every unbounded Box
            kwargs={"env_id": base_id},
        )


def _ale_games() -> list[str]:
    """List the games by the ROMs that lie beside ale_py, without importing it."""
    package = importlib.util.find_spec("ale_py")
    folders = package.submodule_search_locations if package else None
    roms = sorted(rom.stem for folder in folders or () for rom in Path(folder).glob("roms/*.bin"))
    return [rom.title().replace("_", "") for rom in roms if rom not in _MULTIPLAYER]


def make_env(
    env_id: str,
    encoder: EncoderLike = "auto",
    *,
    stack: int = 1,
    normalize: bool | None = None,
    fingerprint: str | None = None,
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """Make an environment whose observations are latents: the entry point of the ids.

    Args:
        env_id: Id of the environment with images, such as ``"ALE/Pong-v5"``.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it. ``env.spec`` names the encoder
            that was taken, as JSON.
        stack: Latents of the last ``stack`` observations, concatenated.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        **kwargs: For the environment with images.

    Raises:
        ValueError: If ``encoder`` is damaged, says otherwise than ``normalize``, or has other weights than
            ``fingerprint`` says.
        ImportError: If the environment's package is not installed.

    Example:
        >>> env = gym.make("latent_obs:LatentObs/Pong-v5", stack=4)
        >>> env.observation_space.shape
        (128,)
    """
    from latent_obs.wrappers import RegisteredLatents

    spec = _base_spec(env_id)
    # Bare, as an entry point is: gym.make adds order enforcing and the time limit above.
    entry = spec.entry_point
    create: Any = load_env_creator(entry) if isinstance(entry, str) else entry
    env: gym.Env[Any, Any] = create(**{**spec.kwargs, **kwargs})
    env.unwrapped.spec = EnvSpec(spec.id, entry, kwargs={**spec.kwargs, **kwargs})
    return RegisteredLatents(env, encoder, stack=stack, normalize=normalize, fingerprint=fingerprint)


def make_vec_env(
    env_id: str,
    num_envs: int = 1,
    encoder: EncoderLike = "auto",
    *,
    stack: int = 1,
    normalize: bool | None = None,
    fingerprint: str | None = None,
    max_episode_steps: int | None = None,
    subprocesses: bool = False,
    **kwargs: Any,
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Make a vector environment with one encoder for all: the vector entry point of the ids.

    ALE games run in ALE's own vector environment in C++, with the game's own images and the emulator settings
    of :func:`make_env`, which are those of ``ALE/<Game>-v5``: no clipped rewards, no no-ops, sticky
    actions. Others run in Gymnasium's.

    Args:
        env_id: Id of the environment with images, such as ``"ALE/Pong-v5"``.
        num_envs: Number of environments.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        stack: Latents of the last ``stack`` observations, concatenated.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        max_episode_steps: Steps after which an episode is truncated; CarRacing's default is 1000.
        subprocesses: Step each environment in its own process. It pays where drawing the image is
            slow, as CarRacing's is. ALE's vector environment has threads (``num_threads``) instead.
        **kwargs: For the environments with images, and ``autoreset_mode``.

    Raises:
        ValueError: As :func:`make_env` does.
        ImportError: If the environment's package is not installed.

    Example:
        >>> envs = gym.make_vec("latent_obs:LatentObs/Pong-v5", num_envs=8)
        >>> envs.observation_space.shape
        (8, 32)
    """
    from latent_obs.vector import RegisteredLatents

    spec = _base_spec(env_id)
    envs: gym.vector.VectorEnv[Any, Any, Any]
    if spec.vector_entry_point and not subprocesses:
        plain = {"maxpool": False, "noop_max": 0, "use_fire_reset": False, "reward_clipping": False}
        # ALE would resize to the same frames, but more slowly than we do.
        height, width = _image_size(spec)
        shape = {"img_height": height, "img_width": width, "grayscale": False, "stack_num": 1}
        kwargs = {**spec.kwargs, **plain, **shape, **kwargs}
        if max_episode_steps is not None:  # ALE counts frames
            kwargs["max_num_frames_per_episode"] = max_episode_steps * kwargs["frameskip"]
        envs = gym.make_vec(spec.id, num_envs, vectorization_mode="vector_entry_point", **kwargs)
    else:
        about = {"autoreset_mode": kwargs.pop("autoreset_mode")} if "autoreset_mode" in kwargs else {}
        make = functools.partial(gym.make, spec, max_episode_steps, disable_env_checker=True, **kwargs)
        collection = gym.vector.AsyncVectorEnv if subprocesses else gym.vector.SyncVectorEnv
        envs = collection([make] * num_envs, **about)
        envs.unwrapped.spec = EnvSpec(spec.id, spec.entry_point, kwargs={**spec.kwargs, **kwargs})
    try:
        return RegisteredLatents(envs, encoder, stack=stack, normalize=normalize, fingerprint=fingerprint)
    except BaseException:
        envs.close()
        raise


def _image_size(spec: EnvSpec) -> tuple[int, int]:
    """Return the height and width of the images of a game."""
    with gym.make(spec, disable_env_checker=True) as env:
        height, width = (env.observation_space.shape or ())[:2]
    return height, width


def _base_spec(env_id: str) -> EnvSpec:
    if env_id.startswith("ALE/"):
        import ale_py

        gym.register_envs(ale_py)
    return gym.spec(env_id)

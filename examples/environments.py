"""Which wrapper goes before LatentObservationWrapper, for environments other than Atari.

$ python examples/environments.py     # about 10 s on 2 cores; needs crafter, minigrid, mujoco and vizdoom
car_racing       (96, 96, 3)    -> (32,)
minigrid         (40, 40, 3)    -> (32,)
classic_control  (400, 600, 3)  -> (32,)
crafter          (64, 64, 3)    -> (32,)
vizdoom          (240, 320, 3)  -> (32,)
mujoco           (480, 480, 3)  -> (32,)

The encoder here is the bundled one for Pong, which only shows that the frames fit. For an agent train one on
the environment's own frames.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import tyro

from latent_obs import LatentObservationWrapper


@dataclass(frozen=True)
class Args:
    """Wrap environments of several packages."""

    names: tuple[str, ...] = ("car_racing", "minigrid", "classic_control", "crafter", "vizdoom", "mujoco")
    """which of them"""
    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 20


def car_racing(encoder: str) -> gym.Env[Any, Any]:
    """Images already; gym.make("latent_obs:LatentObs/CarRacing-v3", encoder=...) is the same."""
    return LatentObservationWrapper(gym.make("CarRacing-v3"), encoder)


def minigrid(encoder: str) -> gym.Env[Any, Any]:
    """A Dict: RGBImgObsWrapper puts the whole room into "image"; direction and mission stay."""
    from minigrid.wrappers import RGBImgObsWrapper

    env = RGBImgObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0"), tile_size=8)
    return LatentObservationWrapper(env, encoder, key="image")


def classic_control(encoder: str) -> gym.Env[Any, Any]:
    """A state: AddRenderObservation makes it an image."""
    env = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))
    return LatentObservationWrapper(env, encoder)


def mujoco(encoder: str) -> gym.Env[Any, Any]:
    """A state too; without a display set MUJOCO_GL=egl or osmesa. The state stays beside the latent."""
    env = gym.make("HalfCheetah-v5", render_mode="rgb_array")
    env = gym.wrappers.AddRenderObservation(env, render_only=False)
    return LatentObservationWrapper(env, encoder, key="pixels")


def vizdoom(encoder: str) -> gym.Env[Any, Any]:
    """A Dict: the image is "screen"; health and ammunition stay."""
    import vizdoom.gymnasium_wrapper  # noqa: F401  # registers the ids

    return LatentObservationWrapper(gym.make("VizdoomBasic-v1"), encoder, key="screen")


class CrafterEnv(gym.Env[Any, Any]):
    """Crafter behind Gymnasium's interface; the package has that of the old Gym."""

    def __init__(self) -> None:
        import crafter

        self.env = crafter.Env()
        self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(17)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.env._seed, self.env._episode = seed, 0
        return self.env.reset(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, done, info = self.env.step(action)
        dead = info["discount"] == 0  # else its 10,000 steps are over
        return obs, float(reward), dead, done and not dead, info


def crafter(encoder: str) -> gym.Env[Any, Any]:
    """Images of the frame's own size."""
    return LatentObservationWrapper(CrafterEnv(), encoder)


MAKERS: dict[str, Callable[[str], gym.Env[Any, Any]]] = {
    function.__name__: function
    for function in (car_racing, minigrid, classic_control, crafter, vizdoom, mujoco)
}


def main(args: Args) -> None:
    for name in args.names:
        env = MAKERS[name](args.encoder)
        assert isinstance(env, LatentObservationWrapper)
        before, after = env.env.observation_space, env.observation_space
        if isinstance(env.key, str):
            assert isinstance(before, gym.spaces.Dict)
            assert isinstance(after, gym.spaces.Dict)
            before, after = before[env.key], after[env.key]
        env.action_space.seed(0)
        obs, _ = env.reset(seed=0)
        for _ in range(args.steps):
            assert (obs[env.key] if isinstance(env.key, str) else obs) in after
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                obs, _ = env.reset()
        env.close()
        print(f"{name:16} {before.shape!s:14} -> {after.shape}")


if __name__ == "__main__":
    main(tyro.cli(Args))

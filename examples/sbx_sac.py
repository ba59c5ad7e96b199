"""Train SAC or CrossQ of sbx, which is written in JAX and has no CNNs, on latents of a drawn Pendulum.

$ python examples/sbx_sac.py --steps 5000     # minutes on 2 cores
...
sac trained for 5,000 steps on (64,) float32

Needs `pip install sbx-rl pygame`. The default encoder is a general one, which shows that the pieces fit. For
a pendulum that swings up, fit one (latent-obs fit Pendulum-v1 --render) and pass --encoder auto.
"""

from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import tyro
from sbx import SAC, CrossQ
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from latent_obs.sb3 import VecLatentObservation


@dataclass(frozen=True)
class Args:
    """Train a JAX agent on latents."""

    algorithm: Literal["sac", "crossq"] = "sac"
    env_id: str = "Pendulum-v1"
    encoder: str = "general-v0"
    """a bundled encoder's name, an encoder folder, or auto"""
    steps: int = 20_000


def main(args: Args) -> None:
    drawn: dict[str, Any] = {
        "wrapper_class": gym.wrappers.AddRenderObservation,
        "env_kwargs": {"render_mode": "rgb_array"},
    }
    envs = VecLatentObservation(make_vec_env(args.env_id, n_envs=1, seed=0, **drawn), args.encoder)
    stacked = VecFrameStack(envs, 2)  # two latents, so that speed is visible
    algorithm: Any = {"sac": SAC, "crossq": CrossQ}[args.algorithm]
    model = algorithm("MlpPolicy", stacked, learning_starts=min(1_000, args.steps // 2), verbose=1)
    model.learn(args.steps)
    space = stacked.observation_space
    print(f"{args.algorithm} trained for {model.num_timesteps:,} steps on {space.shape} {space.dtype}")
    stacked.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

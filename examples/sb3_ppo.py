"""Train Stable-Baselines3's PPO on stacked latents of Pong.

$ python examples/sb3_ppo.py --steps 20000     # about 15 s on 2 cores
...
trained for 20,480 steps, saved to ppo-pong.zip
"""

from dataclasses import dataclass
from pathlib import Path

import ale_py
import gymnasium as gym
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from latent_obs import LatentObservationWrapper

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train PPO on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 1_000_000
    n_steps: int = 128
    """environment steps between two updates"""
    out: Path = Path("ppo-pong.zip")


def main(args: Args) -> None:
    envs = make_vec_env(
        args.env_id,
        n_envs=8,
        seed=0,
        wrapper_class=LatentObservationWrapper,
        wrapper_kwargs={"encoder": args.encoder, "stack": 4},  # four latents, so that speed is visible
    )
    model = PPO(
        "MlpPolicy", envs, n_steps=args.n_steps, batch_size=256, ent_coef=0.01, device="cpu", verbose=1
    )
    model.learn(args.steps)
    model.save(args.out)
    print(f"trained for {model.num_timesteps:,} steps, saved to {args.out}")
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Train sb3-contrib's RecurrentPPO or QR-DQN on latents of Pong.

$ python examples/sb3_recurrent.py --algorithm recurrent_ppo --steps 20000     # a minute on 2 cores
...
recurrent_ppo trained for 20,480 steps, saved to recurrent_ppo-pong.zip

Needs `pip install sb3-contrib`. RecurrentPPO sees one latent, since its LSTM remembers; QR-DQN sees four.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ale_py
import gymnasium as gym
import tyro
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from latent_obs.sb3 import VecLatentObservation

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train on latents."""

    algorithm: Literal["recurrent_ppo", "qrdqn"] = "recurrent_ppo"
    env_id: str = "ALE/Pong-v5"
    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 1_000_000
    n_steps: int = 128
    """RecurrentPPO's environment steps between two updates"""
    buffer: int = 500_000
    """transitions in QR-DQN's replay buffer, 1 KB each"""


def main(args: Args) -> None:
    envs: VecEnv = VecLatentObservation(make_vec_env(args.env_id, n_envs=4, seed=0), args.encoder)
    model: Any
    if args.algorithm == "recurrent_ppo":
        model = RecurrentPPO(
            "MlpLstmPolicy", envs, n_steps=args.n_steps, batch_size=256, device="cpu", verbose=1
        )
    else:
        envs = VecFrameStack(envs, 4)
        begin = min(1_000, args.steps // 2)
        # An update for every four steps. In Pong this needs a fifth of the steps of PPO.
        model = QRDQN(
            "MlpPolicy",
            envs,
            learning_rate=2e-4,
            buffer_size=args.buffer,
            batch_size=64,
            learning_starts=begin,
            train_freq=1,
            n_steps=3,
            target_update_interval=8_000,
            exploration_fraction=0.04,
            policy_kwargs={"net_arch": [256, 256], "n_quantiles": 25},
            device="cpu",
            verbose=1,
        )
    model.learn(args.steps)
    out = Path(f"{args.algorithm}-pong.zip")
    model.save(out)
    print(f"{args.algorithm} trained for {model.num_timesteps:,} steps, saved to {out}")
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Train Stable-Baselines3's DQN on latents, encoded above the vector environment, and let it play.

$ python examples/sb3_dqn.py --steps 20000     # minutes on 2 cores
...
trained for 20,000 steps, saved to dqn-pong.zip
an episode played with it: return ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from latent_obs.sb3 import VecLatentDriftMonitor, VecLatentObservation

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train DQN on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 1_000_000
    buffer: int = 1_000_000
    """transitions in the replay buffer: of 128 numbers each, not 28,224 pixels"""
    out: Path = Path("dqn-pong.zip")
    play_steps: int = 10_000
    """steps after which the final episode is given up"""


def make_envs(args: Args, n_envs: int) -> VecEnv:
    envs: VecEnv = VecLatentObservation(make_vec_env(args.env_id, n_envs=n_envs, seed=0), args.encoder)
    envs = VecLatentDriftMonitor(envs)  # warns when the policy gets where the encoder's frames never were
    return VecFrameStack(envs, 4)  # four latents, so that speed is visible


def main(args: Args) -> None:
    envs = make_envs(args, 8)
    model = DQN(
        "MlpPolicy",
        envs,
        buffer_size=args.buffer,
        learning_starts=min(10_000, args.steps // 2),
        train_freq=4,
        gradient_steps=4,
        batch_size=64,
        target_update_interval=1_000,
        device="cpu",
        verbose=1,
    )
    model.learn(args.steps)
    model.save(args.out)
    print(f"trained for {model.num_timesteps:,} steps, saved to {args.out}")
    envs.close()

    envs, model, total = make_envs(args, 1), DQN.load(args.out, device="cpu"), 0.0
    obs: Any = envs.reset()
    for _ in range(args.play_steps):
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, done, _ = envs.step(action)
        total += float(reward[0])
        if done[0]:
            break
    print(f"an episode played with it: return {total:.0f}")
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Train DQN on latents, refresh the encoder with what the agent sees, and train the same agent on.

$ python examples/sb3_refresh.py --steps 20000     # some minutes on 2 cores
...
R2 of the old latents from the new ones: 0.99...; moving R2: ..., before ...
trained on to 40,000 steps with the new encoder

The new encoder's latents mean what the old one's did, so the network and the replay buffer stay as they are:
only the environment below the agent is exchanged.
"""

from dataclasses import dataclass
from pathlib import Path

import ale_py
import gymnasium as gym
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from latent_obs import RefreshConfig, refresh_encoder
from latent_obs.sb3 import VecLatentObservation

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train DQN, refresh its encoder, train on."""

    env_id: str = "ALE/Breakout-v5"
    encoder: str = "breakout-v0"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 200_000
    """steps before the encoder is refreshed, and after it"""
    frames: int = 10_000
    """frames to collect with the agent"""
    encoder_steps: int = 2_000
    """optimiser steps of the encoder"""
    least_r2: float = 0.98
    """refuse the new encoder where its latents explain less of the old ones' variance"""
    out: Path = Path("refreshed")
    """folder for the agent and the new encoder"""


def make_envs(args: Args, encoder: str) -> VecEnv:
    envs: VecEnv = VecLatentObservation(make_vec_env(args.env_id, n_envs=8, seed=0), encoder)
    return VecFrameStack(envs, 4)  # four latents, so that speed is visible


def main(args: Args) -> None:
    model = DQN(
        "MlpPolicy",
        make_envs(args, args.encoder),
        buffer_size=max(1_000, 2 * args.steps),
        learning_starts=min(10_000, args.steps // 2),
        train_freq=4,
        gradient_steps=4,
        device="cpu",
    )
    model.learn(args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    model.save(args.out / "agent.zip")

    new = refresh_encoder(
        RefreshConfig(
            args.encoder,
            args.env_id,
            str(args.out / "agent.zip"),
            args.out / "encoder",
            frames=args.frames,
            steps=args.encoder_steps,
            least_r2=args.least_r2,
        )
    )
    kept = new.config.provenance.refreshed
    assert kept is not None
    moves = f"{kept.moving_r2:.3f}, before {kept.moving_r2_before:.3f}"
    print(f"R2 of the old latents from the new ones: {kept.r2:.4f}; moving R2: {moves}")

    model.set_env(make_envs(args, new.ref))
    model.learn(args.steps, reset_num_timesteps=False)  # what the old encoder wrote into the buffer stays
    print(f"trained on to {model.num_timesteps:,} steps with the new encoder")


if __name__ == "__main__":
    main(tyro.cli(Args))

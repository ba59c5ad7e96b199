"""Train DQN on pixels with a VAE's encoder inside its network, frozen or trained along.

$ python examples/sb3_finetune.py --steps 5000     # about a minute on 2 cores
...
trained for 5,000 steps with 24,576 bytes a transition in the buffer, saved to finetuned-pong.zip

The replay buffer keeps pixels, resized to the encoder's 64x64. Frozen, the network sees what
LatentObservationWrapper would show it, at the cost of encoding every minibatch; examples/sb3_dqn.py encodes
each frame once instead.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import tyro
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack

from latent_obs.sb3 import LatentExtractor

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train DQN with an encoder inside."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    freeze: bool = False
    """keep the encoder as it is"""
    steps: int = 100_000
    buffer: int = 20_000
    """transitions in the replay buffer"""
    out: Path = Path("finetuned-pong.zip")


def main(args: Args) -> None:
    resize: dict[str, Any] = {
        "wrapper_class": gym.wrappers.ResizeObservation,
        "wrapper_kwargs": {"shape": (64, 64)},
    }
    envs = VecFrameStack(make_vec_env(args.env_id, n_envs=4, seed=0, **resize), 2)  # so that speed is visible
    model = DQN(
        "CnnPolicy",
        envs,
        policy_kwargs={
            "features_extractor_class": LatentExtractor,
            "features_extractor_kwargs": {"encoder": args.encoder, "freeze": args.freeze},
        },
        buffer_size=args.buffer,
        learning_starts=min(1_000, args.steps // 2),
        train_freq=16,
        device="cpu",
        verbose=1,
    )
    model.learn(args.steps)
    model.save(args.out)
    assert model.replay_buffer is not None
    size = model.replay_buffer.observations[0, 0].nbytes
    done = f"trained for {model.num_timesteps:,} steps with {size:,} bytes a transition in the buffer"
    print(f"{done}, saved to {args.out}")
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

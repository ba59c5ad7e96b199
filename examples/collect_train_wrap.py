"""Collect frames, train a VAE on them and wrap the environment with its encoder.

$ python examples/collect_train_wrap.py     # about 90 s on 2 cores
10,000 frames, 36 bytes each
moving R2 0.96, 32 active units
(32,)
"""

from dataclasses import dataclass
from pathlib import Path

import ale_py
import gymnasium as gym
import tyro

from latent_obs import CollectConfig, LatentObservationWrapper, TrainConfig, collect_frames, train_vae

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Collect frames, train a VAE on them and wrap the environment with its encoder."""

    env_id: str = "ALE/Breakout-v5"
    folder: Path = Path("runs/breakout")
    frames: int = 10_000
    steps: int = 2_000


def main(args: Args) -> None:
    data, encoder = args.folder / "frames", args.folder / "encoder"
    collected = collect_frames(CollectConfig(args.env_id, data, frames=args.frames))
    print(f"{len(collected):,} frames, {collected.num_bytes / len(collected):.0f} bytes each")
    metrics = train_vae(TrainConfig(data, encoder, steps=args.steps)).metrics
    print(f"moving R2 {metrics['moving_r2']:.2f}, {metrics['active_units']} active units")
    env = LatentObservationWrapper(gym.make(args.env_id), encoder)
    obs, _ = env.reset(seed=0)
    print(obs.shape)
    env.close()


if __name__ == "__main__":  # collecting starts processes, which import this file
    main(tyro.cli(Args))

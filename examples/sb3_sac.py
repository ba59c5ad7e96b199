"""Train Stable-Baselines3's SAC to drive CarRacing on latents, and let it drive.

$ python examples/sb3_sac.py --steps 5000     # minutes on 2 cores
...
trained for 5,000 steps, saved to sac-car_racing.zip
an episode driven with it: return ...

To drive well SAC needs some hundred thousand steps.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecFrameStack

from latent_obs.sb3 import VecLatentObservation


@dataclass(frozen=True)
class Args:
    """Train SAC on latents."""

    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 500_000
    n_envs: int = 2
    """processes that draw and drive; the encoder stays in this one"""
    out: Path = Path("sac-car_racing.zip")
    play_steps: int = 1_000
    """steps after which the final episode is given up"""


def make_envs(args: Args, n_envs: int) -> VecEnv:
    envs = make_vec_env("CarRacing-v3", n_envs=n_envs, seed=0, vec_env_cls=SubprocVecEnv)
    return VecFrameStack(VecLatentObservation(envs, args.encoder), 2)  # two latents, so that speed is visible


def main(args: Args) -> None:
    envs = make_envs(args, args.n_envs)
    model = SAC(
        "MlpPolicy",
        envs,
        buffer_size=300_000,
        learning_starts=min(1_000, args.steps // 2),
        train_freq=8,
        gradient_steps=8,
        use_sde=True,
        device="cpu",
        verbose=1,
    )
    model.learn(args.steps)
    model.save(args.out)
    print(f"trained for {model.num_timesteps:,} steps, saved to {args.out}")
    envs.close()

    envs, model, total = make_envs(args, 1), SAC.load(args.out, device="cpu"), 0.0
    obs: Any = envs.reset()
    for _ in range(args.play_steps):
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, done, _ = envs.step(action)
        total += float(reward[0])
        if done[0]:
            break
    print(f"an episode driven with it: return {total:.0f}")
    envs.close()


if __name__ == "__main__":  # the environments run in processes, which import this file
    main(tyro.cli(Args))

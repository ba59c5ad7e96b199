"""Train RLlib's PPO (new API stack) on latents of Pong.

$ python examples/rllib_ppo.py --iterations 5     # minutes on 2 cores
...
iteration 5: ... steps, return ...

RLlib requires an older Gymnasium, so give it an environment of its own; docs/guide.md says how to install it.
"""

from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
import tyro
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune.registry import register_env

from latent_obs.rllib import LatentObservationConnector


@dataclass(frozen=True)
class Args:
    """Train PPO on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    iterations: int = 250
    batch: int = 4_000
    """environment steps in an iteration"""
    runners: int = 0
    """processes that act; 0: this one"""
    envs: int = 8
    """environments in each"""


def make(config: Any) -> gym.Env[Any, Any]:
    gym.register_envs(ale_py)  # in each process
    return gym.make(config["env_id"])


def main(args: Args) -> None:
    register_env("pixels", make)
    config = (
        PPOConfig()
        .environment("pixels", env_config={"env_id": args.env_id})
        .env_runners(
            num_env_runners=args.runners,
            num_envs_per_env_runner=args.envs,
            # Four latents, so that speed is visible.
            env_to_module_connector=lambda env, spaces, device: LatentObservationConnector(
                args.encoder, stack=4
            ),
        )
        .training(
            train_batch_size_per_learner=args.batch,
            minibatch_size=min(256, args.batch),
            num_epochs=4,
        )
        .learners(num_learners=0)
    )
    algorithm = config.build_algo()
    for iteration in range(1, args.iterations + 1):
        runners = algorithm.train()["env_runners"]
        steps, mean = (
            runners["num_env_steps_sampled_lifetime"],
            runners.get("episode_return_mean", float("nan")),
        )
        print(f"iteration {iteration}: {steps:,.0f} steps, return {mean:.1f}")
    algorithm.stop()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Train skrl's PPO on latents of Pong, with one encoder for all environments.

$ python examples/skrl_ppo.py --steps 20000     # a minute or two on 2 cores
...
skrl trained PPO for 20,000 steps of 8 environments on (128,)

Needs `pip install skrl`.
"""

from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
import torch
import tyro
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer

from latent_obs import vector

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train PPO on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 1_000_000
    """environment steps, of all environments together"""
    num_envs: int = 8
    rollout: int = 128
    """steps of each environment between two updates"""


def network(inputs: int, outputs: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, 64),
        torch.nn.Tanh(),
        torch.nn.Linear(64, outputs),
    )


class Policy(CategoricalMixin, Model):
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        CategoricalMixin.__init__(self)
        self.net = network(self.num_observations, self.num_actions)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.net = network(self.num_observations, 1)

    def compute(self, inputs: dict[str, Any], role: str = "") -> tuple[torch.Tensor, dict[str, Any]]:
        return self.net(inputs["observations"]), {}


def main(args: Args) -> None:
    games = gym.make_vec(args.env_id, args.num_envs, vectorization_mode="sync")
    env = wrap_env(vector.LatentObservationWrapper(games, args.encoder, stack=4))  # so that speed is visible
    spaces = {
        "observation_space": env.observation_space,
        "action_space": env.action_space,
        "device": env.device,
    }
    agent = PPO(
        models={"policy": Policy(**spaces), "value": Value(**spaces)},
        memory=RandomMemory(memory_size=args.rollout, num_envs=args.num_envs, device=env.device),
        cfg=PPO_CFG(rollouts=args.rollout, mini_batches=4, learning_rate=3e-4, entropy_loss_scale=0.01),
        **spaces,
    )
    trainer = SequentialTrainer(
        env=env, agents=agent, cfg={"timesteps": args.steps // args.num_envs, "headless": True}
    )
    trainer.train()
    shape = env.observation_space.shape
    print(f"skrl trained PPO for {args.steps:,} steps of {args.num_envs} environments on {shape}")


if __name__ == "__main__":
    main(tyro.cli(Args))

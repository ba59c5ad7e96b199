"""Train PPO with TorchRL's collector and losses on latents of Pong.

$ python examples/torchrl_ppo.py --frames 20480     # minutes on 2 cores
...
20,480 steps, mean reward ..., loss ...
"""

from dataclasses import dataclass

import ale_py
import gymnasium as gym
import torch
import tyro
from tensordict.nn import TensorDictModule
from torch import nn
from torch.distributions import Categorical
from torchrl.collectors import Collector
from torchrl.envs import CatFrames, Compose, GymEnv, RewardSum, SerialEnv, TransformedEnv
from torchrl.modules import ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from latent_obs.torchrl import LatentTransform

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train PPO on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    frames: int = 1_000_000
    """environment steps in all"""
    batch: int = 2_048
    """environment steps between two updates"""
    envs: int = 8
    epochs: int = 4
    minibatch: int = 256


def network(outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(128, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


def main(args: Args) -> None:
    torch.manual_seed(0)
    games = SerialEnv(args.envs, lambda: GymEnv(args.env_id, categorical_action_encoding=True))
    steps = Compose(
        LatentTransform(args.encoder),  # all games in one batch
        CatFrames(4, dim=-1, in_keys=["latent"]),  # four latents, so that speed is visible
        RewardSum(),
    )
    env = TransformedEnv(games, steps)
    env.set_seed(0)
    actions = int(env.action_spec.space.n)
    actor = ProbabilisticActor(
        TensorDictModule(network(actions), in_keys=["latent"], out_keys=["logits"]),
        in_keys=["logits"],
        spec=env.action_spec,
        distribution_class=Categorical,
        return_log_prob=True,
    )
    critic = ValueOperator(network(1), in_keys=["latent"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss_module = ClipPPOLoss(actor, critic, entropy_coeff=0.01)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=3e-4)
    collector = Collector(env, actor, frames_per_batch=args.batch, total_frames=args.frames)
    done = 0
    for rollout in collector:  # (envs, steps)
        done += rollout.numel()
        for _ in range(args.epochs):
            with torch.no_grad():
                advantage(rollout)
            flat = rollout.reshape(-1)
            for rows in torch.randperm(len(flat)).split(args.minibatch):
                losses = loss_module(flat[rows])
                loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        reward = rollout["next", "reward"].mean()
        print(f"{done:,} steps, mean reward {reward:.3f}, loss {loss.detach():.2f}")
    collector.shutdown()


if __name__ == "__main__":
    main(tyro.cli(Args))

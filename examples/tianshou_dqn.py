"""Train Tianshou's DQN on latents of Pong.

$ python examples/tianshou_dqn.py --steps 20000     # a minute or two on 2 cores
...
Tianshou trained DQN for 20,000 steps on (128,)

Needs `pip install tianshou`, best in an environment of its own.
"""

from dataclasses import dataclass
from typing import Any

import ale_py
import gymnasium as gym
import tyro
from tianshou.algorithm.modelfree.dqn import DQN, DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OffPolicyTrainerParams
from tianshou.utils.net.common import Net

from latent_obs import LatentObservationWrapper, load_encoder

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Train DQN on latents."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    steps: int = 1_000_000
    num_envs: int = 4
    buffer: int = 100_000
    """transitions in the replay buffer"""


def main(args: Args) -> None:
    encoder = load_encoder(args.encoder)  # once, for all environments of this process

    def make() -> gym.Env[Any, Any]:
        return LatentObservationWrapper(gym.make(args.env_id), encoder, stack=4)  # so that speed is visible

    envs, example = DummyVectorEnv([make] * args.num_envs), make()
    actions: Any = example.action_space
    shape = example.observation_space.shape
    assert shape is not None
    policy = DiscreteQLearningPolicy(
        model=Net(state_shape=shape, action_shape=int(actions.n), hidden_sizes=[64, 64]),
        action_space=actions,
        observation_space=example.observation_space,
        eps_training=0.1,
    )
    algorithm = DQN(policy=policy, optim=AdamOptimizerFactory(lr=1e-3), target_update_freq=500)
    collector = Collector(
        algorithm, envs, VectorReplayBuffer(args.buffer, args.num_envs), exploration_noise=True
    )
    collector.reset()
    collector.collect(n_step=32 * args.num_envs, random=True)
    algorithm.run_training(
        OffPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=args.steps,
            collection_step_num_env_steps=10 * args.num_envs,
            update_step_num_gradient_steps_per_sample=0.1,
            batch_size=64,
        )
    )
    print(f"Tianshou trained DQN for {args.steps:,} steps on {shape}")
    envs.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

"""PPO in one file, in the manner of CleanRL, on the latents of a vector environment.

$ python examples/cleanrl_ppo.py     # minutes on 2 cores, with an encoder of its own
...
return before training: 0.19, after 12,288 steps: 0.97

$ python examples/cleanrl_ppo.py --env-id LatentObs/Pong-v5 --encoder pong-v0 --stack 4 --num-steps 128 \
      --total-steps 5000000     # hours

The default is a 6x6 room of MiniGrid seen as an RGB image: the agent, placed at random, must find the green
square. The later it gets there, the lower the return; 0 if it does not.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.distributions import Categorical

from latent_obs import CollectConfig, TrainConfig, collect_frames, train_vae, vector


@dataclass(frozen=True)
class Args:
    """Train PPO on latents."""

    env_id: str = "MiniGridRGB-v0"
    """one of LatentObs/..., or any environment with RGB observations"""
    encoder: str | None = None
    """a bundled encoder's name or an encoder folder; default: train one now"""
    folder: Path = Path("runs/cleanrl")
    """where that encoder goes"""
    frames: int = 3_000
    """frames to train that encoder on"""
    vae_steps: int = 600
    """optimiser steps of that encoder"""
    stack: int = 1
    """latents in an observation; 4 shows speed"""
    total_steps: int = 12_288
    """environment steps in all"""
    num_envs: int = 8
    num_steps: int = 64
    """environment steps between two updates"""
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    epochs: int = 4
    minibatches: int = 4
    clip: float = 0.2
    entropy: float = 0.01
    value: float = 0.5
    max_grad_norm: float = 0.5
    episodes: int = 4
    """episodes of each environment that are played before and after, to compare"""
    seed: int = 0


def make_minigrid(**kwargs: Any) -> gym.Env[Any, Any]:
    """Return MiniGrid's room as an RGB image, without the mission's text."""
    from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

    env: gym.Env[Any, Any] = ImgObsWrapper(
        RGBImgObsWrapper(gym.make("MiniGrid-Empty-Random-6x6-v0", **kwargs), tile_size=8)
    )
    return env


def make_encoder(args: Args) -> str:
    """Collect frames with a random policy and train a small encoder on them."""
    data, out = args.folder / "frames", args.folder / "encoder"
    collect_frames(CollectConfig(args.env_id, data, frames=args.frames, workers=1))
    train_vae(TrainConfig(data, out, channels=(16, 32, 64), steps=args.vae_steps))
    return str(out)


def make_envs(args: Args, encoder: str) -> gym.vector.VectorEnv[Any, Any, Any]:
    if args.env_id.startswith("LatentObs/"):
        return gym.make_vec(f"latent_obs:{args.env_id}", args.num_envs, encoder=encoder, stack=args.stack)
    envs = gym.make_vec(args.env_id, args.num_envs, vectorization_mode="sync")
    return vector.LatentObservationWrapper(envs, encoder, stack=args.stack)


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    def __init__(self, size: int, actions: int) -> None:
        super().__init__()
        self.critic = nn.Sequential(layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.actor = nn.Sequential(
            layer(size, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, actions, 0.01)
        )

    def act(self, obs: Tensor, action: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        policy = Categorical(logits=self.actor(obs))
        action = policy.sample() if action is None else action
        return action, policy.log_prob(action), policy.entropy(), self.critic(obs).squeeze(-1)


def evaluate(envs: gym.vector.VectorEnv[Any, Any, Any], agent: Agent, episodes: int) -> float:
    """Return the mean return of each environment's first episodes, with sampled actions."""
    returns: list[list[float]] = [[] for _ in range(envs.num_envs)]
    current = np.zeros(envs.num_envs)
    obs, _ = envs.reset()
    while min(map(len, returns)) < episodes:
        with torch.no_grad():
            action = agent.act(torch.from_numpy(obs))[0]
        obs, reward, terminated, truncated, _ = envs.step(action.numpy())
        current += reward
        for i in np.flatnonzero(terminated | truncated):
            returns[i].append(float(current[i]))
            current[i] = 0.0
    return float(np.mean([each[:episodes] for each in returns]))


def main(args: Args) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    if args.env_id == "MiniGridRGB-v0":
        gym.register(args.env_id, make_minigrid, disable_env_checker=True)
    envs = make_envs(args, args.encoder or make_encoder(args))
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    agent = Agent(32 * args.stack, int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    shape = (args.num_steps, args.num_envs)
    obs = torch.zeros(*shape, 32 * args.stack)
    actions = torch.zeros(shape, dtype=torch.long)
    log_probs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))

    returns: list[float] = []
    current = np.zeros(args.num_envs)
    envs.reset(seed=args.seed)
    before = evaluate(envs, agent, args.episodes)
    now, _ = envs.reset()
    done = np.zeros(args.num_envs, bool)
    steps, begun = 0, time.monotonic()
    updates = args.total_steps // (args.num_steps * args.num_envs)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * (1 - update / updates)
        for t in range(args.num_steps):
            obs[t], dones[t] = torch.from_numpy(now), torch.from_numpy(done).float()
            with torch.no_grad():
                actions[t], log_probs[t], _, values[t] = agent.act(obs[t])
            now, reward, terminated, truncated, _ = envs.step(actions[t].numpy())
            rewards[t], steps = torch.from_numpy(reward), steps + args.num_envs
            current += reward
            done = terminated | truncated
            returns.extend(current[done].tolist())
            current[done] = 0.0

        # Gymnasium resets in the step after an episode's last: that step's action did nothing.
        with torch.no_grad():
            following = agent.critic(torch.from_numpy(now)).squeeze(-1)
        advantages, running = torch.zeros(shape), torch.zeros(args.num_envs)
        for t in reversed(range(args.num_steps)):
            last = t == args.num_steps - 1
            goes_on = 1 - (torch.from_numpy(done).float() if last else dones[t + 1])
            after = following if last else values[t + 1]
            delta = rewards[t] + args.gamma * after * goes_on - values[t]
            advantages[t] = running = delta + args.gamma * args.gae_lambda * goes_on * running
        targets = advantages + values

        # Steps that only reset are not learnt from.
        real = torch.nonzero(dones.flatten() == 0).squeeze(1)
        flat = [tensor.flatten(0, 1) for tensor in (obs, actions, log_probs, advantages, targets)]
        for _ in range(args.epochs):
            for rows in real[torch.randperm(len(real))].chunk(args.minibatches):
                b_obs, b_actions, b_log_probs, b_advantages, b_targets = (tensor[rows] for tensor in flat)
                _, log_prob, entropy, value = agent.act(b_obs, b_actions)
                ratio = (log_prob - b_log_probs).exp()
                norm = (b_advantages - b_advantages.mean()) / (b_advantages.std() + 1e-8)
                clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
                policy_loss = -torch.minimum(norm * ratio, norm * clipped).mean()
                value_loss = 0.5 * (value - b_targets).square().mean()
                loss = policy_loss + args.value * value_loss - args.entropy * entropy.mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        if update % 5 == 4 or update == updates - 1:
            speed = steps / (time.monotonic() - begun)
            mean = float(np.mean(returns[-100:])) if returns else float("nan")
            print(
                f"step {steps:>9,}   return {mean:6.2f}   entropy {entropy.mean():.2f}   {speed:,.0f} steps/s"
            )
    after = evaluate(envs, agent, args.episodes)
    envs.close()
    print(f"return before training: {before:.2f}, after {steps:,} steps: {after:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Args))

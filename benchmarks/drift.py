"""What does the drift monitor cost, and how much drift does it report?

$ python benchmarks/drift.py     # about 40 s on 2 cores

The script first compares the reported number with the KL divergence written out by hand. Then steps of a
wrapped Pong with and without ``LatentDriftMonitor`` take turns; their CPU time is printed, which a busy
machine stretches less than the wall-clock time. Last it prints the drift of windows of Pong, of Pong in other
colours and of other games.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import tyro
from machine import machine

from latent_obs import LatentDriftMonitor, LatentObservationWrapper, load_encoder
from latent_obs.collecting.policies import make_policy
from latent_obs.drift import Drift
from latent_obs.encoders.encoder import Encoder

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Measure what the drift monitor costs and how much drift it reports."""

    encoder: str = "pong-v0"
    steps: int = 4_000
    """steps of each environment in the comparison of costs"""
    window: int = 500
    """latents in a window"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


class Look(gym.ObservationWrapper[Any, Any, Any]):
    """Changes each image with a function."""

    def __init__(self, env: gym.Env[Any, Any], change: Callable[[Any], Any]) -> None:
        super().__init__(env)
        self.change = change

    def observation(self, observation: Any) -> Any:
        return np.ascontiguousarray(self.change(observation), np.uint8)


def drifts(env: gym.Env[Any, Any], encoder: Encoder, window: int, policy: str) -> tuple[float, float]:
    """Return the smallest and the largest drift of full windows over three windows' worth of steps."""
    watched = LatentDriftMonitor(LatentObservationWrapper(env, encoder), window, threshold=1e9)
    actor = make_policy(policy, env)
    actor.reset(0)
    watched.reset(seed=0)
    values = []
    for step in range(3 * window):
        _, _, terminated, truncated, info = watched.step(actor.act(None))
        if step >= window:
            values.append(info["latent_drift"])
        if terminated or truncated:
            watched.reset()
    return min(values), max(values)


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, steps=100, window=20)
    warnings.filterwarnings("ignore", "The encoder .* was trained on frames with")
    encoder = load_encoder(args.encoder, precision="float32")
    print(f"# {machine('gymnasium', 'numpy', 'ale-py')}")
    print(f"# encoder {args.encoder} in float32")

    drift, rng = Drift(encoder, args.window, threshold=1e9), np.random.default_rng(0)
    for _ in range(3 * args.window):
        latents = rng.normal(drift.mean + 0.3, 1.5 * drift.std, (1, encoder.latent_dim)).astype(np.float32)
        drift.update(latents[0])
    sample = rng.normal(drift.mean + 0.3, 1.5 * drift.std, (args.window, encoder.latent_dim))
    value = drift.update(sample.astype(np.float32))
    mean, std = sample.mean(0), sample.std(0)
    kl = np.log(drift.std / std) + (std**2 + (mean - drift.mean) ** 2) / (2 * drift.std**2) - 0.5
    np.testing.assert_allclose(value, kl.mean(), rtol=1e-3)

    plain = LatentObservationWrapper(gym.make("ALE/Pong-v5"), encoder)
    watched = LatentDriftMonitor(LatentObservationWrapper(gym.make("ALE/Pong-v5"), encoder), threshold=1e9)
    spent: dict[str, list[float]] = {"wrapped": [], "and watched": []}
    pair: tuple[gym.Env[Any, Any], ...] = (plain, watched)
    for env in pair:
        env.reset(seed=0)
        env.action_space.seed(0)
    for _ in range(args.steps // 100):
        for name, env in zip(spent, pair, strict=True):
            begun = time.process_time()
            for _ in range(100):
                _, _, terminated, truncated, _ = env.step(env.action_space.sample())
                if terminated or truncated:
                    env.reset()
            spent[name].append((time.process_time() - begun) / 100 * 1e6)
    median = {name: statistics.median(samples) for name, samples in spent.items()}
    for name, value in median.items():
        print(f"{name:12} {value:6.0f} us of CPU/step")
    added = median["and watched"] - median["wrapped"]
    print(f"added: {added:.0f} us, {added / median['wrapped']:.1%} of a wrapped step")

    def pong() -> gym.Env[Any, Any]:
        return gym.make("ALE/Pong-v5")

    frozen: list[Any] = []

    def freeze(image: Any) -> Any:
        frozen.append(image)
        return frozen[0]

    print(f"drift of windows of {args.window} steps, nats per dimension")
    for name, env, policy in (
        ("Pong, as trained on (sticky)", pong(), "sticky"),
        ("Pong, random policy", pong(), "random"),
        ("Pong, difficulty 1", gym.make("ALE/Pong-v5", difficulty=1), "sticky"),
        ("Pong, 8% brighter", Look(pong(), lambda o: np.clip(o.astype(int) + 20, 0, 255)), "sticky"),
        ("Pong, grey", Look(pong(), lambda o: np.repeat(o.mean(2, keepdims=True), 3, 2)), "sticky"),
        ("Pong, red and blue swapped", Look(pong(), lambda o: o[..., ::-1]), "sticky"),
        ("Pong, picture frozen", Look(pong(), freeze), "sticky"),
        ("Pong, black", Look(pong(), np.zeros_like), "sticky"),
        ("Breakout", gym.make("ALE/Breakout-v5"), "sticky"),
        ("Space Invaders", gym.make("ALE/SpaceInvaders-v5"), "sticky"),
    ):
        low, high = drifts(env, encoder, args.window, policy)
        print(f"{name:30} {low:5.2f} to {high:.2f}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))

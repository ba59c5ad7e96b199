"""On what does PPO spend its time, on pixels and on latents?

$ python benchmarks/rl/profile_loop.py --games Pong     # about 1 min on 2 cores

Trains each arm for a while, with timers around the calls of interest. The time of a timed call inside another
one is subtracted from the outer one, so the shares add up to the whole. The clock is the processor time of
the whole process, which a busy machine stretches less than the wall-clock time; the latter is printed too.

The script is not named profile.py because that would hide the standard library's profile, which PyTorch
imports.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from agents import Arm, hyperparameters, make_model, make_venv
from stable_baselines3 import PPO
from stable_baselines3.common.atari_wrappers import WarpFrame
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from train_agent import SMALLEST, machine

import latent_obs.adapter
from latent_obs.encoders.encoder import Encoder
from latent_obs.sb3 import VecLatentObservation

REST = "SB3's loop, and the rest"


@dataclass(frozen=True)
class Args:
    """Time the parts of the training loop."""

    games: tuple[str, ...] = ("Pong",)
    arms: tuple[Arm, ...] = ("pixels", "latents")
    seconds: float = 20.0
    """processor time of each arm, rounded up to whole rollouts, after a rollout and an update to warm up"""
    encoder: str = "auto"
    threads: int = 1
    """threads of PyTorch"""
    device: str = "cpu"
    """cpu or cuda, where the agents' networks are"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: rollouts of 16 steps"""


class Clock:
    """Adds up the time of labelled calls, each without the time of labelled calls inside it."""

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []
        self.reset()

    def reset(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]
        self.begun, self.wall_begun = time.process_time(), time.perf_counter()

    def time(self, owner: Any, name: str, label: str) -> None:
        """Replace a method or a module's function by a timed one."""
        call: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begun = time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                spent = time.process_time() - begun
                self.spent[label] += spent - self._inner.pop()
                self.calls[label] += 1
                self._inner[-1] += spent

        self._replaced.append((owner, name, call))
        setattr(owner, name, timed)

    def undo(self) -> None:
        """Put back what was replaced."""
        for owner, name, call in self._replaced:
            setattr(owner, name, call)


class Watch(BaseCallback):
    """Starts the clock after the first update, and ends training when it has run for long enough."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        super().__init__()
        self.clock, self.seconds, self.rollouts = clock, seconds, 0

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts == 2:
            self.clock.reset()
            self.steps_begun = self.num_timesteps
        self.spent = time.process_time() - self.clock.begun
        self.wall = time.perf_counter() - self.clock.wall_begun

    def _on_step(self) -> bool:
        return self.rollouts < 3 or self.spent < self.seconds


def attach(clock: Clock, model: PPO) -> None:
    """Put timers around what an agent and its environments call."""
    venv: VecEnv | None = model.env
    while isinstance(venv, VecEnvWrapper):
        ours = isinstance(venv, VecLatentObservation)
        clock.time(venv, "step_wait", "VecLatentObservation's own" if ours else type(venv).__name__)
        venv = venv.venv
    assert isinstance(venv, DummyVecEnv)
    clock.time(venv, "step_wait", "wrappers, Monitor, DummyVecEnv's copies")
    for env in venv.envs:
        for name in ("step", "reset"):
            clock.time(env.unwrapped, name, "game")
        inner: Any = env
        while inner is not env.unwrapped:
            if isinstance(inner, WarpFrame) or type(inner).__name__ in (
                "GrayscaleObservation",
                "ResizeObservation",
            ):
                clock.time(inner, "observation", "preprocessing")
            inner = inner.env
    clock.time(model.policy, "forward", "policy")
    clock.time(model.policy, "predict_values", "policy")
    for name in ("add", "compute_returns_and_advantage", "_get_samples"):
        clock.time(model.rollout_buffer, name, "rollout buffer, advantages")
    clock.time(model, "train", "gradient updates")


def profile(game: str, arm: Arm, args: Args) -> None:
    clock = Clock()
    changes = json.loads(SMALLEST if args.smallest else "{}")
    venv = make_venv(game, arm, args.encoder)
    model = make_model(arm, venv, hyperparameters(game, arm, changes), 0, args.device)
    assert isinstance(model, PPO)
    attach(clock, model)
    # These two are looked up at each call, so this times them in every environment of this process.
    clock.time(latent_obs.adapter, "preprocess", "preprocessing")
    clock.time(Encoder, "__call__", "encoding")
    watch = Watch(clock, args.seconds)
    try:
        model.learn(10**9, watch)
    finally:
        clock.undo()
        venv.close()
    # One step too many is counted, the one that ended training: it makes no difference among thousands.
    steps, total = watch.num_timesteps - watch.steps_begun, watch.spent
    spent = {**clock.spent, REST: total - sum(clock.spent.values())}
    print(f"\n{game}, {arm}, {model.device}: {steps / total:,.0f} steps per CPU second, ", end="")
    print(f"{steps / watch.wall:,.0f} per second, {steps:,} steps")
    print(f"{'':42} share  us/step     calls")
    for label, seconds in sorted(spent.items(), key=lambda item: -item[1]):
        calls = f"{clock.calls[label]:9,}" if label in clock.calls else ""
        print(f"{label:42} {seconds / total:5.1%} {seconds / steps * 1e6:8.1f} {calls}", flush=True)


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, games=("Pong",), seconds=0.1)
    torch.set_num_threads(args.threads)
    print(f"# {machine('stable-baselines3', 'torch', 'gymnasium', 'ale-py', 'openvino')}")
    for game in args.games:
        for arm in args.arms:
            profile(game, arm, args)


if __name__ == "__main__":
    main(tyro.cli(Args))

"""How fast is the whole loop of several environments that deliver latents?

$ python benchmarks/vector_step.py     # about 4 min on 2 cores

Counts the frames per second of stepping Pong with random actions. Ours: one vector wrapper above
ALE's native environments, above Gymnasium's, and eight workers that each wrap their own. Baselines:
Stable-Baselines3's SubprocVecEnv of environments wrapped with cv2 and eager PyTorch, as World Models
ports do, with PyTorch's default threads and with one thread in each worker. Before timing, our latents
must equal those of a single wrapper, and pass the parity gate beside eager PyTorch's.
"""

from __future__ import annotations

import functools
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import tyro
from machine import machine

from latent_obs import LatentObservationWrapper, load_encoder, vector
from latent_obs.encoders.quantise import parity_error
from latent_obs.encoders.runtimes import PARITY

ENCODER = "pong-v0"


@dataclass(frozen=True)
class Args:
    """Compare loops."""

    num_envs: int = 8
    seconds: float = 6.0
    """how long each round of each loop runs"""
    rounds: int = 3
    many: int = 64
    """environments whose added cost per frame is compared with batched eager PyTorch"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def bare() -> Any:
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gym.make("ALE/Pong-v5")


def ours() -> Any:
    return LatentObservationWrapper(bare(), ENCODER)


def eager(num_threads: int | None) -> Any:
    import torch  # only in workers that use it
    from wrapper_step import EagerWrapper

    if num_threads:
        torch.set_num_threads(num_threads)
    return EagerWrapper(bare(), ENCODER)


def native(num_envs: int, height: int = 210, width: int = 160) -> Any:
    gym.register_envs(ale_py)
    return gym.make_vec(
        "ALE/Pong-v5",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        img_height=height,
        img_width=width,
        grayscale=False,
        stack_num=1,
        maxpool=False,
        noop_max=0,
    )


def loops(num_envs: int) -> dict[str, Callable[[], Any]]:
    from stable_baselines3.common.vec_env import SubprocVecEnv

    return {
        "eager, SubprocVecEnv, default threads": lambda: SubprocVecEnv(
            [functools.partial(eager, None)] * num_envs, start_method="spawn"
        ),
        "eager, SubprocVecEnv, one thread": lambda: SubprocVecEnv(
            [functools.partial(eager, 1)] * num_envs, start_method="spawn"
        ),
        "ours, AsyncVectorEnv of wrapped": lambda: gym.vector.AsyncVectorEnv(
            [ours] * num_envs, context="spawn"
        ),
        "ours above AsyncVectorEnv": lambda: vector.LatentObservationWrapper(
            gym.vector.AsyncVectorEnv([bare] * num_envs, context="spawn"), ENCODER
        ),
        "ours above SyncVectorEnv": lambda: vector.LatentObservationWrapper(
            gym.vector.SyncVectorEnv([bare] * num_envs), ENCODER
        ),
        "ours above ALE's vector env": lambda: vector.LatentObservationWrapper(native(num_envs), ENCODER),
    }


def rate(env: Any, num_envs: int, seconds: float) -> float:
    """Return frames per second of stepping with random actions."""
    rng = np.random.default_rng(0)
    for _ in range(3):
        env.step(rng.integers(0, 6, num_envs))
    begun, steps = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds or not steps:
        env.step(rng.integers(0, 6, num_envs))
        steps += 1
    return steps * num_envs / spent


def check_equality() -> None:
    single, usual = ours(), eager(1)
    many = vector.LatentObservationWrapper(gym.vector.SyncVectorEnv([bare] * 2), ENCODER)
    latents, exact = [single.reset(seed=0)[0]], [usual.reset(seed=0)[0]]
    np.testing.assert_array_equal(many.reset(seed=0)[0][0], latents[0])
    for step in range(200):
        latents.append(single.step(step % 6)[0])
        exact.append(usual.step(step % 6)[0])
        np.testing.assert_array_equal(many.step(np.full(2, step % 6))[0][0], latents[-1])
    error = parity_error(np.array(exact), np.array(latents), np.std(exact, 0))
    encoder = load_encoder(ENCODER)
    assert error < 1.5 * PARITY, f"{encoder.precision} is off by {error:.1%} in 200 steps of one game"
    print(f"# {encoder.precision}: {encoder.precision_reason}")
    print(f"# these latents are off from eager PyTorch by {error:.2%} of a standard deviation")


def added_cost(many: int, rounds: int) -> None:
    """Compare what encoding adds to a step of many environments, per frame."""
    import torch

    from latent_obs.vae import load_vae

    torch.set_num_threads(1)
    vae, encode = load_vae(ENCODER)[0], load_encoder(ENCODER, normalize=True)
    vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # PyTorch's default, as users have it
    env = native(many, 64, 64)
    obs, _ = env.reset(seed=0)
    times: dict[str, list[float]] = {"bare": [], "eager": [], "ours": []}
    wrapped = vector.LatentObservationWrapper(native(many, 64, 64), encode)
    wrapped.reset(seed=0)
    warm_up = 20
    for turn in range(warm_up + rounds * 30):
        if turn == warm_up:  # both are warm now, and the encoder has a graph for this batch size
            times = {name: [] for name in times}
        begun = time.perf_counter()
        obs = env.step(np.zeros(many, np.int64))[0]
        stepped = time.perf_counter()
        with torch.inference_mode():
            vae(torch.from_numpy(obs[:, 0])).numpy()
        ended = time.perf_counter()
        wrapped.step(np.zeros(many, np.int64))
        times["bare"].append(stepped - begun)
        times["eager"].append(ended - stepped)
        times["ours"].append(time.perf_counter() - ended)
    bare_us, eager_us, ours_us = (statistics.median(t) / many * 1e6 for t in times.values())
    added = ours_us - bare_us
    print(f"{many} envs: bare {bare_us:.0f} us/frame, eager PyTorch adds {eager_us:.0f}, we add {added:.0f}")
    print(f"added by eager PyTorch / added by us: {eager_us / added:.1f}x")


def main(args: Args) -> None:
    if importlib.util.find_spec("stable_baselines3") is None:
        message = "the baseline is Stable-Baselines3's SubprocVecEnv: pip install 'latent_obs[sb3]'."
        sys.exit(print(f"skipped: {message}") if args.smallest else f"error: {message}")
    if args.smallest:
        args = replace(args, num_envs=2, seconds=0.2, rounds=1, many=4)
    print(f"# {machine('torch', 'openvino', 'ale-py', 'gymnasium', 'stable-baselines3')}")
    check_equality()
    rates: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, make in loops(args.num_envs).items():
            env = make()
            try:
                env.reset()
                rates.setdefault(name, []).append(rate(env, args.num_envs, args.seconds))
            finally:
                env.close()
    medians = {name: statistics.median(samples) for name, samples in rates.items()}
    defaults, one = list(medians.values())[:2]
    print(f"{args.num_envs} envs".ljust(38), "frames/s    min    max  vs default  vs one thread")
    for name, median in medians.items():
        low, high = min(rates[name]), max(rates[name])
        line = f"{name:38} {median:8.0f} {low:6.0f} {high:6.0f}"
        print(f"{line} {median / defaults:10.1f}x {median / one:13.1f}x")
    added_cost(args.many, args.rounds)


if __name__ == "__main__":
    main(tyro.cli(Args))

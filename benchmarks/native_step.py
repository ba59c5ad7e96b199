"""Is it worth stepping a native vector environment to collect frames?

$ python benchmarks/native_step.py     # about 2 min; EnvPool's lines only where it is installed

Compares the processor time of one 64x64 frame, in turns: from ``gym.make`` and our compiled resize,
from ALE's own vector environment, which resizes in C++, and from EnvPool. One thread steps all
environments, so that their threads cannot hide what they cost. Before timing, the frames of ALE's
vector environment must equal ours with sticky actions and no-ops off; EnvPool's CarRacing draws
otherwise than Gymnasium's, and by how much is printed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import tyro
from machine import machine

from latent_obs import FrameSpec, preprocess
from latent_obs.collecting.sources import open_env

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Compare sources of frames."""

    steps: int = 1200
    """frames of each turn of Pong; CarRacing takes a sixth"""
    rounds: int = 5
    """turns of each source"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def plain(env_id: str, env: Any = None) -> Callable[[int], None]:
    env = env or open_env(env_id)
    env.action_space.seed(0)
    env.reset(seed=0)

    def run(frames: int) -> None:
        for _ in range(frames):
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            preprocess(obs, FrameSpec())
            if terminated or truncated:
                env.reset()

    return run


def ale_vector(num_envs: int, **options: Any) -> Any:
    return gym.make_vec(
        "ALE/Pong-v5",
        num_envs=num_envs,
        vectorization_mode="vector_entry_point",
        num_threads=1,
        img_height=64,
        img_width=64,
        grayscale=False,
        stack_num=1,
        maxpool=False,
        noop_max=0,
        use_fire_reset=False,
        reward_clipping=False,
        **options,
    )


def stepped(envs: Any, num_envs: int, sample: Callable[[], Any]) -> Callable[[int], None]:
    envs.reset()

    def run(frames: int) -> None:
        for _ in range(frames // num_envs):
            for image in envs.step(sample())[0]:
                if image.shape[-3:] == (96, 96, 3):  # CarRacing's; the others are 64x64 already
                    preprocess(image, FrameSpec())

    return run


def check_equality(steps: int) -> None:
    off = {"repeat_action_probability": 0.0}
    env, envs, rng = open_env("ALE/Pong-v5", off), ale_vector(1, **off), np.random.default_rng(0)
    ours, theirs = env.reset(seed=1)[0], envs.reset(seed=1)[0]
    for _ in range(steps):
        assert np.array_equal(preprocess(ours, FrameSpec()), theirs[0, 0])
        action = int(rng.integers(6))
        ours, theirs = env.step(action)[0], envs.step(np.array([action]))[0]
    print(f"# {steps} frames of ALE's vector environment equal the plain one's")


def main(args: Args) -> None:
    warnings.simplefilter("ignore")
    if args.smallest:
        args = replace(args, steps=48, rounds=1)
    print(f"# {machine('ale-py', 'gymnasium', 'numpy')}")
    check_equality(min(600, args.steps))
    rng = np.random.default_rng(0)

    def buttons(num_envs: int) -> Callable[[], Any]:
        return lambda: rng.integers(0, 6, num_envs).astype(np.int32)

    pong = {"Gymnasium's": plain("ALE/Pong-v5")}
    pong |= {f"ALE's vector env x{n}": stepped(ale_vector(n), n, buttons(n)) for n in (1, 8)}
    games = {"ALE/Pong-v5": pong}
    if find_spec("envpool"):
        import envpool

        same = {"env_type": "gymnasium", "num_threads": 1}
        shape = {"img_height": 64, "img_width": 64, "gray_scale": False, "stack_num": 1, "noop_max": 1}
        for n in (1, 8):
            envs = envpool.make("Pong-v5", num_envs=n, **same, **shape)
            pong[f"EnvPool's x{n}"] = stepped(envs, n, buttons(n))
        game, ours = open_env("CarRacing-v3"), open_env("envpool/CarRacing-v3")
        images = [env.reset(seed=0)[0].astype(int) for env in (game, ours)]
        apart = np.abs(images[0] - images[1]).mean()
        print(f"# EnvPool's first CarRacing frame is {apart:.1f} of 255 off Gymnasium's on average")
        cars = games["CarRacing-v3"] = {
            "Gymnasium's": plain("CarRacing-v3"),
            "envpool/CarRacing-v3, ours": plain("", ours),
        }
        envs = envpool.make("CarRacing-v3", num_envs=8, **same)
        low, high = np.array([-1, 0, 0]), np.ones(3)
        cars["EnvPool's x8"] = stepped(envs, 8, lambda: rng.uniform(low, high, (8, 3)).astype(np.float32))
    else:
        print("# EnvPool's lines are left out: it is not installed")
    for name, sources in games.items():
        frames = args.steps if name == "ALE/Pong-v5" else args.steps // 6
        times: dict[str, list[float]] = {source: [] for source in sources}
        for _ in range(args.rounds):
            for source, run in sources.items():
                begun = time.process_time()
                run(frames)
                times[source].append((time.process_time() - begun) / frames * 1e6)
        medians = {source: statistics.median(samples) for source, samples in times.items()}
        first = next(iter(medians.values()))
        print(f"{name:30} us/frame    min    max  frames per processor second")
        for source, median in medians.items():
            low_, high_ = min(times[source]), max(times[source])
            print(f"{source:30} {median:8.0f} {low_:6.0f} {high_:6.0f} {first / median:10.2f}x")


if __name__ == "__main__":
    main(tyro.cli(Args))

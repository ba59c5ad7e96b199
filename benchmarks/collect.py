"""How fast are frames collected, and what does keeping them cost?

$ python benchmarks/collect.py     # about 4 min on 2 cores

Collects Pong with one worker a core, start-up included, and compares it with what others do without
keeping anything: a plain loop of ``gym.make`` and cv2 on one core, and eight environments in
Stable-Baselines3's SubprocVecEnv and Gymnasium's AsyncVectorEnv, which resize with our own compiled
kernel in their processes, start-up not included. They take turns. Before timing, the frames of a
collection must equal those of the plain loop with its seed and actions.

Then the processor time of storing a frame is compared with that of one step of the environment, in
one loop, and the size of the folder with the npz files of World Models ports: an
uncompressed file an episode with frames, actions, rewards and dones.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import tyro
from machine import machine

from latent_obs import CollectConfig, FramesFolder, FrameSpec, collect_frames, preprocess
from latent_obs.data.shards import ROW_GROUP, ShardWriter, action_type

PONG = "ALE/Pong-v5"


@dataclass(frozen=True)
class Args:
    """Compare collecting with stepping alone."""

    frames: int = 120_000
    """frames of each round of collecting"""
    seconds: float = 8.0
    """how long each round of each other loop runs"""
    rounds: int = 3
    num_envs: int = 8
    """environments of the vector loops"""
    car_frames: int = 2_000
    """frames of CarRacing whose size is measured"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


class Resized(gym.ObservationWrapper[Any, Any, Any]):
    """What a vector environment's processes do: resize with our kernel, so that 12 kB travel, not 100."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)

    def observation(self, observation: Any) -> Any:
        return preprocess(observation, FrameSpec())


def pong() -> Any:
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    return gym.make(PONG)


def resized() -> Any:
    cv2.setNumThreads(0)
    return Resized(pong())


def check_equality(folder: FramesFolder, rows: int = 3000) -> None:
    """Step the plain environment with a shard's seed and actions: every frame must be equal."""
    shard = folder.shards[0]
    stored = pq.read_table(shard.path).slice(0, rows).to_pydict()
    seed = np.random.SeedSequence((0, shard.metadata["worker"], shard.metadata["shard"])).generate_state(2)[0]
    env, seeds = pong(), [int(seed)]
    for frame, step, action in zip(stored["frame"], stored["step"], stored["action"], strict=True):
        obs = env.reset(seed=seeds.pop() if seeds else None)[0] if step == 0 else env.step(action)[0]
        assert cv2.resize(obs, (64, 64), interpolation=cv2.INTER_AREA).tobytes() == frame
    print(f"# {len(stored['step']):,} collected frames equal those of the plain loop")


def plain_loop(seconds: float) -> float:
    """Return frames per second of stepping and resizing on one core."""
    env, rng = pong(), np.random.default_rng(0)
    env.reset(seed=0)
    begun, frames = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        obs, _, terminated, truncated, _ = env.step(int(rng.integers(6)))
        if terminated or truncated:
            obs, _ = env.reset()
        cv2.resize(obs, (64, 64), interpolation=cv2.INTER_AREA)
        frames += 1
    return frames / spent


def vector_loop(make: Callable[[], Any], num_envs: int, seconds: float) -> float:
    env, rng = make(), np.random.default_rng(0)
    try:
        env.reset()
        for _ in range(20):
            env.step(rng.integers(0, 6, num_envs))
        begun, steps = time.perf_counter(), 0
        while (spent := time.perf_counter() - begun) < seconds:
            env.step(rng.integers(0, 6, num_envs))
            steps += 1
        return steps * num_envs / spent
    finally:
        env.close()


def collecting(out: Path, frames: int, workers: int) -> float:
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    collect_frames(CollectConfig(PONG, out, frames=frames, workers=workers), progress=False)
    return frames / (time.perf_counter() - begun)


def compare_rates(args: Args, out: Path) -> None:
    workers, num_envs = os.cpu_count() or 1, args.num_envs
    loops: dict[str, Callable[[], float]] = {
        "plain gym.make + cv2 loop, one core": lambda: plain_loop(args.seconds),
        f"AsyncVectorEnv x{num_envs}": lambda: vector_loop(
            lambda: gym.vector.AsyncVectorEnv([resized] * num_envs, context="spawn"), num_envs, args.seconds
        ),
    }
    if find_spec("stable_baselines3"):
        from stable_baselines3.common.vec_env import SubprocVecEnv

        loops[f"SubprocVecEnv x{num_envs}"] = lambda: vector_loop(
            lambda: SubprocVecEnv([resized] * num_envs, start_method="spawn"), num_envs, args.seconds
        )
    else:
        print("# SubprocVecEnv is left out: it needs stable_baselines3, the extra sb3")
    collect = f"collect, {workers} workers, {args.frames:,} frames kept"
    loops[collect] = lambda: collecting(out, args.frames, workers)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.rounds):
        for name, loop in loops.items():
            rates[name].append(loop())
    medians = [statistics.median(samples) for samples in rates.values()]
    print("loop".ljust(44), "frames/s    min    max  collect is")
    for (name, samples), median in zip(rates.items(), medians, strict=True):
        line = f"{name:44} {median:8.0f} {min(samples):6.0f} {max(samples):6.0f}"
        print(f"{line} {medians[-1] / median:9.2f}x")


def storing_cost(out: Path, rows: int) -> None:
    """Compare the processor time of storing with that of stepping, in one loop as collecting has it.

    Every other row group calls a function that does nothing instead: reading the clock costs as much
    there, and what it takes is subtracted.
    """
    env, rng, spec, clock = pong(), np.random.default_rng(0), FrameSpec(), time.process_time_ns
    env.reset(seed=0)
    writer = ShardWriter(out / "cost.parquet", action_type(env.action_space), {})
    stepping: list[float] = []
    calls: dict[Any, list[float]] = {writer.append: [], do_nothing: []}
    for _ in range(rows // ROW_GROUP):
        for keep, times in calls.items():
            stepped = kept = 0
            for action in rng.integers(0, 6, ROW_GROUP).tolist():
                begun = clock()
                obs, reward, terminated, truncated, _ = env.step(action)
                stepped += clock() - begun
                frame = preprocess(obs, spec)
                begun = clock()
                keep(frame, 0, writer.rows, action, float(reward), terminated, truncated)
                kept += clock() - begun
                if terminated or truncated:
                    env.reset()
            stepping.append(stepped / ROW_GROUP / 1000)
            times.append(kept / ROW_GROUP / 1000)
    begun = clock()
    writer.commit(True)
    committing = (clock() - begun) / writer.rows / 1000
    appending, nothing = (statistics.median(times[1:]) for times in calls.values())  # the first warms up
    step, store = statistics.median(stepping) - nothing, appending - nothing + committing
    print(f"env step {step:.1f} us, storing {store:.2f} us a frame: {store / step:.2%} of a step")


def do_nothing(*_: Any) -> None:
    pass


def compare_sizes(folder: FramesFolder, out: Path) -> None:
    """Write the same rows as World Models ports do, and compare bytes per frame."""
    total = rows = 0
    for shard in folder.shards[:4]:
        table = pq.read_table(shard.path)
        columns = {name: table[name].to_numpy() for name in ("episode", "reward", "terminated")}
        frames = np.concatenate([folder.read(shard, group) for group in range(shard.row_groups)])
        actions = [0 if action is None else action for action in table["action"].to_pylist()]
        if (first := next((a for a in actions if isinstance(a, list)), None)) is not None:
            actions = [action or [0.0] * len(first) for action in actions]
        for episode in np.unique(columns["episode"]):
            mine = columns["episode"] == episode
            action = np.array([a for a, keep in zip(actions, mine, strict=True) if keep])
            arrays = {"reward": columns["reward"][mine], "done": columns["terminated"][mine]}
            np.savez(out / "episode.npz", obs=frames[mine], action=action, **arrays)
            total += (out / "episode.npz").stat().st_size
            rows += int(mine.sum())
    ours, theirs = folder.num_bytes / len(folder), total / rows
    env_id = folder.source.env_id
    print(f"{env_id}: {ours:.1f} bytes/frame, npz {theirs:.1f}: 1/{theirs / ours:.0f}")


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, frames=600, seconds=0.3, rounds=1, num_envs=2, car_frames=60)
    print(f"# {machine('ale-py', 'gymnasium', 'stable-baselines3', 'opencv-python', 'pyarrow')}")
    out = Path(tempfile.mkdtemp())
    try:
        collecting(out / "pong", args.frames, os.cpu_count() or 1)  # warm-up
        check_equality(FramesFolder(out / "pong"))
        compare_rates(args, out / "pong")
        storing_cost(out, (4 if args.smallest else 24) * ROW_GROUP)
        compare_sizes(FramesFolder(out / "pong"), out)
        if find_spec("Box2D"):
            car = CollectConfig("CarRacing-v3", out / "car", args.car_frames, workers=2, policy="brownian")
            compare_sizes(collect_frames(car, progress=False), out)
        else:
            print("# CarRacing is left out: it needs Box2D, the extra box2d")
    finally:
        shutil.rmtree(out)


if __name__ == "__main__":
    main(tyro.cli(Args))

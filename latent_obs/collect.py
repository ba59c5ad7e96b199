"""Collects frames with independent workers.

Each worker process has its own environment, policy, seeds and shards; nothing is shared but
the folder, so no step ever waits for another environment's. A shard begins with a seeded
reset and holds whole episodes, hence depends on its number and the seed alone: an interrupted
shard is simply collected again, and the folder ends up the same however often it was stopped.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np

from latent_obs.dataset import FramesFolder
from latent_obs.frames import FrameSpec, check_frame_space, frame_source, preprocess
from latent_obs.policies import Policy, make_policy
from latent_obs.progress import progress_bar, stop_on_signals
from latent_obs.shards import Shard, ShardWriter, action_type, read_shard

# An episode that outgrows this many shards' worth of rows is cut, so that a game that never
# ends cannot keep its frames uncommitted for ever.
_MAX_EPISODE_SHARDS = 8


@dataclass(frozen=True)
class CollectConfig:
    """Collect frames from an environment into a folder."""

    env_id: str
    """Gymnasium id, such as ALE/Pong-v5; module:Id imports the module first"""
    out: Path = Path("frames")
    """the frames folder; an existing one made by the same command is resumed"""
    frames: int = 10_000
    """number of frames the folder shall hold"""
    workers: int | None = None
    """worker processes; default: what the folder was begun with, else one per core"""
    policy: str = "random"
    """random, sticky, brownian, the .zip of a Stable-Baselines3 model, or module:callable"""
    seed: int = 0
    """seed of environments and policies; the same seed gives the same frames"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments for gymnasium.make, as JSON"""
    crop: tuple[int, int, int, int] | None = None
    """rows and columns to keep before resizing: top bottom left right"""
    shard_rows: int = 8192
    """rows after which a shard is committed, at the end of an episode"""

    def __post_init__(self) -> None:
        for name in ("frames", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        self.frame_spec  # noqa: B018  # an invalid crop is reported here

    @property
    def frame_spec(self) -> FrameSpec:
        """How the frames are made."""
        return FrameSpec(crop=self.crop)


class CollectError(RuntimeError):
    """A worker failed; the message says why, and committed shards are intact."""


def open_env(env_id: str, env_kwargs: dict[str, Any] | None = None) -> gym.Env[Any, Any]:
    """Make an environment, registering ALE's games when the id asks for one.

    Args:
        env_id: Gymnasium id.
        env_kwargs: Keyword arguments for ``gymnasium.make``.

    Raises:
        ValueError: If the id is unknown or its arguments are wrong.
        ImportError: If the package behind the environment is not installed.
    """
    try:
        if env_id.startswith("ALE/"):
            import ale_py

            ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
            gym.register_envs(ale_py)
        return gym.make(env_id, **(env_kwargs or {}))
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ImportError(f"The environment {env_id} needs a package that is missing: {error}") from error
    except gym.error.Error as error:
        raise ValueError(f"Gymnasium cannot make the environment {env_id!r}: {error}") from error
    except TypeError as error:
        raise ValueError(f"The environment {env_id!r} refuses env_kwargs {env_kwargs}: {error}") from error


def collect_frames(config: CollectConfig, *, progress: bool = True) -> FramesFolder:
    """Fill a frames folder, or finish one that was begun.

    Several workers are started as processes with the ``spawn`` method, so a script that calls
    this with more than one worker needs the usual ``if __name__ == "__main__":``.

    Args:
        config: What to collect.
        progress: Show a progress bar on standard error.

    Returns:
        The folder, holding exactly ``config.frames`` frames.

    Raises:
        ValueError: If the environment or policy does not exist or does not fit, or the folder
            was begun with other settings.
        CollectError: If a worker fails midway; the committed shards stay.
        KeyboardInterrupt: After Ctrl-C, once the open shards are committed.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "frames"
        >>> len(collect_frames(CollectConfig("ALE/Pong-v5", out, frames=20, workers=1), progress=False))
        20
    """
    # The dry run finds a wrong id, space or policy here, in one process, before any starts.
    env = open_env(config.env_id, config.env_kwargs)
    try:
        check_frame_space(env.observation_space, "latent-obs collect")
        action_type(env.action_space)
        make_policy(config.policy, env)
        obs, _ = env.reset(seed=config.seed)
        preprocess(obs, config.frame_spec)
    finally:
        env.close()

    config.out.mkdir(parents=True, exist_ok=True)
    done = [read_shard(path) for path in sorted(config.out.glob("*.parquet"))]
    begun_with = int(done[0].metadata["workers"]) if done else None
    workers = config.workers or begun_with or min(os.cpu_count() or 1, config.frames)
    settings = _settings(config, workers)
    _check_same_collection(config, settings, done)
    plans = []
    for worker in range(workers):
        share = config.frames // workers + (worker < config.frames % workers)
        mine = {s.metadata["shard"]: s for s in done if s.metadata["worker"] == worker}
        if (held := sum(shard.rows for shard in mine.values())) > share:
            raise ValueError(
                f"{config.out} already holds {held} frames of worker {worker}, more than the {share} "
                "asked for: pass a larger --frames, or another --out."
            )
        plans.append(_Plan(config, settings, worker, share, mine))
    plans = [plan for plan in plans if sum(plan.kept().values()) < plan.share]

    todo = sum(plan.share - sum(plan.kept().values()) for plan in plans)
    with progress_bar("collect", config.frames, "frames", progress, config.frames - todo) as bar:
        if workers == 1 and plans:
            _run_here(plans[0], bar.advance)
        elif plans:
            _run_workers(plans, bar.advance)
    folder = FramesFolder(config.out)
    assert len(folder) == config.frames
    return folder


def _settings(config: CollectConfig, workers: int) -> dict[str, Any]:
    """What two runs must share to fill one folder; stored in every shard."""
    return {
        "env_id": config.env_id,
        "env_kwargs": config.env_kwargs,
        "frame_spec": config.frame_spec.to_json(),
        "policy": config.policy,
        "seed": config.seed,
        "workers": workers,
        "shard_rows": config.shard_rows,
    }


def _check_same_collection(config: CollectConfig, settings: dict[str, Any], done: list[Shard]) -> None:
    """Refuse to mix two collections in one folder."""
    for shard in done:
        for name, value in settings.items():
            begun = shard.metadata.get(name)
            if begun != value:
                raise ValueError(
                    f"{config.out} was begun with {name}={begun!r}, got {name}={value!r}. "
                    "Repeat the first command to resume it, or choose another --out."
                )


@dataclass(frozen=True)
class _Plan:
    """What one worker has to collect, and what it finds on disk."""

    config: CollectConfig
    settings: dict[str, Any]
    worker: int
    share: int
    found: dict[int, Shard]

    def path(self, number: int) -> Path:
        return self.config.out / f"part-{self.worker:03d}-{number:05d}.parquet"

    def kept(self) -> dict[int, int]:
        """Rows of the shards that need not be collected again, by number."""
        kept: dict[int, int] = {}
        for number, shard in sorted(self.found.items()):
            if shard.complete or shard.rows == self.share - sum(kept.values()):
                kept[number] = shard.rows
        return kept


def _collect_share(plan: _Plan, stop: threading.Event, report: Callable[[int], None]) -> None:
    """Collect one worker's share, shard by shard, until it is done or ``stop`` is set."""
    config = plan.config
    for stale in config.out.glob(f".part-{plan.worker:03d}-*.tmp"):
        stale.unlink()
    env = open_env(config.env_id, config.env_kwargs)
    try:
        policy = make_policy(config.policy, env)
        metadata = {
            **plan.settings,
            "worker": plan.worker,
            "source": frame_source(env).to_json(),
            "libraries": {"gymnasium": gym.__version__, "cv2": cv2.__version__},
        }
        kept, rows, number = plan.kept(), 0, -1
        while rows < plan.share and not stop.is_set():
            number += 1
            if number in kept:
                rows += kept[number]
                continue
            path = plan.path(number)
            writer = ShardWriter(path, action_type(env.action_space), {**metadata, "shard": number})
            try:
                limit = plan.share - rows - sum(n for i, n in kept.items() if i > number)
                complete = _collect_shard(writer, env, policy, plan, number, limit, stop, report)
                before = plan.found[number].rows if number in plan.found else 0
                if stop.is_set() and not complete and writer.rows <= before:
                    writer.abort()  # interrupted again, and earlier: the longer part stays
                else:
                    writer.commit(complete)
            except BaseException:
                writer.abort()
                raise
            rows += writer.rows
    finally:
        env.close()


def _collect_shard(
    writer: ShardWriter,
    env: gym.Env[Any, Any],
    policy: Policy,
    plan: _Plan,
    number: int,
    limit: int,
    stop: threading.Event,
    report: Callable[[int], None],
) -> bool:
    """Fill one shard with whole episodes; return whether it needs no further collecting."""
    config, spec = plan.config, plan.config.frame_spec
    env_seed, policy_seed = np.random.SeedSequence((config.seed, plan.worker, number)).generate_state(2)
    policy.reset(int(policy_seed))
    seed: int | None = int(env_seed)
    episode, reported = plan.worker * 10**9 + number * 10**5, 0
    longest = config.shard_rows * _MAX_EPISODE_SHARDS
    while writer.rows < min(limit, config.shard_rows):
        obs, _ = env.reset(seed=seed)
        seed, step = None, 0
        writer.append(preprocess(obs, spec), episode, step, None, 0.0, False, False)
        terminated = truncated = False
        while not (terminated or truncated) and writer.rows < min(limit, longest):
            if stop.is_set():
                report(writer.rows - reported)
                return False
            action = policy.act(obs)
            obs, reward, terminated, truncated, _ = env.step(action)
            step += 1
            stored = action if np.ndim(action) == 0 else np.ravel(action)
            writer.append(preprocess(obs, spec), episode, step, stored, float(reward), terminated, truncated)
            if writer.rows - reported >= 256:
                report(writer.rows - reported)
                reported = writer.rows
        episode += 1
    report(writer.rows - reported)
    # A shard that the worker's share cut short grows when a later run asks for more frames.
    ended = terminated or truncated or writer.rows >= longest
    return ended and writer.rows >= config.shard_rows


def _run_here(plan: _Plan, report: Callable[[int], None]) -> None:
    """Run the only worker in this process."""
    with stop_on_signals() as stop:
        try:
            _collect_share(plan, stop, report)
        except Exception as error:
            raise _failure(plan.config, [f"{type(error).__name__}: {error}"]) from error
    if stop.is_set():
        raise KeyboardInterrupt


def _worker_main(plan: _Plan, pipe: Connection, user_path: list[str]) -> None:
    """Run one worker process; it ends cleanly when the parent disappears."""
    sys.path[:] = user_path
    cv2.setNumThreads(0)
    with stop_on_signals(signal.SIGTERM) as stop:

        def report(rows: int) -> None:
            try:
                pipe.send(rows)
            except OSError:
                stop.set()

        try:
            _collect_share(plan, stop, report)
        except Exception as error:
            with contextlib.suppress(OSError):
                pipe.send(f"worker {plan.worker}: {type(error).__name__}: {error}")


def _run_workers(plans: list[_Plan], report: Callable[[int], None]) -> None:
    """Start a process for each plan, pass on their progress and see them end."""
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[_Plan, BaseProcess]] = {}
    failures: list[str] = []
    terminated = False
    with stop_on_signals() as stop:
        for plan in plans:
            receiver, sender = context.Pipe(duplex=False)
            arguments = (plan, sender, sys.path)
            worker = context.Process(target=_worker_main, args=arguments, daemon=True)
            with _ctrl_c_ignored():  # inherited: Ctrl-C reaches workers through this process
                worker.start()
            sender.close()
            running[receiver] = (plan, worker)
        while running:
            # A signal does not end wait(), hence the short timeout.
            for ready in wait(list(running), timeout=0.2):
                assert isinstance(ready, Connection)
                plan, process = running[ready]
                try:
                    message = ready.recv()
                except (EOFError, OSError):
                    process.join()
                    del running[ready]
                    if process.exitcode and not terminated:
                        failures.append(f"worker {plan.worker} died with exit code {process.exitcode}")
                    continue
                if isinstance(message, str):
                    failures.append(message)
                else:
                    report(message)
            if (stop.is_set() or failures) and not terminated:
                terminated = True
                for _, process in running.values():
                    process.terminate()
    if failures:
        raise _failure(plans[0].config, failures)
    if stop.is_set():
        raise KeyboardInterrupt


def _failure(config: CollectConfig, reasons: list[str]) -> CollectError:
    return CollectError(
        f"Collecting from {config.env_id} failed: {'; '.join(reasons)}. The shards committed to "
        f"{config.out} are intact; run the same command again to go on."
    )


@contextlib.contextmanager
def _ctrl_c_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

"""Collects frames with independent workers.

Each worker has its own environment, policy, seeds and shards; nothing is shared but the folder,
so no step ever waits for another environment's. A shard begins with a seeded reset and holds
whole episodes, hence depends on its number and the seed alone: an interrupted shard is simply
collected again, and the folder ends up the same however often it was stopped. What a worker does
is in ``workers.py``; here is who starts them, as processes or, on many machines, with Ray.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from latent_obs.collecting.config import MAX_SHARDS, CollectConfig
from latent_obs.collecting.policies import make_policy, policy_files
from latent_obs.collecting.sources import open_env
from latent_obs.collecting.worker import Plan, Tally, collect_share, describe, found_shards, one_thread
from latent_obs.data.folder import FramesFolder
from latent_obs.data.provenance import Collection
from latent_obs.data.shards import Shard, action_type, read_shard
from latent_obs.data.storage import Location, list_files, locked, make_folder, parse_location, shown
from latent_obs.frames import check_frame_space, preprocess
from latent_obs.progress import Bar, progress_bar, stop_on_signals

# Seconds after the parent's death in which a worker may finish its shard.
_ORPHAN_SECONDS = 5.0


class CollectError(RuntimeError):
    """A worker failed; the message says why, and committed shards are intact."""


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
    env = open_env(config.env_id, config.env_kwargs, config.key, render=config.render, wrapper=config.wrapper)
    try:
        check_frame_space(env.observation_space, "latent-obs collect", env)
        action_type(env.action_space)
        make_policy(config.policy, env, config.policy_encoder, config.policy_normalize)
        files = policy_files(config.policy, env, config.policy_encoder)
        obs, _ = env.reset(seed=config.seed)
        preprocess(obs, config.frame_spec)
    finally:
        env.close()

    out = parse_location(config.out)
    out = out.absolute() if isinstance(out, Path) else out
    make_folder(out)
    with _cluster(config):
        if _plan(config, out, files):
            with locked(out) as lock:
                plans = _plan(config, out, files)  # again: another run may have ended while we waited
                todo = sum(plan.todo for plan in plans)
                with progress_bar("collect", config.frames, "frames", progress, config.frames - todo) as bar:
                    _run(plans, _Board(bar), lock)
    folder = FramesFolder(parse_location(config.out))
    assert len(folder) == config.frames
    return folder


def _plan(config: CollectConfig, out: Location, files: dict[str, str] | None) -> list[Plan]:
    """Return what is left to collect, by worker, having checked that it may go into this folder."""
    done = [read_shard(path) for path in list_files(out, ".parquet")]
    workers = config.workers or (done and done[0].metadata.get("workers")) or _cores(config)
    collection = Collection(
        env_id=config.env_id,
        env_kwargs=config.env_kwargs,
        frame_spec=config.frame_spec,
        policy=config.policy,
        seed=config.seed,
        workers=workers,
        shard_rows=config.shard_rows,
        key=config.key,
        render=config.render or None,
        wrapper=config.wrapper,
        policy_encoder=config.policy_encoder,
        policy_normalize=None if config.policy_encoder is None else config.policy_normalize,
        policy_files=files,
    )
    _check_same_collection(config, collection, done)
    if config.frames // workers // config.shard_rows >= MAX_SHARDS:
        raise ValueError(
            f"{config.frames:,} frames of {workers} workers are {MAX_SHARDS:,} shards of "
            f"{config.shard_rows:,} rows each, or more: pass a larger --shard-rows."
        )
    plans = []
    for worker in range(workers):
        share = config.frames // workers + (worker < config.frames % workers)
        mine = found_shards(done, worker)
        if (held := sum(shard.rows for shard in mine.values())) > share:
            raise ValueError(
                f"{shown(out)} already holds {held} frames of worker {worker}, more than the {share} "
                "asked for: pass a larger --frames, or another --out."
            )
        plans.append(Plan(config, collection, out, worker, share, mine))
    return [plan for plan in plans if plan.todo]


def _cluster(config: CollectConfig) -> contextlib.AbstractContextManager[Any]:
    if not config.ray:
        return contextlib.nullcontext()
    from latent_obs.collecting.on_ray import connected

    return connected()


def _cores(config: CollectConfig) -> int:
    if config.ray:
        from latent_obs.collecting.on_ray import cluster_cores

        cores = cluster_cores()
    else:
        cores = os.cpu_count() or 1
    return min(cores, config.frames)


def _check_same_collection(config: CollectConfig, collection: Collection, done: list[Shard]) -> None:
    """Refuse to mix two collections in one folder."""
    for shard in done:
        for name, begun, value in shard.collection.differences(collection):
            raise ValueError(
                f"{shown(config.out)} was begun with {name}={begun!r}, got {name}={value!r}. "
                "Repeat the first command to resume it, or choose another --out."
            )


class _Board:
    """Adds up what workers tell and shows it."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self._tallies, self._shown = bar, dict[int, Tally](), 0

    def update(self, worker: int, tally: Tally) -> None:
        """Take a worker's newest tally."""
        self._tallies[worker] = tally
        total = Tally(*(sum(column) for column in zip(*self._tallies.values(), strict=True)))
        if total.stored_frames:
            per_frame = total.stored_bytes / total.stored_frames
            self._bar.note(f"{per_frame:,.0f} bytes/frame  {total.episodes:,} episodes")
        self._bar.advance(total.frames - self._shown)
        self._shown = total.frames


def _run(plans: list[Plan], board: _Board, lock: int | None) -> None:
    """Run the workers where the config wants them, and turn what they say into one error."""
    if not plans:
        return
    config = plans[0].config
    with stop_on_signals() as stop:
        if config.ray:
            from latent_obs.collecting.on_ray import run_tasks

            failures = run_tasks(plans, board.update, stop)
        elif plans[0].collection.workers == 1:
            failures = _run_here(plans[0], board, stop)
        else:
            failures = _run_processes(plans, board, stop, lock)
    if failures:
        raise CollectError(
            f"Collecting from {config.env_id} failed: {'; '.join(failures)}. The shards committed to "
            f"{shown(config.out)} are intact; run the same command again to go on."
        )
    if stop.is_set():
        raise KeyboardInterrupt


def _run_here(plan: Plan, board: _Board, stop: threading.Event) -> list[str]:
    """Run the only worker in this process."""
    try:
        collect_share(plan, stop, lambda tally: board.update(plan.worker, tally))
    except Exception as error:
        return [describe(error)]
    return []


def _run_processes(plans: list[Plan], board: _Board, stop: threading.Event, lock: int | None) -> list[str]:
    """Start a process for each plan, pass on their progress and see them end."""
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Plan, BaseProcess]] = {}
    failures: list[str] = []
    terminated = False
    for plan in plans:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (plan, sender, sys.path, None if lock is None else _Lock(lock))
        process: BaseProcess = context.Process(target=_process_main, args=arguments, daemon=True)
        with _ctrl_c_ignored():  # inherited: Ctrl-C reaches workers through this process
            process.start()
        sender.close()
        running[receiver] = (plan, process)
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
                failures.append(f"worker {plan.worker}: {message}")
            else:
                board.update(plan.worker, message)
        if (stop.is_set() or failures) and not terminated:
            terminated = True
            for _, process in running.values():
                process.terminate()
    return failures


def _process_main(plan: Plan, pipe: Connection, user_path: list[str], lock: _Lock | None) -> None:
    """Run one worker process, which holds the folder's lock too; it ends when the parent does."""
    sys.path[:] = user_path
    one_thread()
    with stop_on_signals(signal.SIGTERM) as stop:
        threading.Thread(target=_end_with_parent, args=(stop,), daemon=True).start()

        def report(tally: Tally) -> None:
            try:
                pipe.send(tally)
            except OSError:
                stop.set()

        try:
            collect_share(plan, stop, report)
        except Exception as error:
            with contextlib.suppress(OSError):
                pipe.send(describe(error))


def _end_with_parent(stop: threading.Event) -> None:
    """Stop once the parent is dead, however it died and whatever the environment is doing."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    stop.set()
    time.sleep(_ORPHAN_SECONDS)
    os._exit(1)


class _Lock:
    """A descriptor that a spawned process inherits."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __getstate__(self) -> Any:
        return DupFd(self.descriptor)

    def __setstate__(self, state: Any) -> None:
        self.descriptor = state.detach()


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

"""Collects frames with independent workers.

Each worker has its own environment, policy, seeds and shards; nothing is shared but the folder,
so no step ever waits for another environment's. A shard begins with a seeded reset and holds
whole episodes, hence depends on its number and the seed alone: an interrupted shard is simply
collected again, and the folder ends up the same however often it was stopped. What a worker does
is in ``worker.py``, how workers run as processes in ``processes.py`` and on many machines in ``on_ray.py``;
here is what each of them has to collect.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

from latent_obs.collecting.config import MAX_SHARDS, CollectConfig
from latent_obs.collecting.processes import run_processes
from latent_obs.collecting.trial import CollectError, Files, try_out, try_out_in_process
from latent_obs.collecting.worker import Plan, Pulse, Tally, collect_share, describe, found_shards
from latent_obs.data.folder import FramesFolder
from latent_obs.data.provenance import Collection
from latent_obs.data.shards import Shard, part_name, read_shard
from latent_obs.data.storage import Location, list_files, locked, make_folder, parse_location, shown
from latent_obs.progress import Bar, progress_bar, stop_on_signals


def collect_frames(config: CollectConfig, *, progress: bool = True, in_process: bool = True) -> FramesFolder:
    """Fill a frames folder, or finish one that was begun.

    Several workers are started as processes with the ``spawn`` method, so a script that calls
    this with more than one worker needs the usual ``if __name__ == "__main__":``.

    Args:
        config: What to collect.
        progress: Show a progress bar on standard error.
        in_process: Try the environment out, and run a single worker, in the calling process, where they find
            the environments that the program registered. An environment that hangs in compiled code cannot
            be ended there; ``False``, or a ``step_timeout``, gives both processes of their own.

    Returns:
        The folder, holding exactly ``config.frames`` frames.

    Raises:
        ValueError: If the environment or policy does not exist or does not fit, or the folder
            was begun with other settings.
        CollectError: If a worker fails midway; the committed shards stay.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once the open shards are committed; after a second
            one at once, and the open shards are lost.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp()) / "frames"
        >>> len(collect_frames(CollectConfig("ALE/Pong-v5", out, frames=20, workers=1), progress=False))
        20
    """
    in_process = in_process and config.step_timeout is None
    files = try_out(config, Pulse()) if in_process else try_out_in_process(config)
    out = parse_location(config.out)
    out = out.absolute() if isinstance(out, Path) else out
    make_folder(out)
    with _cluster(config):
        if _plan(config, out, files):
            with locked(out) as lock:
                plans = _plan(config, out, files)  # again: another run may have ended while we waited
                todo = sum(plan.todo for plan in plans)
                with progress_bar("collect", config.frames, "frames", progress, config.frames - todo) as bar:
                    _run(plans, _Board(bar), lock, in_process)
    folder = FramesFolder(parse_location(config.out))
    assert len(folder) == config.frames
    return folder


def _plan(config: CollectConfig, out: Location, files: Files) -> list[Plan]:
    """Return what is left to collect, by worker, having checked that it may go into this folder."""
    done = [read_shard(path) for path in list_files(out, ".parquet")]
    workers = config.workers or (done and done[0].metadata.get("workers")) or _cores(config)
    collection = Collection(
        env_id=config.env_id,
        env_kwargs=config.stored_kwargs,
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
    """Refuse to mix two collections in one folder, and to count a shard twice."""
    for shard in done:
        for name, begun, value in shard.collection.differences(collection):
            raise ValueError(
                f"{shown(config.out)} was begun with {name}={begun!r}, got {name}={value!r}. "
                "Repeat the first command to resume it, or choose another --out."
            )
        name = part_name(shard.metadata.get("worker", 0), shard.metadata.get("shard", 0))
        if shard.name != name:
            raise ValueError(
                f"{shard.name} in {shown(config.out)} was written as {name}: move it away if it is a "
                "copy, or give it that name."
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


def _run(plans: list[Plan], board: _Board, lock: int | None, in_process: bool) -> None:
    """Run the workers where the config wants them, and turn what they say into one error."""
    if not plans:
        return
    config = plans[0].config
    with stop_on_signals() as stop:
        if config.ray:
            from latent_obs.collecting.on_ray import run_tasks

            failures = run_tasks(plans, board.update, stop)
        elif in_process and plans[0].collection.workers == 1:
            failures = _run_here(plans[0], board, stop)
        else:
            failures = run_processes(plans, board.update, stop, lock)
    if failures:
        raise CollectError(
            f"Collecting from {config.env_id} failed: {'; '.join(failures)}. The shards committed to "
            f"{shown(config.out)} are intact; run the same command again to go on."
        )
    if stop.is_set():
        raise KeyboardInterrupt


def _run_here(plan: Plan, board: _Board, stop: threading.Event) -> list[str]:
    """Run the only worker in this process."""
    pulse = Pulse()
    try:
        collect_share(plan, stop, lambda tally: board.update(plan.worker, tally), pulse)
    except (Exception, SystemExit) as error:
        return [f"{plan.where(pulse)}: {describe(error)}"]
    return []

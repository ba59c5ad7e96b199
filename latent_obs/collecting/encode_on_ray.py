"""Encodes shards in Ray tasks, so that the machines of a cluster fill one latents folder together.

Each machine must have latent_obs, and reach the frames and the latents folder under the same path.
A task that is lost with its machine is run again elsewhere; it leaves out the shards that the first
try had finished.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from latent_obs.collecting.encode_shard import Job, encode_shard
from latent_obs.collecting.on_ray import connected
from latent_obs.collecting.worker import one_thread
from latent_obs.encoders.encoder import Encoder

# Compiling the encoder costs a task a fraction of a second, so a task encodes several shards: few enough
# that the last tasks end together.
_TASKS_PER_CORE = 4
_RETRIES = 3


def encode_in_tasks(
    encoder: Encoder,
    jobs: list[Job],
    about: dict[str, Any],
    report: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Encode shards in tasks and wait for all of them.

    Args:
        encoder: The encoder; a machine that would run it in another precision than this one is refused.
        jobs: Each shard, and the file to write.
        about: What each file says of itself, but for the shard.
        report: Called with the number of frames of every task that has ended.
        stop: Once set, the tasks are ended; the shards that they have finished stay.

    Raises:
        OSError: If a task is lost four times.
        ValueError: If a machine runs the encoder in another precision.
        KeyboardInterrupt: If ``stop`` was set.
    """
    if not jobs:
        return
    precision = encoder.precision
    with connected() as ray:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        tasks = min(len(jobs), _TASKS_PER_CORE * cores)
        shares = [jobs[i::tasks] for i in range(tasks)]
        run = ray.remote(num_cpus=1, max_retries=_RETRIES)(_task)
        shared = ray.put(encoder)
        waiting = {run.remote(shared, precision, share, about): share for share in shares}
        try:
            while waiting:
                ended, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2)
                if stop.is_set():
                    raise KeyboardInterrupt
                for task in ended:
                    share = waiting.pop(task)
                    try:
                        ray.get(task)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.RayError as error:
                        reason = str(error).strip().splitlines()[0]
                        raise OSError(
                            f"An encoding task was lost {_RETRIES + 1} times ({reason}). The shards that are "
                            "whole stay; run the same command again to go on."
                        ) from error
                    report(sum(shard.rows for shard, _ in share))
        finally:
            for task in waiting:
                ray.cancel(task, force=True)


def _task(encoder: Encoder, precision: str, jobs: list[Job], about: dict[str, Any]) -> None:
    """Encode some shards but for those that an earlier try of this task has finished."""
    one_thread()
    if encoder.precision != precision:
        raise ValueError(
            f"This machine runs the encoder {encoder.ref} in {encoder.precision}, the others in {precision}; "
            "latents would differ from machine to machine. Use machines of one kind."
        )
    for shard, path in jobs:
        if not path.exists():
            for _ in encode_shard(encoder, shard, path, about):
                pass

"""Runs the workers as Ray tasks, so that the machines of a cluster fill one folder together.

Ray must be installed on each of them (the extra ``ray``), and each must reach the
folder under the same path or URL. A task whose machine is lost is run again elsewhere, where it goes
on from the shards it had committed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from latent_obs.collecting.processes import run_processes
from latent_obs.collecting.worker import Plan, Pulse, Tally, collect_share, describe, look_again, one_thread
from latent_obs.extras import needs

# A task tells its tally, and asks whether to stop, at most this often.
_REPORT_SECONDS = 0.5
_RETRIES = 3


def cluster_cores() -> int:
    """Return the cores of the cluster's machines together."""
    with connected() as ray:
        return int(ray.cluster_resources().get("CPU", 1))


def run_tasks(plans: list[Plan], update: Callable[[int, Tally], None], stop: threading.Event) -> list[str]:
    """Run a task for each plan and wait for all of them.

    Joins the cluster that this program or ``RAY_ADDRESS`` names, or the one that runs on this
    machine; without any, Ray starts one of this machine alone.

    Args:
        plans: What to collect.
        update: Called with a worker's number and its newest tally.
        stop: Once set, tasks commit what they have and end.

    Returns:
        What failed, in words; empty when all went well.

    Raises:
        KeyboardInterrupt: After a second signal; the tasks are ended by force.
    """
    failures: list[str] = []
    with connected() as ray:
        board = ray.remote(num_cpus=0)(_Board).remote()
        run = ray.remote(num_cpus=1, max_retries=_RETRIES)(_task)
        waiting = {run.remote(plan, board): plan for plan in plans}
        try:
            _wait(ray, waiting, board, update, stop, failures)
        except KeyboardInterrupt:
            for task in waiting:
                ray.cancel(task, force=True)
            raise
    return failures


def _wait(
    ray: Any,
    waiting: dict[Any, Plan],
    board: Any,
    update: Callable[[int, Tally], None],
    stop: threading.Event,
    failures: list[str],
) -> None:
    """Pass on what tasks tell until each of them has ended."""
    told = False
    while waiting:
        ended, _ = ray.wait(list(waiting), num_returns=1, timeout=0.2)
        for task in ended:
            plan = waiting.pop(task)
            try:
                failures += ray.get(task)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[0]
                failures.append(f"worker {plan.worker} was lost {_RETRIES + 1} times ({reason})")
        for worker, tally in ray.get(board.read.remote()).items():
            update(worker, tally)
        if (stop.is_set() or failures) and not told:
            told = True
            ray.get(board.stop.remote())


class _Board:
    """The actor in which tasks leave their tallies and find out whether to stop."""

    def __init__(self) -> None:
        self._tallies: dict[int, Tally] = {}
        self._stopped = False

    def tell(self, worker: int, tally: Tally) -> bool:
        """Take a worker's tally; return whether it shall stop."""
        self._tallies[worker] = tally
        return self._stopped

    def read(self) -> dict[int, Tally]:
        """Return all tallies."""
        return self._tallies

    def stop(self) -> None:
        """Tell every worker to stop at its next report."""
        self._stopped = True


def _task(plan: Plan, board: Any) -> list[str]:
    """Collect one worker's share; return what failed, if anything."""
    import ray

    one_thread()
    stop, pulse, last, next_report = threading.Event(), Pulse(), Tally(), 0.0

    def report(tally: Tally) -> None:
        nonlocal last, next_report
        last = tally
        if time.monotonic() >= next_report:
            if ray.get(board.tell.remote(plan.worker, tally)):
                stop.set()
            next_report = time.monotonic() + _REPORT_SECONDS

    failures: list[str] = []
    try:
        report(last)
        if not stop.is_set():
            left = look_again(plan)  # without the shards that an earlier try of this task committed
            if plan.config.step_timeout is None:
                collect_share(left, stop, report, pulse)
            else:  # a step that takes too long can be ended only in a process of its own
                failures = run_processes([left], lambda _, tally: report(tally), stop)
        ray.get(board.tell.remote(plan.worker, last))
    except (Exception, SystemExit) as error:  # the environment's fault: trying again would not mend it
        return [f"{plan.where(pulse)}: {describe(error)}"]
    return failures


@contextlib.contextmanager
def connected() -> Iterator[Any]:
    """Yield ray, joined to a cluster; leave it again unless the program had joined before.

    Raises:
        ImportError: If Ray is not installed.
    """
    with needs("Collecting on a Ray cluster"):
        import ray
    if ray.is_initialized():
        yield ray
        return
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()

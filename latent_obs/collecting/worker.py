"""What one worker does: fill its share of a frames folder, shard by shard.

A worker has its own environment, policy, seeds and shards, and shares nothing but the folder. The
same function runs in the calling process, in a process that ``processes.py`` starts, and in a task of Ray's.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import gymnasium as gym
import numpy as np

from latent_obs.collecting.policies import Policy, make_policy
from latent_obs.collecting.sources import open_env
from latent_obs.data.provenance import Collection
from latent_obs.data.shards import Shard, ShardWriter, action_type, as_stored, part_name, read_shard
from latent_obs.data.storage import Location, child, list_files, name_of, remove_unfinished
from latent_obs.frames import Frame, FrameSpec, frame_source, preprocess

if TYPE_CHECKING:
    from latent_obs.collecting.config import CollectConfig

# An episode that outgrows this many shards' worth of rows is cut, so that a game that never
# ends cannot keep its frames uncommitted for ever.
_MAX_EPISODE_SHARDS = 8
_REPORT_ROWS = 64
# What an environment may be doing.
CALLS = ("constructor", "reset", "step", "close")


class Tally(NamedTuple):
    """What a worker has collected since it began."""

    frames: int = 0
    episodes: int = 0
    stored_frames: int = 0  # those in the bytes below; the rest are still in memory
    stored_bytes: int = 0

    def plus(self, writer: ShardWriter, episodes: int) -> Tally:
        """Return the tally with an open shard."""
        frames, num_bytes = writer.stored
        added = (writer.rows, episodes, frames, num_bytes)
        return Tally(*(before + more for before, more in zip(self, added, strict=True)))


Report = Callable[[Tally], None]


class Pulse(ctypes.Structure):
    """Where a worker is, in memory that another process may read while the worker hangs.

    Attributes:
        shard: Number of the shard being collected; -1 before the first.
        since: ``time.monotonic()`` when the environment's present call began; 0 outside of calls.
        number: Which of ``CALLS`` that is, or was.
    """

    _fields_ = (("shard", ctypes.c_int64), ("since", ctypes.c_double), ("number", ctypes.c_int64))
    shard: int
    since: float
    number: int

    def __init__(self) -> None:
        super().__init__(-1, 0.0, 0)

    @property
    def began(self) -> bool:
        """Whether the worker has called the environment."""
        return bool(self.since or self.number or self.shard >= 0)

    @property
    def call(self) -> str:
        """Name of the present call, or of the last one."""
        return CALLS[self.number]

    @property
    def seconds(self) -> float:
        """How long the present call has taken; 0 outside of calls."""
        since = self.since
        return time.monotonic() - since if since else 0.0

    @contextlib.contextmanager
    def during(self, call: str) -> Iterator[None]:
        """Say that the environment is in a call."""
        self.number, self.since = CALLS.index(call), time.monotonic()
        try:
            yield
        finally:
            self.since = 0.0


@dataclass(frozen=True)
class Plan:
    """What one worker has to collect, and what is in the folder already."""

    config: CollectConfig
    collection: Collection
    out: Location
    worker: int
    share: int
    found: dict[int, Shard]

    @property
    def prefix(self) -> str:
        """How the names of this worker's shards begin."""
        return f"part-{self.worker:03d}-"

    def path(self, number: int) -> Location:
        """Return where a shard belongs."""
        return child(self.out, part_name(self.worker, number))

    def where(self, pulse: Pulse) -> str:
        """Name the worker and the shard it is at, for messages."""
        place = name_of(self.path(pulse.shard)) if pulse.shard >= 0 else "before its first shard"
        return f"worker {self.worker} ({place})"

    def kept(self) -> dict[int, int]:
        """Return the rows of the shards that need not be collected again, by number."""
        kept: dict[int, int] = {}
        for number, shard in sorted(self.found.items()):
            if shard.complete or shard.rows == self.share - sum(kept.values()):
                kept[number] = shard.rows
        return kept

    @property
    def todo(self) -> int:
        """Frames still to collect."""
        return self.share - sum(self.kept().values())


def found_shards(shards: Iterable[Shard], worker: int) -> dict[int, Shard]:
    """Return the shards of one worker by their number."""
    return {shard.metadata["shard"]: shard for shard in shards if shard.metadata.get("worker") == worker}


def look_again(plan: Plan) -> Plan:
    """Return the plan with what is in the folder now."""
    paths = (path for path in list_files(plan.out, ".parquet") if name_of(path).startswith(plan.prefix))
    found = found_shards(map(read_shard, paths), plan.worker)
    return Plan(plan.config, plan.collection, plan.out, plan.worker, plan.share, found)


def collect_share(plan: Plan, stop: threading.Event, report: Report, pulse: Pulse) -> None:
    """Collect one worker's share until it is whole or ``stop`` is set, which keeps what there is.

    Args:
        plan: What to collect.
        stop: Ends collection before the next step.
        report: Called with this worker's tally every now and then; may set ``stop``.
        pulse: Kept up to date with where the worker is.
    """
    config = plan.config
    remove_unfinished(plan.out, plan.prefix)
    with pulse.during("constructor"):
        env = open_env(
            config.env_id, config.env_kwargs, config.key, render=config.render, wrapper=config.wrapper
        )
    try:
        policy = make_policy(config.policy, env, config.policy_encoder, config.policy_normalize)
        column = action_type(env.action_space)
        metadata = {
            **plan.collection.to_json(),
            "worker": plan.worker,
            "source": frame_source(env).to_json(),
            "libraries": {"gymnasium": gym.__version__, "cv2": cv2.__version__},
        }
        kept, tally, rows, number = plan.kept(), Tally(), 0, -1
        while rows < plan.share and not stop.is_set():
            number += 1
            if number in kept:
                rows += kept[number]
                continue
            pulse.shard = number
            writer = ShardWriter(plan.path(number), column, {**metadata, "shard": number})
            try:
                limit = plan.share - rows - sum(n for i, n in kept.items() if i > number)
                shard = _OpenShard(writer, plan, number, limit, tally, report, pulse)
                complete = shard.collect(env, policy, stop)
                before = plan.found[number].rows if number in plan.found else 0
                if stop.is_set() and not complete and writer.rows <= before:
                    writer.abort()  # interrupted again, and earlier: the longer part stays
                else:
                    writer.commit(complete)
            except BaseException:
                writer.abort()
                raise
            rows += writer.rows
            tally = tally.plus(writer, shard.episodes)
            report(tally)
    finally:
        with pulse.during("close"):
            env.close()


class _OpenShard:
    """A shard while it is collected; it depends on its number and the seed alone."""

    def __init__(
        self,
        writer: ShardWriter,
        plan: Plan,
        number: int,
        limit: int,
        before: Tally,
        report: Report,
        pulse: Pulse,
    ) -> None:
        self.writer, self.before, self.report, self.pulse = writer, before, report, pulse
        self.spec: FrameSpec = plan.config.frame_spec
        # What ends it: its size at the end of an episode, or in the midst of one that has no end,
        # or the worker's share of frames.
        self.limit, self.full = limit, plan.config.shard_rows
        self.first_episode, self.episodes = plan.worker * 10**9 + number * 10**5, 0
        seeds = np.random.SeedSequence((plan.config.seed, plan.worker, number)).generate_state(2)
        self.env_seed: int | None = int(seeds[0])
        self.policy_seeds = np.random.default_rng(seeds[1])

    def collect(self, env: gym.Env[Any, Any], policy: Policy, stop: threading.Event) -> bool:
        """Fill the shard with whole episodes; return whether it needs no further collecting."""
        ended, longest = False, self.full * _MAX_EPISODE_SHARDS
        while self.writer.rows < min(self.limit, self.full):
            ended = self._collect_episode(env, policy, stop, min(self.limit, longest))
            if stop.is_set() and not ended:
                return False
        # A shard that the worker's share cut short grows when a later run asks for more frames.
        return (ended or self.writer.rows >= longest) and self.writer.rows >= self.full

    def _collect_episode(
        self, env: gym.Env[Any, Any], policy: Policy, stop: threading.Event, limit: int
    ) -> bool:
        """Append one episode, or what the limit leaves of it; return whether it ended."""
        episode, step = self.first_episode + self.episodes, 0
        self.episodes += 1
        with self.pulse.during("reset"):
            obs, _ = env.reset(seed=self.env_seed)
        self.pulse.number = CALLS.index("step")
        self.env_seed = None
        policy.reset(int(self.policy_seeds.integers(2**32)))
        shape = env.observation_space.shape
        self.writer.append(self._frame(obs, shape), episode, step, None, 0.0, False, False)
        while self.writer.rows < limit:
            if stop.is_set():
                return False
            self.pulse.since = time.monotonic()
            action = policy.act(obs)
            stored = as_stored(action, self.writer.action)  # now: the step may change an array in place
            obs, reward, terminated, truncated, _ = env.step(action)
            self.pulse.since = 0.0
            step += 1
            frame = self._frame(obs, shape)
            self.writer.append(frame, episode, step, stored, float(reward), terminated, truncated)
            if self.writer.rows % _REPORT_ROWS == 0:
                self.report(self.before.plus(self.writer, self.episodes))
            if terminated or truncated:
                return True
        return False

    def _frame(self, obs: Any, shape: tuple[int, ...] | None) -> Frame:
        frame = preprocess(obs, self.spec)  # checks the type and that it is RGB
        if obs.shape != shape:
            raise ValueError(f"The environment promises observations of shape {shape}, got {obs.shape}.")
        return frame


def one_thread() -> None:
    """Keep the libraries of one of many workers on one core."""
    cv2.setNumThreads(0)
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when a policy imports it


def describe(error: BaseException) -> str:
    """Name an error on one line, and the line of code if that is not this package's."""
    if isinstance(error, SystemExit):
        return f"the environment or the policy ended the program with sys.exit({error.code!r})"
    return f"{type(error).__name__}: {' '.join(str(error).splitlines())}{place(error)}"


def place(error: BaseException) -> str:
    """Say which line of code raised an error; nothing if it is a line of this package."""
    raised = traceback.extract_tb(error.__traceback__)
    if not raised or Path(raised[-1].filename).is_relative_to(Path(__file__).parents[1]):
        return ""
    return f" (in {raised[-1].filename}, line {raised[-1].lineno})"

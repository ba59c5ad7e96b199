"""Reads thousands of damaged artefacts: each must be refused in words, or read as it was.

$ python -m tests.fuzz --count 10000             # all kinds of artefacts, about five minutes
$ python -m tests.fuzz frames --seed 7 --count 500

Every mutation is determined by the kind, the seed and its number, so `--seed 7 --first 123 --count 1` repeats
one. A mutation fails the test if reading raises anything but the errors that a user is meant to see, takes
more than ten seconds or a gigabyte, kills the process, or gives other data without a word.

A new kind of artefact is an entry of `KINDS`; those of encoders are in `fuzz_encoders.py`.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import hashlib
import json
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from latent_obs.data.check import check_frames, frames_info
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import FORMAT as LATENTS
from latent_obs.data.latents import ROW_GROUP, LatentsFolder, latents_schema
from latent_obs.data.parquet import TableWriter
from latent_obs.data.shards import METADATA_KEY, ShardWriter, read_steps
from tests import fuzz_encoders
from tests.damage import Kind, Rng, damage_bytes, damage_file, mutate_json, pick

SECONDS, BYTES = 10, 1 << 30


def survey(
    name: str, seed: int, numbers: range, told: Callable[[int], None] = lambda _: None
) -> Iterator[str]:
    """Make, damage and read one artefact after the other.

    Args:
        name: A key of :data:`KINDS`.
        seed: Chooses the damages.
        numbers: Which ones of them.
        told: Called with each number before it is tried.

    Yields:
        ``"refused"``, ``"unharmed"`` or, where something is wrong, what it is.
    """
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as scratch:
        whole, damaged = Path(scratch) / "whole", Path(scratch) / "damaged"
        whole.mkdir()
        kind.make(whole)
        wanted = kind.read(whole)
        for number in numbers:
            told(number)
            rng = np.random.default_rng([seed, number, *name.encode()])
            shutil.copytree(whole, damaged)
            how = str(rng.choice(sorted(kind.mutations)))
            kind.mutations[how](damaged, rng)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                with _at_most(SECONDS), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    outcome = (
                        "unharmed" if kind.read(damaged) == wanted else f"READ AS OTHER DATA after {how}"
                    )
            except kind.refusals as error:
                outcome = (
                    "refused" if str(error).strip() else f"NO MESSAGE from {type(error).__name__} after {how}"
                )
            except _TooSlow:
                outcome = f"HUNG after {how}"
            except Exception as error:
                outcome = f"UNCAUGHT {type(error).__name__} after {how}: {str(error)[:200]}"
            if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > BYTES:
                outcome = f"TOOK MORE THAN {BYTES >> 20} MiB after {how}"
            yield outcome
            shutil.rmtree(damaged)


class _TooSlow(BaseException):
    pass


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Parquet files that say in JSON what they are.


def damage_metadata(folder: Path, rng: Rng) -> None:
    """Change what a file says of itself, in one place."""
    path = pick(folder, rng, ".parquet")
    stored = json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
    text = mutate_json(stored, rng)
    pq.write_table(pq.read_table(path).replace_schema_metadata({METADATA_KEY: text}), path, row_group_size=16)


def damage_columns(folder: Path, rng: Rng) -> None:
    """Drop, rename, repeat, retype or empty a column, or put it elsewhere."""
    path = pick(folder, rng, ".parquet")
    stored = {METADATA_KEY: pq.read_metadata(path).metadata[METADATA_KEY]}
    table = pq.read_table(path)
    i = int(rng.integers(len(table.schema)))
    name, column = table.schema.names[i], table.column(i)
    action = int(rng.integers(7))
    kinds = [
        pa.int8(),
        pa.int64(),
        pa.float64(),
        pa.string(),
        pa.bool_(),
        pa.binary(),
        pa.binary(12_289),
        pa.binary(1),
    ]
    if action == 0:
        table = table.drop_columns([name])
    elif action == 1:
        table = table.rename_columns([f"{n}2" if n == name else n for n in table.schema.names])
    elif action == 2:
        table = table.append_column(name, column)
    elif action == 3:
        kind = kinds[int(rng.integers(len(kinds)))]
        width = getattr(kind, "byte_width", 0) if pa.types.is_fixed_size_binary(kind) else 0
        values = [b"x" * width] * len(table) if width else [None] * len(table)
        table = table.set_column(i, pa.field(name, kind), pa.array(values, kind))
    elif action == 4 and name != "action":
        values = column.to_pylist()
        values[int(rng.integers(len(values)))] = None
        table = table.set_column(i, pa.field(name, column.type), pa.array(values, column.type))
    elif action == 5:
        order = rng.permutation(len(table.schema)).tolist()
        table = table.select(order)
    else:
        table = table.append_column("more", column)
    pq.write_table(table.replace_schema_metadata(stored), path, row_group_size=16)


def make_frames(folder: Path) -> None:
    """Two shards of three episodes."""
    rng = np.random.default_rng(0)
    for number in range(2):
        about = {
            "env_id": "Pong",
            "env_kwargs": {"mode": 1},
            "frame_spec": {"crop": [0, 64, 0, 64], "interpolation": "area"},
            "policy": "agent.zip",
            "policy_files": {"agent.zip": "0123456789abcdef"},
            "seed": 0,
            "workers": 1,
            "shard_rows": 30,
            "worker": 0,
            "shard": number,
            "source": {"env_id": "Pong", "env_kwargs": {}, "emulator": {"frameskip": 4, "game": "pong"}},
            "libraries": {"cv2": "1"},
        }
        writer = ShardWriter(folder / f"part-000-{number:05d}.parquet", pa.int64(), about)
        for episode in range(3):
            for step in range(10):
                frame = np.zeros((64, 64, 3), np.uint8)
                frame[episode : episode + 4, step : step + 4] = rng.integers(0, 256, 3)
                action = step % 3 if step else None
                writer.append(frame, number * 10**5 + episode, step, action, step / 7, step == 9, False)
        writer.commit(complete=True)


def read_frames(folder: Path) -> str:
    """Do with a frames folder whatever the package does."""
    check_frames(folder, progress=False)
    frames = FramesFolder(folder)
    digest = hashlib.sha256(frames.load().tobytes())
    digest.update(json.dumps(list(frames.episodes().items())).encode())
    frames_info(frames)
    medians = frames.medians()
    next(frames.batches_and_foreground(4, medians, frames.split(0.5)[0]))
    next(frames.batches(4))
    frames.sample(5)
    json.dumps(frames.identity)
    for shard in frames.shards:
        with shard.open() as file:
            for group in range(shard.row_groups):
                for row in read_steps(file, group, ["step", "reward", "terminated", "truncated"]).to_pylist():
                    digest.update(str(list(row.values())).encode())
    return digest.hexdigest()


def make_latents(folder: Path) -> None:
    """Two files of three episodes."""
    rng, schema = np.random.default_rng(0), latents_schema(4, pa.int64())
    about = {
        "format": LATENTS,
        "version": 1,
        "encoder": {
            "name": "pong-v0",
            "sha256": "0" * 64,
            "latent_dim": 4,
            "backend": "torch",
            "precision": "float32",
        },
        "frames": {"frames": 60, "env_id": "Pong"},
        "frame_spec": {"crop": None, "interpolation": "area"},
        "source": {"env_id": "Pong", "env_kwargs": {}, "emulator": {}},
        "scaling": {"mean": [0.0, 1.0, 2.0, 3.0], "std": [1.0, 1.0, 2.0, 3.0]},
    }
    for number in range(2):
        path = folder / f"part-000-{number:05d}.parquet"
        with TableWriter(path, schema, about, ROW_GROUP, write_page_checksum=True) as writer:
            latents = [
                pa.FixedSizeListArray.from_arrays(
                    pa.array(rng.normal(size=120).astype(np.float32)), type=schema.field(n).type
                )
                for n in ("mean", "log_variance")
            ]
            steps = [
                pa.array([None if i % 10 == 0 else 1 for i in range(30)], pa.int64()),
                pa.array([0.5] * 30),
            ]
            flags = [pa.array([i % 10 == 9 for i in range(30)])] * 2
            where = [
                pa.array([number * 3 + i // 10 for i in range(30)]),
                pa.array([i % 10 for i in range(30)], pa.int32()),
            ]
            writer.write(pa.Table.from_arrays([*latents, *steps, *flags, *where], schema=schema))


def read_latents(folder: Path) -> str:
    """Read every episode, as it is and scaled."""
    digest = hashlib.sha256()
    latents = LatentsFolder(folder)
    for episode in latents.episodes():
        for array in (episode.mean, episode.log_variance, episode.reward, episode.terminated):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(str(episode.episode).encode())
    if "scaling" in latents.metadata:
        list(LatentsFolder(folder, normalize=True).episodes())
    return digest.hexdigest()


_PARQUET = {
    "bytes": damage_bytes,
    "file": damage_file,
    "metadata": damage_metadata,
    "columns": damage_columns,
}
KINDS = {
    "frames": Kind(make_frames, _PARQUET, read_frames),
    "latents": Kind(make_latents, _PARQUET, read_latents),
    **fuzz_encoders.KINDS,
}


def _inside(pipe: Connection, name: str, seed: int, numbers: range) -> None:
    """Survey in a process that may die of it."""
    for outcome in survey(name, seed, numbers, lambda number: pipe.send(number)):
        pipe.send(outcome)


def main(arguments: list[str]) -> int:
    """Return 0 if every mutation was refused or harmless."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read damaged artefacts.")
    parser.add_argument("kinds", nargs="*", default=[], help=f"some of {', '.join(KINDS)}; default: all")
    parser.add_argument("--count", type=int, default=10_000, help="mutations in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    args = parser.parse_args(arguments)
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"there is no kind {', '.join(sorted(unknown))}, only {', '.join(KINDS)}")
    kinds = args.kinds or list(KINDS)
    spawn, failed = multiprocessing.get_context("spawn"), 0
    for place, name in enumerate(kinds):
        count = args.count // len(kinds) + (place < args.count % len(kinds))
        tally: collections.Counter[str] = collections.Counter()
        number, end = args.first, args.first + count
        while number < end:
            mine, theirs = spawn.Pipe(duplex=False)
            child = spawn.Process(target=_inside, args=(theirs, name, args.seed, range(number, end)))
            child.start()
            theirs.close()
            try:
                # A hang in native code that no signal ends, at most.
                while mine.poll(600 if number == args.first else 6 * SECONDS):
                    told = mine.recv()
                    if isinstance(told, int):
                        number = told
                        continue
                    tally[told.split(" ")[0]] += 1
                    if told not in ("refused", "unharmed"):
                        print(f"{name} --seed {args.seed} --first {number} --count 1: {told}", flush=True)
                else:
                    raise EOFError
            except EOFError:
                child.kill()
                child.join()
                if number < end - 1 or sum(tally.values()) < count:
                    tally["DIED"] += 1
                    print(
                        f"{name} --seed {args.seed} --first {number} --count 1: THE PROCESS DIED", flush=True
                    )
            number += 1
        failed += sum(n for word, n in tally.items() if word not in ("refused", "unharmed"))
        print(
            f"{name}: {count:,} mutations, " + ", ".join(f"{n:,} {word}" for word, n in tally.most_common())
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

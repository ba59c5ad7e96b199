"""How fast does training read a folder of a million frames in random order, beside HDF5?

$ latent-obs collect ALE/Pong-v5 --frames 20000 --out pong
$ python benchmarks/read_frames.py pong     # about 4 min on one core

The million are copies of the collected frames under new episode numbers. HDF5 holds one frame a
chunk, gzipped, as datasets for reinforcement learning often do, and is read at random indices; a
frame costs the same there however many there are, so it holds the collected frames once. Both
readers take turns, and CPU time is compared. Before that, every frame must come out of both as it
was collected.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import tyro
from machine import machine

from latent_obs import FramesFolder
from latent_obs.shards import ROW_GROUP, frames_schema, writer_options
from latent_obs.tables import TableWriter


@dataclass(frozen=True)
class Args:
    """Compare reading a frames folder in random order with HDF5."""

    frames: Path
    """frames folder to make copies of"""
    total: int = 1_000_000
    batch_size: int = 64
    rounds: int = 7
    batches: int = 1_500
    """batches of the frames folder in a round; HDF5 reads a twentieth of them"""


def copy_until(folder: FramesFolder, out: Path, total: int) -> FramesFolder:
    """Write the shards again and again under new episode numbers until there are ``total`` frames."""
    out.mkdir()
    rows, copy = 0, 0
    while rows < total:
        for number, shard in enumerate(folder.shards):
            with folder.open(shard) as file:
                table = file.read()
            schema = frames_schema(table.schema.field("action").type)
            column = table.schema.get_field_index("episode")
            episodes = pa.array(table["episode"].to_numpy() + copy * 10**12)
            table = table.set_column(column, schema.field("episode"), episodes).slice(0, total - rows)
            path = out / f"part-{copy:03d}-{number:05d}.parquet"
            with TableWriter(path, schema, shard.metadata, ROW_GROUP, **writer_options(schema)) as writer:
                writer.write(table.cast(schema))
            rows += len(table)
            if rows == total:
                break
        copy += 1
    return FramesFolder(out)


def rate(read: Callable[[], int]) -> float:
    """Return frames a second of CPU time."""
    begun = time.process_time()
    frames = read()
    return frames / (time.process_time() - begun)


def main(args: Args) -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    print(f"# {machine('pyarrow', 'h5py', 'numpy')}")
    collected = FramesFolder(args.frames)
    frames = collected.load()
    with tempfile.TemporaryDirectory() as scratch:
        folder = copy_until(collected, Path(scratch) / "frames", args.total)
        print(f"# {len(folder):,} frames, copies of {len(frames):,} from {collected.source.env_id}")
        path = Path(scratch) / "frames.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("frames", data=frames, chunks=(1, 64, 64, 3), compression="gzip")
        compare(args, folder, frames, path)


def compare(args: Args, folder: FramesFolder, frames: Any, path: Path) -> None:
    copies = 0
    for shard in folder.shards:
        for group in range(shard.row_groups):
            read = folder.read(shard, group)
            wanted = frames.take(range(copies, copies + len(read)), 0, mode="wrap")
            assert np.array_equal(read, wanted), "a frame changed on its way"
            copies += len(read)
    assert copies == args.total
    with h5py.File(path) as file:
        dataset = file["frames"]
        assert np.array_equal(dataset[()], frames)
        rng = np.random.default_rng(0)
        stream = folder.batches(args.batch_size)
        next(stream)  # fills the buffer

        def parquet() -> int:
            return sum(len(next(stream)) for _ in range(args.batches))

        def hdf5() -> int:
            rows = 0
            for _ in range(args.batches // 20):
                chosen = rng.choice(len(frames), args.batch_size, replace=False)
                batch = np.stack([dataset[index] for index in chosen])
                rows += len(batch)
            return rows

        def in_memory() -> int:
            rows = 0
            for _ in range(args.batches):
                rows += len(frames[rng.choice(len(frames), args.batch_size, replace=False)])
            return rows

        readers = {"HDF5 gzip, chunk 1": hdf5, "frames folder": parquet, "array in memory": in_memory}
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(args.rounds):
            for name, reader in readers.items():
                rates[name].append(rate(reader))
    baseline = statistics.median(rates["HDF5 gzip, chunk 1"])
    print("random-order reads      frames/s      min      max   ratio")
    for name, samples in rates.items():
        median = statistics.median(samples)
        print(
            f"{name:20} {median:11,.0f} {min(samples):8,.0f} {max(samples):8,.0f} {median / baseline:6.1f}x"
        )
    per_frame = [folder.num_bytes / len(folder), path.stat().st_size / len(frames)]
    print(f"bytes/frame: frames folder {per_frame[0]:.0f}, HDF5 {per_frame[1]:.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args, config=(tyro.conf.PositionalRequiredArgs,)))

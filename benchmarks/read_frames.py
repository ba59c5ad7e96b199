"""How fast does training read a folder of a million frames in random order, beside HDF5?

$ latent-obs collect ALE/Pong-v5 --frames 20000 --out pong
$ python benchmarks/read_frames.py pong     # about 2 min on one idle core

The million are copies of the collected frames under new episode numbers. HDF5 holds as many, one
frame a chunk, gzipped, as datasets for reinforcement learning often do, and is read at random
indices, with its index warm and the file in the system's cache, as is the folder. The readers take
turns, and CPU time is compared. Before that, frames must come out of both as they were collected:
all of them from the folder, a random batch of each round from HDF5.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import tyro
from machine import machine

from latent_obs import FramesFolder
from latent_obs.data.parquet import TableWriter
from latent_obs.data.shards import ROW_GROUP, frames_schema, writer_options


@dataclass(frozen=True)
class Args:
    """Compare reading a frames folder in random order with HDF5."""

    frames: Path
    """frames folder to make copies of"""
    total: int = 1_000_000
    batch_size: int = 64
    rounds: int = 9
    batches: int = 1_500
    """batches of the frames folder in a round; HDF5 reads a twentieth of them"""


def copy_until(folder: FramesFolder, out: Path, total: int) -> FramesFolder:
    """Write the shards again and again under new episode numbers until there are ``total`` frames."""
    out.mkdir()
    rows, copy = 0, 0
    while rows < total:
        for number, shard in enumerate(folder.shards):
            with shard.open() as file:
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


def write_hdf5(path: Path, frames: Any, total: int) -> None:
    """Write ``total`` frames, repeating those given, one gzipped chunk each."""
    settings: dict[str, Any] = {"dtype": np.uint8, "chunks": (1, 64, 64, 3), "compression": "gzip"}
    with h5py.File(path, "w") as file:
        once = file.create_dataset("once", (len(frames), 64, 64, 3), **settings)
        once[:] = frames
        chunks = [once.id.read_direct_chunk((i, 0, 0, 0))[1] for i in range(len(frames))]
        dataset = file.create_dataset("frames", (total, 64, 64, 3), **settings)
        for i in range(total):  # copies the compressed chunks rather than compressing again
            dataset.id.write_direct_chunk((i, 0, 0, 0), chunks[i % len(chunks)])


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
        write_hdf5(path, frames, args.total)
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
        rng = np.random.default_rng(0)
        stream = folder.batches(args.batch_size)
        next(stream)  # fills the buffer

        def parquet() -> int:
            return sum(len(next(stream)) for _ in range(args.batches))

        def hdf5() -> int:
            rows = 0
            for _ in range(args.batches // 20):
                chosen = rng.integers(0, args.total, args.batch_size)
                batch = np.stack([dataset[index] for index in chosen])
                rows += len(batch)
            checked.append((chosen, batch))
            return rows

        def in_memory() -> int:
            rows = 0
            for _ in range(args.batches):
                rows += len(frames[rng.choice(len(frames), args.batch_size, replace=False)])
            return rows

        readers = {"HDF5 gzip, chunk 1": hdf5, "frames folder": parquet, "array in memory": in_memory}
        checked: list[tuple[Any, Any]] = []
        rows, seconds = dict.fromkeys(readers, 0), dict.fromkeys(readers, 0.0)
        for _ in range(args.rounds):
            for name, reader in readers.items():
                begun = time.process_time()
                rows[name] += reader()
                seconds[name] += time.process_time() - begun
        for chosen, batch in checked:
            assert np.array_equal(batch, frames[chosen % len(frames)]), "HDF5 changed a frame"
    # Over all rounds: a round reads one or two blocks of the folder, so single ones say little.
    rates = {name: rows[name] / seconds[name] for name in readers}
    print("random-order reads      frames/s   ratio")
    for name, rate in rates.items():
        print(f"{name:20} {rate:11,.0f} {rate / rates['HDF5 gzip, chunk 1']:6.1f}x")
    per_frame = [folder.num_bytes / len(folder), path.stat().st_size / (args.total + len(frames))]
    print(f"bytes/frame: frames folder {per_frame[0]:.0f}, HDF5 {per_frame[1]:.0f}")


if __name__ == "__main__":
    main(tyro.cli(Args, config=(tyro.conf.PositionalRequiredArgs,)))

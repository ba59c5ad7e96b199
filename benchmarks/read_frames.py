"""How fast does training read a folder of a million frames in random order, beside HDF5?

$ latent-obs collect ALE/Pong-v5 --frames 20000 --out pong
$ python benchmarks/read_frames.py pong     # about 2 min on one idle core
$ python benchmarks/read_frames.py pong --grow 100000 1000000 10000000   # about 5 min; 600 MB of disk

The million are copies of the collected frames under new episode numbers. HDF5 holds as many, one
frame a chunk, gzipped, as datasets for reinforcement learning often do, and is read at random
indices, with its index warm and the file in the system's cache, as is the folder. The readers take
turns, and CPU time is compared. Before that, frames must come out of both as they were collected:
all of them from the folder, a random batch of each round from HDF5.

With `--grow`, folders of several sizes are compared instead: what does each call that training and
evaluation make cost, and how much memory, as the folder grows? The baseline decodes every frame, which is
how samples and medians were drawn once. Each size has a process of its own, and before anything is
measured, frames at random places must be those collected.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro
from machine import machine

from latent_obs import CollectConfig, FramesFolder, collect_frames
from latent_obs.data.parquet import TableWriter
from latent_obs.data.shards import ROW_GROUP, frames_schema, writer_options


@dataclass(frozen=True)
class Args:
    """Compare reading a frames folder in random order with HDF5."""

    frames: tyro.conf.Positional[Path | None] = None
    """frames folder to make copies of; default: 20,000 frames of Pong, collected first"""
    total: int = 1_000_000
    batch_size: int = 64
    rounds: int = 9
    batches: int = 1_500
    """batches of the frames folder in a round; HDF5 reads a twentieth of them"""
    grow: tuple[int, ...] = ()
    """sizes of folders to compare with each other, instead of with HDF5"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def copy_until(folder: FramesFolder, out: Path, total: int) -> FramesFolder:
    """Write the shards again and again under new episode numbers until there are ``total`` frames."""
    out.mkdir()
    rows, copy, tables = 0, 0, []
    for shard in folder.shards:
        with shard.open() as file:
            tables.append(file.read())
    while rows < total:
        for number, (shard, table) in enumerate(zip(folder.shards, tables, strict=True)):
            schema = frames_schema(table.schema.field("action").type)
            column = table.schema.get_field_index("episode")
            episodes = pa.array(table["episode"].to_numpy() + copy * 10**12)
            table = table.set_column(column, schema.field("episode"), episodes).slice(0, total - rows)
            path = out / f"copy-{copy:06d}-{number:05d}.parquet"
            with TableWriter(path, schema, shard.metadata, ROW_GROUP, **writer_options(schema)) as writer:
                writer.write(table.cast(schema))
            rows += len(table)
            if rows == total:
                break
        copy += 1
    return FramesFolder(out)


def write_hdf5(path: Path, frames: Any, total: int) -> None:
    """Write ``total`` frames, repeating those given, one gzipped chunk each."""
    import h5py

    settings: dict[str, Any] = {"dtype": np.uint8, "chunks": (1, 64, 64, 3), "compression": "gzip"}
    with h5py.File(path, "w") as file:
        once = file.create_dataset("once", (len(frames), 64, 64, 3), **settings)
        once[:] = frames
        chunks = [once.id.read_direct_chunk((i, 0, 0, 0))[1] for i in range(len(frames))]
        dataset = file.create_dataset("frames", (total, 64, 64, 3), **settings)
        for i in range(total):  # copies the compressed chunks rather than compressing again
            dataset.id.write_direct_chunk((i, 0, 0, 0), chunks[i % len(chunks)])


def main(args: Args) -> None:
    one_core()
    game, count = "ALE/Pong-v5", 20_000
    if args.smallest:
        game, count = "ALE/Breakout-v5", 600  # whose episodes are short
        args = replace(args, frames=None, total=3000, rounds=2, batches=10)
    print(f"# {machine('pyarrow', 'numpy')}")
    with tempfile.TemporaryDirectory() as scratch:
        path = args.frames
        if path is None:
            path = Path(scratch) / "collected"
            collect_frames(CollectConfig(game, path, frames=count, workers=1))
        if args.grow or args.smallest:
            grow(FramesFolder(path), args.grow or (600, 3000), Path(scratch))
        if not args.grow:
            beside_hdf5(args, FramesFolder(path), scratch)


def one_core() -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)


def grow(collected: FramesFolder, sizes: tuple[int, ...], scratch: Path) -> None:
    """Print what each call costs on folders of several sizes."""
    columns: dict[int, dict[str, tuple[float, float]]] = {}
    frames = collected.load()
    for size in sizes:
        folder = copy_until(collected, scratch / str(size), size)
        rows = np.sort(np.random.default_rng(0).integers(0, size, 50))
        assert np.array_equal(folder.take(rows), frames[rows % len(frames)]), "a frame changed on its way"
        print(
            f"# {size:,} frames in {len(folder.shards):,} shards, {folder.num_bytes / size:.0f} bytes/frame"
        )
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            columns[size] = pool.apply(costs, (folder.path,))
    print(f"seconds, peak MiB {'':26}" + "".join(f"{size:>20,}" for size in sizes) + "       ratio")
    for name in columns[sizes[0]]:
        cells = "".join(f"{columns[n][name][0]:12.3f}{columns[n][name][1]:8.0f}" for n in sizes)
        print(f"{name:44}{cells}{columns[sizes[-1]][name][0] / columns[sizes[0]][name][0]:11.1f}x")


def costs(path: Path) -> dict[str, tuple[float, float]]:
    """Return seconds, and the peak of memory so far in MiB, of each call; in a process of its own."""
    one_core()
    before = peak()
    found: dict[str, tuple[float, float]] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        begun = time.process_time()
        result = call()
        found[name] = time.process_time() - begun, peak() - before
        return result

    folder = timed("open", lambda: FramesFolder(path))
    episodes = timed("split by episode", lambda: folder.split(0.1))[0]
    medians = timed("medians", folder.medians)
    timed("sample 4,096 frames", lambda: folder.sample(4096))
    timed("sample 4,096 frames of training episodes", lambda: folder.sample(4096, episodes))
    timed("load an episode", lambda: folder.load(episodes[-1:]))
    batches = folder.batches_and_foreground(64, medians, episodes, buffer_frames=10_000)
    timed("first batch, with a buffer of 10,000", lambda: next(batches))
    timed("decode every frame (baseline)", lambda: decode(folder))
    return found


def decode(folder: FramesFolder) -> None:
    for shard in folder.shards:
        for group in range(shard.row_groups):
            folder.read(shard, group)


def peak() -> float:
    """Return the most memory that this process had so far, in MiB."""
    with open("/proc/self/status") as file:  # getrusage would count the process that started this one
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def beside_hdf5(args: Args, collected: FramesFolder, scratch: str) -> None:
    """Compare reading in random order with HDF5 and with an array in memory."""
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        message = f"this comparison needs h5py: pip install h5py ({error})"
        sys.exit(print(f"skipped: {message}") if args.smallest else f"error: {message}")
    frames = collected.load()
    folder = copy_until(collected, Path(scratch) / "frames", args.total)
    print(f"# {len(folder):,} frames, copies of {len(frames):,} from {collected.source.env_id}")
    path = Path(scratch) / "frames.h5"
    write_hdf5(path, frames, args.total)
    compare(args, folder, frames, path)


def compare(args: Args, folder: FramesFolder, frames: Any, path: Path) -> None:
    import h5py

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
            for _ in range(max(1, args.batches // 20)):
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
    main(tyro.cli(Args))

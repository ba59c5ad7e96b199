"""Does encoding a folder run at the speed of the encoder?

$ latent-obs collect ALE/Pong-v5 --frames 20000 --out pong
$ python benchmarks/encode_folder.py pong     # about 1 min on one idle core
$ python benchmarks/encode_folder.py pong --grow 10000000     # about 6 min; 3 GB of disk

The baseline encodes the same number of frames that lie in memory, batch by batch, keeping nothing. Encoding
the folder reads, encodes and writes. Both run on one thread and take turns, and CPU time is
compared. Before that, every latent in the folder must equal the encoder's.

With `--grow`, copies of the frames under new episode numbers are encoded instead, as many as that, by the
command `latent-obs encode`, which is killed when half of the shards are done, and given again. Its memory is
printed, beside that of encoding the frames once. At the end each file must hold the latents of the frames of
which it is a copy, and those that were there before the kill must not have been written again.
"""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro
from machine import machine
from read_frames import copy_until

from latent_obs import (
    CollectConfig,
    EncodeConfig,
    FramesFolder,
    LatentsFolder,
    collect_frames,
    encode_frames,
    load_encoder,
)


@dataclass(frozen=True)
class Args:
    """Compare encoding a frames folder with encoding frames in memory."""

    frames: tyro.conf.Positional[Path | None] = None
    """frames folder; default: 20,000 frames of Pong, collected first"""
    encoder: str = "pong-v0"
    rounds: int = 5
    grow: int | None = None
    """encode so many frames, and look at the memory that it takes"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def main(args: Args) -> None:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    count = 20_000
    if args.smallest:
        count, args = 300, replace(args, frames=None, rounds=1)
    with tempfile.TemporaryDirectory() as scratch:
        path = args.frames
        if path is None:
            path = Path(scratch) / "frames"
            collect_frames(CollectConfig("ALE/Pong-v5", path, frames=count, workers=1))
        if args.grow or args.smallest:
            grow(FramesFolder(path), args.encoder, args.grow or 3000, Path(scratch))
        if args.grow:
            return
        folder, encoder = FramesFolder(path), load_encoder(args.encoder)
        frames = folder.load()
        starts = range(0, len(frames), 64)

        def encode_folder(name: str) -> Path:
            out = Path(scratch) / name
            encode_frames(EncodeConfig(path, args.encoder, out, num_threads=1), progress=False)
            return out

        found = LatentsFolder(encode_folder("check"))
        means = np.concatenate([episode.mean for episode in found.episodes()])
        wanted = np.concatenate([encoder.posterior(frames[i : i + 64])[0] for i in starts])
        assert len(means) == len(frames)
        assert np.allclose(means, wanted, atol=1e-5), "the folder's latents are not the encoder's"
        size = sum(file.stat().st_size for file in found.files) / len(found)
        print(f"# {machine('openvino', 'pyarrow')}")
        print(f"# {len(frames):,} frames, {args.encoder} in {encoder.precision}, {size:.0f} bytes/latent")
        seconds: dict[str, list[float]] = {"in memory": [], "folder": []}
        for number in range(args.rounds):
            begun = time.process_time()
            for i in starts:
                encoder.posterior(frames[i : i + 64])
            seconds["in memory"].append(time.process_time() - begun)
            begun = time.process_time()
            encode_folder(str(number))
            seconds["folder"].append(time.process_time() - begun)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:10} {len(frames) / median:10,.0f} frames/s")
    print(f"folder / in memory: {medians['in memory'] / medians['folder']:.2f} of the speed")


def grow(collected: FramesFolder, encoder: str, total: int, scratch: Path) -> None:
    """Encode many copies of a folder with a kill in the midst, and print the memory that it takes."""
    folder = copy_until(collected, scratch / "grown", total)
    shards = len(folder.shards)
    print(f"# {machine('openvino', 'pyarrow')}")
    print(f"# {total:,} frames in {shards:,} shards, {encoder}")
    once, out = scratch / "once", scratch / "latents"
    staging = out.with_name(f".{out.name}.tmp")
    _, alone = watch(start(collected.path, encoder, once), once.with_name(".once.tmp"), len(collected.shards))
    print(f"{len(collected):,} frames: {max(held for _, held in alone):.0f} MiB at most")
    killed, before = watch(start(folder.path, encoder, out), staging, shards // 2)
    killed.kill()
    killed.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in staging.glob("*.parquet")}
    process, after = watch(start(folder.path, encoder, out), staging, shards)
    assert process.wait() == 0, "it failed"
    print(f"{total:,} frames, killed with {len(kept):,} files; MiB at most in each tenth:")
    for name, held in (("before", before), ("after", after)):
        tenths = itertools.groupby(held, lambda row: min(10 * row[0] // shards, 9))
        cells = (f"{max(row[1] for row in rows):.0f} (from {10 * tenth}%)" for tenth, rows in tenths)
        print(f"{name}: {', '.join(cells)}")
    wanted = [table["mean"].combine_chunks() for table in LatentsFolder(once).tables(["mean"])]
    found = LatentsFolder(out)
    assert len(found) == total
    for file, table in zip(found.files, found.tables(["mean"]), strict=True):
        mean = table["mean"].combine_chunks()
        number = int(file.stem.rpartition("-")[2])
        assert mean.equals(wanted[number][: len(mean)]), f"{file} holds other latents"
        assert kept.get(file.name, file.stat().st_mtime_ns) == file.stat().st_mtime_ns, (
            f"{file} was made twice"
        )


def start(frames: object, encoder: str, out: Path) -> subprocess.Popen[bytes]:
    words = ["encode", str(frames), encoder, "--out", str(out), "--num-threads", "1"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen([sys.executable, "-m", "latent_obs", *words], stdout=quiet, stderr=quiet)


def watch(
    process: subprocess.Popen[bytes], staging: Path, files: int
) -> tuple[subprocess.Popen[bytes], list[tuple[int, float]]]:
    """Wait for so many files or the end; return how many there were and the resident MiB, again and again."""
    begun, seen = time.monotonic(), list[tuple[int, float]]()
    while process.poll() is None:
        done = sum(1 for _ in staging.glob("*.parquet"))
        status = Path(f"/proc/{process.pid}/status").read_text()
        held = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
        if done and seen and not seen[-1][0]:
            print(f"first file after {time.monotonic() - begun:.1f} s")
        if held and staging.exists():  # until it is renamed
            seen.append((done, held[0]))
        if done >= files:
            break
        time.sleep(0.05 if files < 100 else 1)  # listing many files takes time too
    return process, seen


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Does encoding a folder run at the speed of the encoder?

$ latent-obs collect ALE/Pong-v5 --frames 20000 --out pong
$ python benchmarks/encode_folder.py pong     # about 1 min on one idle core

The baseline encodes the same number of frames that lie in memory, batch by batch, keeping nothing. Encoding
the folder reads, encodes and writes. Both run on one thread and take turns, and CPU time is
compared. Before that, every latent in the folder must equal the encoder's.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import tyro
from machine import machine

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


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Runs a quantised encoder in the compiled kernel, ``_encode.c``, where a C compiler has built it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from latent_obs.encoders.folder import Latents
from latent_obs.encoders.quantise import Quantised
from latent_obs.frames import Frames

try:
    from latent_obs import _encode
except ImportError:  # it is optional, as _area is
    _encode = None  # type: ignore[assignment]

# A thread is worth its start for this many frames.
FRAMES_PER_THREAD = 8


def paths() -> list[str]:
    """Name the kernel's ways of computing on this CPU, the fastest first; none without the kernel.

    All give the same bits.
    """
    return [] if _encode is None else _encode.paths()


def compile_kernel(
    quantised: Quantised, num_threads: int = 1, path: str | None = None
) -> Callable[[Frames], Latents]:
    """Return a function that encodes batches of any size, ``uint8`` (N, 64, 64, 3).

    Threads may call it at the same time.

    Args:
        quantised: The encoder in integers.
        num_threads: Threads that share a large batch.
        path: One of :func:`paths`; default: the first.

    Raises:
        ValueError: If this CPU does not have the path.
    """

    def flat(arrays: Sequence[Any]) -> Any:
        return np.concatenate([array.ravel() for array in arrays])

    network = _encode.prepare(
        quantised.channels,
        flat(quantised.weight),
        flat(quantised.bias),
        flat(quantised.multiplier),
        quantised.head,
        quantised.scale,
        quantised.offset,
        quantised.background,
        path or _encode.paths()[0],
    )
    outputs = len(quantised.scale)
    pool: list[ThreadPoolExecutor] = []  # begun when it is needed

    def encode(batch: Frames) -> Latents:
        frames = np.ascontiguousarray(batch)
        latents = np.empty((len(frames), outputs), np.float32)
        if num_threads == 1 or len(frames) < 2 * FRAMES_PER_THREAD:
            _encode.encode(network, frames, latents)
            return latents
        parts = min(num_threads, len(frames) // FRAMES_PER_THREAD)
        if not pool:
            pool.append(ThreadPoolExecutor(num_threads))
        cuts = [len(frames) * part // parts for part in range(parts + 1)]
        work = [
            pool[0].submit(_encode.encode, network, frames[begin:end], latents[begin:end])
            for begin, end in itertools.pairwise(cuts)
        ]
        for done in work:
            done.result()
        return latents

    return encode

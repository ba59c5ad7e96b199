"""How much faster is the compiled resize than cv2's?

$ python benchmarks/resize.py     # about 5 s on 2 cores

The script first asserts that both give the same frames. Then they resize the same noise in turns, in one
thread, so that other work on the machine slows both alike.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
import tyro
from machine import machine

try:
    from latent_obs import _area
except ImportError:  # there was no C compiler when latent_obs was installed
    _area = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Args:
    """Compare the compiled resize to cv2's INTER_AREA."""

    repeats: int = 1_000
    """resizes of each size by each"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def with_cv2(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def compiled(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    frame = np.empty((64, 64, 3), np.uint8)
    _area.resize(image, frame)
    return frame


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, repeats=5)
    if _area is None:
        message = "latent_obs was installed without a C compiler, so there is no compiled resize to time."
        sys.exit(print(f"skipped: {message}") if args.smallest else f"error: {message}")
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    print(f"# {machine('numpy', 'opencv-python')}")
    print("size     resize    us/frame    p10    p90   cv2 / ours")
    for height, width in [(210, 160), (96, 96), (240, 320), (128, 128)]:
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        np.testing.assert_array_equal(compiled(image), with_cv2(image))
        times = np.empty((args.repeats, 2))
        for row in times:
            for column, resize in enumerate((with_cv2, compiled)):
                begun = time.perf_counter()
                resize(image)
                row[column] = (time.perf_counter() - begun) * 1e6
        ratio = np.median(times[:, 0]) / np.median(times[:, 1])
        for column, name in enumerate(("cv2", "compiled")):
            low, median, high = np.percentile(times[:, column], [10, 50, 90])
            end = f"{ratio:9.1f}x" if name == "compiled" else ""
            print(f"{height}x{width:<4} {name:9} {median:8.1f} {low:6.1f} {high:6.1f}   {end}")


if __name__ == "__main__":
    main(tyro.cli(Args))

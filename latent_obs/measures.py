"""Measures of reconstructions and latents, whatever made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import ACTIVE_VARIANCE
from latent_obs.frames import Frames

# A reconstruction below a rounding error is as good as exact (1/12 level^2).
MIN_MSE = 1 / 12
# Of the latents' means, in training standard deviations: a tenth or two between held-out episodes.
MAX_SHIFT = 0.5
MAX_SPREAD = 1.5

# A colour is rare, to the full, where its bin has at most this share of all pixels.
RARE_SHARE = 1 / 2000

Decode = Callable[[Frames], Frames]


@dataclass(frozen=True)
class Foreground:
    """What stands still in some frames, and how much of each does not.

    Attributes:
        median: The per-pixel median frame, shape (64, 64, 3).
        share: For each frame, the share of its pixels that differ from the median, shape (N,).
        rarity: How rare each colour is in them, as :func:`color_rarity` tells.
        usual: Which frames are no flash: their share is at most a half, or a half is usual; shape (N,).
    """

    median: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    rarity: npt.NDArray[np.float32]
    usual: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, frames: Frames) -> Foreground:
        """Find it."""
        median = np.median(frames, 0)
        share = foreground_share(frames, median)
        return cls(median, share, color_rarity(frames), usual_frames(share))


def reconstruction_metrics(
    frames: Frames, decoded: Decode, foreground: Foreground | None = None
) -> dict[str, float]:
    """Measure reconstructions of frames.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        decoded: Returns the reconstructions of some of them.
        foreground: Theirs, where it is known already.

    Returns:
        ``psnr``, ``moving_r2``, ``rare_r2`` and ``foreground``, as in
        :func:`latent_obs.evaluation.evaluate.evaluate_vae`.
    """
    known = foreground or Foreground.of(frames)
    residual = energy = squared = rare_residual = rare_energy = 0.0
    for start in range(0, len(frames), 256):
        batch = frames[start : start + 256].astype(np.float32)
        error = np.square(decoded(frames[start : start + 256]).astype(np.float32) - batch)
        usual = known.usual[start : start + 256, None, None]
        moving = (batch != known.median).any(-1) & usual
        rare = (known.rarity[color_bins(frames[start : start + 256].astype(np.int64))] == 1) & usual
        squared += float(error.sum(dtype=np.float64))
        residual += float(error[moving].sum(dtype=np.float64))
        distance = np.square(batch - known.median)
        energy += float(distance[moving].sum(dtype=np.float64))
        rare_residual += float(error[rare].sum(dtype=np.float64))
        rare_energy += float(distance[rare].sum(dtype=np.float64))
    mse = max(squared / frames.size, MIN_MSE)
    return {
        "psnr": 10 * math.log10(255**2 / mse),
        "moving_r2": 1 - residual / energy if energy else 1.0,
        "rare_r2": 1 - rare_residual / rare_energy if rare_energy else 1.0,
        "foreground": float(known.share[known.usual].mean()),
    }


def color_rarity(frames: Frames) -> npt.NDArray[np.float32]:
    """Tell how rare each colour is among the pixels of some frames.

    What is small and seldom seen, such as a monster in front of walls, mostly has colours that little else
    has, wherever the camera looks.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).

    Returns:
        For each of :func:`color_bins` a number in (0, 1]: 1 for colours of at most one pixel in 2,000,
        falling with the share of those more common; shape (512,).

    Example:
        >>> frames = np.zeros((100, 64, 64, 3), np.uint8)
        >>> frames[0, :4, :4] = 255  # 16 of 409,600 pixels
        >>> rarity = color_rarity(frames)
        >>> round(float(rarity[0]), 4), float(rarity[511])
        (0.0005, 1.0)
    """
    counts = np.zeros(512, np.int64)
    for start in range(0, len(frames), 256):
        counts += np.bincount(color_bins(frames[start : start + 256].astype(np.int64)).ravel(), minlength=512)
    rarity: npt.NDArray[np.float32] = RARE_SHARE / np.maximum(counts / max(counts.sum(), 1), RARE_SHARE)
    return rarity.astype(np.float32)


def color_bins(frames: Any) -> Any:
    """Return the number of each pixel's colour, three bits a channel.

    Args:
        frames: Levels 0 to 255, shape (N, 64, 64, 3); an array or a tensor of integers wider than a byte.

    Returns:
        Of the same kind, in [0, 511], shape (N, 64, 64).

    Example:
        >>> int(color_bins(np.array([[[[255, 0, 32]]]]))[0, 0, 0])
        449
    """
    levels = frames >> 5
    return levels[..., 0] * 64 + levels[..., 1] * 8 + levels[..., 2]


def changing_r2(stretches: Sequence[Frames], decoded: Decode) -> float:
    """Measure reconstructions of what changes from frame to frame.

    Unlike ``moving_r2`` it needs no still background, so it holds under a moving camera.

    Args:
        stretches: Consecutive frames of an episode each, ``uint8`` of shape (N, 64, 64, 3).
        decoded: Returns the reconstructions of some of them.

    Returns:
        1 - residual energy / energy of the change, over the pixels that differ from the previous
        frame. 0 means that decoding is no better than showing the previous frame. Frames that
        differ from it in more than half of their pixels are left out where they are the exception.
    """
    pairs = [(stretch[:-1], stretch[1:]) for stretch in stretches if len(stretch) > 1]
    if not pairs:
        return 1.0
    share = np.concatenate([(now != before).any(-1).mean((1, 2)) for before, now in pairs])
    usual, row = usual_frames(share), 0
    residual = energy = 0.0
    for before, now in pairs:
        for start in range(0, len(now), 256):
            batch, last = (part[start : start + 256].astype(np.float32) for part in (now, before))
            changed = (batch != last).any(-1) & usual[row : row + len(batch), None, None]
            row += len(batch)
            error = np.square(decoded(now[start : start + 256]).astype(np.float32) - batch)
            residual += float(error[changed].sum(dtype=np.float64))
            energy += float(np.square(batch - last)[changed].sum(dtype=np.float64))
    return 1 - residual / energy if energy else 1.0


def usual_frames(share: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mark frames with at most half of foreground, or all where half is usual."""
    return share <= 0.5 if np.median(share) <= 0.5 else np.ones(len(share), bool)


def moving_residual(frames: Frames, decoded: Frames) -> npt.NDArray[np.float64]:
    """Return each frame's residual energy over its moving pixels, shape (N,); 0 for a flash."""
    known = Foreground.of(frames)
    residual = np.zeros(len(frames))
    for i in np.flatnonzero(known.usual):
        moving = (frames[i] != known.median).any(-1)
        residual[i] = np.square(frames[i][moving].astype(np.float64) - decoded[i][moving]).sum()
    return residual


def foreground_share(frames: Frames, median: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return, for each frame, the share of its pixels that differ from ``median``; shape (N,)."""
    return np.array([(frame != median).any(-1).mean() for frame in frames])


def compare_latents(trained: dict[str, list[float]], here: dict[str, list[float]]) -> dict[str, Any]:
    """Compare the latents' statistics with those over the training frames.

    Args:
        trained: ``mean``, ``std`` and ``kl`` of each dimension over the training frames.
        here: The same over other frames.

    Returns:
        ``dimensions``, a list with the six figures of each dimension, the ``shift`` of its mean in
        training standard deviations and the ``spread``, the ratio of its standard deviations; and
        ``drift``: root mean square ``shift`` and geometric mean ``spread`` over the active
        dimensions, and whether they are ``drifted`` from what the encoder knows.
    """
    keys = ("mean", "std", "kl")
    mean0, std0, kl0, mean, std, kl = (np.array(v[k]) for v in (trained, here) for k in keys)
    shift = (mean - mean0) / np.maximum(std0, 1e-6)
    spread = std / np.maximum(std0, 1e-6)
    active = std0**2 > ACTIVE_VARIANCE
    rms = float(np.sqrt(np.mean(shift[active] ** 2))) if active.any() else 0.0
    ratio = float(np.exp(np.mean(np.log(np.maximum(spread[active], 1e-6))))) if active.any() else 1.0
    drifted = rms > MAX_SHIFT or not 1 / MAX_SPREAD < ratio < MAX_SPREAD
    names = ("kl", "mean", "std", "trained_kl", "trained_mean", "trained_std", "shift", "spread")
    rows = np.stack([kl, mean, std, kl0, mean0, std0, shift, spread], 1).tolist()
    return {
        "dimensions": [dict(zip(names, row, strict=True)) for row in rows],
        "drift": {"shift": rms, "spread": ratio, "drifted": drifted},
    }

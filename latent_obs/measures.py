"""Measures of reconstructions and latents, whatever made them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import ACTIVE_VARIANCE
from latent_obs.frames import FRAME_BYTES, Frames

# Rounding to 8 bits has a mean squared error of 1/12 level^2: a smaller one counts as that much.
MIN_MSE = 1 / 12
# Latents that moved or widened by more than this have drifted. Between held-out episodes of one game, means
# differ by 0.1 to 0.2 training standard deviations.
MAX_SHIFT = 0.5
MAX_SPREAD = 1.5

# A colour is rare if its bin holds at most this share of all pixels.
RARE_SHARE = 1 / 2000

Decode = Callable[[Frames], Frames]


@dataclass(frozen=True)
class Foreground:
    """What stands still in some frames, and how much of each frame does not.

    Attributes:
        median: The per-pixel median frame, shape (64, 64, 3).
        share: For each frame, the share of its pixels that differ from the median, shape (N,).
        rarity: How rare each colour is among the frames' pixels, as :func:`color_rarity` returns it.
        usual: Which frames count. A frame that differs from the median in more than half of its pixels (a
            flash, another scene) does not, unless most frames do; shape (N,).
    """

    median: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    rarity: npt.NDArray[np.float32]
    usual: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, frames: Frames) -> Foreground:
        """Find what stands still in ``frames``, ``uint8`` of shape (N, 64, 64, 3)."""
        median = np.median(frames, 0)
        share = foreground_share(frames, median)
        return cls(median, share, color_rarity(frames), usual_frames(share))

    def mean_share(self) -> float:
        """Return the share of pixels that differ from the median, over the frames that count."""
        return float(self.share[self.usual].mean())


@dataclass(frozen=True)
class Residuals:
    """Squared errors of reconstructions, frame by frame, and the energy of what had to be shown.

    Energies are sums over pixels and channels, in squared levels (0 to 255), of shape (N,).

    Attributes:
        squared: Squared error over all pixels.
        moving: Squared error over the pixels that differ from the median frame; 0 for a frame that is not
            ``usual``, like the next three.
        moving_energy: Squared difference of those pixels from the median frame.
        rare: Squared error over the pixels whose colour is rare.
        rare_energy: Squared difference of those pixels from the median frame.
    """

    squared: npt.NDArray[np.float64]
    moving: npt.NDArray[np.float64]
    moving_energy: npt.NDArray[np.float64]
    rare: npt.NDArray[np.float64]
    rare_energy: npt.NDArray[np.float64]

    @classmethod
    def of(cls, frames: Frames, decoded: Decode, foreground: Foreground) -> Residuals:
        """Reconstruct frames, and measure.

        Args:
            frames: ``uint8``, shape (N, 64, 64, 3).
            decoded: Returns the reconstructions of some of them.
            foreground: What stands still in them.
        """
        sums = np.zeros((5, len(frames)))
        for start in range(0, len(frames), 256):
            rows = slice(start, start + 256)
            batch = frames[rows].astype(np.float32)
            error = np.square(decoded(frames[rows]).astype(np.float32) - batch).sum(-1)
            distance = np.square(batch - foreground.median).sum(-1)
            usual = foreground.usual[rows, None, None]
            moving = (batch != foreground.median).any(-1) & usual
            rare = (foreground.rarity[color_bins(frames[rows])] == 1) & usual
            pixels = (error, error * moving, distance * moving, error * rare, distance * rare)
            sums[:, rows] = [part.sum((1, 2), dtype=np.float64) for part in pixels]
        return cls(*sums)

    def moving_r2(self) -> float:
        """Return 1 - residual energy / energy over what moves; 1 where nothing moves."""
        return _r2(self.moving.sum(), self.moving_energy.sum())

    def rare_r2(self) -> float:
        """Return the same over rare colours."""
        return _r2(self.rare.sum(), self.rare_energy.sum())

    def psnr(self) -> float:
        """Return the peak signal-to-noise ratio in dB."""
        mse = self.squared.mean() / FRAME_BYTES
        return 10 * math.log10(255**2 / max(mse, MIN_MSE))

    def metrics(self, foreground: Foreground) -> dict[str, float]:
        """Return ``psnr``, ``moving_r2``, ``rare_r2`` and, of the frames themselves, ``foreground``."""
        return {
            "psnr": self.psnr(),
            "moving_r2": self.moving_r2(),
            "rare_r2": self.rare_r2(),
            "foreground": foreground.mean_share(),
        }

    def moving_r2_by_episode(self, episodes: npt.NDArray[np.int64]) -> list[float]:
        """Return :meth:`moving_r2` of each episode in which anything moves, in order of their numbers.

        Args:
            episodes: Number of each frame's episode, shape (N,).
        """
        _, places = np.unique(episodes, return_inverse=True)
        residual, energy = (np.bincount(places, part) for part in (self.moving, self.moving_energy))
        return [_r2(*pair) for pair in zip(residual, energy, strict=True) if pair[1]]


def reconstruction_metrics(frames: Frames, decoded: Decode) -> dict[str, float]:
    """Measure reconstructions of frames.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        decoded: Returns the reconstructions of some of them.

    Returns:
        ``psnr``, ``moving_r2``, ``rare_r2`` and ``foreground``, as in
        :func:`latent_obs.training.held_out.evaluate_vae`.
    """
    foreground = Foreground.of(frames)
    return Residuals.of(frames, decoded, foreground).metrics(foreground)


def total_r2(parts: Sequence[tuple[float, float]]) -> float:
    """Return 1 - residual energy / energy, each summed over parts that have both; 1 without any energy."""
    return _r2(sum(residual for residual, _ in parts), sum(energy for _, energy in parts))


def _r2(residual: float, energy: float) -> float:
    return float(1 - residual / energy) if energy else 1.0


def color_rarity(frames: Frames) -> npt.NDArray[np.float32]:
    """Return how rare each colour is among the pixels of some frames.

    A small object that is seldom seen, such as a monster in front of walls, mostly has colours that little
    else in the frames has, wherever the camera looks.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).

    Returns:
        A number in (0, 1] for each of the colours that :func:`color_bins` tells apart, shape (512,): 1 for
        a colour of at most one pixel in 2,000, and 1/2,000 over its share of the pixels for any other.

    Example:
        >>> frames = np.zeros((100, 64, 64, 3), np.uint8)
        >>> frames[0, :4, :4] = 255  # 16 of 409,600 pixels
        >>> rarity = color_rarity(frames)
        >>> round(float(rarity[0]), 4), float(rarity[511])
        (0.0005, 1.0)
    """
    counts = np.zeros(512, np.int64)
    for start in range(0, len(frames), 256):
        counts += np.bincount(color_bins(frames[start : start + 256]).ravel(), minlength=512)
    rarity: npt.NDArray[np.float32] = RARE_SHARE / np.maximum(counts / max(counts.sum(), 1), RARE_SHARE)
    return rarity.astype(np.float32)


def color_bins(frames: Any) -> Any:
    """Return the number of each pixel's colour, three bits a channel.

    Args:
        frames: Levels 0 to 255, shape (N, 64, 64, 3); an array or a tensor of any integers.

    Returns:
        Numbers in [0, 511], shape (N, 64, 64): ``int64`` of bytes, else integers of the given type.

    Example:
        >>> int(color_bins(np.array([[[[255, 0, 32]]]], np.uint8))[0, 0, 0])
        449
    """
    levels = frames >> 5
    if levels.itemsize == 1:  # 7 * 64 does not fit into a byte
        levels = levels.astype(np.int64) if isinstance(levels, np.ndarray) else levels.long()
    return levels[..., 0] * 64 + levels[..., 1] * 8 + levels[..., 2]


def changing_r2(stretches: Sequence[Frames], decoded: Decode) -> float:
    """Measure reconstructions of what changes from frame to frame.

    Unlike ``moving_r2`` this measure needs no still background, so it holds under a moving camera.

    Args:
        stretches: Of each of several episodes some consecutive frames, ``uint8`` of shape (N, 64, 64, 3).
        decoded: Returns the reconstructions of some of them.

    Returns:
        1 - residual energy / energy of the change, over the pixels that differ from the previous
        frame. 0 means that decoding is no better than showing the previous frame. Frames that
        differ from the previous one in more than half of their pixels are left out, unless most do. 1 where
        nothing changes.
    """
    return total_r2(changing_residuals(stretches, decoded))


def changing_residuals(stretches: Sequence[Frames], decoded: Decode) -> list[tuple[float, float]]:
    """Return what :func:`changing_r2` compares, stretch by stretch.

    Args:
        stretches: As :func:`changing_r2` takes them.
        decoded: Returns the reconstructions of some of them.

    Returns:
        Residual energy and energy of the change of each stretch, in squared levels.
    """
    pairs = [(stretch[:-1], stretch[1:]) for stretch in stretches]
    parts = ((now != before).any(-1).mean((1, 2)) for before, now in pairs)
    share = np.concatenate([np.empty(0), *parts])
    usual, row, sums = usual_frames(share), 0, []
    for before, now in pairs:
        residual = energy = 0.0
        for start in range(0, len(now), 256):
            batch, last = (part[start : start + 256].astype(np.float32) for part in (now, before))
            changed = (batch != last).any(-1) & usual[row : row + len(batch), None, None]
            row += len(batch)
            error = np.square(decoded(now[start : start + 256]).astype(np.float32) - batch)
            residual += float(error[changed].sum(dtype=np.float64))
            energy += float(np.square(batch - last)[changed].sum(dtype=np.float64))
        sums.append((residual, energy))
    return sums


def usual_frames(share: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mark the frames whose ``share`` of foreground is at most a half, or all frames if most exceed it."""
    return share <= 0.5 if len(share) and np.median(share) <= 0.5 else np.ones(len(share), bool)


def foreground_share(frames: Frames, median: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return, for each frame, the share of its pixels that differ from ``median``; shape (N,)."""
    return np.array([(frame != median).any(-1).mean() for frame in frames])


@dataclass(frozen=True)
class Dimension:
    """One latent dimension over the frames measured, beside the same over the training frames.

    Attributes:
        kl: Mean KL divergence in nats.
        mean: Mean of the latent.
        std: Standard deviation of the latent.
        trained_kl: ``kl`` over the training frames.
        trained_mean: ``mean`` over the training frames.
        trained_std: ``std`` over the training frames.
        shift: Difference of the means in standard deviations over the training frames.
        spread: Standard deviation here over that of training.
    """

    kl: float
    mean: float
    std: float
    trained_kl: float
    trained_mean: float
    trained_std: float
    shift: float
    spread: float


@dataclass(frozen=True)
class Drift:
    """How far the latents of some frames are from those of the training frames.

    Attributes:
        shift: Root mean square of the active dimensions' ``shift``.
        spread: Geometric mean of their ``spread``.
        drifted: Whether ``shift`` exceeds 0.5 or ``spread`` leaves 2/3 to 1.5.
    """

    shift: float
    spread: float
    drifted: bool


def compare_latents(
    trained: Mapping[str, list[float]], here: Mapping[str, list[float]]
) -> tuple[tuple[Dimension, ...], Drift]:
    """Compare the latents' statistics with those over the training frames.

    Args:
        trained: ``mean``, ``std`` and ``kl`` of each dimension over the training frames.
        here: The same over other frames.

    Returns:
        Each dimension, and how far the active ones have drifted.
    """
    keys = ("mean", "std", "kl")
    mean0, std0, kl0, mean, std, kl = (np.array(v[k]) for v in (trained, here) for k in keys)
    shift = (mean - mean0) / np.maximum(std0, 1e-6)
    spread = std / np.maximum(std0, 1e-6)
    active = std0**2 > ACTIVE_VARIANCE
    rms = float(np.sqrt(np.mean(shift[active] ** 2))) if active.any() else 0.0
    ratio = float(np.exp(np.mean(np.log(np.maximum(spread[active], 1e-6))))) if active.any() else 1.0
    drifted = rms > MAX_SHIFT or not 1 / MAX_SPREAD < ratio < MAX_SPREAD
    columns = np.stack([kl, mean, std, kl0, mean0, std0, shift, spread], 1).tolist()
    return tuple(Dimension(*row) for row in columns), Drift(rms, ratio, drifted)

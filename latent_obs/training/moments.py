"""Image moments of what moves, by colour: targets that hold some dimensions of the latent to places.

A VAE keeps where an object is, but may curl it up, so that no linear reader finds it. The size and the centre
of mass of each colour that moves take no training; dimensions trained to equal them stay readable, and the
decoder and the ELBO use them like all others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latent_obs.frames import Frame, Frames
from latent_obs.measures import color_bins

# A pixel moves if one of its channels is this many levels off the median frame.
THRESHOLD = 24
# So many colours are told apart; an object of several colours is found by each of them.
COLORS = 5
# A pixel that moves in fewer frames than this counts as if it moved in so many.
MIN_OCCUPANCY = 0.01
# A moment that the chosen ones predict linearly but for this share of its variance brings nothing new.
MIN_VARIANCE = 0.2
# A moment over all pixels alike is exact, so it is preferred to a weighted one that tells a little more.
PREFERENCE = 1.3
# Standard deviation of the target around the posterior mean, in standard deviations of the moment.
DEVIATION = 0.15
LIMIT = 4.0  # standard deviations beyond which a moment is an outlier


class ImageMoments:
    """Log mass and centre of the moving pixels of each colour, chosen so that none is linear in the others.

    Each is taken twice: over all pixels alike, and with each pixel weighted by how seldom it moves, which
    tells a ball from a score that shares its colour.

    Args:
        frames: Frames of one environment to choose colours and moments on, ``uint8`` (N, 64, 64, 3).
        median: Their per-pixel median, ``uint8`` of shape (64, 64, 3): what stands still.
        count: How many moments are wanted at most.

    Attributes:
        names: What each chosen moment is, such as ``"x of the colour (236, 236, 236)"``.

    Example:
        >>> frames = np.zeros((100, 64, 64, 3), np.uint8)
        >>> frames[np.arange(100), 20, np.arange(100) % 60] = 255  # a dot that runs to the right
        >>> moments = ImageMoments(frames, np.zeros((64, 64, 3), np.uint8), count=4)
        >>> moments.names[0]
        'x of the colour (240, 240, 240)'
        >>> tuple(moments(torch.from_numpy(frames[:7])).shape)
        (7, 2)

    Source: Hu (1962), "Visual pattern recognition by moment invariants".
    """

    def __init__(self, frames: Frames, median: Frame, count: int) -> None:
        self._median = torch.from_numpy(median.astype(np.int16))
        moves = self._moves(torch.from_numpy(frames)).numpy()
        centers = _main_colors(frames, moves)
        levels = _levels(np.arange(512))
        self._color_of = torch.from_numpy(np.square(levels[:, None] - centers).sum(2).argmin(1))
        self._colors = len(centers)
        rarity = 1 / np.maximum(moves.mean(0), MIN_OCCUPANCY)
        y, x = np.mgrid[:64, :64] / 31.5 - 1
        plain = np.stack([np.ones((64, 64)), x, y])
        weights = np.stack([plain, plain * rarity / rarity.mean()])  # (2, 3, 64, 64)
        self._weights = torch.from_numpy(weights.reshape(6, -1).T.astype(np.float32).copy())
        values = self._all(torch.from_numpy(frames))
        self._mean, self._std = values.mean(0), values.std(0)
        self._chosen = _independent(values, count)
        self.names = [_name(i, centers) for i in self._chosen]

    def __call__(self, frames: Tensor) -> Tensor:
        """Return the chosen moments of frames, in standard deviations; float32, shape (N, len(names))."""
        values = self._all(frames.cpu())[:, self._chosen]
        scaled = (values - self._mean[self._chosen]) / self._std[self._chosen]
        return scaled.clamp(-LIMIT, LIMIT).to(frames.device)

    def nll(self, mean: Tensor, frames: Tensor) -> Tensor:
        """Return -log p(moments | posterior mean) but for a constant, in nats per frame, shape (N,).

        Args:
            mean: Mean of the posterior, shape (N, latent_dim); its first dimensions stand for the moments.
            frames: ``uint8``, shape (N, 64, 64, 3).
        """
        off = mean[:, : len(self.names)] - self(frames)
        return off.square().sum(1) / (2 * DEVIATION**2)

    def _moves(self, frames: Tensor) -> Tensor:
        return (frames.short() - self._median).abs().amax(-1) > THRESHOLD

    def _all(self, frames: Tensor) -> Tensor:
        """Return log mass, x and y of each colour, plain and weighted, shape (N, colours * 6)."""
        parts = []
        for some in torch.split(frames, 256):
            rows, pixels = self._moves(some).flatten(1).nonzero(as_tuple=True)
            color = self._color_of[color_bins(some.flatten(1, 2)[rows, pixels].int()[None])[0].long()]
            sums = torch.zeros(len(some) * self._colors, 6)
            sums.index_add_(0, rows * self._colors + color, self._weights[pixels])
            mass, x, y = sums.view(-1, 2, 3).unbind(-1)
            shown = mass > 0  # a colour that is not there counts as in the middle
            x, y = (torch.where(shown, each / mass.clamp(min=1e-6), 0.0) for each in (x, y))
            parts.append(torch.stack([mass.log1p(), x, y], -1).view(len(some), -1))
        return torch.cat(parts)


def _main_colors(frames: Frames, moves: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Cluster the colours of moving pixels with k-means; levels of the centres, shape (at most 5, 3)."""
    counts = np.bincount(color_bins(frames)[moves], minlength=512)
    seen = np.flatnonzero(counts > 1e-4 * counts.sum())
    if not len(seen):
        return np.full((1, 3), 128.0)
    points, weights = _levels(seen), counts[seen]
    centers = points[[weights.argmax()]]
    while len(centers) < min(COLORS, len(points)):  # next, the colour that is farthest and common
        far = np.square(points[:, None] - centers).sum(2).min(1) * np.sqrt(weights)
        centers = np.vstack([centers, points[far.argmax()]])
    for _ in range(30):
        near = np.square(points[:, None] - centers).sum(2).argmin(1)
        mine = [near == i for i in range(len(centers))]
        centers = np.stack(
            [
                np.average(points[m], 0, weights=weights[m]) if m.any() else c
                for m, c in zip(mine, centers, strict=True)
            ]
        )
    return centers


def _levels(bins: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the middle of each colour bin as levels, float64 of shape (..., 3)."""
    return np.stack([bins // 64, bins // 8 % 8, bins % 8], -1) * 32.0 + 16


def _independent(values: Tensor, count: int) -> list[int]:
    """Choose columns greedily, each the one that those before predict worst (pivoted Gram-Schmidt)."""
    std = values.std(0)
    rest = (((values - values.mean(0)) / std.clamp(min=1e-6)) * (std > 1e-3)).double()
    plain = torch.arange(len(std)) % 6 < 3
    chosen: list[int] = []
    while len(chosen) < count:
        variance = rest.square().mean(0)
        best = int((variance * (1 + (PREFERENCE - 1) * plain)).argmax())
        if variance[best] < MIN_VARIANCE:
            break
        chosen.append(best)
        direction = rest[:, best] / rest[:, best].norm()
        rest = rest - direction[:, None] * (direction @ rest)
    return chosen


def _name(column: int, centers: npt.NDArray[Any]) -> str:
    color, which = divmod(column, 6)
    what = ("size", "x", "y")[which % 3]
    levels = ", ".join(f"{level:.0f}" for level in centers[color])
    return f"{what} of the colour ({levels})" + (" where little moves" if which >= 3 else "")

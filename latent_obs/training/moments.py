"""Image moments of what moves, by colour: targets that hold some dimensions of the latent to places.

A VAE keeps where an object is, but may curl it up, so that no linear reader finds it. The size and the centre
of mass of each colour that moves take no training, and dimensions trained towards them stay more readable.

The decoder pulls on these dimensions too, and bends them as its posteriors narrow. Without its pull linear
readers find more places, but PPO learned Breakout more slowly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
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
MIN_VARIANCE = 0.05
# A moment of which ridge regression finds less than this share of the variance in a picture of 16x16 is left
# out: the encoder would not learn it either, and the dimension would be of no use to the decoder.
MIN_FOUND, COARSE, PENALTY, FOLDS = 0.4, 4, 10.0, 4
# Standard deviation of the target around the posterior mean, in standard deviations of the moment.
DEVIATION = 0.15
LIMIT = 4.0  # standard deviations beyond which a moment is an outlier


class ImageMoments:
    """Log mass and centre of the moving pixels of each colour and of all, those that tell most of the others.

    Each is taken twice: over all pixels alike, and with each pixel weighted by how seldom that colour moves
    there, squared, which tells a ball from a score that shares its colour. Of a ball whose colour changes, as
    an object of a pixel or two does when it is drawn smaller, the moments of all colours tell the place. A
    moment that a coarse picture says nothing about, such as the size of something thin, is left out.

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
        'x of the colour (240, 240, 240) where little moves'
        >>> tuple(moments(torch.from_numpy(frames[:7])).shape)
        (7, 2)

    Source: Hu (1962), "Visual pattern recognition by moment invariants".
    """

    def __init__(self, frames: Frames, median: Frame, count: int) -> None:
        self._median = torch.from_numpy(median.astype(np.int16))
        moves = self._moves(torch.from_numpy(frames)).numpy()
        centers = main_colors(frames, moves)
        self._color_of = torch.from_numpy(nearest_color(centers))
        color = self._color_of.numpy()[color_bins(frames)]
        occupancy = np.stack([*((moves & (color == i)).mean(0) for i in range(len(centers))), moves.mean(0)])
        rarity = np.maximum(occupancy, MIN_OCCUPANCY)[:, None] ** -2  # (colours + 1, 1, 64, 64)
        rarity /= rarity.mean((2, 3), keepdims=True)
        y, x = np.mgrid[:64, :64] / 31.5 - 1
        plain = np.stack([np.ones((64, 64)), x, y])
        weights = np.concatenate([np.broadcast_to(plain, (len(rarity), 3, 64, 64)), plain * rarity], 1)
        weights = weights.reshape(-1, 6, 64 * 64).transpose(0, 2, 1)
        self._weights = torch.from_numpy(weights.astype(np.float32))  # (colours + 1, 4096, 6)
        values = self._all(torch.from_numpy(frames))
        self._mean, self._std = values.mean(0), values.std(0)
        coarse = F.avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255, COARSE).flatten(1)
        self._chosen = telling(values * (_found(coarse, values) > MIN_FOUND), count)
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
        """Return log mass, x and y of each colour and of all, plain and weighted, (N, (colours + 1) * 6)."""
        parts = []
        for some in torch.split(frames, 256):
            sums = sums_by_color(some, self._moves(some), self._color_of, self._weights)
            mass, x, y = sums.view(-1, 2, 3).unbind(-1)
            shown = mass > 0  # a colour that is not there counts as in the middle
            x, y = (torch.where(shown, each / mass.clamp(min=1e-6), 0.0) for each in (x, y))
            parts.append(torch.stack([mass.log1p(), x, y], -1).view(len(some), -1))
        return torch.cat(parts)


def main_colors(frames: Frames, moves: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Cluster the colours of moving pixels with k-means; levels of the centres, shape (at most 5, 3)."""
    counts = np.bincount(color_bins(frames)[moves], minlength=512)
    seen = np.flatnonzero(counts > 1e-4 * counts.sum())
    if not len(seen):
        return np.full((1, 3), 128.0)
    points, weights = levels_of(seen), counts[seen]
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


def nearest_color(centers: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the nearest of the centres, levels of shape (colours, 3), of each of the 512 colour bins."""
    found: npt.NDArray[np.int64] = np.square(levels_of(np.arange(512))[:, None] - centers).sum(2).argmin(1)
    return found


def sums_by_color(frames: Tensor, moves: Tensor, color_of: Tensor, weights: Tensor) -> Tensor:
    """Add up weights over the moving pixels of each colour, and last over those of all.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        moves: Which pixels count, bool of shape (N, 64, 64).
        color_of: The colour of each of the 512 bins.
        weights: Shape (colours + 1, 4096, sums).

    Returns:
        Shape (N, colours + 1, sums).
    """
    groups, _, count = weights.shape
    rows, pixels = moves.flatten(1).nonzero(as_tuple=True)
    color = color_of[color_bins(frames.flatten(1, 2)[rows, pixels].int()[None])[0].long()]
    sums = torch.zeros(len(frames) * groups, count)
    for group in (color, torch.full_like(color, groups - 1)):
        sums.index_add_(0, rows * groups + group, weights[group, pixels])
    return sums.view(len(frames), groups, count)


def levels_of(bins: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the middle of each colour bin as levels, float64 of shape (..., 3)."""
    return np.stack([bins // 64, bins // 8 % 8, bins % 8], -1) * 32.0 + 16


def telling(values: Tensor, count: int) -> list[int]:
    """Choose columns greedily, each the one that predicts most of what those before do not, of all columns.

    Source: Farahat et al. (2013), "Efficient greedy feature selection for unsupervised learning".
    """
    std = values.std(0)
    rest = (((values - values.mean(0)) / std.clamp(min=1e-6)) * (std > 1e-3)).double() / len(values) ** 0.5
    chosen: list[int] = []
    while len(chosen) < count:
        products = rest.T @ rest
        variance = products.diagonal()
        new = variance > MIN_VARIANCE
        if not new.any():
            break
        predicted = products.square().sum(1) / variance.clamp(min=MIN_VARIANCE)
        best = int((predicted * new).argmax())
        chosen.append(best)
        rest = rest - rest[:, best, None] * products[best] / variance[best]
    return chosen


def _found(features: Tensor, values: Tensor) -> Tensor:
    """Return how much of each column's variance ridge regression finds in features of other frames.

    Args:
        features: Shape (N, D).
        values: Shape (N, columns).

    Returns:
        R² of each column in cross-validation, shape (columns,), at most 1; 1 for a column without variance.
    """
    features = features - features.mean(0)
    features = features / features.std().clamp(min=1e-6)
    std = values.std(0)
    wanted = (values - values.mean(0)) / std.clamp(min=1e-6) * (std > 1e-3)
    residual = torch.empty_like(wanted)
    for fold in range(FOLDS):
        test = torch.arange(len(values)) % FOLDS == fold
        own, rest = features[~test], wanted[~test]
        gram = own @ own.T + PENALTY * torch.eye(len(own))
        predicted = features[test] @ (own.T @ torch.linalg.solve(gram, rest))
        residual[test] = wanted[test] - predicted
    return 1 - residual.square().mean(0) / wanted.square().mean(0).clamp(min=1e-6)


def _name(column: int, centers: npt.NDArray[Any]) -> str:
    color, which = divmod(column, 6)
    what = ("size", "x", "y")[which % 3]
    levels = ", ".join(f"{level:.0f}" for level in centers[color]) if color < len(centers) else ""
    return f"{what} of {f'the colour ({levels})' if levels else 'all colours'}" + (
        " where little moves" if which >= 3 else ""
    )

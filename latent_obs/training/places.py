"""Places of what moves from frame to frame: targets that hold some dimensions of the latent to them, closely.

Agents learn faster from latents in which some dimensions are the places of small objects to a fraction of a
pixel, and which are louder than the others.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_obs.encoders.provenance import HeldPlaces
from latent_obs.frames import FRAME_SHAPE, Frame, Frames
from latent_obs.measures import color_bins
from latent_obs.training.moments import LIMIT, THRESHOLD, main_colors, nearest_color, sums_by_color, telling

# An agent observes dimensions that hold places so many times louder than others, which are more and say less.
LOUDNESS = 4.0
# A frame shows no place where the pixels lie farther apart than usual, as when two objects move: where their
# variance around the centre is more than this many times that of the most compact quarter of the frames.
MAX_SPREAD, ROUNDING = 3.0, (1 / 31.5) ** 2  # and a pixel squared, which is no spread
# What shows no place in a larger share of the frames that it is seen in is no object.
MAX_APART = 0.2
# A place is that of an object if its pixels vary around their centre by less than 1 - MIN_TOGETHER of all
# variance.
MIN_TOGETHER = 0.6
# What moves by less than a pixel (standard deviation) stands still.
MIN_MOVED = 1 / 31.5
# A place that is there in a smaller share of the frames is no target.
MIN_SHOWN = 0.05
# Regions in which something moves often, and those in which it seldom does, differ by this factor at least;
# a logarithm.
MIN_APART = 2.0
# Standard deviation of the target around the posterior mean, in standard deviations of the place. Errors
# above OUTLIER count in proportion, not squared: no frame tells that only the score is about to move.
DEVIATION, OUTLIER = 0.03, 0.3


class Places:
    """Centres of what moves from frame to frame, each of pixels that lie together, as those of an object do.

    A pixel counts in the frames in which it differs from the median and from the frame before or after. So a
    score or a wall of bricks, which seldom change, do not hide a ball of their colour. The pixels of each
    colour, and those of all, are taken together; and, where there are two kinds of places, those in which
    something moves often, as along the row of a paddle, apart from those in which it seldom does. A centre of
    pixels that are far from one another, as those of two players are, is no target: no object is there. Nor
    is it one in those frames in which two objects of the group move.

    Args:
        frames: Frames of one environment to choose colours and places on, ``uint8`` (N, 64, 64, 3).
        median: Their per-pixel median, ``uint8`` of shape (64, 64, 3): what stands still.
        count: How many places are wanted at most.
        changed: Which pixels differ from the frame before or after, bool of shape (N, 64, 64).

    Attributes:
        names: What each chosen coordinate is, such as ``"x of the colour (236, 236, 236)"``.

    Example:
        >>> frames = np.zeros((100, 64, 64, 3), np.uint8)
        >>> frames[np.arange(100), 20, np.arange(100) % 60] = 255  # a dot that runs to the right
        >>> changed = (frames != np.roll(frames, 1, 0)).any(-1)
        >>> places = Places(frames, np.zeros((64, 64, 3), np.uint8), 4, changed)
        >>> places.names
        ['x of the colour (240, 240, 240)']
        >>> values, shown = places(torch.from_numpy(frames[:7]), torch.from_numpy(changed[:7]))
        >>> tuple(values.shape)
        (7, 1)

    Source: Hu (1962), "Visual pattern recognition by moment invariants", for the centres, and Huber (1964),
    "Robust estimation of a location parameter", for :meth:`nll`.
    """

    def __init__(self, frames: Frames, median: Frame, count: int, changed: npt.NDArray[np.bool_]) -> None:
        images, changes = torch.from_numpy(frames), torch.from_numpy(changed)
        self._median = torch.from_numpy(median)
        moves = self._moves(images, changes).numpy()
        colors = main_colors(frames, moves)
        color = nearest_color(colors)[color_bins(frames)]
        occupancy = np.stack([*((moves & (color == i)).mean(0) for i in range(len(colors))), moves.mean(0)])
        self._group(colors, np.stack([_seldom(each) for each in occupancy]))
        values, spread, seen = self._all(images, changes)
        total = _total(spread)
        widest = MAX_SPREAD * _lower_quartile(total, seen) + ROUNDING
        shown = seen & (total <= widest)
        sightings = shown.sum(0).clamp(min=1)
        mean = (values * shown).sum(0) / sightings
        variance = ((values - mean).square() * shown).sum(0) / sightings
        within = (spread * shown).sum(0) / sightings
        known = variance > (MIN_TOGETHER * (variance + within)).clamp(min=MIN_MOVED**2)
        known &= (shown.float().mean(0) > MIN_SHOWN) & (shown.sum(0) > (1 - MAX_APART) * seen.sum(0))
        self._chosen = telling((values - mean) * shown * known, count)
        self._widest = widest[self._chosen]
        self._mean, self._std = mean[self._chosen], variance[self._chosen].sqrt()
        self.names = [_place(i, colors) for i in self._chosen]

    def _group(self, colors: npt.NDArray[Any], seldom: npt.NDArray[np.bool_]) -> None:
        """Set which pixels belong together, by colour (at most 5, 3) and by region (colours + 1, 64, 64)."""
        self._colors, self._regions = colors, seldom
        self._color_of = torch.from_numpy(nearest_color(colors))
        regions = np.stack([np.stack([np.ones_like(each), each, ~each & each.any()]) for each in seldom])
        y, x = np.mgrid[:64, :64] / 31.5 - 1
        sums = np.stack([np.ones((64, 64)), x, y, x * x, y * y])
        weights = (regions[:, :, None] * sums).reshape(len(seldom), -1, 64 * 64).transpose(0, 2, 1)
        self._weights = torch.from_numpy(weights.astype(np.float32))  # (colours + 1, 4096, 3 regions * 5)

    def record(self) -> HeldPlaces:
        """Return all of it as JSON, for ``config.json``."""
        return HeldPlaces(
            list(self.names),
            list(self._chosen),
            self._mean.tolist(),
            self._std.tolist(),
            self._widest.tolist(),
            self._colors.tolist(),
            _packed(self._median.numpy()),
            _packed(np.packbits(self._regions)),
        )

    @classmethod
    def of(cls, record: HeldPlaces) -> Places:
        """Return the places that an encoder's dimensions are held to.

        Raises:
            ValueError: If the record is damaged.
        """
        places = cls.__new__(cls)
        colors = np.array(record.colors, np.float64).reshape(-1, 3)
        lists = (record.names, record.chosen, record.mean, record.std, record.widest)
        sizes = {len(values) for values in lists}
        try:
            median = np.frombuffer(_unpacked(record.median), np.uint8).reshape(FRAME_SHAPE)
            bits = np.unpackbits(np.frombuffer(_unpacked(record.seldom), np.uint8))
            seldom = bits.reshape(len(colors) + 1, 64, 64).astype(bool)
            if len(sizes) > 1 or not all(0 <= i < 6 * len(seldom) for i in record.chosen):
                raise ValueError("its parts do not fit each other")
        except (ValueError, zlib.error) as error:
            raise ValueError(f"provenance.places is damaged: {error}") from error
        places._median = torch.from_numpy(median.copy())
        places._group(colors, seldom)
        places.names, places._chosen = record.names, record.chosen
        places._mean, places._std = torch.tensor(record.mean), torch.tensor(record.std)
        places._widest = torch.tensor(record.widest)
        return places

    def __call__(self, frames: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chosen coordinates in standard deviations, float32, and which of them are there.

        Both are of shape (N, len(names)).
        """
        values, spread, seen = self._all(frames.cpu(), changed.cpu())
        values, total, seen = (each[:, self._chosen] for each in (values, _total(spread), seen))
        shown = seen & (total <= self._widest)
        scaled = (values - self._mean) / self._std
        return scaled.clamp(-LIMIT, LIMIT).to(frames.device), shown.to(frames.device)

    def nll(self, mean: Tensor, frames: Tensor, changed: Tensor) -> Tensor:
        """Return -log p(places | posterior mean) but for a constant, in nats per frame, shape (N,).

        The likelihood is normal near the mean and falls off like a Laplace distribution's beyond.

        Args:
            mean: Mean of the posterior, shape (N, latent_dim); its first dimensions stand for the places.
            frames: ``uint8``, shape (N, 64, 64, 3).
            changed: As the constructor takes it.
        """
        wanted, shown = self(frames, changed)
        off = (mean[:, : len(self.names)] - wanted) * shown
        return F.huber_loss(off, torch.zeros_like(off), reduction="none", delta=OUTLIER).sum(1) / DEVIATION**2

    def _moves(self, frames: Tensor, changed: Tensor) -> Tensor:
        """Return which pixels count, bool of shape (N, 64, 64)."""
        return ((frames.short() - self._median.short()).abs().amax(-1) > THRESHOLD) & changed

    def _all(self, frames: Tensor, changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return each group's x and y, the variance of its pixels' around it, and which are there.

        All are of shape (N, (colours + 1) * 6).
        """
        parts = []
        for some, changes in zip(torch.split(frames, 256), torch.split(changed, 256), strict=True):
            moves = self._moves(some, changes)
            sums = sums_by_color(some, moves, self._color_of, self._weights)
            parts.append(sums.view(len(some), -1, 5))
        sums = torch.cat(parts)
        mass, first, second = sums[..., :1], sums[..., 1:3], sums[..., 3:]
        center = first / mass.clamp(min=1)
        spread = second / mass.clamp(min=1) - center.square()
        return center.flatten(1), spread.flatten(1), (mass > 0).expand_as(center).flatten(1)


def _total(spread: Tensor) -> Tensor:
    """Return the variance in x and y together, in both columns of each group."""
    both = spread.view(len(spread), -1, 2).sum(-1, keepdim=True)
    return both.expand(-1, -1, 2).flatten(1)


def _lower_quartile(spread: Tensor, seen: Tensor) -> Tensor:
    """Return each column's lower quartile over the frames in which it is seen; 0 where it never is."""
    there = torch.where(seen, spread, torch.nan)
    return torch.nanquantile(there, 0.25, dim=0).nan_to_num(0.0)


def _packed(values: npt.NDArray[np.uint8]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()


def _unpacked(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))


def _seldom(occupancy: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where something moves seldom, if there are such places and others; else nowhere.

    Args:
        occupancy: In which share of the frames each pixel moves, shape (64, 64).
    """
    there = occupancy > 0
    if not there.any():
        return there
    logs, weights = np.log(occupancy[there]), occupancy[there]
    low, high = logs.min(), logs.max()
    for _ in range(50):  # 2-means, in which each sighting counts alike
        few = logs < (low + high) / 2
        if few.all() or not few.any():
            break
        low, high = (np.average(logs[m], weights=weights[m]) for m in (few, ~few))
    if high - low < MIN_APART:
        return np.zeros_like(there)
    seldom: npt.NDArray[np.bool_] = there & (occupancy < np.exp((low + high) / 2))
    return seldom


def _place(column: int, centers: npt.NDArray[Any]) -> str:
    color, which = divmod(column, 6)
    levels = ", ".join(f"{level:.0f}" for level in centers[color]) if color < len(centers) else ""
    return (
        f"{'xy'[which % 2]} of {f'the colour ({levels})' if levels else 'all colours'}"
        + ("", " where little moves", " where much moves")[which // 2]
    )

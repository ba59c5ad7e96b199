"""How well a linear reader tells from a code where small objects are.

A VAE may keep an object and curl its position: an MLP then reads the position from the latents, and ridge
regression does not. Small objects are found by their colours, which little else in the frames has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_obs.encoders.folder import Latents
from latent_obs.evaluation.readers import ridge, whiten
from latent_obs.frames import Frames
from latent_obs.measures import color_bins, color_rarity

# Pixels of one colour are one small object if they lie within this distance of their centre, in pixels (rms).
MAX_EXTENT = 2.0
# An object moves if its position has at least this standard deviation along x or y, in pixels.
MIN_MOVEMENT = 2.0


def position_r2(
    fitted: Frames,
    measured: Frames,
    codes: Mapping[str, Callable[[Frames], Latents]],
    min_sightings: int = 100,
) -> dict[str, float | None]:
    """Measure how well ridge regression reads the positions of rare colours from each of several codes.

    Args:
        fitted: Frames to choose colours and to fit on, ``uint8`` of shape (N, 64, 64, 3).
        measured: Frames of other episodes.
        codes: What turns frames into numbers, (N, D), by name.
        min_sightings: Colours that fewer of the frames to fit on show are left out.

    Returns:
        R^2 over all sightings by name, each axis in units of its variance; ``None`` where no rare colour
        moves.

    Example:
        >>> frames = np.zeros((400, 64, 64, 3), np.uint8)
        >>> frames[np.arange(400), 20, np.random.default_rng(0).integers(0, 64, 400)] = 255
        >>> codes = {"column": lambda frames: frames[:, 20, :, 0].argmax(1)[:, None].astype(np.float32)}
        >>> {name: round(r2, 3) for name, r2 in position_r2(frames[::2], frames[1::2], codes).items()}
        {'column': 1.0}
    """
    colors = np.flatnonzero(color_rarity(fitted) == 1)
    (known, fits), (truth, shown) = (color_positions(frames, colors) for frames in (fitted, measured))
    objects = []  # where each is in the frames to fit on, and in those measured, in standard deviations
    for color in np.flatnonzero((fits.sum(0) >= max(min_sightings, 1)) & shown.any(0)):
        places = known[fits[:, color], color]
        std = places.std(0)
        if std.max() >= MIN_MOVEMENT:
            std = np.maximum(std, 1)  # along an axis on which it stands still, a pixel
            objects.append(
                (fits[:, color], places / std, shown[:, color], truth[shown[:, color], color] / std)
            )
    scores: dict[str, float | None] = dict.fromkeys(codes)
    for name, encode in codes.items() if objects else ():
        features, read = whiten(encode(fitted), encode(measured))
        residual = energy = 0.0
        for rows, wanted, here, there in objects:
            # Ridge regression has no intercept.
            center, offset = features[rows].mean(0), wanted.mean(0)
            weights = (features[rows] - center, (wanted - offset).astype(np.float32), read[here] - center)
            residual += float(np.square(ridge(*weights) + offset - there).sum())
            energy += float(np.square(there - offset).sum())
        scores[name] = 1 - residual / energy if energy else None
    return scores


def color_positions(
    frames: Frames, colors: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the centre of mass of each colour's pixels, where they are close together.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        colors: Numbers of the colours, as :func:`~latent_obs.measures.color_bins` has them, shape (K,).

    Returns:
        x and y in pixels, shape (N, K, 2), and in which frames a colour is seen as one small object, (N, K).

    Example:
        >>> frames = np.zeros((1, 64, 64, 3), np.uint8)
        >>> frames[0, 10:12, 30] = 255
        >>> color_positions(frames, np.array([511]))
        (array([[[30. , 10.5]]]), array([[ True]]))
    """
    slots = np.full(512, -1)
    slots[colors] = np.arange(len(colors))
    shape = len(frames), len(colors)
    sums = np.zeros((4, *shape))  # pixels, x, y and x^2 + y^2
    for start in range(0, len(frames), 256):
        slot = slots[color_bins(frames[start : start + 256])]
        frame, y, x = np.nonzero(slot >= 0)
        for values, total in zip((np.ones(len(x)), x, y, x * x + y * y), sums, strict=True):
            np.add.at(total, (start + frame, slot[frame, y, x]), values)
    pixels = np.maximum(sums[0], 1)
    positions = np.stack([sums[1] / pixels, sums[2] / pixels], 2)
    extent = sums[3] / pixels - np.square(positions).sum(2)
    return positions, (sums[0] > 0) & (extent <= MAX_EXTENT**2)


# A colour that hardly moves, in pixels, or is in fewer of the frames than this, has nothing to teach.
MIN_SEEN = 0.002
# Positions read to a tenth of their standard deviation are good enough.
MIN_VARIANCE = 0.01
# Sightings over which the variance of a colour is averaged.
MEMORY = 50
# Adam moves the readout this many times as fast as the rest: else latents grow, in its place.
GAIN = 10.0


class PositionReadout(nn.Module):
    """Reads the position of each rare colour linearly from latents.

    Args:
        frames: Some of the frames to train on, ``uint8`` of shape (N, 64, 64, 3), to choose colours from;
            of no frames it reads no colours.
        latent_dim: Size of the latent.

    Attributes:
        colors: How many colours it reads; there may be none.
        variance: Running mean of the squared error of each colour's x and y, in units of their variance
            over ``frames``; shape (colors, 2).

    Example:
        >>> frames = torch.zeros(100, 64, 64, 3, dtype=torch.uint8)
        >>> for i in range(100):
        ...     frames[i, 20, i // 2] = 255  # a white dot that moves to the right
        >>> PositionReadout(frames.numpy(), latent_dim=8).colors
        1
    """

    slots: Tensor
    mean: Tensor
    std: Tensor
    variance: Tensor

    def __init__(self, frames: Frames, latent_dim: int) -> None:
        super().__init__()
        rare = torch.from_numpy(color_rarity(frames)) == 1
        slots = torch.where(rare, rare.cumsum(0) - 1, -1)
        positions, seen = _color_positions(color_bins(torch.from_numpy(frames).int()), slots)
        count = seen.sum(0)[:, None]
        mean = (positions * seen[..., None]).sum(0) / count
        std = ((positions - mean).square() * seen[..., None]).sum(0).div(count).sqrt()
        chosen = (count[:, 0] >= MIN_SEEN * len(frames)) & (std.amax(1) >= MIN_MOVEMENT)
        numbers = torch.nonzero(rare)[chosen, 0]
        self.colors = len(numbers)
        slots = torch.full_like(slots, -1)
        slots[numbers] = torch.arange(self.colors)
        self.register_buffer("slots", slots)
        self.register_buffer("mean", mean[chosen])
        self.register_buffer("std", std[chosen].clamp(min=1))  # to a pixel, where only one axis moves
        self.register_buffer("variance", torch.ones(self.colors, 2))
        self.weight = nn.Parameter(torch.zeros(2 * self.colors, latent_dim))
        self.bias = nn.Parameter(torch.zeros(2 * self.colors))

    def forward(self, latents: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Return squared errors in units of variance, (N, colors, 2), and which count, (N, colors, 1).

        Args:
            latents: float32, shape (N, latent_dim).
            colors: Number of each pixel's colour (:func:`~latent_obs.measures.color_bins`), (N, 64, 64).
        """
        if not self.colors:  # looking for none would cost 2% of a step
            return latents.new_zeros(len(latents), 0, 2), latents.new_zeros(len(latents), 0, 1)
        wanted, seen = self.standard_positions(colors)
        read = GAIN * F.linear(latents, self.weight, self.bias).view_as(wanted)
        counted = seen[..., None].float()
        return (read - wanted).square() * counted, counted

    def standard_positions(self, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and y of each colour in standard deviations, (N, colors, 2), and where it is seen.

        Args:
            colors: As :meth:`forward` takes them.
        """
        positions, seen = _color_positions(colors, self.slots, self.colors)
        return (positions - self.mean) / self.std, seen

    def update(self, error: Tensor, count: Tensor) -> None:
        """Move the variances towards a batch's mean squared errors.

        Args:
            error: Sum of the squared errors of all frames, shape (colors, 2).
            count: How many there were, shape (colors, 1).
        """
        rate = (count / MEMORY).clamp(max=0.2)
        self.variance.lerp_(error / count.clamp(min=1), rate).clamp_(min=MIN_VARIANCE)

    def loss(self, error: Tensor, counted: Tensor) -> Tensor:
        """Return -log p(positions | latent) in nats but for a constant, the mean over what is read; (N,).

        Args:
            error: From :meth:`forward`, as the next.
            counted: Which of them count.
        """
        return (error / (2 * self.variance)).mean(2).sum(1) / counted.sum((1, 2)).clamp(min=1)


def _color_positions(colors: Tensor, slots: Tensor, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Return the centre of mass of each colour's pixels, where they are close together.

    Args:
        colors: Number of each pixel's colour, integers of shape (N, 64, 64).
        slots: For each number the column of its position, or -1; shape (512,).
        count: Columns; by default as many as ``slots`` names.

    Returns:
        x and y in pixels, float32 of shape (N, count, 2), and in which frames a colour is seen as one small
        object, shape (N, count).

    Example:
        >>> colors = torch.zeros(1, 64, 64, dtype=torch.int64)
        >>> colors[0, 10:12, 30] = 7
        >>> slots = torch.full((512,), -1)
        >>> slots[7] = 0
        >>> _color_positions(colors, slots)
        (tensor([[[30.0000, 10.5000]]]), tensor([[True]]))
    """
    columns = int(slots.max()) + 1 if count is None else count
    slot = slots[colors]
    frame, y, x = torch.nonzero(slot >= 0, as_tuple=True)
    # Sums of integers, hence exact in any order.
    values = torch.stack([torch.ones_like(x), x, y, x * x + y * y]).float()
    sums = values.new_zeros(4, len(colors) * columns)
    sums.index_add_(1, frame * columns + slot[frame, y, x], values)
    pixels, x_sum, y_sum, squares = sums.view(4, len(colors), columns)
    positions = torch.stack([x_sum, y_sum], 2) / pixels.clamp(min=1)[..., None]
    extent = squares / pixels.clamp(min=1) - positions.square().sum(2)
    return positions, (pixels > 0) & (extent <= MAX_EXTENT**2)

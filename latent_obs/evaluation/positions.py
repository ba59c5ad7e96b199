"""How well a linear reader tells from a code where small objects are.

A VAE may keep an object and curl its position: an MLP then reads the position from the latents, and ridge
regression does not. Small objects are found by their colours, which little else in the frames has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

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

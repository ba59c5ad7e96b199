"""Walks along real frames: frames that differ in one variable and are otherwise as alike as there are.

Where an encoder mixes variables, no straight line through its latents moves one of them, because the latents
of real frames lie on a curved surface. A walk stays on it: each of its stops is the latent of a real frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import Latents
from latent_obs.evaluation.variables import DIFFERENCE, Values
from latent_obs.frames import Frames

if TYPE_CHECKING:
    from latent_obs.vae import VAE

# Stops of a walk, and walks of an encoder.
STOPS, WALKS = 25, 8
# How many frames are tried as the one that all stops should be like, on how many of these pictures are looked
# at, and how many of the nearest frames are looked at for each stop.
ANCHORS, LOOKED_AT, CANDIDATES = 500, 40, 12
# The walk leaves out this share of the values at either end.
TAIL = 0.01
# What a frame lacks is as far from what it has as so many standard deviations.
ABSENT = 5.0
# What moves and is not drawn at all counts as much as so many standard deviations of another variable.
LOST = 1.5
# What is decoded wrongly within 5 pixels of what moves counts as lost, too, so that a blur does.
HALO = np.ones((11, 11), np.uint8)
# A walk is kept if this share of what moves is drawn.
DRAWN = 0.4
# Another variable goes along if, over the stops, it varies by this share of its standard deviation.
ALONG = 0.3


@dataclass(frozen=True)
class Walk:
    """The latents of real frames, in the order of one variable.

    Attributes:
        name: The variable.
        values: Its value at each stop, ascending.
        latents: The latent at each stop, shape (len(values), latent_dim).
        drawn: How much of what differs between the frames of the walk is in the decoded pictures, 0 to 1:
            1 - error / difference, where the difference is that from the median of these frames and the error
            is that of pixels that differ or lie within 5 pixels of one.
        along: Other variables that vary along the walk, the strongest first; at most two.
    """

    name: str
    values: tuple[float, ...]
    latents: tuple[tuple[float, ...], ...]
    drawn: float
    along: tuple[str, ...] = ()


def find_walks(
    vae: VAE, frames: Frames, codes: Latents, variables: Mapping[str, Values], names: list[str], seed: int = 0
) -> tuple[Walk, ...]:
    """Find the walks that the decoder draws best.

    Some frames, chosen at random, are tried as anchors. For each value on the way, the walk takes the frame
    that has this value, is nearest to the anchor in all other variables, and is decoded well where it differs
    from the walk's other frames. The anchor with the best frames wins.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3).
        codes: Their latents, shape (N, latent_dim).
        variables: All that is known of the frames, shape (N,) each; NaN where a frame does not have it.
        names: The variables to walk along.
        seed: Chooses the anchors.

    Returns:
        The eight walks that are drawn best, in the order of the variables.
    """
    columns = {name: values for name, values in variables.items() if _varies(values)}
    scaled = {name: _scaled(values) for name, values in columns.items()}
    errors = _errors(vae, frames, codes)
    found = []
    for name in columns:
        # A byte of flags has no order in which one could walk.
        if name not in names or "bit map" in name:
            continue
        others = [each for each in columns if each != name]
        rest = np.stack([scaled[each] for each in others], 1) if others else np.zeros((len(codes), 1))
        rows, drawn = _choose(columns[name], rest, frames, errors, seed)
        if len(rows) < 2 or drawn < DRAWN:
            continue
        moving = {each: float(scaled[each][rows].std()) for each in others if "bit map" not in each}
        along = sorted((each for each in moving if moving[each] > ALONG), key=lambda each: -moving[each])
        values = tuple(float(value) for value in columns[name][rows])
        stops = tuple(tuple(float(value) for value in code) for code in codes[rows])
        found.append(Walk(name, values, stops, drawn, tuple(along[:2])))
    best = sorted(found, key=lambda each: -each.drawn)[:WALKS]
    return tuple(each for each in found if each in best)


def _varies(values: Values) -> bool:
    there = values[np.isfinite(values)]
    return len(there) > 0 and bool((there != there[0]).any())


def _scaled(values: Values) -> Values:
    """Return a variable in standard deviations around its mean."""
    scaled: Values = np.nan_to_num((values - np.nanmean(values)) / np.nanstd(values), nan=ABSENT)
    return scaled


def _errors(vae: VAE, frames: Frames, codes: Latents) -> npt.NDArray[np.uint8]:
    """Return by how many levels each pixel is decoded wrongly in its worst channel, shape (N, 64, 64)."""
    import torch

    from latent_obs.vae import to_frames

    errors = np.empty(frames.shape[:3], np.uint8)
    with torch.no_grad():
        for i in range(0, len(frames), 256):
            decoded = to_frames(vae.decode(torch.from_numpy(codes[i : i + 256])))
            errors[i : i + 256] = _apart(decoded, frames[i : i + 256])
    return errors


def _apart(one: Frames, other: Frames) -> npt.NDArray[np.uint8]:
    """Return by how many levels pixels differ in the channel where they differ most."""
    apart: npt.NDArray[np.uint8] = (np.maximum(one, other) - np.minimum(one, other)).max(-1)
    return apart


def _choose(
    values: Values,
    rest: npt.NDArray[np.float64],
    frames: Frames,
    errors: npt.NDArray[np.uint8],
    seed: int,
) -> tuple[npt.NDArray[np.int64], float]:
    """Return the frames of the walk along a variable, and :attr:`Walk.drawn`."""
    there = np.flatnonzero(np.isfinite(values))
    known = np.unique(values[there])
    if len(known) > STOPS:
        low, high = np.quantile(values[there], (TAIL, 1 - TAIL))
        stops, reach = np.linspace(low, high, STOPS), (high - low) / (STOPS - 1) / 2
    else:
        stops, reach = known, 0.0
    at_stop = [there[np.abs(values[there] - stop) <= reach] for stop in stops]
    at_stop = [rows for rows in at_stop if len(rows)]
    anchors = np.random.default_rng(seed).permutation(there)[:ANCHORS]
    distances = [_distances(rest[rows], rest[anchors]) for rows in at_stop]
    totals = np.sum([each.min(0) for each in distances], 0)
    best: tuple[float, npt.NDArray[np.int64], float] = (np.inf, there[:0], 0.0)
    for anchor in totals.argsort()[:LOOKED_AT]:
        nearest = [rows[each[:, anchor].argmin()] for rows, each in zip(at_stop, distances, strict=True)]
        still = np.median(frames[nearest], 0).astype(np.uint8)
        cost, picked, drawn = 0.0, [], []
        for rows, each in zip(at_stop, distances, strict=True):
            some = each[:, anchor].argsort()[:CANDIDATES]
            kept = _kept(frames[rows[some]], errors[rows[some]], still)
            costs = each[some, anchor] + LOST * (1 - kept)
            cost += float(costs.min())
            picked.append(rows[some[costs.argmin()]])
            drawn.append(float(kept[costs.argmin()]))
        if cost < best[0]:
            best = cost, np.array(picked), float(np.mean(drawn))
    return best[1], best[2]


def _kept(frames: Frames, errors: npt.NDArray[np.uint8], still: Frames) -> npt.NDArray[np.float64]:
    """Return how much of a frame's difference from ``still`` is decoded, 0 to 1, shape (N,)."""
    apart = _apart(frames, still)
    moved = apart > DIFFERENCE
    near = np.stack([cv2.dilate(each.astype(np.uint8), HALO) for each in moved]) > 0
    wrong = (errors * (near & (errors > DIFFERENCE))).sum((1, 2), dtype=np.float64)
    whole = (apart * moved).sum((1, 2), dtype=np.float64)
    return np.where(whole > 0, np.clip(1 - wrong / np.maximum(whole, 1), 0, 1), 1.0)


def _distances(rows: npt.NDArray[np.float64], anchors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the Euclidean distances, shape (len(rows), len(anchors))."""
    squares = np.square(rows).sum(1)[:, None] + np.square(anchors).sum(1) - 2 * rows @ anchors.T
    distances: npt.NDArray[np.float64] = np.sqrt(np.maximum(squares, 0))
    return distances

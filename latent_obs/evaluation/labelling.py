"""Measures what each dimension of a latent does, and what else in it a slider can move.

A dimension is labelled with the variable that explains most of it: a factor or state of the environment
where it is known, else a statistic of the picture (:mod:`latent_obs.evaluation.variables`). Where variables
are mixed in the dimensions, a walk along real frames still moves one (:mod:`latent_obs.evaluation.walks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import EncoderConfig, Latents
from latent_obs.evaluation.labels import Direction, Explained, Label, Labels
from latent_obs.evaluation.variables import Observed, Values
from latent_obs.evaluation.walks import find_walks

if TYPE_CHECKING:
    from latent_obs.vae import VAE

# A variable's values are put into so many bins of equal counts; within a bin a dimension is predicted by its
# mean.
BINS = 20
# A variable with less data than this share of the frames is left out, and so is one that hardly changes.
MIN_SHARE = 0.25
# Principal directions.
PRINCIPAL = 4


def measure_labels(
    vae: VAE, config: EncoderConfig, observed: Observed, seed: int = 0, *, walks: bool = True
) -> Labels:
    """Measure what the dimensions of an encoder do.

    Args:
        vae: The model.
        config: Its statistics.
        observed: Frames, and the variables behind them.
        seed: Chooses which latents are decoded.
        walks: Whether to find the walks, which takes most of the time.
    """
    from latent_obs.vae import latents

    codes = latents(vae, observed.frames)
    fitted = _halves(observed.groups)
    variables = _usable(observed.variables)
    mean, whitening = _whitening(codes)
    distances = np.linalg.norm((codes - mean) @ whitening.T, axis=1)
    median, p95, p99 = np.percentile(distances, (50, 95, 99))
    metrics: dict[str, Any] = {}
    if observed.factors and len(variables) > 1:
        from latent_obs.evaluation.disentanglement import measure_disentanglement

        metrics = asdict(measure_disentanglement(codes, variables))
    changes = visible_change(vae, config, codes, seed)
    return Labels(
        source=observed.source,
        dimensions=tuple(
            _label(explained_by(codes[:, dim], variables, fitted), float(changes[dim]))
            for dim in range(codes.shape[1])
        ),
        walks=find_walks(
            vae, observed.frames, codes, observed.variables, list(_there(observed.variables)), seed
        )
        if walks
        else (),
        directions=tuple(
            replace(each, follows=_follows(vae, codes, each, seed)) for each in _principal(codes, mean)
        ),
        whitening=tuple(map(tuple, whitening.tolist())),
        distances=(float(median), float(p95), float(p99)),
        mean=tuple(mean.tolist()),
        metrics=metrics,
    )


def _halves(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which frames to fit on: those of every other episode; where there is one, its first half."""
    numbers = np.unique(groups)
    if len(numbers) == 1:
        return np.arange(len(groups)) < len(groups) // 2
    return np.isin(groups, numbers[::2])


def _usable(variables: Mapping[str, Values]) -> dict[str, Values]:
    """Leave out variables that are hardly there, hardly change, or repeat one before."""
    kept: dict[str, Values] = {}
    for name, values in _there(variables).items():
        if not any(_correlation(values, other) > 0.98 for other in kept.values()):
            kept[name] = values
    return kept


def _there(variables: Mapping[str, Values]) -> dict[str, Values]:
    """Leave out variables that are hardly there or hardly change."""
    kept: dict[str, Values] = {}
    for name, values in variables.items():
        there = np.isfinite(values)
        if there.mean() < MIN_SHARE:
            continue
        _, counts = np.unique(values[there], return_counts=True)
        if counts.max() <= 0.95 * there.sum():
            kept[name] = values
    return kept


def _correlation(one: Values, other: Values) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if both.sum() < 10 or one[both].std() == 0 or other[both].std() == 0:
        return 0.0
    return abs(float(np.corrcoef(one[both], other[both])[0, 1]))


def explained_by(
    code: npt.NDArray[np.float32], variables: Mapping[str, Values], fitted: npt.NDArray[np.bool_]
) -> list[Explained]:
    """Return how much of a dimension each variable explains, the best first.

    Args:
        code: The dimension, shape (N,).
        variables: Values of each variable, shape (N,).
        fitted: Which frames to fit on, shape (N,); the others are measured.

    Example:
        >>> x = np.random.default_rng(0).uniform(size=2000)
        >>> wave, fitted = np.sin(6 * x).astype(np.float32), np.arange(2000) < 1000
        >>> best = explained_by(wave, {"x": x, "y": x[::-1]}, fitted)[0]
        >>> best.name, round(best.r2, 1)
        ('x', 1.0)
    """
    found = []
    for name, values in variables.items():
        there = np.isfinite(values)
        fit, test = there & fitted, there & ~fitted
        if fit.sum() < 2 * BINS or test.sum() < BINS:
            continue
        edges = np.unique(np.quantile(values[fit], np.linspace(0, 1, BINS + 1)))
        # A bin holds the values from its edge on, so that of two values each has a bin of its own.
        bins = np.clip(np.searchsorted(edges, values, "right") - 1, 0, len(edges) - 1)
        counts = np.bincount(bins[fit], minlength=len(edges))
        sums = np.bincount(bins[fit], code[fit].astype(np.float64), len(edges))
        predicted = np.where(counts > 0, sums / np.maximum(counts, 1), code[fit].mean())[bins[test]]
        total = np.square(code[test] - code[test].mean()).sum()
        r2 = 1 - float(np.square(code[test] - predicted).sum() / total) if total > 0 else 0.0
        found.append(Explained(name, max(r2, 0.0)))
    return sorted(found, key=lambda each: -each.r2)


def _label(explained: list[Explained], change: float) -> Label:
    kept = tuple(each for each in explained[:3] if each.r2 >= 0.01)
    best, second = ([each.r2 for each in kept] + [0.0, 0.0])[:2]
    return Label(kept, (best - second) / best if best else 0.0, change)


def visible_change(vae: VAE, config: EncoderConfig, codes: Latents, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return by how many levels each dimension changes the pixel that it changes most.

    A dimension is moved from -2 to +2 standard deviations around its mean, in the latents of eight frames;
    the mean over these.

    Returns:
        Shape (latent_dim,), 0 to 255.
    """
    import torch

    some = codes[np.random.default_rng(seed).permutation(len(codes))[:8]]
    changes = np.zeros(codes.shape[1])
    with torch.no_grad():
        for dim in range(codes.shape[1]):
            moved = np.repeat(some[None], 3, 0)
            offsets = np.array([-2, 0, 2])[:, None] * config.latents["std"][dim]
            moved[:, :, dim] = config.latents["mean"][dim] + offsets
            images = vae.decode(torch.from_numpy(moved.reshape(-1, codes.shape[1]))).numpy()
            images = images.reshape(3, len(some), -1)
            changes[dim] = 255 * (images.max(0) - images.min(0)).max(1).mean()
    return changes


def _whitening(codes: Latents) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and whitening matrix; directions without variance count little."""
    mean = codes.mean(0, dtype=np.float64)
    variances, vectors = _components(codes, mean)
    deviations = np.sqrt(np.maximum(variances, 1e-4 * variances.max()))
    return mean, (vectors / deviations).T


def _components(
    codes: Latents, mean: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the latents' variances along their principal directions, ascending; these are the columns."""
    variances, vectors = np.linalg.eigh(np.cov((codes - mean).T).reshape(len(mean), len(mean)))
    return variances, vectors


def _follows(vae: VAE, codes: Latents, direction: Direction, seed: int) -> float:
    """Return :attr:`Direction.follows`, the mean over 64 latents."""
    import torch

    from latent_obs.vae import latents, to_frames

    some = codes[np.random.default_rng(seed).permutation(len(codes))[:64]]
    step = np.array(direction.moves, np.float32)
    with torch.no_grad():
        ends = [to_frames(vae.decode(torch.from_numpy(some + sign * step))) for sign in (-1, 1)]
    low, high = (latents(vae, end) @ np.array(direction.reads) for end in ends)
    return float((high - low).mean() / 2)


def _principal(codes: Latents, mean: npt.NDArray[np.float64]) -> list[Direction]:
    """Return the directions along which the latents vary most."""
    variances, vectors = _components(codes, mean)
    order = np.argsort(-variances)[:PRINCIPAL]
    return [
        Direction(
            f"principal {i + 1}",
            float(variances[at] / variances.sum()),
            tuple((vectors[:, at] / np.sqrt(variances[at])).tolist()),
            tuple((vectors[:, at] * np.sqrt(variances[at])).tolist()),
        )
        for i, at in enumerate(order)
        if variances[at] > 0
    ]

"""Turns an encoder's weights into integers, so that its latents are the same bits on every machine.

Weights of the convolutions become int8, per output channel; what lies between layers becomes uint8; what
the head reads has 10 bits and the head's weights have 16. Rounding makes the same error wherever a picture
has the same colour, and over a background these errors add up. Three things against that cost nothing when
encoding:

- the channels between two convolutions are brought to similar ranges, and the next layer's weights undo it
  (exact, since ReLU commutes with a positive factor; Nagel et al. 2019, "Data-Free Quantization Through
  Weight Equalization and Bias Correction");
- layer by layer, weights and biases are fitted to make of the rounded inputs what float32 makes of the exact
  ones, and each weight that is rounded moves those that are not, so that they make up for it (Frantar et al.
  2023, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers");
- the head's outputs get the mean that they have in float32.

A frame unlike those that the ranges were taken from may exceed them, and what exceeds them is cut off: hence
some headroom, which costs precision.

All of it is computed in float64 and rounded to integers or float32, so that machines whose sums differ in
the last bits agree on the result.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import ACTIVE_VARIANCE, Latents, Tensors, VAEConfig
from latent_obs.frames import FRAME_SHAPE, Frame, Frames

# Change it with any change of the numbers below: it is part of the key under which results are remembered.
VERSION = 6

# The largest value between two layers, and the largest that the head reads.
TOP, HEAD_TOP = 255, 1023
# A channel between two convolutions is divided by its range to this power: 0 keeps the ranges as they are, 1
# makes them all alike, and then more channels of a new frame exceed theirs.
EQUALISE = 0.75
# What lies between the convolutions may be so many times as large as on the frames fitted to; of these, the
# one with the smallest error is taken. What the head reads may be so many times as large.
HEADROOM, HEAD_HEADROOM = (1.0, 1.15, 1.3), 1.5
# Of so many held-out frames, the one that is farthest off does not count.
MANY = 8
# Shares of the inputs' mean square that hold weights where they are: when they are fitted to the rounded
# inputs, and when one makes up for another. A layer with more inputs is rounded without, which takes seconds.
HOLD_FIT, HOLD_ROUND, MOST_FITTED = 0.2, 0.01, 2048
BLOCK = 64  # inputs whose effect on the others is added up before it is applied
# An int8 sum of 16 x 1024 products is below 2^29, and a bias is kept below 2^28.
MOST_CHANNELS = 1024
MOST_BIAS = 2.0**28
# Sums of the head, in any order, stay below this.
MOST_HEAD = 2.0**30

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quantised:
    """An encoder in integers.

    Args:
        channels: Output channels of the convolutions.
        weight: ``int8``, one array for each convolution, shape ``(16 x before, after)``; its rows are in the
            order of the kernel's rows, columns and input channels.
        bias: ``int32``, one array for each convolution, shape ``(after,)``.
        multiplier: ``float32``, one array for each convolution: what turns a sum into the next layer's input.
        head: ``int16``, shape ``(features, outputs)``; rows are in the order of rows, columns and channels.
        scale: ``float64``, shape ``(outputs,)``.
        offset: ``float64``, shape ``(outputs,)``: an output is its sum times ``scale`` plus ``offset``.
        background: The median calibration frame, ``uint8`` (64, 64, 3).
        error: How far the means are from float32's on calibration frames, when weights and ranges are fitted
            to the other half of them: the largest rms difference in an active dimension, in standard
            deviations of that dimension.
    """

    channels: tuple[int, ...]
    weight: tuple[npt.NDArray[np.int8], ...]
    bias: tuple[npt.NDArray[np.int32], ...]
    multiplier: tuple[npt.NDArray[np.float32], ...]
    head: npt.NDArray[np.int16]
    scale: Floats
    offset: Floats
    background: Frame
    error: float

    def outputs(self, which: slice, shift: Floats | float = 0.0, divisor: Floats | float = 1.0) -> Quantised:
        """Return the encoder with only some of its outputs, normalised: ``(output - shift) / divisor``."""
        head = np.ascontiguousarray(self.head[:, which])
        scale, offset = self.scale[which] / divisor, (self.offset[which] - shift) / divisor
        return Quantised(
            self.channels,
            self.weight,
            self.bias,
            self.multiplier,
            head,
            scale,
            offset,
            self.background,
            self.error,
        )

    def to_tensors(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything as named arrays, for a file."""
        layers = {
            f"{name}{i}": value
            for name in ("weight", "bias", "multiplier")
            for i, value in enumerate(getattr(self, name))
        }
        rest = {name: getattr(self, name) for name in ("head", "scale", "offset", "background")}
        return {**layers, **rest, "error": np.array(self.error)}

    @classmethod
    def from_tensors(cls, vae: VAEConfig, tensors: Mapping[str, npt.NDArray[Any]]) -> Quantised:
        """Build from :meth:`to_tensors`'s value.

        Raises:
            ValueError: If an array is missing, or has another type or shape.
        """

        def get(name: str, dtype: Any, *shape: int) -> Any:
            array = tensors.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                raise ValueError(f"{name} is missing, or has another type or shape")
            return array

        sizes = list(enumerate(zip((3, *vae.channels), vae.channels, strict=False)))
        outputs, features = 2 * vae.latent_dim, int(np.prod(vae.feature_shape))
        return cls(
            vae.channels,
            tuple(get(f"weight{i}", np.int8, 16 * before, after) for i, (before, after) in sizes),
            tuple(get(f"bias{i}", np.int32, after) for i, (_, after) in sizes),
            tuple(get(f"multiplier{i}", np.float32, after) for i, (_, after) in sizes),
            get("head", np.int16, features, outputs),
            get("scale", np.float64, outputs),
            get("offset", np.float64, outputs),
            get("background", np.uint8, *FRAME_SHAPE),
            float(get("error", np.float64)),
        )


def quantise(vae: VAEConfig, tensors: Tensors, frames: Frames, std: Sequence[float]) -> Quantised:
    """Quantise an encoder.

    Args:
        vae: Sizes of the networks, with at most 1024 channels in a layer.
        tensors: Weights, named as in ``model.safetensors``.
        frames: Calibration frames, ``uint8`` (N, 64, 64, 3). To choose the headroom and to measure the error,
            each half is fitted to in turn and the other half encoded; then all of them are fitted to.
        std: Standard deviation of each latent dimension, by which the error is measured.

    Returns:
        The encoder with 2 x latent_dim outputs: means, then log-variances.
    """
    frames = _different(frames)
    halves = (frames[::2], frames[1::2]) if len(frames) > 1 else (frames, frames)
    exact = [_latents(vae, tensors, half)[:, : vae.latent_dim] for half in halves]

    def error(headroom: float) -> float:
        wanted, found = [], []
        for fitted, held_out, latents in zip(halves, halves[::-1], exact[::-1], strict=True):
            integers = simulate(_fit(vae, tensors, fitted, headroom), held_out)
            rows = _usual(latents, integers[:, : vae.latent_dim])
            wanted.append(rows[0])
            found.append(rows[1])
        return parity_error(np.concatenate(wanted), np.concatenate(found), std)

    errors = {headroom: error(headroom) for headroom in HEADROOM}
    best = min(errors, key=errors.__getitem__)
    return replace(_fit(vae, tensors, frames, best), error=errors[best])


def _usual(exact: Latents, found: Latents) -> tuple[Latents, Latents]:
    """Leave out the frame that is farthest off.

    A scene that one frame alone shows may be beyond every range of the other half; all of them show it.
    """
    if len(exact) < MANY:
        return exact, found
    worst = int(np.square(found - exact).sum(1).argmax())
    return np.delete(exact, worst, 0), np.delete(found, worst, 0)


def _fit(vae: VAEConfig, tensors: Tensors, frames: Frames, headroom: float) -> Quantised:
    """Quantise with all of the frames; the error is not measured."""
    kernels, biases, head, head_bias = _matrices(vae, tensors)
    sums = _forward(kernels, biases, frames)
    for i in range(max(1, len(kernels) - 1)):
        features = sums[i].max((0, 1, 2))
        factor = np.where(features > 0, np.maximum(features, 0), 1) ** EQUALISE
        following = kernels[i + 1] if i + 1 < len(kernels) else head
        following *= np.tile(factor, len(following) // len(factor))[:, None]
        kernels[i] /= factor
        biases[i] /= factor

    exact = _forward(kernels, biases, frames)
    weights, sums_biases, multipliers = [], [], []
    inputs, step = frames.astype(np.float64), 1.0  # integers, and what one of them is worth
    for i, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        worth = np.maximum(np.abs(kernel).max(0) / 127, np.abs(bias) / step / MOST_BIAS)
        worth[worth == 0] = 1
        scale = step * worth
        seen = columns(inputs)
        weight = _rounded(
            seen.reshape(-1, len(kernel)), kernel / worth, exact[i].reshape(-1, len(bias)) / scale
        )
        found = seen @ weight
        bias = np.rint((exact[i] / scale - found).mean((0, 1, 2)))
        top, room = TOP, headroom if i else 1.0
        if i == len(kernels) - 1:
            top, room = HEAD_TOP, HEAD_HEADROOM
        step = (max(float(exact[i].max()), 0.0) or 1.0) * room / top
        multiplier = (scale / step).astype(np.float32)
        weights.append(weight.astype(np.int8))
        sums_biases.append(np.clip(bias, -2 * MOST_BIAS, 2 * MOST_BIAS).astype(np.int32))
        multipliers.append(multiplier)
        inputs = requantise(found + sums_biases[-1], multiplier, top)

    worth = np.maximum(np.abs(head).sum(0) * HEAD_TOP / MOST_HEAD, np.abs(head).max(0) / 32767)
    worth[worth == 0] = 1
    integers = _rint(head / worth).astype(np.int16)
    scale = (step * worth).astype(np.float32).astype(np.float64)
    wanted = np.maximum(exact[-1], 0).reshape(len(frames), -1) @ head + head_bias
    found = inputs.reshape(len(frames), -1) @ integers.astype(np.float64)
    offset = (wanted - found * scale).mean(0).astype(np.float32).astype(np.float64)
    background = np.median(frames, axis=0).astype(np.uint8)
    layers = (tuple(weights), tuple(sums_biases), tuple(multipliers))
    return Quantised(vae.channels, *layers, integers, scale, offset, background, math.nan)


def _rounded(inputs: Floats, weights: Floats, wanted: Floats) -> Floats:
    """Round a layer's weights to integers from -127 to 127, the largest inputs first.

    Args:
        inputs: What the layer sees, integers of shape (places, before).
        weights: What would be right for exact inputs, shape (before, after).
        wanted: What the layer gives with exact inputs, shape (places, after).

    Returns:
        The weights, shape (before, after), whose sums over the inputs are near what is wanted, but for a
        constant that the bias is for.
    """
    if len(weights) > MOST_FITTED:
        return _rint(weights)
    centred = inputs - inputs.mean(0)
    products = centred.T @ centred / len(inputs)
    hold = np.eye(len(weights)) * (np.trace(products) / len(weights) or 1.0)
    missing = wanted - wanted.mean(0) - centred @ weights
    weights = weights + np.linalg.solve(products + HOLD_FIT * hold, centred.T @ missing / len(inputs))

    order = np.argsort(-np.rint(products.diagonal() * 2**20), kind="stable")
    inverse = np.linalg.inv((products + HOLD_ROUND * hold)[np.ix_(order, order)])
    effect = np.linalg.cholesky(inverse).T  # of an error in one weight on those after it
    rest, rounded = weights[order], np.empty_like(weights)
    for begin in range(0, len(order), BLOCK):
        block = range(begin, min(begin + BLOCK, len(order)))
        errors = np.empty((len(block), weights.shape[1]))
        for i in block:
            rounded[order[i]] = np.clip(_rint(rest[i]), -127, 127)
            errors[i - begin] = (rest[i] - rounded[order[i]]) / effect[i, i]
            rest[i + 1 : block.stop] -= np.outer(effect[i, i + 1 : block.stop], errors[i - begin])
        rest[block.stop :] -= effect[begin : block.stop, block.stop :].T @ errors
    return rounded


def _rint(weights: Floats) -> Floats:
    """Round to integers so that the last bits, which each BLAS sums up to otherwise, do not decide.

    Weights that were stored in few bits often lie exactly between two integers; what is nearly there counts
    as being there.
    """
    rounded: Floats = np.rint(np.rint(weights * 2**20) / 2**20)
    return rounded


def parity_error(reference: Latents, latents: Latents, std: Sequence[float]) -> float:
    """Return the largest rms difference over the active dimensions, in standard deviations.

    Args:
        reference: float32 latents of some frames, shape (N, latent_dim).
        latents: The same frames' latents in another precision.
        std: Standard deviation of each dimension over many frames. That of a few frames may be much smaller,
            where a dimension says where something is that is seldom there.

    Example:
        >>> reference = np.array([[-1.0, 0], [1.0, 0]], np.float32)
        >>> round(parity_error(reference, reference + np.float32(0.01), [2.0, 0.0]), 4)
        0.005
    """
    deviations = np.asarray(std)
    active = np.square(deviations) > ACTIVE_VARIANCE
    rms = np.sqrt(np.square(latents - reference).mean(0))
    return float((rms[active] / deviations[active]).max(initial=0.0))


def simulate(quantised: Quantised, frames: Frames) -> Latents:
    """Compute with NumPy what the compiled kernel does, slowly; the bits are the same."""
    inputs = frames.astype(np.float64)  # holds all integers here exactly
    last = len(quantised.channels) - 1
    for i, weight in enumerate(quantised.weight):
        sums = columns(inputs) @ weight.astype(np.float64) + quantised.bias[i]
        inputs = requantise(sums, quantised.multiplier[i], HEAD_TOP if i == last else TOP)
    sums = inputs.reshape(len(frames), -1) @ quantised.head.astype(np.float64)
    return (sums * quantised.scale + quantised.offset).astype(np.float32)


def requantise(sums: Floats, multiplier: npt.NDArray[np.float32], top: int) -> Floats:
    """Turn a convolution's sums into the next layer's inputs: integers from 0 to ``top``."""
    values: Floats = np.minimum(np.maximum(sums, 0).astype(np.float32) * multiplier, np.float32(top))
    return np.rint(values).astype(np.float64)


def columns(pictures: Floats) -> Floats:
    """Return what a convolution's kernel sees at each output, shape (N, H / 2, W / 2, 16 x channels)."""
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (4, 4), (1, 2))[:, ::2, ::2]
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(*windows.shape[:3], -1)


def key_of(vae: VAEConfig, tensors: Tensors, frames: Frames, std: Sequence[float]) -> str:
    """Return a name for the result of :func:`quantise` that no other encoder's has."""
    digest = hashlib.sha256(f"{VERSION} {vae} {list(std)}".encode())
    for name in sorted(tensors):
        if name.startswith(("encoder.", "mean.", "log_variance.")):
            digest.update(tensors[name].tobytes())
    digest.update(frames.tobytes())
    return digest.hexdigest()


def _different(frames: Frames) -> Frames:
    """Leave out frames that came before: a folder repeats frames when it has fewer than 64."""
    first = dict.fromkeys(frame.tobytes() for frame in frames)
    return np.frombuffer(b"".join(first), np.uint8).reshape(-1, *FRAME_SHAPE)


def _matrices(vae: VAEConfig, tensors: Tensors) -> tuple[list[Floats], list[Floats], Floats, Floats]:
    """Return kernels (16 x before, after) and biases of the convolutions, and those of both heads."""
    layers = range(len(vae.channels))
    kernels = [
        tensors[f"encoder.conv{i}.weight"]
        .transpose(2, 3, 1, 0)
        .reshape(-1, vae.channels[i])
        .astype(np.float64)
        for i in layers
    ]
    kernels[0] /= 255  # pixels count as 0 to 1
    biases = [tensors[f"encoder.conv{i}.bias"].astype(np.float64) for i in layers]
    head = np.concatenate([tensors["mean.weight"], tensors["log_variance.weight"]]).astype(np.float64)
    head = head.reshape(-1, *vae.feature_shape).transpose(2, 3, 1, 0).reshape(-1, 2 * vae.latent_dim)
    return kernels, biases, head, np.concatenate([tensors["mean.bias"], tensors["log_variance.bias"]])


def _forward(kernels: list[Floats], biases: list[Floats], frames: Frames) -> list[Floats]:
    """Return each convolution's result before ReLU."""
    results, inputs = [], frames.astype(np.float64)
    for kernel, bias in zip(kernels, biases, strict=True):
        results.append(columns(inputs) @ kernel + bias)
        inputs = np.maximum(results[-1], 0)
    return results


def _latents(vae: VAEConfig, tensors: Tensors, frames: Frames) -> Latents:
    """Return what both heads make of frames in floating point."""
    kernels, biases, head, head_bias = _matrices(vae, tensors)
    features = np.maximum(_forward(kernels, biases, frames)[-1], 0).reshape(len(frames), -1)
    latents: Latents = (features @ head + head_bias).astype(np.float32)
    return latents

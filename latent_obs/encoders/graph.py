"""The frozen encoder as an OpenVINO graph: ``uint8`` frames in, float32 latents out.

The graph is built from the weights directly, so acting needs neither torch nor a converter. In
int8, weights are quantised per output channel, symmetrically, and activations per tensor over the
range that calibration frames reach (min-max): OpenVINO turns these fake quantisations into int8
kernels when it compiles.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino as ov
from openvino import opset13 as ops

from latent_obs.encoders.folder import Latents, Precision, Tensors, VAEConfig
from latent_obs.frames import FRAME_SHAPE, Frames

# A batch size that keeps coming back gets a graph of its own, which runs about a tenth faster
# than one for any size; compiling it takes some 40 ms.
_OWN_GRAPH_AFTER = 10
_OWN_GRAPHS = 4


def build_graph(
    vae: VAEConfig,
    tensors: Tensors,
    *,
    batch: int = -1,
    ranges: Sequence[float] | None = None,
    activations: bool = False,
    heads: Sequence[str] = ("mean",),
) -> ov.Model:
    """Build the encoder.

    Args:
        vae: Sizes of the networks.
        tensors: Weights, named as in ``model.safetensors``.
        batch: Frames in a call; -1 for any number.
        ranges: Largest value after each convolution's ReLU, from :func:`activation_ranges`;
            the graph is quantised to int8 with them.
        activations: Return the convolutions' results beside the latent.
        heads: What to return of the posterior: its ``"mean"``, its ``"log_variance"`` or both.

    Returns:
        A model from ``uint8`` (N, 64, 64, 3) to float32 (N, latent_dim); with both heads to
        (N, 2 x latent_dim), one after the other.
    """

    def quantise(x: Any, largest: float) -> Any:
        if ranges is None:
            return x
        low, high = np.float32(0), np.float32(largest)
        return ops.fake_quantize(x, low, high, low, high, 256)

    def weight(value: npt.NDArray[np.float32]) -> Any:
        if ranges is None:
            return ops.constant(value)
        axes = tuple(range(1, value.ndim))
        largest = np.abs(value).max(axes, keepdims=True)
        return ops.fake_quantize(ops.constant(value), -largest, largest, -largest, largest, 255)

    frames = ops.parameter([batch, *FRAME_SHAPE], np.uint8, name="frames")
    x = ops.transpose(quantise(ops.convert(frames, "f32"), 255.0), np.array([0, 3, 1, 2]))
    after_relu = []
    for i, channels in enumerate(vae.channels):
        # Pixels become 0 to 1 by dividing the first layer's weights instead of every pixel.
        kernel = weight(tensors[f"encoder.conv{i}.weight"] * np.float32(1 / 255 if i == 0 else 1))
        x = ops.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1])
        x = ops.relu(ops.add(x, tensors[f"encoder.conv{i}.bias"].reshape(1, channels, 1, 1)))
        after_relu.append(x)
        x = quantise(x, ranges[i] if ranges is not None else 0.0)
    # Kernels keep channels last: flattening in that order, with the weights rearranged to match, moves
    # no data.
    x = ops.reshape(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([0, -1]), special_zero=True)
    weights = np.concatenate([tensors[f"{head}.weight"] for head in heads])
    weights = weights.reshape(-1, *vae.feature_shape).transpose(0, 2, 3, 1)
    weights = np.ascontiguousarray(weights.reshape(len(weights), -1))
    bias = np.concatenate([tensors[f"{head}.bias"] for head in heads])
    latent = ops.add(ops.matmul(x, weight(weights), False, True), bias)
    return ov.Model([latent, *(after_relu if activations else [])], [frames], "encoder")


def compile_graph(model: ov.Model, precision: Precision, num_threads: int) -> ov.InferRequest:
    """Compile a graph for the CPU and return a request to run it with."""
    # Left to itself OpenVINO takes bfloat16 where the CPU has it, so it is always told.
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
    }
    return ov.Core().compile_model(model, "CPU", options).create_infer_request()


def activation_ranges(vae: VAEConfig, tensors: Tensors, frames: Frames) -> tuple[Latents, tuple[float, ...]]:
    """Return the float32 latents of calibration frames, and the range of each convolution.

    Args:
        vae: Sizes of the networks.
        tensors: Weights.
        frames: ``uint8``, shape (N, 64, 64, 3), as the encoder meets them.
    """
    request = compile_graph(build_graph(vae, tensors, activations=True), "float32", 1)
    request.infer([frames])
    latents: Latents = request.get_output_tensor(0).data.copy()
    layers = range(1, len(vae.channels) + 1)
    # An unused layer has no range; any positive one quantises its zeros.
    return latents, tuple(float(request.get_output_tensor(i).data.max()) or 1.0 for i in layers)


def has_bfloat16() -> bool:
    """Say whether the CPU computes in bfloat16 natively."""
    return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_int8() -> bool:
    """Say whether the CPU multiplies int8 exactly, with VNNI or AMX where it is an x86.

    Without them an x86 adds pairs of products in 16 bits, which overflow: the latents of ``pong-v0``
    are then off by 13% of their standard deviation, and hardly faster than in float32.
    """
    about = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not about.is_file():
        return True  # not known; the parity gate decides
    return "vnni" in about.read_text()


def compile_encoder(
    vae: VAEConfig,
    tensors: Tensors,
    precision: Precision,
    num_threads: int,
    ranges: Sequence[float] | None = None,
    heads: Sequence[str] = ("mean",),
) -> Callable[[Frames], Latents]:
    """Return a function that encodes batches of any size, ``uint8`` (N, 64, 64, 3).

    Args:
        vae: Sizes of the networks.
        tensors: Weights.
        precision: ``"int8"`` needs ``ranges``.
        num_threads: Threads of one call.
        ranges: From :func:`activation_ranges`.
        heads: As for :func:`build_graph`.
    """
    assert (ranges is not None) == (precision == "int8")
    any_size = compile_graph(build_graph(vae, tensors, ranges=ranges, heads=heads), precision, num_threads)
    own: dict[int, tuple[Any, Any, Any]] = {}
    seen: dict[int, int] = {}

    def encode(batch: Frames) -> Latents:
        size = len(batch)
        fixed = own.get(size)
        if fixed is not None:
            request, source, result = fixed
            source[...] = batch
            request.infer(share_outputs=True)
            latents: Latents = result.copy()
            return latents
        any_size.set_input_tensor(ov.Tensor(np.ascontiguousarray(batch)))
        any_size.infer(share_outputs=True)
        latents = any_size.get_output_tensor().data.copy()
        seen[size] = seen.get(size, 0) + 1
        if seen[size] == _OWN_GRAPH_AFTER and len(own) < _OWN_GRAPHS:
            model = build_graph(vae, tensors, batch=size, ranges=ranges, heads=heads)
            request = compile_graph(model, precision, num_threads)
            own[size] = (request, request.get_input_tensor().data, request.get_output_tensor().data)
        return latents

    return encode

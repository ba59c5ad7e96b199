"""The frozen encoder as an OpenVINO graph: ``uint8`` frames in, float32 latents out.

The graph is built from the weights directly, so acting needs neither torch nor a converter. In int8 it
has the integers of :mod:`latent_obs.encoders.quantise`: OpenVINO turns fake quantisations into int8
kernels when it compiles.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.encoders.folder import Latents, Precision, Tensors, VAEConfig
from latent_obs.encoders.quantise import HEAD_TOP, TOP, Quantised
from latent_obs.frames import FRAME_SHAPE, Frames

# Importing openvino reports to an analytics server by way of openvino_telemetry, and writes an id into the
# home folder. Where that package is missing openvino does neither, so it is made to look missing meanwhile.
_absent = "openvino_telemetry" not in sys.modules
if _absent:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
try:
    import openvino as ov
    from openvino import opset13 as ops
    from openvino.frontend import FrontEndManager
finally:
    if _absent:
        del sys.modules["openvino_telemetry"]

# A batch size that keeps coming back gets a graph of its own, which runs about a tenth faster
# than one for any size; compiling it takes some 40 ms.
_OWN_GRAPH_AFTER = 10
_OWN_GRAPHS = 4

Build = Callable[[int], ov.Model]  # from a batch size, -1 for any


def build_graph(
    vae: VAEConfig,
    tensors: Tensors,
    *,
    batch: int = -1,
    heads: Sequence[str] = ("mean",),
) -> ov.Model:
    """Build the encoder in floating point.

    Args:
        vae: Sizes of the networks.
        tensors: Weights, named as in ``model.safetensors``.
        batch: Frames in a call; -1 for any number.
        heads: What to return of the posterior: its ``"mean"``, its ``"log_variance"`` or both.

    Returns:
        A model from ``uint8`` (N, 64, 64, 3) to float32 (N, latent_dim); with both heads to
        (N, 2 x latent_dim), one after the other.
    """
    frames = ops.parameter([batch, *FRAME_SHAPE], np.uint8, name="frames")
    x = ops.transpose(ops.convert(frames, "f32"), np.array([0, 3, 1, 2]))
    for i in range(len(vae.channels)):
        # Pixels become 0 to 1 by dividing the first layer's weights instead of every pixel.
        kernel = tensors[f"encoder.conv{i}.weight"] * np.float32(1 / 255 if i == 0 else 1)
        x = _convolve(x, ops.constant(kernel), tensors[f"encoder.conv{i}.bias"])
    weights = np.concatenate([tensors[f"{head}.weight"] for head in heads])
    weights = weights.reshape(-1, *vae.feature_shape).transpose(0, 2, 3, 1).reshape(len(weights), -1)
    bias = np.concatenate([tensors[f"{head}.bias"] for head in heads])
    return ov.Model([_finish(x, weights, bias)], [frames], "encoder")


def build_quantised(quantised: Quantised, *, batch: int = -1) -> ov.Model:
    """Build the encoder in int8, with the head in float32.

    Args:
        quantised: The encoder in integers.
        batch: Frames in a call; -1 for any number.

    Returns:
        A model from ``uint8`` (N, 64, 64, 3) to float32 (N, outputs). Its latents are close to those of the
        compiled kernel, but not the same bits: it rounds elsewhere.
    """

    def fake(x: Any, low: Any, high: Any, levels: int) -> Any:
        return ops.fake_quantize(
            x, np.float32(low), np.float32(high), np.float32(low), np.float32(high), levels
        )

    frames = ops.parameter([batch, *FRAME_SHAPE], np.uint8, name="frames")
    x = ops.transpose(fake(ops.convert(frames, "f32"), 0, 255, 256), np.array([0, 3, 1, 2]))
    before, last = 3, len(quantised.channels) - 1
    for i, after in enumerate(quantised.channels):
        # A float here is what lies between two layers: an integer of the kernel's.
        scale = quantised.multiplier[i]
        kernel = quantised.weight[i].reshape(4, 4, before, after).transpose(3, 2, 0, 1) * scale.reshape(
            -1, 1, 1, 1
        )
        largest = (127 * scale).reshape(-1, 1, 1, 1)
        weight = fake(ops.constant(np.ascontiguousarray(kernel)), -largest, largest, 255)
        x = _convolve(x, weight, quantised.bias[i].astype(np.float32) * scale)
        x = ops.clamp(x, 0, HEAD_TOP) if i == last else fake(x, 0, TOP, 256)
        before = after
    weights = quantised.head.T * quantised.scale[:, None]
    latent = _finish(x, weights.astype(np.float32), quantised.offset.astype(np.float32))
    return ov.Model([latent], [frames], "encoder")


def _convolve(x: Any, kernel: Any, bias: npt.NDArray[np.float32]) -> Any:
    x = ops.convolution(x, kernel, [2, 2], [1, 1], [1, 1], [1, 1])
    return ops.relu(ops.add(x, bias.reshape(1, -1, 1, 1)))


def _finish(x: Any, weights: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> Any:
    """Apply the head. Kernels keep channels last, so flattening in that order moves no data."""
    x = ops.reshape(ops.transpose(x, np.array([0, 2, 3, 1])), np.array([0, -1]), special_zero=True)
    return ops.add(ops.matmul(x, ops.constant(np.ascontiguousarray(weights)), False, True), bias)


def compile_graph(model: ov.Model, precision: Precision, num_threads: int) -> ov.InferRequest:
    """Compile a graph for the CPU and return a request to run it with."""
    # Left to itself OpenVINO takes bfloat16 where the CPU has it, so it is always told.
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
        "INFERENCE_NUM_THREADS": num_threads,
        "NUM_STREAMS": 1,
    }
    with _signal_stack_kept():
        return ov.Core().compile_model(model, "CPU", options).create_infer_request()


class _SignalStack(ctypes.Structure):
    """``stack_t`` of POSIX."""

    _fields_ = (("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Leave the thread the stack on which it handles signals.

    OpenVINO gives the thread a stack of its own for every model that it compiles, and brings back the one of
    before when the model is freed. Models that are freed in the order in which they were made so leave the
    thread with a stack that is freed already, and the next signal, such as Ctrl-C, ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        libc.sigaltstack(ctypes.byref(before), None)


def read_onnx(path: Path) -> ov.Model:
    """Read a model from an ONNX file.

    Raises:
        ValueError: If the file is damaged or of another kind.
    """
    # Asked for any kind of file, OpenVINO tries all that it knows and prints what each finds wrong.
    reader = FrontEndManager().load_by_framework("onnx")
    try:
        return reader.convert(reader.load(str(path)))
    except Exception as error:  # OpenVINO has types of its own; its last line says what is wrong
        reason = (str(error).strip().splitlines() or [""])[-1][:200]
        raise ValueError(f"{path} is not a whole ONNX model: {reason}.") from error


def has_bfloat16() -> bool:
    """Say whether OpenVINO computes in bfloat16 on this CPU, quickly or not."""
    with _signal_stack_kept():
        return "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def has_int8() -> bool:
    """Say whether OpenVINO multiplies int8 exactly on this CPU, with VNNI or AMX where it is an x86.

    Without them it adds pairs of products in 16 bits, which overflow: the latents of ``pong-v0``
    are then off by 13% of their standard deviation, and hardly faster than in float32.
    """
    about = Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not about.is_file():
        return True  # not known; the parity gate decides
    return "vnni" in about.read_text()


def compile_encoder(build: Build, precision: Precision, num_threads: int) -> Callable[[Frames], Latents]:
    """Return a function that encodes batches of any size, ``uint8`` (N, 64, 64, 3).

    It has buffers of its own: one thread at a time may call it.

    Args:
        build: Makes the graph for a batch size.
        precision: What OpenVINO computes in; ``"int8"`` where the graph is quantised.
        num_threads: Threads of one call.
    """
    any_size = compile_graph(build(-1), precision, num_threads)
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
            request = compile_graph(build(size), precision, num_threads)
            own[size] = (request, request.get_input_tensor().data, request.get_output_tensor().data)
        return latents

    return encode

"""The VAE in ONNX, for whatever runs it, a browser among others: two files, one for each half.

The graphs are built from the weights directly, in a few operations of opset 17, and are written
only after ONNX Runtime has computed the same numbers with them as torch does with the VAE.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from latent_obs import __version__
from latent_obs.encoders.folder import (
    CALIBRATION_FRAMES,
    EncoderConfig,
    Tensors,
    VAEConfig,
)
from latent_obs.encoders.resolve import resolve
from latent_obs.extras import needs
from latent_obs.files import write_atomically
from latent_obs.frames import FRAME_SHAPE

if TYPE_CHECKING:
    import onnx

FORMAT = "latent_obs.onnx"
VERSION = 1
# The oldest in which every operation below has its present form; its files have IR version 8.
OPSET, IR_VERSION = 17, 8
# Largest difference from torch, in a latent and in a pixel of [0, 1].
TOLERANCE = 1e-4

# An operation, its weights by name, and its attributes.
Step = tuple[str, dict[str, npt.NDArray[Any]], dict[str, Any]]

_HALVING = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}


@dataclass(frozen=True)
class ExportConfig:
    """Write an encoder and its decoder as ONNX files.

    ``latent-obs export --help`` lists the options and says what each means.

    Example:
        >>> str(ExportConfig("pong-v0").out)
        'exported'
    """

    encoder: str
    """name of a bundled encoder, encoder folder written by `latent-obs train`, or hf://USER/NAME"""
    out: Path = Path("exported")
    """folder for encoder.onnx and decoder.onnx"""


def export_encoder(config: ExportConfig) -> dict[str, Any]:
    """Write ``encoder.onnx`` and ``decoder.onnx``, after checking both against torch.

    The check runs the encoder's calibration frames, or random ones where it has none, with ONNX
    Runtime. ``docs/formats.md`` specifies both files.

    Args:
        config: Which encoder, and where to.

    Returns:
        A dictionary with ``frames``, how many were compared, and for each file's name ``bytes``
        and ``max_difference`` from torch, in a latent or in a pixel of [0, 1].

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the encoder folder is damaged, or a graph differs from torch by more than
            1e-4; then nothing is written.
        ImportError: If onnx or onnxruntime is missing.
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> sorted(export_encoder(ExportConfig("shapes-v0", Path(tempfile.mkdtemp()))))
        ['decoder.onnx', 'encoder.onnx', 'frames']
    """
    found = resolve(config.encoder)
    encoder, tensors, frames = found.config, found.tensors(), found.calibration()
    _need_packages()
    if frames is None:
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (CALIBRATION_FRAMES, *FRAME_SHAPE), dtype=np.uint8)
    import torch

    from latent_obs.vae import VAE

    vae = VAE.from_tensors(encoder.vae, tensors)
    with torch.inference_mode():
        means = vae(torch.from_numpy(frames))
        latents, images = means.numpy(), vae.decode(means).numpy()
    metadata = _metadata(found.name, encoder)
    files = {}
    report: dict[str, Any] = {"frames": len(frames)}
    for name, build, given, expected in (
        ("encoder.onnx", encoder_model, frames, latents),
        ("decoder.onnx", decoder_model, latents, images),
    ):
        files[name] = build(encoder.vae, tensors, metadata).SerializeToString()
        difference = _difference(files[name], given, expected)
        if not difference <= TOLERANCE:  # NaN is no parity either
            raise ValueError(
                f"The {name} of {config.encoder} differs from torch by {difference:.2g} on {len(frames)} "
                f"frames, {TOLERANCE:.0e} is allowed. No file was written. Try another onnxruntime."
            )
        report[name] = {"bytes": len(files[name]), "max_difference": difference}
    config.out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(config.out / name, content)
    return report


def encoder_model(vae: VAEConfig, tensors: Tensors, metadata: dict[str, str]) -> onnx.ModelProto:
    """Build the half that acts: ``frames``, uint8 (N, 64, 64, 3), to ``latent``, float32 (N, latent_dim)."""
    from onnx import TensorProto, helper

    steps: list[Step] = [
        ("Cast", {}, {"to": TensorProto.FLOAT}),
        ("Transpose", {}, {"perm": [0, 3, 1, 2]}),  # (N, 3, 64, 64)
    ]
    for i in range(len(vae.channels)):
        weights = _layer(tensors, f"encoder.conv{i}")
        if i == 0:  # pixels become 0 to 1 by dividing the weights instead
            weights["encoder.conv0.weight"] = weights["encoder.conv0.weight"] / np.float32(255)
        steps += [("Conv", weights, _HALVING), ("Relu", {}, {})]
    steps += [
        ("Flatten", {}, {}),  # (N, C * H * W)
        ("Gemm", _layer(tensors, "mean"), {"transB": 1}),
    ]
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["N", *FRAME_SHAPE])
    latent = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", vae.latent_dim])
    return _model("encoder", frames, steps, latent, metadata)


def decoder_model(vae: VAEConfig, tensors: Tensors, metadata: dict[str, str]) -> onnx.ModelProto:
    """Build the half that shows: ``latent`` to ``image``, float32 RGB (N, 64, 64, 3) in [0, 1]."""
    from onnx import TensorProto, helper

    steps: list[Step] = [
        ("Gemm", _layer(tensors, "decoder.linear"), {"transB": 1}),
        ("Reshape", {"decoder.shape": np.array([0, *vae.feature_shape], np.int64)}, {}),  # (N, C, H, W)
    ]
    for i in range(len(vae.channels)):
        steps += [("Relu", {}, {}), ("ConvTranspose", _layer(tensors, f"decoder.conv{i}"), _HALVING)]
    steps += [
        ("Add", {"output_bias": tensors["output_bias"]}, {}),
        ("Sigmoid", {}, {}),
        ("Transpose", {}, {"perm": [0, 2, 3, 1]}),
    ]
    latent = helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["N", vae.latent_dim])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", *FRAME_SHAPE])
    return _model("decoder", latent, steps, image, metadata)


def _layer(tensors: Tensors, layer: str) -> dict[str, npt.NDArray[Any]]:
    """Return a layer's weight and, but for the decoder's last, its bias."""
    names = (f"{layer}.weight", f"{layer}.bias")
    return {name: tensors[name] for name in names if name in tensors}


def _model(
    name: str,
    given: onnx.ValueInfoProto,
    steps: list[Step],
    result: onnx.ValueInfoProto,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """Chain the steps from ``given`` to ``result`` and check the model."""
    from onnx import checker, helper, numpy_helper

    nodes, weights, before = [], [], given.name
    for i, (operation, own, attributes) in enumerate(steps):
        after = result.name if i == len(steps) - 1 else f"{operation}{i}"
        nodes.append(helper.make_node(operation, [before, *own], [after], **attributes))
        weights += [numpy_helper.from_array(value, key) for key, value in own.items()]
        before = after
    model = helper.make_model(
        helper.make_graph(nodes, name, [given], [result], weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="latent_obs",
        producer_version=__version__,
    )
    helper.set_model_props(model, metadata)
    checker.check_model(model, full_check=True)
    return model


def _metadata(name: str, encoder: EncoderConfig) -> dict[str, str]:
    """Return the model's metadata: one entry, ``latent_obs``, in JSON."""
    whole = encoder.to_json()
    kept = ("frame_spec", "vae", "latents", "scaled_as", "source")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "encoder": name,
        **{field: whole[field] for field in kept if field in whole},
    }
    return {"latent_obs": json.dumps(content, allow_nan=False)}


def _difference(model: bytes, given: npt.NDArray[Any], expected: npt.NDArray[np.float32]) -> float:
    """Return the largest difference of a model's results from those expected."""
    run = open_model(model)
    # Once alone and once the rest: N must be free.
    results = np.concatenate([run(given[:1]), run(given[1:])])
    return float(np.abs(results - expected).max())


def open_model(model: bytes | Path) -> Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]:
    """Return a function that runs an ONNX file of one input and one output, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=["CPUExecutionProvider"]
    )
    source = session.get_inputs()[0].name
    return lambda batch: np.asarray(session.run(None, {source: batch})[0])


def _need_packages() -> None:
    with needs("Exporting to ONNX", "onnx"):
        for package in ("torch", "onnx", "onnx.helper", "onnxruntime"):
            importlib.import_module(package)

"""The encoder folder: ``config.json`` and ``model.safetensors``, where training and acting meet.

Reading it needs neither torch nor any inference runtime, and never unpickles.
``docs/formats.md`` specifies both files.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from latent_obs.files import write_atomically
from latent_obs.frames import FRAME_SHAPE, FrameSource, FrameSpec

FORMAT = "latent_obs.encoder"
VERSION = 1
CALIBRATION_FRAMES = 64

Precision = Literal["float32", "bfloat16", "int8"]
Tensors = dict[str, npt.NDArray[np.float32]]
Latents = npt.NDArray[np.float32]  # (N, latent_dim), or (latent_dim,) of one frame

# Burda et al. (2016): a unit is active when the variance of its mean over the data exceeds this.
ACTIVE_VARIANCE = 0.01


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the networks.

    Args:
        latent_dim: Size of the latent.
        channels: Output channels of the encoder's convolutions (4x4, stride 2, padding 1),
            one to six of them; the decoder mirrors them.

    Raises:
        ValueError: If a size is out of range.
    """

    latent_dim: int = 32
    channels: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}.")
        if not 1 <= len(self.channels) <= 6 or min(self.channels) < 1:
            raise ValueError(f"channels must be one to six positive sizes, got {self.channels}.")

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) between the convolutions and the linear layers."""
        side = 64 >> len(self.channels)
        return self.channels[-1], side, side

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor in ``model.safetensors``."""
        shapes: dict[str, tuple[int, ...]] = {}
        features = int(np.prod(self.feature_shape))
        widths = (3, *self.channels)
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            shapes[f"encoder.conv{i}.weight"] = (after, before, 4, 4)
            shapes[f"encoder.conv{i}.bias"] = (after,)
        for head in ("mean", "log_variance"):
            shapes[f"{head}.weight"] = (self.latent_dim, features)
            shapes[f"{head}.bias"] = (self.latent_dim,)
        shapes["decoder.linear.weight"] = (features, self.latent_dim)
        shapes["decoder.linear.bias"] = (features,)
        for i, (before, after) in enumerate(itertools.pairwise(widths[::-1])):
            shapes[f"decoder.conv{i}.weight"] = (before, after, 4, 4)
            if after != 3:  # the last layer's bias is the image below
                shapes[f"decoder.conv{i}.bias"] = (after,)
        shapes["output_bias"] = (3, 64, 64)
        shapes["decoder_variance"] = ()
        return shapes


@dataclass(frozen=True)
class EncoderConfig:
    """What ``config.json`` says.

    Args:
        frame_spec: How frames must be made for this encoder.
        vae: Shape of the networks.
        latents: Per-dimension statistics over the training frames: ``mean`` and ``std`` of
            the latent mean, and ``kl`` in nats.
        source: The environment whose frames it was trained on.
        provenance: Training configuration, data, library versions and date.
        metrics: The report card on held-out episodes.
    """

    frame_spec: FrameSpec
    vae: VAEConfig
    latents: dict[str, list[float]]
    source: FrameSource = field(default_factory=FrameSource)
    provenance: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    @property
    def scaling(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What ``normalize`` subtracts from a latent, and what it then divides by, dimension by dimension.

        They are the mean and standard deviation over the training frames, but an inactive dimension is
        divided by 1: the little that is in it is noise, which must not become as loud as the rest.

        Example:
            >>> latents = {"mean": [0.5, 3.0], "std": [2.0, 0.01], "kl": [4.0, 0.0]}
            >>> shift, scale = EncoderConfig(FrameSpec(), VAEConfig(latent_dim=2), latents).scaling
            >>> shift.tolist(), scale.tolist()
            ([0.5, 3.0], [2.0, 1.0])
        """
        mean, std = np.array(self.latents["mean"]), np.array(self.latents["std"])
        return mean, np.where(np.square(std) > ACTIVE_VARIANCE, std, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "frame_spec": self.frame_spec.to_json(),
            "vae": {"latent_dim": self.vae.latent_dim, "channels": list(self.vae.channels)},
            "latents": self.latents,
            "source": self.source.to_json(),
            "provenance": self.provenance,
            "metrics": self.metrics,
        }

    @classmethod
    def from_json(cls, value: Any) -> EncoderConfig:
        """Build from the content of ``config.json``.

        Raises:
            ValueError: If it is not an encoder's, is from another version, or a field is wrong.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"its 'format' is not {FORMAT!r}")
        if value.get("version") != VERSION:
            raise ValueError(f"it has version {value.get('version')!r}, this latent_obs reads {VERSION}")
        try:
            vae = VAEConfig(int(value["vae"]["latent_dim"]), tuple(value["vae"]["channels"]))
            latents = {name: [float(x) for x in value["latents"][name]] for name in ("mean", "std", "kl")}
        except (KeyError, TypeError) as error:
            raise ValueError(f"the field {error} is missing or has the wrong type") from error
        for name, numbers in latents.items():
            if len(numbers) != vae.latent_dim:
                raise ValueError(f"latents.{name} has {len(numbers)} values for {vae.latent_dim} dimensions")
            if not all(map(math.isfinite, numbers)):
                raise ValueError(f"latents.{name} holds values that are not finite")
        return cls(
            FrameSpec.from_json(value.get("frame_spec")),
            vae,
            latents,
            FrameSource.from_json(value.get("source", {})),
            dict(value.get("provenance", {})),
            dict(value.get("metrics", {})),
        )


def read_config(folder: Path) -> EncoderConfig:
    """Read ``config.json``.

    Raises:
        FileNotFoundError: If the folder or the file is missing.
        ValueError: If it is not the config of an encoder this version reads.
    """
    path = folder / "config.json"
    if not path.is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The encoder folder {folder} {what}. Train one: latent-obs train FRAMES --out {folder}"
        )
    try:
        return EncoderConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} does not describe an encoder: {error}.") from error


def read_tensors(folder: Path, config: EncoderConfig) -> Tensors:
    """Read ``model.safetensors`` as float32 and check it against the config.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged, or its tensors do not fit the config or are not finite.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"The encoder folder {folder} has no model.safetensors.")
    try:
        loaded = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}.") from error
    wanted = config.vae.tensor_shapes()
    if wrong := sorted(set(wanted) ^ set(loaded)):
        raise ValueError(
            f"{path} does not fit its config.json ({config.vae}): missing or unknown tensors "
            f"{', '.join(wrong[:4])}."
        )
    tensors: Tensors = {}
    for name, shape in wanted.items():
        tensor = loaded[name]
        if tensor.shape != shape or tensor.dtype.kind != "f":
            raise ValueError(
                f"{path}: {name} must be floating point of shape {shape}, got {tensor.dtype} "
                f"of shape {tensor.shape}."
            )
        if not np.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} holds values that are not finite.")
        tensors[name] = tensor.astype(np.float32)
    return tensors


def read_calibration(folder: Path) -> npt.NDArray[np.uint8] | None:
    """Read the calibration frames, ``uint8`` (64, 64, 64, 3); ``None`` when there are none.

    Raises:
        ValueError: If ``calibration.png`` is empty, damaged or of another size.
    """
    path = folder / "calibration.png"
    if not path.is_file():
        return None
    # The size stands in the first 24 bytes. A decoder that believed a huge one would fill the memory.
    with open(path, "rb") as file:
        header = file.read(24)
        if len(header) < 24 or header[:8] != b"\x89PNG\r\n\x1a\n" or header[12:16] != b"IHDR":
            what = "is no PNG picture" if header else "is empty"
            raise ValueError(
                f"{path} {what}, so it holds no calibration frames. Fetch or train the encoder again."
            )
        width, height = struct.unpack(">II", header[16:24])
        if (width, height) != (512, 512):
            raise ValueError(
                f"{path} must be a 512x512 picture of 8x8 calibration frames, got {width}x{height}. "
                "Fetch or train the encoder again."
            )
        content = header + file.read()
    sheet = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if sheet is None or sheet.shape != (512, 512, 3):
        raise ValueError(
            f"{path} is damaged, so it holds no calibration frames. Fetch or train the encoder again."
        )
    tiles = cv2.cvtColor(sheet, cv2.COLOR_BGR2RGB).reshape(8, 64, 8, 64, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(CALIBRATION_FRAMES, *FRAME_SHAPE), np.uint8)


def _write_calibration(folder: Path, frames: npt.NDArray[np.uint8]) -> None:
    """Write calibration frames as one lossless picture of 8 x 8 tiles, for people to look at too."""
    tiles = np.resize(frames, (8, 8, *FRAME_SHAPE))  # repeats them when there are fewer than 64
    sheet = tiles.swapaxes(1, 2).reshape(512, 512, 3)
    done, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done
    write_atomically(folder / "calibration.png", png.tobytes())


def write_encoder_folder(
    folder: Path,
    config: EncoderConfig,
    tensors: Tensors,
    calibration: npt.NDArray[np.uint8] | None = None,
) -> None:
    """Write the files atomically, the config last: a folder with a config is whole.

    Args:
        folder: Created where it is missing.
        config: Content of ``config.json``.
        tensors: Content of ``model.safetensors``.
        calibration: Up to 64 training frames, ``uint8`` (N, 64, 64, 3); without them the
            encoder runs in float32 only.

    Raises:
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if calibration is not None:
        _write_calibration(folder, calibration)
    contiguous = {name: tensor.copy(order="C") for name, tensor in tensors.items()}
    write_atomically(folder / "model.safetensors", safetensors.numpy.save(contiguous))
    text = json.dumps(config.to_json(), indent=1, allow_nan=False)
    write_atomically(folder / "config.json", (text + "\n").encode())

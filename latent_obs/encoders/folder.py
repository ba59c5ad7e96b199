"""The encoder folder: ``config.json`` and ``model.safetensors``, where training and acting meet.

Reading it needs neither torch nor any inference runtime, and never unpickles. Every value is checked before
anything uses it. ``docs/formats.md`` specifies both files.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from latent_obs.encoders.provenance import Metrics, Provenance, check, shown
from latent_obs.files import staged
from latent_obs.frames import FRAME_SHAPE, FrameSource, FrameSpec

FORMAT = "latent_obs.encoder"
VERSION = 1
CALIBRATION_FRAMES = 64

Precision = Literal["float32", "bfloat16", "int8"]
Tensors = dict[str, npt.NDArray[np.float32]]
Latents = npt.NDArray[np.float32]  # (N, latent_dim), or (latent_dim,) of one frame

# Burda et al. (2016): a unit is active when the variance of its mean over the data exceeds this.
ACTIVE_VARIANCE = 0.01

# Bounds of what is read. Trained encoders stay far below; what lies above overflows somewhere later.
MAX_SIZE = 65_536  # of the latent, and of a convolution's channels
MAX_STATISTIC = 1e6
MAX_DEVIATIONS = 100  # of a latent that is decoded from those of the training frames
MAX_CONFIG_BYTES = 1 << 24


@dataclass(frozen=True)
class VAEConfig:
    """Shape of the networks.

    Args:
        latent_dim: Size of the latent, 1 to 65,536.
        channels: Output channels of the encoder's convolutions (4x4, stride 2, padding 1), one to six
            numbers from 1 to 65,536; the decoder mirrors them.

    Raises:
        ValueError: If a size is no integer or out of range.

    Example:
        >>> VAEConfig(latent_dim=8).feature_shape
        (128, 8, 8)
    """

    latent_dim: int = 32
    channels: tuple[int, ...] = (32, 64, 128)

    def __post_init__(self) -> None:
        if not _is_size(self.latent_dim):
            raise ValueError(
                f"latent_dim must be an integer from 1 to {MAX_SIZE:,}, got {shown(self.latent_dim)}."
            )
        if not 1 <= len(self.channels) <= 6 or not all(map(_is_size, self.channels)):
            raise ValueError(
                f"channels must be one to six integers from 1 to {MAX_SIZE:,}, got {shown(self.channels)}."
            )

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


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_SIZE


@dataclass(frozen=True)
class EncoderConfig:
    """What ``config.json`` says.

    Args:
        frame_spec: How frames must be made for this encoder.
        vae: Shape of the networks.
        latents: Per-dimension statistics over the training frames: ``mean`` and ``std`` of
            the latent mean, and ``kl`` in nats.
        source: The environment whose frames it was trained on.
        provenance: How it was made; a JSON object is converted.
        metrics: How good it is on held-out episodes; a JSON object is converted.
        weights_sha256: SHA-256 of ``model.safetensors``, by which an interrupted replacement of an encoder is
            noticed. :func:`write_encoder_folder` sets it; ``None`` in folders that are older than this field.
        scaled_as: ``mean`` and ``std`` by which ``normalize`` scales. A refreshed encoder keeps those of the
            encoder that it was made from, and where dimensions hold places, theirs is a quarter of the
            deviation. ``None`` (default): those in ``latents``.
    """

    frame_spec: FrameSpec
    vae: VAEConfig
    latents: dict[str, list[float]]
    source: FrameSource = field(default_factory=FrameSource)
    provenance: Provenance = field(default_factory=Provenance)
    metrics: Metrics = field(default_factory=Metrics)
    weights_sha256: str | None = field(default=None, compare=False)
    scaled_as: dict[str, list[float]] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", Provenance.from_json(self.provenance))
        object.__setattr__(self, "metrics", Metrics.from_json(self.metrics))

    @property
    def scaling(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """What ``normalize`` subtracts from each dimension of a latent, and what it divides it by.

        They are the mean and the standard deviation over the training frames, of a refreshed encoder over
        those of the first encoder in that line; of a dimension that holds a place a quarter of the deviation,
        so that an agent hears it. An inactive dimension is divided by 1, because it holds noise, which must
        not become as loud as the others.

        Example:
            >>> latents = {"mean": [0.5, 3.0], "std": [2.0, 0.01], "kl": [4.0, 0.0]}
            >>> shift, scale = EncoderConfig(FrameSpec(), VAEConfig(latent_dim=2), latents).scaling
            >>> shift.tolist(), scale.tolist()
            ([0.5, 3.0], [2.0, 1.0])
        """
        by = self.latents if self.scaled_as is None else self.scaled_as
        mean, std = np.array(by["mean"]), np.array(by["std"])
        return mean, np.where(np.square(std) > ACTIVE_VARIANCE, std, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``config.json``."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "frame_spec": self.frame_spec.to_json(),
            "vae": {"latent_dim": self.vae.latent_dim, "channels": list(self.vae.channels)},
            "latents": self.latents,
            **({} if self.scaled_as is None else {"scaled_as": self.scaled_as}),
            "source": self.source.to_json(),
            "provenance": self.provenance.to_json(),
            "metrics": self.metrics.to_json(),
            **({} if self.weights_sha256 is None else {"weights_sha256": self.weights_sha256}),
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
        sizes = check(value.get("vae"), dict[str, object], "vae")
        channels = check(sizes.get("channels"), list[int], "vae.channels")
        vae = VAEConfig(check(sizes.get("latent_dim"), int, "vae.latent_dim"), tuple(channels))
        latents = _statistics(value.get("latents"), "latents", ("mean", "std", "kl"), vae.latent_dim)
        scaled_as = value.get("scaled_as")
        if scaled_as is not None:
            scaled_as = _statistics(scaled_as, "scaled_as", ("mean", "std"), vae.latent_dim)
        source = check(value.get("source", {}), dict[str, object], "source")
        for name in ("env_kwargs", "emulator"):
            check(source.get(name, {}), dict[str, object], f"source.{name}")
        return cls(
            FrameSpec.from_json(value.get("frame_spec")),
            vae,
            latents,
            FrameSource.from_json(source),
            Provenance.from_json(value.get("provenance", {})),
            Metrics.from_json(value.get("metrics", {})),
            check(value.get("weights_sha256"), str | None, "weights_sha256"),
            scaled_as,
        )


def _statistics(value: Any, where: str, names: tuple[str, ...], latent_dim: int) -> dict[str, list[float]]:
    """Read statistics of the latents, one number for each dimension under each name."""
    known = check(value, dict[str, object], where)
    read = {name: check(known.get(name), list[float], f"{where}.{name}") for name in names}
    for name, numbers in read.items():
        if len(numbers) != latent_dim:
            raise ValueError(f"{where}.{name} has {len(numbers)} values for {latent_dim} dimensions")
        if max(map(abs, numbers)) > MAX_STATISTIC:
            raise ValueError(f"{where}.{name} holds values beyond {MAX_STATISTIC:,.0f}")
    if min(read["std"]) <= 0:
        raise ValueError(f"{where}.std holds a value that is not positive")
    return read


def read_config(folder: Path) -> EncoderConfig:
    """Read ``config.json``.

    Raises:
        FileNotFoundError: If the folder or the file is missing.
        ValueError: If it is not the config of an encoder this version reads.
    """
    path = folder / "config.json"
    if not path.is_file():
        if folder.is_file():
            raise FileNotFoundError(f"{folder} is a file. Pass the encoder folder that it lies in.")
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"The encoder folder {folder} {what}. Train one: latent-obs train FRAMES --out {folder}"
        )
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it is larger than {MAX_CONFIG_BYTES:,} bytes")
        return EncoderConfig.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path} does not describe an encoder: {str(error).rstrip('.')}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} does not describe an encoder: it is nested too deeply.") from error


def read_tensors(folder: Path, config: EncoderConfig) -> Tensors:
    """Read ``model.safetensors`` as float32 and check it against the config.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged or another file than the one that the config describes, or if its
            tensors do not fit the config, are not finite or make float32 overflow.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"The encoder folder {folder} has no model.safetensors.")
    data = path.read_bytes()
    try:
        loaded = safetensors.numpy.load(data)
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
        with np.errstate(over="ignore"):
            tensors[name] = tensor.astype(np.float32)
        if not np.isfinite(tensors[name]).all():
            raise ValueError(f"{path}: {name} holds values that are not finite.")
    if not tensors["decoder_variance"] > 0:
        raise ValueError(f"{path}: decoder_variance must be positive, got {tensors['decoder_variance']}.")
    if not _largest_value(config, tensors) < float(np.finfo(np.float32).max):
        raise ValueError(f"{path} holds weights so large that float32 overflows when a frame is encoded.")
    if config.weights_sha256 not in (None, hashlib.sha256(data).hexdigest()):
        raise ValueError(
            f"{path} holds other weights than its config.json describes: one of the two files was replaced "
            "without the other, as by a copy that was interrupted. Copy both again, or train the encoder "
            f"again with --out {folder} --overwrite. If you changed the weights yourself, delete "
            '"weights_sha256" from config.json.'
        )
    return tensors


def _largest_value(config: EncoderConfig, tensors: Tensors) -> float:
    """Bound what any layer makes of a frame or of its latent: sums of absolute weights, layer by layer."""

    def after(name: str, before: float, axis: int = 0) -> float:
        weight = np.abs(tensors[f"{name}.weight"]).astype(np.float64)
        sums = weight.sum(tuple(i for i in range(weight.ndim) if i != axis)) * before
        return float((sums + np.abs(tensors.get(f"{name}.bias", np.zeros(1)))).max())

    value = largest = 1.0  # of a pixel
    convolutions = range(len(config.vae.channels))
    for i in convolutions:
        value = after(f"encoder.conv{i}", value)
        largest = max(largest, value)
    largest = max(largest, after("log_variance", value))
    largest = max(largest, after("mean", value))
    mean, std = np.abs(config.latents["mean"]), np.array(config.latents["std"])
    value = float((mean + MAX_DEVIATIONS * std).max())
    for name, axis in (("linear", 0), *((f"conv{i}", 1) for i in convolutions)):
        largest = max(largest, value)
        value = after(f"decoder.{name}", value, axis)
    return max(largest, value + float(np.abs(tensors["output_bias"]).max()))


def read_calibration(folder: Path) -> npt.NDArray[np.uint8] | None:
    """Read the calibration frames, ``uint8`` (64, 64, 64, 3); ``None`` when there are none.

    Raises:
        ValueError: If ``calibration.png`` is empty, damaged, of another size or no regular file.
    """
    path = folder / "calibration.png"
    if not path.is_file():
        if path.is_symlink() or path.exists():
            raise ValueError(
                f"{path} is no regular file, so it holds no calibration frames. "
                "Fetch or train the encoder again."
            )
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


def _calibration_png(frames: npt.NDArray[np.uint8]) -> bytes:
    """Return calibration frames as one lossless picture of 8 x 8 tiles, for people to look at too."""
    tiles = np.resize(frames, (8, 8, *FRAME_SHAPE))  # repeats them when there are fewer than 64
    sheet = tiles.swapaxes(1, 2).reshape(512, 512, 3)
    done, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done
    return png.tobytes()


def write_encoder_folder(
    folder: Path,
    config: EncoderConfig,
    tensors: Tensors,
    calibration: npt.NDArray[np.uint8] | None = None,
) -> EncoderConfig:
    """Publish an encoder folder as a whole.

    All files are on disk under temporary names before the first gets its own. An older ``config.json`` is
    withdrawn before the weights are replaced, and the new one comes last: however the process ends, a folder
    with a ``config.json`` holds the weights that it describes.

    Args:
        folder: Created where it is missing.
        config: Content of ``config.json``; its ``weights_sha256`` is set here.
        tensors: Content of ``model.safetensors``.
        calibration: Up to 64 training frames, ``uint8`` (N, 64, 64, 3); without them the
            encoder runs in float32 only.

    Returns:
        The config as it was written.

    Raises:
        OSError: If the folder cannot be written; what was in it is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = safetensors.numpy.save({name: tensor.copy(order="C") for name, tensor in tensors.items()})
    config = replace(config, weights_sha256=hashlib.sha256(weights).hexdigest())
    text = json.dumps(config.to_json(), indent=1, allow_nan=False)
    files = {"model.safetensors": weights, "config.json": (text + "\n").encode()}
    if calibration is not None:
        files = {"calibration.png": _calibration_png(calibration), **files}
    with staged({folder / name: data for name, data in files.items()}):
        (folder / "config.json").unlink(missing_ok=True)
    return config

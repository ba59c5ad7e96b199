"""Frozen encoders: frames in, latents out.

This is the acting half. It reads encoder folders and runs them with OpenVINO, so a process
that only acts never imports torch.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from latent_obs.encoder_folder import EncoderConfig, Tensors, read_config, read_tensors
from latent_obs.frames import FRAME_SHAPE, FrameSpec

if TYPE_CHECKING:
    import torch

Backend = Literal["openvino", "torch"]
Latents = npt.NDArray[np.float32]
_Run = Callable[[npt.NDArray[np.uint8]], Latents]

PRETRAINED = Path(__file__).parent / "pretrained"


class Encoder:
    """Encodes frames with a frozen network.

    The network is compiled at the first call in each process, so an encoder pickles, deepcopies
    and survives ``fork``. Build one with :func:`load_encoder`.

    Attributes:
        ref: What to pass to :func:`load_encoder` to get this encoder again.
        config: The content of the encoder folder's ``config.json``.
        backend: ``"openvino"`` or ``"torch"``.
        num_threads: Threads of one call.
    """

    def __init__(
        self, ref: str, config: EncoderConfig, tensors: Tensors, backend: Backend, num_threads: int
    ) -> None:
        self.ref, self.config, self.backend, self.num_threads = ref, config, backend, num_threads
        self._tensors = tensors
        self._run: _Run | None = None

    @property
    def frame_spec(self) -> FrameSpec:
        """How observations must be turned into frames for this encoder."""
        return self.config.frame_spec

    @property
    def latent_dim(self) -> int:
        """Size of a latent."""
        return self.config.vae.latent_dim

    def __call__(self, frames: npt.NDArray[np.uint8]) -> Latents:
        """Encode frames.

        Args:
            frames: ``uint8`` RGB, shape ``(64, 64, 3)`` or ``(N, 64, 64, 3)``, made by
                :func:`latent_obs.preprocess` with :attr:`frame_spec`.

        Returns:
            The posterior means, float32 of shape ``(latent_dim,)`` or ``(N, latent_dim)``; a
            new array each time, unbounded, near standard normal over the training frames.

        Raises:
            ValueError: If ``frames`` has another dtype or shape.
        """
        if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-3:] != FRAME_SHAPE:
            raise ValueError(
                "An encoder takes uint8 frames of shape (64, 64, 3) or (N, 64, 64, 3), got "
                f"{frames.dtype} of shape {frames.shape}. Make frames with latent_obs.preprocess."
            )
        if self._run is None:
            self._run = _COMPILE[self.backend](self)
            _compiled.add(self)
        if frames.ndim == 3:
            latent: Latents = self._run(frames[None])[0]
            return latent
        if len(frames) == 0:
            return np.empty((0, self.latent_dim), np.float32)
        return self._run(frames)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled network behind: it is a native handle."""
        return {**self.__dict__, "_run": None}

    def __repr__(self) -> str:
        """Return the call that makes this encoder."""
        return f"load_encoder({self.ref!r}, backend={self.backend!r}, num_threads={self.num_threads})"


def load_encoder(
    ref: str | Path, *, backend: Backend | Literal["auto"] = "auto", num_threads: int = 1
) -> Encoder:
    """Load a frozen encoder.

    Args:
        ref: Name of a bundled encoder (see :func:`list_encoders`) or path of an encoder folder.
        backend: ``"openvino"`` or ``"torch"``; ``"auto"`` takes OpenVINO where it is installed.
        num_threads: Threads of one call. One is right for a wrapper, of which there are many.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the folder is damaged or its files do not fit each other.
        ImportError: If the backend is not installed.

    Warns:
        RuntimeWarning: If the encoder is known to have collapsed.
    """
    if backend not in ("auto", "openvino", "torch"):
        raise ValueError(f"backend must be 'auto', 'openvino' or 'torch', got {backend!r}.")
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}.")
    name, folder = _find(ref)
    config = read_config(folder)
    tensors = read_tensors(folder, config)
    if config.metrics.get("collapsed"):
        warnings.warn(
            f"The encoder {name} collapsed in training ({config.metrics.get('active_units')} active "
            f"units of {config.vae.latent_dim}): its latents say next to nothing about the frame.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Encoder(name, config, tensors, _choose_backend(backend), num_threads)


def list_encoders() -> dict[str, EncoderConfig]:
    """Return the bundled encoders by name.

    Example:
        >>> all(config.vae.latent_dim == 32 for config in list_encoders().values())
        True
    """
    return {path.parent.name: read_config(path.parent) for path in sorted(PRETRAINED.glob("*/config.json"))}


def resolve_auto(env_id: str) -> str:
    """Name the bundled encoder that was trained on an environment.

    Args:
        env_id: Gymnasium id of the environment to be wrapped.

    Raises:
        ValueError: If no bundled encoder fits.
    """
    bundled = list_encoders()
    names = [name for name, config in bundled.items() if config.source.env_id == env_id]
    if not names:
        raise ValueError(
            f"No bundled encoder was trained on {env_id or 'this environment'} (there are: "
            f"{', '.join(bundled) or 'none'}). Train one: latent-obs demo --env {env_id or 'ENV'}, "
            "and pass its folder as encoder=."
        )
    return names[-1]  # the newest version


def _find(ref: str | Path) -> tuple[str, Path]:
    """Return the reference that finds the encoder from anywhere, and its folder."""
    folder = PRETRAINED / str(ref)
    if isinstance(ref, str) and ref == Path(ref).name and (folder / "config.json").is_file():
        return ref, folder
    folder = Path(ref).expanduser().absolute()
    if not folder.exists():
        raise FileNotFoundError(
            f"There is no encoder {str(ref)!r}: neither a bundled one "
            f"({', '.join(list_encoders()) or 'none'}) nor a folder. Train one: "
            "latent-obs train FRAMES --out FOLDER"
        )
    return str(folder), folder


def _choose_backend(backend: Backend | Literal["auto"]) -> Backend:
    installed: list[Backend] = [b for b in ("openvino", "torch") if importlib.util.find_spec(b)]  # type: ignore[misc]
    if backend == "auto" and installed:
        return installed[0]
    if backend not in installed:
        wanted = "openvino" if backend == "auto" else backend
        raise ImportError(
            f'The "{wanted}" backend is not installed: pip install {wanted}. Installed backends: '
            f"{', '.join(installed) or 'none'}."
        )
    return backend


def _compile_openvino(encoder: Encoder) -> _Run:
    """Build the network in OpenVINO: ``uint8`` NHWC in, mean out, exact float32 inside."""
    import openvino as ov
    from openvino import opset13 as ops

    tensors, vae = encoder._tensors, encoder.config.vae
    frames = ops.parameter([-1, *FRAME_SHAPE], np.uint8, name="frames")
    x = ops.transpose(ops.convert(frames, "f32"), np.array([0, 3, 1, 2]))
    x = ops.divide(x, np.float32(255))
    for i, channels in enumerate(vae.channels):
        x = ops.convolution(x, tensors[f"encoder.conv{i}.weight"], [2, 2], [1, 1], [1, 1], [1, 1])
        x = ops.relu(ops.add(x, tensors[f"encoder.conv{i}.bias"].reshape(1, channels, 1, 1)))
    x = ops.reshape(x, np.array([0, -1]), special_zero=True)
    x = ops.add(ops.matmul(x, tensors["mean.weight"], False, True), tensors["mean.bias"])
    compiled = ov.Core().compile_model(
        ov.Model([x], [frames], "encoder"),
        "CPU",
        # OpenVINO takes bfloat16 by itself where the CPU has it; here float32 is meant.
        {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": encoder.num_threads,
            "NUM_STREAMS": 1,
        },
    )
    request = compiled.create_infer_request()

    def run(batch: npt.NDArray[np.uint8]) -> Latents:
        request.set_input_tensor(ov.Tensor(np.ascontiguousarray(batch)))
        request.infer()
        latents: Latents = request.get_output_tensor().data.copy()
        return latents

    return run


def _compile_torch(encoder: Encoder) -> _Run:
    """Run the reference network eagerly in torch."""
    import torch

    from latent_obs.vae import VAE

    vae: torch.nn.Module = VAE.from_tensors(encoder.config.vae, encoder._tensors)

    def run(batch: npt.NDArray[np.uint8]) -> Latents:
        threads = torch.get_num_threads()
        torch.set_num_threads(encoder.num_threads)
        try:
            with torch.inference_mode():
                latents: Latents = vae(torch.from_numpy(np.ascontiguousarray(batch))).numpy()
        finally:
            torch.set_num_threads(threads)
        return latents

    return run


_COMPILE: dict[Backend, Callable[[Encoder], _Run]] = {
    "openvino": _compile_openvino,
    "torch": _compile_torch,
}


# A forked child must compile anew: the threads behind its parent's handles did not come along,
# and merely freeing such a handle ends the process, so the child keeps them unused.
_compiled: weakref.WeakSet[Encoder] = weakref.WeakSet()
_inherited: list[_Run | None] = []


def _forget_handles_after_fork() -> None:
    for encoder in _compiled:
        _inherited.append(encoder._run)
        encoder._run = None


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_handles_after_fork)

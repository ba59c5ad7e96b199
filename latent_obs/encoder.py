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
from typing import Any, Literal

import numpy as np

from latent_obs.encoder_folder import (
    EncoderConfig,
    Latents,
    Precision,
    Tensors,
    read_calibration,
    read_config,
    read_tensors,
)
from latent_obs.frames import FRAME_SHAPE, Frames, FrameSource, FrameSpec

Backend = Literal["openvino", "torch"]
Device = Literal["cpu", "cuda"]
_Run = Callable[[Frames], Latents]

PRETRAINED = Path(__file__).parent / "pretrained"


class Encoder:
    """Encodes frames with a frozen network.

    The network is compiled at the first call in each process, so an encoder pickles, deepcopies
    and survives ``fork``. Build one with :func:`load_encoder`.

    Attributes:
        ref: Name or folder of the encoder.
        config: The content of the encoder folder's ``config.json``.
        backend: ``"openvino"`` or ``"torch"``.
        device: ``"cpu"`` or ``"cuda"``.
        num_threads: Threads of one call on the CPU.
    """

    def __init__(
        self,
        ref: str,
        config: EncoderConfig,
        tensors: Tensors,
        calibration: Frames | None,
        options: dict[str, Any],
    ) -> None:
        self.ref, self.config, self._tensors, self._calibration = ref, config, tensors, calibration
        self.backend: Backend = options["backend"]
        self.device: Device = options["device"]
        self.num_threads: int = options["num_threads"]
        self._wanted: Precision | Literal["auto"] = options["precision"]
        self._precision: Precision | None = None
        self._run: _Run | None = None
        self._posterior: _Run | None = None

    @property
    def frame_spec(self) -> FrameSpec:
        """How observations must be turned into frames for this encoder."""
        return self.config.frame_spec

    @property
    def latent_dim(self) -> int:
        """Size of a latent."""
        return self.config.vae.latent_dim

    @property
    def precision(self) -> Precision:
        """The precision it computes in; asking compiles the network."""
        self._compile()
        assert self._precision is not None
        return self._precision

    @property
    def spec(self) -> str | dict[str, Any]:
        """JSON that makes this encoder again: its ``ref``, or the arguments of :func:`load_encoder`."""
        options: dict[str, Any] = {"precision": self._wanted, "num_threads": self.num_threads}
        if self.backend != _choose_backend("auto", "auto") or self.device != "cpu":
            options |= {"backend": self.backend, "device": self.device}
        defaults = {"precision": "auto", "num_threads": 1}
        return self.ref if options == defaults else {"ref": self.ref, **options}

    def __call__(self, frames: Frames) -> Latents:
        """Encode frames.

        Args:
            frames: ``uint8`` RGB, shape ``(64, 64, 3)`` or ``(N, 64, 64, 3)``, made by
                :func:`latent_obs.preprocess` with :attr:`frame_spec`.

        Returns:
            The posterior means, float32 of shape ``(latent_dim,)`` or ``(N, latent_dim)``; a
            new array each time, unbounded, near standard normal over the training frames. A
            frame's latent does not depend on the others in its batch.

        Raises:
            ValueError: If ``frames`` has another dtype or shape.
        """
        _check_frames(frames)
        run = self._run or self._compile()
        if frames.ndim == 3:
            latent: Latents = run(frames[None])[0]
            return latent
        if len(frames) == 0:
            return np.empty((0, self.latent_dim), np.float32)
        return run(frames)

    def posterior(self, frames: Frames) -> tuple[Latents, Latents]:
        """Encode frames to the whole posterior q(z | frame), a diagonal Gaussian.

        Args:
            frames: ``uint8`` RGB, shape ``(64, 64, 3)`` or ``(N, 64, 64, 3)``, made by
                :func:`latent_obs.preprocess` with :attr:`frame_spec`.

        Returns:
            Mean and natural logarithm of the variance, each float32 of shape ``(latent_dim,)`` or
            ``(N, latent_dim)``, computed in :attr:`precision`. The mean is what calling the
            encoder returns.

        Raises:
            ValueError: If ``frames`` has another dtype or shape.
        """
        _check_frames(frames)
        if frames.ndim == 3:
            mean, log_variance = self.posterior(frames[None])
            return mean[0], log_variance[0]
        if self._posterior is None:
            from latent_obs import runtimes

            self._posterior = runtimes.compile_posterior(
                self.backend,
                self.config.vae,
                self._tensors,
                self._calibration,
                self.precision,
                self.num_threads,
                self.device,
            )
        if len(frames) == 0:
            both = np.empty((0, 2 * self.latent_dim), np.float32)
        else:
            both = self._posterior(frames)
        return both[:, : self.latent_dim], both[:, self.latent_dim :]

    def _compile(self) -> _Run:
        if self._run is None:
            from latent_obs import runtimes

            vae, tensors, wanted, threads = self.config.vae, self._tensors, self._wanted, self.num_threads
            if self.backend == "openvino":
                compiled = runtimes.compile_openvino(
                    vae, tensors, self._calibration, wanted, threads, self.ref
                )
            else:
                compiled = runtimes.compile_torch(vae, tensors, wanted, threads, self.device)
            self._run, self._precision = compiled
            _compiled.add(self)
        return self._run

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled network behind: it is a native handle."""
        return {**self.__dict__, "_run": None, "_posterior": None}

    def __repr__(self) -> str:
        """Return the call that makes this encoder."""
        return (
            f"load_encoder({self.ref!r}, backend={self.backend!r}, precision={self._wanted!r}, "
            f"device={self.device!r}, num_threads={self.num_threads})"
        )


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-3:] != FRAME_SHAPE:
        raise ValueError(
            "An encoder takes uint8 frames of shape (64, 64, 3) or (N, 64, 64, 3), got "
            f"{frames.dtype} of shape {frames.shape}. Make frames with latent_obs.preprocess."
        )


def load_encoder(
    ref: str | Path,
    *,
    backend: Backend | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    device: Device | Literal["auto"] = "auto",
    num_threads: int = 1,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        ref: Name of a bundled encoder (see :func:`list_encoders`) or path of an encoder folder.
        backend: ``"openvino"`` or ``"torch"``; ``"auto"`` takes OpenVINO where it is installed,
            and torch on CUDA.
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``. ``"auto"`` takes the fastest whose
            latents of the encoder's calibration frames pass the parity gate: in no active
            dimension may the rms difference from float32 exceed 2% of the latent's standard
            deviation. With torch it is float32.
        device: ``"cpu"`` or ``"cuda"``; ``"auto"`` is the CPU, which is faster than a GPU for few
            frames at a time.
        num_threads: Threads of one call on the CPU. One is right for a wrapper, of which there
            are many.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the folder is damaged, its files do not fit each other, or the options
            contradict each other.
        ImportError: If the backend is not installed.

    Warns:
        RuntimeWarning: If the encoder is known to have collapsed; at the first call, if a precision
            fails the parity gate.
    """
    for name, value, known in (
        ("backend", backend, ("auto", "openvino", "torch")),
        ("precision", precision, ("auto", "float32", "bfloat16", "int8")),
        ("device", device, ("auto", "cpu", "cuda")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}.")
    if num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {num_threads}.")
    backend = _choose_backend(backend, device)
    if device == "cuda" and backend == "openvino":
        raise ValueError("OpenVINO runs on the CPU; for device='cuda' use backend='torch'.")
    if precision == "int8" and backend == "torch":
        raise ValueError("precision='int8' needs backend='openvino'.")
    name, folder = find_encoder(ref)
    config = read_config(folder)
    tensors, calibration = read_tensors(folder, config), read_calibration(folder)
    if precision == "int8" and calibration is None:
        raise ValueError(
            f"The encoder {name} has no calibration.png, so its ranges for int8 are unknown: use another "
            "precision, or train it again."
        )
    if config.metrics.get("collapsed"):
        warnings.warn(
            f"The encoder {name} collapsed in training ({config.metrics.get('active_units')} active "
            f"units of {config.vae.latent_dim}): its latents say next to nothing about the frame.",
            RuntimeWarning,
            stacklevel=2,
        )
    options = {
        "backend": backend,
        "precision": precision,
        "device": "cpu" if device == "auto" else device,
        "num_threads": num_threads,
    }
    return Encoder(name, config, tensors, calibration, options)


def list_encoders() -> dict[str, EncoderConfig]:
    """Return the bundled encoders by name.

    Example:
        >>> all(config.vae.latent_dim == 32 for config in list_encoders().values())
        True
    """
    return {path.parent.name: read_config(path.parent) for path in sorted(PRETRAINED.glob("*/config.json"))}


def resolve_auto(source: FrameSource) -> str:
    """Name the bundled encoder that was trained on an environment.

    Args:
        source: The environment to be wrapped. An ALE game is known by its name, whatever the id.

    Raises:
        ValueError: If no bundled encoder fits.

    Example:
        >>> resolve_auto(FrameSource("PongNoFrameskip-v4", {}, {"game": "pong"}))
        'pong-v0'
    """
    bundled = list_encoders()
    game = source.emulator.get("game")
    names = [
        name
        for name, config in bundled.items()
        if (game and game == config.source.emulator.get("game")) or config.source.env_id == source.env_id
    ]
    if not names:
        env_id = source.env_id or "ENV"
        raise ValueError(
            f"No bundled encoder was trained on {env_id} (there are: {', '.join(bundled) or 'none'}). "
            f"Train one: latent-obs demo --env {env_id}, and pass its folder as encoder=."
        )
    return names[-1]  # the newest version


def find_encoder(ref: str | Path) -> tuple[str, Path]:
    """Return the reference that finds the encoder from anywhere, and its folder.

    Args:
        ref: Name of a bundled encoder or path of an encoder folder.

    Raises:
        FileNotFoundError: If there is neither.
    """
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


def _choose_backend(backend: Backend | Literal["auto"], device: str) -> Backend:
    known: tuple[Backend, ...] = ("openvino", "torch")
    installed = [name for name in known if importlib.util.find_spec(name)]
    if backend == "auto":
        backend = "torch" if device == "cuda" or "openvino" not in installed else "openvino"
    if backend not in installed:
        raise ImportError(
            f'The "{backend}" backend is not installed: pip install {backend}. Installed backends: '
            f"{', '.join(installed) or 'none'}."
        )
    return backend


# A forked child must compile anew: the threads behind its parent's handles did not come along,
# and merely freeing such a handle ends the process, so the child keeps them unused.
_compiled: weakref.WeakSet[Encoder] = weakref.WeakSet()
_inherited: list[_Run | None] = []


def _forget_handles_after_fork() -> None:
    for encoder in _compiled:
        _inherited.extend((encoder._run, encoder._posterior))
        encoder._run = encoder._posterior = None


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_handles_after_fork)

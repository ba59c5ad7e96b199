"""Frozen encoders: frames in, latents out.

This is the acting half. It reads encoder folders and runs them without torch, so a process that
only acts never imports it.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
import weakref
from typing import Any, Literal

import numpy as np

from latent_obs.encoders import runtimes
from latent_obs.encoders.folder import EncoderConfig, Latents, Precision, Tensors
from latent_obs.encoders.resolve import EncoderRef, resolve
from latent_obs.encoders.runtimes import Backend as Backend  # also for who names one
from latent_obs.encoders.runtimes import Device, Options, Run
from latent_obs.frames import FRAME_SHAPE, Frames, FrameSpec

# Latents are scaled unless somebody says otherwise: PPO's MlpPolicy learns faster on scaled ones
# (benchmarks/rl/results/report.md, "latents" and "latents-raw").
NORMALIZE = True


class Encoder:
    """Encodes frames with a frozen network.

    The network is compiled at the first call in each process, so an encoder pickles, deepcopies
    and survives ``fork``. Threads may share one: in int8 they encode at the same time, in other
    precisions they wait for one another. Build one with :func:`load_encoder`.

    Attributes:
        ref: What finds the encoder again: its name, its folder, or ``hf://USER/NAME``.
        config: The content of the encoder folder's ``config.json``.
        backend: ``"torch"``; or ``"openvino"``, also where int8 runs in this package's kernel.
        device: ``"cpu"`` or ``"cuda"``.
        num_threads: Threads of one call on the CPU.
        normalize: Whether latents are scaled to zero mean and unit variance over the training frames.
    """

    def __init__(
        self,
        ref: str,
        config: EncoderConfig,
        tensors: Tensors,
        calibration: Frames | None,
        options: Options,
    ) -> None:
        self.ref, self.config, self._tensors, self._calibration = ref, config, tensors, calibration
        self.backend, self.device, self.num_threads = options.backend, options.device, options.num_threads
        self.normalize = options.normalize
        self._options = options
        self._precision: Precision | None = None
        self._reason = ""
        self._run: Run | None = None
        self._posterior: Run | None = None

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
    def precision_reason(self) -> str:
        """How :attr:`precision` was chosen, in words; asking compiles the network."""
        self._compile()
        return self._reason

    @property
    def statistics(self) -> tuple[Latents, Latents]:
        """Mean and standard deviation of its latents over the training frames, ``(latent_dim,)`` each.

        With :attr:`normalize` they are 0 and 1, but for the deviation of inactive dimensions and of those
        that hold places, which is 4, and for a refreshed encoder, which scales as the encoder does that it
        was made from.
        """
        mean, std = np.array(self.config.latents["mean"]), np.array(self.config.latents["std"])
        if self.normalize:
            shift, scale = self.config.scaling
            mean, std = (mean - shift) / scale, std / scale
        return mean.astype(np.float32), std.astype(np.float32)

    @property
    def spec(self) -> str | dict[str, Any]:
        """JSON that makes this encoder again: its ``ref``, or the arguments of :func:`load_encoder`.

        All but :attr:`normalize`, which ``env.spec`` records beside.
        """
        options: dict[str, Any] = {"precision": self._options.precision, "num_threads": self.num_threads}
        defaults = {"precision": "auto", "num_threads": 1}
        if self.backend != _choose_backend("auto", "auto") or self.device != "cpu":
            options |= {"backend": self.backend, "device": self.device}
        return self.ref if options == defaults else {"ref": self.ref, **options}

    def __call__(self, frames: Frames) -> Latents:
        """Encode frames.

        Args:
            frames: ``uint8`` RGB, shape ``(64, 64, 3)`` or ``(N, 64, 64, 3)``, made by
                :func:`latent_obs.preprocess` with :attr:`frame_spec`.

        Returns:
            The posterior means, float32 of shape ``(latent_dim,)`` or ``(N, latent_dim)``; a
            new array each time, unbounded. With :attr:`normalize` each dimension has zero mean
            and unit variance over the training frames, but for those that hold places
            (:func:`load_encoder`). A frame's latent does not depend on the others in its batch.

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
            encoder returns without :attr:`normalize`, which changes nothing here.

        Raises:
            ValueError: If ``frames`` has another dtype or shape.
        """
        _check_frames(frames)
        if frames.ndim == 3:
            mean, log_variance = self.posterior(frames[None])
            return mean[0], log_variance[0]
        run = self._posterior or self._compile_posterior()
        both = run(frames) if len(frames) else np.empty((0, 2 * self.latent_dim), np.float32)
        return both[:, : self.latent_dim], both[:, self.latent_dim :]

    def _compile(self) -> Run:
        with _compiling:
            if self._run is None:
                compiled = runtimes.compile_mean(
                    self.config, self._tensors, self._calibration, self._options, self.ref
                )
                self._precision, self._reason = compiled.precision, compiled.reason
                self._run = compiled.run
                _compiled.add(self)
            return self._run

    def _compile_posterior(self) -> Run:
        with _compiling:
            if self._posterior is None:
                self._posterior = runtimes.compile_posterior(
                    self.config, self._tensors, self._calibration, self._options, self.precision
                )
            return self._posterior

    def __getstate__(self) -> dict[str, Any]:
        """Leave the compiled network behind: it is a native handle."""
        return {**self.__dict__, "_run": None, "_posterior": None}

    def __repr__(self) -> str:
        """Return the call that makes this encoder."""
        return (
            f"load_encoder({self.ref!r}, backend={self.backend!r}, precision={self._options.precision!r}, "
            f"device={self.device!r}, num_threads={self.num_threads}, normalize={self.normalize})"
        )


def _check_frames(frames: Frames) -> None:
    if frames.dtype != np.uint8 or frames.ndim not in (3, 4) or frames.shape[-3:] != FRAME_SHAPE:
        raise ValueError(
            "An encoder takes uint8 frames of shape (64, 64, 3) or (N, 64, 64, 3), got "
            f"{frames.dtype} of shape {frames.shape}. Make frames with latent_obs.preprocess."
        )


def load_encoder(
    ref: EncoderRef,
    *,
    backend: Backend | Literal["auto"] = "auto",
    precision: Precision | Literal["auto"] = "auto",
    device: Device | Literal["auto"] = "auto",
    num_threads: int = 1,
    normalize: bool = NORMALIZE,
) -> Encoder:
    """Load a frozen encoder.

    Args:
        ref: Name of a bundled encoder (see :func:`list_encoders`), path of an encoder folder, or a
            string ``hf://USER/NAME`` or ``hf://USER/NAME@REVISION`` for one on the Hugging Face Hub.
            The revision is a branch, a tag or a commit; only a commit always names the same weights.
        backend: ``"openvino"`` for the CPU, where OpenVINO runs all but int8, or ``"torch"``; ``"auto"``
            takes OpenVINO where it is installed, and torch on CUDA.
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``. ``"auto"`` takes the precision that is fastest
            on this CPU and passes the parity gate: on the encoder's calibration frames, without those that
            int8 was fitted to, the rms difference from float32 may in no active dimension exceed 2% of the
            latent's standard deviation. :attr:`Encoder.precision_reason` says why it was taken. In int8 the
            latents are the same bits on every CPU, as long as the package's kernel was compiled there;
            where no C compiler was found OpenVINO computes int8, which rounds a little differently. With
            torch ``"auto"`` is float32.
        device: ``"cpu"`` or ``"cuda"``; ``"auto"`` is the CPU, which is faster than a GPU for few
            frames at a time.
        num_threads: Threads of one call on the CPU. One is right for a wrapper, of which there
            are many.
        normalize: Scale latents to zero mean and unit variance over the encoder's training frames,
            dimension by dimension. Inactive dimensions, whose variance is at most 0.01, are
            centred but not scaled. Those that were trained to be places (``places`` of
            :class:`~latent_obs.TrainConfig`) get a standard deviation of 4, so that an agent hears them
            among the others. This is the default, here as in wrappers. :meth:`Encoder.posterior`
            is never scaled.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the folder is damaged, its files do not fit each other, or the options
            contradict each other.
        ImportError: If the backend is not installed, or ``huggingface_hub`` for one on the Hub.
        OSError: If the Hub refuses access, or cannot be reached and the cache does not have it.

    Warns:
        RuntimeWarning: If the encoder is known to have collapsed; at the first call, if the precision
            asked for fails the parity gate, or every fast one does.

    Example:
        >>> load_encoder("shapes-v0")(np.zeros((5, 64, 64, 3), np.uint8)).shape
        (5, 10)
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
    if not isinstance(normalize, bool):
        raise ValueError(f"normalize must be True or False, got {normalize!r}.")
    backend = _choose_backend(backend, device)
    if device == "cuda" and backend == "openvino":
        raise ValueError("OpenVINO runs on the CPU; for device='cuda' use backend='torch'.")
    if precision == "int8" and backend == "torch":
        raise ValueError("precision='int8' needs backend='openvino'.")
    found = resolve(ref)
    name, config, tensors, calibration = found.ref, found.config, found.tensors(), found.calibration()
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
    options = Options(backend, "cpu" if device == "auto" else device, precision, num_threads, normalize)
    return Encoder(name, config, tensors, calibration, options)


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


# One thread at a time compiles. A fork waits until no thread compiles or is inside a runtime: a child
# would find the locks that such a thread holds closed forever.
_compiling = threading.RLock()

# A forked child must compile anew: the threads behind its parent's handles did not come along,
# and merely freeing such a handle ends the process, so the child keeps them unused.
_compiled: weakref.WeakSet[Encoder] = weakref.WeakSet()
_inherited: list[Run | None] = []


def _before_fork() -> None:
    _compiling.acquire()
    runtimes.stop_before_fork()


def _after_fork_in_parent() -> None:
    runtimes.go_on_after_fork()
    _compiling.release()


def _after_fork_in_child() -> None:
    _after_fork_in_parent()  # the forking thread, which holds the locks, is the one that came along
    for encoder in _compiled:
        _inherited.extend((encoder._run, encoder._posterior))
        encoder._run = encoder._posterior = None


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )

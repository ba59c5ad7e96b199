"""Runs a frozen encoder: in integers or with OpenVINO on the CPU, with torch as the reference and on CUDA.

On the CPU there are three precisions. ``"int8"`` runs in the compiled kernel of this package, which gives
the same bits on every CPU, or in OpenVINO where the kernel was not built. ``"bfloat16"`` and ``"float32"``
run in OpenVINO.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latent_obs.encoders import kernel, remembered
from latent_obs.encoders.folder import EncoderConfig, Latents, Precision, Tensors, VAEConfig
from latent_obs.encoders.quantise import MOST_CHANNELS, Quantised
from latent_obs.encoders.quantise import parity_error as parity_error
from latent_obs.frames import FRAME_SHAPE, Frames

if TYPE_CHECKING:
    import torch

# Largest rms difference from float32 that a faster precision may make, in standard deviations.
PARITY = 0.02

# In the kernel's paths with AMX or VNNI int8 is faster than OpenVINO's float32 and bfloat16 on every CPU that
# was tried, so there "auto" saves itself the timing, and with it the import of OpenVINO.
KNOWN_FASTEST = ("amx_int8", "avx512_vnni", "avx_vnni")
# How often a call of one frame is timed; the median counts.
TIMED_CALLS = 30

# On CUDA a batch size is captured as a graph when it comes for the third time; vector environments
# bring odd sizes now and then, which are not worth the memory.
CAPTURE_AFTER, CAPTURES = 3, 8

Run = Callable[[Frames], Latents]
Backend = Literal["openvino", "torch"]
Device = Literal["cpu", "cuda"]

_logger = logging.getLogger("latent_obs")


@dataclass(frozen=True)
class Options:
    """How an encoder is to be run; what :func:`~latent_obs.load_encoder` was told.

    Args:
        backend: ``"openvino"`` for all that runs on the CPU without torch, or ``"torch"``.
        device: ``"cpu"`` or ``"cuda"``.
        precision: The precision asked for, or ``"auto"``.
        num_threads: Threads of one call on the CPU.
        normalize: Whether latents are scaled to zero mean and unit variance over the training frames.
    """

    backend: Backend = "openvino"
    device: Device = "cpu"
    precision: Precision | Literal["auto"] = "auto"
    num_threads: int = 1
    normalize: bool = False


@dataclass(frozen=True)
class Compiled:
    """A network that is ready to run.

    Args:
        run: Encodes frames; threads may call it at the same time.
        precision: What it computes in.
        reason: How the precision was chosen, in words.
    """

    run: Run
    precision: Precision
    reason: str


class TakingTurns:
    """A function with buffers of its own: threads wait for one another, and a fork for all of them."""

    def __init__(self, run: Run) -> None:
        self._run, self._lock = run, threading.RLock()
        _taking_turns.add(self)

    def __call__(self, frames: Frames) -> Latents:
        """Run it when nobody else does."""
        with self._lock:
            return self._run(frames)


_taking_turns: weakref.WeakSet[TakingTurns] = weakref.WeakSet()
_stopped: list[TakingTurns] = []


def stop_before_fork() -> None:
    """Wait until no thread is inside a runtime, whose locks a forked child would find closed forever."""
    _stopped[:] = list(_taking_turns)
    for turns in _stopped:
        turns._lock.acquire()


def go_on_after_fork() -> None:
    """Let the threads of the parent go on."""
    for turns in _stopped:
        turns._lock.release()
    _stopped.clear()


def compile_mean(
    config: EncoderConfig, tensors: Tensors, frames: Frames | None, options: Options, name: str
) -> Compiled:
    """Compile the posterior mean, in the fastest precision that is allowed and passes the parity gate.

    Args:
        config: Of the encoder.
        tensors: Its weights.
        frames: Its calibration frames; without them ``"auto"`` is float32.
        options: How to run it.
        name: Of the encoder, for messages.

    Raises:
        ValueError: If CUDA is asked for and there is none.

    Warns:
        RuntimeWarning: If the precision asked for fails the parity gate, or with ``"auto"`` all but float32.
    """
    if options.backend == "torch":
        scaled = _scaled(config, tensors) if options.normalize else tensors
        precision: Precision = "bfloat16" if options.precision == "bfloat16" else "float32"
        run = compile_torch(config.vae, scaled, precision, options.num_threads, options.device)
        reason = (
            "asked for"
            if options.precision == precision
            else "torch computes in nothing faster exactly enough"
        )
        compiled = Compiled(run, precision, reason)
    else:
        compiled = _OnCPU(config, tensors, frames, options, name).choose()
    _logger.info("The encoder %s runs in %s: %s.", name, compiled.precision, compiled.reason)
    return compiled


def compile_posterior(
    config: EncoderConfig, tensors: Tensors, frames: Frames | None, options: Options, precision: Precision
) -> Run:
    """Compile both heads of the encoder, in the precision that was chosen for the mean.

    Args:
        config: Of the encoder.
        tensors: Its weights.
        frames: Its calibration frames, for int8.
        options: How to run it; ``normalize`` does not count.
        precision: That of what :func:`compile_mean` returned.

    Returns:
        A function from frames to float32 (N, 2 x latent_dim): means, then log-variances.
    """
    heads = ("mean", "log_variance")
    if options.backend == "torch":
        return compile_torch(config.vae, tensors, precision, options.num_threads, options.device, heads)
    return _OnCPU(config, tensors, frames, options, "").compile(precision, heads, normalize=False)


class _OnCPU:
    """Compiles one encoder for the CPU, without torch."""

    def __init__(
        self, config: EncoderConfig, tensors: Tensors, frames: Frames | None, options: Options, name: str
    ) -> None:
        self.config, self.tensors, self.frames = config, tensors, frames
        self.options, self.name = options, name
        self._quantised: Quantised | None = None

    @property
    def quantised(self) -> Quantised:
        """The encoder in integers, both heads."""
        if self._quantised is None:
            assert self.frames is not None
            self._quantised = remembered.quantised(
                self.config.vae, self.tensors, self.frames, self.config.latents["std"]
            )
        return self._quantised

    def compile(self, precision: Precision, heads: Sequence[str] = ("mean",), *, normalize: bool) -> Run:
        """Return the function that encodes."""
        vae, threads = self.config.vae, self.options.num_threads
        if precision == "int8":
            which = slice(0, vae.latent_dim * len(heads))
            integers = self.quantised.outputs(which, *(self.config.scaling if normalize else ()))
            if kernel.paths():
                return kernel.compile_kernel(integers, threads)
            graph = _graph()
            return TakingTurns(
                graph.compile_encoder(lambda n: graph.build_quantised(integers, batch=n), precision, threads)
            )
        graph = _graph()
        tensors = _scaled(self.config, self.tensors) if normalize else self.tensors
        return TakingTurns(
            graph.compile_encoder(
                lambda n: graph.build_graph(vae, tensors, batch=n, heads=heads), precision, threads
            )
        )

    def choose(self) -> Compiled:
        """Compile the fastest precision that passes the gate, or the one that is asked for."""
        wanted, normalize = self.options.precision, self.options.normalize
        if wanted != "auto":
            run = self.compile(wanted, normalize=normalize)
            if (
                wanted != "float32"
                and self.frames is not None
                and (error := self.error(wanted, run)) > PARITY
            ):
                self._warn([f"{wanted} ({error:.1%})"], wanted)
            return Compiled(run, wanted, "asked for")
        if self.frames is None:
            run = self.compile("float32", normalize=normalize)
            return Compiled(
                run, "float32", "there are no calibration frames to check a faster precision with"
            )
        candidates, reason = self._by_speed()
        failed = []
        for precision in candidates:
            run = self.compile(precision, normalize=normalize)
            if precision == "float32" or (error := self.error(precision, run)) <= PARITY:
                break
            failed.append(f"{precision} ({error:.1%})")
        if failed:
            reason += f"; {', '.join(failed)} failed the parity gate of {PARITY:.0%}"
        elif precision != "float32":
            reason += f"; off from float32 by {error:.1%} of a standard deviation, {PARITY:.0%} is allowed"
        # "auto" chooses between int8 and bfloat16 by itself; that nothing fast is left is worth a word.
        if failed and precision == "float32":
            self._warn(failed, precision)
        return Compiled(run, precision, reason)

    def error(self, precision: Precision, run: Run) -> float:
        """Return how far latents are from float32's on calibration frames, as :func:`parity_error` does."""
        fitted = self.quantised.error if precision == "int8" else 0.0
        if precision == "int8" and kernel.paths():
            return fitted  # the same bits
        assert self.frames is not None
        normalize = self.options.normalize
        std = np.array(self.config.latents["std"]) / (self.config.scaling[1] if normalize else 1.0)
        reference = self.compile("float32", normalize=normalize)(self.frames)
        return max(fitted, parity_error(reference, run(self.frames), std.tolist()))

    def _by_speed(self) -> tuple[list[Precision], str]:
        """Return the precisions to try, the fastest first, and why in this order."""
        vae, threads = self.config.vae, self.options.num_threads
        integers = max(vae.channels) <= MOST_CHANNELS
        path = kernel.paths()[0] if kernel.paths() else ""
        if integers and path in KNOWN_FASTEST:
            return ["int8", "float32"], f"the compiled kernel is the fastest on a CPU with {path}"
        assert self.frames is not None
        case = f"{vae.channels} {vae.latent_dim} threads {threads} kernel {path or 'none'}"
        found = remembered.speeds(case)
        if found is None:
            graph, frame = _graph(), self.frames[:1]
            precisions: list[Precision] = ["float32"]
            if graph.has_bfloat16():
                precisions.append("bfloat16")
            if integers and (path or graph.has_int8()):
                precisions.append("int8")
            found = time_calls({p: self.compile(p, normalize=False) for p in precisions}, frame)
            remembered.remember_speeds(case, found)
        order = sorted(found, key=found.__getitem__)  # what comes after float32 is never reached
        times = ", ".join(f"{precision} {found[precision]:.0f} µs" for precision in order)
        return order, f"one frame was timed on this machine: {times}"

    def _warn(self, failed: list[str], precision: Precision) -> None:
        warnings.warn(
            f"The encoder {self.name} fails the parity gate in {', '.join(failed)}: that is how far its "
            f"latents are from float32's, in standard deviations; {PARITY:.0%} is allowed. "
            f"Running in {precision}.",
            RuntimeWarning,
            stacklevel=6,
        )


def _graph() -> Any:
    """Import OpenVINO, which takes 0.2 s, when it is needed."""
    from latent_obs.encoders import graph

    return graph


def time_calls(runs: dict[Precision, Run], frames: Frames) -> dict[Precision, float]:
    """Return the median time of a call in microseconds; the functions take turns."""
    times: dict[Precision, list[float]] = {precision: [] for precision in runs}
    for call in range(TIMED_CALLS + 12):  # the first calls compile and warm up
        for precision, run in runs.items():
            begun = time.perf_counter()
            run(frames)
            if call >= 12:
                times[precision].append((time.perf_counter() - begun) * 1e6)
    return {precision: float(np.median(samples)) for precision, samples in times.items()}


def _scaled(config: EncoderConfig, tensors: Tensors) -> Tensors:
    """Return the weights to run: ``normalize`` is folded into those of the mean, where it is free."""
    shift, scale = config.scaling
    weight, bias = tensors["mean.weight"] / scale[:, None], tensors["mean.bias"] - shift
    folded = {"mean.weight": weight, "mean.bias": bias / scale}
    return {**tensors, **{name: value.astype(np.float32) for name, value in folded.items()}}


def compile_torch(
    vae_config: VAEConfig,
    tensors: Tensors,
    precision: Precision,
    num_threads: int,
    device_name: str,
    heads: Sequence[str] = ("mean",),
) -> Run:
    """Run the network in torch: eagerly on the CPU, on CUDA as captured graphs.

    Args:
        vae_config: Sizes of the networks.
        tensors: Weights.
        precision: ``"float32"`` or ``"bfloat16"``.
        num_threads: Threads of one call on the CPU.
        device_name: ``"cpu"`` or ``"cuda"``.
        heads: Only the ``"mean"``, or the ``"log_variance"`` behind it too.

    Returns:
        The function that encodes.

    Raises:
        ValueError: If CUDA is asked for and there is none.
    """
    import torch

    from latent_obs.vae import VAE

    device = torch.device(device_name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda' was asked for, but torch sees no CUDA device.")
    vae = VAE.from_tensors(vae_config, tensors).to(device)

    def encode(frames: torch.Tensor) -> torch.Tensor:
        return vae(frames) if len(heads) == 1 else torch.cat(vae.encode(frames), 1)

    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    seen: dict[int, int] = {}
    captured: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = {}

    def capture(size: int) -> tuple[Any, torch.Tensor, torch.Tensor]:
        source = torch.zeros((size, *FRAME_SHAPE), dtype=torch.uint8, device=device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # lazy initialisation must not be captured
            for _ in range(3):
                encode(source)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = encode(source)
        return graph, source, result

    def run(batch: Frames) -> Latents:
        frames = torch.from_numpy(np.ascontiguousarray(batch))
        threads = torch.get_num_threads()
        torch.set_num_threads(num_threads)
        try:
            with torch.inference_mode(), autocast:
                size = len(batch)
                seen[size] = seen.get(size, 0) + 1
                worth_it = seen[size] == CAPTURE_AFTER and len(captured) < CAPTURES
                if device.type == "cuda" and worth_it:
                    captured[size] = capture(size)
                if size in captured:
                    graph, source, result = captured[size]
                    source.copy_(frames)
                    graph.replay()
                    return np.asarray(result.cpu().numpy())
                return np.asarray(encode(frames.to(device)).cpu().numpy())
        finally:
            torch.set_num_threads(threads)

    return TakingTurns(run)

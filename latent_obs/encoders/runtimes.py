"""Runs a frozen encoder: OpenVINO on the CPU, torch as the reference and on CUDA."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from latent_obs.encoders.folder import ACTIVE_VARIANCE, Latents, Precision, Tensors, VAEConfig
from latent_obs.frames import FRAME_SHAPE, Frames

if TYPE_CHECKING:
    import torch

# Largest rms difference from float32 that a faster precision may make, in standard deviations.
PARITY = 0.02

# On CUDA a batch size is captured as a graph when it comes for the third time; vector environments
# bring odd sizes now and then, which are not worth the memory.
CAPTURE_AFTER, CAPTURES = 3, 8

Run = Callable[[Frames], Latents]


def compile_openvino(
    vae: VAEConfig,
    tensors: Tensors,
    frames: Frames | None,
    wanted: Precision | Literal["auto"],
    num_threads: int,
    name: str,
) -> tuple[Run, Precision]:
    """Compile the encoder in the fastest precision that is allowed and passes the parity gate.

    Args:
        vae: Sizes of the networks.
        tensors: Weights.
        frames: Calibration frames; without them ``"auto"`` is float32.
        wanted: A precision, or ``"auto"``.
        num_threads: Threads of one call.
        name: Of the encoder, for warnings.

    Returns:
        The function that encodes, and its precision.
    """
    from latent_obs.encoders import graph

    if wanted == "float32" or frames is None:
        precision: Precision = "float32" if wanted == "auto" else wanted
        return graph.compile_encoder(vae, tensors, precision, num_threads), precision
    reference, ranges = graph.activation_ranges(vae, tensors, frames)
    candidates: list[Precision] = ["int8", "bfloat16", "float32"] if wanted == "auto" else [wanted]
    if wanted == "auto":
        if not graph.has_int8():
            candidates.remove("int8")
        if not graph.has_bfloat16():
            candidates.remove("bfloat16")
    failed = []
    for precision in candidates:
        quantised = ranges if precision == "int8" else None
        run = graph.compile_encoder(vae, tensors, precision, num_threads, quantised)
        error = parity_error(reference, run(frames))
        if error <= PARITY:
            break
        failed.append(f"{precision} ({error:.1%})")
    # "auto" chooses between int8 and bfloat16 by itself; that nothing fast is left is worth a word.
    if failed and (wanted != "auto" or precision == "float32"):
        warnings.warn(
            f"The encoder {name} fails the parity gate in {', '.join(failed)}: that is how far its latents "
            f"are from float32's, in standard deviations; {PARITY:.0%} is allowed. Running in {precision}.",
            RuntimeWarning,
            stacklevel=5,
        )
    return run, precision


def compile_posterior(
    backend: str,
    vae: VAEConfig,
    tensors: Tensors,
    frames: Frames | None,
    precision: Precision,
    num_threads: int,
    device: str,
) -> Run:
    """Compile both heads of the encoder, in the precision that was chosen for the mean.

    Args:
        backend: ``"openvino"`` or ``"torch"``.
        vae: Sizes of the networks.
        tensors: Weights.
        frames: Calibration frames, for int8.
        precision: One that :func:`compile_openvino` or :func:`compile_torch` returned.
        num_threads: Threads of one call on the CPU.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A function from frames to float32 (N, 2 x latent_dim): means, then log-variances.
    """
    heads = ("mean", "log_variance")
    if backend == "torch":
        return compile_torch(vae, tensors, precision, num_threads, device, heads)[0]
    from latent_obs.encoders import graph

    ranges = None
    if precision == "int8":
        assert frames is not None
        ranges = graph.activation_ranges(vae, tensors, frames)[1]
    return graph.compile_encoder(vae, tensors, precision, num_threads, ranges, heads)


def parity_error(reference: Latents, latents: Latents) -> float:
    """Return the largest rms difference over the active dimensions, in standard deviations.

    Args:
        reference: float32 latents of calibration frames, shape (N, latent_dim).
        latents: The same frames' latents in another precision.

    Example:
        >>> reference = np.array([[-1.0, 0], [1.0, 0]], np.float32)
        >>> round(parity_error(reference, reference + np.float32(0.01)), 4)
        0.01
    """
    std = reference.std(0)
    active = np.square(std) > ACTIVE_VARIANCE
    rms = np.sqrt(np.square(latents - reference).mean(0))
    return float((rms[active] / std[active]).max(initial=0.0))


def compile_torch(
    vae_config: VAEConfig,
    tensors: Tensors,
    wanted: Precision | Literal["auto"],
    num_threads: int,
    device_name: str,
    heads: Sequence[str] = ("mean",),
) -> tuple[Run, Precision]:
    """Run the network in torch: eagerly on the CPU, on CUDA as captured graphs.

    Args:
        vae_config: Sizes of the networks.
        tensors: Weights.
        wanted: ``"auto"`` is float32.
        num_threads: Threads of one call on the CPU.
        device_name: ``"cpu"`` or ``"cuda"``.
        heads: Only the ``"mean"``, or the ``"log_variance"`` behind it too.

    Returns:
        The function that encodes, and its precision.

    Raises:
        ValueError: If CUDA is asked for and there is none.
    """
    import torch

    from latent_obs.vae import VAE

    precision: Precision = "bfloat16" if wanted == "bfloat16" else "float32"
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

    return run, precision

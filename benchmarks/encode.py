"""How fast is a frozen encoder, beside eager PyTorch?

$ python benchmarks/encode.py     # about 3 min on 2 cores

Every bundled encoder encodes frames of a short game that it has not seen before, and noise, in which no
pixel equals the background. Everything runs on one thread; the runtimes take turns in runs of calls.
Before anything is timed, float32 must equal eager PyTorch, the other precisions must pass the parity
gate on those frames, and all paths of the compiled kernel must give the same bits.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine, processor

from latent_obs import FrameSpec, list_encoders, load_encoder, preprocess
from latent_obs.collecting.sources import open_env
from latent_obs.encoders import graph, kernel, quantise
from latent_obs.encoders.folder import EncoderConfig
from latent_obs.encoders.quantise import parity_error
from latent_obs.encoders.resolve import resolve
from latent_obs.encoders.runtimes import PARITY
from latent_obs.vae import load_vae


@dataclass(frozen=True)
class Args:
    """Time encoding."""

    encoders: tuple[str, ...] = ()
    """which bundled encoders; default: all"""
    batches: tuple[int, ...] = (1, 8, 64)
    calls: int = 300
    """calls at batch 1; fewer at larger ones"""
    frames: int = 256
    """frames on which parity is asserted"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def played(env_id: str, count: int) -> Any:
    """Return frames of a short game."""
    env = open_env(env_id)
    obs, _ = env.reset(seed=1)
    env.action_space.seed(1)
    frames: list[Any] = []
    for step in range(3 * count):
        if step % 3 == 0:
            frames.append(preprocess(obs, FrameSpec()))
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            obs, _ = env.reset()
    env.close()
    return np.stack(frames)


def played_by(config: EncoderConfig, count: int) -> Any:
    """Return frames of some of the environments that an encoder was trained on."""
    installed = [
        env_id for env_id in config.source.env_ids if env_id.startswith(("ALE/", "CarRacing", "Scenes/"))
    ]
    some = installed[:: max(1, len(installed) // 4)]
    modules = {"Scenes": "latent_obs.scenes:"}
    parts = [played(modules.get(i.partition("/")[0], "") + i, -(-count // len(some))) for i in some]
    mixed = np.concatenate(parts)
    return mixed[np.random.default_rng(0).permutation(len(mixed))[:count]]


def take_turns(functions: dict[str, Callable[[], Any]], calls: int) -> dict[str, Any]:
    """Return the times of each function's calls in microseconds; a turn is a run of ten calls.

    The first call of a run finds the caches as another function left them, and is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(2 + -(-calls // 10)):
        for name, function in functions.items():
            for call in range(11):
                begun = time.perf_counter()
                function()
                if turn >= 2 and call:
                    times[name].append((time.perf_counter() - begun) * 1e6)
    return {name: np.array(samples) for name, samples in times.items()}


def each_in_turn(run: Callable[[Any], Any], frames: Any, size: int) -> Callable[[], Any]:
    """Return a function that encodes the next batch of the frames at each call."""
    batches = itertools.cycle([frames[i : i + size] for i in range(0, len(frames) - size + 1, size)])
    return lambda: run(next(batches))


def check(name: str, frames: Any, eager: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
    """Return what is timed, after checking that all of it encodes the same."""
    reference = eager(frames)
    runs: dict[str, Callable[[Any], Any]] = {"eager PyTorch": eager}
    exact = load_encoder(name, precision="float32", normalize=False)
    np.testing.assert_allclose(exact(frames), reference, atol=1e-3 * reference.std(), rtol=1e-3)
    runs["OpenVINO float32"] = exact
    if "amx_bf16" in processor()[1]:
        runs["OpenVINO bfloat16"] = load_encoder(name, precision="bfloat16", normalize=False)
    found = resolve(name)
    calibration = found.calibration()
    assert calibration is not None
    both = quantise.quantise(found.config.vae, found.tensors(), calibration, found.config.latents["std"])
    integers = both.outputs(slice(0, found.config.vae.latent_dim))
    if graph.has_int8():
        runs["OpenVINO int8"] = graph.compile_encoder(
            lambda size: graph.build_quantised(integers, batch=size), "int8", 1
        )
    if kernel.paths():
        runs["kernel int8"] = load_encoder(name, precision="int8", normalize=False)
    for label, run in runs.items():
        error = parity_error(reference, run(frames), reference.std(0))
        # A game that is short shows less than the calibration frames, and 2% of less is less.
        assert error < 1.5 * PARITY, f"{name}: {label} is off by {error:.1%}"
        print(f"# {name}: {label} is off from eager PyTorch by {error:.2%} of a standard deviation")
    for path in kernel.paths():
        latents = kernel.compile_kernel(integers, path=path)(frames)
        np.testing.assert_array_equal(latents, runs["kernel int8"](frames))
    return runs


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, encoders=args.encoders or ("pong-v0",), batches=(1, 8), calls=5, frames=64)
    torch.set_num_threads(1)
    bundled = list_encoders()
    print(f"# {machine('torch', 'openvino')}, kernel {', '.join(kernel.paths()) or 'not built'}")
    rows = []
    for name in args.encoders or tuple(bundled):
        frames = played_by(bundled[name], args.frames)
        vae, _ = load_vae(name)
        vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # PyTorch's default, as users have it

        def eager(batch: Any, vae: Any = vae) -> Any:
            with torch.inference_mode():
                return vae(torch.from_numpy(batch)).numpy()

        runs = check(name, frames, eager)
        noise = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
        for size in args.batches:
            functions = {label: each_in_turn(run, frames, size) for label, run in runs.items()}
            if kernel.paths():
                functions["kernel int8, noise"] = each_in_turn(runs["kernel int8"], noise, size)
            times = take_turns(functions, max(10, args.calls // size))
            baseline = np.median(times["eager PyTorch"])
            for label, samples in times.items():
                p10, median, p90 = np.percentile(samples, [10, 50, 90]) / size
                rows.append(f"{name:18} {size:5}  {label:18} {median:8.1f} {p10:7.1f} {p90:7.1f}")
                rows[-1] += f" {baseline / size / median:8.1f}x"
    print("encoder            batch  runtime            us/frame     p10     p90  vs eager")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Args))

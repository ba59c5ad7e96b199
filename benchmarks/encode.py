"""How fast is a frozen encoder, beside eager PyTorch and beside the bare OpenVINO graph?

$ python benchmarks/encode.py     # about 1 min on 2 cores

Everything runs on one thread and takes turns. Before anything is timed, float32 must equal eager
PyTorch and the other precisions must pass the parity gate on frames that they were not calibrated on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import tyro
from machine import machine
from openvino import Tensor

from latent_obs import FrameSpec, load_encoder, preprocess
from latent_obs.collecting.sources import open_env
from latent_obs.encoders.folder import Precision, read_calibration, read_config, read_tensors
from latent_obs.encoders.graph import activation_ranges, build_graph, compile_graph, has_bfloat16
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.encoders.runtimes import PARITY, parity_error
from latent_obs.vae import load_vae


@dataclass(frozen=True)
class Args:
    """Time encoding."""

    encoder: str = "pong-v0"
    batches: tuple[int, ...] = (1, 8, 64)
    calls: int = 300
    """calls at batch 1; fewer at larger ones"""


def played(env_id: str, count: int) -> Any:
    """Return frames of a short game."""
    env = open_env(env_id)
    obs, _ = env.reset(seed=1)
    env.action_space.seed(1)
    frames: list[Any] = []
    while len(frames) < count:
        frames.append(preprocess(obs, FrameSpec()))
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            obs, _ = env.reset()
    return np.stack(frames)


def take_turns(functions: dict[str, Callable[[], Any]], calls: int) -> dict[str, Any]:
    """Return the times of each function in microseconds, called in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for call in range(calls + 20):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            if call >= 20:
                times[name].append((time.perf_counter() - begun) * 1e6)
    return {name: np.array(samples) for name, samples in times.items()}


def main(args: Args) -> None:
    torch.set_num_threads(1)
    folder = PRETRAINED / args.encoder
    config = read_config(folder)
    tensors, calibration = read_tensors(folder, config), read_calibration(folder)
    assert calibration is not None
    frames = played(config.source.env_id, 256)
    vae, _ = load_vae(folder)

    def eager(batch: Any) -> Any:
        with torch.inference_mode():
            return vae(torch.from_numpy(batch)).numpy()

    print(f"# {machine('torch', 'openvino')}")
    reference = eager(frames)
    encoders = {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16", "int8")
    for precision in precisions:
        if precision == "bfloat16" and not has_bfloat16():
            continue
        encoders[precision] = load_encoder(args.encoder, precision=precision)
        error = parity_error(reference, encoders[precision](frames))
        assert error < (1e-4 if precision == "float32" else 1.5 * PARITY), f"{precision} is off by {error}"
        print(f"# {precision}: off from eager PyTorch by {error:.2%} of a standard deviation")
    _, ranges = activation_ranges(config.vae, tensors, calibration)

    print("batch  runtime               us     p10     p90  vs eager  over bare graph")
    for size in args.batches:
        batch = np.ascontiguousarray(frames[:size])
        functions: dict[str, Callable[[], Any]] = {"eager PyTorch": partial(eager, batch)}
        for precision, encode in encoders.items():
            quantised = ranges if precision == "int8" else None
            model = build_graph(config.vae, tensors, batch=size, ranges=quantised)
            request = compile_graph(model, precision, 1)
            request.set_input_tensor(Tensor(batch))
            functions[f"{precision} bare"] = partial(request.infer, share_outputs=True)
            functions[precision] = partial(encode, batch)
        times = take_turns(functions, max(30, args.calls // size))
        for name, samples in times.items():
            p10, median, p90 = np.percentile(samples, [10, 50, 90])
            line = f"{size:5}  {name:16} {median:8.0f} {p10:7.0f} {p90:7.0f}"
            line += f" {np.median(times['eager PyTorch']) / median:8.1f}x"
            if f"{name} bare" in times:
                line += f" {median / np.median(times[f'{name} bare']):15.2f}x"
            print(line)


if __name__ == "__main__":
    main(tyro.cli(Args))

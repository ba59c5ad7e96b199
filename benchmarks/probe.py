"""How much of a game's state does a linear classifier read from 32 latents, and how much from all pixels?

$ python benchmarks/probe.py
$ python benchmarks/probe.py --reader paper --frames 50000

Prints the class-weighted F1, averaged over variables and then over categories, on episodes of a random agent
that the classifier was not fitted on. The codes are: none (always the most frequent value), an untrained
network, PCA with 32 components, all 4,096 gray pixels, the bundled encoders trained on the game, and the
state itself, with each probed variable as one number. The state itself shows what a linear classifier reads
from a code that lacks nothing.

With ``--reader paper`` the classifier is that of AtariARI's paper. The gray pixels are then left out, and a
random Nature CNN at full resolution is added, which scored 0.17, 0.51, 0.49 and 0.41 in that paper.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import cv2
import numpy as np
import torch
import tyro
from machine import machine
from torch import nn

from latent_obs import FrameSpec, load_encoder
from latent_obs.encoders.folder import VAEConfig
from latent_obs.encoders.resolve import list_encoders
from latent_obs.evaluation.baselines import fit_baselines
from latent_obs.evaluation.probe import ProbeFrames, collect_probe_frames, probe, probe_ball, probed_variables
from latent_obs.evaluation.report import ProbeScores

_FLOORS = {"random conv-32": "random", "PCA-32": "pca"}


@dataclass(frozen=True)
class Args:
    """Probe representations of Atari games."""

    games: tuple[str, ...] = ("ALE/Pong-v5", "ALE/Breakout-v5", "ALE/MsPacman-v5", "ALE/SpaceInvaders-v5")
    reader: Literal["converged", "paper"] = "converged"
    frames: int = 20_000
    pixels: bool = True
    """probe all 4,096 gray pixels too, which takes most of the time"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: Breakout, a few frames, and no pixels"""


def gray(frames: Any) -> Any:
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames])


def state(data: ProbeFrames) -> Any:
    """Return the variables that the probe asks for, each scaled to zero mean and unit variance, (N, K)."""
    addresses = sorted({at for group in probed_variables(data).values() for at in group.values()})
    values = data.ram[:, addresses].astype(np.float32)
    return (values - values.mean(0)) / values.std(0)


def nature_cnn() -> nn.Module:
    """The untrained baseline of AtariARI: orthogonal weights, 256 features of a 210x160 gray frame."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inside, outside, kernel, stride in ((1, 32, 8, 4), (32, 64, 4, 2), (64, 128, 4, 2), (128, 64, 3, 1)):
        layers += [nn.Conv2d(inside, outside, kernel, stride), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * 9 * 6, 256)]
    for layer in layers:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.orthogonal_(layer.weight, nn.init.calculate_gain("relu"))
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers).eval().requires_grad_(False)


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, games=("ALE/Breakout-v5",), frames=600, pixels=False)
    torch.set_num_threads(1)
    print(f"# {machine('torch', 'ale-py')}")
    print(f"# {args.reader} reader, {args.frames:,} frames a game")
    for env_id in args.games:
        network = nature_cnn()
        seen: list[Any] = []

        def look(observation: Any, network: nn.Module = network, seen: list[Any] = seen) -> None:
            image = cv2.cvtColor(observation, cv2.COLOR_RGB2GRAY)
            seen.append(network(torch.from_numpy(image)[None, None].float() / 255)[0].numpy())

        watch = look if args.reader == "paper" else None
        data = collect_probe_frames(env_id, count=args.frames, watch=watch)
        train, test = data.split()
        codes = fit_baselines(data.frames[train][:4096], VAEConfig())
        columns = {name: codes[key].encode(data.frames) for name, key in _FLOORS.items()}
        if seen:
            columns["random Nature CNN"] = np.stack(seen)
        for name, config in list_encoders().items():
            if config.source.emulator.get("game") == data.game and config.frame_spec == FrameSpec():
                columns[name] = encode(name, data.frames)
        columns["the state itself"] = state(data)
        if args.pixels and args.reader == "converged":
            columns["4,096 gray pixels"] = gray(data.frames).reshape(len(data.frames), -1)
        print(f"\n{env_id}: {train.sum():,} frames to fit, {test.sum():,} to test")
        show("majority", probe(data, None), 0.0)
        for name, values in columns.items():
            begun = time.process_time()
            report = probe(data, values, args.reader)
            show(name, report, time.process_time() - begun)
            if args.reader == "converged" and values.shape[1] <= 256 and (ball := probe_ball(data, values)):
                line = ", ".join(f"{k} x {v['x']:.3f} y {v['y']:.3f}" for k, v in ball.items())
                print(f"{'':20} R^2 of the visible ball: {line}", flush=True)


def encode(name: str, frames: Any) -> Any:
    encoder = load_encoder(name, precision="float32", normalize=False)
    return np.concatenate([encoder(frames[i : i + 64]) for i in range(0, len(frames), 64)])


def show(name: str, report: ProbeScores, seconds: float) -> None:
    parts = ", ".join(f"{category} {f1:.2f}" for category, f1 in report["categories"].items())
    print(f"{name:20} {report['f1']:.3f}   {parts}   ({seconds:.0f} s of CPU)", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))

"""What keeps the ball in 32 numbers: one training recipe beside another, on the same frames.

$ latent-obs collect ALE/Pong-v5 --frames 100000 --out frames
$ python benchmarks/objective.py frames --steps 2000

Trains a small VAE (16-32-64) with each recipe and prints, on held-out episodes, PSNR and the R2 of
moving pixels; on frames of a random agent the F1 of linear probes of the RAM, fitted to convergence and with
the paper's reader, and, for Pong and Breakout, how well ridge regression and an MLP read the visible ball's
x and y. PCA with as many dimensions stands beside it. The same command goes on after Ctrl-C.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from machine import machine

from latent_obs import FramesFolder, TrainConfig, load_encoder, train_vae
from latent_obs.evaluation.baselines import pca_code
from latent_obs.evaluation.probe import ProbeFrames, collect_probe_frames, probe, probe_ball

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "no normalisation": {"batch_norm": False},
    "no emphasis on rare colours": {"rarity_weight": 0.0},
    "linear positions": {"position_weight": 1000.0},
    "no emphasis": {"foreground_weight": 0.0, "rarity_weight": 0.0},
    "neither": {"batch_norm": False, "foreground_weight": 0.0, "rarity_weight": 0.0},
    "learning rate 3e-3": {"learning_rate": 3e-3},
    "four convolutions": {"channels": (16, 32, 64, 128)},
    "128 latents": {"latent_dim": 128},
    "256 latents": {"latent_dim": 256},
    "World Models' sse": {"objective": "sse", "batch_norm": False},
}


@dataclass(frozen=True)
class Args:
    """Compare training recipes."""

    frames: Path
    """frames folder of an ALE game"""
    steps: int = 2000
    recipes: tuple[str, ...] = tuple(RECIPES)
    seed: int = 0
    probe_frames: int = 20_000
    out: Path = Path("objective")
    """folder for the encoders; finished ones of the same settings are kept"""


def main(args: Args) -> None:
    folder = FramesFolder(args.frames)
    env_id = folder.source.env_id
    data = collect_probe_frames(env_id, folder.source.env_kwargs, count=args.probe_frames)
    print(f"# {machine('torch', 'ale-py')}")
    print(f"# {len(folder):,} frames of {env_id}, {args.steps:,} steps of 64 frames, seed {args.seed}")
    columns = ("R2", "PSNR", "KL", "active", "F1", "paper's", "  ball: ridge x, y; MLP x, y")
    print(f"{'':30}" + "".join(f"{name:>10}" for name in columns))
    small = TrainConfig(args.frames, channels=(16, 32, 64), steps=args.steps, seed=args.seed)
    configs = {
        name: replace(small, out=args.out / name.replace(" ", "-"), **RECIPES[name]) for name in args.recipes
    }
    for dims in sorted({config.latent_dim for config in configs.values()}):
        pca = pca_code(folder.sample(4096, folder.split(small.validation, args.seed)[0], args.seed), dims)
        print(f"{f'PCA-{dims}':70}{read(data, pca.encode(data.frames))}", flush=True)
    for name, config in configs.items():
        result = train_vae(config).metrics
        latents = load_encoder(config.out, precision="float32", normalize=False)(data.frames)
        row = [f"{result['moving_r2']:10.3f}", f"{result['psnr']:10.1f}"]
        row += [f"{result['kl']:10.0f}", f"{result['active_units']:10d}"]
        print(f"{name:30}{''.join(row)}{read(data, latents)}", flush=True)


def read(data: ProbeFrames, features: Any) -> str:
    """Return what readers find in features, as columns."""
    f1 = "".join(f"{probe(data, features, reader)['f1']:10.3f}" for reader in ("converged", "paper"))
    ball = probe_ball(data, features) or {}
    return f1 + "".join(f" {axes[axis]:6.3f}" for axes in ball.values() for axis in "xy")


if __name__ == "__main__":
    main(tyro.cli(Args, config=(tyro.conf.PositionalRequiredArgs,)))

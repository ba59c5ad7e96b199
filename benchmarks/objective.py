"""Which training recipe keeps small objects in the latents? Compares recipes on the same frames.

$ latent-obs collect ALE/Pong-v5 --frames 100000 --out frames
$ python benchmarks/objective.py frames --steps 2000

Trains a small VAE (16-32-64) with each recipe and prints two groups of figures. On held-out episodes: the R2
of moving pixels, PSNR, the KL and the number of active units. On frames of a random agent: the F1 of linear
probes of the RAM, fitted to convergence and with the reader of AtariARI's paper, and, for Pong and Breakout,
the R2 at which ridge regression and an MLP read the visible ball's x and y. PCA with as many dimensions is
the baseline. After Ctrl-C the same command goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from machine import machine

from latent_obs import CollectConfig, FramesFolder, TrainConfig, collect_frames, load_encoder, train_vae
from latent_obs.evaluation.baselines import pca_code
from latent_obs.evaluation.probe import ProbeFrames, collect_probe_frames, probe, probe_ball

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "no normalisation": {"batch_norm": False},
    "no emphasis on rare colours": {"rarity_weight": 0.0},
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

    frames: tyro.conf.Positional[Path | None] = None
    """frames folder of an ALE game; default: 100,000 frames of Pong, collected into OUT/frames first"""
    steps: int = 2000
    recipes: tuple[str, ...] = tuple(RECIPES)
    seed: int = 0
    probe_frames: int = 20_000
    out: Path = Path("objective")
    """folder for the encoders; finished ones of the same settings are not trained again"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def main(args: Args) -> None:
    game, count = "ALE/Pong-v5", 100_000
    if args.smallest:
        game, count = "ALE/Breakout-v5", 600  # whose episodes are short
        args = replace(args, frames=None, steps=2, recipes=("default", "no emphasis"), probe_frames=600)
    path = args.frames
    if path is None:
        path = args.out / "frames"
        collect_frames(CollectConfig(game, path, frames=count, workers=1))
    folder = FramesFolder(path)
    env_id = folder.source.env_id
    data = collect_probe_frames(env_id, folder.source.env_kwargs, count=args.probe_frames)
    print(f"# {machine('torch', 'ale-py')}")
    print(f"# {len(folder):,} frames of {env_id}, {args.steps:,} steps of 64 frames, seed {args.seed}")
    columns = ("R2", "PSNR", "KL", "active", "F1", "paper's", "  ball: ridge x, y; MLP x, y")
    print(f"{'':30}" + "".join(f"{name:>10}" for name in columns))
    small = TrainConfig(path, channels=(16, 32, 64), steps=args.steps, seed=args.seed)
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
    """Return the F1 of both probes and the R2 of the ball's coordinates, as columns."""
    f1 = "".join(f"{probe(data, features, reader)['f1']:10.3f}" for reader in ("converged", "paper"))
    ball = probe_ball(data, features) or {}
    return f1 + "".join(f" {axes[axis]:6.3f}" for axes in ball.values() for axis in "xy")


if __name__ == "__main__":
    main(tyro.cli(Args))

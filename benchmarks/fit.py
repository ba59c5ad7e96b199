"""What does a minute of `latent-obs fit` keep of an environment?

$ python benchmarks/fit.py ALE/Pong-v5 ALE/Boxing-v5 --seconds 60     # a minute each, on idle cores

Each environment is fitted by the command, as a user would, from nothing. The time is that of the whole
command, from its start to its end; a faster machine takes more steps in it. Where PCA kept more, it is the
encoder. The figures are those of its report card, on held-out episodes, beside PCA with as many components.
Beside them stands how far int8's latents are from float32's, of which the gate allows 2% of a standard
deviation. Of ALE games whose RAM is known, ridge regression also reads the coordinates of players, balls and
enemies from the latents, and from PCA's features; it is fitted on one random game and measured on another. A
coordinate of zero, which stands for what is not on the screen, does not count.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import machine

from latent_obs.collecting.sources import open_env
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import read_calibration
from latent_obs.encoders.quantise import quantise
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.baselines import pca_code
from latent_obs.evaluation.ram import games, state_variables
from latent_obs.evaluation.readers import ridge, whiten
from latent_obs.evaluation.report import ReportCard
from latent_obs.frames import FrameSpec, preprocess


@dataclass(frozen=True)
class Args:
    """Fit encoders and report what they keep."""

    env_ids: tyro.conf.Positional[tuple[str, ...]] = ("ALE/Pong-v5", "ALE/Breakout-v5", "ALE/Boxing-v5")
    seconds: float = 60.0
    """time for each"""
    seeds: tuple[int, ...] = (0,)
    """seeds of the fits"""
    options: str = ""
    """more options for the command, such as --options=--render"""
    frames: int = 4_000
    """frames to fit ridge regression on, and half as many to measure it on"""
    out: Path | None = None
    """keep the encoders in this folder, as ENVIRONMENT-SEED; default: they are thrown away"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def fit(env_id: str, seconds: float, seed: int, options: str, out: Path) -> float:
    """Run the command in an empty cache; return the seconds of the whole command."""
    command = [sys.executable, "-m", "latent_obs", "fit", env_id, "--out", str(out), "--seed", str(seed)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        subprocess.run(
            [*command, "--seconds", str(seconds), *options.split()],
            check=True,
            env={**os.environ, "LATENT_OBS_HOME": home},
            stdout=subprocess.DEVNULL,
        )
    return time.monotonic() - begun


def play(env_id: str, game: str, frames: int, seed: int) -> tuple[Any, Any, list[str]]:
    """Play at random; return every third frame and what the RAM says then of each coordinate."""
    env = open_env(env_id)
    addresses = {
        name: address
        for category in ("agent", "small_object", "other")
        for name, address in state_variables(game).get(category, {}).items()
        if name.endswith(("_x", "_y"))
    }
    images: list[Any] = []
    state: list[list[float]] = []
    env.reset(seed=seed)
    env.action_space.seed(seed)
    rng = np.random.default_rng(seed)
    action, step = 0, 0
    while len(images) < frames:
        if rng.random() < 0.25:
            action = env.action_space.sample()
        obs, _, terminated, truncated, _ = env.step(action)
        step += 1
        if step % 3 == 0:
            images.append(preprocess(obs, FrameSpec()))
            ram = env.unwrapped.ale.getRAM()  # type: ignore[attr-defined]
            state.append([float(ram[address]) for address in addresses.values()])
        if terminated or truncated:
            env.reset()
    env.close()
    return np.stack(images), np.array(state, np.float32), list(addresses)


def read_positions(fitted: Any, measured: Any, known: Any, truth: Any, names: list[str]) -> dict[str, float]:
    """Return the R² of ridge regression for each coordinate."""
    features, read = whiten(fitted, measured)
    scores = {}
    for i, name in enumerate(names):
        # An object is on the screen if none of its coordinates is 0.
        of = [j for j, other in enumerate(names) if other.rpartition("_")[0] == name.rpartition("_")[0]]
        here, there = ((each[:, of] > 0).all(1) for each in (known, truth))
        if known[here, i].std() < 1 or truth[there, i].std() < 1:
            continue  # it does not move
        center, offset = features[here].mean(0), known[here, i].mean()
        found = ridge(features[here] - center, (known[here, i] - offset)[:, None], read[there] - center)[:, 0]
        residual = np.square(found + offset - truth[there, i]).mean()
        scores[name] = float(1 - residual / truth[there, i].var())
    return scores


def main(args: Args) -> None:
    """Fit each environment with each seed and print a row for it."""
    env_ids, seeds, frames = args.env_ids, args.seeds, args.frames
    if args.smallest:
        env_ids, seeds, frames = ("ALE/Boxing-v5",), (0,), 400
    seconds = 5.0 if args.smallest else args.seconds
    print(f"{machine()}\n")
    columns = ("environment", "seed", "seconds", "frames", "steps", "moving R² (PCA)", "changing R² (PCA)")
    print(f"| {' | '.join(columns)} | int8 | positions by ridge (PCA) |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for env_id in env_ids:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as scratch:
                out = (args.out or Path(scratch)) / f"{env_id.replace(':', '/').split('/')[-1]}-{seed}"
                took = fit(env_id, seconds, seed, args.options, out)
                card = ReportCard.from_json(json.loads((out / "card.json").read_text()))
                found, pca = resolve(out), card.baselines["pca"]
                folder = FramesFolder(out / ".fit" / "frames")
                steps = found.config.provenance.steps
                row = [env_id, str(seed), f"{took:.0f}", f"{len(folder):,}"]
                row += [f"{steps:,}" if steps else "PCA"]
                row += [f"{card.moving_r2:.3f} ({pca.moving_r2:.3f})"]
                row += [f"{card.changing_r2:.3f} ({pca.changing_r2:.3f})"]
                calibration = read_calibration(out)
                assert calibration is not None  # every fit writes it
                std = found.config.latents["std"]
                integers = quantise(found.config.vae, found.tensors(), calibration, std)
                row += [f"{integers.error:.1%}"]
                game = folder.source.emulator.get("game", "")
                if game in games():
                    (images, known, names), (others, truth, _) = (
                        play(env_id, game, count, 901 + i) for i, count in enumerate((frames, frames // 2))
                    )
                    encoder = load_encoder(out)
                    own = read_positions(encoder(images), encoder(others), known, truth, names)
                    code = pca_code(folder.sample(2048), card.latent_dim).encode
                    linear = read_positions(code(images), code(others), known, truth, names)
                    row += [", ".join(f"{name} {own[name]:.2f} ({linear[name]:.2f})" for name in own)]
                else:
                    row += [""]
                print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""Let a trained agent play whole games, and write a clip of it beside what its latents decode to.

$ python benchmarks/rl/watch.py runs_long/qrdqn/Pong/latents/0 --games 100 --out pong

The script prints the returns, which are true rewards of whole games, and writes ``agent.gif``: the
last frames of a game, as the encoder sees them on the left, and decoded from the latents on the right.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from agents import derived_seed, load_model, make_venv
from train_agent import MODEL, RUN, SMALLEST, RunConfig, is_finished, train

from latent_obs.data.show import write_gif
from latent_obs.frames import preprocess
from latent_obs.progress import progress_bar
from latent_obs.vae import load_vae, reconstruct


@dataclass(frozen=True)
class Args:
    """Let an agent play, and write a clip."""

    run: tyro.conf.Positional[Path | None] = None
    """folder of a finished run of train_agent.py on latents"""
    games: int = 100
    """whole games"""
    frames: int = 150
    """frames of the clip, 15 a second"""
    out: Path = Path("watched")
    """folder of agent.gif"""
    smallest: bool = False
    """the smallest form, which CI runs: an agent that hardly learned plays two games"""


def play(run: Path, games: int, frames: int) -> tuple[list[float], list[Any]]:
    """Play games; return their returns and the last observations of the first game that ended.

    Actions are sampled as in training, since an agent that always takes its likeliest action may do nothing
    for hours.
    """
    about = json.loads((run / RUN).read_text())
    settings, ref = about["settings"], about["encoder"]["ref"]
    algorithm = settings.get("algorithm", "ppo")
    venv = make_venv(settings["game"], settings["arm"], ref, min(8, games), algorithm, training=False)
    venv.seed(derived_seed(settings["seed"], 7))
    model = load_model(run / MODEL, venv, "cpu", algorithm)
    raw: Any = venv.unwrapped  # the environments, below the latents
    returns: list[float] = []
    images: list[Any] = []
    clip: list[Any] = []
    observation = venv.reset()
    with progress_bar("games", games, "episodes", True) as bar:
        while len(returns) < games:
            images = [*images[-frames + 1 :], raw.buf_obs[None][0].copy()]
            action, _ = model.predict(observation, deterministic=False)  # type: ignore[arg-type]
            observation, _, _, infos = venv.step(action)
            ended = [float(info["episode"]["r"]) for info in infos if "episode" in info]
            if "episode" in infos[0] and not clip:
                clip = images
            returns += ended
            bar.advance(len(ended))
    venv.close()
    return returns, clip or images


def main(args: Args) -> None:
    if args.smallest:
        run = train(RunConfig("Breakout", steps=128, out=args.out, changes=SMALLEST, progress=False))
        args = Args(run, games=2, frames=20, out=args.out)
    if args.run is None or not is_finished(args.run):
        sys.exit(
            f"error: {args.run} is no finished run. Name the folder of a finished run of train_agent.py."
        )
    returns, images = play(args.run, args.games, args.frames)
    vae, config = load_vae(json.loads((args.run / RUN).read_text())["encoder"]["ref"])
    frames = np.stack([preprocess(image, config.frame_spec) for image in images])
    args.out.mkdir(parents=True, exist_ok=True)
    write_gif(np.concatenate([frames, reconstruct(vae, frames)], 2), 15, args.out / "agent.gif")
    values = np.array(returns)
    error = values.std(ddof=1) / len(values) ** 0.5
    spread = f"least {values.min():g}, most {values.max():g}"
    print(f"{len(values)} games: return {values.mean():.2f} +- {error:.2f}, {spread}")
    print(args.out / "agent.gif")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

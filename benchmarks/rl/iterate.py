"""What does an agent gain if its encoder is trained on what the agent sees?

$ python benchmarks/rl/iterate.py --run runs/Breakout/latents/0 --frames frames --out runs/iterated

A bundled encoder was trained on frames of random play. The script collects frames with a finished agent,
merges them with the old frames, continues the training of the encoder on both, and trains a new agent on the
new latents with the settings and the seed of the first. It prints the return of both agents, and how far the
frames that each agent sees drift from those on which its encoder was trained. After an interruption the same
command skips the finished stages and continues the unfinished one.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro
from agents import env_id
from train_agent import MODEL, RUN, SMALLEST, RunConfig, is_finished, train

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.drift import Drift
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.resolve import resolve
from latent_obs.training.config import TrainConfig
from latent_obs.training.train import train_vae

SAMPLE = 2000  # frames in which the drift is measured


@dataclass(frozen=True)
class Args:
    """Train an encoder on its agent's frames too, and a new agent on that encoder."""

    run: Path | None = None
    """folder of a finished run of train_agent.py on latents"""
    frames: str | None = None
    """the frames folder on which the run's encoder was trained"""
    out: Path = Path("iterated")
    """folder for the frames, the encoder and the new run"""
    new_frames: int = 20_000
    """frames to collect with the agent"""
    encoder_steps: int = 4_000
    """further optimiser steps of the encoder"""
    workers: int = 1
    """processes that collect frames"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: a run, an encoder and frames that are next to nothing"""


def drift(frames: FramesFolder, encoder: str) -> float:
    """Return how far the latents of some frames are from those of the encoder's training frames."""
    loaded = load_encoder(encoder)
    latents = loaded(frames.sample(min(SAMPLE, len(frames))))
    return Drift(loaded, window=max(2, len(latents)), threshold=1e9).update(latents)


def like(encoder: str) -> dict[str, Any]:
    """Return an encoder's sizes and objective, so that only the frames differ in its further training."""
    config = load_encoder(encoder).config
    settings = config.provenance.get("run", {}).get("config", {})
    names = ("objective", "beta", "foreground_weight", "rarity_weight")
    objective = {name: settings[name] for name in names if name in settings}
    return {
        "latent_dim": config.vae.latent_dim,
        "channels": config.vae.channels,
        "rarity_weight": 0.0,  # encoders that record none were trained without it
        **objective,
    }


def collect_with(run: Path, encoder: str, out: Path, args: Args) -> FramesFolder:
    """Collect frames of a finished run's agent, in the environment in which it was trained."""
    settings = json.loads((run / RUN).read_text())["settings"]
    config = CollectConfig(
        "agents:AsTrained-v0",
        out,
        frames=args.new_frames,
        workers=args.workers,
        policy=str(run / MODEL),
        policy_encoder=encoder,
        policy_normalize=settings["arm"] != "latents-raw",
        env_kwargs={"game": settings["game"], "algorithm": settings.get("algorithm", "ppo")},
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Loading the policy .* runs code")  # this script's own model
        return collect_frames(config)


def iterate(args: Args) -> list[str]:
    """Run all stages and return the lines of the result.

    Raises:
        ValueError: If run or frames is missing, or the run is unfinished or not on latents.
    """
    if args.run is None or args.frames is None:
        raise ValueError("iterate.py needs --run, a finished run of train_agent.py, and --frames.")
    if not is_finished(args.run):
        raise ValueError(f"{args.run} is no finished run. Finish it with train_agent.py, then iterate.")
    about = json.loads((args.run / RUN).read_text())
    settings = about["settings"]
    if settings["arm"] == "pixels":
        raise ValueError(f"{args.run} acts on pixels; only an agent on latents can iterate its encoder.")
    old, game = about["encoder"]["ref"], settings["game"]
    new = args.out / "encoder"
    seen = collect_with(args.run, old, args.out / "frames", args)
    merged = args.out / "merged"
    if not merged.exists():
        merge_frames(MergeConfig((args.frames, args.out / "frames"), merged))
    train_vae(TrainConfig(merged, new, init_from=old, kl_warmup=0.0, steps=args.encoder_steps, **like(old)))
    config = RunConfig(
        game,
        settings["arm"],
        settings["seed"],
        settings["steps"],
        args.out / "runs",
        encoder=str(new),
        changes=json.dumps(settings["hyperparameters"]),
        algorithm=settings.get("algorithm", "ppo"),
        threads=settings["threads"],
        device=settings["device"],
    )
    after = json.loads((train(config) / RUN).read_text())
    seen_after = collect_with(config.folder, str(new), args.out / "frames_after", args)
    lines = [
        f"{env_id(game)}, seed {settings['seed']}, {settings['steps']:,} steps of each agent",
        "encoder    return  drift of its agent's frames",
    ]
    for name, ref, run, frames in (("old", old, about, seen), ("iterated", str(new), after, seen_after)):
        mean = run["finished"]["mean_return"]
        shown = "    none" if mean is None else f"{mean:8.2f}"
        lines.append(f"{name:9} {shown}  {drift(frames, ref):.3f} nats per dimension")
    lines.append(f"The iterated encoder is {resolve(new).path}.")
    return lines


def smallest(args: Args) -> Args:
    """Train an agent of Breakout for 128 steps, collect a few frames, and return options to iterate both."""
    frames = CollectConfig("ALE/Breakout-v5", args.out / "old_frames", frames=600, workers=1)
    collect_frames(frames, progress=False)
    config = RunConfig("Breakout", steps=128, out=args.out / "old_runs", changes=SMALLEST, progress=False)
    run = train(config)
    return replace(args, run=run, frames=str(frames.out), new_frames=64, encoder_steps=1)


def main(args: Args) -> None:
    try:
        args = smallest(args) if args.smallest else args
        print("\n".join(iterate(args)))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command continues.")
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(tyro.cli(Args))

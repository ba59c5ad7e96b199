"""What does it gain to train the encoder on what the agent sees?

$ python benchmarks/rl/iterate.py --run runs/Breakout/latents/0 --frames frames --out runs/iterated

A frozen encoder knows what a random player saw. This collects frames with a finished agent, merges them with
the old ones, goes on training the encoder on both, and trains a new agent on the new latents with the same
settings and seed. It prints the return before and after, and the drift of what each agent sees from what its
encoder was trained on. Interrupted, every stage goes on or is skipped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from agents import env_id
from train_agent import MODEL, RUN, RunConfig, is_finished, train

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
    """Retrain an encoder on its agent's frames, and an agent on that."""

    run: Path
    """a finished latents run of train_agent.py"""
    frames: str
    """the frames folder on which its encoder was trained"""
    out: Path = Path("iterated")
    new_frames: int = 20_000
    """frames to collect with the agent"""
    encoder_steps: int = 4_000
    """optimiser steps that the encoder goes on for"""
    workers: int = 1


def drift(frames: FramesFolder, encoder: str) -> float:
    """Return how far the latents of some frames are from those the encoder was trained on."""
    loaded = load_encoder(encoder)
    latents = loaded(frames.sample(min(SAMPLE, len(frames))))
    return Drift(loaded, window=max(2, len(latents)), threshold=1e9).update(latents)


def like(encoder: str) -> dict[str, Any]:
    """Return the sizes and the objective of an encoder, so that nothing but the frames differs."""
    config = load_encoder(encoder).config
    settings = config.provenance.get("run", {}).get("config", {})
    names = ("objective", "beta", "foreground_weight", "rarity_weight")
    objective = {name: settings[name] for name in names if name in settings}
    return {
        "latent_dim": config.vae.latent_dim,
        "channels": config.vae.channels,
        "rarity_weight": 0.0,  # of those that were trained before there was one
        **objective,
    }


def collect_with(run: Path, encoder: str, out: Path, args: Args) -> FramesFolder:
    """Collect frames of a finished run's agent, in the environment in which it was trained."""
    settings = json.loads((run / RUN).read_text())["settings"]
    return collect_frames(
        CollectConfig(
            "agents:AsTrained-v0",
            out,
            frames=args.new_frames,
            workers=args.workers,
            policy=str(run / MODEL),
            policy_encoder=encoder,
            policy_normalize=settings["arm"] != "latents-raw",
            env_kwargs={"game": settings["game"], "algorithm": settings.get("algorithm", "ppo")},
        )
    )


def iterate(args: Args) -> list[str]:
    """Run all stages and return the lines of the result.

    Raises:
        ValueError: If the run is not a finished one on latents.
    """
    if not is_finished(args.run):
        raise ValueError(f"{args.run} is no finished run: train_agent.py finishes it.")
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


def main(args: Args) -> None:
    try:
        print("\n".join(iterate(args)))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on.")
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(tyro.cli(Args))

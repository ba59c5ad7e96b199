"""Does an agent go on where it was when its encoder is refreshed, and what does the new encoder see?

$ python benchmarks/rl/refresh.py --run runs/Breakout/latents/0 --out refreshed

The script refreshes the encoder of a finished run with `latent_obs.refresh`: it collects frames with the
agent and trains the encoder on. Then the same agent, which is not trained, plays as many games with the old
encoder as with the new one. It prints both returns, how much of the old latents the new ones explain, how
well either encoder reconstructs what moves in the agent's frames, and how far those frames drift from the
encoder's training frames. With ``--more-steps`` the agent is trained on twice, with the old and with the new
encoder, by the same settings. After an interruption the same command goes on.
"""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from agents import env_id
from car_racing import Args as Trials
from car_racing import evaluate_agent
from train_agent import MODEL, RUN, SMALLEST, RunConfig, encoder_cost, is_finished, machine, train

from latent_obs.data.folder import FramesFolder
from latent_obs.drift import Drift
from latent_obs.encoders.encoder import load_encoder
from latent_obs.files import write_atomically
from latent_obs.refresh import WORK, RefreshConfig, refresh_encoder

RESULT = "result.json"


@dataclass(frozen=True)
class Args:
    """Refresh the encoder of a run, and let its agent play with the old and with the new one."""

    run: Path | None = None
    """folder of a finished run of train_agent.py on latents"""
    out: Path = Path("refreshed")
    """folder for the encoder, its frames, the games' returns and the runs that go on"""
    frames: str | None = None
    """frames folder on which the run's encoder was trained; default: random play is collected"""
    new_frames: int = 10_000
    """frames to collect with the agent"""
    encoder_steps: int = 2_000
    """further optimiser steps of the encoder"""
    anchor: float = RefreshConfig.anchor
    """hold each latent within about this many standard deviations"""
    games: int = 200
    """games with each encoder"""
    more_steps: int = 0
    """steps for which the agent is trained on, with each encoder"""
    workers: int = 1
    """processes that collect frames"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: a run, an encoder and frames that are next to nothing"""


def drift(frames: FramesFolder, encoder: str) -> float:
    """Return how far the latents of some frames are from those of the encoder's training frames."""
    loaded = load_encoder(encoder)
    latents = loaded(frames.load())
    return Drift(loaded, window=max(2, len(latents)), threshold=1e9).update(latents)


def play(agent: Path, game: str, encoder: str, args: Args) -> list[float]:
    """Return the returns of whole games that an agent plays with an encoder; it samples its actions."""
    path = args.out / f"games-{Path(encoder).name}.json"
    if path.exists() and len(known := json.loads(path.read_text())) == args.games:
        return list(known)
    trials = Trials(encoder, args.out, agent=agent, test_env=game, trials=args.games)
    returns = evaluate_agent(trials, deterministic=False)
    write_atomically(path, json.dumps(returns).encode())
    return returns


def measure(args: Args) -> dict[str, Any]:
    """Run all stages, write ``result.json`` and return its content.

    Raises:
        ValueError: If the run is missing, unfinished or not on latents.
    """
    if args.run is None:
        raise ValueError("refresh.py needs --run, a finished run of train_agent.py.")
    if not is_finished(args.run):
        raise ValueError(f"{args.run} is no finished run. Finish it with train_agent.py first.")
    about = json.loads((args.run / RUN).read_text())
    settings, agent = about["settings"], args.run / MODEL
    if settings["arm"] == "pixels":
        raise ValueError(f"{args.run} acts on pixels; only an agent on latents has an encoder to refresh.")
    old, game = about["encoder"]["ref"], settings["game"]
    config = RefreshConfig(
        old,
        "agents:AsTrained-v0",
        str(agent),
        args.out / "encoder",
        earlier=args.frames,
        frames=args.new_frames,
        steps=args.encoder_steps,
        anchor=args.anchor,
        policy_normalize=settings["arm"] != "latents-raw",
        env_kwargs={name: settings[name] for name in ("game", "algorithm") if name in settings},
        workers=args.workers,
        least_r2=0.0,  # what it reaches is measured here, not asked for
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Loading the policy .* runs code")  # this script's own model
        new = refresh_encoder(config)
    held_out = FramesFolder(config.out / WORK / "held_out")
    record = new.config.provenance.refreshed
    assert record is not None
    encoders = {"old": old, "new": new.ref}
    result: dict[str, Any] = {
        "game": env_id(game),
        "seed": settings["seed"],
        "agent_steps": about["finished"]["steps"],
        "new_frames": args.new_frames,
        "encoder_steps": args.encoder_steps,
        "anchor": args.anchor,
        "r2": record.r2,
        "moving_r2": {"old": record.moving_r2_before, "new": record.moving_r2},
        "drift": {name: drift(held_out, ref) for name, ref in encoders.items()},
        "precision": {name: load_encoder(ref).precision for name, ref in encoders.items()},
        "encoder": encoder_cost(load_encoder(new.ref)),
        "returns": {name: play(agent, game, ref, args) for name, ref in encoders.items()},
    }
    if args.more_steps:
        result["trained_on"] = {
            name: _train_on(args, settings, agent, name, ref) for name, ref in encoders.items()
        }
    result["machine"] = machine("stable-baselines3", "torch", "gymnasium", "ale-py", "numpy")
    write_atomically(args.out / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def _train_on(args: Args, settings: dict[str, Any], agent: Path, name: str, ref: str) -> Any:
    """Train the agent on with an encoder, and return how the run ended."""
    config = RunConfig(
        settings["game"],
        settings["arm"],
        settings["seed"] + 1000,  # other games than those that it was trained on
        args.more_steps,
        args.out / f"runs_{name}",
        encoder=ref,
        changes=json.dumps(settings["hyperparameters"]),
        algorithm=settings.get("algorithm", "ppo"),
        threads=settings["threads"],
        device=settings["device"],
        start=agent,
    )
    return json.loads((train(config) / RUN).read_text())["finished"]


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as lines to read."""
    returns = {name: np.array(values) for name, values in result["returns"].items()}
    told = [
        f"{result['game']}, seed {result['seed']}, an agent of {result['agent_steps']:,} steps; "
        f"R2 of the old latents from the new ones, on its held-out frames: {result['r2']:.4f}",
        "encoder  return of the same agent       moving R2  drift, nats a dimension  precision",
    ]
    for name, values in returns.items():
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        told.append(
            f"{name:7}  {values.mean():7.2f} +- {error:5.2f} ({len(values)} games)  "
            f"{result['moving_r2'][name]:9.3f}  {result['drift'][name]:23.3f}  {result['precision'][name]}"
        )
    before = returns["old"].mean()
    if before > 0:
        told.append(f"return after over return before: {returns['new'].mean() / before:.3f}")
    for name, finished in result.get("trained_on", {}).items():
        told.append(f"trained on for {finished['steps']:,} steps, {name}: {finished['mean_return']}")
    return told


def smallest(args: Args) -> Args:
    """Train an agent of Breakout for 128 steps, and return options to refresh next to nothing."""
    out = args.out / "old_runs"
    run = train(RunConfig("Breakout", steps=128, out=out, changes=SMALLEST, progress=False))
    return replace(args, run=run, new_frames=300, encoder_steps=1, games=2)


def main(args: Args) -> None:
    try:
        args = smallest(args) if args.smallest else args
        print("\n".join(lines(measure(args))))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command continues.")
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(tyro.cli(Args))

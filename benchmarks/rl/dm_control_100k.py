"""How good is an agent of DMControl after 100,000 frames, those for its encoder included? SAC on latents.

$ pip install shimmy dm_control==1.0.50 mujoco==3.17.0
$ python benchmarks/rl/dm_control_100k.py --out runs/dm_control    # six tasks, five minutes of one core each

For each task of CURL's table, random play gives 10,000 frames, an encoder is trained on them, and SAC learns
on three stacked latents of it for the other 90,000 frames. Then it plays ten whole episodes, always with its
likeliest action. A return lies between 0 and 1000.

    runs/dm_control/
        encoders/TASK-SEED           the encoder, and its frames in the folder frames
        TASK/latents/SEED            the run of train_agent.py
        TASK/latents/SEED/score.json what came out

Ctrl-C interrupts, and the same command goes on where it was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import tyro
from agents import ACTION_REPEATS, derived_seed, env_id, load_model, make_venv
from stable_baselines3.common.evaluation import evaluate_policy
from train_agent import MODEL, RUN, RunConfig, train

from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate
from latent_obs.files import write_atomically

sys.path.append(str(Path(__file__).parents[1]))
from machine import children_seconds, machine

# Mean returns after 100,000 frames: DrQ's from Kostrikov et al. (2020), the others from Laskin et al. (2020).
PUBLISHED = {
    "finger-spin": (767, 901, 740, 179, 811),
    "cartpole-swingup": (582, 759, 311, 419, 835),
    "reacher-easy": (538, 601, 274, 145, 746),
    "cheetah-run": (299, 344, 267, 197, 616),
    "walker-walk": (403, 612, 394, 42, 891),
    "ball_in_cup-catch": (769, 913, 391, 312, 746),
}
COLUMNS = ("CURL", "DrQ", "SAC+AE", "SAC on pixels", "SAC on the state")
SCORE = "score.json"


@dataclass(frozen=True)
class Args:
    """Train encoders, train agents on them, and score them."""

    tasks: tuple[str, ...] = tuple(PUBLISHED)
    seeds: tuple[int, ...] = (0,)
    frames: int = 100_000
    """frames of each agent and of random play for its encoder, together"""
    encoder_frames: int = 10_000
    """frames of random play"""
    encoder_episode: int = 1000
    """frames of an episode of random play; shorter ones begin more often, with other targets and poses"""
    encoder_steps: int = 1500
    """optimiser steps of the encoder"""
    changes: str = "{}"
    """hyperparameters of SAC to change, as JSON"""
    episodes: int = 10
    """whole episodes that score an agent"""
    out: Path = Path("runs/dm_control")
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: 3,000 frames of one task"""


@dataclass(frozen=True)
class Score:
    """What a task and seed came to."""

    task: str
    seed: int
    moving_r2: float
    steps: int
    mean_return: float
    std_of_episodes: float
    cpu_seconds: float


def fit(task: str, seed: int, args: Args) -> tuple[Path, float]:
    """Collect frames and train an encoder by the commands; return its folder and the CPU seconds."""
    out = args.out / "encoders" / f"{task}-{seed}"
    before = children_seconds()
    # Random play takes no action twice, so that each frame that counts is one that the encoder sees.
    options = json.dumps({"task": task, "frames": args.encoder_episode})
    env = [env_id(task), "--env-kwargs", options, "--policy", "brownian", "--workers", "2"]
    _command("collect", *env, "--frames", args.encoder_frames, "--seed", seed, "--out", out / "frames")
    # As `latent-obs fit` trains, which holds fewer dimensions since the record was made.
    recipe = "--batch-size 32 --channels 16 32 64 --learning-rate 0.01 --optimizer muon --moments 16".split()
    length = ["--steps", args.encoder_steps, "--evaluate-every", args.encoder_steps]
    _command("train", out / "frames", *recipe, *length, "--seed", seed, "--out", out)
    return out, children_seconds() - before


def _command(*words: object) -> None:
    # Where dm_suite is, which registers the environments.
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "latent_obs", *map(str, words)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": search}, check=True, stdout=subprocess.DEVNULL)


def score(task: str, seed: int, args: Args) -> Score:
    """Collect, train and play, or finish what was begun."""
    steps = (args.frames - args.encoder_frames) // ACTION_REPEATS[task]
    if steps < 1:
        raise ValueError(f"--encoder-frames must be fewer than the {args.frames:,} of --frames.")
    encoder, seconds = fit(task, seed, args)
    moving_r2 = evaluate(EvaluateConfig(encoder, encoder / "frames", limit=768), brief=True).card.moving_r2
    run = train(
        RunConfig(
            task,
            "latents",
            seed,
            steps,
            args.out,
            encoder=str(encoder),
            algorithm="sac",
            changes=args.changes,
        )
    )
    venv = make_venv(task, "latents", str(encoder), algorithm="sac")
    venv.seed(derived_seed(seed, 100))
    model = load_model(run / MODEL, venv, "cpu", "sac")
    returns, _ = evaluate_policy(model, venv, args.episodes, return_episode_rewards=True)
    venv.close()
    seconds += json.loads((run / RUN).read_text())["finished"]["cpu_seconds"]
    mean, spread = float(np.mean(returns)), float(np.std(returns))
    return Score(task, seed, round(moving_r2, 4), steps, round(mean, 2), round(spread, 2), round(seconds, 1))


def report(scores: list[Score]) -> str:
    """Return the table of the tasks, and the means over them."""
    lines = [
        f"| task | seeds | moving R² | steps | CPU s | return | {' | '.join(COLUMNS)} |",
        "|---" * (6 + len(COLUMNS)) + "|",
    ]
    tasks = [task for task in PUBLISHED if any(row.task == task for row in scores)]
    means = []
    for task in tasks:
        rows = [row for row in scores if row.task == task]
        r2, mean, spread, cpu = (
            np.mean([getattr(row, name) for row in rows])
            for name in ("moving_r2", "mean_return", "std_of_episodes", "cpu_seconds")
        )
        means.append(float(mean))
        cells = [
            task,
            len(rows),
            f"{r2:.3f}",
            f"{rows[0].steps:,}",
            f"{cpu:.0f}",
            f"{mean:.0f} ± {spread:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, [*cells, *PUBLISHED[task]]))} |")
    published = " | ".join(f"{value:.0f}" for value in np.mean([PUBLISHED[task] for task in tasks], axis=0))
    lines.append(f"| mean | | | | | {np.mean(means):.0f} | {published} |")
    return "\n".join(lines)


def main(args: Args) -> None:
    for package in ("dm_control", "shimmy"):
        if find_spec(package) is None:
            needed = "DMControl needs `pip install shimmy dm_control==1.0.50 mujoco==3.17.0`"
            if not args.smallest:
                raise ImportError(f"{needed}: there is no {package}.")
            print(f"skipped: {needed}: there is no {package}.")
            return
    if args.smallest:
        small = {"learning_starts": 60, "batch_size": 16}
        args = replace(
            args,
            tasks=("cartpole-swingup",),
            frames=3000,
            encoder_frames=1000,
            encoder_steps=10,
            changes=json.dumps(small),
            episodes=1,
        )
    for task in args.tasks:
        if task not in PUBLISHED:
            raise ValueError(f"--tasks takes tasks of CURL's table, {', '.join(PUBLISHED)}; got {task}.")
    print(f"# {machine('stable-baselines3', 'torch', 'dm_control', 'mujoco')}", flush=True)
    scores = []
    for seed in args.seeds:
        for task in args.tasks:
            path = args.out / task / "latents" / str(seed) / SCORE
            if not path.exists():
                found = score(task, seed, args)
                write_atomically(path, (json.dumps(asdict(found)) + "\n").encode())
            scores.append(Score(**json.loads(path.read_text())))
    print(report(scores))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
    except (ValueError, ImportError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")

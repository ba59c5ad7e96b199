"""Should latents be normalised for MlpPolicy?

$ python benchmarks/rl/normalize.py --games Pong Breakout --seeds 0 1 2 3 --steps 200000 --out runs

Trains PPO on the latents as the VAE has them and on normalised ones, and prints the interquartile mean of the
return at a quarter, half and all of the steps. The runs are those of run.py with the arms latents-raw and
latents, in the same folders.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from agents import Arm
from report import interval, iqm, read_runs
from run import Args as RunArgs
from run import all_runs, run_all
from train_agent import INTERRUPTED, machine


@dataclass(frozen=True)
class Args:
    """Compare PPO on latents with PPO on normalised latents."""

    games: tuple[str, ...] = ("Pong", "Breakout")
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    steps: int = 200_000
    out: Path = Path("runs")
    jobs: int = 2
    hours: float | None = None
    """after so long nothing more is started, and what runs is interrupted"""
    encoders: tuple[str, ...] = ()
    """GAME=ENCODER for games whose encoder is not the bundled one"""


def main(args: Args) -> None:
    arms: tuple[Arm, ...] = ("latents-raw", "latents")
    try:
        configs = all_runs(
            RunArgs(args.games, arms, args.seeds, args.steps, args.out, encoders=args.encoders)
        )
        run_all(configs, args.jobs, args.hours)
        runs = [run for run in read_runs(args.out) if run.seed in args.seeds and run.finished]
    except KeyboardInterrupt:
        print("Interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"# {machine('stable-baselines3', 'torch', 'gymnasium')}")
    print(f"{'game':12} {'arm':20} seeds  " + "".join(f"{f'{p}% of steps':>26}" for p in (25, 50, 100)))
    for game in args.games:
        for arm in arms:
            mine = [run for run in runs if (run.game, run.arm) == (game, arm)]
            cells = ""
            for part in (0.25, 0.5, 1.0):
                rows = [np.searchsorted(run.steps, part * run.steps[-1], side="right") - 1 for run in mine]
                returns = np.array([run.mean_return[row] for run, row in zip(mine, rows, strict=True)])
                text = ""
                if len(mine):
                    low, high = interval(returns)
                    text = f"{iqm(returns):.2f} [{low:.2f}, {high:.2f}]"
                cells += f"{text:>26}"
            print(f"{game:12} {arm:20} {len(mine):5}  {cells}")


if __name__ == "__main__":
    main(tyro.cli(Args))

"""How do agents on latents compare with published PPO on pixels at budgets where agents get good?

$ python benchmarks/rl/train_agent.py --game Pong --algorithm qrdqn --steps 2500000 --out runs_long/qrdqn
$ python benchmarks/rl/long_runs.py runs_long

The script prints, for each game and algorithm, the mean return of the last 100 games at 1, 2.5 and 10 million
steps, as far as the runs got, and after which step and which processor time the runs are at the published
returns. It draws the learning curves, and records them, so that without a folder it makes the recorded table
again.

The published returns are those of PPO on pixels in the repository of DreamerV3 (danijar/dreamerv3, folder
``scores``; Hafner et al. 2023), with sticky actions, as these runs have them. The implementation, the
hyperparameters, the size of the frames and the number of games at once are others there.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from records import RESULTS, Run, read_recorded, read_runs, record_runs

from latent_obs.files import write_atomically

MILESTONES = (1.0, 2.5, 10.0)  # million steps of the agent, four frames each
PUBLISHED = {
    "Breakout": (22.0, 53.0, 191.0),
    "MsPacman": (1026.0, 2915.0, 4828.0),
    "Pong": (-9.4, 12.3, 17.0),
    "Qbert": (673.0, 2776.0, 8400.0),
    "Seaquest": (739.0, 1120.0, 1883.0),
    "SpaceInvaders": (323.0, 710.0, 1345.0),
}
NAMES = {"ppo": "PPO", "dqn": "DQN", "qrdqn": "QR-DQN"}
COLORS = {"ppo": "#1f6fb2", "dqn": "#8a4fb5", "qrdqn": "#2f8f5b"}
PIXELS = "#c2571a"


@dataclass(frozen=True)
class Args:
    """Compare runs of train_agent.py with published returns."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders with runs; without any, the recorded ones"""
    out: Path = RESULTS / "long"
    """folder of the record and of the picture"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: the recorded runs, drawn in the folder long"""


def at(run: Run, steps: float) -> float | None:
    """Return the mean return of the last 100 games at a step, or ``None`` if the run has not got there."""
    row = int(np.searchsorted(run.steps, steps))
    return float(run.mean_return[row]) if row < len(run.steps) else None


def reached(run: Run, wanted: float) -> tuple[float, float] | None:
    """Return after how many million steps and minutes of processor time a run is at a return."""
    rows = np.flatnonzero(run.mean_return >= wanted)
    return (float(run.steps[rows[0]]) / 1e6, float(run.cpu_seconds[rows[0]]) / 60) if len(rows) else None


def groups(runs: list[Run]) -> dict[tuple[str, str], list[Run]]:
    """Return the runs of each game and algorithm, of those games that have published returns."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.game, run.algorithm, run.seed)):
        if run.game in PUBLISHED and run.arm == "latents":
            found.setdefault((run.game, run.algorithm), []).append(run)
    return found


def row(game: str, algorithm: str, runs: list[Run]) -> str:
    """Return a line of the table: means over seeds, a count of seeds, and published returns in brackets."""
    cells = [game, NAMES[algorithm], str(len(runs))]
    for million, published in zip(MILESTONES, PUBLISHED[game], strict=True):
        known = [value for run in runs if (value := at(run, million * 1e6)) is not None]
        own = f"{np.mean(known):,.1f}" if len(known) == len(runs) else ""
        cells.append(f"{own} ({published:,g})".strip())
    for published in PUBLISHED[game][:2]:
        hits = [hit for run in runs if (hit := reached(run, published)) is not None]
        steps, minutes = np.mean(hits, 0) if hits else (0.0, 0.0)
        cells.append(f"{steps:.2f} M, {minutes:.0f} min" if len(hits) == len(runs) else "")
    last = min(float(run.steps[-1]) for run in runs) / 1e6
    final = np.mean([run.mean_return[-1] for run in runs])
    minutes = np.mean([run.cpu_seconds[-1] for run in runs]) / 60
    cells.append(f"{final:,.1f} at {last:.2f} M, {minutes:.0f} min")
    return f"| {' | '.join(cells)} |"


def table(runs: list[Run]) -> str:
    head = "game", "agent", "seeds", *(f"{million:g} M steps (pixels)" for million in MILESTONES)
    head = *head, "at the pixels' return of 1 M", "of 2.5 M", "end"
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(row(*key, mine) for key, mine in groups(runs).items())])


def plot(runs: list[Run], path: Path) -> None:
    """Draw a curve for each run, by game, beside the published returns."""
    known = groups(runs)
    games = sorted({game for game, _ in known})
    columns = min(3, len(games))
    figure = Figure(figsize=(4 * columns, 2.9 * -(-len(games) // columns)), layout="constrained")
    for i, game in enumerate(games):
        axes = figure.add_subplot(-(-len(games) // columns), columns, i + 1)
        axes.set_title(game)
        longest = 0.0
        for (name, algorithm), mine in known.items():
            for run in mine if name == game else []:
                label = f"{NAMES[algorithm]} on latents" if run is mine[0] else None
                axes.plot(
                    run.steps / 1e6, run.mean_return, color=COLORS[algorithm], label=label, linewidth=1.5
                )
                longest = max(longest, float(run.steps[-1]) / 1e6)
        points = [
            (m, v) for m, v in zip(MILESTONES, PUBLISHED[game], strict=True) if m <= max(longest, 1.0) + 0.01
        ]
        axes.plot(*zip(*points, strict=True), "o--", color=PIXELS, label="PPO on pixels, published")
        axes.set_xlabel("million steps")
        axes.set_ylabel("return")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def main(args: Args) -> None:
    out = Path("long") if args.smallest else args.out
    runs = read_recorded(RESULTS / "long" if args.smallest else args.out)
    try:
        new = [run for folder in args.runs for run in read_runs(folder)]
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    runs = list({run.name: run for run in [*runs, *new]}.values())
    if not groups(runs):
        sys.exit(
            f"error: There are no runs on latents of {', '.join(PUBLISHED)}. Train one with train_agent.py."
        )
    out.mkdir(parents=True, exist_ok=True)
    if new:
        record_runs(runs, out)
    plot(runs, out / "curves.png")
    write_atomically(out / "table.md", (table(runs) + "\n").encode())
    print(table(runs))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

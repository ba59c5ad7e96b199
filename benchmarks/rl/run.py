"""Train agents on every game, in every arm and with every seed, some of them at a time.

$ python benchmarks/rl/run.py --games Pong Breakout --seeds 0 1 2 --steps 1000000 --jobs 2 --out runs

The first seed of every game and arm is trained before any second seed, so that partial results are balanced.
Ctrl-C and the end of ``--hours`` interrupt the runs; the same command continues them and does not train
finished runs again. Each run is a process that writes its messages to log.txt in its folder.
"""

from __future__ import annotations

import csv
import itertools
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from agents import Arm
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from train_agent import INTERRUPTED, PROGRESS, SMALLEST, RunConfig, is_finished

from latent_obs.progress import stop_on_signals

LOG = "log.txt"
Outcome = Literal["finished", "failed", "open"]


@dataclass(frozen=True)
class Args:
    """Train agents for a comparison."""

    games: tuple[str, ...] = ("Pong", "Breakout", "CarRacing")
    """as the option --game of train_agent.py"""
    arms: tuple[Arm, ...] = ("pixels", "latents")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 1_000_000
    """steps of each agent"""
    out: Path = Path("runs")
    jobs: int = 2
    """runs at a time"""
    hours: float | None = None
    """after so many hours, no run is started any more and unfinished runs are interrupted"""
    encoders: tuple[str, ...] = ()
    """GAME=ENCODER for games whose encoder is not the bundled one"""
    threads: int = 1
    """threads of PyTorch in each run"""
    device: str = "cpu"
    """cpu or cuda, where the agents' networks are"""
    changes: str = "{}"
    """hyperparameters of PPO to change in every run, as JSON"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: Pong in both arms, one rollout of 128 steps each"""


def by_game(pairs: tuple[str, ...], games: tuple[str, ...], option: str) -> dict[str, str]:
    """Read ``GAME=VALUE`` options.

    Raises:
        ValueError: If one is written in another way or names a game that is not among ``games``.
    """
    values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(values) < len(pairs) or not set(values) <= set(games):
        raise ValueError(f"{option} takes GAME=VALUE with one of {', '.join(games)}, got {' '.join(pairs)}.")
    return values


def all_runs(args: Args) -> list[RunConfig]:
    """List the runs in the order in which they start."""
    encoders = by_game(args.encoders, args.games, "--encoders")
    return [
        RunConfig(
            game,
            arm,
            seed,
            args.steps,
            args.out,
            encoder="auto" if arm == "pixels" else encoders.get(game, "auto"),
            changes=args.changes,
            threads=args.threads,
            device=args.device,
            progress=False,
        )
        for seed, game, arm in itertools.product(args.seeds, args.games, args.arms)
    ]


def run_all(configs: list[RunConfig], jobs: int, hours: float | None = None) -> list[Outcome]:
    """Train agents, at most ``jobs`` at a time, and return what became of each.

    Raises:
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once all runs have saved themselves.
    """
    deadline = time.monotonic() + (float("inf") if hours is None else hours * 3600)
    waiting = [i for i, config in enumerate(configs) if not is_finished(config.folder)]
    outcomes: list[Outcome] = ["open" if i in waiting else "finished" for i in range(len(configs))]
    running: dict[int, tuple[subprocess.Popen[bytes], TaskID]] = {}
    columns = TextColumn("{task.description:28}"), BarColumn(30), MofNCompleteColumn()
    progress = Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True))
    with stop_on_signals() as stop, progress:
        total = len(configs)
        overall = progress.add_task("runs", total=total, completed=total - len(waiting), note="")
        while running or (waiting and not stop.is_set()):
            while waiting and len(running) < jobs and not stop.is_set():
                i = waiting.pop(0)
                config = configs[i]
                name = f"{config.game} {config.arm} {config.seed}"
                running[i] = _start(config), progress.add_task(name, total=config.steps, note="")
            for i, (process, task) in list(running.items()):
                steps, note = _last_row(configs[i].folder / PROGRESS)
                progress.update(task, completed=steps, note=note)
                if (status := process.poll()) is not None:
                    outcomes[i] = _outcome(configs[i], status)
                    if outcomes[i] == "failed":
                        progress.console.print(f"{configs[i].folder} failed: {_last_line(configs[i])}")
                    progress.remove_task(task)
                    progress.advance(overall, outcomes[i] == "finished")
                    del running[i]
            if time.monotonic() > deadline:
                waiting.clear()
            _wait(stop, running, time.monotonic() > deadline)
        if stop.is_set():
            raise KeyboardInterrupt
    return outcomes


def _start(config: RunConfig) -> subprocess.Popen[bytes]:
    config.folder.mkdir(parents=True, exist_ok=True)
    script = Path(__file__).with_name("train_agent.py")
    # In a session of its own, so that Ctrl-C in the terminal reaches it only through run_all, once.
    with open(config.folder / LOG, "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(script), *config.arguments()], stdout=log, stderr=log, start_new_session=True
        )


def _wait(
    stop: threading.Event, running: dict[int, tuple[subprocess.Popen[bytes], TaskID]], interrupt: bool
) -> None:
    """Pause, or tell all runs to save themselves and wait until they have."""
    if not interrupt:
        stop.wait(1.0)
    if interrupt or stop.is_set():
        for process, _ in running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process, _ in running.values():
            process.wait()


def _outcome(config: RunConfig, status: int) -> Outcome:
    if is_finished(config.folder):
        return "finished"
    # A process that is interrupted while it imports ends with the signal's own status.
    return "open" if status in (INTERRUPTED, -signal.SIGINT) else "failed"


def _last_line(config: RunConfig) -> str:
    lines = (config.folder / LOG).read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _last_row(path: Path) -> tuple[int, str]:
    """Return the steps of a run and what to show beside its bar."""
    if not path.exists():
        return 0, ""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not rows[-1]["steps"] or rows[-1]["mean_return"] is None:
        return 0, ""
    return int(rows[-1]["steps"]), f"return {rows[-1]['mean_return']}" if rows[-1]["mean_return"] else ""


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, games=("Pong",), seeds=(0,), steps=128, jobs=1, changes=SMALLEST)
    try:
        outcomes = run_all(all_runs(args), args.jobs, args.hours)
    except KeyboardInterrupt:
        print("Interrupted; the same command continues.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except ValueError as error:
        sys.exit(f"error: {error}")
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("finished", "failed", "open") if o in outcomes)
    print(f"{len(outcomes)} runs: {counts}")
    sys.exit("failed" in outcomes)


if __name__ == "__main__":
    main(tyro.cli(Args))

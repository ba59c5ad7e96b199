"""What is recorded of runs and of random play, and how it is read and written.

benchmarks/rl/results/
    runs.jsonl       a line for each run: its settings, machine, encoder and how it ended
    curves.csv       the rows of all learning curves
    random_play.csv  what random play reaches in each game
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.files import write_atomically

Floats = npt.NDArray[np.float64]

RESULTS = Path(__file__).parent / "results"
RUNS, CURVES, RANDOM_PLAY = "runs.jsonl", "curves.csv", "random_play.csv"
COLUMNS = ("steps", "seconds", "cpu_seconds", "episodes", "mean_return")


@dataclass(frozen=True)
class Run:
    """One run, as far as it got; the arrays are the columns of its progress.csv."""

    game: str
    arm: str
    seed: int
    about: dict[str, Any]  # what run.json says
    steps: Floats
    seconds: Floats
    cpu_seconds: Floats
    episodes: Floats
    mean_return: Floats  # nan before the first game ended

    @property
    def name(self) -> str:
        """What identifies the run among all recorded ones."""
        game = self.game.replace("/", "_").replace(":", "_")
        return f"{game}/{self.label.replace(', ', '-')}/{self.seed}"

    @property
    def finished(self) -> bool:
        return "finished" in self.about

    @property
    def encoder(self) -> str | None:
        """Name of the encoder, without the folder that it was in."""
        known = self.about.get("encoder")
        return None if known is None else Path(known["ref"]).name

    @property
    def algorithm(self) -> str:
        """What the agent was trained by."""
        return str(self.about["settings"].get("algorithm", "ppo"))

    @property
    def label(self) -> str:
        """What the run is summarised with: its arm, its encoder if it has one, and what is not PPO."""
        parts = [self.arm, self.encoder, None if self.algorithm == "ppo" else self.algorithm]
        return ", ".join(part for part in parts if part is not None)

    @property
    def encoder_seconds(self) -> float | None:
        """Seconds of collecting frames and of training the encoder, those of the two that it records."""
        known = self.about.get("encoder") or {}
        parts = [known.get("collect_seconds"), known.get("train_seconds")]
        return None if parts == [None, None] else sum(part or 0.0 for part in parts)


@dataclass(frozen=True)
class RandomPlay:
    """What random play reached in a game; ``std`` is that of single games, not of their mean."""

    game: str
    episodes: int
    mean: float
    std: float


def read_runs(folder: Path) -> list[Run]:
    """Read all runs below a folder of run.py, leaving out those without a row yet.

    Raises:
        FileNotFoundError: If there is none.
    """
    runs = []
    for path in sorted(folder.rglob("run.json")):
        with open(path.parent / "progress.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        if rows:
            runs.append(_run(json.loads(path.read_text()), rows))
    if not runs:
        raise FileNotFoundError(f"There are no runs in {folder}: python benchmarks/rl/run.py makes some.")
    return runs


def _run(about: dict[str, Any], rows: list[dict[str, str]]) -> Run:
    columns = [np.array([float(row[name] or "nan") for row in rows]) for name in COLUMNS]
    settings = about["settings"]
    return Run(settings["game"], settings["arm"], settings["seed"], about, *columns)


def read_recorded(out: Path) -> list[Run]:
    """Read the runs that an earlier report recorded; none where there was none."""
    if not (out / RUNS).exists():
        return []
    rows: dict[str, list[dict[str, str]]] = {}
    with open(out / CURVES, newline="") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["run"], []).append(row)
    known = [json.loads(line) for line in (out / RUNS).read_text().splitlines()]
    return [_run(about, rows[about.pop("run")]) for about in known]


def record_runs(runs: list[Run], out: Path) -> None:
    """Write what the report needs of runs into ``runs.jsonl`` and ``curves.csv``."""
    lines, table = [], io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["run", *COLUMNS])
    for run in sorted(runs, key=lambda run: run.name):
        about = {"run": run.name, **run.about}
        if run.encoder is not None:  # its name alone, since its folder exists on one machine only
            about["encoder"] = {**about["encoder"], "ref": run.encoder}
            about["settings"] = {**about["settings"], "encoder": Path(about["settings"]["encoder"]).name}
        lines.append(json.dumps(about))
        for row in zip(*(getattr(run, name) for name in COLUMNS), strict=True):
            writer.writerow([run.name, *("" if np.isnan(value) else f"{value:.10g}" for value in row)])
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / CURVES, table.getvalue().encode())
    write_atomically(out / RUNS, ("\n".join(lines) + "\n").encode())


def read_random_play(path: Path) -> dict[str, RandomPlay]:
    """Read what was recorded, by game; nothing where there is no file."""
    if not path.exists():
        return {}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["game"]: RandomPlay(row["game"], int(row["episodes"]), float(row["mean"]), float(row["std"]))
        for row in rows
    }


def record_random_play(game: str, returns: list[float], path: Path) -> RandomPlay:
    """Put a game's returns into the file in place of what it had of that game."""
    mean, std = round(float(np.mean(returns)), 3), round(float(np.std(returns, ddof=1)), 3)
    known = read_random_play(path)
    known[game] = RandomPlay(game, len(returns), mean, std)
    text, names = io.StringIO(), [field.name for field in fields(RandomPlay)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for name in sorted(known):
        writer.writerow([getattr(known[name], column) for column in names])
    write_atomically(path, text.getvalue().encode())
    return known[game]

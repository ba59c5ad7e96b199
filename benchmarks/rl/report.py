"""Compare the runs of run.py: a table and a plot of the learning curves.

$ python benchmarks/rl/report.py runs --out benchmarks/rl/results

What the report needs of each run, its run.json and progress.csv, is copied beside the report, which covers
the runs that were copied earlier too: games can be trained one at a time.

A run's return is the mean over its last 100 games, whole games with true rewards. Runs are summarised by
their interquartile mean (IQM), the mean without the lower and the upper quarter, and its 95% interval from
resampling the seeds of each game and arm (Agarwal et al. 2021, "Deep RL at the edge of the statistical
precipice"; their package rliable does the same, but its dependency arch 7.2 cannot be imported beside pandas
3). Of three runs a quarter is no whole run, so their IQM is the mean.

Unfinished runs count as far as they got, where the table says how many are finished; curves go as far as all
seeds got.
"""

from __future__ import annotations

import csv
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from latent_obs.files import write_atomically

Floats = npt.NDArray[np.float64]

ARMS = ("pixels", "latents", "latents-raw")
PIXELS, COLORS = "#c2571a", ("#1f6fb2", "#2f8f5b", "#8a4fb5")
RESAMPLES = 2000
POINTS = 100  # of a curve


@dataclass(frozen=True)
class Args:
    """Write a report of finished and unfinished runs."""

    runs: tyro.conf.Positional[Path]
    """what run.py wrote"""
    out: Path = Path("benchmarks/rl/results")
    encoder_seconds: tuple[str, ...] = ()
    """ENCODER=SECONDS of collecting frames and training, where an encoder does not remember them"""


@dataclass(frozen=True)
class Run:
    """One run, as far as it got; the arrays are columns of its progress.csv."""

    game: str
    arm: str
    seed: int
    folder: Path
    about: dict[str, Any]
    steps: Floats
    seconds: Floats
    cpu_seconds: Floats
    episodes: Floats
    mean_return: Floats  # nan before the first game ended

    @property
    def finished(self) -> bool:
        return "finished" in self.about

    @property
    def encoder(self) -> str | None:
        """Name of the encoder, without the folder that it was in."""
        known = self.about.get("encoder")
        return None if known is None else Path(known["ref"]).name

    @property
    def label(self) -> str:
        """What the run is summarised with: its arm, and the encoder if there is one."""
        return self.arm if self.encoder is None else f"{self.arm}, {self.encoder}"

    @property
    def encoder_seconds(self) -> float | None:
        """Seconds of collecting and training, as far as the encoder remembers them."""
        known = self.about.get("encoder") or {}
        parts = [known.get("collect_seconds"), known.get("train_seconds")]
        return None if parts == [None, None] else sum(part or 0.0 for part in parts)


def read_runs(folder: Path) -> list[Run]:
    """Read all runs below a folder, leaving out those without a row yet.

    Raises:
        FileNotFoundError: If there is none.
    """
    runs = []
    for path in sorted(folder.rglob("run.json")):
        about = json.loads(path.read_text())
        if (path.parent / "progress.csv").stat().st_size == 0:
            continue
        with open(path.parent / "progress.csv", newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        names = ("steps", "seconds", "cpu_seconds", "episodes", "mean_return")
        columns = [np.array([float(row[name] or "nan") for row in rows]) for name in names]
        if rows:
            settings = about["settings"]
            identity = settings["game"], settings["arm"], settings["seed"]
            runs.append(Run(*identity, path.parent, about, *columns))
    if not runs:
        raise FileNotFoundError(f"There are no runs in {folder}: python benchmarks/rl/run.py makes some.")
    return runs


def iqm(scores: Floats) -> Floats:
    """Return the interquartile mean along the first axis.

    Example:
        >>> float(iqm(np.array([0.0, 1.0, 2.0, 100.0])))
        1.5
    """
    cut = len(scores) // 4
    mean: Floats = np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)
    return mean


def interval(scores: Floats) -> tuple[Floats, Floats]:
    """Return the 95% percentile-bootstrap interval of the IQM over the first axis, the seeds."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(scores), size=(RESAMPLES, len(scores)))
    means = np.stack([iqm(scores[pick]) for pick in picks])
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return low, high


def curves(runs: list[Run], axis: str) -> tuple[Floats, Floats]:
    """Return a grid along an axis, and the runs' returns there, shape (runs, points).

    The grid begins where every run has a finished game and ends where the first run ends. Between its rows
    a run keeps the return of the last one.
    """
    begin = max(getattr(run, axis)[_first(run)] for run in runs)
    grid = np.linspace(begin, min(getattr(run, axis)[-1] for run in runs), POINTS)
    rows = [np.searchsorted(getattr(run, axis), grid * (1 + 1e-12), side="right") - 1 for run in runs]
    return grid, np.stack([run.mean_return[row] for run, row in zip(runs, rows, strict=True)])


def _first(run: Run) -> int:
    """Return the first row with a return; where there is none, the last."""
    known = np.flatnonzero(~np.isnan(run.mean_return))
    return int(known[0]) if len(known) else len(run.steps) - 1


def seconds_to(runs: list[Run], threshold: float) -> float | None:
    """Return the wall-clock second at which the IQM of the runs first is at ``threshold``, or ``None``.

    A run that has ended keeps its last return.
    """
    begin = max(run.seconds[_first(run)] for run in runs)
    grid = np.unique(np.concatenate([run.seconds for run in runs]))
    grid = grid[grid >= begin]
    rows = [np.searchsorted(run.seconds, grid, side="right") - 1 for run in runs]
    means = iqm(np.stack([run.mean_return[row] for run, row in zip(runs, rows, strict=True)]))
    reached = np.flatnonzero(means >= threshold - 1e-9)
    return float(grid[reached[0]]) if len(reached) else None


def rate(runs: list[Run], clock: str) -> float:
    """Return steps per second of a clock, all runs together."""
    return float(sum(run.steps[-1] for run in runs) / sum(getattr(run, clock)[-1] for run in runs))


def summarise(
    game: str, arms: dict[str, list[Run]], encoder_seconds: dict[str, float | None]
) -> list[dict[str, Any]]:
    """Return a row of the table for every arm of a game; seconds are by arm too."""
    rows = []
    pixels = arms.get("pixels", [])
    final = {arm: np.array([run.mean_return[-1] for run in runs]) for arm, runs in arms.items()}
    threshold = float(iqm(final["pixels"])) if pixels else float("nan")
    pixel_seconds = seconds_to(pixels, threshold) if pixels else None
    for arm, runs in arms.items():
        low, high = interval(final[arm])
        row: dict[str, Any] = {
            "game": game,
            "arm": arm,
            "seeds": len(runs),
            "finished": sum(run.finished for run in runs),
            "steps": int(min(run.steps[-1] for run in runs)),
            "steps_per_second": rate(runs, "seconds"),
            "steps_per_cpu_second": rate(runs, "cpu_seconds"),
            "iqm": float(iqm(final[arm])),
            "low": float(low),
            "high": float(high),
            "seconds": float(np.mean([run.seconds[-1] for run in runs])),
            "seconds_to_pixels": seconds_to(runs, threshold),
            "device": ", ".join(sorted({str(run.about.get("device")) for run in runs})),
        }
        if pixels:
            row["speedup"] = row["steps_per_second"] / rate(pixels, "seconds")
            row["cpu_speedup"] = row["steps_per_cpu_second"] / rate(pixels, "cpu_seconds")
        reached = row["seconds_to_pixels"]
        if arm != "pixels":
            cost = encoder_seconds[arm]
            if reached is not None and cost is not None:
                row["seconds_with_encoder"] = reached + cost
        for name in ("seconds_to_pixels", "seconds_with_encoder"):
            if row.get(name) is not None and pixel_seconds:
                row[f"{name}_share"] = row[name] / pixel_seconds
        rows.append(row)
    return rows


def cost_of_encoder(runs: list[Run], given: float | None) -> tuple[float | None, str]:
    """Return the seconds that the encoder of some runs took, and how that is known."""
    if given is not None:
        return given, "as given"
    known = runs[0]
    if known.encoder_seconds is None:
        return None, "unknown"
    whole = known.about["encoder"].get("collect_seconds") is not None
    return known.encoder_seconds, "collection and training" if whole else "training only"


def table(rows: list[dict[str, Any]], notes: list[str]) -> str:
    """Write the Markdown table."""
    lines = [
        "| game | arm | runs, finished | steps | steps/s | per CPU second | return, IQM [95%] "
        "| s to pixels' return | and the encoder | device |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row["game"],
            row["arm"],
            f"{row['seeds']}, {row['finished']}",
            f"{row['steps']:,}",
            _number(row["steps_per_second"], row.get("speedup"), "x"),
            _number(row["steps_per_cpu_second"], row.get("cpu_speedup"), "x"),
            f"{row['iqm']:.4g} [{row['low']:.4g}, {row['high']:.4g}]",
            _number(row["seconds_to_pixels"], row.get("seconds_to_pixels_share"), " of pixels'"),
            _number(row.get("seconds_with_encoder"), row.get("seconds_with_encoder_share"), " of pixels'"),
            row["device"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes, ""])


def _number(value: float | None, ratio: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if ratio is None else f"{value:,.0f} ({ratio:.2f}{unit})"


def keep(run: Run, out: Path) -> None:
    """Copy what the report needs of a run."""
    arm = run.label.replace(", ", "-")
    folder = out / run.game.replace("/", "_").replace(":", "_") / arm / str(run.seed)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.resolve() != run.folder.resolve():
        about = run.about
        if run.encoder is not None:  # the folder that it was in is nobody else's
            about = {**about, "encoder": {**about["encoder"], "ref": run.encoder}}
        write_atomically(folder / "run.json", (json.dumps(about, indent=1) + "\n").encode())
        write_atomically(folder / "progress.csv", (run.folder / "progress.csv").read_bytes())


def plot(
    games: dict[str, dict[str, list[Run]]], costs: dict[str, dict[str, float | None]], path: Path
) -> None:
    """Draw learning curves, a row for each game: against steps and against wall-clock time."""
    figure = Figure(figsize=(9, 2.9 * len(games)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(games), 2, sharey="row", squeeze=False)
    for (game, arms), (by_steps, by_time) in zip(games.items(), axes, strict=True):
        others = itertools.cycle(COLORS)
        for arm, runs in arms.items():
            color = PIXELS if arm == "pixels" else next(others)
            if any(np.isnan(run.mean_return[-1]) for run in runs):
                continue  # a run without one finished game has no curve
            _curve(by_steps, runs, "steps", 1e6, arm, color)
            _curve(by_time, runs, "seconds", 3600, arm, color)
            if arm != "pixels" and (cost := costs[game][arm]) is not None:
                grid, returns = curves(runs, "seconds")
                by_time.plot((grid + cost) / 3600, iqm(returns), color=color, linestyle=":")
        by_steps.set(title=game, ylabel="return, last 100 games", xlabel="million steps of the agent")
        by_time.set(title=game, xlabel="hours, wall-clock")
        for axis in (by_steps, by_time):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        by_steps.legend(frameon=False, fontsize="small")
    figure.suptitle(
        "PPO on pixels and on latents: IQM over seeds, 95% bootstrap intervals\n"
        "Dotted: collecting frames and training the encoder are counted",
        fontsize="medium",
    )
    figure.savefig(path, dpi=110)


def _curve(axes: Axes, runs: list[Run], axis: str, unit: float, label: str, color: str) -> None:
    grid, returns = curves(runs, axis)
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    axes.plot(grid / unit, iqm(returns), color=color, label=f"{label}, {seeds}")
    if len(runs) > 1:
        axes.fill_between(grid / unit, *interval(returns), color=color, alpha=0.2, linewidth=0)


def report(args: Args) -> str:
    """Copy what is needed of the runs, write ``report.md`` and ``curves.png``, and return the table.

    Raises:
        FileNotFoundError: If there are no runs.
        ValueError: If ``encoder_seconds`` is written otherwise than GAME=SECONDS.
    """
    for run in read_runs(args.runs):
        keep(run, args.out)
    games: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(read_runs(args.out), key=lambda run: (run.game, ARMS.index(run.arm), run.label)):
        games.setdefault(run.game, {}).setdefault(run.label, []).append(run)
    try:
        given = {name: float(value) for name, value in (pair.split("=", 1) for pair in args.encoder_seconds)}
    except ValueError:
        raise ValueError(
            f"--encoder-seconds takes ENCODER=SECONDS, got {' '.join(args.encoder_seconds)}."
        ) from None
    rows, costs, notes = [], dict[str, dict[str, float | None]](), []
    for game, arms in games.items():
        costs[game] = {}
        for arm, runs in arms.items():
            if (encoder := runs[0].encoder) is not None:
                costs[game][arm], how = cost_of_encoder(runs, given.get(encoder))
                if costs[game][arm] is not None:
                    notes.append(f"- {encoder} took {costs[game][arm]:,.0f} s ({how}).")
        rows += summarise(game, arms, costs[game])
    notes = list(dict.fromkeys(notes))
    machines = {run.about.get("machine") for arms in games.values() for runs in arms.values() for run in runs}
    notes += [f"- {machine}" for machine in sorted(map(str, machines))]
    text = table(rows, notes)
    write_atomically(args.out / "report.md", text.encode())
    plot(games, costs, args.out / "curves.png")
    return text


def main(args: Args) -> None:
    try:
        print(report(args))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Written to {args.out}: report.md, curves.png, run.json and progress.csv of each run")


if __name__ == "__main__":
    main(tyro.cli(Args))

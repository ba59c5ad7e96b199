"""Compare the runs of run.py: a table and a plot of the learning curves.

$ python benchmarks/rl/report.py runs     # adds the runs to those of benchmarks/rl/results
$ python benchmarks/rl/report.py          # makes the report of benchmarks/rl/results again

The folder has ``report.md``, the table, and ``curves.png``, the plot; records.py says what else it has.

A run's return is the mean over its last 100 games, whole games with true rewards. Runs are summarised by
their interquartile mean (IQM), the mean without the lower and the upper quarter, and its 95% interval from
resampling the seeds of each game and arm (Agarwal et al. 2021, "Deep RL at the edge of the statistical
precipice"; their package rliable does the same, but its dependency arch 7.2 cannot be imported beside pandas
3). A quarter of three runs is less than one run, so the IQM of three runs is their mean.

An arm has learned if the lower end of its interval lies above the mean of random play by at least half a
standard deviation of random play's games. The time that latents take to the return of pixels is given only
for games in which pixels have learned: elsewhere it would be the time to the return of chance.

Unfinished runs count as far as they got, and the table says how many are finished. A curve ends where the
first of its seeds ends.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import (
    CURVES,
    RANDOM_PLAY,
    RESULTS,
    RUNS,
    Floats,
    RandomPlay,
    Run,
    read_random_play,
    read_recorded,
    read_runs,
    record_runs,
)

from latent_obs.files import write_atomically

ARMS = ("pixels", "latents", "latents-raw")
PIXELS, RANDOM, COLORS = "#c2571a", "#777777", ("#1f6fb2", "#2f8f5b", "#8a4fb5")
RESAMPLES = 2000
POINTS = 100  # of a curve
LEARNED = 0.5  # standard deviations of random play's games


@dataclass(frozen=True)
class Args:
    """Write a report of finished and unfinished runs."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """folders that run.py wrote; without any, the report is that of the runs recorded earlier"""
    out: Path = RESULTS
    """folder of the report and of what it records of each run"""
    encoder_seconds: tuple[str, ...] = ()
    """ENCODER=SECONDS of collecting frames and training, for an encoder that does not record them"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: the report of the recorded runs, in the folder report"""


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


@dataclass(frozen=True)
class Row:
    """A row of the table: the runs of one arm in one game."""

    game: str
    arm: str
    seeds: int
    finished: int
    steps: int
    """of the shortest run"""
    steps_per_second: float
    steps_per_cpu_second: float
    iqm: float
    low: float
    high: float
    learned: bool | None
    """whether the arm plays better than chance; None where random play was not recorded"""
    random: RandomPlay | None
    device: str
    speedup: float | None = None
    """steps a second, as a multiple of pixels'"""
    cpu_speedup: float | None = None
    seconds_to_pixels: float | None = None
    """seconds to the final return of pixels; None if it is not reached or pixels play like chance"""
    seconds_with_encoder: float | None = None
    """the same with collecting frames and training the encoder"""
    pixel_seconds: float | None = None
    """seconds that pixels take to that return"""


def summarise(
    game: str,
    arms: dict[str, list[Run]],
    encoder_seconds: dict[str, float | None],
    random: RandomPlay | None = None,
) -> list[Row]:
    """Return a row of the table for every arm of a game; ``encoder_seconds`` are by arm."""
    final = {arm: np.array([run.mean_return[-1] for run in runs]) for arm, runs in arms.items()}
    intervals = {arm: interval(returns) for arm, returns in final.items()}
    pixels = arms.get("pixels", [])
    comparable = bool(pixels) and has_learned(float(intervals["pixels"][0]), random) is not False
    threshold = float(iqm(final["pixels"])) if comparable else float("nan")
    rows = []
    for arm, runs in arms.items():
        low, high = map(float, intervals[arm])
        reached = seconds_to(runs, threshold) if comparable else None
        cost = encoder_seconds.get(arm)
        rows.append(
            Row(
                game,
                arm,
                seeds=len(runs),
                finished=sum(run.finished for run in runs),
                steps=int(min(run.steps[-1] for run in runs)),
                steps_per_second=rate(runs, "seconds"),
                steps_per_cpu_second=rate(runs, "cpu_seconds"),
                iqm=float(iqm(final[arm])),
                low=low,
                high=high,
                learned=has_learned(low, random),
                random=random,
                device=", ".join(sorted({str(run.about.get("device")) for run in runs})),
                speedup=rate(runs, "seconds") / rate(pixels, "seconds") if pixels else None,
                cpu_speedup=rate(runs, "cpu_seconds") / rate(pixels, "cpu_seconds") if pixels else None,
                seconds_to_pixels=reached,
                seconds_with_encoder=None if reached is None or cost is None else reached + cost,
                pixel_seconds=seconds_to(pixels, threshold) if comparable else None,
            )
        )
    return rows


def has_learned(low: float, random: RandomPlay | None) -> bool | None:
    """Return whether the lower end of an arm's interval is above what random play explains.

    Args:
        low: Lower end of the 95% interval of the arm's return.
        random: Random play in the same game, if it was recorded.

    Returns:
        ``None`` if random play was not recorded.
    """
    return None if random is None else low >= random.mean + LEARNED * random.std


def cost_of_encoder(runs: list[Run], given: float | None) -> tuple[float | None, str]:
    """Return the seconds that the encoder of some runs took, and how that is known."""
    if given is not None:
        return given, "as given"
    known = runs[0]
    if known.encoder_seconds is None:
        return None, "unknown"
    whole = known.about["encoder"].get("collect_seconds") is not None
    return known.encoder_seconds, "collection and training" if whole else "training only"


def table(rows: list[Row], notes: list[str]) -> str:
    """Write the Markdown table."""
    lines = [
        "| game | arm | runs, finished | steps | steps/s | per CPU second | return, IQM [95%] | random play "
        "| s to pixels' return | and the encoder | device |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        chance = ", like chance" if row.learned is False else ""
        random = "" if row.random is None else f"{row.random.mean:.4g} ± {row.random.std:.3g}"
        to_pixels = [
            _number(seconds, seconds and row.pixel_seconds and seconds / row.pixel_seconds, " of pixels'")
            for seconds in (row.seconds_to_pixels, row.seconds_with_encoder)
        ]
        cells = (
            row.game,
            row.arm,
            f"{row.seeds}, {row.finished}",
            f"{row.steps:,}",
            _number(row.steps_per_second, row.speedup, "x"),
            _number(row.steps_per_cpu_second, row.cpu_speedup, "x"),
            f"{row.iqm:.4g} [{row.low:.4g}, {row.high:.4g}]{chance}",
            random,
            *to_pixels,
            row.device,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes, ""])


def _number(value: float | None, ratio: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if ratio is None else f"{value:,.0f} ({ratio:.2f}{unit})"


def plot(
    games: dict[str, dict[str, list[Run]]],
    costs: dict[str, dict[str, float | None]],
    random: dict[str, RandomPlay],
    path: Path,
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
        if game in random:
            for axis in (by_steps, by_time):
                axis.axhline(
                    random[game].mean, color=RANDOM, linestyle="--", linewidth=1, label="random play"
                )
        by_steps.set(title=game, ylabel="return, last 100 games", xlabel="million steps of the agent")
        by_time.set(title=game, xlabel="hours, wall-clock")
        for axis in (by_steps, by_time):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
        by_steps.legend(frameon=False, fontsize="small")
    figure.suptitle(
        "PPO on pixels and on latents: IQM over seeds, 95% bootstrap intervals\n"
        "Dotted: the time of collecting frames and training the encoder is included",
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
    """Record what is needed of the runs, write ``report.md`` and ``curves.png``, and return the table.

    Raises:
        FileNotFoundError: If there are no runs.
        ValueError: If ``encoder_seconds`` is not written as ENCODER=SECONDS.
    """
    given = _given(args.encoder_seconds)
    known = {run.name: run for run in read_recorded(args.out)}
    for folder in args.runs:
        known |= {run.name: run for run in read_runs(folder)}
    if not known:
        raise FileNotFoundError(f"No runs are recorded in {args.out}. Name a folder that run.py wrote.")
    record_runs(list(known.values()), args.out)
    games: dict[str, dict[str, list[Run]]] = {}
    for run in sorted(known.values(), key=lambda run: (run.game, ARMS.index(run.arm), run.label, run.seed)):
        games.setdefault(run.game, {}).setdefault(run.label, []).append(run)
    random = read_random_play(args.out / RANDOM_PLAY)
    rows, costs, notes = [], dict[str, dict[str, float | None]](), []
    for game, arms in games.items():
        costs[game] = {}
        for arm, runs in arms.items():
            if (encoder := runs[0].encoder) is not None:
                costs[game][arm], how = cost_of_encoder(runs, given.get(encoder))
                if costs[game][arm] is not None:
                    notes.append(f"- {encoder} took {costs[game][arm]:,.0f} s ({how}).")
        rows += summarise(game, arms, costs[game], random.get(game))
    text = table(rows, [*_notes(rows), *dict.fromkeys(notes), *_machines(known.values())])
    write_atomically(args.out / "report.md", text.encode())
    plot(games, costs, random, args.out / "curves.png")
    return text


def _given(pairs: tuple[str, ...]) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in (pair.split("=", 1) for pair in pairs)}
    except ValueError:
        raise ValueError(f"--encoder-seconds takes ENCODER=SECONDS, got {' '.join(pairs)}.") from None


def _notes(rows: list[Row]) -> list[str]:
    """Return what a reader must know of the comparison with pixels."""
    notes = []
    if any(row.random is not None for row in rows):
        notes = [
            "- Random play: mean ± standard deviation of the true returns of whole games.",
            f"- Like chance: the lower end of the interval is less than {LEARNED:g} of those standard "
            "deviations above random play.",
        ]
    pixels = [row for row in rows if row.arm == "pixels"]
    if unlearned := ", ".join(row.game for row in pixels if row.learned is False):
        notes.append(f"- Pixels play like chance in {unlearned}, so no time to their return is given there.")
    if unknown := ", ".join(row.game for row in pixels if row.learned is None):
        notes.append(f"- Random play was not recorded in {unknown}; random_play.py records it.")
    return notes


def _machines(runs: Iterable[Run]) -> list[str]:
    return [f"- {machine}" for machine in sorted({str(run.about.get("machine")) for run in runs})]


def main(args: Args) -> None:
    if args.smallest:
        out = Path("report")
        out.mkdir(exist_ok=True)
        for name in (RUNS, CURVES, RANDOM_PLAY):
            shutil.copy(RESULTS / name, out)
        args = replace(args, runs=(), out=out)
    try:
        print(report(args))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"Written to {args.out}: report.md, curves.png, {RUNS} and {CURVES}")


if __name__ == "__main__":
    main(tyro.cli(Args))

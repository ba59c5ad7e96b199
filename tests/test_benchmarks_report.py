"""The report of benchmarks/rl: its arithmetic, against arithmetic by hand."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks" / "rl"))

import long_runs
import records
import report


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_run(
    folder: Path,
    arm: str,
    seed: int,
    seconds: list[float],
    returns: list[float],
    cost: float | None = None,
    apart: int = 100,
    algorithm: str = "ppo",
) -> None:
    """Write a run whose rows are ``apart`` steps apart."""
    path = folder / "Pong" / arm / str(seed)
    path.mkdir(parents=True)
    encoder = None if cost is None else {"ref": "x/dots", "collect_seconds": None, "train_seconds": cost}
    settings = {"game": "Pong", "arm": arm, "seed": seed, **({} if cost is None else {"encoder": "x/dots"})}
    if algorithm != "ppo":
        settings["algorithm"] = algorithm
    about = {"settings": settings, "encoder": encoder, "device": "cpu", "finished": {}}
    (path / "run.json").write_text(json.dumps(about))
    lines = ["steps,seconds,cpu_seconds,episodes,mean_return"]
    for i, (second, value) in enumerate(zip(seconds, returns, strict=True), 1):
        lines.append(f"{apart * i},{second},{second / 2},{i},{'' if math.isnan(value) else value}")
    (path / "progress.csv").write_text("\n".join(lines) + "\n")


def write_random_play(folder: Path, mean: float, std: float) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "random_play.csv").write_text(f"game,episodes,mean,std\nPong,50,{mean},{std}\n")


def test_the_report_finds_the_iqm_and_the_time_to_the_pixels_return(tmp_path: Path) -> None:
    for seed, final in enumerate([8.0, 10.0, 12.0, 90.0]):  # IQM: the mean of 10 and 12
        write_run(tmp_path / "runs", "pixels", seed, [100, 200, 400], [math.nan, 1.0, final])
    for seed in range(4):
        write_run(tmp_path / "runs", "latents", seed, [10, 20, 40, 80], [1.0, 5.0, 11.0, 20.0], 60.0)
    runs = records.read_runs(tmp_path / "runs")
    arms = {arm: [r for r in runs if r.arm == arm] for arm in ("pixels", "latents")}
    pixels, latents = report.summarise("Pong", arms, {"latents": 60.0})
    assert pixels.iqm == 11.0
    assert 8.0 <= pixels.low < 11.0 < pixels.high <= 90.0
    assert latents.iqm == latents.low == latents.high == 20.0
    assert pixels.steps_per_second == 300 / 400
    assert latents.steps_per_second == 400 / 80
    assert latents.speedup == pytest.approx((400 / 80) / (300 / 400))
    assert latents.steps_per_cpu_second == 400 / 40
    assert latents.cpu_speedup == pytest.approx(latents.speedup)
    assert pixels.seconds_to_pixels == pixels.pixel_seconds == 400
    assert latents.seconds_to_pixels == 40
    assert latents.seconds_with_encoder == 100

    out = tmp_path / "results"
    args = report.Args((tmp_path / "runs",), out, encoder_seconds=("dots=200",))
    text = report.report(args)
    assert "| 40 (0.10 of pixels') | 240 (0.60 of pixels') |" in text
    assert "| Pong | latents, dots | 4, 4 |" in text
    recorded = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [about["run"] for about in recorded] == [
        *(f"Pong/latents-dots/{seed}" for seed in range(4)),
        *(f"Pong/pixels/{seed}" for seed in range(4)),
    ]
    assert recorded[0]["encoder"]["ref"] == recorded[0]["settings"]["encoder"] == "dots", "not where it was"
    curves = rows(out / "curves.csv")
    assert [row["mean_return"] for row in curves if row["run"] == "Pong/pixels/3"] == ["", "1", "90"]
    assert (out / "curves.png").stat().st_size > 1000
    assert report.report(dataclasses.replace(args, runs=())) == text, "of what it recorded"

    # A run that went on replaces what was recorded of it, so the IQM is that of 12 and 90; the others stay.
    write_run(tmp_path / "later", "pixels", 0, [100, 200, 400, 800], [math.nan, 1.0, 8.0, 90.0])
    assert "| 51 [" in report.report(dataclasses.replace(args, runs=(tmp_path / "later",)))
    assert len((out / "runs.jsonl").read_text().splitlines()) == 8
    with pytest.raises(ValueError, match="ENCODER=SECONDS"):
        report.report(dataclasses.replace(args, encoder_seconds=("200",)))
    with pytest.raises(FileNotFoundError, match="No runs are recorded in"):
        report.report(report.Args((), tmp_path / "none"))


@pytest.mark.parametrize(
    ("mean", "std", "learned"),
    # Pixels end at -20.4, -20.2 and -20.0, so the interval of their mean begins at -20.4.
    [(-20.5, 0.8, False), (-20.5, 0.1, True), (-21.0, 1.0, True), (-20.8, 1.0, False)],
)
def test_latents_are_not_compared_with_pixels_that_play_like_chance(
    mean: float, std: float, learned: bool, tmp_path: Path
) -> None:
    for seed, final in enumerate([-20.4, -20.2, -20.0]):
        write_run(tmp_path / "runs", "pixels", seed, [100, 200], [-20.6, final])
        write_run(tmp_path / "runs", "latents", seed, [10, 20], [-20.6, -15.0], 60.0)
    out = tmp_path / "results"
    write_random_play(out, mean, std)
    text = report.report(report.Args((tmp_path / "runs",), out))
    pixels, latents = (
        [cell.strip() for cell in line.split("|")[7:11]] for line in text.splitlines() if "| Pong |" in line
    )
    assert pixels[1] == latents[1] == f"{mean:g} ± {std:g}"
    assert latents[0] == "-15 [-15, -15]"
    if learned:
        assert pixels[0] == "-20.2 [-20.4, -20]"
        assert latents[2:] == ["20 (0.10 of pixels')", "80 (0.40 of pixels')"]
    else:
        assert pixels[0] == "-20.2 [-20.4, -20], like chance"
        assert pixels[2:] == latents[2:] == ["", ""]
    assert ("Pixels play like chance in Pong" in text) is not learned


def test_the_recorded_runs_give_the_recorded_report(tmp_path: Path) -> None:
    """Arithmetic by hand, on the runs in the repository: means of three seeds, and steps over seconds."""
    for name in ("runs.jsonl", "curves.csv", "random_play.csv"):
        shutil.copy(records.RESULTS / name, tmp_path)
    assert report.report(report.Args((), tmp_path)) == (records.RESULTS / "report.md").read_text()
    last: dict[str, dict[str, str]] = {row["run"]: row for row in rows(tmp_path / "curves.csv")}
    ends = [last[f"Breakout/latents-breakout-v0/{seed}"] for seed in range(3)]
    mean = sum(float(end["mean_return"]) for end in ends) / 3
    rate = sum(int(end["steps"]) for end in ends) / sum(float(end["seconds"]) for end in ends)
    line = next(row for row in (tmp_path / "report.md").read_text().splitlines() if "breakout-v0 |" in row)
    assert line.split("|")[7].split()[0] == f"{mean:.4g}"
    assert line.split("|")[5].split()[0] == f"{rate:,.0f}"


def test_the_iqm_leaves_out_a_quarter_on_either_side() -> None:
    assert float(report.iqm(np.array([7.0, 5.0, -100.0, 6.0, 8.0, 200.0, 300.0, -50.0]))) == 6.5
    assert float(report.iqm(np.array([0.0, 3.0, 30.0]))) == 11.0  # of three none is left out
    points = report.iqm(np.array([[4.0, 9.0], [2.0, 2.0], [1.0, 4.0], [50.0, -7.0]]))
    assert points.tolist() == [3.0, 3.0]


def test_the_interval_is_that_of_the_resampled_seeds() -> None:
    """Of two seeds a resample has the mean of one, of both, or of the other, with odds 1:2:1."""
    low, high = report.interval(np.array([0.0, 1.0]))
    assert (float(low), float(high)) == (0.0, 1.0)
    scores = np.random.default_rng(0).normal(size=400)
    low, high = report.interval(scores)
    assert float(low) < float(report.iqm(scores)) < float(high)
    # The IQM of a normal sample has a standard error of about 1.1 / sqrt(n).
    assert float(high - low) == pytest.approx(2 * 1.96 * 1.1 / 20, rel=0.15)


def test_the_interval_leaves_out_a_fortieth_on_either_side() -> None:
    """Of three seeds 0, 0 and 1 a resample has k ones with odds 8:12:6:1 of 27; its IQM is k / 3."""
    low, high = report.interval(np.array([0.0, 0.0, 1.0]))
    # All ones has 3.7%, more than 2.5%, hence is in the interval.
    assert (float(low), float(high)) == (0.0, 1.0)
    # Of seeds 0, 0, 0 and 1, cut to the middle two, a mean of 1 has 5.1%, and of 1/2 or more 26%.
    low, high = report.interval(np.array([0.0, 0.0, 0.0, 1.0]))
    assert (float(low), float(high)) == (0.0, 1.0)
    # Of four zeros and a one, cut to the middle three, a mean of 1 has 0.7%, and of 2/3 or more 5.8%.
    low, high = report.interval(np.array([0.0, 0.0, 0.0, 0.0, 1.0]))
    assert float(low) == 0.0
    assert float(high) == pytest.approx(2 / 3)


def test_a_curve_keeps_the_last_return_until_the_next() -> None:
    """Two runs with rows at other seconds: the grid is where both play, from the second finished game on."""
    slow = make_run([10.0, 20.0, 40.0], [math.nan, 1.0, 5.0])
    fast = make_run([5.0, 25.0, 30.0], [0.0, 2.0, 4.0])
    grid, returns = report.curves([slow, fast], "seconds")
    assert (grid[0], grid[-1]) == (20.0, 30.0)
    assert returns.shape == (2, len(grid))
    for second, mine, theirs in zip(grid, *returns, strict=True):
        assert mine == 1.0
        assert theirs == (0.0 if second < 25 else 2.0 if second < 30 else 4.0)


def test_the_time_to_a_return_is_that_of_the_iqm_of_all_seeds() -> None:
    """Means of the two are 0.5 from second 20 on, 1.5 from 25, 2.5 from 30 and 4.5 from 40."""
    runs = [make_run([10, 20, 40], [math.nan, 1, 5]), make_run([5, 25, 30], [0, 2, 4])]
    for threshold, second in ((0.5, 20.0), (0.6, 25.0), (1.5, 25.0), (2.5, 30.0), (2.6, 40.0), (4.5, 40.0)):
        assert report.seconds_to(runs, threshold) == second
    assert report.seconds_to(runs, 4.6) is None


def make_run(seconds: list[float], returns: list[float]) -> records.Run:
    """Return a run whose rows are 100 steps apart."""
    numbers = np.arange(1.0, len(seconds) + 1)
    wall = np.array(seconds, float)
    return records.Run("Pong", "pixels", 0, {}, 100 * numbers, wall, wall, numbers, np.array(returns))


def test_the_recorded_long_runs_give_the_recorded_table() -> None:
    folder = records.RESULTS / "long"
    told = long_runs.table(records.read_recorded(folder))
    assert told + "\n" == (folder / "table.md").read_text()
    assert told in (folder.parents[3] / "docs" / "results.md").read_text()


def test_long_runs_are_told_at_the_published_steps_and_returns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = [120.0 * i for i in range(1, 6)]  # half of it is processor time
    every: dict[str, Any] = {"cost": 60.0, "apart": 500_000}
    write_run(tmp_path / "ppo", "latents", 0, seconds, [math.nan, -12.0, -9.0, 1.0, 12.0], **every)
    for seed, last in enumerate([12.5, 20.5]):
        returns = [-9.4, 1.0 + seed, 5.0, 13.0, last]
        write_run(tmp_path / "qr", "latents", seed, seconds, returns, **every, algorithm="qrdqn")
    write_run(tmp_path / "qr", "pixels", 0, seconds, [99.0] * 5, **every)  # no run on latents

    args = long_runs.Args((tmp_path / "ppo", tmp_path / "qr"), tmp_path / "out")
    long_runs.main(args)
    told = capsys.readouterr().out
    lines = told.splitlines()[2:]
    assert lines == [
        "| Pong | PPO | 1 | -12.0 (-9.4) | 12.0 (12.3) | (17) | 1.50 M, 3 min |  | 12.0 at 2.50 M, 5 min |",
        "| Pong | QR-DQN | 2 | 1.5 (-9.4) | 16.5 (12.3) | (17) | 0.50 M, 1 min | 2.00 M, 4 min "
        "| 16.5 at 2.50 M, 5 min |",
    ]
    assert (tmp_path / "out" / "table.md").read_text() == told
    names = [json.loads(line)["run"] for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert "Pong/latents-dots/0" in names
    assert "Pong/latents-dots-qrdqn/1" in names
    long_runs.main(dataclasses.replace(args, runs=()))
    assert capsys.readouterr().out == told, "of what it recorded"
    with pytest.raises(SystemExit, match="no runs in"):
        long_runs.main(dataclasses.replace(args, runs=(tmp_path / "none",)))
    with pytest.raises(SystemExit, match="no runs on latents of Breakout"):
        long_runs.main(long_runs.Args((), tmp_path / "empty"))

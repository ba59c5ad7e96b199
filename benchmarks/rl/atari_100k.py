"""How good is an agent after 100,000 steps, those for its encoder included? Atari 100k on latents.

$ python benchmarks/rl/atari_100k.py --out runs/atari_100k     # 26 games, about six minutes of one core each

For each game, `latent-obs fit` makes an encoder from random play within a minute, DQN learns on four stacked
latents of it, and then plays whole games. Every step counts: what `fit` collected is taken off the 100,000
steps of the agent. Scores are normalised as usual: 0 is random play, 1 is the human of Mnih et al. (2015).

    runs/atari_100k/
        encoders/GAME-SEED    the fitted encoder
        GAME/latents/SEED     the run of train_agent.py
        scores.csv            a row for each game and seed that is finished

Ctrl-C interrupts, and the same command goes on where it was.

Atari 100k (Kaiser et al. 2020) plays without sticky actions; here ALE's v5 games repeat the previous action
with probability 0.25 (Machado et al. 2018), which is harder.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import numpy as np
import tyro
from agents import derived_seed, load_model, make_venv
from records import Floats
from report import iqm
from stable_baselines3.common.evaluation import evaluate_policy
from train_agent import MODEL, RUN, RunConfig, train

from latent_obs.data.folder import FramesFolder
from latent_obs.evaluation.report import ReportCard
from latent_obs.files import write_atomically

sys.path.append(str(Path(__file__).parents[1]))
from machine import children_seconds, machine

# Returns of random play and of a human, as dqn_zoo (github.com/google-deepmind/dqn_zoo) lists them.
SCORES = {
    "Alien": (227.8, 7127.7),
    "Amidar": (5.8, 1719.5),
    "Assault": (222.4, 742.0),
    "Asterix": (210.0, 8503.3),
    "BankHeist": (14.2, 753.1),
    "BattleZone": (2360.0, 37187.5),
    "Boxing": (0.1, 12.1),
    "Breakout": (1.7, 30.5),
    "ChopperCommand": (811.0, 7387.8),
    "CrazyClimber": (10780.5, 35829.4),
    "DemonAttack": (152.1, 1971.0),
    "Freeway": (0.0, 29.6),
    "Frostbite": (65.2, 4334.7),
    "Gopher": (257.6, 2412.5),
    "Hero": (1027.0, 30826.4),
    "Jamesbond": (29.0, 302.8),
    "Kangaroo": (52.0, 3035.0),
    "Krull": (1598.0, 2665.5),
    "KungFuMaster": (258.5, 22736.3),
    "MsPacman": (307.3, 6951.6),
    "Pong": (-20.7, 14.6),
    "PrivateEye": (24.9, 69571.3),
    "Qbert": (163.9, 13455.0),
    "RoadRunner": (11.5, 7845.0),
    "Seaquest": (68.4, 42054.7),
    "UpNDown": (533.4, 11693.2),
}
# Median and mean over the 26 games, as the DreamerV3 paper (Hafner et al. 2023) has them.
PUBLISHED = {"PPO on pixels": (0.019, 0.102), "DreamerV3": (0.437, 1.122)}


@dataclass(frozen=True)
class Args:
    """Fit encoders, train agents on them, and score them."""

    games: tuple[str, ...] = tuple(SCORES)
    seeds: tuple[int, ...] = (0,)
    steps: int = 100_000
    """steps of each agent and of random play for its encoder, together"""
    seconds: float = 60.0
    """time of each fit"""
    episodes: int = 30
    """whole games that score an agent"""
    out: Path = Path("runs/atari_100k")
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: 2,500 steps of Pong"""


@dataclass(frozen=True)
class Score:
    """What a game and seed came to, a row of scores.csv; returns are means of whole games."""

    game: str
    seed: int
    moving_r2: float
    frames: int
    steps: int
    mean_return: float
    std_of_games: float
    cpu_seconds: float

    @property
    def normalised(self) -> float:
        random, human = SCORES[self.game]
        return (self.mean_return - random) / (human - random)


def fit(game: str, seed: int, args: Args) -> tuple[Path, float]:
    """Fit an encoder by the command, as a user would; return its folder and the CPU seconds."""
    out = args.out / "encoders" / f"{game}-{seed}"
    before = children_seconds()
    command = [sys.executable, "-m", "latent_obs", "fit", f"ALE/{game}-v5", "--seconds", str(args.seconds)]
    subprocess.run([*command, "--seed", str(seed), "--out", str(out)], check=True, stdout=subprocess.DEVNULL)
    return out, children_seconds() - before


def score(game: str, seed: int, args: Args) -> Score:
    """Fit, train and play, or finish what was begun."""
    encoder, seconds = fit(game, seed, args)
    card = ReportCard.from_json(json.loads((encoder / "card.json").read_text()))
    frames = len(FramesFolder(encoder / ".fit" / "frames"))
    steps = args.steps - frames
    if steps < 1:
        raise ValueError(f"{encoder} took {frames:,} frames, and no step of {args.steps:,} is left.")
    run = train(RunConfig(game, "latents", seed, steps, args.out, encoder=str(encoder), algorithm="dqn"))
    venv = make_venv(game, "latents", str(encoder), algorithm="dqn")
    venv.seed(derived_seed(seed, 100))
    model = load_model(run / MODEL, venv, "cpu", "dqn")
    # Not greedily: a game in which nothing happens any more would last for hours.
    returns, _ = evaluate_policy(model, venv, args.episodes, deterministic=False, return_episode_rewards=True)
    venv.close()
    finished = json.loads((run / RUN).read_text())["finished"]
    seconds += finished["cpu_seconds"]
    mean, spread = float(np.mean(returns)), float(np.std(returns))
    return Score(game, seed, card.moving_r2, frames, steps, mean, spread, round(seconds, 1))


def read_scores(path: Path) -> list[Score]:
    """Read the rows of a scores.csv; none where there is no file."""
    if not path.exists():
        return []
    kinds = {"game": str, "seed": int, "frames": int, "steps": int}
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return [Score(**{name: kinds.get(name, float)(text) for name, text in row.items()}) for row in rows]


def write_scores(scores: list[Score], path: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(Score)])
    writer.writerows(astuple(row) for row in scores)
    write_atomically(path, text.getvalue().encode())


def aggregate(scores: list[Score], resamples: int = 2000) -> dict[str, tuple[float, Floats | None]]:
    """Return median, mean and IQM over games, each with its 95% interval where there is more than one seed.

    The interval is the percentile interval of the stratified bootstrap of Agarwal et al. (2021): seeds are
    drawn anew within each game.
    """
    games = sorted({row.game for row in scores})
    table = [np.array([row.normalised for row in scores if row.game == game]) for game in games]
    rng = np.random.default_rng(0)
    repeated = min(map(len, table)) > 1
    draws = [[rng.choice(runs, len(runs)) for runs in table] for _ in range(resamples if repeated else 0)]
    found: dict[str, tuple[float, Floats | None]] = {}
    for name, reduce in _AGGREGATES.items():
        bounds: Floats | None = None
        if draws:
            bounds = np.percentile([reduce(draw) for draw in draws], [2.5, 97.5])
        found[name] = reduce(table), bounds
    return found


# The field's median and mean are those of the games' means; the interquartile mean is that of all runs.
_AGGREGATES: dict[str, Callable[[list[Floats]], float]] = {
    "median": lambda table: float(np.median([runs.mean() for runs in table])),
    "mean": lambda table: float(np.mean([runs.mean() for runs in table])),
    "IQM": lambda table: float(iqm(np.concatenate(table))),
}


def report(scores: list[Score]) -> str:
    """Return the table of all games and the aggregate lines."""
    lines = [
        "| game | seeds | moving R² | return | random; human | normalised | CPU s |",
        "|---|---|---|---|---|---|---|",
    ]
    for game in sorted({row.game for row in scores}):
        rows = [row for row in scores if row.game == game]
        mean = {
            name: np.mean([getattr(row, name) for row in rows])
            for name in ("moving_r2", "mean_return", "normalised", "cpu_seconds")
        }
        random, human = SCORES[game]
        lines.append(
            f"| {game} | {len(rows)} | {mean['moving_r2']:.3f} | {mean['mean_return']:,.1f} | {random:,g}; "
            f"{human:,g} | {mean['normalised']:.3f} | {mean['cpu_seconds']:.0f} |"
        )
    lines.append("")
    for name, (value, bounds) in aggregate(scores).items():
        interval = "" if bounds is None else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]"
        lines.append(f"{name} over {len({row.game for row in scores})} games: {value:.3f}{interval}")
    for name, (median, mean_score) in PUBLISHED.items():
        lines.append(f"published, 26 games, no sticky actions, {name}: median {median}, mean {mean_score}")
    return "\n".join(lines)


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, games=("Pong",), steps=2_500, seconds=5.0, episodes=1)
    for game in args.games:
        if game not in SCORES:
            raise ValueError(f"--games takes games of Atari 100k, {', '.join(SCORES)}; got {game}.")
    print(f"# {machine('stable-baselines3', 'torch', 'ale-py')}", flush=True)
    path = args.out / "scores.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for game in args.games:
            scores = read_scores(path)
            if not any((row.game, row.seed) == (game, seed) for row in scores):
                write_scores([*scores, score(game, seed, args)], path)
    print(report([row for row in read_scores(path) if row.game in args.games and row.seed in args.seeds]))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command goes on from here.")
    except (ValueError, ImportError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")

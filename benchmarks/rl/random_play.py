"""What does an agent reach that plays at random?

$ python benchmarks/rl/random_play.py --games Pong Breakout     # about half a minute a game on one core

Plays whole games with uniformly random actions, in the environments in which train_agent.py trains PPO, and
writes the mean and the standard deviation of their true returns to random_play.csv. report.py reads that file
to tell whether an agent plays better than chance.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from agents import derived_seed, make_env
from records import RANDOM_PLAY, RESULTS, record_random_play

sys.path.append(str(Path(__file__).parents[1]))
from machine import machine


@dataclass(frozen=True)
class Args:
    """Play games at random and record their returns."""

    games: tuple[str, ...] = ("Pong", "Breakout", "Riverraid", "VizdoomBasic-v1", "envpool/CarRacing-v3")
    """as the option --game of train_agent.py"""
    episodes: int = 100
    """whole games of each"""
    seed: int = 0
    """seed of the environments and the actions"""
    out: Path = RESULTS
    """folder of random_play.csv; other games that the file has are kept"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: two games of Pong"""


def play(game: str, episodes: int, seed: int) -> list[float]:
    """Return the true returns of whole games with uniformly random actions."""
    env = make_env(game)
    env.action_space.seed(derived_seed(seed, 1))
    env.reset(seed=derived_seed(seed, 0))
    returns: list[float] = []
    while len(returns) < episodes:
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if "episode" in info:
            returns.append(float(info["episode"]["r"]))
        if terminated or truncated:
            env.reset()
    env.close()
    return returns


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, games=("Pong",), episodes=2, out=Path("random_play"))
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"# {machine('gymnasium', 'ale-py')}")
    for game in args.games:
        try:
            played = record_random_play(game, play(game, args.episodes, args.seed), args.out / RANDOM_PLAY)
        except ImportError as error:
            sys.exit(f"error: {game} needs a package that is not installed: {error}")
        print(f"{game}: {played.mean:g} +- {played.std:g} over {played.episodes} games", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args))

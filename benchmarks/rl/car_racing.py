"""How well does an agent on latents drive in CarRacing? 100 trials, as World Models reports them.

$ python benchmarks/rl/car_racing.py --agent RUN/model.zip --out trials
$ pip install cma envpool
$ python benchmarks/rl/car_racing.py --controller linear --out trials_linear

With ``--agent`` the script evaluates a PPO or SAC agent of train_agent.py. Without it, CMA-ES trains one of
World Models' controllers first: a linear one on the latent z, or one with a hidden layer of 40 tanh units.
Those are the paper's rows "V model only" (Ha and Schmidhuber 2018), 632 +- 251 and 788 +- 141 over 100
trials. With ``--stack 2`` the controller sees the last two latents; in the paper it saw one.

CMA-ES trains in EnvPool's CarRacing, which needs a sixth to a ninth of the processor time of Gymnasium's and
draws slightly different frames; the trials are in Gymnasium's. A training episode ends after 100 steps
without a new piece of track, and then costs 0.1 for each of the remaining steps, as standing still does.

After an interruption the same command continues with the last whole generation. If ``--generations`` are
already trained, it evaluates.
"""

from __future__ import annotations

import csv
import itertools
import json
import multiprocessing
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tyro

from latent_obs.collecting.sources import open_env
from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.files import write_atomically
from latent_obs.frames import preprocess
from latent_obs.progress import progress_bar, stop_on_signals

sys.path.append(str(Path(__file__).parents[1]))
from machine import machine

Floats = npt.NDArray[np.float64]

ACTIONS, HIDDEN = 3, 40
PATIENCE, STEP_COST = 100, 0.1
STATE, HISTORY, RESULT = "cma.pickle", "history.csv", "result.json"
PAPER = {"linear": "632 +- 251", "hidden": "788 +- 141"}


@dataclass(frozen=True)
class Args:
    """Train a controller with CMA-ES and evaluate it, or evaluate an agent of train_agent.py."""

    encoder: str = "car_racing-v0"
    """an encoder folder, or a bundled encoder's name"""
    out: Path = Path("car_racing")
    """folder of this controller or of this agent's trials"""
    controller: Literal["linear", "hidden"] = "linear"
    """hidden: with a layer of 40 tanh units"""
    stack: int = 1
    """latents that the controller sees"""
    agent: Path | None = None
    """model.zip of a run of train_agent.py; it is evaluated, and no controller is trained"""
    generations: int = 100
    population: int = 32
    """candidates in a generation; 64 in the paper"""
    rollouts: int = 4
    """episodes of each candidate; 16 in the paper"""
    sigma: float = 0.1
    """first standard deviation of the parameters, as in the paper's code"""
    workers: int = 2
    """processes"""
    train_env: str = "envpool/CarRacing-v3"
    """environment in which CMA-ES trains"""
    test_env: str = "CarRacing-v3"
    """environment of the trials"""
    trials: int = 100
    """episodes that are evaluated"""
    seed: int = 0
    """seed of CMA-ES and of the tracks it trains on"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: one generation in Gymnasium's CarRacing and one trial"""


class Controller:
    """Actions from latents, for a vector of parameters.

    Args:
        kind: ``"linear"``, or ``"hidden"`` for a layer of 40 tanh units in between.
        inputs: Length of its input vector.

    Attributes:
        size: Number of parameters; 99 for the paper's linear one on 32 latents.
    """

    def __init__(self, kind: str, inputs: int) -> None:
        sizes = [inputs, HIDDEN, ACTIONS] if kind == "hidden" else [inputs, ACTIONS]
        self.shapes = list(itertools.pairwise(sizes))
        self.size = sum((rows + 1) * columns for rows, columns in self.shapes)

    def act(self, parameters: Floats, latents: npt.NDArray[np.float32]) -> Floats:
        """Return (N, 3) actions for (N, inputs) latents: steering in [-1, 1], gas and brake in [0, 1]."""
        values, begin = latents.astype(np.float64), 0
        for rows, columns in self.shapes:
            layer = parameters[begin : begin + (rows + 1) * columns].reshape(rows + 1, columns)
            values, begin = np.tanh(values @ layer[:-1] + layer[-1]), begin + layer.size
        # As in the paper's code: tanh of all three, then gas scaled to [0, 1] and a negative brake set to 0.
        return np.stack([values[:, 0], (values[:, 1] + 1) / 2, values[:, 2].clip(0, 1)], axis=1)


class Worker:
    """Plays episodes in one process: environments step together, and their images are encoded in one batch.

    Args:
        encoder: An encoder folder, or a bundled encoder's name.
        kind: Kind of controller, ``"linear"`` or ``"hidden"``.
        stack: Latents that the controller sees.
        halt: Event of ``multiprocessing``; once it is set, episodes are left unfinished.
    """

    def __init__(self, encoder: str, kind: str, stack: int, halt: Any = None) -> None:
        self.halt = halt
        self.encoder: Encoder = load_encoder(encoder, normalize=False)  # as in World Models
        self.stack = stack
        self.envs: dict[str, list[Any]] = {}
        self.controller = Controller(kind, stack * self.encoder.latent_dim)

    def play(self, env_id: str, parameters: Floats, seeds: list[int], patience: int | None) -> list[float]:
        """Play an episode for every seed and return their returns.

        Args:
            env_id: The environment.
            parameters: Of the controller.
            seeds: A seed for each episode.
            patience: Steps without reward after which an episode ends; ``None`` plays it to its end.
        """
        envs = self.envs.setdefault(env_id, [])
        while len(envs) < len(seeds):
            envs.append(open_env(env_id))
        obs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=False)]
        latents = np.repeat(self._encode(obs)[:, None], self.stack, axis=1)
        totals, idle, steps = np.zeros(len(seeds)), np.zeros(len(seeds), int), 0
        playing = list(range(len(seeds)))
        while playing and not (self.halt is not None and self.halt.is_set()):
            actions = self.controller.act(parameters, latents[playing].reshape(len(playing), -1))
            steps, ended, seen = steps + 1, set(), []
            for i, action in zip(playing, actions.astype(np.float32), strict=True):
                image, reward, terminated, truncated, _ = envs[i].step(action)
                totals[i] += reward
                idle[i] = 0 if reward > 0 else idle[i] + 1
                if patience is not None and idle[i] >= patience:
                    totals[i] -= STEP_COST * max(0, 1000 - steps)
                    truncated = True
                if terminated or truncated:
                    ended.add(i)
                else:
                    seen.append(image)
            playing = [i for i in playing if i not in ended]
            if playing:
                latents[playing, :-1] = latents[playing, 1:]
                latents[playing, -1] = self._encode(seen)
        return [float(total) for total in totals]

    def _encode(self, images: list[Any]) -> npt.NDArray[np.float32]:
        return self.encoder(np.stack([preprocess(image, self.encoder.frame_spec) for image in images]))


_worker: Worker | None = None


def _begin(*arguments: Any) -> None:
    # Ctrl-C in the terminal reaches every process; the workers ignore it, and the parent sets `halt`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    global _worker
    _worker = Worker(*arguments)


def _play(env_id: str, parameters: Floats, seeds: list[int], patience: int | None) -> list[float]:
    assert _worker is not None
    return _worker.play(env_id, parameters, seeds, patience)


class Players:
    """Worker processes that play episodes."""

    def __init__(self, args: Args) -> None:
        context = multiprocessing.get_context("spawn")
        self._halt = context.Event()
        arguments = (args.encoder, args.controller, args.stack, self._halt)
        self.pool = ProcessPoolExecutor(args.workers, context, _begin, arguments)

    def play(self, tasks: list[Any], stop: threading.Event) -> Iterator[tuple[int, list[float]]]:
        """Yield the number of a task and the returns of its episodes, in the order in which tasks end.

        Raises:
            KeyboardInterrupt: If ``stop`` is set, after the workers have stopped.
            BrokenProcessPool: If a worker was killed.
        """
        numbers = {self.pool.submit(_play, *task): i for i, task in enumerate(tasks)}
        open_tasks = set(numbers)
        while open_tasks:
            done, open_tasks = wait(open_tasks, timeout=0.5, return_when=FIRST_COMPLETED)
            if stop.is_set():
                self._halt.set()
                self.pool.shutdown(cancel_futures=True)
                raise KeyboardInterrupt
            for task in done:
                yield numbers[task], task.result()


def train(args: Args, players: Players, size: int) -> Floats:
    """Run CMA-ES up to the last generation and return the mean of its distribution.

    Raises:
        KeyboardInterrupt: After Ctrl-C; generations that were complete are saved.
    """
    import cma

    state = args.out / STATE
    if state.exists():
        # A pickle is safe here: this script wrote the file.
        es = pickle.loads(state.read_bytes())
    else:
        options = {"popsize": args.population, "seed": float("nan"), "verbose": -9}
        es = cma.CMAEvolutionStrategy(np.zeros(size), args.sigma, options)
        columns = "generation,seconds,mean_return,best_return,sigma\n"
        (args.out / HISTORY).write_text(columns)
    begun, done = time.monotonic() - _spent(args.out / HISTORY, es.countiter), es.countiter
    with (
        stop_on_signals() as stop,
        progress_bar("CMA-ES", max(args.generations, done), "generations", True, done) as bar,
    ):
        while es.countiter < args.generations:
            # cma draws from NumPy's global generator. With this seed a resumed run equals one in one go.
            np.random.seed([args.seed, es.countiter])  # noqa: NPY002
            candidates = es.ask()
            rng = np.random.default_rng([args.seed, es.countiter])
            seeds = rng.integers(2**31, size=args.rollouts).tolist()  # all candidates drive the same tracks
            returns = np.zeros(len(candidates))
            tasks = [(args.train_env, candidate, seeds, PATIENCE) for candidate in candidates]
            for i, totals in players.play(tasks, stop):
                returns[i] = np.mean(totals)
            es.tell(candidates, list(-returns))
            write_atomically(state, pickle.dumps(es))
            spent = time.monotonic() - begun
            row = f"{es.countiter},{spent:.1f},{returns.mean():.2f},{returns.max():.2f},{es.sigma:.4f}\n"
            with open(args.out / HISTORY, "a") as file:
                file.write(row)
            bar.note(f"return {returns.mean():.0f}, best {returns.max():.0f}")
            bar.advance()
    mean: Floats = np.asarray(es.result.xfavorite)
    return mean


def _spent(history: Path, generations: int) -> float:
    """Return how many seconds the first generations took, and drop the rows of later ones."""
    rows = history.read_text().splitlines(keepends=True)[: generations + 1]
    write_atomically(history, "".join(rows).encode())
    return float(rows[-1].split(",")[1]) if generations else 0.0


def evaluate(args: Args, players: Players, parameters: Floats) -> list[float]:
    """Return the returns of the trials, on tracks that no training episode had."""
    seeds = [2**31 - 1 - i for i in range(args.trials)]
    tasks = [(args.test_env, parameters, seeds[i : i + 5], None) for i in range(0, len(seeds), 5)]
    returns: list[float] = []
    with stop_on_signals() as stop, progress_bar("trials", args.trials, "episodes", True) as bar:
        for _, totals in players.play(tasks, stop):
            returns += totals
            bar.advance(len(totals))
    return returns


def _trained_as(agent: Path) -> tuple[Any, Any]:
    """Return the arm and the algorithm of an agent."""
    settings = json.loads(agent.with_name("run.json").read_text())["settings"]
    return settings["arm"], settings.get("algorithm", "ppo")


def evaluate_agent(args: Args, deterministic: bool = True) -> list[float]:
    """Return the returns of an agent of train_agent.py, which takes its likeliest actions or samples them."""
    from agents import MODELS, make_venv
    from stable_baselines3.common.evaluation import evaluate_policy

    assert args.agent is not None
    arm, algorithm = _trained_as(args.agent)
    n_envs = min(8, args.trials)
    venv = make_venv(args.test_env, arm, args.encoder, n_envs, algorithm, training=False)
    venv.seed(2**30)
    model = MODELS[algorithm].load(args.agent, venv, device="cpu")
    with stop_on_signals() as stop, progress_bar("trials", args.trials, "episodes", True) as bar:

        def follow(values: dict[str, Any], _: dict[str, Any]) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            bar.advance(int("episode" in values["info"]))  # a life that ends is no game

        returns, _ = evaluate_policy(
            model, venv, args.trials, deterministic, callback=follow, return_episode_rewards=True
        )
    venv.close()
    return [float(value) for value in returns]  # type: ignore[union-attr]


def run(args: Args) -> dict[str, Any]:
    """Train and evaluate, write ``result.json`` and return its content."""
    args.out.mkdir(parents=True, exist_ok=True)
    if args.agent is not None:
        arm, algorithm = _trained_as(args.agent)
        name, paper, generations = f"{algorithm.upper()} on stacked {arm} ({args.agent})", "", None
        returns = evaluate_agent(args)
    else:
        name = f"{args.controller} controller on " + ("z" if args.stack == 1 else f"{args.stack} stacked z")
        paper = PAPER[args.controller] if args.stack == 1 else ""
        size = Controller(args.controller, args.stack * load_encoder(args.encoder).latent_dim).size
        players = Players(args)
        with players.pool:
            parameters = train(args, players, size)
            np.save(args.out / "controller.npy", parameters)
            returns = evaluate(args, players, parameters)
        with open(args.out / HISTORY, newline="") as file:
            generations = len(list(csv.DictReader(file)))
    result = {
        "name": name,
        "trials": len(returns),
        "mean": float(np.mean(returns)),
        "std": float(np.std(returns)),
        "paper": paper,
        "generations": generations,
        "encoder": args.encoder,
        "train_env": None if args.agent else args.train_env,
        "test_env": args.test_env,
        "population": args.population,
        "rollouts": args.rollouts,
        "returns": [round(value, 1) for value in returns],
        "machine": machine("gymnasium", "numpy", "openvino"),
    }
    write_atomically(args.out / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def missing_packages(args: Args) -> list[str]:
    """Return what must be installed to train a controller, as pip names it."""
    modules = {"Box2D": "'gymnasium[box2d]'", "cma": "cma"}
    if not args.smallest and args.train_env.startswith("envpool/"):
        modules["envpool"] = "envpool"
    return [package for module, package in modules.items() if find_spec(module) is None]


def main(args: Args) -> None:
    if missing := [] if args.agent else missing_packages(args):
        message = f"this needs pip install {' '.join(missing)}"
        sys.exit(print(f"skipped: {message}") if args.smallest else f"error: {message}")
    if args.smallest:
        args = replace(
            args, generations=1, population=2, rollouts=1, workers=1, train_env="CarRacing-v3", trials=1
        )
    try:
        result = run(args)
    except KeyboardInterrupt:
        sys.exit("Interrupted; the same command continues with the last whole generation.")
    except (ValueError, ImportError, OSError, BrokenProcessPool) as error:
        sys.exit(f"error: {error}")
    print(f"{result['name']}, {result['trials']} trials: {result['mean']:.0f} +- {result['std']:.0f}", end="")
    print(f" (World Models: {result['paper']})" if result["paper"] else "")


if __name__ == "__main__":
    main(tyro.cli(Args))

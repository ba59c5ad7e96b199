"""Train one agent on pixels or on latents, and record which return it reached when.

$ python benchmarks/rl/train_agent.py --game Pong --arm latents --seed 0 --steps 1000000

    runs/Pong/latents/0/
        run.json        everything needed to repeat the run; a finished run has the key "finished"
        progress.csv    a row about every hundredth of the steps
        episodes.csv    a row for every game that ended
        checkpoint.zip  from which the same command continues an unfinished run
        model.zip       the trained agent

A run that is interrupted goes on with a refreshed encoder if that is given with ``--encoder``.

Ctrl-C stops at once, and ``kill -9`` loses at most two minutes and one update: the same command continues
from the last checkpoint, with networks, optimiser, step and time as they were. Environments cannot be saved,
so the games that were being played at that moment begin anew.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
import threading
import time
import zipfile
from collections import deque
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import tyro
from agents import (
    Algorithm,
    Arm,
    Model,
    derived_seed,
    env_id,
    hyperparameters,
    load_model,
    make_model,
    make_venv,
    stack,
)
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_wrapper

from latent_obs.data.storage import locked
from latent_obs.encoders.encoder import Encoder
from latent_obs.encoders.resolve import resolve
from latent_obs.files import write_atomically
from latent_obs.progress import Bar, progress_bar, stop_on_signals
from latent_obs.sb3 import VecLatentObservation

sys.path.append(str(Path(__file__).parents[1]))
from machine import machine as machine  # for the other scripts too

RUN, PROGRESS, EPISODES = "run.json", "progress.csv", "episodes.csv"
CHECKPOINT, MODEL, BUFFER = "checkpoint.zip", "model.zip", "buffer.pickle"
PROGRESS_COLUMNS = ("steps", "seconds", "cpu_seconds", "episodes", "mean_return")
EPISODE_COLUMNS = ("steps", "seconds", "return", "length")
INTERRUPTED = 130  # exit status
SMALLEST = '{"n_steps": 16, "n_epochs": 1, "batch_size": 64}'  # hyperparameters where nothing need be learned


@dataclass(frozen=True)
class RunConfig:
    """Train one agent; an interrupted run continues, and a finished one is not trained again."""

    game: str = "Pong"
    """Pong, Breakout or any game of ALE's, CarRacing, or a Gymnasium id"""
    arm: Arm = "latents"
    """what the agent sees; latents-raw are latents that are not normalised, and state is where the RAM of an
    ALE game has the agent and small objects"""
    seed: int = 0
    """seed of environments and networks"""
    steps: int = 1_000_000
    """steps of the agent, in all environments together, rounded up to whole rollouts of PPO"""
    out: Path = Path("runs")
    """the run's folder is OUT/GAME/ARM/SEED"""
    encoder: str = "auto"
    """the encoder of the latents: auto, a bundled one's name, or an encoder folder"""
    changes: str = "{}"
    """hyperparameters to change, as JSON"""
    start: Path | None = None
    """model.zip of a run with the same hyperparameters, whose agent is trained on"""
    algorithm: Algorithm = "ppo"
    """sac is for CarRacing and Pendulum, the DQNs for discrete actions; each needs an --out of its own"""
    threads: int = 1
    """threads of PyTorch"""
    device: str = "cpu"
    """cpu or cuda, where the agent's networks are"""
    checkpoint_seconds: float = 120.0
    """time between checkpoints"""
    progress: bool = True
    """show a progress bar"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds: one rollout of 128 steps"""

    @property
    def folder(self) -> Path:
        return self.out / self.game.replace("/", "_").replace(":", "_") / self.arm / str(self.seed)

    def arguments(self) -> list[str]:
        """Return the command line of this run."""
        switches = ("progress", "smallest")
        fields = {n: value for n, value in asdict(self).items() if n not in switches and value is not None}
        words = [
            str(word) for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", value)
        ]
        return [*words, "--progress" if self.progress else "--no-progress"]


class Journal:
    """The two tables of a run, and its clocks.

    Args:
        folder: The run's folder.
        mark: What :meth:`mark` returned at the checkpoint from which the run continues; rows written after
            that are dropped. ``None`` for a run that begins.
    """

    def __init__(self, folder: Path, mark: dict[str, Any] | None) -> None:
        self.files: dict[str, TextIO] = {}
        self.returns: deque[float] = deque(maxlen=100)
        self.episodes = 0
        for name, columns in ((PROGRESS, PROGRESS_COLUMNS), (EPISODES, EPISODE_COLUMNS)):
            if mark is None:
                (folder / name).write_text(",".join(columns) + "\n")
            else:
                os.truncate(folder / name, mark[name])
            self.files[name] = open(folder / name, "a", newline="")
        if mark is not None:
            with open(folder / EPISODES, newline="") as file:
                for row in csv.DictReader(file):
                    self.episodes += 1
                    self.returns.append(float(row["return"]))
        before: dict[str, float] = mark or {"seconds": 0.0, "cpu_seconds": 0.0}
        self._begun = time.monotonic() - before["seconds"]
        self._cpu_begun = time.process_time() - before["cpu_seconds"]

    def mark(self) -> dict[str, Any]:
        """Return the sizes of the tables and the readings of the clocks."""
        for file in self.files.values():
            file.flush()
        clocks = {"seconds": self.seconds, "cpu_seconds": time.process_time() - self._cpu_begun}
        return {**clocks, **{name: file.tell() for name, file in self.files.items()}}

    @property
    def seconds(self) -> float:
        """Wall-clock time of this part of the run and of those before."""
        return time.monotonic() - self._begun

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last 100 games that ended."""
        return float(np.mean(self.returns)) if self.returns else None

    def add_episode(self, steps: int, episode: dict[str, Any]) -> None:
        self.episodes += 1
        self.returns.append(float(episode["r"]))
        self._write(EPISODES, steps, f"{self.seconds:.2f}", f"{float(episode['r']):g}", int(episode["l"]))

    def add_progress(self, steps: int) -> None:
        cpu = time.process_time() - self._cpu_begun
        mean = "" if self.mean_return is None else f"{self.mean_return:.6g}"
        self._write(PROGRESS, steps, f"{self.seconds:.2f}", f"{cpu:.2f}", self.episodes, mean)

    def close(self) -> None:
        for file in self.files.values():
            file.close()

    def _write(self, name: str, *values: Any) -> None:
        self.files[name].write(",".join(map(str, values)) + "\n")


class Recorder(BaseCallback):
    """Fills the journal, writes checkpoints and stops when it is told to.

    A run can be continued from the state before a rollout; ``mark`` describes the last such state.
    """

    def __init__(
        self,
        config: RunConfig,
        journal: Journal,
        scales: VecNormalize | None,
        stop: threading.Event,
        bar: Bar,
    ) -> None:
        super().__init__()
        self.config, self.journal, self.scales, self.stop, self.bar = config, journal, scales, stop, bar
        self.interrupted = False
        self.mark: dict[str, Any] = {"steps": -1}
        self._saved, self._saved_steps = time.monotonic(), -1
        self._row = max(1, config.steps // 100)

    def _on_rollout_start(self) -> None:
        if self.mark["steps"] >= 0:
            self.bar.advance(self.model.num_timesteps - self.mark["steps"])
        if self.journal.mean_return is not None:
            self.bar.note(f"return {self.journal.mean_return:.1f}")
        self.mark = {"steps": self.model.num_timesteps, **self.journal.mark()}
        if self.scales is not None:
            rms = self.scales.ret_rms
            self.mark["ret_rms"] = [float(rms.mean), float(rms.var), float(rms.count)]
        if time.monotonic() - self._saved >= self.config.checkpoint_seconds:
            self.save()

    def _on_step(self) -> bool:
        if self.stop.is_set():
            self.interrupted = True
            return False
        for info in self.locals["infos"]:
            if "episode" in info:
                self.journal.add_episode(self.num_timesteps, info["episode"])
        before = self.num_timesteps - self.training_env.num_envs
        if before // self._row < self.num_timesteps // self._row:
            self.journal.add_progress(self.num_timesteps)
        return True

    def save(self) -> None:
        """Write the state before the current rollout; nothing of that rollout is kept."""
        if self.mark["steps"] in (-1, self._saved_steps):
            return
        now, self.model.num_timesteps = self.model.num_timesteps, self.mark["steps"]
        networks = io.BytesIO()
        self.model.save(networks)
        self.model.num_timesteps = now
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("mark.json", json.dumps(self.mark))
            archive.writestr(MODEL, networks.getvalue())
            if isinstance(self.model, OffPolicyAlgorithm):
                replay = io.BytesIO()
                self.model.save_replay_buffer(replay)
                archive.writestr(BUFFER, replay.getvalue())
        write_atomically(self.config.folder / CHECKPOINT, data.getvalue())
        self._saved, self._saved_steps = time.monotonic(), self.mark["steps"]


def train(config: RunConfig) -> Path:
    """Train an agent, or finish what was begun, and return the run's folder.

    Raises:
        ValueError: If the folder has a run with other settings, or another process writes to it.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    config.folder.mkdir(parents=True, exist_ok=True)
    if is_finished(config.folder):
        _check_settings(config)
        return config.folder
    torch.set_num_threads(config.threads)
    with locked(config.folder), stop_on_signals() as stop:
        _check_settings(config)
        venv = make_venv(config.game, config.arm, config.encoder, algorithm=config.algorithm)
        try:
            _train(config, venv, stop)
        finally:
            venv.close()
    return config.folder


def is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that is over."""
    path = folder / RUN
    return path.exists() and "finished" in json.loads(path.read_text())


def _train(config: RunConfig, venv: VecEnv, stop: threading.Event) -> None:
    arguments = hyperparameters(config.game, config.arm, json.loads(config.changes), config.algorithm)
    scales = unwrap_vec_wrapper(venv, VecNormalize)
    saved = config.folder / CHECKPOINT
    mark: dict[str, Any] | None = None
    if saved.exists():
        with zipfile.ZipFile(saved) as archive:
            mark = json.loads(archive.read("mark.json"))
            assert mark is not None
            networks = io.BytesIO(archive.read(MODEL))
            model = load_model(networks, venv, config.device, config.algorithm)
            if isinstance(model, OffPolicyAlgorithm):
                model.load_replay_buffer(io.BytesIO(archive.read(BUFFER)))
        # With the run's first seed, its first games would be played again.
        model.set_random_seed(derived_seed(config.seed, mark["steps"]))
        if scales is not None:
            mean, var, scales.ret_rms.count = mark["ret_rms"]
            scales.ret_rms.mean, scales.ret_rms.var = np.array(mean), np.array(var)
        about = json.loads((config.folder / RUN).read_text())
        about["parts"] += 1
        if config.encoder != about["settings"].get("encoder", config.encoder):
            about["settings"]["encoder"] = config.encoder
            about["refreshed_at"] = [*about.get("refreshed_at", []), mark["steps"]]
            about["encoder"] = _about(config, venv, arguments, model)["encoder"]
    else:
        seed = derived_seed(config.seed, 0)
        if config.start is None:
            model = make_model(config.arm, venv, arguments, seed, config.device, config.algorithm)
        else:
            model = load_model(config.start, venv, config.device, config.algorithm)
            model.set_random_seed(seed)
            model.num_timesteps = 0
        about = {"settings": _settings(config), "parts": 1, **_about(config, venv, arguments, model)}
    _write_json(config.folder / RUN, about)
    journal = Journal(config.folder, mark)
    begun = model.num_timesteps
    with progress_bar(
        f"{config.game} {config.arm} {config.seed}", config.steps, "steps", config.progress, begun
    ) as bar:
        recorder = Recorder(config, journal, scales, stop, bar)
        try:
            model.learn(config.steps - begun, recorder, reset_num_timesteps=False)
            if recorder.interrupted:
                recorder.save()
                raise KeyboardInterrupt
            journal.add_progress(model.num_timesteps)
            mark = journal.mark()
        finally:
            journal.close()
    data = io.BytesIO()
    model.save(data)
    write_atomically(config.folder / MODEL, data.getvalue())
    about["finished"] = {
        "steps": model.num_timesteps,
        "seconds": round(mark["seconds"], 2),
        "cpu_seconds": round(mark["cpu_seconds"], 2),
        "episodes": journal.episodes,
        "mean_return": journal.mean_return,
    }
    _write_json(config.folder / RUN, about)
    saved.unlink(missing_ok=True)


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return what identifies a run: two runs with the same values are the same run."""
    fields = {name: getattr(config, name) for name in ("game", "arm", "seed", "steps", "threads", "device")}
    arguments = hyperparameters(config.game, config.arm, json.loads(config.changes), config.algorithm)
    encoder = {"encoder": config.encoder} if config.arm.startswith("latents") else {}
    # Runs of PPO were recorded before there was another algorithm.
    algorithm = {} if config.algorithm == "ppo" else {"algorithm": config.algorithm}
    start = {} if config.start is None else {"start": str(config.start)}
    return {**fields, **algorithm, "hyperparameters": arguments, **encoder, **start}


def _check_settings(config: RunConfig) -> None:
    path = config.folder / RUN
    if not path.exists():
        return
    about = json.loads(path.read_text())
    before, now = about["settings"], json.loads(json.dumps(_settings(config)))
    for name in before | now:
        if before.get(name) != now.get(name) and not (name == "encoder" and _goes_on(about, config.encoder)):
            raise ValueError(
                f"The run in {config.folder} was begun with {name} {before.get(name)!r}, not "
                f"{now.get(name)!r}. Use the same settings, or another --out."
            )


def _goes_on(about: dict[str, Any], encoder: str) -> bool:
    """Return whether an encoder was refreshed from the one of an unfinished run, which may go on with it."""
    record = resolve(encoder).config.provenance.refreshed
    known = about["encoder"]["sha256"]
    return "finished" not in about and record is not None and record.sha256.startswith(known)


def _about(config: RunConfig, venv: VecEnv, arguments: dict[str, Any], model: Model) -> dict[str, Any]:
    """Return what is needed to repeat a run, beside its settings."""
    wrapper = unwrap_vec_wrapper(venv, VecLatentObservation)
    device = str(model.device)
    if model.device.type == "cuda":
        device = f"{device}, {torch.cuda.get_device_name(model.device)}"
    return {
        "env_id": env_id(config.game),
        "n_envs": venv.num_envs,
        "stack": stack(config.game, config.algorithm),
        "policy": type(model.policy).__name__,
        "observation_shape": list(model.observation_space.shape or ()),
        "encoder": None if wrapper is None else encoder_cost(wrapper.encoder),
        "device": device,
        "machine": machine("stable-baselines3", "torch", "gymnasium", "ale-py", "numpy", "openvino"),
    }


def encoder_cost(encoder: Encoder) -> dict[str, Any]:
    """Return which encoder it is, and how long its collection and training took if it records that."""
    folder = resolve(encoder.ref).path
    provenance = encoder.config.provenance
    return {
        "ref": encoder.ref,
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16],
        "precision": encoder.precision,
        "collect_seconds": provenance.get("build_seconds", {}).get("collect"),
        "train_seconds": provenance.get("seconds"),
        "machine": provenance.get("machine"),
    }


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


def main() -> None:
    config = tyro.cli(RunConfig)
    if config.smallest:
        config = replace(config, steps=128, changes=SMALLEST)
    try:
        folder = train(config)
    except KeyboardInterrupt:
        print(f"Interrupted; the same command continues {config.folder}.", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")
    finished = json.loads((folder / RUN).read_text())["finished"]
    rate = finished["steps"] / finished["seconds"]
    print(
        f"{folder}: {finished['steps']:,} steps, {rate:,.0f} a second, mean return {finished['mean_return']}"
    )


if __name__ == "__main__":
    main()

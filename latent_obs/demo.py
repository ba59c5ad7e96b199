"""The demo: all stages on a real game, from collecting frames to PPO on latents."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich.console import Console
from rich.table import Table

from latent_obs.encoders.resolve import resolve
from latent_obs.extras import missing, needs
from latent_obs.files import write_atomically
from latent_obs.progress import plain_console, progress_bar

EXTRAS = "make,sb3"
with needs("The demo", EXTRAS):
    from latent_obs.collecting.collect import collect_frames
    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.policies import make_policy
    from latent_obs.collecting.sources import open_env
    from latent_obs.data.folder import FramesFolder

RESULT = "ppo.json"


@dataclass(frozen=True)
class DemoConfig:
    """Do it all on a real game: collect frames, train a VAE, look at it, train PPO on latents."""

    env: str = "ALE/Pong-v5"
    """Gymnasium id of an environment with image observations"""
    out: Path | None = None
    """folder for everything the demo makes; default: demo/<environment>"""
    frames: int = 20_000
    """frames to collect"""
    steps: int = 2_000
    """optimiser steps of the VAE"""
    ppo_steps: int = 8_192
    """environment steps of PPO"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments for gymnasium.make, as JSON"""
    key: str | None = None
    """the entry of Dict observations that is the image, such as screen in ViZDoom"""
    render: bool = False
    """draw the environment, and let the drawing be the observation: for environments of states"""
    wrapper: str | None = None
    """module:callable around the environment, such as minigrid.wrappers:RGBImgObsWrapper"""

    @property
    def folder(self) -> Path:
        """The folder for everything that the demo makes."""
        name = self.env.rpartition("/")[2].rpartition(":")[2]
        return self.out or Path("demo") / name.lower()

    def open(self) -> gym.Env[Any, Any]:
        """Make the environment."""
        return open_env(self.env, self.env_kwargs, self.key, render=self.render, wrapper=self.wrapper)


def run_demo(config: DemoConfig) -> None:
    """Run the five stages and print what they made. A stage that an earlier run finished is not run again.

    Args:
        config: Which environment, how much of everything, and where to.

    Raises:
        ImportError: If Stable-Baselines3 or the environment's package is not installed.
        ValueError: If there is no such environment, or its observations are no images.
    """
    if importlib.util.find_spec("stable_baselines3") is None:
        raise missing("The demo", "stable_baselines3", EXTRAS)
    console, folder, begun = plain_console(), config.folder, time.monotonic()

    console.rule(f"1/5  Collect {config.frames:,} frames of {config.env} with a random policy")
    # Independent continuous actions cancel each other out; a random walk through them does not.
    env = config.open()
    policy = "brownian" if isinstance(env.action_space, gym.spaces.Box) else "random"
    env.close()
    collect = CollectConfig(
        config.env,
        folder / "frames",
        frames=config.frames,
        policy=policy,
        env_kwargs=config.env_kwargs,
        key=config.key,
        render=config.render,
        wrapper=config.wrapper,
    )
    found = _frames_in(folder / "frames")
    frames = collect_frames(collect)
    if found:
        _say_reused(console, "frames", found == config.frames, f"{found:,} were there")

    console.rule("2/5  Train a VAE on them")
    # Imported here, so that neither the workers nor --help wait for torch.
    from latent_obs.training.checkpoint import CHECKPOINT
    from latent_obs.training.config import TrainConfig
    from latent_obs.training.train import train_vae

    train = TrainConfig(folder / "frames", folder / "encoder", steps=config.steps)
    finished = (train.out / "config.json").exists()  # train_vae refuses one of other settings
    begun_before = (train.out / CHECKPOINT).exists()
    train_vae(train)
    if finished or begun_before:
        _say_reused(console, "encoder", finished, "training was begun")

    console.rule("3/5  Evaluate it on held-out episodes and draw what it keeps")
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder
    from latent_obs.evaluation.report import FIGURES, RUNS

    card = evaluate_encoder(EvaluateConfig(train.out, train.data))
    write_atomically(folder / "report.json", (json.dumps(card.to_json(), indent=1) + "\n").encode())
    pictures = _draw(config, train.out)

    console.rule("4/5  Train PPO on the latents")
    ppo = _train_ppo(console, config, train.out)

    console.rule("5/5  Done")
    table = Table(show_header=False)
    for name, value in (
        ("frames", f"{len(frames):,}"),
        ("bytes/frame", f"{frames.num_bytes / len(frames):,.1f} (raw: 12,288)"),
        *((figure.label, figure.shown(card)) for figure in FIGURES),
        *((f"encode a frame {RUNS.get(name, name)}", f"{us:,.0f} µs") for name, us in card.encode_us.items()),
        ("PPO", f"{ppo['steps_per_second']:,.0f} steps/s over {ppo['steps']:,} steps"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print(f"It took {time.monotonic() - begun:.0f} s and made:")
    for path in (train.data, train.out, *pictures, folder / "ppo.zip"):
        console.print(f"  {path}", highlight=False, soft_wrap=True)
    console.print("Try next:")
    program = "latent-obs" if shutil.which("latent-obs") else Path(sys.argv[0])
    drives = importlib.util.find_spec("Box2D") is not None and config.env != "CarRacing-v3"
    other = "CarRacing-v3" if drives else "ALE/Freeway-v5"
    for command in (
        f"{program} demo --env {other}",
        f"{program} train {train.data} --out {folder}/better --steps 20000",
        f"{program} evaluate {train.out} --frames {train.data}",
    ):
        console.print(f"  {command}", highlight=False, soft_wrap=True)


def _say_reused(console: Console, what: str, finished: bool, rest: str) -> None:
    how = "finished by an earlier run, reused" if finished else f"{rest} from an earlier run, resumed"
    console.print(f"{what}: {how}", highlight=False)


def _frames_in(path: Path) -> int:
    """Count the frames that an earlier run left; 0 if there is no frames folder, or a damaged one."""
    try:
        return len(FramesFolder(path))
    except (FileNotFoundError, ValueError):
        return 0  # collect_frames says what is wrong with it


def _draw(config: DemoConfig, encoder: Path) -> list[Path]:
    """Draw the four pictures of the demo and return their paths."""
    from latent_obs.evaluation import pictures
    from latent_obs.evaluation.selection import held_out_episodes
    from latent_obs.vae import load_vae

    found = resolve(encoder)
    vae, spec = load_vae(found)
    folder = FramesFolder(config.folder / "frames")
    frames = folder.sample(1000, held_out_episodes(found, folder))
    out = config.folder / "pictures"
    out.mkdir(exist_ok=True)
    names = ("reconstructions", "traversals", "loss", "filmstrip")
    paths = [out / f"{name}.png" for name in names]
    lively = pictures.liveliest(frames, 10)
    pictures.reconstructions(vae, lively, paths[0])
    pictures.traversals(vae, spec, lively[len(lively) // 2], paths[1])
    pictures.loss_curves(encoder / "history.csv", paths[2])

    options: dict[str, Any] = {"render": config.render, "wrapper": config.wrapper}
    observations = play(config.env, config.env_kwargs, config.key, **options)
    pictures.filmstrip(vae, spec, observations, paths[3])
    return paths


def play(env_id: str, env_kwargs: dict[str, Any], key: str | None = None, **options: Any) -> list[Any]:
    """Play a game with the sticky policy and return ten observations of it, three steps apart.

    The arguments are those of :func:`~latent_obs.collecting.sources.open_env`.
    """
    env = open_env(env_id, env_kwargs, key, **options)
    policy = make_policy("sticky", env)
    policy.reset(123)
    observations = [env.reset(seed=123)[0]]
    for _ in range(200):
        obs, _, terminated, truncated, _ = env.step(policy.act(observations[-1]))
        if terminated or truncated:
            break
        observations.append(obs)
    env.close()
    return observations[-28::3]


def _train_ppo(console: Console, config: DemoConfig, encoder: Path) -> dict[str, Any]:
    """Train PPO on four stacked latents, unless an earlier run of these settings did; return its result."""
    result = config.folder / RESULT
    settings: dict[str, Any] = {"env": config.env, "env_kwargs": config.env_kwargs, "key": config.key}
    settings |= {"render": config.render, "wrapper": config.wrapper, "steps": config.ppo_steps}
    settings["encoder"] = json.loads((encoder / "config.json").read_text(encoding="utf-8"))["provenance"]
    if result.exists():
        saved = json.loads(result.read_text(encoding="utf-8"))
        if saved.get("settings") == settings:
            _say_reused(console, "PPO", True, "")
            return dict(saved)
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    from latent_obs.wrappers import LatentObservationWrapper

    def make() -> gym.Env[Any, Any]:
        env = config.open()
        return LatentObservationWrapper(env, encoder, stack=4)

    class Advance(BaseCallback):
        def _on_step(self) -> bool:
            bar.advance(self.training_env.num_envs)
            return True

    envs = make_vec_env(make, n_envs=4, seed=0)
    model = PPO("MlpPolicy", envs, n_steps=256, batch_size=256, n_epochs=4, seed=0, device="cpu")
    begun = time.monotonic()
    with progress_bar("PPO", config.ppo_steps, "steps", True) as bar:
        model.learn(config.ppo_steps, callback=Advance())
    seconds = time.monotonic() - begun
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    envs.close()
    model.save(config.folder / "ppo.zip")
    outcome = {
        "steps": model.num_timesteps,
        "steps_per_second": model.num_timesteps / seconds,
        "mean_return": float(np.mean(returns)) if returns else None,
        "settings": settings,
    }
    write_atomically(result, (json.dumps(outcome, indent=1) + "\n").encode())
    return outcome

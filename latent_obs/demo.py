"""The demo: an encoder of a real game in a minute, and an agent that learns on its latents."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from latent_obs.encoders.folder import read_config
from latent_obs.extras import missing, needs
from latent_obs.files import write_atomically
from latent_obs.frames import Frames
from latent_obs.progress import plain_console, progress_bar, stop_on_signals

EXTRAS = "make,sb3"
with needs("The demo", EXTRAS):
    import latent_obs.data.folder  # noqa: F401  # else fit would miss its packages in its own name
    from latent_obs.fit import FitConfig, fit_encoder, say_fitted

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

RESULT, AGENT, PARTIAL = "ppo.json", "ppo.zip", "ppo-unfinished.zip"
ENVS, STACK, GAMES, CLIP_STEPS = 8, 4, 16, 240
# Where games are long and drawing is slow, fewer are played, in fewer environments at a time.
PLAY_ENVS, PLAY_SECONDS = 4, 30.0
SAVE_EVERY = 30.0  # seconds


@dataclass(frozen=True)
class DemoConfig:
    """Fit an encoder to a real game in a minute, train PPO on its latents, and show what both learned."""

    env: str = "ALE/Breakout-v5"
    """Gymnasium id of an environment with image observations"""
    out: Path | None = None
    """folder for everything the demo makes; default: demo/<environment>"""
    seconds: float = 60.0
    """time for the encoder, collecting included"""
    ppo_seconds: float = 150.0
    """time for training PPO"""
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

    @property
    def encoder(self) -> FitConfig:
        """How its encoder is fitted."""
        options: dict[str, Any] = {"env_kwargs": self.env_kwargs, "key": self.key, "render": self.render}
        return FitConfig(self.env, self.seconds, self.folder / "encoder", **options, wrapper=self.wrapper)


@dataclass(frozen=True)
class Games:
    """Returns of whole games, and the end of one of them.

    Attributes:
        returns: Sum of the environment's own rewards in each game.
        observations: Raw images of consecutive steps of one game.
    """

    returns: list[float]
    observations: list[Any]


def run_demo(config: DemoConfig) -> None:
    """Run the three stages and print what they made. What an earlier run finished is not run again.

    Args:
        config: Which environment, how long, and where to.

    Raises:
        ImportError: If Stable-Baselines3 or the environment's package is not installed.
        ValueError: If there is no such environment, or its observations are no images.
        KeyboardInterrupt: After Ctrl-C; the same call goes on.
    """
    if importlib.util.find_spec("stable_baselines3") is None:
        raise missing("The demo", "stable_baselines3", EXTRAS)
    console, folder, begun = plain_console(), config.folder, time.monotonic()

    console.rule(f"1/3  Fit an encoder to {config.env} in {config.seconds:.0f} s")
    encoder = fit_encoder(config.encoder)
    say_fitted(encoder)

    console.rule(f"2/3  Train PPO on its latents for {config.ppo_seconds:.0f} s")
    outcome = _train_ppo(config)

    console.rule("3/3  Play, and draw what the agent sees")
    from stable_baselines3 import PPO

    agent = PPO.load(folder / AGENT, device="cpu")
    trained = _play(config, lambda obs, _: agent.predict(obs, deterministic=False)[0])
    random = _play(
        config, lambda _, envs: np.array([envs.action_space.sample() for _ in range(envs.num_envs)])
    )
    pictures = _draw(config, outcome, trained, random)
    console.print(f"return of random play         {_spread(random.returns)}")
    console.print(f"return of the trained agent   {_spread(trained.returns)}, {outcome['steps']:,} steps")
    console.print(f"It took {time.monotonic() - begun:.0f} s and made:")
    for path in (encoder.path, folder / AGENT, *pictures):
        console.print(f"  {path}", soft_wrap=True)
    console.print("Try next:")
    program = "latent-obs" if shutil.which("latent-obs") else Path(sys.argv[0])
    for command in (
        f"{program} demo --env ALE/Boxing-v5",
        f"{program} visualize {encoder.path}",
        f"{program} fit {config.env} --seconds 600",
    ):
        console.print(f"  {command}", soft_wrap=True)


def _spread(returns: list[float]) -> str:
    return f"{np.mean(returns):7.1f} ± {np.std(returns):.1f} ({len(returns)} games)"


def _make_envs(config: DemoConfig, training: bool = True) -> VecEnv:
    """Make the environments that PPO learns in: latents of the last four frames.

    An agent of an ALE game learns on the sign of the rewards and takes the loss of a life for the end, as the
    field's Atari wrappers have it (Mnih et al. 2015). Returns are those of whole games all the same.
    """
    from stable_baselines3.common import atari_wrappers
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    from latent_obs.sb3 import VecLatentObservation

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = Monitor(config.encoder.open())
        if not config.env.startswith("ALE/"):
            return env
        env = atari_wrappers.EpisodicLifeEnv(env)
        if "FIRE" in env.unwrapped.get_action_meanings():  # type: ignore[attr-defined]
            env = atari_wrappers.FireResetEnv(env)
        return atari_wrappers.ClipRewardEnv(env) if training else env

    latents = VecLatentObservation(
        DummyVecEnv([make] * (ENVS if training else PLAY_ENVS)), config.encoder.folder
    )
    return VecFrameStack(latents, STACK)


def _train_ppo(config: DemoConfig) -> dict[str, Any]:
    """Train PPO, or go on with it; return the settings, the steps and the return of each game by step."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback

    folder, weights = config.folder, read_config(config.encoder.folder).weights_sha256
    settings: dict[str, Any] = {"env": config.env, "env_kwargs": config.env_kwargs}
    settings |= {"seconds": config.ppo_seconds, "weights_sha256": weights}
    outcome: dict[str, Any] = {"settings": settings, "finished": False, "spent": 0.0, "steps": 0, "games": []}
    if (folder / RESULT).exists():
        saved = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        if saved.get("settings") == settings:
            outcome = saved
    if outcome["finished"]:
        plain_console().print("PPO: finished by an earlier run, reused")
        return outcome
    envs = _make_envs(config)
    if outcome["steps"]:
        # An earlier run may have ended after it gave the model its last name, and before it noted that.
        saved_as = PARTIAL if (folder / PARTIAL).exists() else AGENT
        model = PPO.load(folder / saved_as, envs, device="cpu")
    else:
        model = PPO(
            "MlpPolicy", envs, n_steps=128, batch_size=256, n_epochs=4, learning_rate=2.5e-4, clip_range=0.1,
            ent_coef=0.01, policy_kwargs={"net_arch": [256, 256]}, seed=0, device="cpu",
        )  # fmt: skip
    before, begun = outcome["spent"], time.monotonic()

    def save() -> None:
        file = io.BytesIO()
        model.save(file)
        write_atomically(folder / PARTIAL, file.getvalue())
        outcome.update(spent=before + time.monotonic() - begun, steps=model.num_timesteps)
        write_atomically(folder / RESULT, (json.dumps(outcome) + "\n").encode())

    class Watch(BaseCallback):
        """Notes the games, shows the time, saves and stops."""

        saved = shown = begun

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    outcome["games"].append((self.num_timesteps, float(info["episode"]["r"])))
            return not (stop.is_set() or before + time.monotonic() - begun > config.ppo_seconds)

        def _on_rollout_end(self) -> None:
            now = time.monotonic()
            recent = [each for _, each in outcome["games"][-50:]]
            if recent:
                bar.note(f"{self.num_timesteps:,} steps  return {np.mean(recent):.1f}")
            if (passed := int(now - self.shown)) > 0:
                bar.advance(passed)
                self.shown += passed
            if now - self.saved > SAVE_EVERY:
                save()
                self.saved = now

    # Networks as small as PPO's gain nothing from more, and lose much where other processes keep cores busy.
    torch.set_num_threads(1)
    total = round(config.ppo_seconds)
    with progress_bar("PPO", total, "s", True, round(before)) as bar, stop_on_signals() as stop:
        model.learn(10**9, callback=Watch(), reset_num_timesteps=not outcome["steps"])
    envs.close()
    save()
    if stop.is_set():
        raise KeyboardInterrupt
    (folder / PARTIAL).replace(folder / AGENT)
    outcome["finished"] = True
    write_atomically(folder / RESULT, (json.dumps(outcome) + "\n").encode())
    return outcome


def _play(config: DemoConfig, act: Callable[[Any, VecEnv], Any]) -> Games:
    """Play whole games; ``act`` is given stacked latents and the environments."""
    envs = _make_envs(config, training=False)
    envs.seed(123)
    envs.action_space.seed(123)
    returns: list[float] = []
    images: list[Any] = []
    obs = envs.reset()
    raw = envs.venv.venv  # type: ignore[attr-defined]  # below the stack and the latents
    until = time.monotonic() + PLAY_SECONDS
    while not returns or ((len(returns) < GAMES or len(images) < CLIP_STEPS) and time.monotonic() < until):
        obs, _, _, infos = envs.step(act(obs, envs))
        returns += [float(info["episode"]["r"]) for info in infos if "episode" in info]
        images = [*images[-CLIP_STEPS + 1 :], raw.buf_obs[None][0].copy()]
    envs.close()
    return Games(returns, images)


def _draw(config: DemoConfig, outcome: dict[str, Any], trained: Games, random: Games) -> list[Path]:
    """Draw the learning curve, a clip of the agent beside what its latents decode to, and a strip of it."""
    from latent_obs.data.show import write_gif
    from latent_obs.evaluation.pictures import filmstrip, learning_curve
    from latent_obs.frames import preprocess
    from latent_obs.vae import load_vae, reconstruct

    vae, spec = load_vae(config.encoder.folder)
    paths = [config.folder / name for name in ("learning.png", "agent.gif", "filmstrip.png")]
    learning_curve(outcome["games"], float(np.mean(random.returns)), paths[0])
    frames: Frames = np.stack([preprocess(image, spec.frame_spec) for image in trained.observations])
    write_gif(np.concatenate([frames, reconstruct(vae, frames)], 2), 15, paths[1])
    filmstrip(vae, spec, trained.observations[-28::3], paths[2])
    return paths

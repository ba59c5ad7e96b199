from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs.demo import AGENT, PARTIAL, RESULT, DemoConfig, _train_ppo
from tests.conftest import save_encoder, wait_for

SMALL = ["--seconds", "5", "--ppo-seconds", "4"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "latent_obs", "demo", "--out", "out", *SMALL, *arguments]


def run_demo(tmp_path: Path, *arguments: str) -> str:
    run = subprocess.run(command(*arguments), capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "CarRacing-v3"])
def test_the_demo_makes_what_it_promises_and_reuses_it(env_id: str, tmp_path: Path) -> None:
    first = run_demo(tmp_path, "--env", env_id)
    for promise in ("moving R²", "return of random play", "return of the trained agent"):
        assert promise in first
    out = tmp_path / "out"
    for name in ("learning.png", "filmstrip.png", "encoder/card.png"):
        picture = cv2.imread(str(out / name))
        assert picture is not None
        assert picture.std() > 5
    with Image.open(out / "agent.gif") as clip:
        assert clip.size == (512, 256)
        assert 20 < clip.n_frames <= 240  # type: ignore[attr-defined]  # equal ones are merged
        pair = np.asarray(clip.convert("RGB"), float)
        assert np.abs(pair[:, :256] - pair[:, 256:]).mean() < pair[:, :256].std()  # the frame is decoded
    assert PPO.load(out / "ppo.zip", device="cpu").observation_space.shape == (128,)
    ppo = json.loads((out / "ppo.json").read_text())
    assert ppo["finished"]
    assert ppo["steps"] > 0

    encoder = (out / "encoder" / "model.safetensors").stat().st_mtime_ns
    assert "PPO: finished by an earlier run, reused" in run_demo(tmp_path, "--env", env_id)
    assert (out / "encoder" / "model.safetensors").stat().st_mtime_ns == encoder
    assert json.loads((out / "ppo.json").read_text()) == ppo


@pytest.mark.slow
def test_an_interrupted_agent_goes_on(tmp_path: Path) -> None:
    saves = "import sys, latent_obs.demo as d, latent_obs.cli as c; d.SAVE_EVERY = 0.5; sys.exit(c.main())"
    words = [sys.executable, "-c", saves, *command("--env", "ALE/Breakout-v5", "--ppo-seconds", "20")[3:]]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for((tmp_path / "out" / "ppo.json").exists, 300)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=300)
    assert process.returncode == 130
    before = json.loads((tmp_path / "out" / "ppo.json").read_text())
    assert not before["finished"]
    assert 0 < before["spent"] < 20
    run_demo(tmp_path, "--env", "ALE/Breakout-v5", "--ppo-seconds", "20")
    after = json.loads((tmp_path / "out" / "ppo.json").read_text())
    assert after["finished"]
    assert after["steps"] > before["steps"] > 0
    assert after["games"][: len(before["games"])] == before["games"]
    assert not (tmp_path / "out" / "ppo-unfinished.zip").exists()


@pytest.fixture
def cart_pole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DemoConfig:
    """A demo whose agent learns on states, which is fast, and is saved after each rollout."""
    monkeypatch.setattr("latent_obs.demo.SAVE_EVERY", 0.0)
    monkeypatch.setattr(
        "latent_obs.demo._make_envs", lambda _: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 8)
    )
    save_encoder(tmp_path / "encoder")
    return DemoConfig("CartPole-v1", tmp_path, ppo_seconds=1.0)


class Killed(BaseException):
    """As by SIGKILL: nothing handles it."""


def test_an_agent_that_was_killed_while_it_was_saved_goes_on(
    cart_pole: DemoConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[int] = []

    def save(self: PPO, file: Any) -> None:
        saves.append(self.num_timesteps)
        if len(saves) == 1:
            return original(self, file)
        (open(file, "wb") if isinstance(file, Path) else file).write(b"half")
        raise Killed

    original = PPO.save
    with monkeypatch.context() as patched:
        patched.setattr(PPO, "save", save)
        with pytest.raises(Killed):
            _train_ppo(cart_pole)
    assert _train_ppo(cart_pole)["steps"] > saves[0] > 0


def test_an_agent_that_was_killed_before_its_end_was_noted_goes_on(cart_pole: DemoConfig) -> None:
    outcome = _train_ppo(cart_pole)
    assert not (cart_pole.folder / PARTIAL).exists()
    (cart_pole.folder / RESULT).write_text(json.dumps({**outcome, "finished": False}))
    assert _train_ppo(cart_pole)["steps"] > outcome["steps"]
    assert (cart_pole.folder / AGENT).exists()


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("ALE/Pong-v5", "pong-v5"),
        ("CarRacing-v3", "carracing-v3"),
        ("vizdoom.gymnasium_wrapper:VizdoomBasic-v1", "vizdoombasic-v1"),
    ],
)
def test_the_demo_has_a_folder_for_each_environment(env_id: str, name: str) -> None:
    assert DemoConfig(env_id).folder == Path("demo") / name

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from stable_baselines3 import PPO

from latent_obs.demo import DemoConfig

SMALL = ["--frames", "2500", "--steps", "40", "--ppo-steps", "1024"]


def run_demo(tmp_path: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "latent_obs", "demo", "--out", "out", *SMALL, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ["ALE/Pong-v5", "CarRacing-v3"])
def test_the_demo_makes_what_it_promises_and_reuses_it(env_id: str, tmp_path: Path) -> None:
    first = run_demo(tmp_path, "--env", env_id)
    for promise in ("2,500", "bytes/frame", "negative ELBO", "KL", "active units", "PSNR", "steps/s"):
        assert promise in first
    out = tmp_path / "out"
    for name in ("reconstructions", "traversals", "loss", "filmstrip"):
        picture = cv2.imread(str(out / "pictures" / f"{name}.png"))
        assert picture is not None
        assert picture.std() > 5
    assert PPO.load(out / "ppo.zip", device="cpu").observation_space.shape == (128,)
    ppo = json.loads((out / "ppo.json").read_text())
    assert ppo["steps"] >= 1024

    encoder = (out / "encoder" / "model.safetensors").stat().st_mtime_ns
    second = run_demo(tmp_path, "--env", env_id)
    assert len(re.findall("finished by an earlier run, reused", second)) == 3
    assert (out / "encoder" / "model.safetensors").stat().st_mtime_ns == encoder
    assert json.loads((out / "ppo.json").read_text()) == ppo


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

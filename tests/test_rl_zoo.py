"""Runs the recipes of examples/rl_zoo; `make zoo` does it in an environment that has the zoo."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rl_zoo3")
RECIPES = Path(__file__).parent.parent / "examples" / "rl_zoo"
SMALL = {
    "sac": ["-n", "80", "-params", "learning_starts:40"],
    "ppo": ["-n", "32", "-params", "n_steps:8", "batch_size:16", "n_envs:2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", SMALL)
def test_the_recipe_trains_and_the_model_plays(algorithm: str, tmp_path: Path) -> None:
    about = ["--algo", algorithm, "--env", "CarRacing-v3", "--device", "cpu"]
    recipe = ["--conf-file", str(RECIPES / f"{algorithm}.yml"), "--eval-freq", "-1", *SMALL[algorithm]]
    for command in (["train", *about, *recipe], ["enjoy", *about, "-f", "logs", "-n", "5", "--no-render"]):
        run = subprocess.run(
            [sys.executable, "-m", f"rl_zoo3.{command[0]}", *command[1:]],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
        assert run.returncode == 0, run.stderr

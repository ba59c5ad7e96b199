from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latent_obs.data.folder import FramesFolder

ROOT = Path(__file__).parent.parent


PPO = ["--steps", "512", "--n-steps", "64"]
# Small budgets: that an example learns is shown by running it as its docstring says.
QUICK_DQN = ["--steps", "400", "--buffer", "1000", "--play-steps", "5"]
QUICK_SAC = ["--steps", "32", "--play-steps", "2", "--encoder", "ENCODER"]
QUICK_TORCHRL = ["--frames", "256", "--batch", "128", "--envs", "2"]
QUICK_PPO = ["--frames", "400", "--vae-steps", "20", "--total-steps", "1024", "--episodes", "1"]
LIGHT = ["--names", "car_racing", "minigrid", "classic_control", "crafter", "--steps", "3"]


# Packages that the developers' environment does not have.
NEEDS = {
    "jax_jit.py": ("jax",),
    "rllib_ppo.py": ("scipy", "tree"),
    "sbx_sac.py": ("sbx",),
    "skrl_ppo.py": ("skrl",),
    "stable_worldmodel_data.py": ("stable_worldmodel",),
    "tianshou_dqn.py": ("tianshou",),
}


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("examples/wrap_env.py", [], "(32,) float32"),
        ("examples/collect_train_wrap.py", ["--frames", "2500", "--steps", "30"], "(32,)"),
        ("examples/look_at_encoder.py", [], "traversals.png"),
        (
            "examples/environments.py",
            [*LIGHT, "--encoder", "ENCODER"],
            "crafter          (64, 64, 3)    -> (32,)",
        ),
        ("examples/sb3_ppo.py", PPO, "trained for 512 steps"),
        (
            "examples/sb3_dqn.py",
            ["--steps", "400", "--buffer", "1000", "--play-steps", "5"],
            "episode played",
        ),
        (
            "examples/sb3_refresh.py",
            ["--steps", "200", "--frames", "300", "--encoder-steps", "20", "--least-r2", "0.9"],
            "steps with the new encoder",
        ),
        (
            "examples/sb3_sac.py",
            ["--steps", "32", "--play-steps", "2", "--encoder", "ENCODER"],
            "episode driven",
        ),
        ("examples/cleanrl_ppo.py", QUICK_PPO, "return before training: "),
        (
            "examples/torchrl_ppo.py",
            ["--frames", "256", "--batch", "128", "--envs", "2"],
            "256 steps, mean reward",
        ),
        ("examples/sb3_finetune.py", ["--steps", "300", "--buffer", "500"], "24,576 bytes a transition"),
        ("examples/sb3_recurrent.py", ["--steps", "256", "--n-steps", "32"], "recurrent_ppo trained for 256"),
        (
            "examples/sb3_recurrent.py",
            ["--algorithm", "qrdqn", "--steps", "200", "--buffer", "500"],
            "qrdqn trained for 200 steps",
        ),
        ("examples/jax_jit.py", ["--frames", "8"], "the same latents, bit for bit"),
        ("examples/sbx_sac.py", ["--steps", "60"], "sac trained for 60 steps on (64,)"),
        ("examples/sbx_sac.py", ["--steps", "60", "--algorithm", "crossq"], "crossq trained for 60 steps"),
        ("examples/skrl_ppo.py", ["--steps", "256", "--rollout", "16"], "8 environments on (128,)"),
        (
            "examples/stable_worldmodel_data.py",
            ["--episodes", "2", "--episode-steps", "8"],
            "a window: observation (4, 32), action (4, 1), pixels (4, 3, 64, 64)",
        ),
        ("examples/tianshou_dqn.py", ["--steps", "400", "--buffer", "1000"], "DQN for 400 steps on (128,)"),
        ("examples/rllib_ppo.py", ["--iterations", "1", "--batch", "64", "--envs", "2"], "iteration 1:"),
        ("benchmarks/wrapper_step.py", ["--steps", "200"], "wrapped / bare"),
    ],
)
def test_the_script_runs_and_prints_what_it_says(
    script: str, arguments: list[str], expected: str, encoder: Path, tmp_path: Path
) -> None:
    for missing in NEEDS.get(Path(script).name, ()):
        if importlib.util.find_spec(missing) is None:
            pytest.skip(f"{missing} is not installed: `make libraries` runs this one")
    arguments = [str(encoder) if argument == "ENCODER" else argument for argument in arguments]
    command = [sys.executable, str(ROOT / script), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout


def test_other_peoples_tools_read_a_frames_folder(pong_frames: FramesFolder, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/open_frames_folder.py"), str(pong_frames.path)]
    offline = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=offline)
    assert run.returncode == 0, run.stderr
    assert "pandas: 2,000 rows" in run.stdout
    assert f"DuckDB: {len(pong_frames.episodes())} episodes" in run.stdout
    assert "datasets: 2,000 rows, batches of (32, 64, 64, 3) uint8" in run.stdout


def test_the_table_of_examples_is_complete() -> None:
    table = (ROOT / "examples" / "README.md").read_text()
    files = {path.name for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".yml")}
    files |= {f"rl_zoo/{path.name}" for path in (ROOT / "examples" / "rl_zoo").iterdir()}
    assert files == set(re.findall(r"\]\(([\w/]+\.\w+)\)", table))


def test_the_zoo_recipes_name_what_exists() -> None:
    """The zoo imports a wrapper by its dotted name and calls it with the YAML's arguments."""
    for recipe in (ROOT / "examples" / "rl_zoo").iterdir():
        wrappers = re.findall(r"- (latent_obs[.\w]*)\.(\w+):\n +encoder: ", recipe.read_text())
        assert len(wrappers) == 1
        module, name = wrappers[0]
        parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert list(parameters)[1] == "encoder"

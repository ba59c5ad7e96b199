from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latent_obs.dataset import FramesFolder

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("examples/wrap_env.py", [], "(32,) float32"),
        ("examples/collect_train_wrap.py", ["--frames", "2500", "--steps", "30"], "(32,)"),
        ("examples/look_at_encoder.py", [], "traversals.png"),
        ("examples/sb3_ppo.py", ["--steps", "512", "--n-steps", "64"], "trained for 512 steps"),
        ("benchmarks/wrapper_step.py", ["--steps", "200"], "wrapped / bare"),
    ],
)
def test_the_script_runs_and_prints_what_it_says(
    script: str, arguments: list[str], expected: str, tmp_path: Path
) -> None:
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

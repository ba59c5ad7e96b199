from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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

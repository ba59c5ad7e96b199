"""What the README and the docs show can be typed, pasted and clicked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from latent_obs.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "README.md"]
# Every number that decides how long a block takes, and its smallest form.
SMALLEST = {
    r"--frames \d+": "--frames 600 --workers 2",
    r"--steps \d+": "--steps 10",
    r"frames=[\d_]+": "frames=600, workers=2",
    r", steps=[\d_]+": ", steps=10",
    r"(latent-obs fit \S+)": r"\1 --seconds 5",
    r" --seconds 60(0)?\b": "",
    r"n_envs=\d+": "n_envs=2",
    r"learn\([\d_]+\)": "learn(1)",
    r"(latent-obs refresh .*)": r"\1 --least-r2 0.9",  # ten steps move latents that they would bring back
}
# Commands that need an empty environment, a Hub, a cluster or an hour, and what runs them.
ELSEWHERE = {
    "pip install": "tests/test_extras.py",
    "grep": "make rllib",
    "make demo": "tests/test_demo.py",
    "make test": "this",
    "latent-obs push": "tests/encoders/test_hub.py",
    "latent-obs pull": "tests/encoders/test_hub.py",
    "latent-obs collect ALE/Pong-v5 --frames 10000000": "tests/collecting/test_on_ray.py",
    "latent-obs recipe build": "tests/test_recipe.py",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/encoders.md"])
def test_the_blocks_run_in_the_order_in_which_one_reads_them(name: str, tmp_path: Path) -> None:
    """A Python block is a script: it imports what it needs, and guards what workers would repeat."""
    for language, code in re.findall(r"^```(python|sh)\n(.*?)^```", (ROOT / name).read_text(), re.S | re.M):
        if language == "python":
            (tmp_path / "block.py").write_text(smallest(code))
            out = run(tmp_path, "block.py")
            for told in re.findall(r"^print\(.*\)  # (.*)$", code, re.M):
                assert told in out.splitlines()
            continue
        for line in code.replace("\\\n", "").splitlines():
            if line and not any(line.startswith(command) for command in ELSEWHERE):
                program, *words = shlex.split(smallest(line), comments=True)
                assert program == "latent-obs"
                run(tmp_path, "-m", "latent_obs", *words)


def smallest(code: str) -> str:
    for pattern, replacement in SMALLEST.items():
        code = re.sub(pattern, replacement, code)
    return code


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, *arguments]
    # Encoders that are fitted here are nobody else's.
    env = {**os.environ, "LATENT_OBS_HOME": str(folder / "home")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
    assert done.returncode == 0, f"{arguments[-1]}\n{done.stderr}"
    return done.stdout


def test_a_command_is_left_to_other_tests_only_where_a_text_has_it() -> None:
    lines = [line for path in TEXTS for line in path.read_text().splitlines()]
    for command in ELSEWHERE:
        assert any(line.startswith(command) for line in lines), command


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_every_measured_figure_of_the_readme_names_its_row() -> None:
    table = re.search(r"^\| \| pixels.*?\n\n", README, re.S | re.M)
    assert table is not None
    index = (ROOT / "benchmarks" / "README.md").read_text()
    for line in table[0].strip().splitlines()[2:]:
        row = line.strip("| ").split(" | ")[-1].strip("`")
        assert row in index or row in ("make demo", "latent-obs card pong-v0"), line


def test_the_table_of_encoders_is_what_the_program_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", "--folder", str(tmp_path)]) == 0
    listed = table_of(capsys.readouterr().out.replace("┃", "|").replace("│", "|"))
    lines = [f"| {' | '.join(row)} |" for row in listed]
    table = "\n".join([lines[0], "|---" * len(listed[0]) + "|", *lines[1:]])
    assert table in (ROOT / "docs" / "encoders.md").read_text(), (
        f"The table in docs/encoders.md must be\n{table}"
    )


def table_of(text: str) -> list[list[str]]:
    """Return the cells of every row of a table but the line below its head."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= set("-")]

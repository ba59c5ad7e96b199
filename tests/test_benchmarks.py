"""Every benchmark runs in its smallest form, and the index of results is complete."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
MODULES = ("machine.py", "rl/agents.py", "rl/dm_suite.py", "rl/records.py")  # imported by the scripts
FILES = sorted(path.relative_to(BENCHMARKS).as_posix() for path in BENCHMARKS.rglob("*.py"))
SCRIPTS = [name for name in FILES if name not in MODULES]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_smallest_form_of_the_script_runs(script: str, tmp_path: Path) -> None:
    """In an empty folder and its own process; a script that lacks a package names it and ends with 0."""
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), "--smallest"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout.strip(), "it printed nothing"
    if run.stdout.startswith("skipped: "):
        pytest.skip(run.stdout.strip())


def test_the_index_has_every_script_and_every_result() -> None:
    text = (BENCHMARKS / "README.md").read_text()
    linked = set(re.findall(r"\]\(([^)h#][^)#]*)", text))
    for target in linked:
        assert (BENCHMARKS / target).exists(), target
    assert {path.relative_to(BENCHMARKS).as_posix() for path in BENCHMARKS.glob("results/*.md")} <= linked
    named = set(re.findall(r"`((?:rl/)?\w+\.py)\b", text))
    assert set(SCRIPTS) <= named, "a script without a row"
    assert {name for name in named if not (BENCHMARKS / name).exists()} == set(), "a row without its script"


@pytest.fixture(scope="module")
def machine() -> ModuleType:
    spec = importlib.util.spec_from_file_location("machine", BENCHMARKS / "machine.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_machine_is_told_by_its_model_and_the_flags_that_matter(
    machine: ModuleType, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: Some CPU: 2 GHz\nflags\t\t: fpu avx2 avx512_vnni_more amx_int8 bf16x\n"
        "processor\t: 1\nmodel name\t: Some CPU: 2 GHz\nflags\t\t: fpu avx2 avx512_vnni_more amx_int8 bf16x\n"
    )
    assert machine.processor(cpuinfo) == ("Some CPU: 2 GHz", ["avx2", "amx_int8"])
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n")
    assert machine.processor(cpuinfo)[1] == ["asimddp", "i8mm"]
    assert machine.processor(tmp_path / "none")[1] == []


def test_the_machines_line_has_commit_day_and_versions(machine: ModuleType) -> None:
    line = machine.machine("pytest", "no-such-package")
    assert f"pytest {pytest.__version__}, no-such-package not installed, commit " in line
    assert line.endswith(f", {date.today()}")
    assert re.search(r"commit ([0-9a-f]{7,}\+?|unknown),", line)

"""Runs the tests on each mutant and prints how many of them were noticed."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import mutants
from tests.mutants import Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("latent_obs", "tests", "benchmarks", "examples", "docs", "pyproject.toml", "README.md")
SECONDS = 600


def main(wings: list[str]) -> int:
    """Return 0 if every mutant of the wings was noticed."""
    known = sorted(m.name for m in pkgutil.iter_modules(mutants.__path__) if m.name != "__main__")
    if unknown := set(wings) - set(known):
        print(f"There are no mutants of {', '.join(sorted(unknown))}, only of {', '.join(known)}.")
        return 2
    listed = [m for w in wings or known for m in importlib.import_module(f"tests.mutants.{w}").MUTANTS]
    survivors: list[Mutant] = []
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, tree / name)
        for tests in sorted({mutant.tests for mutant in listed}):
            if not passes(tree, tests):
                print(f"{tests} fails without any mutant, so it proves nothing.")
                return 2
        for mutant in listed:
            path = tree / mutant.file
            before = path.read_text(encoding="utf-8")
            if (found := before.count(mutant.old)) != 1:
                print(f"{mutant.claim}: its text stands {found} times in {mutant.file}, not once.")
                return 2
            path.write_text(before.replace(mutant.old, mutant.new), encoding="utf-8")
            noticed = not passes(tree, mutant.tests)
            path.write_text(before, encoding="utf-8")
            print(f"{'killed  ' if noticed else 'SURVIVED'}  {mutant.claim}", flush=True)
            if not noticed:
                survivors.append(mutant)
    print(f"{len(listed) - len(survivors)} of {len(listed)} mutants killed")
    return 1 if survivors else 0


def passes(tree: Path, tests: str) -> bool:
    """Run some tests in a copy of the repository; one that hangs counts as failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    added = {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **added}
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

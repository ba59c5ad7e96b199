"""The list of small bugs is kept up with the code; running it is done by hand."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from tests import mutants

ROOT = Path(__file__).parents[1]
WINGS = sorted(module.name for module in pkgutil.iter_modules(mutants.__path__) if module.name != "__main__")


@pytest.mark.parametrize("wing", WINGS)
def test_the_text_that_a_mutant_changes_stands_once_in_its_file(wing: str) -> None:
    for mutant in importlib.import_module(f"tests.mutants.{wing}").MUTANTS:
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, f"{mutant.claim}: {mutant.file}"

"""A few hundred damaged artefacts; `python -m tests.fuzz` tries as many as one has time for."""

from __future__ import annotations

import collections

import pytest

from tests.fuzz import KINDS, survey


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damaged_artefacts_are_refused_in_words_or_read_as_they_were(kind: str) -> None:
    outcomes = collections.Counter(survey(kind, 0, range(200)))
    assert set(outcomes) == {"refused", "unharmed"}, outcomes
    assert min(outcomes.values()) > 10, "damages that are always refused, or never, try little"

"""MIG, DCI and SAP against values worked out by hand, and against scikit-learn's own mutual information."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from latent_obs.evaluation.disentanglement import (
    completeness,
    disentanglement,
    importances,
    measure_disentanglement,
    mutual_information,
    mutual_information_gaps,
    separated_attribute_predictability,
)


@pytest.fixture
def factors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    place, size = rng.uniform(0, 1, (2, 3000))
    return {"place": place, "size": size, "kind": rng.integers(0, 3, 3000).astype(float)}


def rotated(factors: dict[str, Any], degrees: float) -> Any:
    """The factors as a code, place and size turned against each other."""
    values = np.stack([(each - each.mean()) / each.std() for each in factors.values()], 1)
    turn, (cos, sin) = np.eye(3), (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    turn[:2, :2] = [[cos, -sin], [sin, cos]]
    return (values @ turn).astype(np.float32)


def test_a_code_of_the_factors_is_perfect_and_a_turned_one_is_not(factors: dict[str, Any]) -> None:
    own, turned = (measure_disentanglement(rotated(factors, by), factors) for by in (0, 45))
    assert own.mig > 0.95
    assert own.dci_disentanglement > 0.95
    assert own.dci_completeness > 0.95
    assert own.dci_informativeness > 0.98
    assert turned.gaps["place"] < 0.05
    assert turned.gaps["kind"] > 0.95, "the third dimension was not turned"
    # Two of three dimensions serve two factors alike, for a score of 1 - log 2 / log 3.
    assert turned.dci_disentanglement == pytest.approx(1 - 2 / 3 * math.log(2) / math.log(3), abs=0.03)
    # One dimension explains half of the variance of two of three factors, and so does another.
    assert own.sap - turned.sap == pytest.approx(2 / 3, abs=0.1)


def test_noise_has_no_disentanglement(factors: dict[str, Any]) -> None:
    noise = np.random.default_rng(1).normal(size=(3000, 6)).astype(np.float32)
    measured = measure_disentanglement(noise, factors)
    assert abs(measured.mig) < 0.03
    assert measured.dci_informativeness < 0.2
    assert measured.sap < 0.05


def test_mutual_information_is_scikit_learns(factors: dict[str, Any]) -> None:
    codes = rotated(factors, 30)
    for i, code in enumerate(codes.T.astype(float)):
        bins = np.minimum(((code - code.min()) / np.ptp(code) * 20).astype(int), 19)
        ours = mutual_information(codes, factors)[i]
        assert ours[2] == pytest.approx(mutual_info_score(bins, factors["kind"]), abs=1e-3)
        place = np.minimum((factors["place"] - factors["place"].min()) / np.ptp(factors["place"]) * 20, 19)
        assert ours[0] == pytest.approx(mutual_info_score(bins, place.astype(int)), abs=2e-3)


def test_the_gap_by_hand() -> None:
    """A bit in one dimension, and the same bit with every fourth value wrong in another."""
    bit = np.tile([0.0, 1.0], 400)
    flipped = np.where(np.arange(800) // 2 % 4 == 0, 1 - bit, bit)
    codes = np.stack([bit, flipped], 1).astype(np.float32)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert mutual_information_gaps(codes, {"bit": bit})["bit"] == pytest.approx(quarter)


def test_dci_of_importances_by_hand() -> None:
    importance = np.array([[1.0, 0.0], [0.0, 0.5], [0.0, 0.5]])
    assert disentanglement(importance) == 1, "each dimension serves one factor"
    assert completeness(importance) == pytest.approx((1 + 1 - math.log(2) / math.log(3)) / 2)
    # A dimension that serves both counts by its weight of 1.5 in 2.
    mixed = np.array([[0.5, 1.0], [0.5, 0.0]])
    entropy = -(1 / 3 * math.log2(1 / 3) + 2 / 3 * math.log2(2 / 3))
    assert disentanglement(mixed) == pytest.approx(0.75 * (1 - entropy) + 0.25)


def test_the_one_dimension_of_a_code_has_all_of_each_factor() -> None:
    assert completeness(np.array([[1.0, 1.0]])) == 1
    assert disentanglement(np.array([[1.0], [1.0]])) == 1, "there is one factor to serve"


def test_trees_find_which_dimension_a_factor_is_in(factors: dict[str, Any]) -> None:
    codes = rotated(factors, 0)[:, [2, 0, 1]]
    importance, scores = importances(codes, factors)
    assert importance.argmax(0).tolist() == [1, 2, 0]
    assert importance.sum(0) == pytest.approx([1, 1, 1])
    assert min(scores.values()) > 0.98


def test_sap_by_hand() -> None:
    """Correlations of 1 and 0.6 have the R² 1 and 0.36; a threshold tells two kinds apart, noise does not."""
    rng = np.random.default_rng(0)
    value, other = rng.normal(size=(2, 20_000))
    codes = np.stack([value, 0.6 * value + 0.8 * other], 1).astype(np.float32)
    assert separated_attribute_predictability(codes, {"value": value}) == pytest.approx(0.64, abs=0.02)
    kind = rng.integers(0, 2, 20_000).astype(float)
    codes = np.stack([kind * 4 + rng.uniform(-1, 1, 20_000), other], 1).astype(np.float32)
    assert separated_attribute_predictability(codes, {"kind": kind}) == pytest.approx(0.5, abs=0.03)

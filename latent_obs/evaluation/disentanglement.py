"""How far each dimension of a code follows one factor, by the metrics of the field: MIG, DCI and SAP.

All three need the factors behind each frame. They look at the means of the posterior, as is usual since
Locatello et al. (2019), "Challenging common assumptions in the unsupervised learning of disentangled
representations".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latent_obs.extras import needs

Codes = npt.NDArray[np.float32]  # (N, D)
Factors = Mapping[str, npt.NDArray[np.float64]]  # each (N,)

# Latents, and factors of more than MAX_VALUES values, are counted in so many bins of equal width.
BINS, MAX_VALUES = 20, 64
# A factor of whole numbers with at most so many values is a category.
MAX_CATEGORIES = 10


@dataclass(frozen=True)
class Disentanglement:
    """The metrics of one code; 1 is the best value of each.

    Attributes:
        mig: Mutual information gap: how much more the most informative dimension says of a factor than the
            second does, as a share of the factor's entropy; mean over the factors.
        dci_disentanglement: 1 where each dimension serves one factor, 0 where it serves all alike.
        dci_completeness: 1 where each factor is in one dimension.
        dci_informativeness: How well the factors are predicted from all dimensions: R^2, of a category the
            accuracy; mean over the factors, on frames that were not fitted on.
        sap: Separated attribute predictability: how much better the best single dimension predicts a factor
            than the second best; mean over the factors.
        gaps: The term of ``mig`` for each factor.
    """

    mig: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    sap: float
    gaps: Mapping[str, float]


def measure_disentanglement(codes: Codes, factors: Factors, seed: int = 0) -> Disentanglement:
    """Measure MIG, DCI and SAP of a code.

    Args:
        codes: Means of the posterior, shape (N, D).
        factors: Values of each factor, shape (N,). The last third of the frames is not fitted on.
        seed: Of the trees.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    gaps = mutual_information_gaps(codes, factors)
    importance, informativeness = importances(codes, factors, seed)
    return Disentanglement(
        mig=float(np.mean(list(gaps.values()))),
        dci_disentanglement=disentanglement(importance),
        dci_completeness=completeness(importance),
        dci_informativeness=float(np.mean(list(informativeness.values()))),
        sap=separated_attribute_predictability(codes, factors, seed),
        gaps=gaps,
    )


def mutual_information(codes: Codes, factors: Factors) -> npt.NDArray[np.float64]:
    """Return the mutual information of each dimension and each factor in nats, shape (D, K).

    Codes are counted in 20 bins of equal width, factors by their values, or so too if these are many.

    Example:
        >>> codes = np.arange(4.0, dtype=np.float32)[:, None]
        >>> mutual_information(codes, {"odd": np.array([0.0, 1.0, 0.0, 1.0])}).round(4)
        array([[0.6931]])
    """
    binned = [_bins(column) for column in codes.T.astype(np.float64)]
    values = [_discrete(column) for column in factors.values()]
    table = np.zeros((len(binned), len(values)))
    for i, one in enumerate(binned):
        for j, other in enumerate(values):
            joint = np.zeros((one.max() + 1, other.max() + 1))
            np.add.at(joint, (one, other), 1)
            table[i, j] = _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint)
    return table


def mutual_information_gaps(codes: Codes, factors: Factors) -> dict[str, float]:
    """Return each factor's gap between the most and the second most informative dimension, 0 to 1.

    Source: Chen et al. (2018), "Isolating sources of disentanglement in variational autoencoders".
    """
    table = np.sort(mutual_information(codes, factors), 0)[::-1]
    if len(table) < 2:
        table = np.concatenate([table, np.zeros_like(table)])
    entropies = [_entropy(np.bincount(_discrete(values))) for values in factors.values()]
    return {
        name: float((first - second) / entropy)
        for name, first, second, entropy in zip(factors, table[0], table[1], entropies, strict=True)
    }


def importances(
    codes: Codes, factors: Factors, seed: int = 0
) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
    """Fit gradient-boosted trees that predict each factor from all dimensions.

    Returns:
        The importance of each dimension for each factor, shape (D, K), each column of sum 1; and how well
        each factor is predicted on the last third of the frames.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    with needs("Measuring disentanglement"):
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    cut = 2 * len(codes) // 3
    columns, scores = [], {}
    for name, values in factors.items():
        kind = GradientBoostingClassifier if is_category(values) else GradientBoostingRegressor
        trees = kind(random_state=seed).fit(codes[:cut], values[:cut])
        columns.append(trees.feature_importances_)
        scores[name] = float(trees.score(codes[cut:], values[cut:]))
    return np.stack(columns, 1), scores


def disentanglement(importance: npt.NDArray[np.float64]) -> float:
    """Return how far each dimension serves one factor, from the importances, shape (D, K).

    A dimension's score is 1 less the entropy of its importances, to the base of the number of factors; the
    scores are averaged with the dimensions' importance over all factors as weights.

    Example:
        >>> disentanglement(np.eye(3)), round(disentanglement(np.ones((3, 3))), 6)
        (1.0, 0.0)

    Source: Eastwood & Williams (2018), "A framework for the quantitative evaluation of disentangled
    representations".
    """
    weights = importance.sum(1)
    scores = [1 - _entropy(row) / np.log(max(importance.shape[1], 2)) for row in importance]
    return float(np.average(scores, weights=weights)) if weights.any() else 0.0


def completeness(importance: npt.NDArray[np.float64]) -> float:
    """Return how far each factor is in one dimension, from the importances, shape (D, K); 1 of one dimension.

    Source: as :func:`disentanglement`; the factors count alike.
    """
    return float(np.mean([1 - _entropy(column) / np.log(max(len(importance), 2)) for column in importance.T]))


def separated_attribute_predictability(codes: Codes, factors: Factors, seed: int = 0) -> float:
    """Return the mean gap between the two dimensions that predict a factor best, each alone.

    The score of a dimension is the R^2 of a line, for a category the balanced accuracy of thresholds.

    Source: Kumar et al. (2018), "Variational inference of disentangled latent concepts from unlabeled
    observations".
    """
    with needs("Measuring disentanglement"):
        from sklearn.tree import DecisionTreeClassifier

    cut = 2 * len(codes) // 3
    scores = np.zeros((codes.shape[1], len(factors)))
    for j, values in enumerate(factors.values()):
        for i, column in enumerate(codes.T):
            if column.std() < 1e-6:
                continue
            if not is_category(values):
                scores[i, j] = np.corrcoef(column, values)[0, 1] ** 2
                continue
            kinds = np.unique(values)
            thresholds = DecisionTreeClassifier(
                max_leaf_nodes=len(kinds), class_weight="balanced", random_state=seed
            ).fit(column[:cut, None], values[:cut])
            right = thresholds.predict(column[cut:, None]) == values[cut:]
            scores[i, j] = np.mean([right[values[cut:] == kind].mean() for kind in kinds])
    best = np.sort(scores, 0)[::-1]
    return float((best[0] - (best[1] if len(best) > 1 else 0)).mean())


def is_category(values: npt.NDArray[np.float64]) -> bool:
    """Say whether values are a category: whole numbers, at most ten of them."""
    kinds = np.unique(values)
    return len(kinds) <= MAX_CATEGORIES and bool((kinds == kinds.round()).all())


def _discrete(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Number the values of a factor, or the bins of continuous ones."""
    kinds, numbers = np.unique(values, return_inverse=True)
    return numbers if len(kinds) <= MAX_VALUES else _bins(values)


def _bins(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    edges = np.histogram_bin_edges(values, BINS)
    return np.digitize(values, edges[1:-1])


def _entropy(weights: npt.NDArray[np.float64] | npt.NDArray[np.int64]) -> float:
    """Return the entropy in nats of a distribution that is proportional to the weights."""
    shares = weights[weights > 0] / max(weights.sum(), 1e-30)
    return float(-(shares * np.log(shares)).sum())

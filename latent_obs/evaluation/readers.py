"""Readers: small models that predict a game's state from features, to learn what the features hold."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Features = npt.NDArray[np.float32]  # (N, D)
Labels = npt.NDArray[np.uint8]  # (N, K)
Reader = Literal["converged", "paper"]


def probe_features(
    train: Features,
    train_labels: Labels,
    test: Features,
    test_labels: Labels,
    reader: Reader = "converged",
) -> npt.NDArray[np.float64]:
    """Fit a linear classifier of each variable and return its F1 on the test frames.

    Args:
        train: Features to fit on, shape (N, D).
        train_labels: Values of the variables there, shape (N, K).
        test: Features of other episodes, shape (M, D).
        test_labels: Values of the variables there, shape (M, K).
        reader: ``"converged"`` or ``"paper"``; see :mod:`latent_obs.evaluation.probe`.

    Returns:
        Class-weighted F1 of each variable, shape (K,), 0 to 1.

    Example:
        >>> labels = np.arange(200, dtype=np.uint8)[:, None] % 5
        >>> features = np.eye(5, dtype=np.float32)[labels[:, 0]]
        >>> probe_features(features, labels, features, labels)
        array([1.])
    """
    if reader == "paper":
        predicted = _fit_adam(train, train_labels, test)
    else:
        train, test = whiten(train, test)
        columns = [_fit_logistic(train, column, test) for column in train_labels.T]
        predicted = np.stack(columns, 1)
    return np.array([weighted_f1(*pair) for pair in zip(test_labels.T, predicted.T, strict=True)])


def whiten(train: Features, *others: Features) -> list[Features]:
    """Map features linearly so that over ``train`` they have unit covariance and zero mean.

    Directions without variance are dropped. What a probe finds in whitened features depends on
    what they span, and not on how they are scaled or mixed.
    """
    mean = train.mean(0, dtype=np.float64)
    centred = train - mean
    variances, directions = np.linalg.eigh(centred.T @ centred / len(train))
    kept = variances > 1e-10 * max(variances.max(), 1e-30)
    if not kept.any():  # constant features
        return [np.zeros((len(features), 1), np.float32) for features in (train, *others)]
    scale = directions[:, kept] / np.sqrt(variances[kept])
    return [((features - mean) @ scale).astype(np.float32) for features in (train, *others)]


def _fit_logistic(train: Features, labels: npt.NDArray[np.uint8], test: Features) -> Labels:
    """Return the predictions of a multinomial logistic regression with unit L2 penalty on the weights."""
    # The fit would give a value that the training frames lack a probability of zero, so it is left out.
    classes, targets = np.unique(labels, return_inverse=True)
    x, y = torch.from_numpy(train), torch.from_numpy(targets)
    weight = torch.zeros(x.shape[1], len(classes), requires_grad=True)
    bias = torch.zeros(len(classes), requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=500,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(torch.addmm(bias, x, weight), y)
        loss = loss + weight.square().sum() / (2 * len(x))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        chosen = torch.addmm(bias, torch.from_numpy(test), weight).argmax(1).numpy()
    predicted: Labels = classes[chosen]
    return predicted


def _fit_adam(
    train: Features, labels: Labels, test: Features, epochs: int = 100, learning_rate: float = 3e-4
) -> Labels:
    """Return the predictions of AtariARI's probe: one linear layer for all variables, trained by Adam."""
    x, y = torch.from_numpy(train), torch.from_numpy(labels.astype(np.int64))
    variables = y.shape[1]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layer = nn.Linear(x.shape[1], variables * 256)
        optimizer = torch.optim.Adam(layer.parameters(), learning_rate, eps=1e-5, fused=True)
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), 64):
                logits = layer(x[rows]).view(-1, 256)
                loss = nn.functional.cross_entropy(logits, y[rows].view(-1))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        chosen = [
            layer(rows).view(-1, variables, 256).argmax(2)
            for rows in torch.split(torch.from_numpy(test), 1024)
        ]
    return torch.cat(chosen).numpy().astype(np.uint8)


def weighted_f1(truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8]) -> float:
    """Return the F1 of each class, averaged with the classes' shares of ``truth`` as weights.

    Example:
        >>> round(weighted_f1(np.array([0, 0, 0, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8)), 3)
        0.767
    """
    there, said = (np.bincount(values, minlength=256) for values in (truth, predicted))
    hits = np.bincount(truth[truth == predicted], minlength=256)
    f1 = 2 * hits / np.maximum(there + said, 1)
    return float((f1 * there).sum() / len(truth))


def label_entropy(values: npt.NDArray[np.uint8]) -> float:
    """Return the entropy of a variable's values in nats."""
    share = np.bincount(values) / len(values)
    share = share[share > 0]
    return float(-(share * np.log(share)).sum())


def ridge(train: Features, wanted: Features, test: Features) -> Features:
    """Return the predictions of ridge regression with a unit penalty; inputs and targets are centred."""
    gram = train.T @ train + np.eye(train.shape[1], dtype=np.float32)
    predicted: Features = test @ np.linalg.solve(gram, train.T @ wanted)
    return predicted


def mlp(train: Features, wanted: Features, test: Features, epochs: int = 60) -> Features:
    """Return the predictions of a multilayer perceptron with two hidden layers of 128."""
    x, y = torch.from_numpy(train), torch.from_numpy(wanted)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(x.shape[1], 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, y.shape[1])
        )
        optimizer = torch.optim.Adam(model.parameters(), 2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 2e-3, epochs=epochs, steps_per_epoch=-(-len(x) // 128)
        )
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(x)), 128):
                loss = nn.functional.mse_loss(model(x[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        predicted: Features = model(torch.from_numpy(test)).numpy()
    return predicted

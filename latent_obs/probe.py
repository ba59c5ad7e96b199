"""Probes: what of a game's state a linear reader finds in the features of a frame.

The state is the console's RAM (:mod:`latent_obs.ram`); the frames are those of a random agent that
neither the encoder nor its training has met. Two readers, both linear and 256-way per variable:

- ``converged``: multinomial logistic regression on whitened features, fitted to convergence. It measures
  what the features hold, whatever their scale.
- ``paper``: the optimiser of AtariARI, 100 epochs of Adam on the features as they are. It alone
  compares with the published figures.

A score is the class-weighted F1 on episodes that the reader was not fitted on, averaged over the
variables of a category, then over categories.

Source: Anand et al. (2019), "Unsupervised State Representation Learning in Atari", arXiv:1906.08226.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from latent_obs.collect import open_env
from latent_obs.frames import Frames, FrameSpec, check_frame_space, frame_source, preprocess
from latent_obs.ram import state_variables

Features = npt.NDArray[np.float32]  # (N, D)
Labels = npt.NDArray[np.uint8]  # (N, K)
Reader = Literal["converged", "paper"]

# A variable that hardly changes is left out: anyone reads it. Nats, as AtariARI.
MIN_ENTROPY = 0.6
# Entropy in SeedSequence that no collection's (seed, worker, shard) has, so that no episode recurs.
_SEED_TAG = (1906, 8226)

# The objects whose coordinates are also regressed, for they are what a VAE loses first, and the
# RAM values of y at which they are on the screen.
_BALLS = {"pong": (1, 255), "breakout": (1, 199)}


@dataclass(frozen=True)
class ProbeFrames:
    """Frames of a random agent, each with the RAM behind it.

    Attributes:
        game: ALE's name of the game.
        frames: ``uint8``, shape (N, 64, 64, 3).
        ram: ``uint8``, shape (N, 128).
        episodes: Number of each frame's episode, shape (N,).
    """

    game: str
    frames: Frames
    ram: npt.NDArray[np.uint8]
    episodes: npt.NDArray[np.int64]

    def split(self, share: float = 0.3, seed: int = 0) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Choose frames to fit on and frames to test on, never of the same episode.

        Frames of the test episodes that equal one of the others are left out, as AtariARI does: games
        begin alike, and what was fitted on proves nothing.

        Args:
            share: Of the frames, to test on.
            seed: Chooses the episodes.

        Returns:
            Two masks of shape (N,).

        Raises:
            ValueError: If there are fewer than two episodes.
        """
        numbers, counts = np.unique(self.episodes, return_counts=True)
        if len(numbers) < 2:
            raise ValueError(
                f"The probe needs two episodes of {self.game}, one to fit on and one to test on; "
                f"{len(self.frames)} frames hold {len(numbers)}. Use more frames."
            )
        order = np.random.default_rng(seed).permutation(len(numbers))
        enough = int(np.searchsorted(np.cumsum(counts[order]), share * len(self.frames))) + 1
        test = np.isin(self.episodes, numbers[order[: min(enough, len(numbers) - 1)]])
        train = ~test
        seen = {self.frames[i].tobytes() for i in np.flatnonzero(train)}
        for i in np.flatnonzero(test):
            test[i] = self.frames[i].tobytes() not in seen
        return train, test


def collect_probe_frames(
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    *,
    frame_spec: FrameSpec | None = None,
    count: int = 20_000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> ProbeFrames:
    """Play a game at random and keep the RAM behind each frame.

    The environment is the one the encoder was trained on, frameskip and sticky actions included; AtariARI's
    has a frameskip of 4 and no sticky actions.

    Args:
        env_id: Gymnasium id of an ALE game, such as ``"ALE/Pong-v5"``.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        frame_spec: How observations become frames; the encoder's.
        count: Number of frames.
        seed: Seeds the game and the actions; no collection repeats its episodes.
        progress: Called with the number of frames since it was last called.

    Raises:
        ValueError: If the environment is no ALE game, or one whose RAM is not annotated.
    """
    spec = frame_spec or FrameSpec()
    env = open_env(env_id, env_kwargs)
    try:
        game = frame_source(env).emulator.get("game")
        if not game:
            raise ValueError(
                f"The probe reads the RAM of Atari games, and {env_id} is none: leave --probe out. All "
                "the other figures are for any environment."
            )
        state_variables(game)
        check_frame_space(env.observation_space, "The probe")
        frames = np.empty((count, 64, 64, 3), np.uint8)
        ram, episodes = np.empty((count, 128), np.uint8), np.empty(count, np.int64)
        env_seed, action_seed = np.random.SeedSequence((seed, *_SEED_TAG)).generate_state(2)
        env.action_space.seed(int(action_seed))
        obs, _ = env.reset(seed=int(env_seed))
        episode = 0
        ale = env.unwrapped.ale  # type: ignore[attr-defined]
        for i in range(count):
            frames[i], ram[i], episodes[i] = preprocess(obs, spec), ale.getRAM(), episode
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                obs, _ = env.reset()
                episode += 1
            if progress and i % 500 == 499:
                progress(500)
    finally:
        env.close()
    return ProbeFrames(str(game), frames, ram, episodes)


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
        reader: ``"converged"`` or ``"paper"``; see the module.

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
    scale = directions[:, kept] / np.sqrt(variances[kept])
    return [((features - mean) @ scale).astype(np.float32) for features in (train, *others)]


def _fit_logistic(train: Features, labels: npt.NDArray[np.uint8], test: Features) -> Labels:
    """Return the predictions of a multinomial logistic regression with unit L2 penalty on the weights."""
    # A value that the training frames lack would get a probability of zero in the end: leave it out.
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
        >>> weighted_f1(np.array([0, 0, 0, 1], np.uint8), np.array([0, 0, 1, 1], np.uint8))
        0.7666666666666666
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


def probed_variables(data: ProbeFrames) -> dict[str, dict[str, int]]:
    """Return the variables that change enough to be probed, by category, with their addresses."""
    kept = {
        category: {
            name: at for name, at in variables.items() if label_entropy(data.ram[:, at]) >= MIN_ENTROPY
        }
        for category, variables in state_variables(data.game).items()
    }
    return {category: variables for category, variables in kept.items() if variables}


def probe(data: ProbeFrames, features: Features | None, reader: Reader = "converged") -> dict[str, Any]:
    """Score features of probe frames.

    Args:
        data: The frames and their RAM.
        features: Of each frame, shape (N, D); ``None`` scores the reader that always names the most
            frequent value.
        reader: ``"converged"`` or ``"paper"``.

    Returns:
        ``f1``: the mean over categories; ``categories``: the mean of each; ``variables``: that of
        each variable.
    """
    variables = probed_variables(data)
    addresses = sorted({at for group in variables.values() for at in group.values()})
    labels, (train, test) = data.ram[:, addresses], data.split()
    if features is None:
        usual = [np.bincount(column).argmax() for column in labels[train].T]
        scores = [weighted_f1(labels[test, k], np.full(test.sum(), v, np.uint8)) for k, v in enumerate(usual)]
    else:
        features = features.astype(np.float32)
        scores = list(probe_features(features[train], labels[train], features[test], labels[test], reader))
    by_address = {at: float(score) for at, score in zip(addresses, scores, strict=True)}
    categories = {c: float(np.mean([by_address[at] for at in v.values()])) for c, v in variables.items()}
    return {
        "f1": float(np.mean(list(categories.values()))),
        "categories": categories,
        "variables": {name: by_address[at] for group in variables.values() for name, at in group.items()},
    }


def probe_ball(data: ProbeFrames, features: Features) -> dict[str, dict[str, float]] | None:
    """Read the coordinates of the visible ball with ridge regression and with a small MLP.

    Args:
        data: The frames and their RAM.
        features: Of each frame, shape (N, D).

    Returns:
        ``{"ridge": {"x": R^2, "y": R^2}, "mlp": ...}`` on episodes not fitted on, or ``None`` for a game
        whose ball's visibility is not known.
    """
    if data.game not in _BALLS:
        return None
    addresses = state_variables(data.game)["small_object"]
    low, high = _BALLS[data.game]
    y = data.ram[:, addresses["ball_y"]]
    visible = (y >= low) & (y <= high)
    places = data.ram[visible][:, [addresses["ball_x"], addresses["ball_y"]]].astype(np.float32)
    train, test = (mask[visible] for mask in data.split())
    features = features[visible].astype(np.float32)
    fitted, held_out = whiten(features[train], features[test])
    mean, std = places[train].mean(0), places[train].std(0)
    wanted, truth = (places[train] - mean) / std, (places[test] - mean) / std
    report = {}
    for name, read in (("ridge", _ridge), ("mlp", _mlp)):
        residual = np.square(read(fitted, wanted, held_out) - truth).sum(0)
        r2 = 1 - residual / np.square(truth - truth.mean(0)).sum(0)
        report[name] = {"x": float(r2[0]), "y": float(r2[1])}
    return report


def _ridge(train: Features, wanted: Features, test: Features) -> Features:
    """Return the predictions of ridge regression with a unit penalty; inputs and targets are centred."""
    gram = train.T @ train + np.eye(train.shape[1], dtype=np.float32)
    predicted: Features = test @ np.linalg.solve(gram, train.T @ wanted)
    return predicted


def _mlp(train: Features, wanted: Features, test: Features, epochs: int = 60) -> Features:
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

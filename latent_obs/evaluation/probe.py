"""Probes: what of a game's state a linear reader finds in the features of a frame.

The state is the console's RAM (:mod:`latent_obs.evaluation.ram`); the frames are those of a random agent that
neither the encoder nor its training has met. Two readers, both linear and 256-way per variable:

- ``converged``: multinomial logistic regression on whitened features, fitted to convergence. It measures
  what the features hold, whatever their scale.
- ``paper``: the optimiser of AtariARI, 100 epochs of Adam on the features as they are. It alone
  compares with the published figures.

A score is the class-weighted F1 on episodes that the reader was not fitted on. It is averaged over the
variables of each category, then over the categories.

Source: Anand et al. (2019), "Unsupervised State Representation Learning in Atari", arXiv:1906.08226.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_obs.collecting.sources import open_env
from latent_obs.evaluation.ram import state_variables
from latent_obs.evaluation.readers import (
    Features,
    Reader,
    label_entropy,
    mlp,
    probe_features,
    ridge,
    weighted_f1,
    whiten,
)
from latent_obs.evaluation.report import Probe, ProbeScores
from latent_obs.frames import Frames, FrameSource, FrameSpec, check_frame_space, frame_source, preprocess
from latent_obs.progress import progress_bar

# A variable with less entropy than this, in nats, is left out, as in AtariARI: it hardly changes, so that any
# reader scores well on it.
MIN_ENTROPY = 0.6
# These words follow the seed in the SeedSequence. No collection's (seed, worker, shard) has them, so the
# probe never plays an episode that an encoder was trained on.
_SEED_TAG = (1906, 8226)

# Table 2 of the paper: F1 of 256 features of 210x160 gray frames.
PUBLISHED = {
    "pong": {"random-cnn": 0.17, "vae": 0.09, "st-dim": 0.81},
    "breakout": {"random-cnn": 0.51, "vae": 0.57, "st-dim": 0.88},
    "mspacman": {"random-cnn": 0.49, "vae": 0.56, "st-dim": 0.72},
    "spaceinvaders": {"random-cnn": 0.41, "vae": 0.52, "st-dim": 0.57},
}

# Games whose ball's coordinates are also read by regression, since a VAE loses the ball first, and the RAM
# values of its y at which it is on the screen.
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

        Frames of the test episodes that equal a frame to fit on are left out, as in AtariARI: games begin
        alike, and a frame that the reader was fitted on does not test it.

        Args:
            share: Share of the frames to test on.
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


def probed_game(source: FrameSource) -> str:
    """Name the Atari game behind an environment.

    Raises:
        ValueError: If it is none, or one whose RAM is not annotated.
    """
    game = source.emulator.get("game")
    if not game:
        raise ValueError(
            f"The probe reads the RAM of Atari games, and {source.env_id or 'this environment'} is none: "
            "leave --probe out. All the other figures are for any environment."
        )
    state_variables(game)
    return str(game)


def collect_probe_frames(
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    *,
    frame_spec: FrameSpec | None = None,
    count: int = 20_000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[npt.NDArray[np.uint8]], None] | None = None,
) -> ProbeFrames:
    """Play a game at random and keep the RAM behind each frame.

    Frameskip and sticky actions are those of the environment that is named; AtariARI's environments have a
    frameskip of 4 and no sticky actions.

    Args:
        env_id: Gymnasium id of an ALE game, such as ``"ALE/Pong-v5"``.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        frame_spec: How observations become frames; it should be the encoder's. ``None`` (default): the whole
            observation, resized.
        count: Number of frames.
        seed: Seeds the game and the actions; no collection repeats its episodes.
        progress: Is called with the number of frames since its last call.
        watch: Is called with every observation that becomes a frame.

    Raises:
        ValueError: If the environment is no ALE game, or one whose RAM is not annotated.
    """
    spec = frame_spec or FrameSpec()
    env = open_env(env_id, env_kwargs)
    try:
        game = probed_game(frame_source(env))
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
            if watch:
                watch(obs)
            obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                obs, _ = env.reset()
                episode += 1
            if progress and i % 500 == 499:
                progress(500)
    finally:
        env.close()
    return ProbeFrames(game, frames, ram, episodes)


def probed_variables(data: ProbeFrames) -> dict[str, dict[str, int]]:
    """Return the variables that change enough to be probed, by category, with their addresses."""
    kept = {
        category: {
            name: at for name, at in variables.items() if label_entropy(data.ram[:, at]) >= MIN_ENTROPY
        }
        for category, variables in state_variables(data.game).items()
    }
    return {category: variables for category, variables in kept.items() if variables}


def probe(data: ProbeFrames, features: Features | None, reader: Reader = "converged") -> ProbeScores:
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
    for name, read in (("ridge", ridge), ("mlp", mlp)):
        residual = np.square(read(fitted, wanted, held_out) - truth).sum(0)
        r2 = 1 - residual / np.square(truth - truth.mean(0)).sum(0)
        report[name] = {"x": float(r2[0]), "y": float(r2[1])}
    return report


def probe_codes(
    source: FrameSource,
    frame_spec: FrameSpec,
    codes: Mapping[str, Callable[[Frames], Features]],
    count: int,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Probe:
    """Play a game at random and compare several ways to turn its frames into numbers.

    Args:
        source: The environment.
        frame_spec: How its observations become frames.
        codes: What turns frames into features, by name.
        count: Frames to collect.
        seed: Seed of the game and of the actions.
        progress: Show progress on standard error.

    Returns:
        ``readers``: for each reader and code, and for ``majority``, the value of :func:`probe`;
        ``ball``: for each code, that of :func:`probe_ball`; and how many ``frames`` and
        ``episodes`` of which ``env_id``.

    Raises:
        ValueError: If the environment is no Atari game whose RAM is annotated.
    """
    with progress_bar("play", count, "frames", progress) as bar:
        data = collect_probe_frames(
            source.env_id,
            source.env_kwargs,
            frame_spec=frame_spec,
            count=count,
            seed=seed,
            progress=bar.advance,
        )
    features = {name: encode(data.frames) for name, encode in codes.items()}
    readers: dict[str, dict[str, ProbeScores]] = {}
    names: tuple[Reader, ...] = ("converged", "paper")
    with progress_bar("probe", len(names) * len(features), "fits", progress) as bar:
        for reader in names:
            readers[reader] = {"majority": probe(data, None)}
            for name, values in features.items():
                readers[reader][name] = probe(data, values, reader)
                bar.advance()
    train, test = data.split()
    return {
        "env_id": source.env_id,
        "env_kwargs": source.env_kwargs,
        "emulator": source.emulator,
        "frames": {"train": int(train.sum()), "test": int(test.sum())},
        "episodes": int(data.episodes[-1]) + 1,
        "seed": seed,
        "readers": readers,
        "ball": {name: probe_ball(data, values) for name, values in features.items()},
        "published": PUBLISHED.get(data.game.replace("_", "")),
    }

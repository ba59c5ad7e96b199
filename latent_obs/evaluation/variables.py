"""What a frame shows, as numbers with names: an environment's factors or state, a game's RAM, or statistics.

These are what labels of latent dimensions speak of (:mod:`latent_obs.evaluation.labelling`).
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt

from latent_obs.collecting.sources import open_env
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.hub import HUB_PREFIX
from latent_obs.encoders.resolve import EncoderFolder, level_of_caller
from latent_obs.evaluation.ram import games, state_variables
from latent_obs.frames import Frames, FrameSource, FrameSpec, preprocess

Values = npt.NDArray[np.float64]  # (N,), NaN where a frame does not have the variable

# These words follow the seed in the SeedSequence, so that no collection plays the same episodes.
_SEED_TAG = (1, 21)
FRAMES = 12_000
# Fewer frames say nothing of a latent's covariance.
MIN_FRAMES = 500
# A pixel differs from the median frame if a channel does by this many levels.
DIFFERENCE = 24
# Colours of what differs from the median frame, and how far from one a pixel of it may be, in levels (rms).
COLOURS, COLOUR_DISTANCE = 4, 28.0
# The basic colours, by which the ones found are named.
NAMES = {
    "black": (20, 20, 20),
    "grey": (128, 128, 128),
    "white": (245, 245, 245),
    "red": (210, 40, 40),
    "orange": (225, 125, 50),
    "yellow": (225, 215, 70),
    "green": (80, 190, 70),
    "cyan": (70, 200, 200),
    "blue": (60, 80, 210),
    "purple": (140, 60, 190),
    "pink": (230, 120, 180),
    "brown": (130, 80, 40),
}
# RAM values of the ball's y at which it is on the screen.
_BALL_ON_SCREEN = {"pong": (1, 255), "breakout": (1, 199)}


@dataclass(frozen=True)
class Observed:
    """Frames, and what is known of each.

    Attributes:
        frames: ``uint8``, shape (N, 64, 64, 3).
        variables: Values of each variable, shape (N,); NaN where a frame does not have it.
        groups: Number of each frame's episode, shape (N,).
        source: Where frames and values come from, as a part of a sentence.
        factors: Whether the variables are all that the frames are made from, so that metrics of
            disentanglement mean something.
    """

    frames: Frames
    variables: Mapping[str, Values]
    groups: npt.NDArray[np.int64]
    source: str
    factors: bool = False


def play_again(
    encoder: EncoderFolder, count: int = FRAMES, seed: int = 0, *, state: bool = True
) -> Observed | None:
    """Do what :func:`play` does, with the environment that an encoder's frames were collected from.

    It is opened as it was for them: with the same wrapper, drawn, or one entry of it. No module that the
    ``config.json`` of an encoder on the Hub names is imported: unless this process has imported it already,
    the environment counts as one that is not there.

    Args:
        encoder: The encoder.
        count: Number of frames.
        seed: Seeds the environment and the actions.
        state: Whether frames without a known state are of no use.

    Returns:
        ``None`` where :func:`play` returns it.

    Warns:
        UserWarning: As :func:`play` does.
    """
    config = encoder.config
    data = {} if config.provenance.run is None else config.provenance.run.data
    options = {name: data[name] for name in ("key", "render", "wrapper") if data.get(name)}
    if encoder.ref.startswith(HUB_PREFIX):
        modules = {config.source.env_id.rpartition(":")[0], str(options.get("wrapper", "")).partition(":")[0]}
        if not modules - {""} <= set(sys.modules):
            return None
    return play(config.source, config.frame_spec, count, seed, state=state, **options)


def play(
    source: FrameSource,
    spec: FrameSpec,
    count: int = FRAMES,
    seed: int = 0,
    *,
    state: bool = True,
    **options: Any,
) -> Observed | None:
    """Play an environment at random and read its state behind each frame.

    Read are, whichever there is first: the numbers in ``info["factors"]``; the annotated RAM of an ALE game;
    the vector ``env.unwrapped.state``.

    Args:
        source: The environment.
        spec: How its observations become frames.
        count: Number of frames.
        seed: Seeds the environment and the actions; no collection repeats its episodes.
        state: Whether frames without a known state are of no use.
        **options: Options of :func:`~latent_obs.collecting.sources.open_env`.

    Returns:
        ``None`` for an environment that is not there, shows no images, fails or, with ``state``, has no known
        state.

    Warns:
        UserWarning: If the environment fails.
    """
    if not source.env_id:
        return None
    try:
        return _play(source, spec, count, seed, state, options)
    except Exception as error:
        warnings.warn(
            f"{source.env_id} cannot be played here, so nothing is shown or measured of it: "
            f"{type(error).__name__}: {error}",
            UserWarning,
            stacklevel=level_of_caller(),
        )
        return None


def _play(
    source: FrameSource, spec: FrameSpec, count: int, seed: int, state: bool, options: dict[str, Any]
) -> Observed | None:
    if source.env_id.startswith("Scenes/"):
        import latent_obs.scenes  # noqa: F401  # registers them
    try:
        env = open_env(source.env_id, source.env_kwargs, **options)
    except (ImportError, ValueError):
        return None
    try:
        env_seed, action_seed = np.random.SeedSequence((seed, *_SEED_TAG)).generate_state(2)
        env.action_space.seed(int(action_seed))
        obs, info = env.reset(seed=int(env_seed))
        if not isinstance(obs, np.ndarray) or obs.ndim != 3 or (state and not _state(env, info)):
            return None
        frames, groups = np.empty((count, 64, 64, 3), np.uint8), np.empty(count, np.int64)
        rows: list[dict[str, float]] = []
        episode = 0
        for i in range(count):
            frames[i], groups[i] = preprocess(obs, spec), episode
            rows.append(_state(env, info))
            obs, _, terminated, truncated, info = env.step(env.action_space.sample())
            if terminated or truncated:
                obs, info = env.reset()
                episode += 1
        known = "factors" in info
    finally:
        env.close()
    variables = {name: np.array([row.get(name, np.nan) for row in rows]) for name in rows[0]}
    where = f"{count:,} frames of random play of {source.env_id}"
    return Observed(frames, variables, groups, where, factors=known)


def observe(encoder: EncoderFolder, folders: Sequence[FramesFolder], count: int = FRAMES) -> Observed | None:
    """Play an encoder's environment if its state is known, else take the statistics of recorded frames.

    Args:
        encoder: The encoder.
        folders: Where frames are recorded, if anywhere.
        count: Number of frames.

    Returns:
        ``None`` where there is neither, or fewer than 500 frames are recorded.
    """
    if (observed := play_again(encoder, count)) is not None:
        return observed
    if sum(map(len, folders)) < MIN_FRAMES:
        return None
    rng, images, names = np.random.default_rng(0), [], []
    groups: list[npt.NDArray[np.int64]] = []
    for folder in folders:
        rows = np.sort(rng.permutation(len(folder))[: count // len(folders)])
        images.append(folder.take(rows))
        # Episodes of another folder have other numbers.
        groups.append(folder.index.numbers(rows) + (int(groups[-1].max()) + 1 if groups else 0))
        names.append(folder.source.env_id or "an unknown environment")
    frames = np.concatenate(images)
    where = f"{len(frames):,} frames of {', '.join(dict.fromkeys(names))}"
    return Observed(frames, image_variables(frames), np.concatenate(groups), where)


def _state(env: gym.Env[Any, Any], info: Mapping[str, Any]) -> dict[str, float]:
    """Return what is known of the frame just shown; nothing where nothing is."""
    if isinstance(factors := info.get("factors"), Mapping):
        return {str(name): float(value) for name, value in factors.items()}
    inner = env.unwrapped
    ale = getattr(inner, "ale", None)
    if ale is not None:
        game = str(getattr(inner, "_game", "")).replace("_", "").lower()
        if game not in games():
            return {}
        ram = ale.getRAM()
        variables = {
            name.replace("_", " "): float(ram[at])
            for group in state_variables(game).values()
            for name, at in group.items()
        }
        low, high = _BALL_ON_SCREEN.get(game, (0, 255))
        if not low <= variables.get("ball y", low) <= high:
            variables["ball x"] = variables["ball y"] = np.nan
        return variables
    state = getattr(inner, "state", None)
    if state is None or isinstance(state, (str, bytes, Mapping)) or not np.ndim(state):
        return {}
    numbers = np.asarray(state)
    if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.number):
        return {}
    return {f"state {i}": float(value) for i, value in enumerate(numbers)}


def image_variables(frames: Frames) -> dict[str, Values]:
    """Return statistics of frames: place and size of what differs from the median frame, and colours.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).

    Returns:
        For all that differs from the median frame, and for each of its four main colours, the x and y of its
        centroid in pixels and its area in pixels; and brightness, red against green, and blue against yellow
        of the whole picture in levels.

    Example:
        >>> frames = np.zeros((400, 64, 64, 3), np.uint8)
        >>> frames[np.arange(400), 20, np.random.default_rng(0).integers(0, 64, 400)] = 255
        >>> bool((image_variables(frames)["white x"] == frames[:, 20, :, 0].argmax(1)).all())
        True
    """
    median = np.median(frames, 0)
    y, x = np.mgrid[:64, :64]
    centers = _colours(frames, median)
    names = ["changing", *_colour_names(centers)]
    columns: dict[str, list[Values]] = {}
    for start in range(0, len(frames), 256):
        batch = frames[start : start + 256].astype(np.float32)
        differs = (np.abs(batch - median) > DIFFERENCE).any(-1)
        masks = [differs]
        if len(centers):
            distances = np.stack([np.square(batch - center).mean(-1) for center in centers])
            nearest = np.where(distances.min(0) < COLOUR_DISTANCE**2, distances.argmin(0), -1)
            masks += [differs & (nearest == i) for i in range(len(centers))]
        for name, mask in zip(names, masks, strict=True):
            area = mask.sum((1, 2)).astype(np.float64)
            inside = np.where(area > 0, area, np.nan)  # what is not there has no place
            columns.setdefault(f"{name} x", []).append((mask * x).sum((1, 2)) / inside)
            columns.setdefault(f"{name} y", []).append((mask * y).sum((1, 2)) / inside)
            columns.setdefault(f"{name} area", []).append(area)
        red, green, blue = batch.mean((1, 2)).astype(np.float64).T
        columns.setdefault("brightness", []).append(0.299 * red + 0.587 * green + 0.114 * blue)
        columns.setdefault("red against green", []).append(red - green)
        columns.setdefault("blue against yellow", []).append(blue - (red + green) / 2)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def _colours(frames: Frames, median: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return the main colours of what differs from the median frame, the most frequent first; (K, 3)."""
    some = frames[np.linspace(0, len(frames) - 1, min(len(frames), 400)).astype(int)]
    pixels = some[(np.abs(some - median) > DIFFERENCE).any(-1)].astype(np.float32)
    if len(pixels) < 10 * COLOURS:
        return np.zeros((0, 3), np.float32)
    pixels = pixels[np.random.default_rng(0).permutation(len(pixels))[:20_000]]
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 0.5)
    start: Any = None  # the stubs of OpenCV do not know that there may be no labels to begin with
    _, labels, centers = cv2.kmeans(pixels, COLOURS, start, stop, 3, cv2.KMEANS_PP_CENTERS)
    counts = np.bincount(labels[:, 0], minlength=COLOURS)
    kept: list[npt.NDArray[np.float32]] = []
    for i in np.argsort(-counts):
        apart = all(np.square(centers[i] - each).mean() > COLOUR_DISTANCE**2 for each in kept)
        if counts[i] and apart:
            kept.append(centers[i])
    return np.stack(kept)


def _colour_names(centers: npt.NDArray[np.float32]) -> list[str]:
    """Name each colour by the nearest basic one; a second one of a name is numbered."""
    names: list[str] = []
    for center in centers:
        distances = {name: float(np.square(center - np.array(rgb)).sum()) for name, rgb in NAMES.items()}
        name = min(distances, key=lambda each: distances[each])
        again = sum(each.partition(" ")[0] == name for each in names)
        names.append(f"{name} {again + 1}" if again else name)
    return names

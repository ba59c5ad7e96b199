"""Fits an encoder to an environment within a given time: collects frames, trains, and keeps the better.

The encoder folder lies in the user's cache, where ``encoder="auto"`` finds it. What is needed to go on, the
frames and the plan, lies in its hidden folder ``.fit``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from latent_obs.encoders.folder import read_calibration, read_config, read_tensors, write_encoder_folder
from latent_obs.encoders.resolve import FITTED, EncoderFolder, list_encoders, resolve
from latent_obs.extras import needs
from latent_obs.files import cache_folder, write_atomically
from latent_obs.frames import FrameSpec
from latent_obs.progress import plain_console

with needs("Fitting an encoder", "make"):
    from latent_obs.collecting.collect import collect_frames
    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.policies import default_policy
    from latent_obs.collecting.processes import end_if_imported_again
    from latent_obs.collecting.rate import frames_per_second
    from latent_obs.collecting.sources import open_env
    from latent_obs.collecting.trial import naming_the_culprit
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.storage import locked

if TYPE_CHECKING:
    from latent_obs.evaluation.evaluate import Evaluation
    from latent_obs.evaluation.report import Scores
    from latent_obs.evaluation.selection import Selection
    from latent_obs.training.config import TrainConfig

WORK = ".fit"
# Collecting takes at most this share of the time. Measuring and publishing take as long as so many steps.
COLLECT_SHARE, MEASURE_STEPS = 0.35, 220
# More frames than this for each second do not pay: the trainer would see most of them once at the most.
FRAMES_PER_SECOND = 330
MIN_FRAMES, MIN_STEPS = 600, 120
LAST_STEPS = 60  # are taken though the time is out: the learning rate has to fall to zero
GUESSED_RATE = 25  # steps a second, before they are measured
SHARD_ROWS = 1024  # an interrupted fit collects at most so many frames, and the rest of an episode, again
# Workers each begin an episode, and held-out frames are whole episodes: there must be two.
MIN_WORKERS = 2
# A larger network pays where there is time for it.
SMALL, LARGE, LARGE_FROM_SECONDS = (16, 32, 64), (32, 64, 128), 300.0
# Places cost steps at first, so where there are few, their dimensions are held loosely, as those of moments.
PLACES, PLACES_FROM_SECONDS = 14, 30.0
EVALUATED_FRAMES = 768


@dataclass(frozen=True)
class FitConfig:
    """Fit an encoder to an environment: collect frames, train for a minute, measure it, keep the better.

    ``latent-obs fit --help`` lists the options and says what each means.

    Example:
        >>> FitConfig("ALE/Tennis-v5").folder.name
        'ale-tennis-v5'
    """

    env_id: str
    """Gymnasium id of an environment with images, such as ALE/Tennis-v5; module:Id imports the module"""
    seconds: float = 60.0
    """time for all of it; more makes the encoder better; of two fits the better one stays"""
    out: Path | None = None
    """encoder folder to write; default: one in the cache folder, where encoder="auto" finds it"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments for gymnasium.make, as JSON"""
    key: str | None = None
    """the entry of Dict observations that is the image, such as screen in ViZDoom"""
    render: bool = False
    """draw the environment, and let the drawing be the observation: for environments of states"""
    wrapper: str | None = None
    """module:callable around the environment, such as minigrid.wrappers:RGBImgObsWrapper"""
    crop: tuple[int, int, int, int] | None = None
    """rows and columns to keep before resizing: top bottom left right"""
    policy: str | None = None
    """what acts while frames are collected, as `latent-obs collect` takes it; default: brownian where actions
    are continuous, else random"""
    latent_dim: int = 32
    """size of the latent"""
    seed: int = 0
    """seed of environments, weights and batches"""

    def __post_init__(self) -> None:
        if not 5 <= self.seconds <= 86_400:
            raise ValueError(f"seconds must be from 5 to 86,400 (a day), got {self.seconds:g}.")
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}.")
        FrameSpec(crop=self.crop)  # an invalid crop is reported here

    @property
    def folder(self) -> Path:
        """The encoder folder."""
        if self.out is not None:
            return Path(self.out)
        options = (self.env_kwargs, self.key, "render" if self.render else "", self.wrapper, self.crop)
        words = [self.env_id, *(json.dumps(option) for option in options if option)]
        names = [re.sub(r"[^A-Za-z0-9.]+", "-", word).strip("-.").lower() for word in words]
        name = "-".join(names)
        told = [*self.env_kwargs.values(), *([self.key] if self.key else [])]
        lossy = not all(map(_is_told_apart, told)) or self.key == "render"
        if lossy or len(name) > 100:
            exact = json.dumps(options) if lossy else name
            name = f"{name[:91]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
        return cache_folder() / FITTED / name

    def open(self) -> gym.Env[Any, Any]:
        """Make the environment."""
        return open_env(self.env_id, self.env_kwargs, self.key, render=self.render, wrapper=self.wrapper)


def _is_told_apart(value: Any) -> bool:
    """Whether the name of a folder tells an option from others: a word, or a number without a sign."""
    if isinstance(value, str) and value not in ("true", "false", "null"):
        return re.fullmatch(r"(?=.*[a-z])[a-z0-9]+([._][a-z0-9]+)*", value) is not None
    return re.fullmatch(r"true|false|null|[0-9]+([.][0-9]+)?", json.dumps(value)) is not None


@dataclass
class Plan:
    """What a fit has decided to do, kept so that the same command goes on with it.

    Args:
        config: The fit, as JSON.
        policy: What acts.
        frames: Frames to collect.
        seconds: Seconds spent in earlier calls.
    """

    config: dict[str, Any]
    policy: str
    frames: int
    seconds: float = 0.0


def fit_encoder(config: FitConfig, *, progress: bool = True) -> EncoderFolder:
    """Fit an encoder to an environment within ``config.seconds``, and publish its folder.

    The time is split by measuring: how fast the environment gives frames, and how fast this machine trains.
    An interrupted fit goes on with the same call. Where the folder already holds an encoder with as many
    dimensions that keeps more of held-out episodes, that one stays.

    Args:
        config: Which environment, and how long.
        progress: Show progress on standard error.

    Returns:
        The encoder folder: ``config.json``, weights, calibration frames, the report card ``card.html`` and
        the picture ``card.png``.

    Raises:
        ImportError: If the environment's package is not installed.
        ValueError: If there is no such environment, its observations are no images, nothing moves in them, or
            the folder holds an encoder that was made in another way.
        CollectError: If the environment fails midway.
        KeyboardInterrupt: After Ctrl-C, once what is begun is saved.

    Example:
        >>> fit_encoder(FitConfig("ALE/Tennis-v5")).config.vae.latent_dim  # doctest: +SKIP
        32
    """
    end_if_imported_again()
    begun, out = time.monotonic(), config.folder
    # Imported here, so that the workers do not wait for torch.
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate
    from latent_obs.training.pca import write_pca
    from latent_obs.training.train import train_vae

    work = out / WORK
    if _is_encoder(out) and not work.exists():
        raise ValueError(
            f"{out} holds an encoder that latent-obs fit did not make, so it is left alone. Choose another "
            "--out."
        )
    work.mkdir(parents=True, exist_ok=True)
    with locked(work, waits=True):  # another script may be fitting the same: its encoder is taken then
        if (known := _finished(config, work)) is not None:
            return known
        plan = _plan(config, work)
        with _counting(plan, work, begun), _threads_restored():
            collect = _collect_config(config, plan, work)
            frames = collect_frames(collect, progress=progress, in_process=False)
            train = _train_config(config, work)

            def steps_left(rate: float, taken: int) -> int:
                left = config.seconds - plan.seconds - (time.monotonic() - begun)
                return max(MIN_STEPS - taken, LAST_STEPS, int(left * rate) - MEASURE_STEPS)

            train_vae(train, progress=progress, steps_left=steps_left)

            def measured(encoder: Path) -> Evaluation:
                config = EvaluateConfig(encoder, train.data, limit=EVALUATED_FRAMES)
                return evaluate(config, brief=True)

            made = train.out
            new = measured(made)
            if score(new.card) < score(new.card.baselines["pca"]):
                made = work / "pca"
                write_pca(train, frames, made)
                new = measured(made)
            # One of another size is not what was asked for, so it is replaced, whatever it keeps.
            same = _is_encoder(out) and read_config(out).vae.latent_dim == config.latent_dim
            if not same or _keeps_as_much(made, out, frames, new.selection):
                _publish(out, made, new)
        write_atomically(work / "finished.json", (work / "plan.json").read_bytes())
        (work / "plan.json").unlink()
        for scratch in (train.out, work / "pca"):
            shutil.rmtree(scratch, ignore_errors=True)
    return resolve(out)


def score(card: Scores) -> float:
    """Return what two encoders of one environment are compared by; more is better.

    It is minus the logarithm of the product of what is lost (1 - R²) of what moves, of what changes and of
    rare colours. So it counts by which factor each loss falls: of ViZDoom's Basic, PCA loses a quarter less
    of the walls than a VAE of half a minute, and three times as much of the monster.
    """
    kept = card.moving_r2, card.changing_r2, card.rare_r2 or 0.0
    return -sum(math.log(max(1 - r2, 1e-6)) for r2 in kept)


def _keeps_as_much(new: Path, old: Path, frames: FramesFolder, held_out: Selection) -> bool:
    """Compare two encoders on episodes that neither was trained on.

    If there are too few of those, it is on what the new one held out. The old one may have been trained on
    some of that, so it rather stays.
    """
    from latent_obs.evaluation.selection import evaluation_split, held_out_episodes, select_frames

    others, measured = evaluation_split(resolve(new), frames)
    unseen = held_out_episodes(resolve(old), frames)
    common = measured if unseen is None else [episode for episode in measured if episode in set(unseen)]
    try:
        selection = select_frames(frames, others, common, EVALUATED_FRAMES, seed=0)
    except ValueError:
        selection = held_out
    return _score_on(selection, new) >= _score_on(selection, old)


def _score_on(selection: Selection, encoder: Path) -> float:
    from latent_obs.evaluation.report import Scores
    from latent_obs.measures import Foreground, Residuals, changing_r2
    from latent_obs.vae import load_vae, reconstruct

    decode = partial(reconstruct, load_vae(encoder)[0])
    foreground = Foreground.of(selection.frames)
    metrics = Residuals.of(selection.frames, decode, foreground).metrics(foreground)
    return score(Scores(**metrics, changing_r2=changing_r2(selection.stretches, decode)))


def _finished(config: FitConfig, work: Path) -> EncoderFolder | None:
    """Return the encoder of an earlier fit that took as long; ``None`` where there is more to do."""
    path = work / "finished.json"
    if not path.is_file() or (work / "plan.json").exists() or not _is_encoder(work.parent):
        return None
    done = _read(path)
    if _identity(done.config) != _identity(_json(config)) or done.config["seconds"] < config.seconds:
        return None
    return resolve(work.parent)


def _plan(config: FitConfig, work: Path) -> Plan:
    """Return the plan of an interrupted fit, or make one: measure how fast the environment gives frames."""
    path = work / "plan.json"
    if path.is_file():
        plan = _read(path)
        if plan.config == _json(config):
            return plan
    with naming_the_culprit(config.env_id), closing(config.open()) as env:
        policy = config.policy or default_policy(env)
        speed = frames_per_second(env, policy, min(1.0, config.seconds / 30))
    wanted = speed * (os.cpu_count() or 1) * COLLECT_SHARE * config.seconds
    frames = int(max(MIN_FRAMES, min(FRAMES_PER_SECOND * config.seconds, wanted)))
    plan = Plan(_json(config), policy, max(frames, _collected(config, policy, work / "frames")))
    shutil.rmtree(work / "trained", ignore_errors=True)  # of a fit with another time
    _write(plan, work)
    return plan


def _collected(config: FitConfig, policy: str, folder: Path) -> int:
    """Return how many frames a shorter fit collected: they stay, more come. What is no folder of frames goes.

    Raises:
        ValueError: If they were collected in another way.
    """
    if not folder.exists():
        return 0
    try:
        frames = FramesFolder(folder)
    except (FileNotFoundError, ValueError):
        shutil.rmtree(folder)
        return 0
    begun = frames.shards[0].collection
    options = {name: getattr(config, name) for name in ("env_id", "env_kwargs", "seed", "key", "wrapper")}
    spec = FrameSpec(crop=config.crop)
    asked = replace(begun, **options, policy=policy, render=config.render or None, frame_spec=spec)
    for name, before, now in begun.differences(asked):
        raise ValueError(
            f"{folder.parent.parent} was begun with {name}={before!r}, got {name}={now!r}. Choose another "
            "--out, or delete that folder to fit anew."
        )
    return len(frames)


def _collect_config(config: FitConfig, plan: Plan, work: Path) -> CollectConfig:
    begun = any((work / "frames").glob("*.parquet"))
    return CollectConfig(
        config.env_id,
        work / "frames",
        frames=plan.frames,
        workers=None if begun else max(MIN_WORKERS, os.cpu_count() or 1),
        policy=plan.policy,
        seed=config.seed,
        env_kwargs=config.env_kwargs,
        key=config.key,
        render=config.render,
        wrapper=config.wrapper,
        crop=config.crop,
        shard_rows=SHARD_ROWS,
    )


def _train_config(config: FitConfig, work: Path) -> TrainConfig:
    """Return how to train: what reached most in a minute on Breakout, Boxing, Pong and CarRacing."""
    from latent_obs.training.config import TrainConfig
    from latent_obs.training.train import steps_of

    count, loose = min(PLACES, config.latent_dim // 2), config.seconds < PLACES_FROM_SECONDS
    return TrainConfig(
        work / "frames",
        work / "trained",
        latent_dim=config.latent_dim,
        channels=LARGE if config.seconds >= LARGE_FROM_SECONDS else SMALL,
        steps=steps_of(work / "trained") or int(GUESSED_RATE * config.seconds),
        batch_size=32,
        learning_rate=0.01,
        optimizer="muon",
        moments=count if loose else 0,
        places=0 if loose else count,
        evaluate_every=10**6,  # once, at the end
        seed=config.seed,
    )


def _publish(out: Path, trained: Path, evaluation: Evaluation) -> None:
    """Write the encoder folder and its card."""
    from latent_obs.encoders.provenance import Metrics
    from latent_obs.evaluation.markdown import card_text
    from latent_obs.evaluation.page import write_card
    from latent_obs.evaluation.pictures import liveliest, reconstructions
    from latent_obs.evaluation.report import FIGURES
    from latent_obs.training.train import remove_card

    config, card = read_config(trained), evaluation.card
    metrics: dict[str, Any] = {"frames": card.frames, "collapsed": config.metrics["collapsed"]}
    for figure in FIGURES:
        if (value := getattr(card, figure.key)) is not None:
            metrics[figure.key] = value
    config = replace(config, metrics=Metrics.from_json(metrics))
    remove_card(out)
    config = write_encoder_folder(out, config, read_tensors(trained, config), read_calibration(trained))
    write_card(replace(evaluation, card=replace(card, encoder=str(out))), out)
    reconstructions(evaluation.vae, liveliest(evaluation.selection.frames, 8), out / "card.png")
    if (trained / "history.csv").exists():  # PCA has none
        write_atomically(out / "history.csv", (trained / "history.csv").read_bytes())
    write_atomically(out / "README.md", card_text(str(out), config).encode())


@contextmanager
def _counting(plan: Plan, work: Path, begun: float) -> Iterator[None]:
    """Add the seconds of this call to the plan, also when it is interrupted."""
    try:
        yield
    finally:
        plan.seconds += time.monotonic() - begun
        _write(plan, work)


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Give PyTorch the number of threads back that it had: training leaves the one that was fastest."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _is_encoder(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _json(config: FitConfig) -> dict[str, Any]:
    fields = asdict(config)
    del fields["out"]
    return fields


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return what tells one fit from another, whatever time it takes."""
    return {name: value for name, value in config.items() if name != "seconds"}


def _write(plan: Plan, work: Path) -> None:
    write_atomically(work / "plan.json", (json.dumps(asdict(plan), indent=1) + "\n").encode())


def _read(path: Path) -> Plan:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Plan(**{name: found[name] for name in Plan.__dataclass_fields__})
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {path.parent} to fit anew.") from error


def say_fitted(encoder: EncoderFolder) -> None:
    """Print what a fit made: three figures beside PCA's, the picture, and the lines that use it."""
    from latent_obs.evaluation.markdown import lines_that_wrap
    from latent_obs.evaluation.report import ReportCard

    console, out = plain_console(), encoder.path
    card = ReportCard.from_json(json.loads((out / "card.json").read_text(encoding="utf-8")))
    pca = card.baselines["pca"]
    for name, own, other in (
        ("moving R²", card.moving_r2, pca.moving_r2),
        ("changing R²", card.changing_r2, pca.changing_r2),
        ("position R²", card.position_r2, pca.position_r2),
    ):
        if own is not None and other is not None:
            console.print(f"{name:>14}  {own:.3f}   (PCA with {card.latent_dim} components {other:.3f})")
    for name, bundled in list_encoders().items():
        if bundled.source.env_ids == encoder.config.source.env_ids:
            console.print(
                f"The bundled {name} has a moving R² of {bundled.metrics['moving_r2']:.3f} on its own fresh "
                f'episodes. encoder="{name}" takes that one.',
                soft_wrap=True,
            )
    run = encoder.config.provenance.run
    if run is not None and run.config["objective"] == "pca":
        console.print(
            "PCA kept more than the VAE in this time, so the encoder is PCA. Give the VAE more time, such as "
            "--seconds 600.",
            soft_wrap=True,
        )
    for name in ("card.png", "card.html"):
        console.print(str(out / name), soft_wrap=True)
    found_by_itself = out.parent == cache_folder().absolute() / FITTED
    console.print(
        f"The encoder is {out}.", "It is taken by" if found_by_itself else "Take it with", soft_wrap=True
    )
    for line in lines_that_wrap(encoder.config, None if found_by_itself else str(out)):
        console.print(f"    {line}", soft_wrap=True)

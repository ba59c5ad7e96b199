"""Recipes: everything that makes a bundled encoder again, from collection to its card.

A recipe is a JSON file in ``latent_obs/recipes``; ``docs/formats.md`` specifies it. Building one
collects, trains, plays anew with other seeds to measure, and writes an encoder folder with its card.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import (
    EncoderConfig,
    Tensors,
    read_calibration,
    read_config,
    read_tensors,
    write_encoder_folder,
)
from latent_obs.encoders.provenance import Metrics
from latent_obs.evaluation.markdown import card_text, probed
from latent_obs.files import write_atomically

RECIPES = Path(__file__).parent / "recipes"
# Rounding weights to half precision may move a latent by this much of its standard deviation (rms).
HALF_TOLERANCE = 0.005
_PICTURE_FRAMES = 12


@dataclass(frozen=True)
class Collection:
    """Frames to collect, of one environment after another.

    Args:
        env_ids: Environments, each as :class:`~latent_obs.CollectConfig` takes it.
        frames: Frames of each.
        policy: What acts.
        seed: Seed of environments and policies.
        workers: A part of the recipe: other workers collect other frames.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        key: The entry of ``Dict`` observations to collect.
    """

    env_ids: tuple[str, ...]
    frames: int
    policy: str = "random:0.5,sticky:0.5"
    seed: int = 0
    workers: int = 2
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    key: str | None = None


@dataclass(frozen=True)
class Recipe:
    """How to make an encoder.

    Args:
        name: The encoder's name, such as ``"pong-v0"``; new weights get a new number.
        about: What it is for, one sentence.
        collect: Frames to train on.
        train: Fields of :class:`~latent_obs.TrainConfig` that differ from its defaults.
        evaluate: Frames to measure on; their seed differs from all of ``collect``.
        probe: Also read the game's RAM from the latents.
        license: SPDX identifier of the weights' licence.
        failures: What it is known to get wrong, a sentence each.

    Raises:
        ValueError: If a field is missing, unknown or wrong, or a seed to measure with was trained on.

    Example:
        >>> read_recipe("pong-v0").collect[0].env_ids
        ('ALE/Pong-v5',)
    """

    name: str
    about: str
    collect: tuple[Collection, ...]
    train: dict[str, Any]
    evaluate: tuple[Collection, ...]
    probe: bool = False
    license: str = "MIT"
    failures: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.collect or not self.evaluate:
            raise ValueError("it needs frames to train on (collect) and to measure on (evaluate)")
        if seeds := {c.seed for c in self.collect} & {c.seed for c in self.evaluate}:
            raise ValueError(
                f"evaluate has the seed {min(seeds)} of collect, so it would see the same episodes"
            )

    @classmethod
    def from_json(cls, name: str, value: Any) -> Recipe:
        """Build from the content of a recipe file."""
        if not isinstance(value, Mapping):
            raise ValueError("it is no JSON object")
        fields = dict(value)
        try:
            for key in ("collect", "evaluate"):
                collections = [{**each, "env_ids": tuple(each["env_ids"])} for each in fields[key]]
                fields[key] = tuple(Collection(**each) for each in collections)
            fields["failures"] = tuple(fields.get("failures", ()))
            return cls(name, **fields)
        except KeyError as error:
            raise ValueError(f"the field {error} is missing") from error
        except TypeError as error:
            raise ValueError(f"a field is missing, unknown or of the wrong type: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Return the content of a recipe file."""
        fields = asdict(self)
        del fields["name"]
        return fields

    @property
    def unseen(self) -> list[str]:
        """The environments to measure on that it is not trained on, without the modules to import."""
        trained = {env_id for each in self.collect for env_id in each.env_ids}
        measured = [env_id for each in self.evaluate for env_id in each.env_ids]
        return [env_id.rpartition(":")[2] for env_id in measured if env_id not in trained]


@dataclass(frozen=True)
class BuildConfig:
    """Make an encoder from its recipe: collect, train, measure, write its card."""

    recipe: str
    """name of a bundled recipe, such as pong-v0, or path of a recipe file"""
    out: Path = Path("encoders")
    """folder in which the encoder folder is made, under the recipe's name"""
    scratch: Path = Path("recipe-build")
    """folder for frames and unfinished work; the same command goes on from what is there"""


def list_recipes() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def read_recipe(ref: str) -> Recipe:
    """Read a recipe file.

    Args:
        ref: Name of a bundled recipe, or path of a file.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If it is no recipe.
    """
    path = RECIPES / f"{ref}.json" if ref in list_recipes() else Path(ref)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {ref!r}: neither a bundled one ({', '.join(list_recipes())}) nor a file."
        )
    try:
        return Recipe.from_json(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no recipe: {error}.") from error


def build_recipe(config: BuildConfig, *, progress: bool = True) -> EncoderConfig:
    """Make an encoder folder from a recipe.

    Every stage resumes: frames collected, steps trained and reports written are kept in
    ``config.scratch``.

    Args:
        config: Which recipe, and where to.
        progress: Show progress on standard error.

    Returns:
        The content of the new folder's ``config.json``; its ``metrics`` are those of the fresh
        frames: the mean over the environments it never saw, where there are any, else over its own.
        Only ``active_units`` is that of the held-out episodes, over all environments it was trained on.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the recipe or something that it asks for is wrong, or weights of another recipe
            are in the way.
    """
    from latent_obs.training.config import TrainConfig
    from latent_obs.training.train import train_vae

    recipe = read_recipe(config.recipe)
    work, out = config.scratch / recipe.name, config.out / recipe.name
    train = TrainConfig(work / "frames", work / "trained", **_tuples(recipe.train))
    work.mkdir(parents=True, exist_ok=True)
    with _Clock(work / "seconds.json", "collect"):
        data = _collect_all(recipe.collect, work / "collected", progress)
        if len(data) > 1 and not (work / "merged").exists():
            merge_frames(MergeConfig(tuple(data), work / "merged"), progress=progress)
    train_vae(replace(train, data=data[0] if len(data) == 1 else work / "merged"), progress=progress)
    rounded = _round_weights(train.out, work / "rounded")
    fresh = _collect_all(recipe.evaluate, work / "fresh", progress)
    reports = {}
    with _Clock(work / "seconds.json", "evaluate"):
        for path in fresh:
            env_id = FramesFolder(path).source.env_id
            reports[env_id] = _report(recipe, work, path, env_id, progress)
    seconds = json.loads((work / "seconds.json").read_text())
    own = rounded.provenance
    # Latents that stay the same in one game may differ from those in another, so no report on one
    # environment can tell that an encoder of many has collapsed.
    activity = {name: rounded.metrics[name] for name in ("active_units", "collapsed")}
    finished = replace(
        rounded,
        metrics=Metrics.from_json(
            {**_metrics([reports[env_id] for env_id in recipe.unseen or reports]), **activity}
        ),
        provenance=replace(own, recipe=recipe.name, license=recipe.license, build_seconds=seconds),
    )
    out.mkdir(parents=True, exist_ok=True)
    card = {
        "format": "latent_obs.reports",
        "version": 1,
        "recipe": recipe.to_json(),
        "unseen": recipe.unseen,
        "reports": reports,
    }
    write_atomically(out / "reports.json", (json.dumps(_short(card), indent=1) + "\n").encode())
    write_atomically(out / "history.csv", (train.out / "history.csv").read_bytes())
    _draw(work / "rounded", fresh, out / "card.png")
    write_atomically(out / "README.md", card_text(recipe.name, finished, card).encode())
    write_encoder_folder(out, finished, _stored_tensors(work / "rounded"), read_calibration(train.out))
    return finished


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _collect_all(collections: tuple[Collection, ...], folder: Path, progress: bool) -> list[Path]:
    paths = []
    for each in collections:
        for env_id in each.env_ids:
            path = folder / env_id.replace("/", "-").replace(":", "-")
            options = {name: value for name, value in asdict(each).items() if name != "env_ids"}
            collect_frames(CollectConfig(env_id, path, **options), progress=progress)
            paths.append(path)
    return paths


def _round_weights(trained: Path, rounded: Path) -> EncoderConfig:
    """Write the encoder with weights of half precision, where its latents stay the same.

    What is measured afterwards is hence what is shipped.
    """
    from latent_obs.vae import VAE, latents

    config, calibration = read_config(trained), read_calibration(trained)
    exact = read_tensors(trained, config)
    half: Tensors = {
        # Few numbers gain nothing, and half precision cannot tell small variances apart.
        name: tensor.astype(np.float16) if tensor.size > 1024 else tensor
        for name, tensor in exact.items()
    }
    assert calibration is not None
    widened = {name: tensor.astype(np.float32) for name, tensor in half.items()}
    first, second = (latents(VAE.from_tensors(config.vae, each), calibration) for each in (exact, widened))
    moved = np.sqrt(np.square(first - second).mean(0)) / np.maximum(np.array(config.latents["std"]), 0.1)
    fits = bool(moved.max() < HALF_TOLERANCE)
    provenance = replace(config.provenance, weights="float16" if fits else "float32")
    config = replace(config, provenance=provenance)
    write_encoder_folder(rounded, config, half if fits else exact, calibration)
    return config


def _stored_tensors(folder: Path) -> Tensors:
    import safetensors.numpy

    tensors: Tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    return tensors


def _report(recipe: Recipe, work: Path, frames: Path, env_id: str, progress: bool) -> dict[str, Any]:
    """Return the report card on fresh frames, from an earlier call where the weights are the same."""
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder

    path = work / "reports" / f"{frames.name}.json"
    created = read_config(work / "rounded").provenance["created"]
    if path.exists():
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if report["provenance"]["created"] == created:
            return report
    config = EvaluateConfig(work / "rounded", frames, probe=recipe.probe)
    report = evaluate_encoder(config, progress=progress)
    report["encoder"] = recipe.name  # whoever reads the card has other folders
    del report["data"]["folder"]
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, (json.dumps(report, indent=1) + "\n").encode())
    return report


def _metrics(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of each figure over environments."""
    names = ("negative_elbo", "bits_per_dim", "reconstruction", "kl", "psnr", "moving_r2", "changing_r2")
    metrics: dict[str, Any] = {"frames": sum(report["frames"] for report in reports)}
    metrics |= {name: float(np.mean([report[name] for report in reports])) for name in names}
    if scores := [probed(report) for report in reports if report["probe"]]:
        metrics["probe_f1"] = {reader: float(np.mean([s[reader] for s in scores])) for reader in scores[0]}
    return metrics


def _short(value: Any) -> Any:
    """Round figures to six digits: a card need not tell more."""
    if isinstance(value, dict):
        return {key: _short(each) for key, each in value.items() if key != "provenance"}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def _draw(encoder: Path, fresh: list[Path], out: Path) -> None:
    """Draw frames of all environments above what the encoder keeps of them."""
    from latent_obs.evaluation.pictures import liveliest, reconstructions
    from latent_obs.vae import load_vae

    each = max(1, _PICTURE_FRAMES // len(fresh))
    picked = [liveliest(FramesFolder(path).sample(512), each) for path in fresh]
    reconstructions(load_vae(encoder)[0], np.concatenate(picked), out)


class _Clock:
    """Adds up the seconds that a stage takes, over all the calls that work on it."""

    def __init__(self, path: Path, stage: str) -> None:
        self._path, self._stage = path, stage

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *_: object) -> None:
        cores = {"cores": os.cpu_count()}
        spent: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else cores
        spent[self._stage] = round(spent.get(self._stage, 0.0) + time.monotonic() - self._begun, 2)
        write_atomically(self._path, json.dumps(spent).encode())

"""Builds encoders from their recipes, and measures them.

Building collects, trains, plays anew with other seeds to measure, and writes an encoder folder with its card.
Measuring plays anew and writes the card of an encoder that is there, whose weights stay.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from latent_obs.encoders.resolve import PRETRAINED, resolve
from latent_obs.evaluation.markdown import card_text
from latent_obs.evaluation.report import FIGURES, ReportCard, Reports, find_faults
from latent_obs.files import write_atomically
from latent_obs.recipes import Collection, Recipe, list_recipes, read_recipe

__all__ = [
    "BuildConfig",
    "Collection",
    "MeasureConfig",
    "Recipe",
    "build_recipe",
    "list_recipes",
    "measure_recipe",
    "read_recipe",
]

# Rounding weights to half precision may move a latent by this much of its standard deviation (rms).
HALF_TOLERANCE = 0.005
_PICTURE_FRAMES = 12
# Of more frames, some are more alike: walks along them hold more still.
_LABEL_FRAMES = 30_000


@dataclass(frozen=True)
class BuildConfig:
    """Make an encoder from its recipe: collect, train, measure, write its card."""

    recipe: str
    """name of a bundled recipe, such as pong-v0, or path of a recipe file"""
    out: Path = Path("encoders")
    """folder in which the encoder folder is made, under the recipe's name"""
    scratch: Path = Path("recipe-build")
    """folder for frames and unfinished work; the same command goes on from what is there"""


@dataclass(frozen=True)
class MeasureConfig:
    """Measure an encoder again on fresh frames of its recipe, and write its card; its weights stay."""

    recipe: str
    """name of a bundled recipe, such as pong-v0, or path of a recipe file"""
    encoder: Path | None = None
    """encoder folder to measure and to write the card to; default: the bundled one of the recipe's name"""
    scratch: Path = Path("recipe-build")
    """folder for frames and unfinished work; the same command goes on from what is there"""
    probe: bool = False
    """also read the game's RAM again, where the recipe asks for it, which takes minutes; otherwise the card
    keeps what an earlier one read, with its date"""


def build_recipe(config: BuildConfig, *, progress: bool = True) -> EncoderConfig:
    """Make an encoder folder from a recipe.

    Every stage resumes: frames collected, steps trained and reports written are kept in
    ``config.scratch``. Where the recipe has changed since, it is trained anew.

    Args:
        config: Which recipe, and where to.
        progress: Show progress on standard error.

    Returns:
        The content of the new folder's ``config.json``; its ``metrics`` are those of the fresh
        frames: the mean over the environments it never saw, where there are any, else over its own.
        Only ``active_units`` is that of the held-out episodes, over all environments it was trained on.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the recipe or something that it asks for is wrong, or another encoder is in the way.
    """
    from latent_obs.training.train import run_of, train_vae

    recipe = read_recipe(config.recipe)
    if recipe.retired:
        raise ValueError(f"The recipe {recipe.name} cannot be built. {recipe.retired}")
    work, out = config.scratch / recipe.name, config.out / recipe.name
    if (out / "config.json").exists() and read_config(out).provenance.recipe != recipe.name:
        raise ValueError(
            f"{out} holds an encoder that was not built from the recipe {recipe.name}, so it is left alone. "
            "Choose another --out."
        )
    train = recipe.training(work / "merged", work / "trained")
    work.mkdir(parents=True, exist_ok=True)
    with _Clock(work / "seconds.json", "collect"):
        data = list(_collect_all(recipe.collect, work / "collected", progress).values())
        if len(data) > 1:
            _merge(data, work / "merged", progress)
    train = replace(train, data=data[0] if len(data) == 1 else train.data)
    run = run_of(train.out)
    if run is not None and (run.config, run.data) != (train.to_json(), FramesFolder(train.data).identity):
        shutil.rmtree(train.out)  # the recipe had other options or frames then
    train_vae(train, progress=progress)
    rounded = _round_weights(train.out, work / "rounded")
    with _Clock(work / "seconds.json", "evaluate"):
        reports = _measure(recipe, work / "rounded", work, recipe.probe, progress)
    seconds = json.loads((work / "seconds.json").read_text())
    finished = replace(
        rounded,
        metrics=_metrics(rounded, reports),
        provenance=replace(
            rounded.provenance, recipe=recipe.name, license=recipe.license, build_seconds=seconds
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "history.csv", (train.out / "history.csv").read_bytes())
    _write_card(out, recipe, finished, reports)
    _draw(work / "rounded", work, out / "card.png")
    _label(work / "rounded", work, out)
    write_encoder_folder(out, finished, _stored_tensors(work / "rounded"), read_calibration(train.out))
    return finished


def measure_recipe(config: MeasureConfig, *, progress: bool = True) -> EncoderConfig:
    """Measure an encoder on the fresh frames of its recipe, and write its card anew.

    ``reports.json``, ``README.md``, ``card.png``, ``labels.json`` and the field ``metrics`` of
    ``config.json`` are written; weights, calibration frames and the statistics of the latents stay as they
    are.

    Args:
        config: Which recipe, and which encoder folder.
        progress: Show progress on standard error.

    Returns:
        The content of the folder's ``config.json``.

    Raises:
        FileNotFoundError: If there is no such recipe, or no encoder.
        ValueError: If the recipe or something that it asks for is wrong.
    """
    recipe = read_recipe(config.recipe)
    folder = config.encoder or PRETRAINED / recipe.name
    encoder, work = read_config(folder), config.scratch / recipe.name
    work.mkdir(parents=True, exist_ok=True)
    reports = _measure(recipe, folder, work, recipe.probe and config.probe, progress)
    earlier = folder / "reports.json"
    if earlier.exists():
        before = Reports.from_json(json.loads(earlier.read_text(encoding="utf-8")))
        reports = replace(reports, reports=_with_probes(reports, before, encoder))
    measured = replace(encoder, metrics=_metrics(encoder, reports))
    _write_card(folder, recipe, measured, reports)
    _draw(folder, work, folder / "card.png")
    _label(folder, work, folder)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["metrics"] = measured.metrics.to_json()
    write_atomically(folder / "config.json", (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return measured


def _with_probes(new: Reports, old: Reports, encoder: EncoderConfig) -> dict[str, ReportCard]:
    """Return the new cards, and where they have no probe, with that of the old ones and its date."""
    cards = dict(new.reports)
    for name in cards.keys() & old.reports.keys():
        before = old.reports[name]
        if cards[name].probe is None and before.probe is not None:
            date = before.probe.get("created") or before.created or (encoder.provenance.created or "")[:10]
            card = replace(cards[name], probe={**before.probe, "created": date})
            cards[name] = replace(card, warnings=find_faults(card))
    return cards


def _placed(collections: tuple[Collection, ...], folder: Path) -> Iterator[CollectConfig]:
    """Yield what to collect, each environment of each collection into a folder of its own."""
    seen: Counter[str] = Counter()
    for each in collections:
        for env_id in each.env_ids:
            seen[env_id] += 1
            number = f"-{seen[env_id]}" if seen[env_id] > 1 else ""
            yield each.config(env_id, folder / (env_id.replace("/", "-").replace(":", "-") + number))


def _collect_all(collections: tuple[Collection, ...], folder: Path, progress: bool) -> dict[str, Path]:
    """Collect, and return the folders by the name of their environment; a second one has a number."""
    paths: dict[str, Path] = {}
    for config in _placed(collections, folder):
        env_id = collect_frames(config, progress=progress).source.env_id
        number = sum(name.partition(" #")[0] == env_id for name in paths) + 1
        paths[env_id if number == 1 else f"{env_id} #{number}"] = Path(config.out)
    return paths


def _merge(data: list[Path], merged: Path, progress: bool) -> None:
    """Merge the collections, anew where what is there is a mixture of others or of fewer frames."""
    wanted = [collection for path in data for collection in FramesFolder(path).collections]
    if merged.exists() and FramesFolder(merged).collections != wanted:
        shutil.rmtree(merged)
    if not merged.exists():
        merge_frames(MergeConfig(tuple(data), merged), progress=progress)


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


def _measure(recipe: Recipe, encoder: Path, work: Path, probe: bool, progress: bool) -> Reports:
    """Collect fresh frames and return the report cards on them."""
    trained_on = {env_id.rpartition(":")[2] for each in recipe.collect for env_id in each.env_ids}
    fresh = _collect_all(recipe.evaluate, work / "fresh", progress)
    unseen = tuple(name for name in fresh if name.partition(" #")[0] not in trained_on)
    cards = {
        name: _report(recipe.name, encoder, path, work / "reports" / f"{path.name}.json", probe, progress)
        for name, path in fresh.items()
    }
    return Reports(recipe.to_json(), cards, unseen)


def _report(name: str, encoder: Path, frames: Path, cache: Path, probe: bool, progress: bool) -> ReportCard:
    """Return the report card on fresh frames, from an earlier call where encoder and frames are the same."""
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder

    made = read_config(encoder).provenance.created
    if cache.exists():
        known = ReportCard.from_json(json.loads(cache.read_text(encoding="utf-8")))
        same = known.data.collection == FramesFolder(frames).identity
        if same and known.provenance.get("created") == made and (known.probe or not probe):
            return known
    card = evaluate_encoder(EvaluateConfig(encoder, frames, probe=probe), progress=progress)
    # Whoever reads the card has other folders.
    card = replace(card, encoder=name, data=replace(card.data, folder=None))
    cache.parent.mkdir(exist_ok=True)
    write_atomically(cache, (json.dumps(card.to_json(), indent=1) + "\n").encode())
    return card


def _metrics(encoder: EncoderConfig, reports: Reports) -> Metrics:
    """Return the mean of each figure over the environments never seen, or over all where all were seen."""
    cards = [reports.reports[name] for name in reports.unseen or reports.reports]
    metrics: dict[str, Any] = {"frames": sum(card.frames for card in cards)}
    for figure in FIGURES:
        values = [value for card in cards if (value := getattr(card, figure.key)) is not None]
        if values:
            metrics[figure.key] = float(np.mean(values))
    if scores := [card.probe_f1() for card in cards if card.probe]:
        metrics["probe_f1"] = {reader: float(np.mean([s[reader] for s in scores])) for reader in scores[0]}
    # Latents that stay the same in one game may differ from those in another, so no report on one
    # environment can tell that an encoder of many has collapsed.
    return Metrics.from_json(
        metrics | {name: encoder.metrics[name] for name in ("active_units", "collapsed")}
    )


def _write_card(out: Path, recipe: Recipe, encoder: EncoderConfig, reports: Reports) -> None:
    """Write ``reports.json``, and ``README.md`` of the figures as they are stored."""
    content = _short(reports.to_json())
    write_atomically(out / "reports.json", (json.dumps(content, indent=1) + "\n").encode())
    text = card_text(recipe.name, encoder, Reports.from_json(content))
    write_atomically(out / "README.md", text.encode())


def _short(value: Any) -> Any:
    """Leave out what ``config.json`` says, what few need and one machine's times; round to six digits."""
    if isinstance(value, dict):
        left_out = ("provenance", "dimensions", "encode_us")
        return {key: _short(each) for key, each in value.items() if key not in left_out}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) and math.isfinite(value) else value


def _draw(encoder: Path, work: Path, out: Path) -> None:
    """Draw fresh frames of all environments above what the encoder keeps of them."""
    from latent_obs.evaluation.pictures import liveliest, reconstructions
    from latent_obs.vae import load_vae

    fresh = sorted(path for path in (work / "fresh").iterdir() if path.is_dir())
    each = max(1, _PICTURE_FRAMES // len(fresh))
    picked = [liveliest(FramesFolder(path).sample(512), each) for path in fresh]
    reconstructions(load_vae(encoder)[0], np.concatenate(picked), out)


def _label(encoder: Path, work: Path, out: Path) -> None:
    """Measure what each dimension does, and write ``labels.json``."""
    from latent_obs.evaluation.labelling import measure_labels
    from latent_obs.evaluation.labels import write_labels
    from latent_obs.evaluation.variables import observe
    from latent_obs.vae import load_vae

    found = resolve(encoder)
    vae, config = load_vae(found)
    fresh = [FramesFolder(path) for path in sorted((work / "fresh").iterdir()) if path.is_dir()]
    if (observed := observe(found, fresh, _LABEL_FRAMES)) is not None:
        write_labels(measure_labels(vae, config, observed), out)


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

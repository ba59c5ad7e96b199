"""The commands of ``latent-obs``: what each of them runs, and what it prints."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from latent_obs.progress import plain_console

if TYPE_CHECKING:
    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.encode import EncodeConfig
    from latent_obs.data.check import CheckConfig, InfoConfig
    from latent_obs.data.curate import MergeConfig, SplitConfig
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.lerobot import ExportLerobotConfig
    from latent_obs.data.minari import ExportMinariConfig, ImportMinariConfig
    from latent_obs.data.show import ShowConfig
    from latent_obs.demo import DemoConfig
    from latent_obs.encoders.export import ExportConfig
    from latent_obs.encoders.folder import EncoderConfig
    from latent_obs.encoders.hub import PullConfig
    from latent_obs.evaluation.evaluate import EvaluateConfig
    from latent_obs.fit import FitConfig
    from latent_obs.push import PushConfig, PushFramesConfig
    from latent_obs.recipe import BuildConfig, MeasureConfig
    from latent_obs.refresh import RefreshConfig
    from latent_obs.training.config import TrainConfig
    from latent_obs.visualizer import VisualizeConfig


@dataclass(frozen=True)
class ListConfig:
    """List the bundled encoders, the fitted ones, and those below a folder."""

    folder: Path = Path(".")
    """folder to search"""


@dataclass(frozen=True)
class CardConfig:
    """Show the card of an encoder: its report card, how it was made, and what it gets wrong."""

    encoder: str | Path
    """name of a bundled encoder, encoder folder, or hf://USER/NAME"""


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Args:
        about: What it does, for the list of commands.
        run: Does it, with its options.
        module: The module in ``latent_obs`` that defines its options. It is imported when the command runs.
        config: The dataclass of its options in that module.
    """

    about: str
    run: Callable[[Any], None]
    module: str
    config: str


def _say(text: object, style: str | None = None) -> None:
    """Print a line without cutting it, so that a path in it can be copied."""
    plain_console().print(str(text), style=style, soft_wrap=True)


def _collect(config: CollectConfig) -> None:
    from latent_obs.collecting.collect import collect_frames

    _say_frames(collect_frames(config, in_process=False))


def _demo(config: DemoConfig) -> None:
    from latent_obs.demo import run_demo

    run_demo(config)


def _fit(config: FitConfig) -> None:
    from latent_obs.fit import fit_encoder, say_fitted

    say_fitted(fit_encoder(config))


def _refresh(config: RefreshConfig) -> None:
    from latent_obs.refresh import refresh_encoder, say_refreshed

    say_refreshed(refresh_encoder(config))


def _train(config: TrainConfig) -> None:
    from latent_obs.training.train import train_vae

    result = train_vae(config)
    if os.environ.get("RANK", "0") == "0":  # only the first process that torchrun started prints
        _report(f"{config.out} on held-out episodes", result.metrics)


def _evaluate(config: EvaluateConfig) -> None:
    from latent_obs.evaluation.evaluate import evaluate
    from latent_obs.evaluation.page import write_card
    from latent_obs.evaluation.report import CODES

    evaluation = evaluate(config, progress=True)
    card, paths = evaluation.card, write_card(evaluation, config.out)
    told = "held-out episodes of " if card.data.held_out else ""
    title = f"{config.encoder} on {card.frames:,} frames of {told}{card.data.folder}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in CODES.values():
        table.add_column(column, justify="right")
    for row in card.rows():
        table.add_row(*row)
    plain_console().print(table)
    for fault in card.warnings:
        _say(fault, style="bold red")
    for path in paths:
        _say(path)


def _export(config: ExportConfig) -> None:
    from latent_obs.encoders.export import TOLERANCE, export_encoder

    report = export_encoder(config)
    title = f"{config.encoder} in {config.out}, compared on {report.pop('frames')} frames"
    table = Table(title=title, title_justify="left")
    table.add_column("file")
    for column in ("bytes", "largest difference from torch", "allowed"):
        table.add_column(column, justify="right")
    for name, row in report.items():
        table.add_row(name, f"{row['bytes']:,}", f"{row['max_difference']:.1e}", f"{TOLERANCE:.0e}")
    plain_console().print(table)


def _encode(config: EncodeConfig) -> None:
    from latent_obs.collecting.encode import encode_frames

    latents = encode_frames(config)
    encoder = latents.metadata["encoder"]
    line = f"{latents.path}: {len(latents):,} latents of {latents.latent_dim} numbers"
    line += f" by {encoder['name']} in {encoder['precision']}"
    _say(line)


def _visualize(config: VisualizeConfig) -> None:
    from latent_obs.visualizer import visualize_encoder

    path = visualize_encoder(config)
    _say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def _pull(config: PullConfig) -> None:
    from latent_obs.encoders.hub import HUB_PREFIX, pull_encoder

    folder, commit = pull_encoder(config)
    repo = config.repo.removeprefix(HUB_PREFIX).partition("@")[0]
    _say(f"{folder}\n{HUB_PREFIX}{repo}@{commit}")


def _push(config: PushConfig) -> None:
    from latent_obs.encoders.hub import HUB_PREFIX
    from latent_obs.push import push_encoder

    url, commit = push_encoder(config)
    repo = config.repo.removeprefix(HUB_PREFIX)
    _say(f"{url}\n{HUB_PREFIX}{repo}@{commit}")


def _report(title: str, metrics: Mapping[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_short(each)}" for key, each in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value}")
    plain_console().print(table)


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _frames_info(config: InfoConfig) -> None:
    from latent_obs.data.check import frames_info
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.storage import name_of

    folder = FramesFolder(config.folder)
    _report(str(folder), {k: v for k, v in frames_info(folder).items() if k != "collections"})
    for collection in folder.collections:
        _report("collected with", collection)
    if config.shards:
        table = Table("shard", "environment")
        for column in ("frames", "bytes/frame", "complete"):
            table.add_column(column, justify="right")
        for shard in folder.shards:
            per_frame = f"{shard.num_bytes / max(1, shard.rows):.1f}"
            complete = "yes" if shard.complete else "no"
            table.add_row(name_of(shard.path), shard.env_id, f"{shard.rows:,}", per_frame, complete)
        plain_console().print(table)


def _frames_check(config: CheckConfig) -> None:
    from latent_obs.data.check import check_frames
    from latent_obs.data.storage import parse_location, shown

    folder = shown(parse_location(config.folder))
    problems = check_frames(config.folder)
    for name, found in sorted(problems.items()):
        for problem in found:
            _say(f"{name}: {problem}")
    if problems:
        raise ValueError(
            f"{folder} has {len(problems)} bad shards, named above. Delete them; the command that "
            "collected the folder collects them again."
        )
    _say(f"{folder}: every shard is whole")


def _frames_show(config: ShowConfig) -> None:
    from latent_obs.data.show import show_frames

    for path in show_frames(config):
        _say(path)


def _frames_merge(config: MergeConfig) -> None:
    from latent_obs.data.curate import merge_frames

    _say_frames(merge_frames(config))


def _frames_split(config: SplitConfig) -> None:
    from latent_obs.data.curate import split_frames

    for part in split_frames(config):
        _say_frames(part)


def _import_minari(config: ImportMinariConfig) -> None:
    from latent_obs.data.minari import import_minari

    _say_frames(import_minari(config))


def _export_minari(config: ExportMinariConfig) -> None:
    from latent_obs.data.minari import export_minari

    dataset = export_minari(config)
    line = f"{dataset.id}: {dataset.total_episodes:,} episodes, {dataset.total_steps:,} steps"
    _say(f"{line}, in {dataset.storage.data_path}")


def _export_lerobot(config: ExportLerobotConfig) -> None:
    from latent_obs.data.lerobot import export_lerobot

    info = export_lerobot(config)
    line = f"{config.out}: {info['total_episodes']:,} episodes, {info['total_frames']:,} steps"
    _say(f"{line}, LeRobot {info['codebase_version']}")


def _push_frames(config: PushFramesConfig) -> None:
    from latent_obs.encoders.hub import HUB_PREFIX
    from latent_obs.push import push_frames

    url, commit = push_frames(config)
    repo = config.repo.removeprefix(HUB_PREFIX)
    _say(f"{url}\n{HUB_PREFIX}datasets/{repo}@{commit}/frames")


def _recipe_build(config: BuildConfig) -> None:
    from latent_obs.recipe import build_recipe

    result = build_recipe(config)
    out = config.out / result.provenance["recipe"]
    _report(f"{out} on fresh frames", result.metrics)


def _recipe_measure(config: MeasureConfig) -> None:
    from latent_obs.recipe import measure_recipe

    _report(f"{config.encoder or config.recipe} on fresh frames", measure_recipe(config).metrics)


def _card(config: CardConfig) -> None:
    from rich.markdown import Markdown

    from latent_obs.encoders.encoder import load_encoder
    from latent_obs.evaluation.markdown import read_card

    text = read_card(config.encoder)
    if text.startswith("---\n"):
        text = text.partition("---\n")[2].partition("---\n")[2]  # what follows the front matter
    text = "\n".join(line for line in text.splitlines() if not line.startswith("!["))
    if sys.stdout.isatty():
        plain_console().print(Markdown(text))
    else:
        _say(text.strip())
    encoder = load_encoder(config.encoder)
    _say(f"\nOn this machine it runs in {encoder.precision}: {encoder.precision_reason}.")


def _say_frames(folder: FramesFolder) -> None:
    line = f"{folder}: {len(folder):,} frames, {len(folder.episodes()):,} episodes"
    per_frame = f"{folder.num_bytes / len(folder):,.1f} bytes/frame"
    _say(f"{line}, {per_frame}")


def _list(config: ListConfig) -> None:
    from latent_obs.encoders.folder import read_config
    from latent_obs.encoders.resolve import PRETRAINED, list_encoders, list_fitted
    from latent_obs.evaluation.report import BRIEF

    found: dict[str, EncoderConfig] = list_encoders() | list_fitted()
    if not config.folder.is_dir():
        raise FileNotFoundError(f"There is no folder {config.folder} to search for encoders.")
    for root, folders, files in os.walk(config.folder):
        # A home folder can be vast, so the search goes no deeper than four folders.
        deep = len(Path(root).relative_to(config.folder).parts) >= 4
        folders[:] = [] if deep else sorted(f for f in folders if not f.startswith("."))
        if Path(root).resolve().parent == PRETRAINED.resolve():
            continue  # a bundled encoder is listed by its name already
        if "config.json" in files and "model.safetensors" in files:
            with contextlib.suppress(ValueError, OSError):  # some other program's config.json
                found.setdefault(root, read_config(Path(root)))
    table = Table()
    table.add_column("encoder")
    table.add_column("environment")
    for column in ("latent", *(figure.brief for figure in BRIEF), "probe F1"):
        table.add_column(column, justify="right")
    for name, encoder in found.items():
        metrics, envs = encoder.metrics, encoder.source.env_ids
        probes = metrics.get("probe_f1", {})
        table.add_row(
            name,
            envs[0] if len(envs) == 1 else f"{len(envs)} environments" if envs else "",
            str(encoder.vae.latent_dim),
            *(figure.shown(metrics) for figure in BRIEF),
            ", ".join(f"{f1:.2f}" for f1 in probes.values() if isinstance(f1, float))
            if isinstance(probes, dict)
            else str(probes),
        )
    # A narrow terminal wraps a wide table, so that paths in it can be copied; rich would cut them.
    console = plain_console()
    console.width = max(
        console.width, console.measure(table, options=console.options.update(width=1000)).maximum
    )
    console.print(table)


GROUPS: dict[str, tuple[str, dict[str, Command]]] = {
    "": (
        "Train reinforcement-learning agents on a compact latent instead of pixels. Its version: --version.",
        {
            "demo": Command(
                "Do it all on a real game: collect frames, train a VAE, look at it, train PPO on latents.",
                _demo,
                "demo",
                "DemoConfig",
            ),
            "collect": Command(
                "Collect frames from an environment into a folder.",
                _collect,
                "collecting.config",
                "CollectConfig",
            ),
            "fit": Command(
                "Fit an encoder to an environment in a minute, where encoder='auto' finds it.",
                _fit,
                "fit",
                "FitConfig",
            ),
            "refresh": Command(
                "Fine-tune an encoder on its agent's frames; the agent stays unchanged.",
                _refresh,
                "refresh",
                "RefreshConfig",
            ),
            "train": Command("Train a VAE on a folder of frames.", _train, "training.config", "TrainConfig"),
            "evaluate": Command(
                "Measure an encoder on frames that it was not trained on, and write its report card.",
                _evaluate,
                "evaluation.evaluate",
                "EvaluateConfig",
            ),
            "visualize": Command(
                "Write a page in which sliders move the latent, or a picture of the latent space.",
                _visualize,
                "visualizer",
                "VisualizeConfig",
            ),
            "encode": Command(
                "Encode a frames folder into a latents folder, for dynamics models.",
                _encode,
                "collecting.encode",
                "EncodeConfig",
            ),
            "export": Command(
                "Write an encoder and its decoder as ONNX files.", _export, "encoders.export", "ExportConfig"
            ),
            "push": Command("Upload an encoder to the Hugging Face Hub.", _push, "push", "PushConfig"),
            "pull": Command(
                "Fetch an encoder from the Hugging Face Hub.", _pull, "encoders.hub", "PullConfig"
            ),
            "list": Command(
                "List the bundled encoders, the fitted ones, and those below a folder.",
                _list,
                "commands",
                "ListConfig",
            ),
            "card": Command(
                "Show the card of an encoder: its figures, how it was made, and what it gets wrong.",
                _card,
                "commands",
                "CardConfig",
            ),
        },
    ),
    "frames": (
        "Work with frames folders: info, check, show, merge, split, import-minari, export-minari, "
        "export-lerobot, push.",
        {
            "info": Command(
                "Show what a frames folder holds and where its frames come from.",
                _frames_info,
                "data.check",
                "InfoConfig",
            ),
            "check": Command(
                "Read all of a frames folder and name every damaged shard.",
                _frames_check,
                "data.check",
                "CheckConfig",
            ),
            "show": Command(
                "Draw a contact sheet of a frames folder, or a clip of an episode.",
                _frames_show,
                "data.show",
                "ShowConfig",
            ),
            "merge": Command("Merge frames folders into one.", _frames_merge, "data.curate", "MergeConfig"),
            "split": Command(
                "Split a frames folder by episode into train and validation.",
                _frames_split,
                "data.curate",
                "SplitConfig",
            ),
            "import-minari": Command(
                "Turn a Minari dataset into a frames folder.",
                _import_minari,
                "data.minari",
                "ImportMinariConfig",
            ),
            "export-minari": Command(
                "Turn a frames folder into a Minari dataset.",
                _export_minari,
                "data.minari",
                "ExportMinariConfig",
            ),
            "export-lerobot": Command(
                "Turn a frames folder into a LeRobot dataset.",
                _export_lerobot,
                "data.lerobot",
                "ExportLerobotConfig",
            ),
            "push": Command(
                "Upload a frames folder to the Hugging Face Hub, as a dataset that its viewer opens.",
                _push_frames,
                "push",
                "PushFramesConfig",
            ),
        },
    ),
    "recipe": (
        "Make a bundled encoder again from its recipe, or measure it again: build, measure.",
        {
            "build": Command(
                "Make an encoder from its recipe: collect, train, measure and write its card.",
                _recipe_build,
                "recipe",
                "BuildConfig",
            ),
            "measure": Command(
                "Measure an encoder again on fresh frames of its recipe, and write its card; weights stay.",
                _recipe_measure,
                "recipe",
                "MeasureConfig",
            ),
        },
    ),
}

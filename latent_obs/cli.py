"""The command line: one subcommand a job, its options those of the job's dataclass."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    import tyro

    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.encode import EncodeConfig
    from latent_obs.data.check import CheckConfig, InfoConfig
    from latent_obs.data.curate import MergeConfig, SplitConfig
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.minari import ExportMinariConfig, ImportMinariConfig
    from latent_obs.data.show import ShowConfig
    from latent_obs.demo import DemoConfig
    from latent_obs.encoders.export import ExportConfig
    from latent_obs.encoders.folder import EncoderConfig
    from latent_obs.encoders.hub import PullConfig
    from latent_obs.evaluation.evaluate import EvaluateConfig
    from latent_obs.push import PushConfig
    from latent_obs.recipe import BuildConfig, MeasureConfig
    from latent_obs.training.config import TrainConfig
    from latent_obs.visualizer import VisualizeConfig


@dataclass(frozen=True)
class ListConfig:
    """List the bundled encoders and those below a folder."""

    folder: Path = Path(".")
    """folder to search"""


@dataclass(frozen=True)
class CardConfig:
    """Show the card of an encoder: its report card, how it was made, and what it gets wrong."""

    encoder: str | Path
    """name of a bundled encoder, encoder folder, or hf://USER/NAME"""


@dataclass(frozen=True)
class FramesCommands:
    """Look at, check, merge and split frames folders: info, check, show, merge, split."""


@dataclass(frozen=True)
class RecipeCommands:
    """Make a bundled encoder again from its recipe, or measure it again: build, measure."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's.

    Returns:
        Exit status: 0, 1 after an error, 130 after Ctrl-C.
    """
    console = Console(stderr=True, highlight=False, soft_wrap=True)

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        console.print(f"warning: {message}", style="yellow", markup=False)

    before, warnings.showwarning = warnings.showwarning, show_warning
    try:
        run, config = _parse(sys.argv[1:] if arguments is None else arguments)
        run(config)
    except KeyboardInterrupt:
        console.print("Interrupted. What was finished is saved; the same command goes on from there.")
        return 130
    except (ValueError, ImportError, OSError, ArithmeticError, RuntimeError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    finally:
        warnings.showwarning = before
    return 0


def _parse(arguments: list[str]) -> tuple[Callable[[Any], None], Any]:
    """Return what to run and its options."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_json_argument)
    options: dict[str, Any] = {"config": (tyro.conf.PositionalRequiredArgs,), "registry": registry}
    name = arguments[0] if arguments else ""
    group = name if name in _GROUPS else None
    if group:
        name = " ".join(arguments[:2])
    words = len(name.split())
    if name in _COMMANDS and name not in _GROUPS:
        # Importing torch takes longer than a short command, so only what is asked for is imported.
        run, config_type = _load(name)
        return run, tyro.cli(config_type, prog=f"latent-obs {name}", args=arguments[words:], **options)
    if group:
        commands = {name.split()[1]: _load(name)[1] for name in _COMMANDS if name.startswith(f"{group} ")}
        about, prog, rest = _load(group)[1].__doc__, f"latent-obs {group}", arguments[1:]
    else:
        commands = {name: _load(name)[1] for name in _COMMANDS if " " not in name}
        about, prog, rest = "Train RL agents on a compact latent instead of pixels.", "latent-obs", arguments
    tyro.extras.subcommand_cli_from_dict(commands, prog=prog, description=about, args=rest, **options)
    raise AssertionError("without a known command the parser shows help and exits")


def _load(name: str) -> tuple[Callable[[Any], None], Any]:
    run, config_name = _COMMANDS[name]
    module = importlib.import_module(f"latent_obs.{_MODULES[name]}")
    return run, getattr(module, config_name)


def _json_argument(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Let an option of type ``dict[str, Any]`` be written as JSON."""
    import tyro

    if info.type != dict[str, Any]:
        return None

    def parse(words: list[str]) -> dict[str, Any]:
        value = json.loads(words[0])
        if not isinstance(value, dict):
            raise ValueError(f"expected a JSON object such as '{{\"frameskip\": 4}}', got {words[0]}")
        return value

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=parse,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    )


def _collect(config: CollectConfig) -> None:
    from latent_obs.collecting.collect import collect_frames

    _say_frames(collect_frames(config))


def _demo(config: DemoConfig) -> None:
    from latent_obs.demo import run_demo

    run_demo(config)


def _train(config: TrainConfig) -> None:
    from latent_obs.training.train import train_vae

    result = train_vae(config)
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun started, one speaks
        _report(f"{config.out} on held-out episodes", result.metrics)


def _evaluate(config: EvaluateConfig) -> None:
    from latent_obs.evaluation.evaluate import evaluate
    from latent_obs.evaluation.page import write_card
    from latent_obs.evaluation.report import CODES

    evaluation = evaluate(config, progress=True)
    card, paths = evaluation.card, write_card(evaluation, config.out)
    told = "held-out episodes of " if card.data.held_out else ""
    title = f"{config.encoder} on {card.frames:,} frames of {told}{config.frames}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for column in CODES.values():
        table.add_column(column, justify="right")
    for row in card.rows():
        table.add_row(*row)
    console = Console()
    console.print(table)
    for fault in card.warnings:
        console.print(fault, style="bold red", markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        console.print(path, highlight=False, soft_wrap=True)


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
    Console().print(table)


def _encode(config: EncodeConfig) -> None:
    from latent_obs.collecting.encode import encode_frames

    latents = encode_frames(config)
    encoder = latents.metadata["encoder"]
    line = f"{latents.path}: {len(latents):,} latents of {latents.latent_dim} numbers"
    line += f" by {encoder['name']} in {encoder['precision']}"
    Console().print(line, highlight=False, soft_wrap=True)


def _visualize(config: VisualizeConfig) -> None:
    from latent_obs.visualizer import visualize_encoder

    path = visualize_encoder(config)
    Console().print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)


def _pull(config: PullConfig) -> None:
    from latent_obs.encoders.hub import HUB_PREFIX, pull_encoder

    folder, commit = pull_encoder(config)
    repo = config.repo.removeprefix(HUB_PREFIX).partition("@")[0]
    Console().print(f"{folder}\n{HUB_PREFIX}{repo}@{commit}", highlight=False, markup=False, soft_wrap=True)


def _push(config: PushConfig) -> None:
    from latent_obs.encoders.hub import HUB_PREFIX
    from latent_obs.push import push_encoder

    url, commit = push_encoder(config)
    repo = config.repo.removeprefix(HUB_PREFIX)
    Console().print(f"{url}\n{HUB_PREFIX}{repo}@{commit}", highlight=False, markup=False, soft_wrap=True)


def _report(title: str, metrics: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_short(each)}" for key, each in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value}")
    Console().print(table)


def _short(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _frames_info(config: InfoConfig) -> None:
    from latent_obs.data.check import frames_info
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.storage import name_of

    folder = FramesFolder(config.folder)
    _report(str(config.folder), {k: v for k, v in frames_info(folder).items() if k != "collections"})
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
        Console().print(table)


def _frames_check(config: CheckConfig) -> None:
    from latent_obs.data.check import check_frames

    problems = check_frames(config.folder)
    for name, found in sorted(problems.items()):
        for problem in found:
            Console().print(f"{name}: {problem}", highlight=False, markup=False, soft_wrap=True)
    if problems:
        raise ValueError(
            f"{config.folder} has {len(problems)} bad shards, named above. Delete them; the command that "
            "collected the folder collects them again."
        )
    Console().print(f"{config.folder}: every shard is whole", highlight=False, soft_wrap=True)


def _frames_show(config: ShowConfig) -> None:
    from latent_obs.data.show import show_frames

    for path in show_frames(config):
        Console().print(str(path), highlight=False, soft_wrap=True)


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
    Console().print(f"{line}, in {dataset.storage.data_path}", highlight=False, soft_wrap=True)


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

    from latent_obs.evaluation.markdown import read_card

    text = read_card(config.encoder).partition("---\n")[2].partition("---\n")[2]  # after the front matter
    text = "\n".join(line for line in text.splitlines() if not line.startswith("!["))
    shown = Markdown(text) if sys.stdout.isatty() else text.strip()
    Console().print(shown, markup=False, highlight=False, soft_wrap=True)


def _group_help(config: FramesCommands | RecipeCommands) -> None:
    raise AssertionError("the parser shows the subcommands instead")


def _say_frames(folder: FramesFolder) -> None:
    line = f"{folder}: {len(folder):,} frames, {len(folder.episodes()):,} episodes"
    per_frame = f"{folder.num_bytes / len(folder):,.1f} bytes/frame"
    Console().print(f"{line}, {per_frame}", highlight=False, soft_wrap=True)


def _list(config: ListConfig) -> None:
    from latent_obs.encoders.folder import read_config
    from latent_obs.encoders.resolve import PRETRAINED, list_encoders
    from latent_obs.evaluation.report import BRIEF

    found: dict[str, EncoderConfig] = dict(list_encoders())
    if not config.folder.is_dir():
        raise FileNotFoundError(f"There is no folder {config.folder} to search for encoders.")
    for root, folders, files in os.walk(config.folder):
        # A home folder can be vast; encoders lie near where the work is.
        deep = len(Path(root).relative_to(config.folder).parts) >= 4
        folders[:] = [] if deep else sorted(f for f in folders if not f.startswith("."))
        if Path(root).resolve().parent == PRETRAINED.resolve():
            continue  # listed by its name already
        if "config.json" in files and "model.safetensors" in files:
            with contextlib.suppress(ValueError):  # some other program's config.json
                found.setdefault(root, read_config(Path(root)))
    table = Table()
    table.add_column("encoder")
    table.add_column("environment")
    for column in ("latent", *(figure.brief for figure in BRIEF), "probe F1"):
        table.add_column(column, justify="right")
    for name, encoder in found.items():
        metrics, envs = encoder.metrics, encoder.source.env_ids
        table.add_row(
            name,
            envs[0] if len(envs) == 1 else f"{len(envs)} environments" if envs else "",
            str(encoder.vae.latent_dim),
            *(figure.shown(metrics) for figure in BRIEF),
            ", ".join(f"{f1:.2f}" for f1 in metrics.get("probe_f1", {}).values()),
        )
    # Never cut a path that is there to be copied: a narrow terminal wraps the line itself.
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)


_GROUPS = ("frames", "recipe")  # commands of two words
# Each command's options are a dataclass in the module that _MODULES names.
_COMMANDS: dict[str, tuple[Callable[[Any], None], str]] = {
    "demo": (_demo, "DemoConfig"),
    "collect": (_collect, "CollectConfig"),
    "train": (_train, "TrainConfig"),
    "evaluate": (_evaluate, "EvaluateConfig"),
    "export": (_export, "ExportConfig"),
    "encode": (_encode, "EncodeConfig"),
    "visualize": (_visualize, "VisualizeConfig"),
    "push": (_push, "PushConfig"),
    "pull": (_pull, "PullConfig"),
    "list": (_list, "ListConfig"),
    "card": (_card, "CardConfig"),
    "recipe": (_group_help, "RecipeCommands"),
    "recipe build": (_recipe_build, "BuildConfig"),
    "recipe measure": (_recipe_measure, "MeasureConfig"),
    "frames": (_group_help, "FramesCommands"),
    "frames info": (_frames_info, "InfoConfig"),
    "frames check": (_frames_check, "CheckConfig"),
    "frames show": (_frames_show, "ShowConfig"),
    "frames merge": (_frames_merge, "MergeConfig"),
    "frames split": (_frames_split, "SplitConfig"),
    "frames import-minari": (_import_minari, "ImportMinariConfig"),
    "frames export-minari": (_export_minari, "ExportMinariConfig"),
}
_MODULES = {
    "demo": "demo",
    "collect": "collecting.config",
    "train": "training.config",
    "evaluate": "evaluation.evaluate",
    "export": "encoders.export",
    "encode": "collecting.encode",
    "visualize": "visualizer",
    "push": "push",
    "pull": "encoders.hub",
    "list": "cli",
    "card": "cli",
    "recipe": "cli",
    "recipe build": "recipe",
    "recipe measure": "recipe",
    "frames": "cli",
    "frames info": "data.check",
    "frames check": "data.check",
    "frames show": "data.show",
    "frames merge": "data.curate",
    "frames split": "data.curate",
    "frames import-minari": "data.minari",
    "frames export-minari": "data.minari",
}

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
from rich.table import Table

if TYPE_CHECKING:
    import tyro

    from latent_obs.collect import CollectConfig
    from latent_obs.demo import DemoConfig
    from latent_obs.encoder_folder import EncoderConfig
    from latent_obs.evaluate import EvaluateConfig
    from latent_obs.export import ExportConfig
    from latent_obs.train import TrainConfig
    from latent_obs.visualizer import VisualizeConfig


@dataclass(frozen=True)
class ListConfig:
    """List the bundled encoders and those below a folder."""

    folder: Path = Path(".")
    """folder to search"""


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
    if name in _COMMANDS:
        # Importing torch takes longer than a short command, so only what is asked for is imported.
        run, config_type = _load(name)
        return run, tyro.cli(config_type, prog=f"latent-obs {name}", args=arguments[1:], **options)
    tyro.extras.subcommand_cli_from_dict(
        {name: _load(name)[1] for name in _COMMANDS},
        prog="latent-obs",
        description="Train RL agents on a compact latent instead of pixels.",
        args=arguments,
        **options,
    )
    raise AssertionError("without a known command the parser shows help and exits")


def _load(name: str) -> tuple[Callable[[Any], None], Any]:
    run, config_name = _COMMANDS[name]
    module = importlib.import_module(f"latent_obs.{_ELSEWHERE.get(name, name)}")
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
    from latent_obs.collect import collect_frames

    folder = collect_frames(config)
    line = f"{folder.path}: {len(folder):,} frames, {len(folder.episodes()):,} episodes"
    per_frame = f"{folder.num_bytes / len(folder):,.1f} bytes/frame"
    Console().print(f"{line}, {per_frame}", highlight=False, soft_wrap=True)


def _demo(config: DemoConfig) -> None:
    from latent_obs.demo import run_demo

    run_demo(config)


def _train(config: TrainConfig) -> None:
    from latent_obs.train import train_vae

    result = train_vae(config)
    _report(f"{config.out} on held-out episodes", result.metrics)


def _evaluate(config: EvaluateConfig) -> None:
    from latent_obs.evaluate import evaluate_encoder

    _report(f"{config.encoder} on {config.frames}", evaluate_encoder(config))


def _export(config: ExportConfig) -> None:
    from latent_obs.export import TOLERANCE, export_encoder

    report = export_encoder(config)
    title = f"{config.encoder} in {config.out}, compared on {report.pop('frames')} frames"
    table = Table(title=title, title_justify="left")
    table.add_column("file")
    for column in ("bytes", "largest difference from torch", "allowed"):
        table.add_column(column, justify="right")
    for name, row in report.items():
        table.add_row(name, f"{row['bytes']:,}", f"{row['max_difference']:.1e}", f"{TOLERANCE:.0e}")
    Console().print(table)


def _visualize(config: VisualizeConfig) -> None:
    from latent_obs.visualizer import visualize_encoder

    path = visualize_encoder(config)
    Console().print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", highlight=False, soft_wrap=True)


def _report(title: str, metrics: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:,.0f}" for key, number in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value}")
    Console().print(table)


def _list(config: ListConfig) -> None:
    from latent_obs.encoder import PRETRAINED, list_encoders
    from latent_obs.encoder_folder import read_config

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
    for column in ("latent", "PSNR dB", "moving R²", "KL nats", "active"):
        table.add_column(column, justify="right")
    for name, encoder in found.items():
        metrics = encoder.metrics
        table.add_row(
            name,
            encoder.source.env_id,
            str(encoder.vae.latent_dim),
            *(f"{metrics[key]:.{digits}f}" if key in metrics else "" for key, digits in _LISTED.items()),
            str(metrics.get("active_units", "")),
        )
    # Never cut a path that is there to be copied: a narrow terminal wraps the line itself.
    needed = Console(width=1000).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)


_LISTED = {"psnr": 1, "moving_r2": 3, "kl": 1}  # metrics and their digits

# Each command's options are a dataclass in the module of the same name, except for these.
_ELSEWHERE = {"list": "cli", "visualize": "visualizer"}
_COMMANDS: dict[str, tuple[Callable[[Any], None], str]] = {
    "demo": (_demo, "DemoConfig"),
    "collect": (_collect, "CollectConfig"),
    "train": (_train, "TrainConfig"),
    "evaluate": (_evaluate, "EvaluateConfig"),
    "export": (_export, "ExportConfig"),
    "visualize": (_visualize, "VisualizeConfig"),
    "list": (_list, "ListConfig"),
}

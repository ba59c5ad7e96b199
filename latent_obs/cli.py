"""The command line: one subcommand a job, its options those of the job's dataclass."""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from latent_obs.collect import CollectConfig, CollectError, collect_frames
from latent_obs.demo import DemoConfig, run_demo

if TYPE_CHECKING:
    import tyro

    from latent_obs.encoder_folder import EncoderConfig
    from latent_obs.evaluate import EvaluateConfig
    from latent_obs.export import ExportConfig
    from latent_obs.train import TrainConfig


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
        _run(_parse(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        console.print("Interrupted. What was finished is saved; the same command goes on from there.")
        return 130
    except (ValueError, ImportError, OSError, CollectError, FloatingPointError) as error:
        console.print(f"error: {error}", style="bold red", markup=False)
        return 1
    finally:
        warnings.showwarning = before
    return 0


def _parse(arguments: list[str]) -> Any:
    import tyro

    commands: dict[str, Any] = {"collect": CollectConfig, "list": ListConfig, "demo": DemoConfig}
    # Importing torch takes longer than a short command, so only what is asked for is imported;
    # for --help and for misspellings that is everything.
    name = arguments[0] if arguments else ""
    if name not in commands:
        from latent_obs.evaluate import EvaluateConfig
        from latent_obs.export import ExportConfig
        from latent_obs.train import TrainConfig

        commands |= {"train": TrainConfig, "evaluate": EvaluateConfig, "export": ExportConfig}
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_json_argument)
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="latent-obs",
        description="Train RL agents on a compact latent instead of pixels.",
        args=arguments,
        config=(tyro.conf.PositionalRequiredArgs,),
        registry=registry,
    )


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


def _run(config: Any) -> None:
    name = type(config).__name__
    if isinstance(config, CollectConfig):
        folder = collect_frames(config)
        per_frame = folder.num_bytes / len(folder)
        Console().print(
            f"{folder.path}: {len(folder):,} frames, {len(folder.episodes()):,} episodes, "
            f"{per_frame:,.1f} bytes/frame",
            highlight=False,
            soft_wrap=True,
        )
    elif isinstance(config, DemoConfig):
        run_demo(config)
    elif isinstance(config, ListConfig):
        _list(config)
    elif name == "TrainConfig":
        _train(config)
    elif name == "ExportConfig":
        _export(config)
    else:
        _evaluate(config)


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


def _report(title: str, metrics: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in metrics.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number:,.0f}" for key, number in value.items())
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else f"{value}")
    Console().print(table)


def _list(config: ListConfig) -> None:
    from latent_obs.encoder import list_encoders
    from latent_obs.encoder_folder import read_config

    found: dict[str, EncoderConfig] = dict(list_encoders())
    if not config.folder.is_dir():
        raise FileNotFoundError(f"There is no folder {config.folder} to search for encoders.")
    for root, folders, files in os.walk(config.folder):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "pretrained")
        if "config.json" in files and "model.safetensors" in files:
            try:
                found[root] = read_config(Path(root))
            except ValueError:
                continue  # some other program's config.json
    table = Table()
    for column in ("encoder", "environment", "latent", "PSNR dB", "moving R²", "KL nats", "active"):
        table.add_column(column, justify="left" if column in ("encoder", "environment") else "right")
    for name, encoder in found.items():
        metrics = encoder.metrics
        table.add_row(
            name,
            encoder.source.env_id,
            str(encoder.vae.latent_dim),
            *(f"{metrics.get(key, float('nan')):.{digits}f}" for key, digits in _LISTED.items()),
            str(metrics.get("active_units", "")),
        )
    Console().print(table)


_LISTED = {"psnr": 1, "moving_r2": 3, "kl": 1}

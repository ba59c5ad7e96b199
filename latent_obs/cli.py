"""The program ``latent-obs``: one command for each job, with the fields of the job's dataclass as options."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.text import Text

from latent_obs import __version__
from latent_obs.commands import GROUPS
from latent_obs.extras import needs
from latent_obs.progress import plain_console

if TYPE_CHECKING:
    import tyro


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words after the program's name. ``None`` (default): those of this process.

    Returns:
        Exit status: 0, 1 after an error, 130 after Ctrl-C, 141 where nobody reads the output any more.
    """
    console = plain_console(stderr=True)

    def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
        # Gymnasium colours its warnings, whoever reads them; what is no terminal is left without.
        console.print(Text.from_ansi(f"warning: {message}", style="yellow"), soft_wrap=True)

    with contextlib.suppress(OSError):  # the working directory was deleted
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # environments, policies and wrappers may be modules in this folder
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["--version"]:
        print(f"latent_obs {__version__}")
        return 0
    before, warnings.showwarning = warnings.showwarning, show_warning
    try:
        with needs(f"latent-obs {' '.join(arguments[:1])}"):
            run, config = _parse(arguments)
            _run(run, config)
    except KeyboardInterrupt:
        # After Ctrl-C in code that exec() ran, such as a dataclass being made, CPython would end `python -m`
        # by the signal, although it was handled; the next exec() makes it forget.
        exec("")
        console.print("Interrupted. Finished work is saved; the same command continues from there.")
        return 130
    except SystemExit:  # after the help
        if _nobody_reads():
            return _CLOSED_PIPE
        raise
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads("\n"):
            return _CLOSED_PIPE
        if sys.flags.dev_mode:
            raise
        console.print(f"error: {_explain(error)}", style="bold red", soft_wrap=True)
        return 1
    finally:
        warnings.showwarning = before
    return 0


def _run(run: Callable[[Any], None], config: Any) -> None:
    """Run a command; ``sys.exit`` in somebody else's code is an error, since nothing is finished."""
    try:
        run(config)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich found that nobody reads what it prints
            raise SystemExit(_CLOSED_PIPE) from error
        raise RuntimeError(
            f"Some code called sys.exit({error.code!r}) before the command was finished."
        ) from error


# What a shell reports of a program that was ended because nobody reads its output, as by `| head`.
_CLOSED_PIPE = 141


def _nobody_reads(text: str = "") -> bool:
    """Say whether standard output is a pipe that nobody reads any more; if so, what is left goes nowhere.

    Args:
        text: Is printed to find out, where all that was printed before may have left Python's buffer.
    """
    try:
        print(end=text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


# The errors that the package and its libraries raise for mistakes of the user and faults of the machine.
_EXPECTED = (ValueError, ImportError, OSError, ArithmeticError, RuntimeError)


def _explain(error: Exception) -> str:
    """Return the message of an error; that of an unexpected error names the line of code too."""
    if isinstance(error, _EXPECTED):
        return str(error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{type(error).__name__}: {error} (in {at.filename}, line {at.lineno}). This is a bug. Please "
        f"report it with the output of the same command, begun with `{sys.executable} -X dev -m latent_obs`."
    )


def _parse(arguments: list[str]) -> tuple[Callable[[Any], None], Any]:
    """Return what to run and its options, or print the help and exit."""
    import tyro

    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_json_argument)
    markers = (tyro.conf.PositionalRequiredArgs, tyro.conf.DisallowNone)
    options: dict[str, Any] = {"config": markers, "registry": registry}
    group = arguments[0] if arguments and arguments[0] in GROUPS else ""
    words = arguments[1:] if group else arguments
    about, commands = GROUPS[group]
    prog = f"latent-obs {group}".strip()
    if words and words[0] in commands:
        # Only the module of this command is imported: torch alone takes longer than a short command.
        command = commands[words[0]]
        config = getattr(importlib.import_module(f"latent_obs.{command.module}"), command.config)
        prog = f"{prog} {words[0]}"
        return command.run, tyro.cli(config, prog=prog, description=command.about, args=words[1:], **options)
    abouts = {name: command.about for name, command in commands.items()}
    if not group:
        abouts |= {name: about for name, (about, _) in GROUPS.items() if name}
    listed: dict[str, Callable[..., Any]] = {
        name: dataclass(type(name, (), {"__doc__": each})) for name, each in abouts.items()
    }
    tyro.extras.subcommand_cli_from_dict(listed, prog=prog, description=about, args=words, **options)
    raise AssertionError("without a known command the parser prints the help and exits")


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

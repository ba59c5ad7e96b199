"""The checkpoint of an unfinished training run: everything to go on from, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from latent_obs.files import write_atomically

CHECKPOINT = "checkpoint.safetensors"


def write_checkpoint(
    folder: Path, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], progress: Mapping[str, Any]
) -> None:
    """Write ``checkpoint.safetensors`` atomically; a state that is not finite never replaces a good one.

    Args:
        folder: Encoder folder of the run.
        identity: JSON value that tells this run from others.
        tensors: The state.
        progress: JSON values: counters and history.

    Raises:
        FloatingPointError: If a tensor holds a value that is not finite; nothing is written.
        OSError: If the folder cannot be written.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(
                f"{name} holds values that are not finite, so no checkpoint was written; the one in "
                f"{folder} is kept. Lower --learning-rate or use --precision float32."
            )
    metadata = {"run": json.dumps(identity), "progress": json.dumps(progress)}
    data = safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}, metadata)
    write_atomically(folder / CHECKPOINT, data)


def read_checkpoint(
    folder: Path, identity: Mapping[str, Any], overwrite: bool
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read what :func:`write_checkpoint` wrote: ``tensors`` and ``progress``; ``None`` without one.

    Args:
        folder: Encoder folder of the run.
        identity: Must be that of the run that wrote it.
        overwrite: Ignore another run's checkpoint instead of refusing it.

    Raises:
        ValueError: If the checkpoint is damaged or another run's.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        run, progress = json.loads(metadata["run"]), json.loads(metadata["progress"])
    except (safetensors.SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it to start again.") from error
    if run != identity:
        if overwrite:
            return None
        raise ValueError(
            f"{folder} holds an unfinished run with other settings or frames. Repeat its "
            "command to finish it, choose another --out, or --overwrite it."
        )
    return tensors, progress


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Return Adam's moments and step counts under the names of their parameters."""
    return {
        f"adam.{name}.{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Adam, tensors: Mapping[str, Tensor]
) -> None:
    """Restore what :func:`optimizer_tensors` returned."""
    state = optimizer.state_dict()
    for index, (name, parameter) in enumerate(model.named_parameters()):
        if f"adam.{name}.step" not in tensors:
            continue  # no step was taken
        # The fused optimiser walks through memory, so moments must lie as their parameter does.
        moments = {
            key: torch.empty_like(parameter).copy_(tensors[f"adam.{name}.{key}"])
            for key in ("exp_avg", "exp_avg_sq")
        }
        state["state"][index] = {"step": tensors[f"adam.{name}.step"], **moments}
    optimizer.load_state_dict(state)

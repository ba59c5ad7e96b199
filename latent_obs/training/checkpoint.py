"""The checkpoint of an unfinished training run: everything to go on from, without pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from latent_obs.data.storage import refuse_irregular
from latent_obs.encoders.provenance import Record, Run
from latent_obs.files import write_atomically

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Progress(Record):
    """How far a run has come.

    Args:
        step: Optimiser steps taken.
        seconds: Time that they took.
        best_loss: The lowest held-out loss so far; ``None`` before the first, or without ``patience``.
        best_step: Steps taken to reach it.
        waited: Evaluations since then.
        history: Rows of ``history.csv``; ``None`` stands for what was not measured at that step.
    """

    step: int
    seconds: float
    best_loss: float | None
    best_step: int
    waited: int
    history: list[dict[str, float | None]]


def write_checkpoint(folder: Path, run: Run, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write ``checkpoint.safetensors`` atomically; a state that is not finite never replaces a good one.

    Args:
        folder: Encoder folder of the run.
        run: What tells this run from others.
        tensors: The state.
        progress: Counters and history.

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
    metadata = {"run": json.dumps(run.to_json()), "progress": json.dumps(progress.to_json(), allow_nan=False)}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(whole, {**metadata, "sha256": _digest(metadata, whole)})
    write_atomically(folder / CHECKPOINT, data)


def read_checkpoint(folder: Path, run: Run, overwrite: bool) -> tuple[dict[str, Tensor], Progress] | None:
    """Read what :func:`write_checkpoint` wrote: tensors and progress; ``None`` if there is no checkpoint.

    Args:
        folder: Encoder folder of the run.
        run: Must be that of the run that wrote it.
        overwrite: Ignore another run's checkpoint instead of refusing it.

    Raises:
        ValueError: If the checkpoint is damaged or another run's.
    """
    found = _read(folder)
    if found is None:
        return None
    written, tensors, progress = found
    if written != run:
        if overwrite:
            return None
        raise ValueError(
            f"{folder} holds an unfinished run with other settings or frames. Repeat its "
            "command to finish it, choose another --out, or --overwrite it."
        )
    return tensors, progress


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of what a checkpoint holds; safetensors would not notice a bit that flipped."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checkpointed_run(folder: Path) -> Run | None:
    """Return which run wrote the checkpoint of a folder; ``None`` if there is no checkpoint.

    Raises:
        ValueError: If the checkpoint is damaged.
    """
    found = _read(folder)
    return None if found is None else found[0]


def _read(folder: Path) -> tuple[Run, dict[str, Tensor], Progress] | None:
    path = folder / CHECKPOINT
    if not path.exists() and not path.is_symlink():
        return None
    try:
        refuse_irregular(path)
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for name in ("run", "progress"):
                if name not in metadata:
                    raise ValueError(f"{name} is missing")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        digest = _digest({name: metadata[name] for name in ("run", "progress")}, tensors)
        if metadata.get("sha256", digest) != digest:
            raise ValueError("it holds something else than was written")
        written = Run.from_json(json.loads(metadata["run"]))
        progress = Progress.from_json(json.loads(metadata["progress"]))
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise damaged(folder, error) from error
    return written, tensors, progress


def remove_checkpoint(folder: Path, run: Run) -> None:
    """Remove the checkpoint of a run whose encoder is written; another run's or a damaged one is left."""
    try:
        if read_checkpoint(folder, run, overwrite=True) is not None:
            (folder / CHECKPOINT).unlink()
    except (OSError, ValueError):
        return


def damaged(folder: Path, error: Exception) -> ValueError:
    """Return the error for a checkpoint that cannot be used."""
    return ValueError(f"{folder / CHECKPOINT} is damaged ({error}); delete it to start again.")

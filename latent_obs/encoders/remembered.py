"""What this machine has found out about encoders and need not find out again.

It is kept in :func:`~latent_obs.files.cache_folder`. Deleting that is always safe. Nothing here fails: what
cannot be read or written is computed again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import safetensors
import safetensors.numpy

from latent_obs.encoders import quantise
from latent_obs.encoders.folder import Precision, Tensors, VAEConfig
from latent_obs.encoders.quantise import Quantised
from latent_obs.files import cache_folder, write_atomically
from latent_obs.frames import Frames

# What was measured is measured again after a change of how it is measured or of what is run.
TIMING = 1


def quantised(vae: VAEConfig, tensors: Tensors, frames: Frames, std: Sequence[float]) -> Quantised:
    """Do what :func:`~latent_obs.encoders.quantise.quantise` does, once for each encoder and machine.

    The file is the SHA-256 of the arrays' safetensors, and these: a bit that flipped is noticed.
    """
    name = f"int8-{quantise.key_of(vae, tensors, frames, std)[:40]}"
    try:
        content = (cache_folder() / name).read_bytes()
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError(f"{name} is damaged")
        return Quantised.from_tensors(vae, safetensors.numpy.load(content[32:]))
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError):
        result = quantise.quantise(vae, tensors, frames, std)
        content = safetensors.numpy.save(result.to_tensors())
        _write(name, hashlib.sha256(content).digest() + content)
        return result


def speeds(case: str) -> dict[Precision, float] | None:
    """Return what a call takes on this machine in each precision, in microseconds, if it was measured.

    Args:
        case: What was measured: sizes of the network, threads and the like.
    """
    found = _speeds().get(f"{_machine()} {case}")
    if isinstance(found, dict) and all(isinstance(value, float) for value in found.values()):
        return found
    return None


def remember_speeds(case: str, found: dict[Precision, float]) -> None:
    """Keep what was measured, for :func:`speeds`."""
    content = {**_speeds(), f"{_machine()} {case}": found}
    _write("speeds.json", (json.dumps(content, indent=1) + "\n").encode())


def _speeds() -> dict[str, Any]:
    try:
        content = json.loads((cache_folder() / "speeds.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _machine() -> str:
    """Name the processor, its instructions and the runtime, by which speeds are kept."""
    lines: list[str] = []
    try:
        wanted = ("model name", "flags", "Features", "CPU part")
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.strip() and lines:
                    break  # the first processor says it all
                if line.startswith(wanted):
                    lines.append(line.partition(":")[2].strip())
    except OSError:
        lines = [platform.machine(), platform.processor()]
    runtime = metadata.version("openvino")
    return hashlib.sha256(f"{TIMING} {runtime} {lines}".encode()).hexdigest()[:16]


def _write(name: str, content: bytes) -> None:
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomically(cache_folder() / name, content)
    except (OSError, RuntimeError):
        pass

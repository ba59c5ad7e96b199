"""What this machine has found out about encoders and need not find out again.

The folder is ``$LATENT_OBS_HOME`` where that is set, else ``latent_obs`` in the user's cache folder.
Deleting it is always safe. Nothing here fails: what cannot be read or written is computed again.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from latent_obs.encoders import quantise
from latent_obs.encoders.folder import Precision, Tensors, VAEConfig
from latent_obs.encoders.quantise import Quantised
from latent_obs.files import write_atomically
from latent_obs.frames import Frames

# What was measured is measured again after a change of how it is measured or of what is run.
TIMING = 1


def folder() -> Path:
    """Return the folder; it need not exist.

    Raises:
        RuntimeError: If the user has no home folder.
    """
    if home := os.environ.get("LATENT_OBS_HOME"):
        return Path(home)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "latent_obs" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "latent_obs"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "latent_obs"


def quantised(vae: VAEConfig, tensors: Tensors, frames: Frames) -> Quantised:
    """Do what :func:`~latent_obs.encoders.quantise.quantise` does, once for each encoder and machine."""
    name = f"int8-{quantise.key_of(vae, tensors, frames)[:40]}.safetensors"
    try:
        return Quantised.from_tensors(vae, safetensors.numpy.load((folder() / name).read_bytes()))
    except (OSError, RuntimeError, ValueError, safetensors.SafetensorError):
        result = quantise.quantise(vae, tensors, frames)
        _write(name, safetensors.numpy.save(result.to_tensors()))
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
        content = json.loads((folder() / "speeds.json").read_text(encoding="utf-8"))
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
        folder().mkdir(parents=True, exist_ok=True)
        write_atomically(folder() / name, content)
    except (OSError, RuntimeError):
        pass

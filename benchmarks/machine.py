"""What a result must say about where it was measured, and the processor time of commands."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# The instructions on which it depends how fast an encoder runs and a VAE trains, on x86 and on ARM.
FLAGS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16")


def children_seconds() -> float:
    """Return the processor time of this process's children that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def machine(*packages: str) -> str:
    """Name the processor, its flags and cores, the system, packages, the commit and the day, on one line."""
    model, flags = processor()
    parts = [
        " ".join([model, *flags]),
        f"{os.cpu_count()} cores",
        platform.system(),
        f"Python {platform.python_version()}",
        *(f"{name} {_version(name)}" for name in packages),
        f"commit {commit()}",
        str(date.today()),
    ]
    return ", ".join(parts)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, list[str]]:
    """Return the processor's model and those of ``FLAGS`` that it has; none where Linux does not tell."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags.update(value.split())
    return model, [flag for flag in FLAGS if flag in flags]


def commit() -> str:
    """Return this repository's commit, with ``+`` if files differ from it, or ``unknown`` outside git."""
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--exclude=*", "--abbrev=7", "--dirty=+"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return run.stdout.strip()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

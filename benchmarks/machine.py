"""What a result must say of where it was measured."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import version


def machine(*packages: str) -> str:
    """Name the processor, the cores, the system, the packages and the day, on one line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {system}, {versions}, {date.today()}"

"""Files that are whole or not there: what every folder of this package is written with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, even after a crash."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with create(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def create(path: Path) -> BinaryIO:
    """Create a file for writing in the place of whatever has its name; a link there is not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def sync_folder(folder: Path) -> None:
    """Force a rename inside ``folder`` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

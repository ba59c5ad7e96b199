"""Writing files so that a crash leaves either a whole file or none."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, even after a crash.

    Raises:
        OSError: If it cannot be written; an old one is kept.
    """
    with staged({path: data}):
        pass


@contextlib.contextmanager
def staged(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Write files under temporary names, and give them their own, in order, when the block ends well.

    When the block begins, all of them are on disk, so that a full disk changes none. The temporary names lie
    beside the files, as ``.<name>.tmp``. What lies there already is removed first: a symbolic link is never
    followed.

    Args:
        files: Content by path.

    Raises:
        OSError: If a file cannot be written or renamed.
    """
    temporary = {path: path.with_name(f".{path.name}.tmp") for path in files}
    try:
        for path, data in files.items():
            with create(temporary[path]) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        yield
        for path in files:
            os.replace(temporary[path], path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def create(path: Path) -> BinaryIO:
    """Create a file for writing in the place of whatever has its name; a link there is not followed."""
    path.unlink(missing_ok=True)
    return open(path, "xb")


def sync_folder(folder: Path) -> None:
    """Force the renames of files in ``folder`` to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Return the folder of what this package remembers on this machine; it need not exist.

    That is ``$LATENT_OBS_HOME`` where it is set, else ``latent_obs`` in the user's cache folder.

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

"""Writing files so that a crash leaves either a whole file or none."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

# Seconds after which a temporary file that nobody writes to was left behind by a process that was killed.
_STALE = 3600


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is either the old one or the whole new one, even after a crash.

    A device or a pipe, such as ``/dev/null``, is written to.

    Raises:
        IsADirectoryError: If there is a folder of that name.
        OSError: If it cannot be written; an old one is kept.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and a file was to be written. Name a file in it.")
    if path.exists() and not path.is_file():
        path.write_bytes(data)
        return
    with staged({path: data}):
        pass


@contextlib.contextmanager
def staged(files: Mapping[Path, bytes]) -> Iterator[None]:
    """Write files under temporary names, and give them their own, in order, when the block ends well.

    When the block begins, all of them are on disk, so that a full disk changes none. The temporary names lie
    beside the files, as ``.<name>.<random>.tmp``: no other process or thread that writes the same file has
    them. A symbolic link is never followed. What killed processes left there is removed after an hour.

    Args:
        files: Content by path.

    Raises:
        OSError: If a file cannot be written or renamed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp") for path in files}
    try:
        for path, data in files.items():
            _remove_stale(path)
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


def _remove_stale(path: Path) -> None:
    for old in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.tmp"):
        with contextlib.suppress(OSError):  # another process removes it too
            if time.time() - old.lstat().st_mtime > _STALE:
                old.unlink()


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

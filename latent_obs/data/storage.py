"""Where a frames folder lies: a local folder, or a URL that pyarrow or fsspec understands.

A :data:`Location` is a :class:`~pathlib.Path`, or a string such as ``s3://bucket/frames``. What an
object store needs to know goes into the URL, as pyarrow reads it, for example
``s3://bucket/frames?endpoint_override=localhost:9000&scheme=http``; credentials come from the
environment. A file appears under its name only when it is whole, in either place: locally it is
forced to disk and renamed, an object store publishes what was uploaded in one go.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from latent_obs.files import create, sync_folder
from latent_obs.progress import say

Location = Path | str  # of a folder or of a file; a str may be a URL

LOCK = ".lock"
PATIENCE = 10.0  # seconds to wait for a lock: workers whose parent was killed need a moment to end
_PROBE = ".writable"
_REQUESTS = 32  # to a store at a time
Item = TypeVar("Item")
Result = TypeVar("Result")
# Object stores have no folders; making one there would leave an empty object of that name.
_WITHOUT_FOLDERS = ("s3", "gcs", "abfs")


def parse_location(text: Location) -> Location:
    """Return a URL as it is, and everything else, ``file://`` included, as a local path.

    Raises:
        ValueError: If a URL has no path, or a ``file://`` URL names a host.

    Example:
        >>> parse_location("s3://bucket/frames")
        's3://bucket/frames'
        >>> parse_location("file:///data/frames").name
        'frames'
    """
    if isinstance(text, Path) or "://" not in text:
        return Path(text)
    url = urlsplit(text)
    if url.scheme == "file":
        if url.netloc not in ("", "localhost") or not url.path:
            raise ValueError(f"A file URL must be like file:///folder, got {text!r}.")
        return Path(unquote(url.path))
    if not (url.netloc + url.path).strip("/"):
        raise ValueError(f"A URL must name a folder, like {url.scheme}://bucket/folder, got {text!r}.")
    return text


def shown(location: Location) -> str:
    """Return a location for people to read: without the password a URL may hold."""
    if isinstance(location, Path):
        return str(location)
    url = urlsplit(location)
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2]))


def refuse_url(path: str | Path, what: str) -> None:
    """Refuse a URL where only a folder on this machine will do.

    ``pathlib`` makes ``s3:/bucket`` of ``s3://bucket``.

    Args:
        path: What was given.
        what: What was to be a folder, for the error.

    Raises:
        ValueError: If it is a URL.
    """
    scheme, colon, rest = Path(path).as_posix().partition(":/")
    if colon and len(scheme) > 1 and scheme.isalnum():  # one letter is a disk of Windows
        url = shown(f"{scheme}://{rest}")
        raise ValueError(
            f"{what} must be a folder on this machine, got the URL {url}. Only frames folders may lie in a "
            "store: collect writes them there, and every command reads them."
        )


def child(folder: Location, name: str) -> Location:
    """Return the location of a file in a folder."""
    if isinstance(folder, Path):
        return folder / name
    url = urlsplit(folder)
    return urlunsplit(url._replace(path=f"{url.path.rstrip('/')}/{name}"))


def name_of(location: Location) -> str:
    """Return a file's name without its folder."""
    path = location if isinstance(location, Path) else Path(urlsplit(location).path)
    return path.name


def list_files(folder: Location, suffix: str) -> list[Location]:
    """Return the files of a folder that end in ``suffix`` and begin with no dot, in order of their names.

    A folder that does not exist has none.
    """
    if isinstance(folder, Path):
        return sorted(path for path in folder.glob(f"*{suffix}") if not path.name.startswith("."))
    filesystem, path = _open_folder(folder)
    found = filesystem.get_file_info(pa.fs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in found if info.type == pa.fs.FileType.File)
    return [child(folder, n) for n in sorted(names) if n.endswith(suffix) and not n.startswith(".")]


def for_each(function: Callable[[Item], Result], items: Sequence[Item], folder: Location) -> list[Result]:
    """Return a function's value for each file of a folder, asking a store about many at a time.

    A store takes tens of milliseconds to answer, whatever it is asked, and a disk microseconds.
    """
    if isinstance(folder, Path):
        return [function(item) for item in items]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


def num_bytes(location: Location) -> int:
    """Return the size of a file."""
    if isinstance(location, Path):
        return location.stat().st_size
    filesystem, path = _resolve(location)
    return int(filesystem.get_file_info(path).size)


def open_file(location: Location) -> BinaryIO:
    """Open a file for reading from its beginning to its end."""
    if isinstance(location, Path):
        return open(location, "rb")
    filesystem, path = _resolve(location)
    stream: BinaryIO = filesystem.open_input_stream(path)
    return stream


def open_parquet(location: Location) -> pq.ParquetFile:
    """Open a Parquet file for reading; use it in a ``with`` statement.

    Reading from it raises ``OSError`` where a page is corrupt.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is a folder, a pipe or a device.
        pyarrow.ArrowException: If it is no Parquet file.
    """
    if isinstance(location, Path):
        refuse_irregular(location)
        return pq.ParquetFile(location, pre_buffer=False, page_checksum_verification=True)
    filesystem, path = _resolve(location)
    # A store answers slowly, so what will be needed is asked for at once.
    return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True, page_checksum_verification=True)


def refuse_irregular(path: Path) -> None:
    """Refuse a path that is no regular file: opening a pipe would wait for ever.

    Raises:
        ValueError: If it is a folder, a pipe or a device.
        OSError: If there is nothing.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a regular file")


def make_folder(folder: Location) -> None:
    """Make a folder and those above it where the store has folders, and see that a store can be written.

    Raises:
        OSError: If that fails.
    """
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    filesystem, path = _open_folder(folder)
    if filesystem.type_name not in _WITHOUT_FOLDERS:
        filesystem.create_dir(path, recursive=True)
    # Uploads come only when shards are whole: a missing bucket must not be found as late as that.
    with filesystem.open_output_stream(f"{path}/{_PROBE}"):
        pass
    with contextlib.suppress(OSError):
        filesystem.delete_file(f"{path}/{_PROBE}")


def remove_unfinished(folder: Location, prefix: str) -> None:
    """Delete what killed processes left behind of files whose names begin with ``prefix``."""
    if isinstance(folder, Path):
        for path in folder.glob(f".{prefix}*.tmp"):
            path.unlink(missing_ok=True)


class NewFile:
    """A file that gets its name when it is committed, and leaves nothing behind otherwise.

    Locally it lies beside its final place as ``.<name>.tmp``. For an object store it lies in the
    temporary folder of this machine until it is uploaded, since a store would publish half a file
    whose writer was merely closed.

    Args:
        location: Where it shall appear.

    Attributes:
        stream: What to write to.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(self, location: Location) -> None:
        self.location = location
        self.stream: BinaryIO
        self._temporary: Path | None = None
        if isinstance(location, Path):
            self._temporary = location.with_name(f".{location.name}.tmp")
            self.stream = create(self._temporary)
        else:
            # Unlinked from the start, so that even kill -9 leaves nothing of it.
            self.stream = tempfile.TemporaryFile()

    def commit(self) -> None:
        """Make the file durable and give it its name.

        Raises:
            OSError: If the disk is full or the store does not answer.
        """
        self.stream.flush()
        if self._temporary is not None:
            assert isinstance(self.location, Path)
            os.fsync(self.stream.fileno())
            self.stream.close()
            os.replace(self._temporary, self.location)
            sync_folder(self.location.parent)
            return
        assert isinstance(self.location, str)
        filesystem, path = _resolve(self.location)
        self.stream.seek(0)
        # In a thread, which Ctrl-C does not reach: the end of a `with` would publish half an object.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(_upload, self.stream, filesystem, path).result()
        self.stream.close()

    def abort(self) -> None:
        """Delete what was written."""
        with contextlib.suppress(OSError):
            self.stream.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _upload(file: BinaryIO, filesystem: pa.fs.FileSystem, path: str) -> None:
    """Copy a file to a store; where that fails midway, there is no such object afterwards."""
    upload = filesystem.open_output_stream(path)
    try:
        with upload:
            shutil.copyfileobj(file, upload, 1 << 22)
    except BaseException:
        with contextlib.suppress(OSError):
            filesystem.delete_file(path)
        raise


@contextlib.contextmanager
def locked(folder: Location, called: Location | None = None, *, waits: bool = False) -> Iterator[int | None]:
    """Keep other processes out of a local folder.

    The kernel releases the lock when the last process that holds its descriptor ends, however it
    ends, so none is ever left over. Object stores have no locks, and need none here: what two
    equal runs write is equal.

    Args:
        folder: An existing folder.
        called: What an error calls it, if not by its own name.
        waits: Wait for as long as another process holds the lock, and say so.

    Yields:
        The descriptor that holds the lock, to be inherited by workers; ``None`` without a lock.

    Raises:
        ValueError: If another process holds the lock for ten seconds, unless this one ``waits``.
        OSError: If the folder cannot be written.
    """
    if not isinstance(folder, Path):
        yield None
        return
    import fcntl  # not on Windows

    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise type(error)(f"The folder {folder} cannot be written ({error.strerror}).") from error
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    holder = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
                    other = f"Another process is writing to {called or folder} ({holder or 'unknown'})."
                    if not waits:
                        cure = "Wait for it, end it, or choose another --out."
                        raise ValueError(f"{other} {cure}") from None
                    say(f"{other} Waiting for it.")
                    deadline = math.inf
                time.sleep(0.1)
            except OSError as error:
                if error.errno in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK):
                    break  # a file system without locks, like an object store
                raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _resolve(url: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the file system of a file's URL and the path in it."""
    parts = urlsplit(url)
    folder, _, name = parts.path.rpartition("/")
    filesystem, root = _open_folder(urlunsplit(parts._replace(path=folder)))
    return filesystem, f"{root}/{name}"


@functools.lru_cache(maxsize=16)
def _open_folder(url: str) -> tuple[pa.fs.FileSystem, str]:
    """Return the file system of a folder's URL and the path in it: pyarrow's own, else fsspec's."""
    try:
        try:
            filesystem, path = pa.fs.FileSystem.from_uri(url)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            import fsspec

            opened, path = fsspec.core.url_to_fs(url)
            filesystem = pa.fs.PyFileSystem(pa.fs.FSSpecHandler(opened))
    except (pa.ArrowException, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The storage {shown(url)} cannot be used: {reason}.") from error
    return filesystem, path.rstrip("/")

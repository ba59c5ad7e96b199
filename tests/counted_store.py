"""A store that counts what is read from it, for programs that several processes run.

$ torchrun --nproc-per-node 2 -m tests.counted_store COUNTS train counted://here/tmp/frames --out encoder

is ``latent-obs train`` on a folder of this machine's, reached as an object store is. Each process writes the
number of bytes that it read into the folder ``COUNTS``, as the file of its rank.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


class CountedStore(LocalFileSystem):  # type: ignore[misc]
    """Counts the bytes of its files that are read.

    Attributes:
        num_bytes: The count, of all its instances.
    """

    protocol = "counted"
    num_bytes = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counted://here")))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return _Counted(open(path, mode))


class _Counted:
    def __init__(self, file: Any) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        data: bytes = self._file.read(size)
        CountedStore.num_bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


fsspec.register_implementation("counted", CountedStore, clobber=True)


if __name__ == "__main__":
    from latent_obs.cli import main

    status = main(sys.argv[2:])
    (Path(sys.argv[1]) / os.environ.get("RANK", "0")).write_text(str(CountedStore.num_bytes))
    sys.exit(status)

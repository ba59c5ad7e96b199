"""Writes Parquet files from tables, and folders of them, so that they appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from latent_obs.data.shards import METADATA_KEY
from latent_obs.data.storage import LOCK, NewFile, locked, refuse_url
from latent_obs.files import sync_folder, write_atomically

# What a folder in the making holds beside its files: what it will be.
_PLAN, _PLAN_FORMAT = ".plan.json", "latent_obs.plan"


class TableWriter:
    """Writes one Parquet file under a temporary name and commits it by renaming.

    As a context manager it commits at the end, and deletes what it wrote after an error.

    Args:
        path: The name of the committed file.
        schema: Its columns.
        metadata: JSON values, stored in the file under the key ``latent_obs``; ``rows`` is added.
        row_group: Rows in a row group, however many come at a time.
        options: Further arguments of ``ParquetWriter``.

    Raises:
        OSError: If the folder cannot be written.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, metadata: dict[str, Any], row_group: int, **options: Any
    ) -> None:
        self.path, self.rows = path, 0
        self._metadata, self._row_group = metadata, row_group
        self._waiting = schema.empty_table()
        self._file = NewFile(path)
        self._writer = pq.ParquetWriter(self._file.stream, schema, **options)

    def write(self, table: pa.Table) -> None:
        """Add rows; memory holds at most these and one row group."""
        self.rows += len(table)
        self._waiting = pa.concat_tables([self._waiting, table.cast(self._waiting.schema)])
        if ready := len(self._waiting) // self._row_group * self._row_group:
            self._writer.write_table(self._waiting.slice(0, ready), self._row_group)
            self._waiting = self._waiting.slice(ready).combine_chunks()

    def commit(self) -> None:
        """Finish the file, force it to disk and give it its name."""
        if len(self._waiting):
            self._writer.write_table(self._waiting, self._row_group)
        metadata = {**self._metadata, "rows": self.rows}
        self._writer.add_key_value_metadata({METADATA_KEY.decode(): json.dumps(metadata)})
        self._writer.close()
        self._file.commit()

    def abort(self) -> None:
        """Delete the unfinished file."""
        with contextlib.suppress(OSError, pa.ArrowException):
            self._writer.close()
        self._file.abort()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.commit()
        else:
            self.abort()


@contextlib.contextmanager
def staged_folder(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Yield a hidden folder beside ``out`` that becomes ``out`` when the block ends without an error.

    After an error or a kill the hidden folder stays, and the next block of the same plan gets it
    back with the files it has; one of another plan begins anew. A process that runs the block keeps
    others out of the hidden folder.

    Args:
        out: The folder to make; a link to it is followed.
        plan: JSON values that determine its content.

    Raises:
        FileExistsError: If ``out`` exists and is not empty, or something that was not made here has the
            name of the hidden folder.
        ValueError: If another process is making ``out``, or ``out`` is a URL, or the current folder or the
            top of a disk, in whose place nothing can be put.
        OSError: If the folder cannot be written.
    """
    refuse_url(out, "--out")
    out = out.resolve()
    _refuse_taken(out)
    if out == Path.cwd() or os.path.ismount(out):
        where = "the current folder" if out == Path.cwd() else "the top of a disk"
        raise ValueError(
            f"--out must be a folder that can be put in its place when it is whole, got {out}, {where}. "
            "Choose a folder in it."
        )
    staging = out.with_name(f".{out.name}.tmp")
    if staging.is_symlink() or (staging.exists() and not _is_ours(staging)):
        raise FileExistsError(
            f"{staging} is needed for the files of {out} until they are whole, but was not made for that. "
            "Move it away, or choose another --out."
        )
    staging.mkdir(parents=True, exist_ok=True)
    with locked(staging, out) as lock:
        if lock is not None and not _still_there(staging / LOCK, lock):
            _refuse_taken(out)  # another process finished it while this one waited
            raise FileNotFoundError(f"{staging} was taken away by another process. Run the command again.")
        note, text = staging / _PLAN, json.dumps({"format": _PLAN_FORMAT, "plan": plan}, sort_keys=True)
        if not (note.is_file() and note.read_text(encoding="utf-8") == text):
            for old in staging.iterdir():
                if old.is_dir() and not old.is_symlink():
                    shutil.rmtree(old)
                elif old.name != LOCK:
                    old.unlink()
            write_atomically(note, text.encode())
        yield staging
        sync_folder(staging)
        os.rename(staging, out)
        for name in (_PLAN, LOCK):  # only now: whoever is stopped before the renaming needs them again
            (out / name).unlink(missing_ok=True)
        sync_folder(staging.parent)


def _refuse_taken(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} exists already. Choose another --out, or delete it first.")


def _is_ours(staging: Path) -> bool:
    """Return whether a folder holds the plan that was written here, or nothing yet."""
    try:
        if all(path.name == LOCK or path.match(f".{_PLAN}*.tmp") for path in staging.iterdir()):
            return True
        note = json.loads((staging / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(note, dict) and note.get("format") == _PLAN_FORMAT


def _still_there(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False

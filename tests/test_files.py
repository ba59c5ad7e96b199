"""Files are whole or not there, on disk before they have their name, and no link leads elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from latent_obs.files import staged, write_atomically


def test_a_file_is_forced_to_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    fsync, rename = os.fsync, os.replace

    def seen_fsync(file: int) -> None:
        calls.append(("fsync", os.fstat(file).st_size))
        fsync(file)

    def seen_rename(source: Path, target: Path) -> None:
        assert re.fullmatch(r"\.a\.[0-9a-f]{8}\.tmp", source.name)
        calls.append(("rename", target.name))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_rename)
    write_atomically(tmp_path / "a", b"four")
    assert calls == [("fsync", 4), ("rename", "a")]
    assert os.listdir(tmp_path) == ["a"]


def test_files_that_cannot_all_be_written_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the second of them."""
    (tmp_path / "a").write_bytes(b"old")
    fsync, calls = os.fsync, []

    def full(file: int) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), staged({tmp_path / "a": b"new", tmp_path / "b": b""}):
        raise AssertionError("the block must not begin")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_two_that_write_one_file_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Whoever finishes last has written it."""
    with staged({tmp_path / "a": b"slow"}):
        write_atomically(tmp_path / "a", b"quick")
        assert (tmp_path / "a").read_bytes() == b"quick"
    assert (tmp_path / "a").read_bytes() == b"slow"
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_killed_process_left_is_removed_after_an_hour(tmp_path: Path) -> None:
    names = [".a.01234567.tmp", ".a.89abcdef.tmp", ".ab.01234567.tmp", ".a.tmp"]
    for name in names:
        (tmp_path / name).touch()
        if name != names[1]:
            os.utime(tmp_path / name, (0, 0))
    write_atomically(tmp_path / "a", b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names[1:], "a"])


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=re.escape(f"{tmp_path} is a folder, and a file was to be")):
        write_atomically(tmp_path, b"new")
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    """So does a device, such as /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_atomically(tmp_path / "pipe", b"new")
        assert os.read(reader, 9) == b"new"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_a_link_under_the_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / ".a.00000000.tmp").symlink_to(victim)
    write_atomically(tmp_path / "a", b"new")
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()


def test_a_link_that_appears_after_the_stale_one_was_removed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, unlink = tmp_path / "victim", Path.unlink
    victim.write_bytes(b"mine")

    def racing(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        path.symlink_to(victim)

    monkeypatch.setattr(Path, "unlink", racing)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert victim.read_bytes() == b"mine"

from __future__ import annotations

import logging
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.fs
import pytest
from moto.server import ThreadedMotoServer

from latent_obs.cli import main
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.curate import MergeConfig, SplitConfig, merge_frames, split_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import LatentsFolder
from latent_obs.data.lerobot import ExportLerobotConfig, export_lerobot
from latent_obs.data.show import ShowConfig, show_frames
from latent_obs.data.storage import (
    LOCK,
    NewFile,
    child,
    list_files,
    locked,
    name_of,
    num_bytes,
    parse_location,
    refuse_url,
    shown,
)
from latent_obs.files import write_atomically
from tests.data.test_curate import collection

QUICK = CollectConfig("tests.quick_env:Quick-v0", frames=900, workers=2, shard_rows=200)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a folder in a store with an S3 interface, served on loopback, and its options."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                patch.setenv(name, "testing")
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            host, port = server.get_host_and_port()
            options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
            store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://?{options}&allow_bucket_creation=true")
            store.create_dir("frames")
            yield f"s3://frames/NAME?{options}"
    finally:
        server.stop()


def rows(folder: FramesFolder) -> dict[str, Any]:
    found = {}
    for shard in folder.shards:
        with shard.open() as file:
            found[shard.name] = file.read().to_pydict()
    return found


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the collection gives in a local folder."""
    out = tmp_path_factory.mktemp("local")
    return rows(collect_frames(replace(QUICK, out=out), progress=False))


def test_an_object_store_holds_what_a_local_folder_would(bucket: str, local: dict[str, Any]) -> None:
    url = bucket.replace("NAME", "deep/pong")
    folder = collect_frames(replace(QUICK, out=url), progress=False)
    assert len(FramesFolder(url)) == len(folder) == 900
    assert rows(folder) == local
    assert folder.load().shape == (900, 64, 64, 3)
    assert next(folder.batches(32)).shape == (32, 64, 64, 3)
    assert sum(folder.episodes().values()) == 900
    assert folder.num_bytes > 0


def test_a_collection_in_an_object_store_resumes(bucket: str, local: dict[str, Any]) -> None:
    url = bucket.replace("NAME", "resumed")
    config = replace(QUICK, out=url)
    collect_frames(replace(config, frames=500), progress=False)
    store, path = pyarrow.fs.FileSystem.from_uri(url)
    lost = sorted(info.path for info in store.get_file_info(pyarrow.fs.FileSelector(path)))[0]
    store.delete_file(lost)
    assert rows(collect_frames(config, progress=False)) == local


def test_an_object_appears_only_when_it_is_committed(bucket: str) -> None:
    url = bucket.replace("NAME", "files")
    given_up = NewFile(child(url, "a.parquet"))
    given_up.stream.write(b"half")
    given_up.abort()
    del given_up
    whole = NewFile(child(url, "b.parquet"))
    whole.stream.write(b"whole")
    assert list_files(url, ".parquet") == []
    whole.commit()
    assert [name_of(file) for file in list_files(url, ".parquet")] == ["b.parquet"]


@pytest.mark.parametrize("trouble", ["Ctrl-C", "error"])
def test_half_an_object_is_never_published(trouble: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After Ctrl-C the upload is finished first; after an error in it there is no object."""
    url = f"memory://{trouble}/frames"
    new = NewFile(child(url, "a.parquet"))
    new.stream.write(b"whole")

    def copy(source: Any, target: Any, size: int) -> None:
        target.write(source.read(2))
        if trouble == "error":
            raise OSError("connection lost")
        os.kill(os.getpid(), signal.SIGINT)
        target.write(source.read())

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt if trouble == "Ctrl-C" else OSError):
            new.commit()
    finally:
        signal.signal(signal.SIGINT, before)
        new.abort()
    sizes = [num_bytes(file) for file in list_files(url, ".parquet")]
    assert sizes == ([len(b"whole")] if trouble == "Ctrl-C" else [])


def test_a_store_that_does_not_answer_is_one_clear_error(local: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no-such-scheme://x/y cannot be used"):
        collect_frames(replace(QUICK, out="no-such-scheme://x/y"), progress=False)


def test_a_bucket_that_does_not_exist_is_named(bucket: str) -> None:
    url = bucket.replace("frames/NAME", "nowhere/frames")
    with pytest.raises(OSError, match="nowhere"):
        collect_frames(replace(QUICK, out=url), progress=False)


def test_what_only_fsspec_knows_works_too(local: dict[str, Any]) -> None:
    """Its memory is that of one process, hence one worker."""
    config = replace(QUICK, out="memory://somewhere/frames", workers=1)
    collect_frames(replace(config, frames=300), progress=False)
    folder = collect_frames(config, progress=False)
    assert len(folder) == 900
    assert isinstance(folder.path, str)


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    folder = collect_frames(replace(QUICK, out=f"file://{tmp_path}/a%20b", workers=1), progress=False)
    assert folder.path == tmp_path / "a b"
    assert len(FramesFolder(str(tmp_path / "a b"))) == 900


def test_an_empty_folder_is_told_from_none(bucket: str, tmp_path: Path) -> None:
    url = bucket.replace("NAME", "nothing")
    for location, message in (
        (url, "holds no frames"),
        (tmp_path, "holds no frames"),
        (tmp_path / "x", "no frames folder"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            FramesFolder(location)


def test_locations_are_joined_and_shown() -> None:
    url = "s3://key:secret@bucket/a/b?endpoint_override=localhost:1"
    assert child(url, "c.parquet") == "s3://key:secret@bucket/a/b/c.parquet?endpoint_override=localhost:1"
    assert name_of(child(url, "c.parquet")) == "c.parquet"
    assert "secret" not in shown(url)
    assert parse_location("frames") == Path("frames")
    for wrong in ("s3://", "file://host/frames"):
        with pytest.raises(ValueError, match=r"must|URL"):
            parse_location(wrong)


@pytest.mark.filterwarnings("ignore")
def test_the_password_in_a_url_is_neither_printed_nor_written_into_a_card(
    tmp_path: Path, encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, card = "memory://key:secret@bucket/frames", str(tmp_path / "card")
    collect_frames(replace(QUICK, out=url, frames=300, workers=1), progress=False)
    assert main(["frames", "info", url]) == 0
    assert main(["frames", "check", url]) == 0
    assert main(["frames", "show", url, "--episode", "7", "--out", str(tmp_path / "shown")]) == 1
    assert main(["evaluate", str(encoder), "--frames", url, "--out", card]) == 0
    told = capsys.readouterr()
    texts = [told.out, told.err, *(path.read_text() for path in (tmp_path / "card").glob("card.*"))]
    assert len(texts) == 4
    for text in texts:
        assert "memory://bucket/frames" in text
        assert "secret" not in text


@pytest.mark.filterwarnings("ignore:The encoder .* was trained on")
def test_a_url_is_refused_where_only_a_folder_on_this_machine_will_do(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would become a folder named s3: in the current one. No error shows the password."""
    pong, tennis = (collection(tmp_path / name, name).path for name in ("pong", "tennis"))
    monkeypatch.chdir(tmp_path)
    url = "s3://key:secret@bucket/x"
    out = Path(url)
    for make in (
        lambda: merge_frames(MergeConfig((pong, tennis), out), progress=False),
        lambda: split_frames(SplitConfig(pong, out), progress=False),
        lambda: export_lerobot(ExportLerobotConfig(pong, out), progress=False),
        lambda: encode_frames(EncodeConfig(pong, str(encoder), out), progress=False),
        lambda: show_frames(ShowConfig(pong, out)),
        lambda: LatentsFolder(url),
    ):
        with pytest.raises(ValueError, match="must be a folder on this machine, got the URL s3://bucket/x"):
            make()
    assert sorted(os.listdir(tmp_path)) == ["pong", "tennis"]
    refuse_url("C:/frames", "--out")


def test_a_link_under_a_temporary_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever can write to the folder could have another file overwritten otherwise."""
    monkeypatch.setattr(os, "urandom", bytes)
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    out = tmp_path / "frames"
    out.mkdir()
    for name in (".part-000-00000.parquet.tmp", ".config.json.00000000.tmp"):
        (out / name).symlink_to(mine)
    new = NewFile(out / "part-000-00000.parquet")
    new.stream.write(b"frames")
    new.commit()
    write_atomically(out / "config.json", b"{}")
    assert mine.read_text() == "years of work"
    assert (out / "part-000-00000.parquet").read_bytes() == b"frames"
    (out / LOCK).symlink_to(mine)
    with pytest.raises(OSError, match="cannot be written"), locked(out):
        pass
    assert mine.read_text() == "years of work"


def test_a_file_is_forced_to_disk_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut could leave an empty file under the name of a whole one."""
    calls: list[str] = []
    for name in ("fsync", "replace"):
        plain = getattr(os, name)

        def traced(*arguments: Any, name: str = name, plain: Any = plain) -> Any:
            calls.append(name)
            return plain(*arguments)

        monkeypatch.setattr(os, name, traced)
    new = NewFile(tmp_path / "a.parquet")
    new.stream.write(b"frames")
    assert os.listdir(tmp_path) == [".a.parquet.tmp"], "a kill here leaves nothing that readers see"
    new.commit()
    assert calls == ["fsync", "replace", "fsync"], "the file, its name, and the folder that holds the name"
    calls.clear()
    write_atomically(tmp_path / "config.json", b"{}")
    assert calls[:2] == ["fsync", "replace"]
    assert sorted(os.listdir(tmp_path)) == ["a.parquet", "config.json"]

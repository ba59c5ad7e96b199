"""Real shards, damaged in each way that a disk, a network or a person can."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_obs.cli import main
from latent_obs.data.check import check_frames, frames_info
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import METADATA_KEY, read_shard, writer_options
from latent_obs.data.show import ShowConfig, show_frames
from tests.data.test_curate import collection
from tests.data.test_lerobot import of_actions

BAD = "part-000-00001.parquet"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The second of two shards of three episodes of 60 frames."""
    return Path(collection(tmp_path / "frames", "Pong").path) / BAD


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table], **metadata: Any) -> None:
    """Write a shard again with other rows or other metadata."""
    table = change(pq.read_table(path))
    stored = {**read_shard(path).metadata, **metadata}
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(stored)})
    pq.write_table(table, path, row_group_size=64, **writer_options(table.schema))


def swap(table: pa.Table, name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    field = table.schema.field(name)
    column = pa.array(change(table[name].to_pylist()), field.type)
    return table.set_column(table.schema.get_field_index(name), field, column)


def put(values: list[Any], row: int, value: Any) -> list[Any]:
    values[row] = value
    return values


def test_a_whole_folder_has_no_problems(path: Path) -> None:
    assert check_frames(path.parent, progress=False) == {}


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def damage_page(path: Path) -> None:
    """One bit in the middle of the frames."""
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(bytes(data))


def damage_zeros(path: Path) -> None:
    """A hole, as an unfinished download leaves."""
    data = bytearray(path.read_bytes())
    data[1000:5000] = bytes(4000)
    path.write_bytes(bytes(data))


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_column(path: Path) -> None:
    rewrite(path, lambda t: t.drop_columns(["reward"]))


def damage_type(path: Path) -> None:
    rewrite(path, lambda t: t.set_column(2, "step", t["step"].cast(pa.int64())))


def damage_size(path: Path) -> None:
    small = pa.array([b"x" * 100] * 180, pa.binary(100))
    rewrite(path, lambda t: t.set_column(0, pa.field("frame", small.type, nullable=False), small))


def damage_metadata(path: Path) -> None:
    table = pq.read_table(path).replace_schema_metadata(None)
    pq.write_table(table, path)


def damage_other_collection(path: Path) -> None:
    rewrite(path, lambda t: t, seed=7)


def damage_frame_spec(path: Path) -> None:
    rewrite(path, lambda t: t, frame_spec={"crop": [0, 64, 0, 64], "interpolation": "area"})


def damage_number(path: Path) -> None:
    rewrite(path, lambda t: t, shard=9)


def damage_rows(path: Path) -> None:
    rewrite(path, lambda t: t.slice(0, 120))


def damage_missing_frame(path: Path) -> None:
    rewrite(path, lambda t: pa.concat_tables([t.slice(0, 100), t.slice(101)]), rows=179)


def damage_missing_begin(path: Path) -> None:
    rewrite(path, lambda t: t.slice(1), rows=179)


def damage_order(path: Path) -> None:
    rewrite(path, lambda t: t.take([*range(70), 71, 70, *range(72, 180)]))


def damage_pieces(path: Path) -> None:
    """The first episode comes again behind the last one."""
    rewrite(path, lambda t: pa.concat_tables([t, t.slice(0, 60)]), rows=240)


def damage_duplicate(path: Path) -> None:
    """An episode that the other shard has."""
    rewrite(path, lambda t: swap(t, "episode", lambda e: [number % 10**5 for number in e]))


def damage_end(path: Path) -> None:
    rewrite(path, lambda t: swap(t, "truncated", lambda v: put(v, 30, True)))


def damage_action(path: Path) -> None:
    rewrite(path, lambda t: swap(t, "action", lambda v: put(v, 30, None)))


def damage_null_frame(path: Path) -> None:
    """A null frame has bytes too: those of whatever was in memory."""
    table = pq.read_table(path)
    column = pa.array(put(table["frame"].to_pylist(), 30, None), pa.binary(12_288))
    rewrite(path, lambda t: t.set_column(0, pa.field("frame", column.type), column))


def damage_wide_frame(path: Path) -> None:
    """One byte more: from the second frame on, all would be read shifted."""
    wide = pa.array([b"x" * 12_289] * 180, pa.binary(12_289))
    rewrite(path, lambda t: t.set_column(0, pa.field("frame", wide.type, nullable=False), wide))


def damage_null_episode(path: Path) -> None:
    column = pa.array(put(pq.read_table(path)["episode"].to_pylist(), 30, None), pa.int64())
    rewrite(path, lambda t: t.set_column(1, pa.field("episode", column.type), column))


def damage_frame_missing(path: Path) -> None:
    rewrite(path, lambda t: t.drop_columns(["frame"]))


def damage_big_row_group(path: Path) -> None:
    """A few kilobytes that would be 246 MB in memory."""
    rows = 20_000
    frames = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(12_288), rows, [None, pa.py_buffer(bytes(rows * 12_288))]
    )
    table = pq.read_table(path)
    columns = [frames, *(pa.array([1] * rows, f.type) for f in list(table.schema)[1:5])]
    columns += [pa.array([False] * rows)] * 2
    stored = {METADATA_KEY: json.dumps(read_shard(path).metadata)}
    table = pa.Table.from_arrays(columns, schema=table.schema).replace_schema_metadata(stored)
    pq.write_table(table, path, row_group_size=rows, **writer_options(table.schema))


def damage_pipe(path: Path) -> None:
    """Whoever opens it waits for a writer for ever."""
    path.unlink()
    os.mkfifo(path)


def damage_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def claims(**metadata: Any) -> Callable[[Path], None]:
    """Change what a shard says of itself; ``None`` takes a field away."""

    def damage(path: Path) -> None:
        stored = {**read_shard(path).metadata, **metadata}
        stored = {name: value for name, value in stored.items() if value is not None}
        table = pq.read_table(path).replace_schema_metadata({METADATA_KEY: json.dumps(stored)})
        pq.write_table(table, path, row_group_size=64, **writer_options(table.schema))

    return damage


def read_all(path: Path) -> None:
    folder = FramesFolder(path)
    folder.episodes()
    folder.load()


HOSTILE = [
    (damage_null_frame, "The column frame of a shard holds nulls|holds null frames"),
    (damage_wide_frame, r"the column frame is fixed_size_binary\[12289\]"),
    (damage_null_episode, "must not be null|holds nulls"),
    (damage_frame_missing, "the column frame is missing"),
    (damage_big_row_group, "row groups must hold 1 to 16,384 rows"),
    (damage_pipe, "is not a regular file"),
    (damage_directory, "is not a regular file"),
    (claims(version=None), "does not say which version"),
    (claims(version=2), "has version 2"),
    (claims(source=None), "its source must be an object"),
    (claims(source=[]), "its source must be an object"),
    (claims(source={"env_id": 3}), "the env_id of its source must be a str"),
    (claims(frame_spec=None), "its frame_spec must be an object"),
    (claims(shard=10**8), "its shard must be an integer from 0 to 1,000,000"),
    (claims(shard="1"), "its shard must be an integer"),
    (claims(worker=10**9), "its worker must be an integer from 0 to 99,999"),
    (claims(workers=10**9), "its workers must be from 1 to 100,000"),
    (claims(rows=-1), "its rows must be an integer"),
    (claims(complete="yes"), "its complete must be true or false"),
    (claims(seed=[1]), "its seed must be an integer"),
]


@pytest.mark.parametrize(("damage", "reason"), HOSTILE)
def test_a_hostile_shard_is_refused_by_checking_and_by_reading(
    damage: Callable[[Path], None], reason: str, path: Path
) -> None:
    damage(path)
    problems = check_frames(path.parent, progress=False)
    assert any(re.search(reason, line) for line in problems[BAD]), problems
    with pytest.raises(ValueError, match=reason):
        read_all(path.parent)


def test_a_shard_of_a_high_number_lacks_the_ones_before_it_in_one_line(path: Path) -> None:
    rewrite(path, lambda t: t, shard=10**6)
    path.rename(path.with_name("part-000-1000000.parquet"))
    problems = check_frames(path.parent, progress=False)
    assert problems == {"part-000-00001.parquet": ["it is missing, as are the 999,998 after it"]}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncate, "not a readable Parquet file"),
        (damage_page, "row group 0 is corrupt"),
        (damage_zeros, "row group 0 is corrupt"),
        (damage_empty, "not a readable Parquet file"),
        (damage_column, "the column reward is missing"),
        (damage_type, "the column step is int64 and not int32"),
        (damage_size, r"the column frame is fixed_size_binary\[100\]"),
        (damage_metadata, "not a shard"),
        (damage_other_collection, "another collection: seed 7 and not 0|seed 0 and not 7"),
        (damage_frame_spec, "its frame spec is"),
        (damage_number, r"it was written as part-000-00009\.parquet"),
        (damage_rows, "holds 120 frames, its metadata says 180"),
        (damage_missing_frame, "row 100: a step does not follow"),
        (damage_missing_begin, "row 0: an episode does not begin with step 0"),
        (damage_order, "row 70: a step does not follow"),
        (damage_pieces, "comes in pieces"),
        (damage_duplicate, r"its episode 0 is also in part-000-00000\.parquet"),
        (damage_end, "row 31: an episode goes on after its end"),
        (damage_action, "row 30: an action must be null"),
    ],
)
def test_every_damage_is_named_with_its_shard(
    damage: Callable[[Path], None], reason: str, path: Path
) -> None:
    damage(path)
    problems = check_frames(path.parent, progress=False)
    assert BAD in problems or "collection" in reason or "spec" in reason
    found = [line for lines in problems.values() for line in lines]
    assert any(re.search(reason, line) for line in found), found


def test_every_bad_shard_is_named_not_only_the_first(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, damage in ((0, damage_page), (1, damage_truncate)):
        damage(path.with_name(f"part-000-{number:05d}.parquet"))
    assert main(["frames", "check", str(path.parent)]) == 1
    printed = capsys.readouterr()
    assert "part-000-00000.parquet: row group 0 is corrupt" in printed.out
    assert "part-000-00001.parquet: is not a readable" in printed.out
    assert "2 bad shards" in printed.err


def test_actions_of_several_types_are_counted_apart(tmp_path: Path) -> None:
    pong = collection(tmp_path / "pong", "Pong")
    car = of_actions(tmp_path / "car", pa.list_(pa.float32(), 2), [[0.5, -1], [0, 2]])
    one = of_actions(tmp_path / "one", pa.list_(pa.float32(), 1), [[0.5]])
    config = MergeConfig((pong.path, car.path, one.path), tmp_path / "all")
    info = frames_info(merge_frames(config, progress=False))
    assert list(info["actions"].values()) == [
        frames_info(pong)["actions"],
        {"mean": [0.25, 0.5], "min": [0, -1], "max": [0.5, 2]},
        {"mean": [0.5], "min": [0.5], "max": [0.5]},
    ]
    assert main(["frames", "info", str(tmp_path / "all")]) == 0


def test_a_worker_without_a_share_of_the_frames_lacks_nothing(path: Path) -> None:
    """Three frames of four workers."""
    path.unlink()
    for worker in (2, 1, 0):
        first = path.with_name(f"part-{worker:03d}-00000.parquet")
        if worker:
            shutil.copy(path.with_name("part-000-00000.parquet"), first)
        one = functools.partial(pa.Table.slice, offset=60 * worker, length=1)
        rewrite(first, one, workers=4, worker=worker, rows=1)
    assert check_frames(path.parent, progress=False) == {}


def test_a_missing_shard_is_named(path: Path) -> None:
    path.with_name("part-000-00000.parquet").unlink()
    assert check_frames(path.parent, progress=False) == {"part-000-00000.parquet": ["it is missing"]}


def test_a_flipped_bit_anywhere_in_the_frames_is_noticed(path: Path) -> None:
    """Checksums see what zstd does not; only the few bytes of a page's header have none."""
    column = pq.read_metadata(path).row_group(0).column(0)
    whole, rng, missed = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(30):
        data = bytearray(whole)
        at = column.data_page_offset + int(rng.integers(column.total_compressed_size))
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(data))
        missed += not check_frames(path.parent, progress=False)
    assert missed <= 1


def test_training_refuses_a_flipped_bit_too(path: Path) -> None:
    damage_page(path)
    with pytest.raises(OSError, match="CRC checksum"):
        FramesFolder(path.parent).load()


def test_info_counts_what_is_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = frames_info(FramesFolder(path.parent))
    assert (info["frames"], info["episodes"]) == (360, 6)
    assert info["episode_length"] == {"mean": 60, "min": 60, "max": 60}
    assert info["episode_return"]["mean"] == pytest.approx(sum(range(60)) / 7)
    assert (info["terminated"], info["truncated"]) == (6, 0)
    assert sum(info["actions"].values()) == 354
    assert info["collections"][0]["policy"] == "random"
    assert main(["frames", "info", str(path.parent), "--shards"]) == 0
    assert BAD in capsys.readouterr().out


@pytest.mark.parametrize("clip", ["gif", "mp4"])
def test_show_draws_a_sheet_and_an_episode(path: Path, tmp_path: Path, clip: Any) -> None:
    import cv2

    sheet, film = show_frames(ShowConfig(path.parent, tmp_path / "shown", 10, clip=clip, episode=100_001))
    picture = cv2.imread(str(sheet))
    assert picture is not None
    assert picture.shape[1] > 800
    assert film.name == f"episode-100001.{clip}"
    video = cv2.VideoCapture(str(film))
    first, count = video.read()[1], 1
    while video.read()[0]:
        count += 1
    assert count == 60
    assert first is not None
    assert first.shape == (256, 256, 3)
    frame = FramesFolder(path.parent).load([100_001], 1)[0].repeat(4, 0).repeat(4, 1)[:, :, ::-1]
    assert np.corrcoef(first.ravel(), frame.ravel())[0, 1] > 0.7
    with pytest.raises(FileExistsError, match="exists already"):
        show_frames(ShowConfig(path.parent, tmp_path / "shown", clip=clip, episode=100_001))


def test_an_unknown_episode_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no episode 5; it has 6"):
        show_frames(ShowConfig(path.parent, tmp_path / "shown", episode=5))
    assert not (tmp_path / "shown").exists()

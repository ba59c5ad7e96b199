from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray

from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.latents import LatentsFolder
from tests.data.test_folder import write_shard

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and processes to the garbage collector, and announces its own future.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        root = str(Path(__file__).parents[2])
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])))
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of 1,000 frames with a moving dot."""
    out = tmp_path_factory.mktemp("frames")
    pixels = np.zeros((1000, 64, 64, 3), np.uint8)
    pixels[np.arange(1000), np.arange(1000) % 64, np.arange(1000) // 64] = 255
    for shard in range(12):
        episodes = [shard * 10**5 + i // 500 for i in range(1000)]
        write_shard(out / f"part-000-{shard:05d}.parquet", episodes, pixels // (shard + 1))
    return out


@pytest.fixture(scope="module")
def local(frames: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process encodes."""
    config = EncodeConfig(frames, str(encoder), tmp_path_factory.mktemp("latents") / "local", num_threads=1)
    return tables(encode_frames(config, progress=False))


def tables(latents: LatentsFolder) -> dict[str, Any]:
    return {file.name: (pq.read_table(file), pq.read_metadata(file).metadata) for file in latents.files}


def test_tasks_fill_a_folder_as_one_process_does(
    cluster: None, frames: Path, encoder: Path, local: dict[str, Any], tmp_path: Path
) -> None:
    config = EncodeConfig(frames, str(encoder), tmp_path / "latents", ray=True)
    assert tables(encode_frames(config, progress=False)) == local
    assert tables(encode_frames(replace(config, ray=False), progress=False)) == local, "it is kept"


def test_a_task_that_is_killed_is_run_again(
    cluster: None, frames: Path, encoder: Path, local: dict[str, Any], tmp_path: Path
) -> None:
    """Its process is killed once a shard is begun; Ray runs it again, and nothing is missing."""
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            if not any(
                path.name.endswith(("parquet", "parquet.tmp")) for path in tmp_path.glob(".latents.tmp/*")
            ):
                continue
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if path.read_bytes().startswith(b"ray::_task"):
                        killed.append(int(path.parent.name))
                        os.kill(killed[-1], signal.SIGKILL)
                        return
                except OSError:
                    continue

    killer = threading.Thread(target=kill)
    killer.start()
    latents = encode_frames(
        EncodeConfig(frames, str(encoder), tmp_path / "latents", ray=True), progress=False
    )
    killer.join()
    assert killed
    assert tables(latents) == local
    assert sorted(os.listdir(latents.path)) == sorted(local), "what the killed task had begun is gone"


def test_a_damaged_shard_is_one_clear_error(
    cluster: None, frames: Path, encoder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "frames"
    damaged.mkdir()
    for path in sorted(frames.iterdir()):
        (damaged / path.name).write_bytes(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    (damaged / path.name).write_bytes(bytes(data))
    config = EncodeConfig(damaged, str(encoder), tmp_path / "latents", ray=True)
    with pytest.raises(OSError, match=r"page header|CRC checksum"):
        encode_frames(config, progress=False)
    assert not config.out.exists()


def test_without_ray_the_cure_is_named(
    frames: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"\[ray\]|ray"):
        encode_frames(EncodeConfig(frames, str(encoder), tmp_path / "latents", ray=True), progress=False)

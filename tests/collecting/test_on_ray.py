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

import pytest
import ray

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.trial import CollectError
from latent_obs.data.folder import FramesFolder
from tests.data.test_storage import bucket, rows

__all__ = ["bucket"]

QUICK = CollectConfig(
    "tests.quick_env:Quick-v0", frames=3000, workers=2, shard_rows=300, env_kwargs={"pause": 0.001}
)

pytestmark = [
    pytest.mark.slow,
    # Ray leaves sockets and processes to the garbage collector, and announces its own future.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[None]:
    """A cluster of this machine; it starts after the store, so that tasks know its credentials."""
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
def local(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What worker processes collect."""
    return rows(collect_frames(replace(QUICK, out=tmp_path_factory.mktemp("local")), progress=False))


def test_tasks_fill_a_folder_as_processes_do(cluster: None, local: dict[str, Any], tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, ray=True)
    collect_frames(replace(config, frames=1700), progress=False)
    assert rows(collect_frames(config, progress=False)) == local


def test_tasks_fill_an_object_store(cluster: None, bucket: str, local: dict[str, Any]) -> None:
    config = replace(QUICK, out=bucket.replace("NAME", "ray"), ray=True)
    collect_frames(replace(config, frames=1700), progress=False)
    assert rows(collect_frames(config, progress=False)) == local


def test_a_task_that_is_killed_goes_on_elsewhere(cluster: None, bucket: str, local: dict[str, Any]) -> None:
    """Its process is killed once a shard is there; Ray runs it again, and nothing is missing."""
    url = bucket.replace("NAME", "killed")
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            try:
                if not FramesFolder(url).shards:
                    continue
            except FileNotFoundError:
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
    folder = collect_frames(replace(QUICK, out=url, ray=True), progress=False)
    killer.join()
    assert killed
    assert rows(folder) == local


def test_an_env_that_breaks_in_a_task_is_one_clear_error(cluster: None, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, ray=True, env_kwargs={"break_after": 700})
    with pytest.raises(CollectError, match=r"worker \d \(part-00\d-00002.parquet\): RuntimeError: the cable"):
        collect_frames(config, progress=False)
    assert all(shard.complete for shard in FramesFolder(tmp_path).shards)


@pytest.mark.parametrize("trouble", ["hang_after", "hold_after"])
def test_a_task_whose_env_hangs_is_ended_and_reported(trouble: str, cluster: None, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, ray=True, env_kwargs={trouble: 700}, step_timeout=3)
    with pytest.raises(CollectError, match=r"worker \d \(part-00\d-00002.parquet\) was ended: its environ"):
        collect_frames(config, progress=False)


def test_tasks_with_a_time_limit_collect_the_same(
    cluster: None, local: dict[str, Any], tmp_path: Path
) -> None:
    config = replace(QUICK, out=tmp_path, ray=True, step_timeout=60)
    assert rows(collect_frames(config, progress=False)) == local


def test_an_env_that_exits_in_a_task_is_an_error(cluster: None, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, ray=True, env_kwargs={"exit_after": 700})
    with pytest.raises(CollectError, match=r"worker \d \(part-00\d-00002.parquet\): .* sys.exit\(0\)"):
        collect_frames(config, progress=False)


def test_without_ray_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"needs ray, which is not installed.*\[ray\]"):
        collect_frames(replace(QUICK, out=tmp_path, ray=True), progress=False)

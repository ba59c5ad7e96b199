"""What a collection survives: kills, crowding, folders that cannot be written, length."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.processes import ctrl_c_held_back, run_processes
from latent_obs.collecting.trial import CollectError
from latent_obs.collecting.worker import Plan, Pulse, Tally, collect_share, look_again
from latent_obs.data import storage
from latent_obs.data.folder import FramesFolder
from latent_obs.data.provenance import Collection
from latent_obs.data.shards import read_shard
from latent_obs.progress import stop_on_signals
from tests.conftest import wait_for

ROOT = Path(__file__).parents[1]
QUICK = CollectConfig("tests.quick_env:Quick-v0", frames=6000, workers=2, shard_rows=500)
SLOWED = replace(QUICK, env_kwargs={"pause": 0.0002})


def start(config: CollectConfig, **options: Any) -> subprocess.Popen[str]:
    """Run the command line in a process of its own."""
    code = f"""
import sys
from pathlib import Path, PosixPath
from latent_obs.collecting.collect import CollectConfig, collect_frames
if __name__ == "__main__":
    collect_frames({config!r}, progress=False)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, **options
    )
    STARTED.add(process.pid)
    return process


STARTED: set[int] = set()  # collections and workers


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    """A test that fails must not leave a hanging environment behind."""
    yield
    for parent in list(STARTED):
        children(parent)
    for pid in STARTED:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(sys.executable.encode()):
                os.kill(pid, signal.SIGKILL)
    STARTED.clear()


def children(pid: int) -> list[int]:
    """Worker processes of a collection, without the resource tracker that spawn starts."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"spawn_main" in (path.parent / "cmdline").read_bytes():
                found.append(int(path.parent.name))
        except (OSError, ValueError):
            continue  # it ended meanwhile
    STARTED.update(found)
    return found


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def contents(folder: Path) -> dict[str, bytes]:
    """The shards, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("straight")
    collect_frames(replace(SLOWED, out=out), progress=False)
    return contents(out)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["parent", "worker", "both"])
@pytest.mark.parametrize("shards", [0, 1, 4])
def test_killing_at_any_moment_loses_nothing(
    victim: str, shards: int, straight: dict[str, bytes], tmp_path: Path
) -> None:
    """The rerun gives the same bytes, and may begin at once: the lock waits for the orphans."""
    config = replace(SLOWED, out=tmp_path)
    process = start(config)
    wait_for(lambda: children(process.pid) and len(contents(tmp_path)) >= shards)
    workers = children(process.pid)
    for pid in {"parent": [process.pid], "worker": workers[-1:], "both": [*workers, process.pid]}[victim]:
        os.kill(pid, signal.SIGKILL)
    _, messages = process.communicate(timeout=300)
    if victim == "worker":
        assert "died with exit code -9" in messages
        assert "run the same command again" in messages
    collect_frames(config, progress=False)
    wait_for(lambda: not any(map(alive, workers)), 30)
    assert contents(tmp_path) == straight
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.parametrize("trouble", ["hang_after", "hold_after"])
def test_workers_end_when_the_parent_is_killed_even_if_the_env_hangs(trouble: str, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, env_kwargs={trouble: 1200})
    process = start(config)
    wait_for(lambda: len(contents(tmp_path)) >= 4)  # two each; both hang in their third
    workers = children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=300)
    wait_for(lambda: not any(map(alive, workers)), 30)
    # One that did not hang yet has committed what it had of its third.
    assert all(read_shard(path).rows for path in tmp_path.glob("*.parquet"))


def command(config: CollectConfig, **options: Any) -> subprocess.Popen[str]:
    """Run ``latent-obs collect``, which gives even one worker a process of its own."""
    words: list[Any] = ["--out", config.out, "--frames", config.frames, "--workers", config.workers]
    words += ["--shard-rows", config.shard_rows, "--env-kwargs", json.dumps(config.env_kwargs)]
    if config.step_timeout is not None:
        words += ["--step-timeout", config.step_timeout]
    line = [sys.executable, "-m", "latent_obs", "collect", config.env_id, *map(str, words)]
    process = subprocess.Popen(line, cwd=ROOT, text=True, **options)
    STARTED.add(process.pid)
    return process


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("trouble", ["hang_after", "hold_after"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_a_collection_whose_env_hangs(
    how: signal.Signals, trouble: str, workers: int, tmp_path: Path
) -> None:
    out, told = tmp_path / "frames", tmp_path / "told"
    config = replace(QUICK, out=out, workers=workers, env_kwargs={trouble: 700})
    with told.open("w") as stderr:
        process = command(config, stderr=stderr)
    wait_for(lambda: len(contents(out)) >= workers)  # one each; all hang in their second
    at_work = children(process.pid)
    assert len(at_work) == workers
    time.sleep(1)
    process.send_signal(how)
    wait_for(lambda: "Stopping: what is begun is being finished" in told.read_text(), 60)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(how)
    assert process.wait(timeout=60) == 130
    messages = told.read_text()
    assert "Ending at once" in messages
    assert "Traceback" not in messages
    assert not any(map(alive, at_work))
    assert len(contents(out)) == workers


def test_the_second_signal_ends_a_worker_in_the_calling_process(tmp_path: Path) -> None:
    process = start(replace(QUICK, out=tmp_path, workers=1, env_kwargs={"hang_after": 700}))
    wait_for(lambda: contents(tmp_path))
    time.sleep(1)
    assert children(process.pid) == []
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert messages.index("Stopping") < messages.index("Ending at once") < messages.index("KeyboardInterrupt")
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_signal_in_the_last_moment_of_the_trial_is_heeded(tmp_path: Path) -> None:
    out = tmp_path / "frames"
    config = replace(QUICK, out=out, env_kwargs={"interrupt": str(tmp_path / "sent")})
    with pytest.raises(KeyboardInterrupt):
        collect_frames(config, progress=False, in_process=False)
    assert (tmp_path / "sent").exists()
    assert contents(out) == {}


def test_ctrl_c_while_a_process_is_started_reaches_the_parent_alone() -> None:
    with stop_on_signals() as stop:
        with ctrl_c_held_back():
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.5,))
            child.start()
            os.kill(os.getpid(), signal.SIGINT)
            assert child.pid is not None
            os.kill(child.pid, signal.SIGINT)
        wait_for(stop.is_set)  # the kernel gives the signal to any thread, such as PyTorch's
        child.join()
        assert child.exitcode == 0


def test_signals_in_quick_succession_count_as_one(capfd: pytest.CaptureFixture[str]) -> None:
    """A launcher passes on the Ctrl-C that the terminal has sent to everyone."""
    with stop_on_signals() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.is_set()
        time.sleep(0.6)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    told = capfd.readouterr().err
    assert told.count("Stopping") == told.count("Ending at once") == 1


@pytest.mark.parametrize(("trouble", "workers"), [("hang_after", 2), ("hold_after", 1)])
def test_a_step_that_takes_too_long_is_ended_and_reported(trouble: str, workers: int, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, workers=workers, env_kwargs={trouble: 700}, step_timeout=3)
    with pytest.raises(CollectError) as failure:
        collect_frames(config, progress=False)
    assert "worker 0 (part-000-00001.parquet) was ended: its environment's step took" in str(failure.value)
    assert "longer than the 3 s of --step-timeout" in str(failure.value)
    assert len(contents(tmp_path)) == workers


@pytest.mark.parametrize("trouble", ["hang_in", "hold_in"])
@pytest.mark.parametrize("call", ["constructor", "reset"])
def test_an_env_that_hangs_from_the_start_is_ended_and_the_call_named(
    call: str, trouble: str, tmp_path: Path
) -> None:
    """It hangs when it is tried out, before any worker starts."""
    out = tmp_path / "frames"
    config = replace(QUICK, out=out, env_kwargs={trouble: call}, step_timeout=3)
    with pytest.raises(CollectError, match=f"its {call} took longer than the 3 s of --step-timeout"):
        collect_frames(config, progress=False)
    assert not out.exists()


@pytest.mark.parametrize("call", ["constructor", "reset"])
def test_a_worker_whose_env_hangs_from_the_start_is_ended(call: str, tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, env_kwargs={"hang_in": call}, step_timeout=3)
    plan = Plan(config, collection_of(config), tmp_path, 0, 3000, {})
    (failure,) = run_processes([plan], lambda *_: None, threading.Event())
    assert failure.startswith("worker 0 (")
    assert f"its environment's {call} took longer than the 3 s of --step-timeout" in failure


@pytest.mark.parametrize("trouble", ["hang_in", "hold_in"])
@pytest.mark.parametrize("call", ["constructor", "reset"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_env_that_hangs_from_the_start(
    how: signal.Signals, call: str, trouble: str, tmp_path: Path
) -> None:
    told, server = tmp_path / "told", tmp_path / "server"
    config = replace(QUICK, out=tmp_path / "frames", env_kwargs={trouble: call, "server": str(server)})
    with told.open("w") as stderr:
        process = command(config, stderr=stderr)
    wait_for(lambda: server.exists() and server.read_text().endswith("\n"))
    time.sleep(1)
    process.send_signal(how)
    assert process.wait(timeout=60) == 130
    messages = told.read_text()
    assert re.search(rf"being tried out.* its {call} has not returned for \d+ s", messages)
    assert "Traceback" not in messages
    wait_for(lambda: not alive(int(server.read_text())), 60)


def test_what_is_wrong_with_an_env_is_said_as_it_was_in_the_calling_process(tmp_path: Path) -> None:
    """Errors and warnings of the process that tries it out arrive."""
    config = replace(QUICK, out=tmp_path / "frames", step_timeout=60)
    with pytest.raises(ValueError, match="refuses env_kwargs"):
        collect_frames(replace(config, env_kwargs={"no": 1}), progress=False)
    with pytest.raises(CollectError, match=r"OddError: 3 and 4 \(in .*test_robustness.py, line \d+\)"):
        collect_frames(replace(config, wrapper="tests.test_robustness:odd"), progress=False)
    with pytest.raises(CollectError, match="ended the program with sys\\.exit"):
        collect_frames(replace(config, wrapper="sys:exit"), progress=False)
    with pytest.raises(CollectError, match=r"died with exit code 1\.$"):
        collect_frames(replace(config, wrapper="tests.test_robustness:vanishing"), progress=False)
    with pytest.warns(UserWarning, match="it is odd"):
        collect_frames(replace(config, frames=20, wrapper="tests.test_robustness:warning"), progress=False)


class OddError(Exception):
    """One that cannot be unpickled."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def odd(_: Any) -> Any:
    raise OddError(3, 4)


def vanishing(_: Any) -> Any:
    os._exit(1)


def warning(env: Any) -> Any:
    warnings.warn("it is odd", UserWarning, stacklevel=2)
    return env


@pytest.mark.parametrize("started_by", ["", "multiprocessing:"])
@pytest.mark.parametrize("how", ["limit", "signals", "kill", "orphan", "worker", "end"])
def test_what_an_env_started_ends_with_its_worker(how: str, started_by: str, tmp_path: Path) -> None:
    """A game's server must not outlive the collection, however that ends."""
    servers, out = tmp_path / "servers", tmp_path / "frames"
    kwargs: dict[str, Any] = {"server": f"{started_by}{servers}"}
    if how == "orphan":
        kwargs["pause"] = 0.005
    elif how != "end":
        kwargs["hang_after"] = 700
    config = replace(QUICK, out=out, frames=1500, workers=1, env_kwargs=kwargs)
    if how == "limit":
        config = replace(config, step_timeout=3)
    process = command(config, stderr=subprocess.DEVNULL)
    if how in ("signals", "kill", "orphan", "worker"):
        wait_for(lambda: contents(out))
        time.sleep(1)
        if how == "signals":
            process.send_signal(signal.SIGINT)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
        else:
            os.kill(children(process.pid)[0] if how == "worker" else process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert len(servers.read_text().split()) == 2, "of the trial and of the worker"
    wait_for(lambda: not any(alive(int(pid)) for pid in servers.read_text().split()), 60)


def test_ctrl_c_in_a_terminal_reaches_the_collection_alone(tmp_path: Path) -> None:
    """A game's server that it ended too would leave the worker with half a shard."""
    servers, out = tmp_path / "servers", tmp_path / "frames"
    kwargs = {"server": str(servers), "pause": 0.002}
    config = replace(QUICK, out=out, frames=4000, workers=1, env_kwargs=kwargs)
    process = command(config, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_for(lambda: contents(out))
    time.sleep(0.4)  # a shard takes a second, so the second one is begun
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=60) == 130, "the server went on"
    shards = [read_shard(path) for path in sorted(out.glob("*.parquet"))]
    assert not shards[-1].complete
    assert shards[-1].rows, "what was begun is kept"
    wait_for(lambda: not any(alive(int(pid)) for pid in servers.read_text().split()), 60)


def test_a_time_limit_on_steps_is_none_on_the_whole(tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, workers=1, frames=900, env_kwargs={"pause": 0.002})
    begun = time.monotonic()
    collect_frames(replace(config, step_timeout=1), progress=False)
    assert time.monotonic() - begun > 1.8, "it takes longer than the limit, and no step does"


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("exit_after", "ended the program with sys.exit(0)"),
        ("vanish_after", "died with exit code 0"),
        ("crash_after", "died with exit code 1"),
    ],
)
def test_an_env_that_exits_is_an_error_and_the_run_resumes(
    trouble: str, message: str, workers: int, tmp_path: Path
) -> None:
    """Its process exits in each run; every run keeps the shards that were whole before."""
    config = replace(QUICK, frames=500 * workers, shard_rows=200, workers=workers)
    config = replace(config, env_kwargs={trouble: 350})
    for _ in range(6):
        process = command(replace(config, out=tmp_path / "a"), stderr=subprocess.PIPE)
        _, messages = process.communicate(timeout=300)
        if process.returncode == 0:
            break
        assert process.returncode == 1, messages
        assert re.search(r"failed: worker \d \(part-00\d-0000\d\.parquet\)", messages)
        assert message in messages
        assert "imports your script" not in messages
        assert "run the same command again" in messages
    assert process.returncode == 0
    collect_frames(replace(config, out=tmp_path / "b", env_kwargs={}), progress=False)
    assert frames_of(tmp_path / "a") == frames_of(tmp_path / "b")


def frames_of(folder: Path) -> dict[str, Any]:
    return {path.name: pq.read_table(path).to_pydict() for path in sorted(folder.glob("*.parquet"))}


def test_of_two_interrupted_parts_the_longer_stays(tmp_path: Path) -> None:
    """The same shard is stopped after 300 rows, then after 100; a third run completes it."""
    config = replace(QUICK, out=tmp_path, workers=1, frames=3000, shard_rows=2000)
    for rows in (300, 100):
        plan = Plan(config, collection_of(config), tmp_path, 0, 3000, {})
        stop = threading.Event()

        def report(tally: Tally, rows: int = rows, stop: threading.Event = stop) -> None:
            if tally.frames >= rows:
                stop.set()

        collect_share(look_again(plan), stop, report, Pulse())
        (path,) = tmp_path.glob("*.parquet")
        assert 300 <= read_shard(path).rows < 400
    collect_frames(config, progress=False)
    collect_frames(replace(config, out=tmp_path / "straight"), progress=False)
    assert contents(tmp_path) == contents(tmp_path / "straight")


def collection_of(config: CollectConfig) -> Collection:
    return Collection(
        config.env_id,
        config.env_kwargs,
        config.frame_spec,
        config.policy,
        config.seed,
        config.workers,
        config.shard_rows,
    )


def test_an_env_that_exits_does_not_end_the_calling_program(tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, workers=1, env_kwargs={"exit_after": 700})
    with pytest.raises(CollectError, match=r"worker 0 \(part-000-00001.parquet\): .* sys.exit\(0\)"):
        collect_frames(config, progress=False)
    assert len(contents(tmp_path)) == 1


def test_threads_of_the_env_do_not_keep_a_collection_alive(tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, frames=400, env_kwargs={"linger_after": 100})
    process = command(config, stderr=subprocess.PIPE)
    process.communicate(timeout=300)
    assert process.returncode == 0
    assert len(FramesFolder(tmp_path)) == 400


def test_a_worker_that_somebody_ends_is_reported(tmp_path: Path) -> None:
    """It was told to stop politely, keeps what it had, and the frames asked for are not there."""
    config = replace(SLOWED, out=tmp_path, frames=3000)
    process = start(config)
    wait_for(lambda: children(process.pid) and len(contents(tmp_path)) >= 1)
    os.kill(children(process.pid)[0], signal.SIGTERM)
    _, messages = process.communicate(timeout=300)
    assert "was stopped by a signal from outside" in messages
    assert "AssertionError" not in messages
    assert len(collect_frames(config, progress=False)) == 3000


def test_two_runs_at_once_on_one_folder_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    config = replace(QUICK, out=tmp_path, frames=200, workers=1)
    with (
        storage.locked(tmp_path),
        pytest.raises(ValueError, match=rf"writing to .* \(process {os.getpid()} on"),
    ):
        collect_frames(config, progress=False)
    assert contents(tmp_path) == {}
    collect_frames(config, progress=False)
    with storage.locked(tmp_path):
        collect_frames(config, progress=False)  # finished: it has nothing to write


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that this process may read, not write; root takes another user's place meanwhile."""
    folder = Path(tempfile.mkdtemp())
    root = os.geteuid() == 0
    try:
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        folder.rmdir()


def test_a_read_only_folder_is_refused_before_anything_is_collected(read_only: Path) -> None:
    with pytest.raises(PermissionError, match=f"The folder {read_only} cannot be written"):
        collect_frames(replace(QUICK, out=read_only, frames=200), progress=False)
    with pytest.raises(PermissionError, match="frames"):
        collect_frames(replace(QUICK, out=read_only / "frames", frames=200), progress=False)


MEASURED = """
import resource, sys
from pathlib import Path, PosixPath
from latent_obs.collecting.collect import CollectConfig, collect_frames
if __name__ == "__main__":
    collect_frames({!r}, progress=False)
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        print(resource.getrusage(who).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """Eight times the frames, 860 MB of them raw, must fit into hardly more memory."""
    peaks = []
    for frames in (10_000, 80_000):
        config = replace(QUICK, out=tmp_path / str(frames), frames=frames, shard_rows=2000)
        code = MEASURED.format(config)
        run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        peaks.append([int(line) / 1024 for line in run.stdout.split()])  # MiB, of parent and worker
    assert peaks[1][0] - peaks[0][0] < 10
    assert peaks[1][1] - peaks[0][1] < 10


def test_the_index_of_ten_million_frames_is_small(tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, frames=8192, workers=1, shard_rows=8192)
    shard = collect_frames(config, progress=False).shards[0]
    assert isinstance(shard.path, Path)
    for number in range(1, 1221):
        os.link(shard.path, tmp_path / f"part-001-{number:05d}.parquet")
    tracemalloc.start()
    try:
        folder = FramesFolder(tmp_path)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(folder) > 10_000_000
    assert held < 10e6


def test_a_full_disk_in_many_workers_is_one_clear_error(tmp_path: Path) -> None:
    """A limit on the size of a file fails the write as a full disk does."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    config = replace(QUICK, out=tmp_path, shard_rows=4000)
    process = start(config, preexec_fn=limited)
    _, messages = process.communicate(timeout=120)
    assert "CollectError" in messages
    assert "OSError" in messages
    assert list(tmp_path.glob(".*.tmp")) == []
    assert len(collect_frames(config, progress=False)) == 6000


def test_more_shards_than_episode_numbers_provide_for_are_refused(tmp_path: Path) -> None:
    config = replace(QUICK, out=tmp_path, frames=10_000_000, workers=1, shard_rows=1000)
    with pytest.raises(ValueError, match="larger --shard-rows"):
        collect_frames(config, progress=False)
    with pytest.raises(ValueError, match="at most"):
        replace(QUICK, shard_rows=200_000)

"""Kills and long runs, for as many kills or minutes as you like; nothing here is timed.

$ python -m tests.endurance collect --kills 200     # about 4 s a kill on two cores
$ python -m tests.endurance train --kills 100       # about 5 s a kill
$ python -m tests.endurance memory --minutes 60

The first two end processes with SIGKILL at random moments, run the same command again, and compare what
is there with a run that nothing interrupted: after each kill every shard that the collection committed
must be readable and equal, and at the end everything must be. They print how many kills were tried,
survived and lost. The last one collects for a while and prints the memory of the worker as it goes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).parents[1]
COLLECT = ["collect", "tests.quick_env:Quick-v0", "--frames", "6000", "--workers", "2", "--shard-rows", "500"]
COLLECT += ["--env-kwargs", json.dumps({"pause": 0.0002})]
TRAIN = ["--steps", "100", "--channels", "4", "8", "--batch-size", "32", "--evaluate-every", "10"]
# A checkpoint a fifth of a second, so that many kills hit one and most runs go on from one.
SAVED_OFTEN = """
import sys
import latent_obs.training.run
from latent_obs.cli import main
latent_obs.training.run.CHECKPOINT_SECONDS = 0.2
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Collect:
    """Kill a collection, its workers, or all of them."""

    kills: int = 200
    """how many kills to try"""
    each: int = 5
    """kills of one folder, after which it is finished and compared"""
    seed: int = 0
    """seed of the moments and the victims"""


@dataclass(frozen=True)
class Train:
    """Kill a training."""

    kills: int = 100
    """how many kills to try"""
    each: int = 5
    """kills of one encoder, after which it is finished and compared"""
    seed: int = 0
    """seed of the moments"""


@dataclass(frozen=True)
class Memory:
    """Collect for a while and look at the memory of the worker."""

    minutes: float = 60
    """how long"""


def start(words: list[str]) -> subprocess.Popen[bytes]:
    """Run ``latent-obs`` in a session of its own."""
    program = ["-c", SAVED_OFTEN] if words[0] == "train" else ["-m", "latent_obs"]
    command = [sys.executable, *program, *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )


def finish(words: list[str]) -> str | None:
    """Run a command to its end; return what it complained about, if it did."""
    process = start(words)
    _, messages = process.communicate()
    return None if process.returncode == 0 else messages.decode(errors="replace").strip()


def workers_of(pid: int) -> list[int]:
    """Return the worker processes of a collection."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(None, 2) for line in listed.stdout.splitlines())
    return [int(row[0]) for row in rows if int(row[1]) == pid and "spawn_main" in row[2]]


def contents(folder: Path, pattern: str) -> dict[str, bytes]:
    """Return the files of a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in sorted(folder.glob(pattern))}


def kill_repeatedly(
    kills: int,
    each: int,
    seed: int,
    command: Callable[[Path], list[str]],
    victims: Callable[[int, random.Random], list[int]],
    faults: Callable[[Path, Path, bool], list[str]],
    root: Path,
) -> int:
    """Kill, run again, compare, and print the counts; return how many kills lost something.

    Args:
        kills: How many to try.
        each: How many of them hit one folder.
        seed: Of moments and victims.
        command: The words that fill a folder.
        victims: Which processes to kill, of the command with this process id.
        faults: What is wrong with a folder beside the straight one, finished or not.
        root: A folder for the results.
    """
    rng = random.Random(seed)
    begun = time.monotonic()
    if complaint := finish(command(root / "straight")):
        raise SystemExit(f"The run that nothing interrupts fails: {complaint}")
    longest = time.monotonic() - begun
    tried = lost = late = 0
    while tried < kills:
        out, hit, found = root / f"run-{tried}", 0, list[str]()
        while hit < min(each, kills - tried):
            process = start(command(out))
            time.sleep(rng.uniform(0, longest))
            if process.poll() is not None:
                late += 1  # it was done before its time came
                process.communicate()
                if process.returncode:
                    found.append(f"exit status {process.returncode} without a kill")
                break
            for pid in victims(process.pid, rng):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.communicate()
            hit += 1
            found += faults(out, root / "straight", False)
        if complaint := finish(command(out)):
            found.append(complaint)
        found += faults(out, root / "straight", True)
        tried += hit
        lost += hit if found else 0
        for fault in found:
            print(f"  {out.name}: {fault}", flush=True)
        print(f"{tried} kills tried, {tried - lost} survived, {lost} lost", flush=True)
    return lost


def kill_collections(args: Collect) -> int:
    """Return how many kills lost frames."""
    from latent_obs.data.shards import read_shard

    def victims(pid: int, rng: random.Random) -> list[int]:
        workers = workers_of(pid)
        return rng.choice([[pid], workers[:1] or [pid], [pid, *workers], [*workers, pid]])

    def faults(out: Path, straight: Path, finished: bool) -> list[str]:
        wanted, got = contents(straight, "*.parquet"), contents(out, "*.parquet")
        if finished:
            left = [path.name for path in out.glob(".*.tmp")] if out.is_dir() else []
            return [] if got == wanted and not left else [f"{len(got)} of {len(wanted)} shards, left: {left}"]
        shards = [read_shard(out / name) for name in got]
        return [f"{s.name} differs" for s in shards if s.complete and got[s.name] != wanted[s.name]]

    with tempfile.TemporaryDirectory() as root:
        return kill_repeatedly(
            args.kills,
            args.each,
            args.seed,
            lambda out: [*COLLECT, "--out", str(out)],
            victims,
            faults,
            Path(root),
        )


def kill_trainings(args: Train) -> int:
    """Return how many kills changed the weights or the config."""
    with tempfile.TemporaryDirectory() as root:
        frames = Path(root) / "frames"
        if complaint := finish([*COLLECT, "--frames", "1200", "--out", str(frames)]):
            raise SystemExit(complaint)

        def faults(out: Path, straight: Path, finished: bool) -> list[str]:
            whole = contents(out, "config.json") and contents(out, "model.safetensors")
            if not finished and not whole:
                return []
            differ = contents(out, "model.safetensors") != contents(straight, "model.safetensors")
            wrong = ["the weights differ"] if differ else []
            if finished and untimed(out) != untimed(straight):
                wrong.append("the config differs")
            return wrong

        return kill_repeatedly(
            args.kills,
            args.each,
            args.seed,
            lambda out: ["train", str(frames), *TRAIN, "--out", str(out)],
            lambda pid, _: [pid],
            faults,
            Path(root),
        )


def untimed(encoder: Path) -> dict[str, Any]:
    """Return the config of an encoder without what no two runs share."""
    config: dict[str, Any] = json.loads((encoder / "config.json").read_text())
    for name in ("seconds", "created"):
        config["provenance"].pop(name, None)
    return config


def watch_memory(args: Memory) -> int:
    """Return 1 if parent and worker hold 20 MiB more at the end than after half of the time."""
    with tempfile.TemporaryDirectory() as root:
        words = ["collect", "tests.quick_env:Quick-v0", "--frames", "500000000", "--workers", "1"]
        process = start([*words, "--shard-rows", "100000", "--out", root])
        begun, first, last = time.monotonic(), 0.0, 0.0
        while (spent := time.monotonic() - begun) < args.minutes * 60 and process.poll() is None:
            time.sleep(min(10.0, args.minutes * 6))
            held = [resident(pid) for pid in (process.pid, *workers_of(process.pid))]
            frames = sum(path.stat().st_size for path in Path(root).glob("*.parquet"))
            print(f"{spent:6.0f} s  MiB of parent and worker: {held}, {frames:,} bytes of shards", flush=True)
            last = sum(held)
            if not first and spent > args.minutes * 30:
                first = last
        process.terminate()
        _, messages = process.communicate()
        if process.returncode != 130:
            raise SystemExit(f"It ended early: {messages.decode(errors='replace').strip()}")
    print(f"{last - first:+.1f} MiB since half of the time had passed")
    return int(last - first > 20)


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def main() -> int:
    """Run one of the three."""
    kinds: dict[str, Callable[..., Any]] = {"collect": Collect, "train": Train, "memory": Memory}
    args = tyro.extras.subcommand_cli_from_dict(kinds, description=__doc__)
    if isinstance(args, Collect):
        return int(kill_collections(args) > 0)
    return int(kill_trainings(args) > 0) if isinstance(args, Train) else watch_memory(args)


if __name__ == "__main__":
    sys.exit(main())

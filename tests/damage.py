"""Damages of files that the fuzz test tries on every kind of artefact."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Kind:
    """One kind of artefact.

    Args:
        make: Writes a small whole artefact into an existing empty folder.
        mutations: Each damages one thing in such a folder; the name says what.
        read: Reads all of it and returns what must not change silently, as a digest.
        refusals: What reading may raise, with a message for the user.
    """

    make: Callable[[Path], None]
    mutations: Mapping[str, Callable[[Path, Rng], None]]
    read: Callable[[Path], str]
    refusals: tuple[type[BaseException], ...] = (ValueError, OSError)


# What stands for text that json.dumps does not write.
_SPECIAL = {'"@deep"': "[" * 50_000 + "]" * 50_000, '"@digits"': "9" * 5_000, '"@infinity"': "Infinity"}
_VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        2**31,
        2**63,
        10**8,
        10**9,
        10**30,
        -(10**9),
        1e300,
        -1e300,
        float("nan"),
    ),
    *("", "x", "../../x", "[/a]", "\0", "\ud800", "x" * 10_000, "1", "@deep", "@digits", "@infinity"),
    *([], {}, [[]], [None], [1, 2, 3], {"x": None}, [0] * 10_000),
)


def mutate_json(value: Any, rng: Rng) -> str:
    """Return JSON text that differs from a value in one place: replaced, removed, or with more beside it."""
    value = json.loads(json.dumps(value))
    parents = [value]
    for parent in parents:  # grows while it is walked
        parents += [
            v
            for v in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(v, (dict, list)) and v
        ]
    parent = parents[int(rng.integers(len(parents)))]
    key: Any = int(rng.integers(len(parent)))
    key = list(parent)[key] if isinstance(parent, dict) else key
    other = _VALUES[int(rng.integers(len(_VALUES)))]
    action = int(rng.integers(10))
    if action < 7:
        parent[key] = other
    elif action < 9:
        del parent[key]
    elif isinstance(parent, dict):
        parent["more"] = other
    else:
        parent.append(other)
    text = json.dumps(other if rng.random() < 0.02 else value)
    for word, stands_for in _SPECIAL.items():
        text = text.replace(word, stands_for)
    return text


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Return bytes that differ in one place, half of the time near the end, where Parquet has its footer."""
    if not data:
        return b"x"
    length = len(data)
    start = max(0, length - 4096) if rng.random() < 0.5 else 0
    at = int(rng.integers(start, length))
    size = int(rng.integers(1, 65))
    noise = rng.integers(0, 256, size, np.uint8).tobytes()
    action = int(rng.integers(7))
    if action < 3:
        return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]
    return {
        3: data[:at] + noise + data[at + size :],
        4: data[:at] + bytes(size) + data[at + size :],
        5: data[:at],
        6: data[:at] + noise + data[at:],
    }[action]


def pick(folder: Path, rng: Rng, suffix: str = "") -> Path:
    """Return one of a folder's files."""
    files = sorted(path for path in folder.iterdir() if path.name.endswith(suffix))
    return files[int(rng.integers(len(files)))]


def damage_bytes(folder: Path, rng: Rng) -> None:
    """Change bytes of a file."""
    path = pick(folder, rng)
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))


def damage_file(folder: Path, rng: Rng) -> None:
    """Put something else under a file's name."""
    path = pick(folder, rng)
    content = path.read_bytes()
    path.unlink()
    action = int(rng.integers(6))
    if action == 0:
        os.mkfifo(path)
    elif action == 1:
        path.mkdir()
    elif action == 2:
        path.symlink_to(path)
    elif action == 3:
        path.touch()
    elif action == 4:
        path.write_bytes(content[: len(content) // 2])
    else:
        path.symlink_to("/dev/zero")

"""What an encoder leaves on this machine, and that it calls nobody."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs import load_encoder
from latent_obs.encoders import quantise, remembered
from tests.conftest import TINY_VAE, random_tensors

STD = [1.0] * TINY_VAE.latent_dim
USE = """
import socket, sys, threading

def refuse(*args, **kwargs):
    print("opened a connection:", args[1:], flush=True)
    raise OSError("no network here")

for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, refuse)
socket.create_connection = socket.getaddrinfo = refuse

import ale_py, gymnasium as gym, numpy as np
gym.register_envs(ale_py)
from latent_obs import LatentObservationWrapper, load_encoder
env = LatentObservationWrapper(gym.make("ALE/Pong-v5"))
env.reset(seed=0)
frames = np.zeros((2, 64, 64, 3), np.uint8)
for precision in ("auto", "float32", "int8"):
    load_encoder("pong-v0", precision=precision)(frames)
print("openvino" in sys.modules, "openvino_telemetry" in sys.modules)
for thread in threading.enumerate():  # telemetry is sent by a thread of its own
    if thread is not threading.current_thread():
        thread.join(5)
"""


def run(code: str, home: Path, **variables: str) -> list[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("LATENT_OBS_HOME", "XDG_CACHE_HOME", "CI")}
    env = {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=home, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_nobody_is_phoned_and_nothing_is_written_outside_the_cache(tmp_path: Path) -> None:
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    assert run(USE, home, LATENT_OBS_HOME=str(cache)) == ["True False"]
    assert list(home.iterdir()) == []
    (written,) = cache.iterdir()
    assert written.name.startswith("int8-")


def test_the_cache_is_in_the_users_cache_folder(tmp_path: Path) -> None:
    code = "from latent_obs.files import cache_folder; print(cache_folder())"
    if sys.platform == "linux":
        assert run(code, tmp_path) == [str(tmp_path / ".cache" / "latent_obs")]
        assert run(code, tmp_path, XDG_CACHE_HOME="/somewhere") == ["/somewhere/latent_obs"]
    assert run(code, tmp_path, LATENT_OBS_HOME="/else") == [str(Path("/else"))]


def test_a_user_who_asked_for_telemetry_keeps_it(tmp_path: Path) -> None:
    """Whoever imported it before has it; only our own import of openvino is kept from it."""
    code = """
import sys, types
sys.modules["openvino_telemetry"] = theirs = types.ModuleType("openvino_telemetry")
try:
    import latent_obs.encoders.graph
except Exception as error:  # their module is empty here
    print(type(error).__name__)
print(sys.modules["openvino_telemetry"] is theirs)
"""
    assert run(code, tmp_path)[-1] == "True"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """One entry for each time that an encoder is quantised."""
    made: list[Any] = []
    real = quantise.quantise

    def counting(*args: Any) -> Any:
        made.append(args)
        return real(*args)

    monkeypatch.setattr(quantise, "quantise", counting)
    return made


def test_an_encoder_is_quantised_once(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Any
) -> None:
    """Another encoder is not taken for it, and a file that is damaged is made again."""
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    images = frames(3)
    expected = load_encoder("pong-v0", precision="int8", normalize=False)(images)
    for normalize in (False, True):
        encode = load_encoder("pong-v0", precision="int8", normalize=normalize)
        assert normalize or np.array_equal(encode(images), expected)
    assert len(calls) == 1
    other = load_encoder("breakout-v0", precision="int8")(images)
    assert len(calls) == 2
    assert not np.array_equal(other, expected)
    for path in tmp_path.glob("int8-*"):
        path.write_bytes(path.read_bytes()[:1000])
    assert np.array_equal(load_encoder("pong-v0", precision="int8", normalize=False)(images), expected)
    assert len(calls) == 3
    (pong,) = {path for path in tmp_path.glob("int8-*") if path.stat().st_size > 1000}
    for path in tmp_path.glob("int8-*"):
        if path != pong:
            path.write_bytes(b"")
    assert np.array_equal(load_encoder("breakout-v0", precision="int8")(images), other)


def test_a_cached_array_of_which_a_byte_changed_is_computed_anew(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Any
) -> None:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    images = frames(4)
    found = remembered.quantised(TINY_VAE, random_tensors(TINY_VAE), images, STD)
    (path,) = tmp_path.glob("int8-*")
    whole = path.read_bytes()
    arrays = [array.tobytes() for array in found.to_tensors().values()]
    for array in arrays:
        damaged = bytearray(whole)
        damaged[whole.index(array)] ^= 1
        path.write_bytes(damaged)
        again = remembered.quantised(TINY_VAE, random_tensors(TINY_VAE), images, STD)
        assert [each.tobytes() for each in again.to_tensors().values()] == arrays
        assert path.read_bytes() == whole
    assert len(calls) == 1 + len(arrays) == 12


def test_one_encoder_is_not_taken_for_another_of_its_shape(frames: Any) -> None:
    """Any weight that acts, any calibration frame and the version of the arithmetic tell them apart."""
    images = frames(4)
    keys = [quantise.key_of(TINY_VAE, random_tensors(TINY_VAE), images, STD)]
    assert quantise.key_of(TINY_VAE, random_tensors(TINY_VAE), images, STD) == keys[0]
    for name, tensor in random_tensors(TINY_VAE).items():
        if name.startswith(("encoder.", "mean.", "log_variance.")):
            other = tensor.copy()
            other.flat[-1] += 1
            keys.append(quantise.key_of(TINY_VAE, {**random_tensors(TINY_VAE), name: other}, images, STD))
    keys.append(quantise.key_of(TINY_VAE, random_tensors(TINY_VAE), images[::-1], STD))
    keys.append(quantise.key_of(TINY_VAE, random_tensors(TINY_VAE), images, [2.0, *STD[1:]]))
    assert len(set(keys)) == len(keys) > 9


def test_a_cache_that_cannot_be_written_is_no_error(
    calls: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frames: Any
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        load_encoder("pong-v0", precision="int8")(frames(1))
    assert len(calls) == 2
    remembered.remember_speeds("a case", {"float32": 1.0})
    assert remembered.speeds("a case") is None


def test_speeds_of_one_case_do_not_overwrite_anothers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    remembered.remember_speeds("small", {"float32": 2.0, "int8": 1.0})
    remembered.remember_speeds("large", {"float32": 3.0})
    assert remembered.speeds("small") == {"float32": 2.0, "int8": 1.0}
    assert remembered.speeds("large") == {"float32": 3.0}
    monkeypatch.setattr(remembered, "TIMING", -1)
    assert remembered.speeds("small") is None, "measured in another way"

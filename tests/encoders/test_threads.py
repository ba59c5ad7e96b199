"""Threads share an encoder, and processes are forked meanwhile; each gets its own latents."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.encoders import kernel
from tests.conftest import FrameEnv

THREADS = 8
CASES = [
    ("openvino", "float32", True),
    ("openvino", "bfloat16", True),
    ("openvino", "int8", True),
    ("openvino", "int8", False),
    ("torch", "float32", True),
]


@pytest.fixture(params=CASES, ids=["float32", "bfloat16", "int8", "int8 in OpenVINO", "torch"])
def shared(request: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    backend, precision, compiled = request.param
    if not compiled:
        monkeypatch.setattr(kernel, "paths", list)
    return load_encoder("pong-v0", backend=backend, precision=precision)


@pytest.mark.filterwarnings("ignore:.*fails the parity gate:RuntimeWarning")
def test_eight_threads_share_an_encoder(shared: Any) -> None:
    """The first call included, where each of them finds it not yet compiled."""
    rng = np.random.default_rng(0)
    sizes = (1, 16, 3, 16)
    work = [rng.integers(0, 256, (sizes[n % 4], 64, 64, 3), dtype=np.uint8) for n in range(320)]
    begin = threading.Barrier(THREADS)

    def encode(share: list[Any]) -> list[Any]:
        begin.wait()
        return [(shared(frames), *shared.posterior(frames)) for frames in share]

    with ThreadPoolExecutor(THREADS) as pool:
        shares = list(pool.map(encode, [work[n::THREADS] for n in range(THREADS)]))
    wrong = 0
    for n, frames in enumerate(work):
        found = shares[n % THREADS][n // THREADS]
        expected = (shared(frames), *shared.posterior(frames))
        wrong += not all(map(np.array_equal, found, expected))
    assert wrong == 0, f"{wrong} of {len(work)} calls"


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_each_thread_has_a_wrapped_environment(precision: Any) -> None:
    shared = load_encoder("pong-v0", precision=precision)

    def play(seed: int) -> list[Any]:
        env = LatentObservationWrapper(FrameEnv(length=1000), shared)
        return [env.reset(seed=seed)[0], *(env.step(step % 4)[0] for step in range(100))]

    expected = [play(seed) for seed in range(THREADS)]
    with ThreadPoolExecutor(THREADS) as pool:
        for alone, together in zip(expected, pool.map(play, range(THREADS)), strict=True):
            np.testing.assert_array_equal(together, alone)


def _encode_in_child(encode: Any, images: Any, pipe: Any) -> None:
    pipe.send(encode(images))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_process_is_forked_while_another_thread_encodes(precision: Any, frames: Any) -> None:
    shared, images = load_encoder("pong-v0", precision=precision), frames(3)
    expected, busy, stop = shared(images), frames(16), threading.Event()
    again: list[Any] = []

    def keep_encoding() -> None:
        while not stop.is_set():
            again.append(shared(busy)[0])

    thread = threading.Thread(target=keep_encoding)
    thread.start()
    context = multiprocessing.get_context("fork")
    try:
        for _ in range(8):
            receiver, sender = context.Pipe()
            process = context.Process(target=_encode_in_child, args=(shared, images, sender))
            process.start()
            assert receiver.poll(60), "the child hangs"
            assert np.array_equal(receiver.recv(), expected)
            process.join(30)
    finally:
        stop.set()
        thread.join()
    assert len(again) > 1
    assert (np.array(again) == again[0]).all()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_is_forked_while_another_thread_compiles(tmp_path: Path, frames: Any) -> None:
    images = frames(2)
    expected = load_encoder("pong-v0", precision="float32")(images)
    context = multiprocessing.get_context("fork")
    for _ in range(4):
        shared = load_encoder("pong-v0", precision="float32")
        thread = threading.Thread(target=shared, args=(images,))
        thread.start()
        receiver, sender = context.Pipe()
        process = context.Process(target=_encode_in_child, args=(shared, images, sender))
        process.start()
        assert receiver.poll(60), "the child hangs"
        assert np.array_equal(receiver.recv(), expected)
        process.join(30)
        thread.join()


def test_a_signal_after_two_encoders_are_freed_ends_nothing() -> None:
    """It ended the process, where something has given signal handlers a stack, as faulthandler does."""
    code = """
import faulthandler, os, signal
import numpy as np
from latent_obs import load_encoder
faulthandler.enable()
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append("signal"))
first, second = (load_encoder("pong-v0", precision="float32") for _ in range(2))
for encoder in (first, second):
    encoder(np.zeros((64, 64, 3), np.uint8))
del encoder, first
del second
os.kill(os.getpid(), signal.SIGTERM)
print(*got)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout) == (0, "signal\n"), run.stderr

from __future__ import annotations

import logging
import struct
import subprocess
import sys
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders import kernel, remembered, runtimes
from latent_obs.encoders.folder import read_calibration
from latent_obs.encoders.graph import has_int8
from latent_obs.encoders.quantise import parity_error
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.encoders.runtimes import PARITY
from latent_obs.evaluation.probe import collect_probe_frames
from tests.conftest import save_encoder


@pytest.fixture(scope="module")
def reference(pong_frames: FramesFolder) -> tuple[Any, Any]:
    """Real frames and their latents by eager torch."""
    frames = pong_frames.sample(256)
    return frames, load_encoder("pong-v0", backend="torch")(frames)


def off(exact: Any, found: Any) -> float:
    """Largest rms difference in a dimension that varies, in standard deviations."""
    exact, found = exact.astype(float), found.astype(float)
    std = np.sqrt(((exact - exact.mean(0)) ** 2).mean(0))
    rms = np.sqrt(((found - exact) ** 2).mean(0))
    return float(max(r / s for r, s in zip(rms, std, strict=True) if s > 0.1))


@pytest.mark.filterwarnings("error:.*fails the parity gate:RuntimeWarning")
@pytest.mark.parametrize("name", sorted(folder.name for folder in PRETRAINED.iterdir()))
def test_every_bundled_encoder_runs_in_int8_and_is_close_to_torch_on_unseen_frames(name: str) -> None:
    frames = read_calibration(PRETRAINED / name)
    assert frames is not None
    encode = load_encoder(name)
    if kernel.paths()[0] in runtimes.KNOWN_FASTEST:  # elsewhere it depends on what is faster there
        assert encode.precision == "int8"
    for precision in ("auto", "int8"):
        error = off(
            load_encoder(name, backend="torch")(frames[1::2]),
            load_encoder(name, precision=precision)(frames[1::2]),
        )
        assert error < 0.02
        assert error > 0 or encode.precision == "float32"


@pytest.mark.parametrize("name", ["pong-v0", "space_invaders-v0"])
def test_int8_is_close_to_torch_on_fresh_frames(name: str, reference: tuple[Any, Any]) -> None:
    if name == "pong-v0":
        frames = reference[0]
    else:
        frames = collect_probe_frames("ALE/SpaceInvaders-v5", count=256).frames
    error = off(load_encoder(name, backend="torch")(frames), load_encoder(name, precision="int8")(frames))
    assert 0 < error < 0.02


def test_openvino_takes_the_same_integers_where_the_kernel_is_missing(
    reference: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = reference[0]
    ours, scaled = (load_encoder("pong-v0", precision="int8", normalize=n)(frames) for n in (False, True))
    monkeypatch.setattr(kernel, "paths", list)
    if not has_int8():
        pytest.skip("OpenVINO's int8 overflows on this CPU")
    theirs = load_encoder("pong-v0", precision="int8", normalize=False)
    assert off(load_encoder("pong-v0", backend="torch", normalize=False)(frames), theirs(frames)) < PARITY
    assert off(ours, theirs(frames)) < 0.01, "the rounding between layers aside they are the same"
    assert off(scaled, load_encoder("pong-v0", precision="int8", normalize=True)(frames)) < 0.01
    assert off(ours, theirs.posterior(frames)[0]) < 0.01


def test_auto_takes_the_fastest_that_was_measured_and_remembers_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A precision that a library lists as capable but that is slower than float32 is not taken."""
    timings: dict[Any, float] = {"float32": 60.0, "bfloat16": 50.0, "int8": 70.0}
    measured = []

    def measure(runs: Any, frames: Any) -> Any:
        measured.append(set(runs))
        return {precision: timings[precision] for precision in runs}

    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    monkeypatch.setattr(runtimes, "KNOWN_FASTEST", ())
    monkeypatch.setattr(runtimes, "time_calls", measure)
    monkeypatch.setattr("latent_obs.encoders.graph.has_bfloat16", lambda: True)
    with caplog.at_level(logging.INFO, "latent_obs"):
        # Without bfloat16 in hardware OpenVINO computes it in float32, whose error is none.
        assert load_encoder("pong-v0").precision in ("bfloat16", "float32")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("The encoder pong-v0 runs in ")
    assert "bfloat16 50 µs, float32 60 µs, int8 70 µs" in line
    assert measured == [{"float32", "bfloat16", "int8"}]
    timings["bfloat16"] = 61.0
    load_encoder("pong-v0").precision  # noqa: B018
    assert len(measured) == 1, "it is remembered"
    (tmp_path / "speeds.json").unlink()
    assert load_encoder("pong-v0").precision == "float32"
    (tmp_path / "speeds.json").write_text("[")
    timings["int8"] = 5.0
    encode = load_encoder("pong-v0")
    assert encode.precision == "int8"
    assert "int8 5 µs" in encode.precision_reason
    assert load_encoder("pong-v0", num_threads=2).precision == "int8"
    assert len(measured) == 4, "two threads are another case"


def test_timing_tells_the_faster_function(frames: Any) -> None:
    def quick(batch: Any) -> Any:
        return batch

    def slow(batch: Any) -> Any:
        time.sleep(0.002)
        return batch

    found = runtimes.time_calls({"float32": slow, "int8": quick}, frames(1))
    assert 2000 <= found["float32"] < 100_000
    assert found["int8"] < found["float32"] / 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_frames_latent_does_not_depend_on_its_batch(precision: Any, reference: tuple[Any, Any]) -> None:
    """Bit for bit: a vector wrapper and a single one must show an agent the same numbers."""
    frames, _ = reference
    encode = load_encoder("pong-v0", precision=precision)
    whole = encode(frames)
    for size in (1, 3, 64):
        for _ in range(12):  # until the size has a graph of its own
            encode(frames[:size])
        parts = np.concatenate([encode(frames[i : i + size]) for i in range(0, 96, size)])
        np.testing.assert_array_equal(parts, whole[: len(parts)])
    threaded = load_encoder("pong-v0", precision=precision, num_threads=2)
    np.testing.assert_array_equal(threaded(frames), whole)


def test_float32_agrees_with_torch(reference: tuple[Any, Any]) -> None:
    frames, latents = reference
    exact = load_encoder("pong-v0", precision="float32")
    assert exact.precision == "float32"
    np.testing.assert_allclose(exact(frames), latents, atol=1e-4)


def test_a_precision_that_fails_the_gate_is_not_taken(
    reference: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no tolerance only float32 is left; with 2% and an error of 2.1% bfloat16 is, if it is faster."""
    frames, _ = reference
    real = remembered.quantised
    monkeypatch.setattr(runtimes, "KNOWN_FASTEST", ())
    monkeypatch.setattr(remembered, "quantised", lambda *args: replace(real(*args), error=0.021))
    monkeypatch.setattr(runtimes._OnCPU, "_by_speed", lambda self: (["int8", "bfloat16", "float32"], "told"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is a fast one, so nothing to say
        encode = load_encoder("pong-v0")
        assert encode.precision == "bfloat16"
    assert encode.precision_reason == "told; int8 (2.1%) failed the parity gate of 2%"
    monkeypatch.setattr(runtimes, "PARITY", -1.0)
    encode = load_encoder("pong-v0")
    with pytest.warns(RuntimeWarning, match=r"fails the parity gate in int8 \(2.1%\), .*Running in float32"):
        encode(frames)
    assert encode.precision == "float32"


def test_a_precision_that_is_asked_for_is_taken_with_a_warning(
    reference: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "PARITY", 1e-6)
    encode = load_encoder("pong-v0", precision="int8")
    with pytest.warns(RuntimeWarning, match="fails the parity gate in int8"):
        encode(reference[0])
    assert encode.precision == "int8"
    assert encode.precision_reason == "asked for"


def test_without_calibration_frames_auto_is_exact_and_int8_refused(encoder: Any) -> None:
    assert load_encoder(encoder).precision == "float32"
    with pytest.raises(ValueError, match=r"no calibration\.png"):
        load_encoder(encoder, precision="int8")


def test_calibration_frames_come_back_bit_for_bit(tmp_path: Any, frames: Any) -> None:
    from latent_obs.encoders.folder import read_config, read_tensors, write_encoder_folder

    folder = save_encoder(tmp_path / "e")
    config = read_config(folder)
    write_encoder_folder(folder, config, read_tensors(folder, config), frames(64))
    np.testing.assert_array_equal(read_calibration(folder), np.random.default_rng(0).integers(
        0, 256, (64, 64, 64, 3), dtype=np.uint8))  # fmt: skip


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "calibration.png is empty"),
        (b"no picture", "is no PNG picture"),
        (b"\xff\xd8\xff\xe0" + bytes(40), "is no PNG picture"),
        (png(512, 512)[:20], "is no PNG picture|damaged"),
        (png(60_000, 60_000), "must be a 512x512 picture .* got 60000x60000"),
        (png(512, 513), "got 512x513"),
        (png(0, 0), "got 0x0"),
    ],
)
def test_a_calibration_picture_is_refused_by_its_header(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No decoder sees it: decompressing a huge picture fills the memory."""
    folder = save_encoder(tmp_path / "e")
    (folder / "calibration.png").write_bytes(content)
    monkeypatch.setattr("cv2.imdecode", lambda *args: pytest.fail("it was decoded"))
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


def test_a_damaged_calibration_picture_is_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    (folder / "calibration.png").write_bytes(png(512, 512) + bytes(100))
    with pytest.raises(ValueError, match="is damaged"):
        load_encoder(folder)


def test_parity_ignores_inactive_dimensions() -> None:
    reference = np.zeros((100, 2), np.float32)
    reference[:, 0] = np.linspace(-1, 1, 100)
    off = reference + np.array([0, 5], np.float32)
    std = [*reference.std(0)]
    assert parity_error(reference, off, std) == 0
    off[:, 0] += 0.1
    assert parity_error(reference, off, std) == pytest.approx(0.1 / reference[:, 0].std(), rel=1e-3)
    # Over more frames than these the dimension varies more.
    assert parity_error(reference, off, [2.0, 0.0]) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision must be one of"),
        ({"device": "tpu"}, "device must be one of"),
        ({"backend": "openvino", "device": "cuda"}, "OpenVINO runs on the CPU"),
        ({"backend": "torch", "precision": "int8"}, "needs backend='openvino'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_encoder("pong-v0", **options)


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    encode = load_encoder("pong-v0", device="cuda")
    assert encode.backend == "torch"
    with pytest.raises(ValueError, match="torch sees no CUDA device"):
        encode(np.zeros((64, 64, 3), np.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_agrees_with_the_cpu(precision: Any, reference: tuple[Any, Any]) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    frames, latents = reference
    encode = load_encoder("pong-v0", device="cuda", precision=precision)
    for size in (1, 8, 8, 256, 8, 8):  # eager first, captured from the third time on
        found = encode(frames[:size])
        if precision == "float32":
            np.testing.assert_allclose(found, latents[:size], atol=5e-3)
        else:
            assert np.abs(found - latents[:size]).max() < 0.2


def test_torch_in_bfloat16_is_close(reference: tuple[Any, Any]) -> None:
    frames, latents = reference
    found = load_encoder("pong-v0", backend="torch", precision="bfloat16")(frames)
    assert parity_error(latents, found, latents.std(0)) < PARITY


def test_the_bundled_encoder_is_found_by_the_game() -> None:
    import ale_py

    gym.register_envs(ale_py)
    assert LatentObservationWrapper(gym.make("ALE/Pong-v5")).encoder.ref == "pong-v0"
    plain = gym.make("PongNoFrameskip-v4")
    with pytest.warns(UserWarning, match="frameskip 4, here 1"):
        assert LatentObservationWrapper(plain).encoder.ref == "pong-v0"


@pytest.mark.parametrize("kind", ["single", "vector"])
def test_encoding_keeps_to_one_core(kind: str) -> None:
    """Eight workers on two cores fight when each computes on more than one thread.

    A process on one thread spends at most a second of CPU time in a second, however busy the machine.
    """
    code = f"""
import time, ale_py, gymnasium as gym
from latent_obs import LatentObservationWrapper, vector
gym.register_envs(ale_py)
if {kind!r} == "single":
    env, action = LatentObservationWrapper(gym.make("ALE/Pong-v5")), 0
else:
    envs = gym.make_vec("ALE/Pong-v5", num_envs=8, vectorization_mode="sync")
    env, action = vector.LatentObservationWrapper(envs), [0] * 8
env.reset(seed=0)
for _ in range(30):
    env.step(action)
cpu, wall = time.process_time(), time.perf_counter()
for _ in range(200):
    env.step(action)
print((time.process_time() - cpu) / (time.perf_counter() - wall))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1.1


def test_every_bundled_encoder_is_whole() -> None:
    for folder in PRETRAINED.iterdir():
        encode = load_encoder(folder.name)
        assert encode.latent_dim == (10 if folder.name == "shapes-v0" else 32)
        if len(encode.config.source.env_ids) == 1:
            assert encode.config.metrics["moving_r2"] > 0.85
        assert not encode.config.metrics["collapsed"]

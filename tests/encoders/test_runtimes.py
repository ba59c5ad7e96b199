from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs import LatentObservationWrapper, load_encoder, runtimes
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import read_calibration
from latent_obs.encoders.graph import has_bfloat16, has_int8
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.encoders.runtimes import PARITY, parity_error
from latent_obs.evaluation.probe import collect_probe_frames
from tests.conftest import save_encoder


@pytest.fixture(scope="module")
def reference(pong_frames: FramesFolder) -> tuple[Any, Any]:
    """Real frames and their latents by eager torch."""
    frames = pong_frames.sample(256)
    return frames, load_encoder("pong-v0", backend="torch")(frames)


@pytest.mark.filterwarnings("error:.*fails the parity gate:RuntimeWarning")
def test_auto_takes_the_fastest_that_the_cpu_computes_exactly() -> None:
    """Without VNNI, int8 overflows on an x86; that is no news to warn of."""
    frames = collect_probe_frames("ALE/SpaceInvaders-v5", count=256).frames
    encode = load_encoder("space_invaders-v0")  # pong-v0 fails the gate in int8
    assert encode.precision == ("int8" if has_int8() else "bfloat16" if has_bfloat16() else "float32")
    error = parity_error(load_encoder("space_invaders-v0", backend="torch")(frames), encode(frames))
    assert error < 1.5 * PARITY  # the gate is measured on other frames
    if encode.precision != "float32":
        assert error > 0


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
    """pong-v0 fails in int8 and passes in bfloat16; with no tolerance, only float32 is left to it."""
    frames, _ = reference
    if has_bfloat16() and has_int8():
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # there is a fast one, so nothing to say
            assert load_encoder("pong-v0").precision == "bfloat16"
    monkeypatch.setattr(runtimes, "PARITY", 1e-6)
    encode = load_encoder("pong-v0")
    if has_bfloat16() or has_int8():
        with pytest.warns(RuntimeWarning, match="fails the parity gate in .*Running in float32"):
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
    (folder / "calibration.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="holds no calibration frames"):
        load_encoder(folder)


def test_parity_ignores_inactive_dimensions() -> None:
    reference = np.zeros((100, 2), np.float32)
    reference[:, 0] = np.linspace(-1, 1, 100)
    off = reference + np.array([0, 5], np.float32)
    assert parity_error(reference, off) == 0
    off[:, 0] += 0.1
    assert parity_error(reference, off) == pytest.approx(0.1 / reference[:, 0].std(), rel=1e-3)


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
    assert (
        parity_error(latents, load_encoder("pong-v0", backend="torch", precision="bfloat16")(frames)) < PARITY
    )


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
        assert encode.latent_dim == 32
        assert encode.precision != "float32" or not (has_int8() or has_bfloat16())
        if len(encode.config.source.env_ids) == 1:
            assert encode.config.metrics["moving_r2"] > 0.85
        assert not encode.config.metrics["collapsed"]

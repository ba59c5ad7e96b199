from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.folder import VAEConfig, read_config, read_tensors, write_encoder_folder
from latent_obs.encoders.resolve import list_encoders, resolve_auto
from latent_obs.frames import FrameSource
from latent_obs.vae import VAE
from tests.conftest import TINY_VAE, random_tensors, save_encoder


@pytest.mark.parametrize("channels", [(32, 64, 128), (16, 32, 64, 128)])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_openvino_equals_torch(channels: tuple[int, ...], batch: int, tmp_path: Path, frames: Any) -> None:
    folder = save_encoder(tmp_path, VAEConfig(32, channels))
    images = frames(batch)
    vae = VAE.from_tensors(VAEConfig(32, channels), random_tensors(VAEConfig(32, channels)))
    reference = vae(torch.from_numpy(images)).numpy()
    for backend in ("openvino", "torch"):
        latents = load_encoder(folder, backend=backend)(images)
        assert latents.dtype == np.float32
        np.testing.assert_allclose(latents, reference, atol=1e-4 * reference.std(), rtol=1e-4)
    assert reference.std() > 0.1, "a test of constant outputs tests nothing"


def test_normalised_latents_have_zero_mean_and_unit_variance(trained: Path, training_frames: Any) -> None:
    latents = load_encoder(trained, normalize=True)(training_frames)
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(0), 1, atol=1e-3)
    raw = load_encoder(trained, normalize=False)(training_frames)
    assert abs(raw.mean(0)).max() > 0.1
    assert abs(raw.std(0) - 1).max() > 0.1


@pytest.mark.filterwarnings("ignore:.*fails the parity gate:RuntimeWarning")
@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("openvino", "float32"),
        ("openvino", "bfloat16"),
        ("openvino", "int8"),
        ("torch", "float32"),
        ("torch", "bfloat16"),
    ],
)
def test_normalising_is_an_affine_map_of_each_dimension(
    backend: Any, precision: Any, trained: Path, training_frames: Any, tmp_path: Path
) -> None:
    """To float32's exactness, and no further off than the latents themselves where they are rounded."""
    config, folder, images = read_config(trained), tmp_path / "calibrated", training_frames[:200]
    write_encoder_folder(folder, config, read_tensors(trained, config), training_frames[::13][:64])
    mean, std = np.array(config.latents["mean"]), np.array(config.latents["std"])
    expected = (load_encoder(folder, precision="float32", normalize=False)(images) - mean) / std

    def error(latents: Any) -> float:
        return float(np.sqrt(np.square(latents - expected).mean(0)).max())

    raw, scaled = (
        load_encoder(folder, backend=backend, precision=precision, normalize=normalize)
        for normalize in (False, True)
    )
    assert error(scaled(images)) < 1.2 * error((raw(images) - mean) / std) + 1e-4
    assert (scaled.precision, error(raw(images)) > 0.5) == (precision, True)
    for ours, theirs in zip(scaled.posterior(images), raw.posterior(images), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_an_inactive_dimension_is_centred_but_not_blown_up(
    trained: Path, training_frames: Any, tmp_path: Path
) -> None:
    config, folder = read_config(trained), tmp_path / "faint"
    tensors = read_tensors(trained, config)
    tensors["mean.weight"][3] *= np.float32(0.09 / config.latents["std"][3])  # a variance of 0.0081
    tensors["mean.bias"][3] = 7
    write_encoder_folder(folder, config, tensors)
    raw = load_encoder(folder, normalize=False)(training_frames)
    statistics = {"mean": raw.mean(0).tolist(), "std": raw.std(0).tolist()}
    write_encoder_folder(folder, replace(config, latents={**config.latents, **statistics}), tensors)
    encode = load_encoder(folder, normalize=True)
    latents = encode(training_frames)
    assert raw[:, 3].mean() > 5
    np.testing.assert_allclose(latents.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(latents.std(0), [0.09 if dim == 3 else 1 for dim in range(32)], rtol=1e-2)
    np.testing.assert_allclose(latents.std(0), encode.statistics[1], rtol=1e-3)


def test_one_frame_and_a_batch_of_one_have_the_same_latent(encoder: Path, frames: Any) -> None:
    encode, image = load_encoder(encoder), frames(1)
    assert encode(image[0]).shape == (32,)
    assert np.array_equal(encode(image[0]), encode(image)[0])
    assert encode(image[:0]).shape == (0, 32)


def test_every_call_returns_a_new_array(encoder: Path, frames: Any) -> None:
    encode, images = load_encoder(encoder), frames(2)
    first = encode(images[0])
    kept = first.copy()
    encode(images[1])
    assert np.array_equal(first, kept)


def test_strided_frames_are_encoded_as_what_they_show(encoder: Path, frames: Any) -> None:
    encode, images = load_encoder(encoder), frames(4)
    flipped = images[::-1, :, ::-1]
    assert np.array_equal(encode(flipped), encode(np.ascontiguousarray(flipped)))


def by_spec(encoder: Encoder) -> Encoder:
    spec = json.loads(json.dumps(encoder.spec))
    options = {"ref": spec} if isinstance(spec, str) else spec
    return load_encoder(**options, normalize=encoder.normalize)


@pytest.mark.parametrize("backend", ["openvino", "torch"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e)), by_spec])
def test_a_used_encoder_pickles_and_deepcopies(
    backend: Any, clone: Any, normalize: bool, trained: Path, frames: Any
) -> None:
    original, images = load_encoder(trained, backend=backend, normalize=normalize), frames(3)
    expected = original(images)
    assert np.array_equal(clone(original)(images), expected)


def _encode_in_child(encode: Any, images: Any, pipe: Any) -> None:
    pipe.send(encode(images))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_used_encoder_survives_fork(encoder: Path, frames: Any) -> None:
    encode, images = load_encoder(encoder), frames(3)
    expected = encode(images)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    process = context.Process(target=_encode_in_child, args=(encode, images, sender))
    process.start()
    assert receiver.poll(30), "the child hangs"
    assert np.array_equal(receiver.recv(), expected)
    process.join(30)


def test_acting_never_imports_torch() -> None:
    """Nor the other packages that only making needs."""
    code = """
import sys, ale_py, gymnasium as gym
from latent_obs import LatentObservationWrapper, vector
gym.register_envs(ale_py)
env = LatentObservationWrapper(gym.make("ALE/Pong-v5"))
print(env.reset(seed=0)[0].shape, env.encoder.backend)
envs = vector.LatentObservationWrapper(gym.make_vec("ALE/Pong-v5", 2, vectorization_mode="sync"))
print(envs.reset(seed=0)[0].shape)
print({"torch", "matplotlib", "pyarrow", "onnx", "stable_baselines3"} & set(sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.splitlines() == ["(32,) openvino", "(2, 32)", "set()"], run.stderr


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((64, 64, 3), np.float32),
        np.zeros((3, 64, 64), np.uint8),
        np.zeros((210, 160, 3), np.uint8),
        np.zeros((2, 2, 64, 64, 3), np.uint8),
    ],
)
def test_what_is_no_frame_is_refused(encoder: Path, images: Any) -> None:
    with pytest.raises(ValueError, match=r"latent_obs\.preprocess"):
        load_encoder(encoder)(images)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "something"}, "'format' is not"),
        ({"version": 99}, "has version 99"),
        ({"frame_spec": {"crop": None, "interpolation": "nearest"}}, "must be 'area'"),
        ({"frame_spec": None}, "frame spec"),
        ({"vae": {"latent_dim": 16, "channels": [4, 8]}}, "latents.mean has 32 values"),
        ({"vae": {"latent_dim": 32, "channels": [4, 8, 16]}}, "missing or unknown tensors"),
        ({"vae": {"latent_dim": 32, "channels": [4, 16]}}, "must be floating point of shape"),
        ({"vae": {}}, "vae.channels must be a list, got None"),
        ({"latents": {"mean": 1, "std": 1, "kl": 1}}, "latents.mean must be a list, got 1"),
        ({"latents": dict.fromkeys(("mean", "std", "kl"), [float("nan")] * 32)}, "must be a finite number"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: Any, message: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    edit_config(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="does not describe an encoder"):
        load_encoder(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither a bundled one"):
        load_encoder(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_encoder(tmp_path / "empty")
    folder = save_encoder(tmp_path / "e")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_encoder(folder)


def test_truncated_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[:-10], whole[:4], b"", pickle.dumps({"mean.weight": 1})):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no safetensors file"):
            load_encoder(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    broken = random_tensors(TINY_VAE)
    broken["mean.bias"][3] = np.nan
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(broken))
    with pytest.raises(ValueError, match=r"mean\.bias holds values that are not finite"):
        load_encoder(folder)


def test_a_pickle_in_the_folder_is_never_opened(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "e")
    (folder / "model.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    load_encoder(folder)
    assert not Path("owned").exists()


def test_half_precision_weights_are_read(tmp_path: Path, frames: Any) -> None:
    folder = save_encoder(tmp_path / "e")
    expected = load_encoder(folder)(frames(2))
    half: Any = {name: np.asarray(t).astype(np.float16) for name, t in random_tensors(TINY_VAE).items()}
    write_encoder_folder(folder, read_config(folder), half)
    assert read_tensors(folder, read_config(folder))["mean.weight"].dtype == np.float32
    assert load_encoder(folder)(frames(2)).shape == expected.shape


@pytest.mark.parametrize(
    "options", [{"backend": "tensorflow"}, {"num_threads": 0}, {"normalize": "yes"}, {"normalize": None}]
)
def test_unknown_options_are_refused(encoder: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        load_encoder(encoder, **options)


def test_a_missing_backend_is_named_with_what_is_there(encoder: Path, monkeypatch: Any) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "openvino" else real(n))
    with pytest.raises(ImportError, match=r'"openvino" backend is not installed.*Installed backends: torch'):
        load_encoder(encoder, backend="openvino")
    assert load_encoder(encoder).backend == "torch"


def test_the_reference_finds_the_encoder_from_another_folder(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(encoder.parent)
    loaded = load_encoder(encoder.name)
    monkeypatch.chdir(tmp_path)
    assert load_encoder(loaded.ref).config == loaded.config


def make_bundled(folder: Path, name: str, env_id: str, game: str | None = None) -> None:
    source = FrameSource(env_id, {}, {"game": game} if game else {})
    save_encoder(folder / name, source=source)


def test_auto_takes_the_most_specific_and_newest_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions are numbers: 10 is newer than 9."""
    monkeypatch.setattr("latent_obs.encoders.resolve.PRETRAINED", tmp_path)
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    make_bundled(tmp_path, "general-v9", "Kart-v0 + ALE/Pong-v5 + ALE/Tennis-v5")
    make_bundled(tmp_path, "general-v10", "Kart-v0 + ALE/Pong-v5 + ALE/Tennis-v5")
    make_bundled(tmp_path, "pong-v9", "ALE/Pong-v5", "pong")
    make_bundled(tmp_path, "pong-v10", "ALE/Pong-v5", "pong")
    make_bundled(tmp_path, "kart-v0", "Kart-v0")
    assert list(list_encoders()) == ["general-v9", "general-v10", "kart-v0", "pong-v9", "pong-v10"]
    assert resolve_auto(FrameSource("PongNoFrameskip-v4", {}, {"game": "pong"})) == "pong-v10"
    assert resolve_auto(FrameSource("Kart-v0")) == "kart-v0"
    for source, name, known in (
        (FrameSource("ALE/Tennis-v5", {}, {"game": "tennis"}), "general-v10", "on it among others"),
        (FrameSource("ALE/Hero-v5", {}, {"game": "hero"}), "general-v10", "on others"),
        (FrameSource("Robot-v0"), "general-v10", "on others"),
        (FrameSource(), "general-v10", "on others"),
    ):
        with pytest.warns(UserWarning, match=known):
            assert resolve_auto(source) == name
        assert resolve_auto(source) == name, "and says so once"

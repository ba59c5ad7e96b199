"""An encoder folder is checked where it is read: whatever is wrong with it is one clear ValueError."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.numpy

from latent_obs.encoders.folder import (
    EncoderConfig,
    read_calibration,
    read_config,
    read_tensors,
    write_encoder_folder,
)
from latent_obs.encoders.provenance import Metrics, Provenance, Run
from latent_obs.encoders.resolve import PRETRAINED
from tests.conftest import TINY_VAE, random_tensors, save_encoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = Run(config={"seed": 3}, data={"frames": 7}, init_from=None)
    provenance = Provenance(run=run, steps=5, libraries={"torch": "2"})
    return save_encoder(tmp_path / "one", provenance=provenance, metrics=Metrics(psnr=40.0, active_units=2))


def change(folder: Path, path: tuple[Any, ...], value: object) -> None:
    """Set one value of config.json."""
    content = json.loads((folder / "config.json").read_text())
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("source",), 5, "source must be an object, got 5"),
        (("source",), "ALE/Pong-v5", "source must be an object"),
        (("source", "env_kwargs"), [1], r"source.env_kwargs must be an object, got \[1\]"),
        (("provenance",), [], r"provenance must be an object, got \[\]"),
        (("provenance", "run"), 1, "provenance.run must be an object"),
        (("provenance", "run"), {"config": {}, "init_from": None}, "provenance.run.data is missing"),
        (("provenance", "steps"), 5.5, "provenance.steps must be an integer, got 5.5"),
        (("provenance", "libraries"), {"torch": 2}, "provenance.libraries.torch must be a text"),
        (("metrics",), "good", "metrics must be an object, got 'good'"),
        (("metrics", "psnr"), "high", "metrics.psnr must be a number, got 'high'"),
        (("metrics", "psnr"), float("nan"), "metrics.psnr must be a finite number"),
        (("metrics", "psnr"), 10**400, "metrics.psnr must be a finite number"),
        (("metrics", "collapsed"), 1, "metrics.collapsed must be true or false"),
        (("vae",), None, "vae must be an object, got None"),
        (("vae", "latent_dim"), float("inf"), "vae.latent_dim must be an integer, got inf"),
        (("vae", "latent_dim"), 32.0, "vae.latent_dim must be an integer, got 32.0"),
        (("vae", "latent_dim"), True, "vae.latent_dim must be an integer, got True"),
        (("vae", "latent_dim"), 10**12, "latent_dim must be an integer from 1 to 65,536"),
        (("vae", "channels"), [4.0, 8], r"vae.channels\[0\] must be an integer, got 4.0"),
        (("vae", "channels"), [4, -8], "channels must be one to six integers from 1"),
        (("vae", "channels"), 8, "vae.channels must be a list, got 8"),
        (("latents",), [], "latents must be an object"),
        (("latents", "std"), None, "latents.std must be a list"),
        (("latents", "std", 3), 0.0, "latents.std holds a value that is not positive"),
        (("latents", "std", 3), -1.0, "latents.std holds a value that is not positive"),
        (("latents", "mean", 3), 1e300, "latents.mean holds values beyond 1,000,000"),
        (("latents", "mean", 3), float("nan"), r"latents.mean\[3\] must be a finite number"),
        (("latents", "kl"), [1.0], "latents.kl has 1 values for 32 dimensions"),
        (("frame_spec",), None, "frame spec must have exactly"),
        (("weights_sha256",), 7, "weights_sha256 must be a text"),
        (("version",), 2, "it has version 2, this latent_obs reads 1"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, path: tuple[Any, ...], value: object, message: str) -> None:
    change(folder, path, value)
    with pytest.raises(ValueError, match=f"config.json does not describe an encoder: .*{message}"):
        read_config(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"a":' * 100_000, "\ud800", "null", "3" * 5000],
    ids=lambda text: text[:5],
)
def test_a_text_that_is_no_config_is_one_error(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match="does not describe an encoder"):
        read_config(folder)


def test_any_mutation_of_the_config_is_read_or_is_a_value_error(folder: Path) -> None:
    """Three hundred random ones; LATENT_OBS_MUTATIONS=10000 tries more."""
    rng = random.Random(0)
    original = (folder / "config.json").read_text()
    values = [
        None,
        True,
        0,
        -1,
        0.5,
        1e300,
        float("inf"),
        float("nan"),
        10**30,
        "",
        "x",
        [],
        {},
        [[1]],
        {"a": 1},
    ]
    for _ in range(int(os.environ.get("LATENT_OBS_MUTATIONS", "300"))):
        content = json.loads(original)
        place: Any = content
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            key = rng.choice(keys)
            if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.3:
                break
            place = place[key]
        if rng.random() < 0.3:
            del place[key]
        else:
            place[key] = rng.choice(values)
        (folder / "config.json").write_text(json.dumps(content))
        try:
            config = read_config(folder)
        except ValueError:
            continue
        assert json.loads(json.dumps(config.to_json())) == config.to_json()
        assert np.isfinite(config.scaling).all()


def test_fields_of_other_versions_are_kept(folder: Path) -> None:
    """Encoders of earlier versions hold options that are gone, later ones may hold what is not there yet."""
    change(folder, ("provenance", "run", "config", "position_weight"), 1000.0)
    change(folder, ("provenance", "weather"), {"rain": [1, None]})
    change(folder, ("metrics", "elegance"), 1.0)
    config = read_config(folder)
    assert config.provenance.run is not None
    assert config.provenance.run.config == {"seed": 3, "position_weight": 1000.0}
    assert config.metrics.psnr == 40
    written = replace(config, weights_sha256=None).to_json()
    before = json.loads((folder / "config.json").read_text())
    assert {**written, "weights_sha256": before["weights_sha256"]} == before


def test_provenance_and_metrics_read_like_the_objects_they_are_written_as(folder: Path) -> None:
    config = read_config(folder)
    assert config.provenance["run"]["config"]["seed"] == 3
    assert config.metrics.get("moving_r2") is None
    assert "moving_r2" not in config.metrics
    assert {**config.metrics} == {"psnr": 40.0, "active_units": 2}


@pytest.mark.parametrize("name", sorted(path.parent.name for path in PRETRAINED.glob("*/config.json")))
def test_bundled_encoders_are_older_than_these_checks_and_pass_them(name: str) -> None:
    config = read_config(PRETRAINED / name)
    assert config.to_json() == json.loads((PRETRAINED / name / "config.json").read_text())
    assert set(read_tensors(PRETRAINED / name, config)) == set(config.vae.tensor_shapes())


def without_fingerprint(folder: Path, change: Callable[[dict[str, Any]], None]) -> EncoderConfig:
    """Change the weights of a folder as if it were older than the fingerprint."""
    tensors = safetensors.numpy.load_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return replace(read_config(folder), weights_sha256=None)


@pytest.mark.parametrize("name", ["encoder.conv1.weight", "mean.weight", "decoder.conv0.weight"])
def test_weights_that_overflow_float32_are_refused(folder: Path, name: str) -> None:
    """Each is finite; their sum over a layer is not."""
    config = without_fingerprint(folder, lambda tensors: tensors[name].fill(3e38))
    with pytest.raises(ValueError, match="weights so large that float32 overflows"):
        read_tensors(folder, config)


def test_weights_beyond_float32_are_refused(folder: Path) -> None:
    def double(tensors: dict[str, Any]) -> None:
        tensors["mean.bias"] = np.full(32, 1e300)

    with pytest.raises(ValueError, match=r"mean.bias holds values that are not finite"):
        read_tensors(folder, without_fingerprint(folder, double))


@pytest.mark.parametrize("variance", [0.0, -1.0])
def test_a_decoder_variance_that_is_not_positive_is_refused(folder: Path, variance: float) -> None:
    def set_variance(tensors: dict[str, Any]) -> None:
        tensors["decoder_variance"] = np.array(variance, np.float32)

    with pytest.raises(ValueError, match="decoder_variance must be positive"):
        read_tensors(folder, without_fingerprint(folder, set_variance))


def test_weights_under_anothers_config_are_noticed(folder: Path, tmp_path: Path) -> None:
    """As a copy leaves them that was interrupted between the two files."""
    other = tmp_path / "other"
    write_encoder_folder(other, read_config(folder), random_tensors(TINY_VAE, seed=1))
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds other weights than its config"):
        read_tensors(folder, read_config(folder))


@pytest.mark.parametrize("writes", range(3))
def test_an_interrupted_replacement_is_never_taken_for_an_encoder(
    folder: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after none, one or two of its three files have got their names."""
    before = (folder / "model.safetensors").read_bytes()
    config = replace(read_config(folder), latents={n: [2.0] * 32 for n in ("mean", "std", "kl")})
    rename = os.replace
    renamed: list[str] = []

    def killed(source: Any, target: Any) -> None:
        if len(renamed) == writes:
            raise KeyboardInterrupt
        renamed.append(Path(target).name)
        rename(source, target)

    calibration = np.zeros((64, 64, 64, 3), np.uint8)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_encoder_folder(folder, config, random_tensors(TINY_VAE, seed=1), calibration)
    monkeypatch.setattr(os, "replace", rename)
    assert renamed == ["calibration.png", "model.safetensors", "config.json"][:writes]
    assert ((folder / "model.safetensors").read_bytes() == before) == (writes < 2)
    with pytest.raises(FileNotFoundError, match=r"has no config.json. Train one"):
        read_config(folder)
    written = write_encoder_folder(folder, config, random_tensors(TINY_VAE, seed=1))
    assert read_config(folder).weights_sha256 == written.weights_sha256
    read_tensors(folder, written)


def png_that_claims(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + b"\0" * 40


def png(side: int) -> bytes:
    return bytes(cv2.imencode(".png", np.zeros((side, side, 3), np.uint8))[1].tobytes())


@pytest.mark.parametrize(
    "data",
    [b"", b"GIF89a", png_that_claims(40_000, 40_000), png_that_claims(512, 512), png(64)],
)
def test_a_picture_of_another_size_is_refused_before_it_is_unpacked(
    folder: Path, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "calibration.png").write_bytes(data)
    if struct.pack(">II", 512, 512) not in data:
        monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(ValueError, match=r"holds no calibration frames|must be a 512x512 picture"):
        read_calibration(folder)

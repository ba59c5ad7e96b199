from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import openvino as ov
import pytest
import torch

from latent_obs.cli import main
from latent_obs.encoders import export
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.export import ExportConfig, export_encoder, open_model
from latent_obs.encoders.folder import VAEConfig, read_calibration, read_config
from latent_obs.vae import load_vae
from tests.conftest import save_encoder

PONG = Path(export.__file__).parents[1] / "pretrained" / "pong-v0"


@pytest.fixture(scope="module", params=[(32, 64, 128), (16, 32, 64, 128)], ids=["three", "four"])
def exported(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder folder of random weights, with its ONNX files beside them."""
    folder = save_encoder(tmp_path_factory.mktemp("export") / "e", VAEConfig(32, request.param))
    export_encoder(ExportConfig(str(folder), folder))
    return folder


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_encoder_equals_torch_and_openvino(exported: Path, batch: int, frames: Any) -> None:
    images = frames(batch)
    latents = open_model(exported / "encoder.onnx")(images)
    assert latents.dtype == np.float32
    assert latents.shape == (batch, 32)
    reference = load_vae(exported)[0](torch.from_numpy(images)).numpy()
    ours = load_encoder(exported, backend="openvino", precision="float32")(images)
    for other in (reference, ours):
        np.testing.assert_allclose(latents, other, atol=1e-4, rtol=0)
    assert batch == 1 or reference.std(0).min() > 0.01, "a test of constant outputs tests nothing"


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_decoder_equals_torch(exported: Path, batch: int) -> None:
    latents = np.random.default_rng(batch).normal(size=(batch, 32)).astype(np.float32)
    images = open_model(exported / "decoder.onnx")(latents)
    assert images.dtype == np.float32
    assert images.shape == (batch, 64, 64, 3)
    reference = load_vae(exported)[0].decode(torch.from_numpy(latents)).numpy()
    np.testing.assert_allclose(images, reference, atol=1e-4, rtol=0)
    assert 0.1 < reference.std() < 0.49, "neither constant nor all saturated"


@pytest.mark.parametrize("batch", [1, 7])
def test_openvino_reads_both_files(exported: Path, batch: int, frames: Any) -> None:
    given, core = frames(batch), ov.Core()
    for name in ("encoder.onnx", "decoder.onnx"):
        model = core.compile_model(
            core.read_model(exported / name), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        result = model(given)[0]
        np.testing.assert_allclose(result, open_model(exported / name)(given), atol=1e-4, rtol=0)
        given = result


def test_both_files_say_what_they_are(exported: Path) -> None:
    config = read_config(exported)
    for name, given, result in (
        ("encoder.onnx", ("frames", onnx.TensorProto.UINT8), ("latent", onnx.TensorProto.FLOAT)),
        ("decoder.onnx", ("latent", onnx.TensorProto.FLOAT), ("image", onnx.TensorProto.FLOAT)),
    ):
        model = onnx.load(exported / name)
        assert [(x.name, x.type.tensor_type.elem_type) for x in model.graph.input] == [given]
        assert [(x.name, x.type.tensor_type.elem_type) for x in model.graph.output] == [result]
        assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
        (entry,) = model.metadata_props
        assert entry.key == "latent_obs"
        said = json.loads(entry.value)
        assert (said["format"], said["version"], said["encoder"]) == ("latent_obs.onnx", 1, exported.name)
        assert said["frame_spec"] == config.frame_spec.to_json()
        assert said["latents"] == config.latents


def test_the_bundled_encoder_is_exported_by_name(tmp_path: Path) -> None:
    report = export_encoder(ExportConfig("pong-v0", tmp_path / "new" / "folder"))
    files = {path.name: path.stat().st_size for path in (tmp_path / "new" / "folder").iterdir()}
    assert files == {name: report[name]["bytes"] for name in ("encoder.onnx", "decoder.onnx")}
    frames = read_calibration(PONG)
    assert frames is not None
    assert report["frames"] == len(frames)
    latents = open_model(tmp_path / "new" / "folder" / "encoder.onnx")(frames)
    expected = load_encoder("pong-v0", precision="float32", normalize=False)(frames)
    np.testing.assert_allclose(latents, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("file", "build", "wrong"),
    [
        ("encoder.onnx", "encoder_model", "mean.bias"),
        ("encoder.onnx", "encoder_model", "encoder.conv0.weight"),
        ("decoder.onnx", "decoder_model", "output_bias"),
    ],
)
@pytest.mark.parametrize("error", [0.01, np.nan])
def test_a_graph_that_differs_from_torch_leaves_no_file(
    file: str, build: str, wrong: str, error: float, encoder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    real = getattr(export, build)

    def spoiled(vae: Any, tensors: Any, metadata: Any) -> Any:
        return real(vae, {**tensors, wrong: tensors[wrong] + np.float32(error)}, metadata)

    monkeypatch.setattr(export, build, spoiled)
    with pytest.raises(ValueError, match=rf"The {file} of .* differs from torch by .*No file was written"):
        export_encoder(ExportConfig(str(encoder), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_cure(
    package: str, encoder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package},.*pip install .*\[onnx\]'"):
        export_encoder(ExportConfig(str(encoder), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_files_and_differences(
    encoder: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(encoder), "--out", "out"]) == 0
    table = capsys.readouterr().out
    for name in ("encoder.onnx", "decoder.onnx"):
        assert name in table
        assert f"{(tmp_path / 'out' / name).stat().st_size:,}" in table


@pytest.mark.parametrize("name", ["pong-v99", "."])
def test_a_wrong_encoder_brings_one_line_and_no_traceback(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latent_obs", "export", name, "--out", "out"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

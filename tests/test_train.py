from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.dataset import FramesFolder
from latent_obs.encoder import load_encoder
from latent_obs.encoder_folder import read_config, read_tensors
from latent_obs.evaluate import load_vae, reconstruct
from latent_obs.train import CHECKPOINT, TrainConfig, train_vae

# A test that takes a few steps may well end collapsed; that this is announced has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:.*(COLLAPSE|collapsed in training)")


@pytest.fixture
def quick(pong_frames: FramesFolder, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        pong_frames.path, tmp_path / "encoder", steps=60, channels=(8, 8), batch_size=32, precision="float32"
    )


def tensors(folder: Path) -> Any:
    return read_tensors(folder, read_config(folder))


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "history.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_training_improves_the_objective_and_writes_a_whole_encoder(quick: TrainConfig) -> None:
    result = train_vae(replace(quick, steps=150), progress=False)
    rows = history(quick.out)
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"] - 3000
    assert sorted(os.listdir(quick.out)) == [
        "calibration.png",
        "config.json",
        "history.csv",
        "model.safetensors",
    ]
    assert read_config(quick.out) == result
    assert result.provenance["run"]["config"]["steps"] == 150
    assert load_encoder(quick.out)(np.zeros((64, 64, 3), np.uint8)).shape == (32,)


def test_the_statistics_are_those_of_the_latents(quick: TrainConfig, pong_frames: FramesFolder) -> None:
    latents = train_vae(quick, progress=False).latents
    train, _ = pong_frames.split(quick.validation, quick.seed)
    encoded = load_encoder(quick.out, precision="float32")(pong_frames.load(train))
    np.testing.assert_allclose(latents["mean"], encoded.mean(0), atol=1e-4)
    np.testing.assert_allclose(latents["std"], encoded.std(0), atol=1e-4)


def test_the_same_seed_trains_the_same_weights(quick: TrainConfig) -> None:
    first, second = quick, replace(quick, out=quick.out.with_name("second"))
    train_vae(first, progress=False)
    train_vae(second, progress=False)
    a, b = tensors(first.out), tensors(second.out)
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_resumes_to_the_same_weights(
    quick: TrainConfig, how: signal.Signals, tmp_path: Path
) -> None:
    config = replace(quick, steps=400)
    straight = replace(config, out=tmp_path / "straight")
    train_vae(straight, progress=False)
    command = f"""
import latent_obs.train as t
from pathlib import Path
t.CHECKPOINT_SECONDS = 0.2
t.train_vae(t.TrainConfig(Path({str(config.data)!r}), Path({str(config.out)!r}), steps=400,
    channels=(8, 8), batch_size=32, precision="float32"), progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (config.out / CHECKPOINT).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert not (config.out / "config.json").exists(), "it finished before it could be interrupted"
    train_vae(config, progress=False)
    a, b = tensors(config.out), tensors(straight.out)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert history(config.out) == history(straight.out)
    assert not (config.out / CHECKPOINT).exists()


def test_a_finished_encoder_is_kept(quick: TrainConfig) -> None:
    train_vae(quick, progress=False)
    before = (quick.out / "model.safetensors").stat().st_mtime_ns
    train_vae(quick, progress=False)
    assert (quick.out / "model.safetensors").stat().st_mtime_ns == before


def test_another_encoder_is_only_replaced_when_told_to(quick: TrainConfig) -> None:
    train_vae(quick, progress=False)
    other = replace(quick, seed=1)
    with pytest.raises(ValueError, match="already holds an encoder"):
        train_vae(other, progress=False)
    result = train_vae(replace(other, overwrite=True), progress=False)
    assert result.provenance["run"]["config"]["seed"] == 1


def test_an_unfinished_run_of_other_settings_is_not_continued(quick: TrainConfig) -> None:
    quick.out.mkdir()
    (quick.out / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        train_vae(quick, progress=False)


def test_sse_is_the_plain_squared_error(quick: TrainConfig) -> None:
    """World Models' objective knows no emphasis."""
    train_vae(replace(quick, objective="sse", steps=2), progress=False)
    for row in history(quick.out):
        assert row["reconstruction"] == row["squared_error"]


def test_a_collapsed_encoder_is_announced(quick: TrainConfig) -> None:
    """The classic objective with a heavy KL term leaves nothing in the latent."""
    collapsing = replace(quick, objective="sse", kl_weight=1000.0, kl_warmup=0.0, steps=150)
    with pytest.warns(RuntimeWarning, match="POSTERIOR COLLAPSE"):
        result = train_vae(collapsing, progress=False)
    assert result.metrics["active_units"] == 0
    with pytest.warns(RuntimeWarning, match="collapsed in training"):
        load_encoder(quick.out)


def test_a_loss_that_is_not_finite_stops_training(quick: TrainConfig) -> None:
    with pytest.raises(FloatingPointError, match="Lower --learning-rate"):
        train_vae(replace(quick, foreground_weight=1e38), progress=False)
    assert not (quick.out / "config.json").exists()


def test_bfloat16_trains_as_well_as_float32(quick: TrainConfig) -> None:
    last = []
    for precision in ("float32", "bfloat16"):
        config = replace(quick, out=quick.out / precision, precision=precision, steps=100)
        train_vae(config, progress=False)
        last.append(history(config.out)[-1]["reconstruction"])
    assert last[0] == pytest.approx(last[1], rel=0.05)


def test_decoding_resembles_the_frame_more_than_another_frame(
    quick: TrainConfig, pong_frames: FramesFolder
) -> None:
    train_vae(replace(quick, steps=300, learning_rate=3e-3), progress=False)
    vae, _ = load_vae(quick.out)
    frames = pong_frames.sample(64)
    decoded = reconstruct(vae, frames).astype(float)
    own = np.square(decoded - frames).mean()
    other = np.square(decoded - np.roll(frames, 1, 0)).mean()
    assert own < other


@pytest.mark.parametrize(
    "fields",
    [{"steps": 0}, {"learning_rate": 0.0}, {"kl_weight": -1.0}, {"validation": 1.0}, {"channels": ()}],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        TrainConfig(Path("frames"), **fields)


def test_training_without_frames_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="latent-obs collect"):
        train_vae(TrainConfig(tmp_path / "none", tmp_path / "encoder"), progress=False)
    assert not (tmp_path / "encoder").exists()

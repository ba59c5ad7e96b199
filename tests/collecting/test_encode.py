from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latent_obs.cli import main
from latent_obs.collecting import encode
from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import LatentsFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.vae import load_vae
from tests.conftest import save_encoder
from tests.data.test_curate import collection


@pytest.fixture
def pong(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "pong", "Pong")


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_the_posterior_is_that_of_the_vae(encoder: Path, frames: Any, backend: Any) -> None:
    batch = frames(20)
    with torch.inference_mode():
        mean, log_variance = (x.numpy() for x in load_vae(encoder)[0].encode(torch.from_numpy(batch)))
    frozen = load_encoder(encoder, backend=backend, precision="float32")
    found = frozen.posterior(batch)
    np.testing.assert_allclose(found[0], mean, atol=1e-4)
    np.testing.assert_allclose(found[1], log_variance, atol=1e-4)
    np.testing.assert_allclose(found[0], frozen(batch), atol=1e-6)
    assert frozen.posterior(batch[:0])[1].shape == (0, 32)
    np.testing.assert_allclose(frozen.posterior(batch[0])[1], log_variance[0], atol=1e-4)


def test_an_encoder_that_has_encoded_posteriors_still_pickles(encoder: Path, frames: Any) -> None:
    frozen, batch = load_encoder(encoder), frames(3)
    before = frozen.posterior(batch)
    again = pickle.loads(pickle.dumps(frozen)).posterior(batch)
    assert all(np.array_equal(a, b) for a, b in zip(before, again, strict=True))


def test_latents_and_steps_come_back_as_episodes(pong: FramesFolder, encoder: Path, tmp_path: Path) -> None:
    latents = encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    frozen = load_encoder(encoder)
    wanted = [row for shard in pong.shards for row in pq.read_table(shard.path).to_pylist()]
    assert (len(latents), latents.latent_dim) == (360, 32)
    episodes = list(latents.episodes())
    assert [episode.episode for episode in episodes] == list(pong.episodes())
    for i, episode in enumerate(episodes):
        mean, log_variance = frozen.posterior(pong.load([episode.episode]))
        np.testing.assert_allclose(episode.mean, mean, atol=1e-5)
        np.testing.assert_allclose(episode.log_variance, log_variance, atol=1e-5)
        rows = wanted[60 * i : 60 * i + 60]
        assert episode.action.tolist() == [row["action"] or 0 for row in rows]
        assert episode.reward.tolist() == [row["reward"] for row in rows]
        assert episode.terminated.tolist() == [row["terminated"] for row in rows]
    drawn = np.stack([episodes[0].sample(np.random.default_rng(seed)) for seed in range(300)])
    std = np.exp(episodes[0].log_variance / 2)
    np.testing.assert_allclose(drawn.std(0) / std, 1, atol=0.2)


def test_any_parquet_reader_opens_latents(pong: FramesFolder, encoder: Path, tmp_path: Path) -> None:
    latents = encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    row = pq.read_table(latents.files[0]).to_pylist()[1]
    assert len(row["mean"]) == len(row["log_variance"]) == 32
    assert (row["episode"], row["step"]) == (0, 1)
    assert latents.metadata["frames"] == pong.identity
    assert len(latents.metadata["encoder"]["sha256"]) == 64


def test_a_finished_folder_is_kept_and_another_never_replaced(
    pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    config = EncodeConfig(pong.path, str(encoder), tmp_path / "latents")
    before = encode_frames(config, progress=False).files[0].stat().st_mtime_ns
    assert encode_frames(config, progress=False).files[0].stat().st_mtime_ns == before
    other = collection(tmp_path / "other", "Pong", seed=1)
    with pytest.raises(FileExistsError, match="exists already"):
        encode_frames(EncodeConfig(other.path, str(encoder), config.out), progress=False)


def test_an_interrupted_run_goes_on_with_the_shard_it_was_in(
    pong: FramesFolder, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain = EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), encode._encode
    calls, stop_at = 0, 2

    def count(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(encode, "_encode", count)
    with pytest.raises(KeyboardInterrupt):
        encode_frames(config, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".latents.tmp", "pong"]
    calls = -10
    assert len(encode_frames(config, progress=False)) == 360
    assert calls == -10 + 1, "the first shard was encoded again"
    assert sorted(os.listdir(tmp_path)) == ["latents", "pong"]


def test_another_frame_spec_is_an_error_and_another_game_a_warning(
    pong: FramesFolder, tmp_path: Path
) -> None:
    cropped = save_encoder(tmp_path / "cropped", frame_spec=FrameSpec(crop=(0, 64, 0, 64)))
    with pytest.raises(ValueError, match="Collect frames for it with the same crop"):
        encode_frames(EncodeConfig(pong.path, str(cropped), tmp_path / "a"), progress=False)
    tennis = save_encoder(tmp_path / "tennis", source=FrameSource("Tennis"))
    with pytest.warns(UserWarning, match="trained on Tennis, the frames come from Pong"):
        encode_frames(EncodeConfig(pong.path, str(tennis), tmp_path / "b"), progress=False)
    both = save_encoder(tmp_path / "both", source=FrameSource("Pong + Tennis"))
    encode_frames(EncodeConfig(pong.path, str(both), tmp_path / "c"), progress=False)


def test_the_command_says_what_it_made(
    pong: FramesFolder, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "latents")
    assert main(["encode", str(pong.path), str(encoder), "--out", out]) == 0
    assert "360 latents of 32 numbers by tiny in float32" in capsys.readouterr().out


def test_a_folder_without_latents_names_the_cure(pong: FramesFolder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="latent-obs encode"):
        LatentsFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no latents"):
        LatentsFolder(pong.path)

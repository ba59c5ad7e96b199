from __future__ import annotations

import contextlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from latent_obs.cli import main
from latent_obs.collecting import encode_shard
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data import parquet, storage
from latent_obs.data.folder import FramesFolder
from latent_obs.data.latents import LatentsFolder
from latent_obs.data.parquet import staged_folder
from latent_obs.data.shards import METADATA_KEY
from latent_obs.encoders.encoder import load_encoder
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.vae import load_vae
from latent_obs.wrappers import LatentObservationWrapper
from tests.conftest import FrameEnv, save_encoder
from tests.data.test_curate import collection


def rewrite(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change what a file of latents says of itself."""
    stored = change(json.loads(pq.read_metadata(file).metadata[METADATA_KEY]))
    table = pq.read_table(file).replace_schema_metadata({METADATA_KEY: json.dumps(stored)})
    pq.write_table(table, file, row_group_size=8192)


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
    config, plain = EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), encode_shard._encode
    calls, stop_at = 0, 2

    def count(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise KeyboardInterrupt
        return plain(*arguments)

    monkeypatch.setattr(encode_shard, "_encode", count)
    with pytest.raises(KeyboardInterrupt):
        encode_frames(config, progress=False)
    assert sorted(os.listdir(tmp_path)) == [".latents.tmp", "pong"]
    calls = -10
    assert len(encode_frames(config, progress=False)) == 360
    assert calls == -10 + 1, "the first shard was encoded again"
    assert sorted(os.listdir(tmp_path)) == ["latents", "pong"]


def test_what_macos_leaves_beside_a_file_is_no_file_of_latents(
    pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    config = EncodeConfig(pong.path, str(encoder), tmp_path / "latents")
    latents = encode_frames(config, progress=False)
    (tmp_path / "latents" / f"._{latents.files[0].name}").write_bytes(b"Mac OS X")
    assert LatentsFolder(tmp_path / "latents").files == latents.files


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


@pytest.mark.parametrize("normalize", [True, False])
def test_a_latents_folder_gives_what_a_wrapper_shows_the_agent(
    trained: Path, tmp_path: Path, normalize: bool
) -> None:
    gym.register("Latents-v0", lambda **_: FrameEnv(), disable_env_checker=True)
    try:
        config = CollectConfig("Latents-v0", tmp_path / "frames", frames=12, workers=1)
        frames = collect_frames(config, progress=False)
    finally:
        gym.registry.pop("Latents-v0")
    encode_frames(EncodeConfig(frames.path, str(trained), tmp_path / "latents"), progress=False)
    latents = LatentsFolder(tmp_path / "latents", normalize=normalize)
    env = LatentObservationWrapper(FrameEnv(), str(trained), normalize=normalize)
    seed: int | None = int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0])
    for episode in latents.episodes():
        observations = [env.reset(seed=seed)[0]]
        observations += [env.step(action)[0] for action in episode.action[1:].tolist()]
        np.testing.assert_allclose(episode.mean, np.stack(observations), atol=1e-3)
        seed = None
    stored = np.concatenate([episode.mean for episode in LatentsFolder(latents.path).episodes()])
    assert (
        np.allclose(stored.std(0), np.concatenate([e.mean for e in latents.episodes()]).std(0)) != normalize
    )


def test_the_spread_of_a_posterior_is_scaled_as_its_mean(
    pong: FramesFolder, trained: Path, tmp_path: Path
) -> None:
    """The ratio of two deviations of one dimension does not depend on the scale."""
    encode_frames(EncodeConfig(pong.path, str(trained), tmp_path / "latents"), progress=False)
    raw, scaled = (next(LatentsFolder(tmp_path / "latents", normalize=n).episodes()) for n in (False, True))
    np.testing.assert_allclose(
        np.exp(scaled.log_variance / 2) / scaled.mean.std(0),
        np.exp(raw.log_variance / 2) / raw.mean.std(0),
        rtol=1e-3,
    )


def test_a_folder_of_an_earlier_version_is_read_and_kept_but_cannot_be_scaled(
    pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    config = EncodeConfig(pong.path, str(encoder), tmp_path / "latents")
    for file in encode_frames(config, progress=False).files:
        rewrite(file, lambda stored: {k: v for k, v in stored.items() if k != "scaling"})
    assert len(encode_frames(config, progress=False)) == 360
    with pytest.raises(ValueError, match="did not store how wrappers scale"):
        LatentsFolder(config.out, normalize=True)


def test_two_encodings_in_one_folder_are_kept_apart(
    pong: FramesFolder, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second ends with an error while the first is at work, which then finishes."""
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    config, plain = EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), encode_shard._encode
    refused: list[str] = []

    def second(*arguments: Any) -> Any:
        monkeypatch.setattr(encode_shard, "_encode", plain)
        with pytest.raises(ValueError, match=rf"writing to {config.out} \(process {os.getpid()}"):
            encode_frames(config, progress=False)
        refused.append("yes")
        return plain(*arguments)

    monkeypatch.setattr(encode_shard, "_encode", second)
    assert len(encode_frames(config, progress=False)) == 360
    assert refused == ["yes"]
    assert sorted(os.listdir(config.out)) == ["part-000-00000.parquet", "part-000-00001.parquet"]


def test_an_encoding_that_waited_for_another_one_does_not_write_into_what_that_made(
    pong: FramesFolder, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, plain = EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), storage.locked

    @contextlib.contextmanager
    def slow(*arguments: Any) -> Any:
        """Another process finishes the folder between the look at it and the lock."""
        with plain(*arguments) as lock:
            monkeypatch.setattr(parquet, "locked", plain)
            os.rename(tmp_path / ".latents.tmp", tmp_path / "elsewhere")
            encode_frames(config, progress=False)
            yield lock

    monkeypatch.setattr(parquet, "locked", slow)
    with pytest.raises(FileExistsError, match="exists already"):
        encode_frames(config, progress=False)
    assert len(LatentsFolder(config.out)) == 360


@pytest.mark.parametrize("foreign", ["folder", "plan", "link"])
def test_a_foreign_folder_of_the_hidden_name_is_neither_used_nor_deleted(
    foreign: str, pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    mine, hidden = tmp_path / "mine", tmp_path / ".latents.tmp"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    if foreign == "plan":
        (mine / ".plan.json").write_text('{"tomorrow": "rest"}')
    if foreign == "link":
        hidden.symlink_to(mine)
    else:
        mine.rename(hidden)
    with pytest.raises(FileExistsError, match="was not made for that"):
        encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    assert (hidden / "thesis.txt").read_text() == "years of work"
    assert len(os.listdir(hidden)) == 1 + (foreign == "plan")


def test_a_link_of_the_hidden_name_is_not_followed_even_into_an_empty_folder(
    pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".latents.tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(FileExistsError, match="was not made for that"):
        encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    assert os.listdir(tmp_path / "mine") == []


def test_what_was_killed_while_it_wrote_its_plan_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / ".latents.tmp").mkdir()
    (tmp_path / ".latents.tmp" / "..plan.json.01234567.tmp").touch()
    with staged_folder(tmp_path / "latents", {"x": 1}):
        pass
    assert os.listdir(tmp_path / "latents") == []


def test_what_another_plan_left_behind_is_cleared_away(
    pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    with contextlib.suppress(KeyboardInterrupt), staged_folder(tmp_path / "latents", {"x": 1}) as staging:
        (staging / "part").mkdir()
        (staging / "part" / "a.parquet").touch()
        (staging / "b.parquet").symlink_to(pong.shards[0].path)
        raise KeyboardInterrupt
    encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    assert sorted(os.listdir(tmp_path / "latents")) == ["part-000-00000.parquet", "part-000-00001.parquet"]
    assert len(pong.load()) == 360


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": None}, "its encoder must be an object"),
        ({"encoder": {"latent_dim": 10**9}}, "its latent_dim must be an integer from 1 to 65,536"),
        ({"encoder": {"latent_dim": 16}}, "the column mean is .* and not 16 floats"),
        ({"frames": 3}, "its frames must be an object"),
        ({"source": None}, "its source must be an object"),
        ({"frame_spec": {}}, "exactly the fields"),
        ({"scaling": {"mean": [0.0] * 32, "std": [0.0] * 32}}, "32 above 0 as std"),
        ({"scaling": {"mean": [0.0] * 31, "std": [1.0] * 32}}, "must have 32 numbers as mean"),
        ({"scaling": []}, "must have 32 numbers as mean"),
    ],
)
def test_hostile_latents_are_refused(
    change: dict[str, Any], message: str, pong: FramesFolder, encoder: Path, tmp_path: Path
) -> None:
    file = encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False).files[1]
    rewrite(file, lambda stored: {**stored, **change})
    with pytest.raises(ValueError, match=message):
        LatentsFolder(file.parent)


def test_a_pipe_among_latents_is_refused(pong: FramesFolder, encoder: Path, tmp_path: Path) -> None:
    encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    os.mkfifo(tmp_path / "latents" / "x.parquet")
    with pytest.raises(ValueError, match="is not a regular file"):
        LatentsFolder(tmp_path / "latents")


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

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest

from latent_obs.cli import main
from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.check import check_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.minari import ExportMinariConfig, ImportMinariConfig, export_minari, import_minari
from latent_obs.frames import FrameSpec, preprocess
from tests.data.test_curate import collection, rows

minari = pytest.importorskip("minari")

# The collections below come from environments that do not exist.
pytestmark = pytest.mark.filterwarnings("ignore:The environment of .* cannot be made here")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def pong(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "pong", "NoSuchGame")


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def make_dataset(dataset_id: str, space: gym.Space[Any], images: Any, **options: Any) -> None:
    """Two episodes of ``images``, as someone else may have made them."""
    from minari.data_collector import EpisodeBuffer

    steps = len(images) - 1
    observations = (
        {"image": images, "speed": np.zeros(len(images))} if options.pop("inside", False) else images
    )
    buffer = [
        EpisodeBuffer(
            observations=observations,
            actions=np.arange(steps, dtype=np.float32).reshape(-1, 1) / (i + 1),
            rewards=np.arange(steps) / 3,
            terminations=np.arange(steps) == steps - 1,
            truncations=np.zeros(steps, bool),
        )
        for i in range(2)
    ]
    minari.create_dataset_from_buffers(
        dataset_id,
        buffer,
        observation_space=space,
        action_space=gym.spaces.Box(-9, 99, (1,), np.float32),
        **options,
    )


@pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")
@pytest.mark.parametrize("inside", [False, True])
def test_images_become_frames_with_their_steps(tmp_path: Path, inside: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 80, 72, 3), dtype=np.uint8)
    space: Any = gym.spaces.Box(0, 255, (80, 72, 3), np.uint8)
    if inside:
        space = gym.spaces.Dict({"image": space, "speed": gym.spaces.Box(0, 1, (), np.float64)})
    make_dataset("images-v0", space, images, inside=inside, jpeg_encoding=False)
    crop = (8, 80, 0, 72)
    config = ImportMinariConfig("images-v0", tmp_path / "frames", "image" if inside else None, crop)
    folder = import_minari(config, progress=False)
    wanted = np.stack([preprocess(image, FrameSpec(crop=crop)) for image in images])
    assert np.array_equal(folder.load(), np.concatenate([wanted, wanted]))
    stored = rows(folder)
    assert [row["action"] for row in stored[12:15]] == [None, [0.0], [0.5]]
    assert [row["reward"] for row in stored[:4]] == [0, 0, 1 / 3, 2 / 3]
    assert [row["terminated"] for row in stored[10:13]] == [False, True, False]
    assert folder.episodes() == {0: 12, 1: 12}
    assert folder.identity["minari"]["id"] == "images-v0"
    assert check_frames(folder.path, progress=False) == {}


@pytest.mark.filterwarnings("ignore:.*is set to None", "ignore:env_spec is None")
def test_images_that_minari_stored_as_jpeg_are_announced(tmp_path: Path) -> None:
    """That is its default, and not what was put in."""
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    make_dataset("jpeg-v0", gym.spaces.Box(0, 255, (64, 64, 3), np.uint8), images)
    with pytest.warns(UserWarning, match="stored the images of jpeg-v0 as JPEG"):
        folder = import_minari(ImportMinariConfig("jpeg-v0", tmp_path / "frames"), progress=False)
    assert not np.array_equal(folder.load([0]), images)


def test_frames_survive_the_round_trip_bit_for_bit(pong: FramesFolder, tmp_path: Path) -> None:
    dataset = export_minari(ExportMinariConfig(pong.path, "pong/frames-v0"), progress=False)
    assert (dataset.total_episodes, dataset.total_steps) == (6, 354)
    assert dataset.observation_space.shape == (64, 64, 3)
    assert np.array_equal(dataset[0].observations, pong.load([0]))
    back = import_minari(ImportMinariConfig("pong/frames-v0", tmp_path / "back"), progress=False)
    assert np.array_equal(back.load(), pong.load())
    for mine, other in zip(rows(back), rows(pong), strict=True):
        assert {k: v for k, v in mine.items() if k != "episode"} == {
            k: v for k, v in other.items() if k != "episode"
        }
    assert (back.frame_spec, back.source) == (pong.frame_spec, pong.source)


def test_latents_are_exported_bit_for_bit(pong: FramesFolder, encoder: Path, tmp_path: Path) -> None:
    latents = encode_frames(EncodeConfig(pong.path, str(encoder), tmp_path / "latents"), progress=False)
    dataset = export_minari(ExportMinariConfig(latents.path, "pong/latents-v0"), progress=False)
    for exported, episode in zip(dataset.iterate_episodes(), latents.episodes(), strict=True):
        assert exported.observations.dtype == np.float32
        assert np.array_equal(exported.observations, episode.mean)
        assert np.array_equal(exported.actions, episode.action[1:])
        assert np.array_equal(exported.rewards, episode.reward[1:])
    assert dataset.storage.metadata["latent_obs"]["encoder"]["name"] == "tiny"


def test_the_environment_of_real_frames_can_be_recovered(pong_frames: FramesFolder, root: Path) -> None:
    dataset = export_minari(ExportMinariConfig(pong_frames.path, "real-v0"), progress=False)
    assert dataset.action_space == gym.spaces.Discrete(6)
    assert dataset.env_spec.id == "ALE/Pong-v5"
    assert (root / "real-v0").is_dir()


def test_an_existing_dataset_is_not_replaced_and_a_failed_one_not_left(
    pong: FramesFolder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_minari(ExportMinariConfig(pong.path, "x-v0"), progress=False)
    with pytest.raises(ValueError, match="Choose another id"):
        export_minari(ExportMinariConfig(pong.path, "x-v0"), progress=False)
    data = bytearray(Path(pong.shards[1].path).read_bytes())
    column = pq.read_metadata(pong.shards[1].path).row_group(0).column(0)
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    Path(pong.shards[1].path).write_bytes(bytes(data))
    with pytest.raises(OSError, match="CRC"):
        export_minari(ExportMinariConfig(pong.path, "y-v0"), progress=False)
    assert not (root / "y-v0").exists()


def test_the_commands_say_what_they_made(
    pong: FramesFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["frames", "export-minari", str(pong.path), "x-v0"]) == 0
    assert "x-v0: 6 episodes, 354 steps" in capsys.readouterr().out
    assert main(["frames", "import-minari", "x-v0", "--out", str(tmp_path / "back")]) == 0
    assert "back: 360 frames, 6 episodes" in capsys.readouterr().out
    assert main(["frames", "import-minari", "nothing-v0", "--out", str(tmp_path / "no")]) == 1
    assert "minari download nothing-v0" in capsys.readouterr().err

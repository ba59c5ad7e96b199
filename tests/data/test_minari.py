from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latent_obs.cli import main
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.encode import EncodeConfig, encode_frames
from latent_obs.data.check import check_frames
from latent_obs.data.curate import MergeConfig, merge_frames
from latent_obs.data.folder import FramesFolder
from latent_obs.data.lerobot import ExportLerobotConfig, export_lerobot
from latent_obs.data.minari import ExportMinariConfig, ImportMinariConfig, export_minari, import_minari
from latent_obs.frames import FrameSpec, preprocess
from latent_obs.progress import Bar
from tests.data.test_curate import collection, rows
from tests.data.test_lerobot import of_actions

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
    cropped = ImportMinariConfig("pong/frames-v0", tmp_path / "cropped", crop=(0, 32, 0, 64))
    with pytest.raises(ValueError, match=r"are frames already, made with .* leave --crop out"):
        import_minari(cropped, progress=False)


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


@pytest.fixture
def steered(tmp_path: Path) -> Iterator[FramesFolder]:
    """Frames of an environment of four actions, in which a wrapper made the actions two numbers."""
    gym.register("Four-v0", "tests.conftest:FrameEnv", disable_env_checker=True)
    config = CollectConfig("Four-v0", tmp_path / "steered", frames=60, workers=1)
    yield collect_frames(replace(config, wrapper="tests.data.test_minari:Steering"), progress=False)
    del gym.registry["Four-v0"]


class Steering(gym.ActionWrapper[Any, Any, Any]):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def action(self, action: Any) -> int:
        return int(action[0] > 0) + 2 * int(action[1] > 0)


def test_actions_are_those_of_the_environment_as_it_was_wrapped(steered: FramesFolder) -> None:
    dataset = export_minari(ExportMinariConfig(steered.path, "steered-v0"), progress=False)
    assert dataset.action_space == gym.spaces.Box(-1, 1, (2,), np.float32)
    stored = [row["action"] for row in rows(steered) if row["action"] is not None]
    assert np.array_equal(np.concatenate([episode.actions for episode in dataset]), stored)
    assert dataset.env_spec.id == "Four-v0"


def test_actions_that_an_environment_no_longer_takes_are_kept_as_they_are(tmp_path: Path) -> None:
    """Pendulum takes one float, and the folder holds four different integers."""
    folder = collection(tmp_path / "pendulum", "Pendulum-v1")
    with pytest.warns(UserWarning, match=r"takes other actions here, .* Discrete\(4\) holds the actions"):
        dataset = export_minari(ExportMinariConfig(folder.path, "x-v0"), progress=False)
    assert dataset.action_space == gym.spaces.Discrete(4)
    assert dataset[0].actions.tolist() == [row["action"] for row in rows(folder)[1:60]]


@pytest.mark.filterwarnings("ignore:1 episodes of .* hold a single frame")
def test_guessed_actions_may_begin_below_zero(tmp_path: Path) -> None:
    folder = of_actions(tmp_path / "frames", pa.int64(), [-1, 2, 0])
    with pytest.warns(UserWarning, match="its action space is not known"):
        dataset = export_minari(ExportMinariConfig(folder.path, "x-v0"), progress=False)
    assert dataset.action_space == gym.spaces.Discrete(4, start=-1)
    assert dataset[0].actions.tolist() == [-1, 2, 0]


def test_actions_of_two_types_are_refused_and_leave_nothing(
    pong: FramesFolder, steered: FramesFolder, tmp_path: Path, root: Path
) -> None:
    both = merge_frames(MergeConfig((pong.path, steered.path), tmp_path / "both"), progress=False)
    with pytest.raises(ValueError, match="The actions of a Minari dataset have one type"):
        export_minari(ExportMinariConfig(both.path, "x-v0"), progress=False)
    assert not (root / "x-v0").exists()


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


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_ends_and_leaves_no_dataset(
    how: signal.Signals, pong: FramesFolder, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bar, "advance", lambda *_: signal.raise_signal(how))
    before = signal.signal(how, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt):
            export_minari(ExportMinariConfig(pong.path, "x-v0"), progress=False)
        with pytest.raises(KeyboardInterrupt):
            export_lerobot(ExportLerobotConfig(pong.path, root / "lerobot"), progress=False)
    finally:
        signal.signal(how, before)
    assert not (root / "x-v0").exists()
    assert not (root / "lerobot").exists()


def test_the_commands_say_what_they_made(
    pong: FramesFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["frames", "export-minari", str(pong.path), "x-v0"]) == 0
    assert "x-v0: 6 episodes, 354 steps" in capsys.readouterr().out
    assert main(["frames", "import-minari", "x-v0", "--out", str(tmp_path / "back")]) == 0
    assert "back: 360 frames, 6 episodes" in capsys.readouterr().out
    assert main(["frames", "import-minari", "nothing-v0", "--out", str(tmp_path / "no")]) == 1
    assert "minari download nothing-v0" in capsys.readouterr().err

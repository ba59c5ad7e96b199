"""Pushing frames, by the real huggingface_hub, to the server of ``tests/encoders/test_hub.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latent_obs.cli import main
from latent_obs.data.folder import FramesFolder
from latent_obs.push import PushFramesConfig, push_frames
from tests.data.test_curate import collection
from tests.encoders.test_hub import Hub, hub  # noqa: F401

pytest.importorskip("huggingface_hub")


@pytest.fixture
def pong(tmp_path: Path) -> FramesFolder:
    return collection(tmp_path / "pong", "ALE/Pong-v5")


def push(folder: FramesFolder, repo: str = "user/pong", **options: Any) -> tuple[str, str]:
    return push_frames(PushFramesConfig(folder.path, repo, **options), progress=False)


def download(hub: Hub, out: Path) -> Path:  # noqa: F811
    """Write the files of the dataset as a clone of it has them."""
    for name, data in hub.repos["datasets/user/pong"].files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    return out


def test_the_viewer_finds_images_and_lerobot_its_tag(
    hub: Hub,  # noqa: F811
    pong: FramesFolder,
    tmp_path: Path,
) -> None:
    """The Hub's viewer loads what the card names, by `datasets`, as is done here."""
    datasets = pytest.importorskip("datasets")
    from huggingface_hub import DatasetCard

    url, commit = push(pong, message="First")
    repo = hub.repos["datasets/user/pong"]
    assert url == f"{hub.url}/datasets/user/pong"
    assert (commit, repo.messages) == (repo.branches["main"], ["initial commit", "First"])
    assert repo.tags == {"v3.0": commit}
    card: Any = DatasetCard(repo.files["README.md"].decode())
    assert "360 frames of 64x64 pixels in 6 episodes of\nALE/Pong-v5" in card.text
    configs = {each["config_name"]: each["data_files"] for each in card.data.configs}
    clone = download(hub, tmp_path / "clone")
    files, cache = str(clone / configs["default"]), str(tmp_path / "cache")
    data = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert isinstance(data.features["observation.image"], datasets.Image)
    assert np.array_equal(np.asarray(data[60]["observation.image"]), pong.load()[61])
    assert sorted(clone.glob(configs["frames"])) == sorted((clone / "frames").iterdir())


def test_what_was_pushed_is_a_frames_folder(hub: Hub, pong: FramesFolder, tmp_path: Path) -> None:  # noqa: F811
    """Every frame, the last of an episode included, and read from the Hub by its URL."""
    push(pong)
    again = FramesFolder(download(hub, tmp_path / "clone") / "frames")
    assert again.identity == pong.identity
    assert np.array_equal(again.load(), pong.load())
    code = (
        "from latent_obs import FramesFolder\n"
        "folder = FramesFolder('hf://datasets/user/pong/frames')\n"
        "print(len(folder), folder.load().sum())"
    )
    hub.requests.clear()
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.split() == ["360", str(pong.load().sum())], (done.stderr, hub.requests)


def test_pushing_again_replaces_the_frames_and_leaves_the_rest(
    hub: Hub,  # noqa: F811
    pong: FramesFolder,
    tmp_path: Path,
) -> None:
    push(pong)
    repo = hub.repos["datasets/user/pong"]
    assert "data/chunk-000/file-001.parquet" in repo.files
    repo.commit({**repo.files, "README.md": b"# By hand\n", "notes": b"mine"})
    (pong.path / "part-000-00001.parquet").unlink()  # type: ignore[operator]
    commit = push(FramesFolder(pong.path))[1]
    assert repo.tags == {"v3.0": commit}
    assert sorted(name for name in repo.files if name.endswith(".parquet")) == [
        "data/chunk-000/file-000.parquet",
        "frames/part-000-00000.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/tasks.parquet",
    ]
    assert (repo.files["README.md"], repo.files["notes"]) == (b"# By hand\n", b"mine")


def test_private_means_private_and_nothing_is_pushed_half(hub: Hub, pong: FramesFolder) -> None:  # noqa: F811
    push(pong, "user/secret", private=True)
    assert hub.repos["datasets/user/secret"].private
    push(pong)
    before = dict(hub.repos["datasets/user/pong"].files)
    with pytest.raises(ValueError, match=r"user/pong exists and is public\. Make it private"):
        push(pong, private=True)
    assert hub.repos["datasets/user/pong"].files == before
    hub.requests.clear()
    with pytest.raises(ValueError, match="takes no revision: write user/pong, not user/pong@v1"):
        push(pong, "user/pong@v1")
    with pytest.raises(ValueError, match=r"'pong' names no dataset on the Hub\. Write USER/NAME"):
        push(pong, "pong")
    assert hub.requests == []


def test_what_cannot_be_exported_leaves_no_dataset_behind(hub: Hub, pong: FramesFolder) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="fps"):
        push(pong, fps=0)
    assert hub.repos == {}


def test_the_command_prints_where_the_frames_are(
    hub: Hub,  # noqa: F811
    pong: FramesFolder,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main(["frames", "push", str(pong.path), "user/pong"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{hub.url}/datasets/user/pong",
        f"hf://datasets/user/pong@{hub.repos['datasets/user/pong'].branches['main']}/frames",
    ]
    monkeypatch.setenv("HF_TOKEN", "hf_may_read")
    assert main(["frames", "push", str(pong.path), "user/other"]) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: ")
    assert "refused access to user/other (status 403): log in" in told

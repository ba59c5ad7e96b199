"""Publishes an encoder folder or a frames folder, with its card, on the Hugging Face Hub.

:mod:`latent_obs.encoders.hub` fetches encoders from there.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_obs import __version__
from latent_obs.encoders.hub import FILES, HUB_PREFIX, clear_errors, endpoint, need_hub, parse
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.markdown import card_text
from latent_obs.extras import needs

if TYPE_CHECKING:
    from latent_obs.data.folder import FramesFolder

_DATASET_FOLDERS = ("data/", "meta/", "frames/")


@dataclass(frozen=True)
class PushConfig:
    """Upload an encoder to the Hugging Face Hub, as one commit.

    ``latent-obs push --help`` lists the options and says what each means.

    Example:
        >>> PushConfig("encoder", "user/pong").message
        'Upload encoder'
    """

    encoder: str | Path
    """name of a bundled encoder, or encoder folder written by `latent-obs train`"""
    repo: str
    """USER/NAME; the repository is created if there is none"""
    private: bool = False
    """create the repository as a private one"""
    message: str = "Upload encoder"
    """the message of the commit"""


@dataclass(frozen=True)
class PushFramesConfig:
    """Upload a frames folder to the Hugging Face Hub as a dataset that its viewer and LeRobot open."""

    folder: str | Path
    """frames folder"""
    repo: str
    """USER/NAME; the dataset is created if there is none"""
    private: bool = False
    """create the dataset as a private one"""
    message: str = "Upload frames"
    """the message of the commit"""
    fps: int = 30
    """steps in a second; LeRobot counts time in seconds, and a frames folder does not"""


def push_encoder(config: PushConfig) -> tuple[str, str]:
    """Upload an encoder folder to the Hub in one commit.

    The token comes from ``hf auth login`` or from the environment variable ``HF_TOKEN``. Afterwards the
    repository holds the encoder of this folder: its files are uploaded, files of an encoder that the folder
    lacks are deleted, and all other files of the repository stay. If neither the folder nor the repository
    has a ``README.md``, a short model card is uploaded too.

    Args:
        config: Which encoder, and to which repository.

    Returns:
        The URL of the repository, and the commit as 40 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If the encoder is damaged, the repository's name is malformed, or ``private`` is set and
            the repository exists and is public.
        PermissionError: If nobody is logged in, or the user who is may not write to the repository.
        ConnectionError: If the Hub cannot be reached.
        ImportError: If huggingface_hub is not installed.

    Example:
        >>> push_encoder(PushConfig("pong-v0", "user/pong"))  # doctest: +SKIP
        ('https://huggingface.co/user/pong', '5c1e...')
    """
    repo, revision = parse(config.repo)
    if revision is not None:
        raise ValueError(
            f"Pushing makes a new commit and takes no revision: write {repo}, not {config.repo}."
        )
    encoder = resolve(config.encoder)
    encoder.tensors()
    encoder.calibration()
    need_hub()
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(endpoint=endpoint(), library_name="latent_obs", library_version=__version__)
    with clear_errors(repo, f"{HUB_PREFIX}{repo}"):
        url = str(api.create_repo(repo, private=config.private or None, exist_ok=True))
        if config.private and not api.model_info(repo).private:
            raise ValueError(f"{url} exists and is public. Make it private there, or push without --private.")
        there = set(api.list_repo_files(repo))
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        for file in FILES:
            if (encoder.path / file).is_file():
                operations.append(CommitOperationAdd(file, encoder.path / file))
            elif file == "README.md":
                if file not in there:
                    card = card_text(f"{HUB_PREFIX}{repo}", encoder.config)
                    operations.append(CommitOperationAdd(file, card.encode()))
            elif file in there:  # a reader would take it for a file of the new encoder
                operations.append(CommitOperationDelete(file))
        commit = api.create_commit(repo, operations, commit_message=config.message)
    return url, commit.oid


def push_frames(config: PushFramesConfig, *, progress: bool = True) -> tuple[str, str]:
    """Upload a frames folder to the Hub as a dataset, in one commit.

    The dataset holds the frames twice: ``frames/`` has the shards as they are, so that
    ``latent-obs train hf://datasets/USER/NAME/frames`` and every other command reads them there, and
    ``data/`` and ``meta/`` are what :func:`latent_obs.data.lerobot.export_lerobot` makes of them, whose
    images the Hub's viewer shows. ``LeRobotDataset("USER/NAME")`` finds it by the tag ``v3.0``. Files that
    an earlier push left in these three folders are deleted, and all other files of the dataset stay. If the
    dataset has no ``README.md``, a short dataset card is uploaded too.

    Args:
        config: Which folder, and to which dataset.
        progress: Show a progress bar on standard error.

    Returns:
        The URL of the dataset, and the commit as 40 hexadecimal digits.

    Raises:
        FileNotFoundError: If the folder is missing or empty.
        ValueError: If the dataset's name is malformed, the folder cannot be exported, or ``private`` is set
            and the dataset exists and is public.
        PermissionError: If nobody is logged in, or the user who is may not write to the dataset.
        ConnectionError: If the Hub cannot be reached.
        ImportError: If huggingface_hub or pyarrow is not installed.

    Example:
        >>> push_frames(PushFramesConfig("frames", "user/pong-frames"))  # doctest: +SKIP
        ('https://huggingface.co/datasets/user/pong-frames', '77ab...')
    """
    repo, revision = parse(config.repo, "dataset")
    if revision is not None:
        raise ValueError(
            f"Pushing makes a new commit and takes no revision: write {repo}, not {config.repo}."
        )
    with needs("Pushing frames to the Hugging Face Hub"):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        from latent_obs.data.folder import FramesFolder
        from latent_obs.data.lerobot import FORMAT, ExportLerobotConfig, export_lerobot
        from latent_obs.data.storage import open_file
    folder = FramesFolder(config.folder)
    api = HfApi(endpoint=endpoint(), library_name="latent_obs", library_version=__version__)
    dataset: dict[str, Any] = {"repo_id": repo, "repo_type": "dataset"}
    with tempfile.TemporaryDirectory() as temporary, clear_errors(repo, f"{HUB_PREFIX}datasets/{repo}"):
        exported = Path(temporary, "lerobot")
        info = export_lerobot(ExportLerobotConfig(config.folder, exported, config.fps), progress=progress)
        url = str(api.create_repo(**dataset, private=config.private or None, exist_ok=True))
        if config.private and not api.dataset_info(repo).private:
            raise ValueError(f"{url} exists and is public. Make it private there, or push without --private.")
        files: dict[str, Path | bytes] = {
            str(path.relative_to(exported)): path for path in exported.rglob("*") if path.is_file()
        }
        for shard in folder.shards:
            if isinstance(shard.path, Path):
                files[f"frames/{shard.name}"] = shard.path
            else:
                with open_file(shard.path) as stream:
                    files[f"frames/{shard.name}"] = stream.read()
        there = set(api.list_repo_files(**dataset))
        if "README.md" not in there:
            files["README.md"] = _dataset_card(repo, folder, info).encode()
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, file) for name, file in sorted(files.items())
        ]
        for name in sorted(there - set(files)):
            if name.startswith(_DATASET_FOLDERS):  # a reader would take it for a part of the new dataset
                operations.append(CommitOperationDelete(name))
        commit = api.create_commit(**dataset, operations=operations, commit_message=config.message)
        if any(tag.name == FORMAT for tag in api.list_repo_refs(**dataset).tags):
            api.delete_tag(**dataset, tag=FORMAT)
        api.create_tag(**dataset, tag=FORMAT, revision=commit.oid)
    return url, commit.oid


def _dataset_card(repo: str, folder: FramesFolder, info: dict[str, Any]) -> str:
    """Return the ``README.md`` of a dataset; its front matter tells the Hub's viewer what to open."""
    spec, source = folder.frame_spec, folder.source
    return f"""---
tags:
- LeRobot
- latent_obs
- gymnasium
task_categories:
- reinforcement-learning
- robotics
configs:
- config_name: default
  data_files: data/*/*.parquet
- config_name: frames
  data_files: frames/*.parquet
---

# {repo.partition("/")[2]}

{len(folder):,} frames of 64x64 pixels in {len(folder.episodes()):,} episodes of
{source.env_id or "an environment"}, collected by `latent_obs`. The images are lossless.
Frame spec: crop {spec.crop}, interpolation {spec.interpolation}.

- `data/` and `meta/` are a LeRobot dataset of format {info["codebase_version"]}: one row for each of
  {info["total_frames"]:,} steps, with the image as PNG, the action taken on it and the reward that followed.
  `LeRobotDataset("{repo}")` opens it.
- `frames/` is a frames folder: one row for each frame, the last of an episode included.

```sh
latent-obs train hf://datasets/{repo}/frames --out encoder
```
"""

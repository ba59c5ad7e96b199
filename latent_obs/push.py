"""Publishes an encoder folder with its card on the Hugging Face Hub.

:mod:`latent_obs.encoders.hub` fetches it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latent_obs import __version__
from latent_obs.encoders.hub import FILES, HUB_PREFIX, clear_errors, endpoint, need_hub, parse
from latent_obs.encoders.resolve import resolve
from latent_obs.evaluation.markdown import card_text


@dataclass(frozen=True)
class PushConfig:
    """Upload an encoder to the Hugging Face Hub, as one commit."""

    encoder: str | Path
    """name of a bundled encoder, or encoder folder written by `latent-obs train`"""
    repo: str
    """USER/NAME; the repository is created if there is none"""
    private: bool = False
    """create the repository as a private one"""
    message: str = "Upload encoder"
    """the message of the commit"""


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

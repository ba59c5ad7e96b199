"""Encoders on the Hugging Face Hub: push a folder there, pull it anywhere.

A reference is ``hf://USER/NAME``, or ``hf://USER/NAME@REVISION`` with a branch, a tag or a commit. A branch
moves; a commit, all 40 digits of it, names the same weights for ever, and once pulled it is found without
any request. Only the files named in ``FILES`` are fetched, so no pickle can come along.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_obs import __version__
from latent_obs.encoders.folder import (
    read_calibration,
    read_config,
    read_tensors,
)
from latent_obs.extras import needs
from latent_obs.files import write_atomically

HUB_PREFIX = "hf://"
REQUIRED = ("model.safetensors", "config.json")
FILES = ("calibration.png", "history.csv", "labels.json", "reports.json", "card.png", "README.md", *REQUIRED)

_REF = re.compile(r"([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
# huggingface_hub lets the errors of its transport through; which that is depends on its version.
_TRANSPORT = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "requests")


@dataclass(frozen=True)
class PullConfig:
    """Fetch an encoder from the Hugging Face Hub.

    ``latent-obs pull --help`` lists the options and says what each means.

    Example:
        >>> PullConfig("user/pong@main").repo
        'user/pong@main'
    """

    repo: str
    """USER/NAME, or USER/NAME@REVISION with a branch, a tag or a commit"""
    out: Path | None = None
    """encoder folder to write; default: only the Hub's cache, where hf://USER/NAME finds it"""


def pull_encoder(config: PullConfig) -> tuple[Path, str]:
    """Fetch an encoder folder from the Hub and check it.

    Args:
        config: Which repository and revision, and where to.

    Returns:
        The folder, and the commit it is of: 40 hexadecimal digits.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or it holds no encoder.
        ValueError: If the reference is malformed or the encoder damaged.
        FileExistsError: If ``out`` holds another encoder.
        PermissionError: If the Hub refuses access.
        ConnectionError: If the Hub cannot be reached and the cache does not have the encoder.
        ImportError: If huggingface_hub is missing.

    Example:
        >>> folder, commit = pull_encoder(PullConfig("user/pong"))  # doctest: +SKIP
        >>> env = LatentObservationWrapper(env, f"hf://user/pong@{commit}")  # doctest: +SKIP
    """
    folder = fetch(config.repo)
    commit = folder.name  # the cache names its snapshots so
    if config.out is None:
        return folder, commit
    there = config.out / "config.json"
    if there.exists() and there.read_bytes() != (folder / "config.json").read_bytes():
        raise FileExistsError(f"{config.out} holds another encoder. Delete it, or name another folder.")
    config.out.mkdir(parents=True, exist_ok=True)
    for name in FILES:  # the config last: a folder with a config is whole
        if (folder / name).is_file():
            write_atomically(config.out / name, (folder / name).read_bytes())
    return config.out, commit


def fetch(ref: str) -> Path:
    """Return the cached folder of an encoder on the Hub, fetched where it is missing or has changed.

    A commit that is in the cache is not asked for again. Where the Hub cannot be reached, or with
    ``HF_HUB_OFFLINE=1``, a branch or a tag is what it was at the last fetch.

    Args:
        ref: ``USER/NAME`` or ``USER/NAME@REVISION``, with or without ``hf://``.

    Returns:
        The folder in the Hub's cache, named by its commit.

    Raises:
        FileNotFoundError: If there is no such repository or revision, or it holds no encoder.
        ValueError: If the reference is malformed or the encoder damaged.
        PermissionError: If the Hub refuses access.
        ConnectionError: If the Hub cannot be reached and the cache does not have the encoder.
        ImportError: If huggingface_hub is missing.
    """
    repo, revision = parse(ref)
    ref = HUB_PREFIX + ref.removeprefix(HUB_PREFIX)
    need_hub()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class Quiet(tqdm):
        """No progress bars: an encoder is small, and each wrapper that is made would show them."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    options: dict[str, Any] = {
        "endpoint": endpoint(),
        "cache_dir": _cache(),
        "library_name": "latent_obs",
        "library_version": __version__,
        "tqdm_class": Quiet,
    }
    with clear_errors(repo, ref):
        if _offline() or (revision and _COMMIT.fullmatch(revision)):
            try:
                found = snapshot_download(
                    repo, revision=revision, allow_patterns=[*FILES], local_files_only=True, **options
                )
                if (Path(found) / "config.json").is_file():
                    return _checked(Path(found), ref)
            except LocalEntryNotFoundError:
                if _offline():
                    raise
        # The config last, lest what an interrupted call leaves be taken for whole.
        rest = [name for name in FILES if name != "config.json"]
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=rest, **options))
        snapshot_download(repo, revision=folder.name, allow_patterns=["config.json"], **options)
    return _checked(folder, ref)


def parse(ref: str, what: str = "encoder") -> tuple[str, str | None]:
    """Split a reference to an encoder, or to what else it names, into repository and revision."""
    match = _REF.fullmatch(ref.removeprefix(HUB_PREFIX))
    if match is None:
        also = " or USER/NAME@REVISION, as encoder hf://USER/NAME" if what == "encoder" else ""
        raise ValueError(f"{ref!r} names no {what} on the Hub. Write USER/NAME{also}.")
    return match[1], match[2]


def _checked(folder: Path, ref: str) -> Path:
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{ref} on the Hub holds no encoder: it has no {' and no '.join(missing)}. Name a repository "
            "that latent-obs push has written."
        )
    try:
        read_tensors(folder, read_config(folder))
        read_calibration(folder)
    except ValueError as error:
        raise ValueError(
            f"The encoder {ref} on the Hub is damaged: {error} Name another revision, or tell its owner."
        ) from error
    return folder


@contextlib.contextmanager
def clear_errors(repo: str, ref: str) -> Iterator[None]:
    """Say in one sentence what went wrong on the Hub and what to do."""
    from huggingface_hub import errors

    try:
        yield
    except Exception as caught:
        if type(caught).__module__.partition(".")[0] not in _TRANSPORT:
            raise
        error: BaseException = caught
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
            error = error.__cause__  # why it was looked for in the cache
        response = getattr(error, "response", None)
        log_in = "log in with a token that may: hf auth login, or set HF_TOKEN"
        hub = endpoint() or "https://huggingface.co"
        if isinstance(error, errors.RevisionNotFoundError):
            raise FileNotFoundError(
                f"The repository {repo} has no revision as in {ref}. Name one of its branches, tags or "
                "commits, a commit with all 40 digits."
            ) from caught
        if isinstance(error, errors.RepositoryNotFoundError) and not isinstance(error, errors.GatedRepoError):
            raise FileNotFoundError(
                f"There is no repository {repo} on {hub}, or it is private. Check its name; if it is "
                f"private, {log_in}."
            ) from caught
        if response is not None and response.status_code in (401, 403):
            raise PermissionError(
                f"{hub} refused access to {repo} (status {response.status_code}): {log_in}."
            ) from caught
        if response is not None:
            raise OSError(
                f"{hub} answered with status {response.status_code} when asked for {ref}: "
                f"{' '.join(str(error).split())}"
            ) from caught
        if isinstance(error, errors.HFValidationError):
            raise
        sought = isinstance(caught, errors.LocalEntryNotFoundError)
        absent = f"{ref} is not in the cache, and " if sought else ""
        if _offline():
            raise ConnectionError(f"{absent}HF_HUB_OFFLINE is set. Unset it and try again.") from caught
        raise ConnectionError(
            f"{absent}{hub} could not be reached ({type(error).__name__}: {error}). Try again with a network."
        ) from caught


def need_hub() -> None:
    """Raise ``ImportError`` where huggingface_hub is missing."""
    with needs("An encoder on the Hugging Face Hub"):
        import huggingface_hub  # noqa: F401


# huggingface_hub reads its environment when it is imported. A notebook or a test sets it later.
def endpoint() -> str | None:
    """Return the URL of a Hub other than huggingface.co."""
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> str | None:
    home = os.environ.get("HF_HOME")
    return os.environ.get("HF_HUB_CACHE") or (os.path.join(home, "hub") if home else None)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")

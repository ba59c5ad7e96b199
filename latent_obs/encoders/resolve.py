"""What a reference to an encoder means: a bundled one's name, a folder, the Hub's, or ``"auto"``.

A folder that moved is found again: below the folders of :func:`search_path`, by its name or by the SHA-256
of its weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_obs.encoders.folder import EncoderConfig, Tensors, read_calibration, read_config, read_tensors
from latent_obs.encoders.hub import HUB_PREFIX, fetch
from latent_obs.files import cache_folder
from latent_obs.frames import Frames, FrameSource
from latent_obs.images import MadeBy

# Where `latent-obs fit` keeps the encoders that it makes, below the cache folder.
FITTED = "encoders"
PRETRAINED = Path(__file__).parents[1] / "pretrained"


def list_encoders() -> dict[str, EncoderConfig]:
    """Return the bundled encoders by name, versions of one in order.

    Example:
        >>> list_encoders()["pong-v0"].vae.latent_dim
        32
    """
    names = sorted((path.parent.name for path in PRETRAINED.glob("*/config.json")), key=_family_and_version)
    return {name: read_config(PRETRAINED / name) for name in names}


def resolve_auto(source: FrameSource, made: MadeBy | None = None, key: str | None = None) -> str:
    """Name the most specific encoder for an environment.

    That is the one that ``latent-obs fit`` made of it on this machine; else the newest bundled one trained on
    this environment alone (``pong`` before variants such as ``pong-linear``), else the newest for any image.

    Args:
        source: The environment to be wrapped. An ALE game is known by its name, whatever the id.
        made: How it was made and wrapped.
        key: The entry of ``Dict`` observations that is encoded.

    Returns:
        The name of a bundled encoder, or the path of a fitted one.

    Warns:
        UserWarning: Once for each environment in a process, where it is the one for any image.

    Example:
        >>> resolve_auto(FrameSource("QbertNoFrameskip-v4", {}, {"game": "qbert"}))
        'qbert-v0'
    """
    made = made or MadeBy(source.env_id)
    if (fitted := find_fitted(source, made, key)) is not None:
        return str(fitted.path)
    bundled = list_encoders()
    game = source.emulator.get("game")
    families = {_family_and_version(name)[0]: name for name in bundled}  # the newest of each
    for name in families.values():
        source_of = bundled[name].source
        if (game and game == source_of.emulator.get("game")) or source_of.env_ids == (source.env_id,):
            return name
    name = families["general"]
    env_id = source.env_id or "an environment without an id"
    if env_id not in _told:
        _told.add(env_id)
        among = source.env_id in bundled[name].source.env_ids
        warnings.warn(
            f"No bundled encoder was trained on {env_id} alone: encoder='auto' takes {name}, which was "
            f"trained on {'it among others' if among else 'others'}; latent-obs card {name} says what it "
            f"keeps. Fit one in a minute, and 'auto' finds it: {made.command('fit', key)}",
            UserWarning,
            stacklevel=level_of_caller(),
        )
    return name


def find_fitted(
    source: FrameSource, made: MadeBy | None = None, key: str | None = None
) -> EncoderFolder | None:
    """Return the newest encoder that ``latent-obs fit`` made of an environment; ``None`` if there is none.

    Args:
        source: The environment. It counts as the same if its id and its arguments are; for an ALE game, if
            the game and all settings are that change what a pixel shows.
        made: How it was made and wrapped. It must be drawn as the fit drew it, or in the same wrapper.
        key: The entry of ``Dict`` observations that is encoded.
    """
    made = made or MadeBy(source.env_id)
    found = [
        EncoderFolder(path, Path(path), config)
        for path, config in list_fitted().items()
        if _is_same(config.source, source)
        and config.provenance.run is not None
        and _is_shown_alike(config.provenance.run.data, made, key)
    ]
    return max(found, key=lambda each: each.config.provenance.created or "", default=None)


def list_fitted() -> dict[str, EncoderConfig]:
    """Return the encoders that ``latent-obs fit`` made on this machine, by path."""
    try:
        cache = cache_folder().absolute()
    except (OSError, RuntimeError):  # there is no home folder
        return {}
    fitted = {}
    for path in sorted(cache.glob(f"{FITTED}/*/config.json")):
        with contextlib.suppress(ValueError, OSError):  # damaged, or of a later version
            fitted[str(path.parent)] = read_config(path.parent)
    return fitted


def _is_same(fitted: FrameSource, wrapped: FrameSource) -> bool:
    """Whether two sources draw the same frames."""
    if game := fitted.emulator.get("game"):
        differs = fitted.differences(wrapped, ignore=("repeat_action_probability", "noop_max"))
        settings = [
            (kwargs.get("mode"), kwargs.get("difficulty"), kwargs.get("obs_type", "rgb"))
            for kwargs in (fitted.env_kwargs, wrapped.env_kwargs)
        ]
        return game == wrapped.emulator.get("game") and not differs and settings[0] == settings[1]
    ids = [source.env_id.rpartition(":")[2] for source in (fitted, wrapped)]
    return ids[0] == ids[1] != "" and fitted.env_kwargs == wrapped.env_kwargs


def _is_shown_alike(fitted: Mapping[str, Any], made: MadeBy, key: str | None) -> bool:
    """Whether an environment's images come about as those that were collected for a fit."""
    options, wrapper = made.options(key), fitted.get("wrapper")
    if (fitted.get("key"), fitted.get("render", False)) != (options.get("key"), options.get("render", False)):
        return False
    if wrapper is None or "wrapper" in options:
        return bool(wrapper == options.get("wrapper"))
    module, _, name = wrapper.partition(":")
    maker = getattr(sys.modules.get(module), name, None)  # whoever wrapped the environment has imported it
    # A class leaves its name in the environment's spec; what a function does cannot be seen there.
    return name in made.wrappers or (maker is not None and not isinstance(maker, type))


def level_of_caller() -> int:
    """Return the ``stacklevel`` with which a warning points at the first line outside this package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("latent_obs"):
        level, frame = level + 1, frame.f_back
    return level


_told: set[str] = set()


def _family_and_version(name: str) -> tuple[str, int]:
    family, _, version = name.rpartition("-v")
    return (family, int(version)) if family and version.isdigit() else (name, -1)


@dataclass(frozen=True)
class EncoderFolder:
    """An encoder folder that :func:`resolve` found.

    Args:
        ref: What finds it again from anywhere: a bundled one's name, an absolute path or ``hf://USER/NAME``.
        path: Where it lies on this machine.
        config: The content of its ``config.json``.
    """

    ref: str
    path: Path
    config: EncoderConfig

    @property
    def name(self) -> str:
        """Its short name, see :func:`encoder_name`."""
        return encoder_name(self.ref)

    def tensors(self) -> Tensors:
        """Read its weights, see :func:`~latent_obs.encoders.folder.read_tensors`."""
        return read_tensors(self.path, self.config)

    def calibration(self) -> Frames | None:
        """Read its calibration frames, see :func:`~latent_obs.encoders.folder.read_calibration`."""
        return read_calibration(self.path)

    def sha256(self) -> str:
        """Return the SHA-256 of its weights' file, which tells it from every other encoder."""
        return hashlib.sha256((self.path / "model.safetensors").read_bytes()).hexdigest()


EncoderRef = str | Path | EncoderFolder


def resolve(ref: EncoderRef, fingerprint: str | None = None) -> EncoderFolder:
    """Find an encoder folder.

    Args:
        ref: Name of a bundled encoder, path of an encoder folder, or ``hf://USER/NAME`` or
            ``hf://USER/NAME@REVISION``, which is fetched if it is missing or has changed. A relative path
            is looked for in each folder of :func:`search_path`. A folder that was found before is returned
            as it is.
        fingerprint: The SHA-256 of its weights. Where ``ref`` is missing or has other weights, an encoder
            folder with these is looked for below the folders of :func:`search_path`.

    Raises:
        FileNotFoundError: If there is none; the error says where it was looked for.
        ValueError: If its ``config.json`` does not describe an encoder, or its weights are others and no
            folder with the right ones is found.
        OSError, ImportError: As :func:`latent_obs.encoders.hub.fetch` does, for one on the Hub.

    Example:
        >>> resolve("pong-v0").config.vae.latent_dim
        32
    """
    if isinstance(ref, EncoderFolder):
        return ref
    try:
        found = _named(ref)
        if found is not None and (fingerprint is None or found.sha256() == fingerprint):
            return found
    except FileNotFoundError:  # what is left of a folder that moved
        if fingerprint is None:
            raise
        found = None
    if fingerprint is not None:
        for path in _encoder_folders():
            with contextlib.suppress(OSError, ValueError):  # a broken link, or another program's
                moved = EncoderFolder(str(path), path, read_config(path))
                if moved.sha256() == fingerprint:
                    return moved
    looked = "; ".join(f"{name}: {path}" for name, path in search_path())
    if found is None:
        weights = f" with the weights {fingerprint[:12]}" if fingerprint else ""
        raise FileNotFoundError(
            f"There is no encoder {str(ref)!r}{weights}: neither a bundled one "
            f"({', '.join(list_encoders()) or 'none'}) nor a folder. Looked at {ref} and below {looked}. "
            "If the folder moved, set LATENT_OBS_PATH to where it is now, or pass its path as encoder=. "
            "Train one: latent-obs train FRAMES --out FOLDER. One on the Hugging Face Hub is hf://USER/NAME."
        )
    assert fingerprint is not None
    raise ValueError(
        f"The encoder {str(ref)!r} at {found.path} has the weights {found.sha256()[:12]}, but "
        f"{fingerprint[:12]} is what was recorded: its latents would mean something else. Looked for those "
        f"below {looked}. Set LATENT_OBS_PATH to the folder that holds them, or pass another encoder and no "
        "fingerprint to go on with that one."
    )


def search_path() -> list[tuple[str, Path]]:
    """Return the folders in which encoder folders are looked for, with what each is.

    They are those of the variable ``LATENT_OBS_PATH``, separated as in ``PATH``, then the working directory,
    then the cache (:func:`~latent_obs.files.cache_folder`). One that cannot be named is left out: the working
    directory after somebody deleted it, or the cache of a user without a home folder.

    Example:
        >>> [name for name, _ in search_path()][-2:]
        ['working directory', 'cache']
    """
    parts = os.environ.get("LATENT_OBS_PATH", "").split(os.pathsep)
    named: list[tuple[str, Callable[[], Path]]] = [
        *(("LATENT_OBS_PATH", Path(part).expanduser) for part in parts if part),
        ("working directory", Path.cwd),
        ("cache", cache_folder),
    ]
    folders = []
    for name, folder in named:
        with contextlib.suppress(OSError, RuntimeError):
            folders.append((name, folder().absolute()))
    return folders


def _named(ref: str | Path) -> EncoderFolder | None:
    """Find an encoder by what its reference says; ``None`` where nothing is."""
    if isinstance(ref, str) and ref.startswith(HUB_PREFIX):
        path = fetch(ref)
        return EncoderFolder(ref, path, read_config(path))
    path = PRETRAINED / str(ref)
    if isinstance(ref, str) and ref == Path(ref).name and (path / "config.json").is_file():
        return EncoderFolder(ref, path, read_config(path))
    given = Path(ref).expanduser()
    if given.exists():
        path = given.absolute()
        return EncoderFolder(str(path), path, read_config(path))
    if not given.is_absolute():
        for _, folder in search_path():
            if (path := folder / given / "config.json").is_file():
                return EncoderFolder(str(path.parent), path.parent, read_config(path.parent))
    return None


_DEPTH, _FOLDERS = 4, 5000


def _encoder_folders() -> Iterator[Path]:
    """Yield the encoder folders on the search path, at most four levels down and among 5,000 folders each."""
    for _, root in search_path():
        left = _FOLDERS
        for at, folders, files in os.walk(root):
            here = Path(at)
            if "config.json" in files and "model.safetensors" in files:
                yield here
            left -= 1
            depth = len(here.relative_to(root).parts)
            folders[:] = [name for name in sorted(folders) if not name.startswith(".")]
            if depth >= _DEPTH or left < 0:
                folders.clear()


def encoder_name(ref: str | Path) -> str:
    """Return the short name of an encoder, for titles and names of files.

    Example:
        >>> encoder_name("hf://user/pong@main"), encoder_name("runs/breakout"), encoder_name("pong-v0")
        ('pong', 'breakout', 'pong-v0')
    """
    if isinstance(ref, str) and ref.startswith(HUB_PREFIX):
        return ref.removeprefix(HUB_PREFIX).partition("@")[0].rpartition("/")[2]
    return Path(ref).expanduser().resolve().name

"""What a reference to an encoder means: a bundled one's name, a folder, the Hub's, or ``"auto"``."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path

from latent_obs.encoders.folder import EncoderConfig, Tensors, read_calibration, read_config, read_tensors
from latent_obs.encoders.hub import HUB_PREFIX, fetch
from latent_obs.frames import Frames, FrameSource

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def list_encoders() -> dict[str, EncoderConfig]:
    """Return the bundled encoders by name, versions of one in order.

    Example:
        >>> all(config.vae.latent_dim == 32 for config in list_encoders().values())
        True
    """
    names = sorted((path.parent.name for path in PRETRAINED.glob("*/config.json")), key=_family_and_version)
    return {name: read_config(PRETRAINED / name) for name in names}


def resolve_auto(source: FrameSource) -> str:
    """Name the most specific bundled encoder for an environment.

    That is the newest one trained on this environment alone (``pong`` before variants such as
    ``pong-linear``), else for ALE games the newest general one for Atari, else the newest for any image.

    Args:
        source: The environment to be wrapped. An ALE game is known by its name, whatever the id.

    Warns:
        UserWarning: Once for each environment in a process, where it is a general one.

    Example:
        >>> resolve_auto(FrameSource("PongNoFrameskip-v4", {}, {"game": "pong"}))
        'pong-v0'
    """
    bundled = list_encoders()
    game = source.emulator.get("game")
    families = {_family_and_version(name)[0]: name for name in bundled}  # the newest of each
    for name in families.values():
        source_of = bundled[name].source
        if (game and game == source_of.emulator.get("game")) or source_of.env_ids == (source.env_id,):
            return name
    name = families["atari" if game else "general"]
    env_id = source.env_id or "an environment without an id"
    if env_id not in _told:
        _told.add(env_id)
        among = source.env_id in bundled[name].source.env_ids
        warnings.warn(
            f"No bundled encoder was trained on {env_id} alone: encoder='auto' takes {name}, which was "
            f"trained on {'it among others' if among else 'others'}; latent-obs card {name} says what it "
            f"keeps. Train one (latent-obs demo --env {source.env_id or 'ENV'}) and pass its folder as "
            f"encoder=, or name {name} yourself.",
            UserWarning,
            stacklevel=4,
        )
    return name


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


def resolve(ref: EncoderRef) -> EncoderFolder:
    """Find an encoder folder.

    Args:
        ref: Name of a bundled encoder, path of an encoder folder, or ``hf://USER/NAME`` or
            ``hf://USER/NAME@REVISION``, which is fetched if it is missing or has changed. A folder that was
            found before is returned as it is.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If its ``config.json`` does not describe an encoder.
        OSError, ImportError: As :func:`latent_obs.encoders.hub.fetch` does, for one on the Hub.

    Example:
        >>> resolve("pong-v0").config.vae.latent_dim
        32
    """
    if isinstance(ref, EncoderFolder):
        return ref
    if isinstance(ref, str) and ref.startswith(HUB_PREFIX):
        path = fetch(ref)
        return EncoderFolder(ref, path, read_config(path))
    path = PRETRAINED / str(ref)
    if isinstance(ref, str) and ref == Path(ref).name and (path / "config.json").is_file():
        return EncoderFolder(ref, path, read_config(path))
    path = Path(ref).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"There is no encoder {str(ref)!r}: neither a bundled one "
            f"({', '.join(list_encoders()) or 'none'}) nor a folder. Train one: "
            "latent-obs train FRAMES --out FOLDER. One on the Hugging Face Hub is hf://USER/NAME."
        )
    return EncoderFolder(str(path), path, read_config(path))


def encoder_name(ref: str | Path) -> str:
    """Return the short name of an encoder, for titles and names of files.

    Example:
        >>> encoder_name("hf://user/pong@main"), encoder_name("runs/breakout"), encoder_name("pong-v0")
        ('pong', 'breakout', 'pong-v0')
    """
    if isinstance(ref, str) and ref.startswith(HUB_PREFIX):
        return ref.removeprefix(HUB_PREFIX).partition("@")[0].rpartition("/")[2]
    return Path(ref).expanduser().resolve().name

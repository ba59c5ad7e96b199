"""Shows what each latent dimension controls: a page with sliders, and pictures for papers and READMEs."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path

from latent_obs.data.folder import FramesFolder
from latent_obs.data.storage import name_of
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.files import write_atomically
from latent_obs.frames import Frames
from latent_obs.visualizer.page import Shown, build_page
from latent_obs.visualizer.stills import Picture, draw

GALLERY, EPISODE = 24, 80


@dataclass(frozen=True)
class VisualizeConfig:
    """Write a page in which sliders move the latent, or a picture of the latent space."""

    encoder: str
    """name of a bundled encoder, encoder folder written by `latent-obs train`, or hf://USER/NAME"""
    frames: str | Path | None = None
    """frames folder to show; default: the encoder's calibration frames"""
    out: Path | None = None
    """file to write; default: <encoder>.html, or <encoder>-<picture>.png or .gif"""
    picture: Picture | None = None
    """write a picture instead of the page: a grid of traversals (PNG), an interpolation between two
    frames (PNG), or an episode beside its reconstruction (GIF)"""
    open: bool = False
    """show the result in the browser"""


def visualize_encoder(config: VisualizeConfig) -> Path:
    """Write the page or the picture.

    The page is one HTML file that needs no network. It holds the frames, the VAE in float16, and the
    JavaScript that encodes and decodes.

    Args:
        config: Which encoder, with which frames, and which file to write.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: If there is no such encoder or frames folder.
        ValueError: If the encoder or a frame is damaged, the frames were made with a frame spec other than
            the encoder's, or there are no frames.
        OSError: If the file cannot be written.
    """
    found = resolve(config.encoder)
    shown = choose_frames(found, config.frames)
    if config.picture is None:
        out = config.out or Path(f"{found.name}.html")
        content = build_page(found.name, found.config, found.tensors(), shown).encode()
    else:
        kind = "gif" if config.picture == "episode" else "png"
        out = config.out or Path(f"{found.name}-{config.picture}.{kind}")
        content = draw(config.picture, found, shown.gallery, shown.episode)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, content)
    if config.open:
        webbrowser.open(out.resolve().as_uri())
    return out


def choose_frames(encoder: EncoderFolder, frames: str | Path | None) -> Shown:
    """Choose the frames to show: a gallery of lively frames, and a part of the longest episode.

    If the encoder was trained on this folder, only its held-out episodes are shown.

    Args:
        encoder: The encoder that will encode the frames.
        frames: Frames folder. ``None``: the encoder's calibration frames, for both.

    Raises:
        ValueError: If the frames were made with a frame spec other than the encoder's, or ``frames`` is
            ``None`` and the encoder has no calibration frames.
    """
    if frames is None:
        found = encoder.calibration()
        if found is None:
            raise ValueError(
                f"The encoder {encoder.ref} has no calibration frames to show. Name a frames folder: "
                "--frames FOLDER."
            )
        return Shown(
            _lively(found),
            found,
            "The encoder was trained on these frames. Press one to encode it.",
            "No episode was recorded. These are training frames, in no order.",
        )
    from latent_obs.evaluation.selection import held_out_episodes

    folder = FramesFolder(frames)
    episodes = held_out_episodes(encoder, folder)
    lengths = {e: n for e, n in folder.episodes().items() if episodes is None or e in episodes}
    longest = max(lengths, key=lambda e: lengths[e])
    whole = folder.load([longest])
    begin = max(0, (len(whole) - EPISODE) // 2)  # more happens in the middle than at the start
    where = f"{folder.source.env_id or name_of(folder.path)}"
    return Shown(
        _lively(folder.sample(1024, episodes)),
        whole[begin : begin + EPISODE],
        f"Frames of {where}{'' if episodes is None else ' that the encoder was not trained on'}. "
        "Press one to encode it.",
        f"Frames {begin + 1} to {begin + len(whole[begin : begin + EPISODE])} of an episode of {where}, "
        "encoded and decoded as they play.",
    )


def _lively(frames: Frames) -> Frames:
    from latent_obs.evaluation.pictures import liveliest

    return liveliest(frames, min(GALLERY, max(1, len(frames) // 2)))[::-1]


__all__ = ["Shown", "VisualizeConfig", "choose_frames", "visualize_encoder"]

"""Shows what each latent dimension controls: a page with sliders, and pictures for papers and READMEs."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latent_obs.data.folder import FramesFolder
from latent_obs.data.storage import name_of
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.evaluation.labelling import measure_labels
from latent_obs.evaluation.labels import Labels, read_labels
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
            the encoder's, there are no frames, or there is no episode for the picture of one.
        OSError: If the file cannot be written.
    """
    found = resolve(config.encoder)
    shown = choose_frames(found, config.frames, play=config.picture in (None, "episode"))
    if config.picture == "episode" and not len(shown.episode):
        raise ValueError(
            f"There is no episode of {found.ref} to draw: its environment cannot be played here, or frames "
            "that follow one another are not alike. Name a frames folder in which they are: --frames FOLDER."
        )
    if config.picture is None:
        shown = replace(shown, labels=find_labels(found, config.frames))
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


def find_labels(encoder: EncoderFolder, frames: str | Path | None) -> Labels | None:
    """Return what each dimension does: from the encoder's folder, or measured now.

    It is measured by playing the environment at random, where its state is known; else on the statistics of
    the frames of the folder.

    Args:
        encoder: The encoder.
        frames: Frames folder. ``None``: without a known state nothing is measured; calibration frames are
            too few.

    Raises:
        ValueError: If ``labels.json`` is damaged.
    """
    config = encoder.config
    if (known := read_labels(encoder.path, config.vae.latent_dim)) is not None:
        return known
    from latent_obs.evaluation.variables import observe
    from latent_obs.vae import load_vae

    folders = [] if frames is None else [FramesFolder(frames)]
    observed = observe(encoder, folders)
    return None if observed is None else measure_labels(load_vae(encoder)[0], config, observed)


def choose_frames(encoder: EncoderFolder, frames: str | Path | None, *, play: bool = True) -> Shown:
    """Choose the frames to show: a gallery of lively frames, and a part of the longest episode.

    If the encoder was trained on this folder, only its held-out episodes are shown.

    Args:
        encoder: The encoder that will encode the frames.
        frames: Frames folder. ``None``: the encoder's calibration frames, and an episode of random play.
        play: Whether the environment may be played for the episode.

    Returns:
        The frames; no episode where the encoder has no frames folder and its environment cannot be played,
        and where frames that follow one another are no more alike than any others.

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
        episode = _played(encoder) if play else None
        return Shown(
            _lively(found),
            found[:0] if episode is None else episode,
            "The encoder was trained on these frames. Press one to encode it.",
            f"An episode of random play of {encoder.config.source.env_id}, encoded and decoded as it plays.",
        )
    from latent_obs.evaluation.selection import held_out_episodes

    folder = FramesFolder(frames)
    episodes = held_out_episodes(encoder, folder)
    lengths = {e: n for e, n in folder.episodes().items() if episodes is None or e in episodes}
    longest = max(lengths, key=lambda e: lengths[e])
    whole = folder.load([longest])
    begin = max(0, (len(whole) - EPISODE) // 2)  # more happens in the middle than at the start
    where = f"{folder.source.env_id or name_of(folder.path)}"
    stretch = whole[begin : begin + EPISODE]
    return Shown(
        _lively(folder.sample(1024, episodes)),
        stretch if _in_order(stretch) else stretch[:0],
        f"Frames of {where}{'' if episodes is None else ' that the encoder was not trained on'}. "
        "Press one to encode it.",
        f"Frames {begin + 1} to {begin + len(stretch)} of an episode of {where}, "
        "encoded and decoded as they play.",
    )


def _played(encoder: EncoderFolder) -> Frames | None:
    """Play the encoder's environment for a while; ``None`` where it is not there or has no order."""
    from latent_obs.evaluation.variables import play_again

    observed = play_again(encoder, 3 * EPISODE, seed=1, state=False)
    if observed is None:
        return None
    stretch = observed.frames[-EPISODE:]
    return stretch if _in_order(stretch) else None


def _in_order(frames: Frames) -> bool:
    """Say whether frames that follow one another are more alike than others; else they would flicker."""
    if len(frames) < 3:
        return True
    values = frames.astype(np.float32)
    shuffled = values[np.random.default_rng(0).permutation(len(values))]
    steps, jumps = (float(np.abs(each[1:] - each[:-1]).mean()) for each in (values, shuffled))
    return steps < 0.7 * jumps


def _lively(frames: Frames) -> Frames:
    from latent_obs.evaluation.pictures import liveliest

    return liveliest(frames, min(GALLERY, max(1, len(frames) // 2)))[::-1]


__all__ = ["Shown", "VisualizeConfig", "choose_frames", "visualize_encoder"]

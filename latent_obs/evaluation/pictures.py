"""Pictures of what a VAE keeps and what an agent learns: for the demo, the README and papers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import matplotlib.figure
import numpy as np
import numpy.typing as npt
import torch

from latent_obs.encoders.folder import EncoderConfig
from latent_obs.frames import Frames, preprocess
from latent_obs.measures import foreground_share
from latent_obs.vae import VAE, reconstruct, to_frames

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def liveliest(frames: Frames, count: int) -> Frames:
    """Pick frames that show more than most, without the outliers.

    Frames are ranked by the share of their pixels that differ from the median frame. Evenly spaced ones are
    picked between the middle of the ranking and its 97th percentile.

    Args:
        frames: ``uint8``, shape (N, 64, 64, 3).
        count: How many to pick; with few frames some are picked more than once.
    """
    ranked = np.argsort(foreground_share(frames, np.median(frames, 0)))
    ranked = ranked[len(frames) // 2 : len(frames) * 97 // 100 + 1]
    picked: Frames = frames[ranked[np.linspace(0, len(ranked) - 1, count).astype(int)]]
    return picked


def reconstructions(vae: VAE, frames: Frames, path: Path) -> None:
    """Draw frames above what the VAE makes of them.

    Args:
        vae: The model.
        frames: ``uint8``, shape (N, 64, 64, 3); one column each.
        path: PNG to write.
    """
    decoded = reconstruct(vae, frames)
    title = f"Frames it was not trained on, and what {vae.config.latent_dim} numbers keep"
    figure, axes = _grid(2, len(frames), title=title)
    for column in range(len(frames)):
        _image(axes[0, column], frames[column])
        _image(axes[1, column], decoded[column])
    _row_label(axes[0, 0], "frame")
    _row_label(axes[1, 0], "decoded")
    figure.savefig(path)


@torch.no_grad()
def traversal_frames(
    vae: VAE, config: EncoderConfig, frame: Frames, dims: int, order: Sequence[int] | None = None
) -> Iterator[tuple[int, npt.NDArray[np.float64], Frames]]:
    """Move the most informative dimensions of a frame's latent, one at a time.

    Args:
        vae: The model.
        config: Its statistics order the dimensions by KL and give the range of each.
        frame: ``uint8``, shape (64, 64, 3), the starting point.
        dims: How many dimensions.
        order: Dimensions, the first one first; ``None`` (default): those of largest KL first.

    Yields:
        The dimension, its offsets from its mean in standard deviations, and the decoded frames.
    """
    offsets = np.linspace(-3, 3, 9)
    latent = vae(torch.from_numpy(frame[None]))[0].numpy()
    chosen = np.argsort(config.latents["kl"])[::-1].tolist() if order is None else order
    for dim in chosen[:dims]:
        moved = np.repeat(latent[None], len(offsets), 0)
        moved[:, dim] = config.latents["mean"][dim] + offsets * config.latents["std"][dim]
        yield int(dim), offsets, to_frames(vae.decode(torch.from_numpy(moved)))


def traversals(vae: VAE, config: EncoderConfig, frame: Frames, path: Path, dims: int = 8) -> None:
    """Draw one row per latent dimension: the frame's latent with that dimension moved.

    Args:
        vae: The model.
        config: Its statistics order the dimensions by KL and give the range of each.
        frame: ``uint8``, shape (64, 64, 3), the starting point.
        path: PNG to write.
        dims: Rows, the dimensions of largest KL first.
    """
    rows = list(traversal_frames(vae, config, frame, dims))
    title = "One latent dimension moved per row, in standard deviations; most informative first"
    figure, axes = _grid(len(rows), len(rows[0][1]), title=title)
    for row, (dim, offsets, images) in enumerate(rows):
        for column, (offset, image) in enumerate(zip(offsets, images, strict=True)):
            _image(axes[row, column], image)
            if row == 0:
                axes[0, column].set_title(f"{offset:+.2g}", fontsize=8)
        _row_label(axes[row, 0], f"z{dim}\n{config.latents['kl'][dim]:.1f} nats")
    figure.savefig(path)


def learning_curve(games: Sequence[tuple[int, float]], random: float, path: Path) -> None:
    """Draw the return of an agent's games over the steps of its training.

    Args:
        games: The step at which each game ended, and its return.
        random: Mean return of random play, drawn as a line.
        path: PNG to write.
    """
    figure = matplotlib.figure.Figure(figsize=(7, 3.2), dpi=110, layout="constrained")
    axis = figure.subplots()
    if games:
        steps, returns = np.array(games).T
        width = max(1, len(games) // 25)
        mean = np.convolve(returns, np.ones(width) / width, "valid")
        axis.plot(steps, returns, ".", color="0.75", markersize=3, label="a game")
        axis.plot(steps[width - 1 :], mean, linewidth=1.6, label=f"mean of {width} games")
    axis.axhline(random, color="C3", linestyle="--", linewidth=1, label="random play")
    axis.set_xlabel("steps of the agent", fontsize=8)
    axis.set_ylabel("return", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")
    figure.savefig(path)


def filmstrip(vae: VAE, config: EncoderConfig, observations: list[Any], path: Path) -> None:
    """Draw a stretch of an episode as the agent sees it.

    Args:
        vae: The model.
        config: Its frame spec makes the frames, its statistics scale the latents.
        observations: Raw RGB observations, one column each.
        path: PNG to write.
    """
    frames = np.stack([preprocess(observation, config.frame_spec) for observation in observations])
    latents = vae(torch.from_numpy(frames)).numpy()
    scaled = (latents - config.latents["mean"]) / np.maximum(config.latents["std"], 1e-6)
    # The latent as a block of 4 columns: easier to compare from frame to frame than one line.
    blocks = np.pad(scaled, ((0, 0), (0, -scaled.shape[1] % 4)), constant_values=np.nan)
    title = f"The game, the frame, its {latents.shape[1]} numbers (what the agent sees), and their decoding"
    figure, axes = _grid(4, len(frames), title=title)
    decoded = reconstruct(vae, frames)
    for column in range(len(frames)):
        _image(axes[0, column], observations[column])
        _image(axes[1, column], frames[column])
        axes[2, column].imshow(blocks[column].reshape(-1, 4), cmap="RdBu", vmin=-3, vmax=3, aspect="auto")
        _image(axes[3, column], decoded[column])
    for row, label in enumerate(("observation", "frame", "latent", "decoded")):
        _row_label(axes[row, 0], label)
    figure.savefig(path)


def _grid(rows: int, columns: int, title: str) -> tuple[matplotlib.figure.Figure, npt.NDArray[Any]]:
    size = (columns * 1.1 + 0.7, rows * 1.1 + 0.4)
    figure = matplotlib.figure.Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure, axes


def _image(axis: Axes, image: Any) -> None:
    axis.imshow(image, interpolation="nearest")


def _row_label(axis: Axes, text: str) -> None:
    axis.set_ylabel(text, fontsize=8)

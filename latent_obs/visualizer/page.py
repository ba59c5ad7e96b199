"""Builds the page: one HTML file from its parts, an encoder and frames."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from latent_obs import __version__
from latent_obs.encoders.folder import ACTIVE_VARIANCE, EncoderConfig, Tensors
from latent_obs.evaluation.labels import Labels
from latent_obs.frames import Frames

PARTS = Path(__file__).parent
# The browser must read them in this order. worker.js is not among them: the page starts it in a worker.
SCRIPTS = (
    "safetensors.js",
    "engine.js",
    "images.js",
    "assistant.js",
    "axes.js",
    "rows.js",
    "player.js",
    "files.js",
    "page.js",
)
WORKER = "worker.js"
# The page does not use these: it shows means, and takes the KL of each dimension from config.json.
LEFT_OUT = ("log_variance.weight", "log_variance.bias", "decoder_variance")


@dataclass(frozen=True)
class Shown:
    """The frames in a page.

    Args:
        gallery: Frames to choose from, ``uint8``, shape (N, 64, 64, 3).
        episode: Frames that are played one after another, ``uint8``, shape (N, 64, 64, 3); none where there
            is no order to play frames in.
        gallery_from: Sentences below the gallery that say where its frames come from.
        episode_from: Sentences below the player that say where the episode comes from.
        labels: What each dimension does, where it was measured.
    """

    gallery: Frames
    episode: Frames
    gallery_from: str
    episode_from: str
    labels: Labels | None = None


def build_page(name: str, config: EncoderConfig, tensors: Tensors, shown: Shown) -> str:
    """Return the page as one HTML document.

    The page's Content-Security-Policy allows the scripts and the style in the page, by their hashes, and
    forbids every connection.

    Args:
        name: The encoder's name on the page.
        config: The encoder's ``config.json``.
        tensors: The encoder's ``model.safetensors``.
        shown: The frames to show.

    Raises:
        ValueError: If a weight is too large for float16.
    """
    scripts = {script: _part(script) for script in SCRIPTS}
    style = _part("style.css")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {' '.join(_hash(text) for text in scripts.values())}",
            f"style-src {_hash(style)}",
            "img-src data:",
            "worker-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    frames = np.concatenate([shown.gallery, shown.episode])
    parts = {
        "title": html.escape(f"{name}: latent visualizer"),
        "policy": html.escape(policy),
        "generator": f"latent_obs {__version__}",
        "style": f"<style>{style}</style>",
        "about": _data("about", "application/json", _about(name, config, shown)),
        "model": _data("model", "text/plain", _base64(_float16(tensors))),
        "frames": _data("frames", "text/plain", _base64(zlib.compress(frames.tobytes(), 9))),
        "worker": f'<script id="{WORKER}" type="text/plain">{_part(WORKER)}</script>',
        "scripts": "\n".join(f'<script id="{script}">{text}</script>' for script, text in scripts.items()),
    }
    return re.sub(r"{{ (\w+) }}", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _data(name: str, kind: str, text: str) -> str:
    """Return an element that holds data. It does not run, so the policy need not allow it."""
    return f'<script id="{name}" type="{kind}">{text}</script>'


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _float16(tensors: Tensors) -> bytes:
    with np.errstate(over="ignore"):  # values that are too large become infinite, and are found below
        halves = {name: value.astype(np.float16) for name, value in tensors.items() if name not in LEFT_OUT}
    for name, value in halves.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"The tensor {name} holds values beyond 65504, the largest number in the page's float16. "
                "Most likely the encoder is broken; latent-obs evaluate shows what it does."
            )
    return safetensors.numpy.save(halves)


def _about(name: str, config: EncoderConfig, shown: Shown) -> str:
    """Return the facts about the encoder and the frames, as JSON that cannot end its HTML element."""
    about: dict[str, Any] = {
        "name": name,
        "environment": config.source.env_id,
        "crop": config.frame_spec.to_json()["crop"],
        "latents": config.latents,
        "metrics": {key: config.metrics[key] for key in ("kl", "psnr", "moving_r2") if key in config.metrics},
        "active_variance": ACTIVE_VARIANCE,
        "labels": shown.labels and shown.labels.to_json(),
        "gallery": {"count": len(shown.gallery), "from": shown.gallery_from},
        "episode": {"count": len(shown.episode), "from": shown.episode_from},
    }
    return json.dumps(about, allow_nan=False).replace("<", "\\u003c")

"""Fill the page: its parts, an encoder and its frames become one HTML file that needs nothing else."""

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
from latent_obs.frames import Frames

PARTS = Path(__file__).parent
# In the order in which the browser must read them. worker.js does not run in the page itself: the
# page starts it in a worker.
SCRIPTS = (
    "safetensors.js",
    "engine.js",
    "images.js",
    "assistant.js",
    "rows.js",
    "player.js",
    "files.js",
    "page.js",
)
WORKER = "worker.js"
# The page has no use for these: it shows means, and the KL of each dimension comes from config.json.
LEFT_OUT = ("log_variance.weight", "log_variance.bias", "decoder_variance")


@dataclass(frozen=True)
class Shown:
    """The frames in a page.

    Args:
        gallery: To choose from, ``uint8``, shape (N, 64, 64, 3).
        episode: Played one after another, ``uint8``, shape (N, 64, 64, 3).
        gallery_from: Where the gallery comes from, as the page says it.
        episode_from: The same for the episode.
    """

    gallery: Frames
    episode: Frames
    gallery_from: str
    episode_from: str


def build_page(name: str, config: EncoderConfig, tensors: Tensors, shown: Shown) -> str:
    """Return the page as one HTML document.

    Its Content-Security-Policy allows its own scripts and style, by their hashes, and no
    connection.

    Args:
        name: What the page calls the encoder.
        config: The encoder's ``config.json``.
        tensors: The content of its ``model.safetensors``.
        shown: The frames.

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
    """Return an element that holds data, which no policy needs to allow because it does not run."""
    return f'<script id="{name}" type="{kind}">{text}</script>'


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _float16(tensors: Tensors) -> bytes:
    with np.errstate(over="ignore"):  # such values become infinite, and are found below
        halves = {name: value.astype(np.float16) for name, value in tensors.items() if name not in LEFT_OUT}
    for name, value in halves.items():
        if not np.isfinite(value).all():
            raise ValueError(
                f"The tensor {name} holds values beyond 65504, which the page's float16 cannot. "
                "Such an encoder is most likely broken: look at it with latent-obs evaluate."
            )
    return safetensors.numpy.save(halves)


def _about(name: str, config: EncoderConfig, shown: Shown) -> str:
    """Return what the page says of its encoder and frames, in JSON that cannot end its element."""
    about: dict[str, Any] = {
        "name": name,
        "environment": config.source.env_id,
        "crop": config.frame_spec.to_json()["crop"],
        "latents": config.latents,
        "metrics": {key: config.metrics[key] for key in ("kl", "psnr", "moving_r2") if key in config.metrics},
        "active_variance": ACTIVE_VARIANCE,
        "gallery": {"count": len(shown.gallery), "from": shown.gallery_from},
        "episode": {"count": len(shown.episode), "from": shown.episode_from},
    }
    return json.dumps(about, allow_nan=False).replace("<", "\\u003c")

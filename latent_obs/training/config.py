"""How to train: the options of ``latent-obs train``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from latent_obs.encoders.folder import VAEConfig


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE on a folder of frames."""

    data: str | Path
    """frames folder written by `latent-obs collect`, a path or a URL"""
    out: Path = Path("encoder")
    """encoder folder to write; an unfinished run of the same settings is resumed"""
    init_from: str | Path | None = None
    """name, folder or hf://USER/NAME of an encoder of the same sizes whose weights to start from"""
    latent_dim: int = 32
    """size of the latent"""
    channels: tuple[int, ...] = (32, 64, 128)
    """output channels of the encoder's convolutions; the decoder mirrors them"""
    steps: int = 10_000
    """optimiser steps"""
    batch_size: int = 64
    """frames in a step"""
    learning_rate: float = 1e-3
    """Adam's learning rate; falls to zero along a half cosine"""
    objective: Literal["calibrated", "sse"] = "calibrated"
    """calibrated: Gaussian decoder whose variance is the running mean squared error; sse: squared
    error + KL as in World Models and nothing else, which collapses on games with small objects"""
    beta: float = 1.0
    """weight of the KL term; losses are in nats per frame"""
    kl_warmup: float = 0.2
    """fraction of the steps over which beta rises from zero"""
    free_bits: float = 0.0
    """nats that each latent dimension may say for nothing (Kingma et al. 2016), against collapse"""
    foreground_weight: float = 20.0
    """extra weight of pixels that differ from the median frame, and again of those that are about to change
    or just did, so that small objects survive"""
    rarity_weight: float = 60.0
    """extra weight of pixels whose colour is rare in the frames, so that small objects survive in front of a
    moving camera too"""
    batch_norm: bool = True
    """normalise activations while training, which learns small objects in fewer steps; it is folded into
    the weights in the end"""
    validation: float = 0.1
    """fraction of the frames held out, by whole episodes"""
    evaluate_every: int = 500
    """steps between evaluations on held-out frames; each takes about 2% of the time of those steps"""
    patience: int = 0
    """stop after this many evaluations without a better held-out loss and keep the best state; 0: never"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 trains faster where the hardware has it; auto takes it there"""
    seed: int = 0
    """seed of weights, batches and noise"""
    devices: int = 1
    """processes on this machine, one a GPU if there are any; they share each batch"""
    num_nodes: int = 1
    """machines; torchrun sets this and the one before by itself"""
    tensorboard: bool = False
    """write TensorBoard event files to `out`/tensorboard as well"""
    overwrite: bool = False
    """replace whatever encoder is in `out`"""

    def __post_init__(self) -> None:
        VAEConfig(self.latent_dim, tuple(self.channels))
        for name in ("steps", "batch_size", "evaluate_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        weights = ("beta", "free_bits", "foreground_weight", "rarity_weight")
        for name in (*weights, "kl_warmup", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < 1:
            raise ValueError(f"learning_rate must be between 0 and 1, got {self.learning_rate}.")
        if not 0 < self.validation < 1:
            raise ValueError(
                f"validation must be between 0 and 1, got {self.validation}: without held-out episodes "
                "nobody could tell what the encoder has learned from what it has memorised."
            )

    @property
    def vae(self) -> VAEConfig:
        """Sizes of the networks."""
        return VAEConfig(self.latent_dim, tuple(self.channels))

    def to_json(self) -> dict[str, Any]:
        """Return what identifies a run; where it lies and which machines run it do not."""
        fields = asdict(self)
        for name in ("data", "out", "devices", "num_nodes", "tensorboard", "overwrite"):
            del fields[name]
        fields["init_from"] = None if self.init_from is None else str(self.init_from)
        return {**fields, "channels": list(self.channels)}

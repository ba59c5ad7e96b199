"""How to train: the options of ``latent-obs train``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from latent_obs.encoders.folder import VAEConfig

# A step draws its noise with a million times this seed, and PyTorch takes seeds below 2^64.
MAX_SEED = 10**12


@dataclass(frozen=True)
class TrainConfig:
    """Train a VAE on a folder of frames.

    ``latent-obs train --help`` lists the options and says what each means.

    Example:
        >>> TrainConfig("frames", steps=2_000).batch_size
        64
    """

    data: str | Path
    """frames folder written by `latent-obs collect`, a path or a URL"""
    out: Path = Path("encoder")
    """encoder folder to write; if it holds an unfinished run of the same settings, that run goes on"""
    init_from: str | Path | None = None
    """encoder whose weights training starts from: a name, a folder or hf://USER/NAME; its latent and its
    channels must have the same sizes"""
    anchor: float = 0.0
    """hold each latent within about this many of its standard deviations of where the encoder of `init_from`
    has it, so that policies trained on that one go on; `latent-obs refresh` takes 0.05; 0: let it move"""
    latent_dim: int = 32
    """size of the latent"""
    channels: tuple[int, ...] = (32, 64, 128)
    """output channels of the encoder's convolutions; the decoder mirrors them"""
    steps: int = 10_000
    """optimiser steps"""
    batch_size: int = 64
    """frames in a step, shared by all processes"""
    learning_rate: float = 1e-3
    """learning rate at the first step; it falls to zero along half a cosine"""
    optimizer: Literal["adam", "muon"] = "adam"
    """adam, or muon, which reaches the same in fewer steps: Muon steps weight matrices, Adam the rest; its
    learning rate is about 0.01"""
    objective: Literal["calibrated", "sse"] = "calibrated"
    """calibrated: the decoder is Gaussian, and its variance is the running mean squared error; sse: squared
    error + KL as in World Models, without any emphasis, which collapses on games with small objects"""
    beta: float = 1.0
    """weight of the KL term; losses are in nats per frame"""
    kl_warmup: float = 0.2
    """fraction of the steps over which beta rises from zero, or goes from `beta_start` to `beta`"""
    beta_start: float = 0.0
    """beta at the first step, above `beta`; it falls by a constant factor per step; 0: it rises from zero"""
    pairs: bool = False
    """draw pairs of consecutive frames, and let both frames of a pair share all dimensions but the one that
    differs most; where each step of the environment changes one factor, a dimension then follows one factor
    (Locatello et al. 2020); the frames are held in memory, and `foreground_weight` counts for nothing"""
    free_bits: float = 0.0
    """KL in nats that each latent dimension is always charged, so that none gains by saying less (Kingma et
    al. 2016); raise it against collapse"""
    foreground_weight: float = 20.0
    """extra weight in the error of pixels that differ from the median frame, and once more of pixels that
    differ from the frame before or after; it keeps small objects"""
    rarity_weight: float = 60.0
    """extra weight in the error of pixels whose colour is rare in the frames; it keeps small objects in front
    of a moving camera too"""
    moments: int = 0
    """train at most so many latent dimensions to be the places and sizes of moving objects, colour by colour,
    so that a linear reader finds more of them; for frames of one environment"""
    places: int = 0
    """train at most so many latent dimensions to be the places of objects: of pixels of one colour that move
    from frame to frame and lie together. An agent observes them louder than others. Not together with
    `moments`, and for frames of one environment"""
    batch_norm: bool = True
    """normalise activations while training, so that small objects are learned in fewer steps; at the end the
    normalisation is folded into the weights"""
    validation: float = 0.1
    """fraction of the frames that are held out for evaluation, as whole episodes"""
    evaluate_every: int = 500
    """steps between evaluations on held-out frames; an evaluation takes about 2% of their time"""
    patience: int = 0
    """stop when so many evaluations in a row brought no better held-out loss, and keep the best state; 0: do
    not stop"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """precision of matrix products and convolutions; auto takes bfloat16 where that is faster: on GPUs that
    compute in it and on CPUs with AMX"""
    seed: int = 0
    """seed of the initial weights, the split, the batches and the noise"""
    devices: int = 1
    """processes on this machine, which share each batch; one for each GPU, if there are GPUs"""
    num_nodes: int = 1
    """machines that train together; torchrun sets this and `devices`"""
    tensorboard: bool = False
    """also write TensorBoard event files to the folder tensorboard in `out`"""
    overwrite: bool = False
    """replace the encoder that is in `out`, and its card"""

    def __post_init__(self) -> None:
        VAEConfig(self.latent_dim, tuple(self.channels))
        for name in ("optimizer", "objective", "precision"):
            choices = get_args(get_type_hints(TrainConfig)[name])
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {' or '.join(choices)}, got {getattr(self, name)!r}.")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed must be from 0 to {MAX_SEED:,}, got {self.seed}.")
        for name in ("steps", "batch_size", "evaluate_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        weights = ("beta", "beta_start", "free_bits", "foreground_weight", "rarity_weight")
        for name in (*weights, "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}.")
        if not 0 <= self.kl_warmup <= 1:
            raise ValueError(f"kl_warmup is a fraction of the steps, from 0 to 1, got {self.kl_warmup}.")
        if self.pairs and (self.batch_size % 2 or self.devices * self.num_nodes > 1):
            raise ValueError(
                f"pairs needs an even batch_size and one process, got a batch of {self.batch_size} and "
                f"{self.devices * self.num_nodes} processes."
            )
        if not 0 <= self.anchor < math.inf or (self.anchor and self.init_from is None):
            raise ValueError(
                "anchor must not be negative, and it needs an encoder to start from (init_from); got anchor="
                f"{self.anchor} and init_from={self.init_from}."
            )
        if self.beta_start and not 0 < self.beta < self.beta_start:
            raise ValueError(
                f"beta_start={self.beta_start} needs a beta above 0 and below it to fall to, got {self.beta}."
            )
        for name in ("moments", "places"):
            if not 0 <= (count := getattr(self, name)) <= self.latent_dim:
                raise ValueError(
                    f"{name} must be from 0 to latent_dim, which is {self.latent_dim}; got {count}."
                )
        if self.places and (self.moments or self.pairs):
            raise ValueError(
                f"places cannot be combined with moments or pairs, got places={self.places}, "
                f"moments={self.moments} and pairs={self.pairs}. Leave out one of them."
            )
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
        """Return the options that identify a run; paths, machines and what is shown are not among them."""
        fields = asdict(self)
        for name in ("data", "out", "devices", "num_nodes", "tensorboard", "overwrite"):
            del fields[name]
        # An option that came later says nothing of itself at its default, so that older runs stay equal.
        for name in ("optimizer", "moments", "places", "beta_start", "pairs", "anchor"):
            if fields[name] == type(self).__dataclass_fields__[name].default:
                del fields[name]
        fields["init_from"] = None if self.init_from is None else str(self.init_from)
        return {**fields, "channels": list(self.channels)}

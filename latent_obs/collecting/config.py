"""What to collect: the options of ``latent-obs collect``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_obs.encoders.encoder import NORMALIZE
from latent_obs.frames import FrameSpec
from latent_obs.images import as_json

# Episode numbers leave room for so many shards of a worker, and episodes of a shard.
MAX_SHARDS, MAX_SHARD_ROWS = 10_000, 100_000


@dataclass(frozen=True)
class CollectConfig:
    """Collect frames from an environment into a folder."""

    env_id: str
    """Gymnasium id, such as ALE/Pong-v5; module:Id imports the module first; envpool/Task is EnvPool's"""
    out: str | Path = Path("frames")
    """the frames folder, a path or a URL such as s3://bucket/frames; an existing one made by the same
    command is resumed"""
    frames: int = 10_000
    """number of frames the folder shall hold"""
    workers: int | None = None
    """number of workers; default: what the folder was begun with, else one per core"""
    policy: str = "random"
    """what acts: random, sticky, brownian, a model in an ONNX file (agent.onnx) or in a Stable-Baselines3 zip
    (agent.zip; loading it runs the code in it), or module:callable; a mix such as random:0.5,sticky:0.5
    draws one of them for each episode, with these weights"""
    policy_encoder: str | None = None
    """the encoder on whose latents the saved model was trained: auto, a bundled encoder's name,
    an encoder folder, or hf://USER/NAME"""
    policy_normalize: bool = NORMALIZE
    """whether that model was trained on latents of zero mean and unit variance, which wrappers give unless
    told otherwise"""
    seed: int = 0
    """seed of environments and policies; the same seed gives the same frames"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments for gymnasium.make, as JSON"""
    key: str | None = None
    """the entry of Dict observations to collect, such as screen of ViZDoom's; a policy sees it alone"""
    render: bool = False
    """draw the environment, and let the drawing be the observation: for environments of states"""
    wrapper: str | None = None
    """module:callable around the environment, such as minigrid.wrappers:RGBImgObsWrapper"""
    crop: tuple[int, int, int, int] | None = None
    """rows and columns to keep before resizing: top bottom left right"""
    shard_rows: int = 8192
    """rows after which a shard is committed, at the end of an episode"""
    step_timeout: float | None = None
    """seconds that the environment's constructor, a reset, a step (with the policy's choice of the action) or
    its close may take; a worker that takes longer is ended and reported; default: no limit"""
    ray: bool = False
    """run the workers as Ray tasks, on all machines of the cluster; `out` must be reachable from each"""

    def __post_init__(self) -> None:
        for name in ("frames", "shard_rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")
        if self.shard_rows > MAX_SHARD_ROWS:
            raise ValueError(f"shard_rows must be at most {MAX_SHARD_ROWS:,}, got {self.shard_rows:,}.")
        if self.step_timeout is not None and not 0 < self.step_timeout < math.inf:
            raise ValueError(f"step_timeout must be a number of seconds above 0, got {self.step_timeout}.")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}.")
        if self.policy_normalize != NORMALIZE and self.policy_encoder is None:
            raise ValueError(
                f"policy_normalize={self.policy_normalize} is about the latents of the policy's encoder, but "
                "there is none: name it with --policy-encoder, or leave --no-policy-normalize out."
            )
        self.frame_spec, self.stored_kwargs  # noqa: B018  # what is invalid in them is reported here

    @property
    def frame_spec(self) -> FrameSpec:
        """How the frames are made."""
        return FrameSpec(crop=self.crop)

    @property
    def stored_kwargs(self) -> dict[str, Any]:
        """``env_kwargs`` as shards store them: tuples and arrays are lists, and all keys are texts."""
        stored = {}
        for name, value in self.env_kwargs.items():
            try:
                stored[name] = json.loads(json.dumps(as_json(value), allow_nan=False))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"env_kwargs must be values that JSON has, since shards store them, got {name}={value!r} "
                    f"({error}). Register an environment of your own, under its own id, that has it built in."
                ) from error
        return stored

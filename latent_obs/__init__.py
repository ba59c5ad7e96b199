"""Train reinforcement-learning agents on a compact latent instead of pixels.

A project, step by step:

    if __name__ == "__main__":  # the processes that collect import the script again
        collect_frames(CollectConfig("ALE/Pong-v5", Path("frames")))          # rollouts to Parquet
        train_vae(TrainConfig(Path("frames"), Path("encoder")))               # offline VAE
        evaluate_encoder(EvaluateConfig(Path("encoder"), Path("frames")))     # its report card
        env = LatentObservationWrapper(gym.make("ale_py:ALE/Pong-v5"), "encoder")
        obs, info = env.reset()                                               # 32 numbers

Importing the package costs little, because each name is imported when it is first used. Acting on latents
never imports torch. The import registers environments such as ``LatentObs/Pong-v5`` with Gymnasium.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latent_obs import envs as _envs
from latent_obs.extras import needs

if TYPE_CHECKING:
    from latent_obs.collecting.collect import collect_frames
    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.encode import EncodeConfig, encode_frames
    from latent_obs.data.check import check_frames
    from latent_obs.data.curate import MergeConfig, SplitConfig, merge_frames, split_frames
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.latents import LatentsFolder
    from latent_obs.drift import LatentDriftMonitor
    from latent_obs.encoders.encoder import Encoder, load_encoder
    from latent_obs.encoders.export import ExportConfig, export_encoder
    from latent_obs.encoders.folder import VAEConfig
    from latent_obs.encoders.hub import PullConfig, pull_encoder
    from latent_obs.encoders.resolve import list_encoders
    from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder
    from latent_obs.fit import FitConfig, fit_encoder
    from latent_obs.frames import FrameSpec, preprocess
    from latent_obs.push import PushConfig, push_encoder
    from latent_obs.refresh import RefreshConfig, refresh_encoder
    from latent_obs.training.config import TrainConfig
    from latent_obs.training.train import train_vae
    from latent_obs.vae import VAE
    from latent_obs.visualizer import VisualizeConfig, visualize_encoder
    from latent_obs.wrappers import LatentObservationWrapper

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "CollectConfig",
    "CollectError",
    "EncodeConfig",
    "Encoder",
    "EvaluateConfig",
    "ExportConfig",
    "FitConfig",
    "FrameSpec",
    "FramesFolder",
    "LatentDriftMonitor",
    "LatentObservationWrapper",
    "LatentsFolder",
    "MergeConfig",
    "PullConfig",
    "PushConfig",
    "RefreshConfig",
    "SplitConfig",
    "TrainConfig",
    "VAEConfig",
    "VisualizeConfig",
    "check_frames",
    "collect_frames",
    "encode_frames",
    "evaluate_encoder",
    "export_encoder",
    "fit_encoder",
    "list_encoders",
    "load_encoder",
    "merge_frames",
    "preprocess",
    "pull_encoder",
    "push_encoder",
    "refresh_encoder",
    "split_frames",
    "train_vae",
    "visualize_encoder",
]

_HOME = {
    "collecting.collect": ("collect_frames",),
    "collecting.trial": ("CollectError",),
    "collecting.config": ("CollectConfig",),
    "collecting.encode": ("EncodeConfig", "encode_frames"),
    "data.check": ("check_frames",),
    "data.curate": ("MergeConfig", "SplitConfig", "merge_frames", "split_frames"),
    "data.folder": ("FramesFolder",),
    "data.latents": ("LatentsFolder",),
    "drift": ("LatentDriftMonitor",),
    "encoders.encoder": ("Encoder", "load_encoder"),
    "encoders.export": ("ExportConfig", "export_encoder"),
    "encoders.folder": ("VAEConfig",),
    "encoders.hub": ("PullConfig", "pull_encoder"),
    "encoders.resolve": ("list_encoders",),
    "evaluation.evaluate": ("EvaluateConfig", "evaluate_encoder"),
    "fit": ("FitConfig", "fit_encoder"),
    "frames": ("FrameSpec", "preprocess"),
    "push": ("PushConfig", "push_encoder"),
    "refresh": ("RefreshConfig", "refresh_encoder"),
    "training.config": ("TrainConfig",),
    "training.train": ("train_vae",),
    "vae": ("VAE",),
    "visualizer": ("VisualizeConfig", "visualize_encoder"),
    "wrappers": ("LatentObservationWrapper",),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOME.items():
        if name in names:
            with needs(f"latent_obs.{name}"):
                return getattr(importlib.import_module(f"latent_obs.{module}"), name)
    raise AttributeError(f"module 'latent_obs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_envs.register()

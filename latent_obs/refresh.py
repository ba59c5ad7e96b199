"""Fine-tunes an encoder on what its agent sees; the agent stays unchanged.

Random play never shows what a trained agent sees. Here the agent collects, and the encoder trains on from its
own weights while an anchor holds its latents where they were. The affine map from the new latents to the old
ones is fitted by least squares and folded into the weights. So the new folder is an ordinary one, and neither
a policy nor a replay buffer has to change.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.encoders.encoder import NORMALIZE
from latent_obs.encoders.folder import read_calibration, write_encoder_folder
from latent_obs.encoders.provenance import Refreshed
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.extras import needs
from latent_obs.files import write_atomically
from latent_obs.progress import plain_console

with needs("Refreshing an encoder", "make"):
    from latent_obs.collecting.collect import collect_frames
    from latent_obs.collecting.config import CollectConfig
    from latent_obs.collecting.models import SUFFIXES
    from latent_obs.collecting.policies import default_policy, parse_mix
    from latent_obs.collecting.sources import open_env
    from latent_obs.data.curate import MergeConfig, SplitConfig, merge_frames, split_frames
    from latent_obs.data.folder import FramesFolder
    from latent_obs.data.storage import locked

WORK = ".refresh"
# Frames that the map is fitted on, and held-out frames that it is measured on, at most.
MEASURED = 4096
# Seeds of what is collected are this far apart, so that no episode is played twice.
SEEDS = 100_003


@dataclass(frozen=True)
class RefreshConfig:
    """Fine-tune an encoder on its agent's frames; the agent stays unchanged.

    ``latent-obs refresh --help`` lists the options and says what each means.

    Example:
        >>> RefreshConfig("breakout-v0", "ALE/Breakout-v5", "agent.zip").anchor
        0.05
    """

    encoder: str | Path
    """the encoder on whose latents the agent was trained: a name, a folder or hf://USER/NAME"""
    env_id: str
    """Gymnasium id of the agent's environment, as `latent-obs collect` takes it"""
    policy: str
    """the agent, such as agent.zip of Stable-Baselines3, or agent.onnx, as `latent-obs collect` takes it"""
    out: Path = Path("refreshed")
    """encoder folder to write; the same command goes on with what is unfinished there"""
    earlier: str | Path | None = None
    """frames folder that the encoder was trained on; as many of its frames as of the agent's are trained on,
    so that they are not forgotten; default: as many are collected by random play"""
    frames: int = 10_000
    """frames to collect with the agent"""
    steps: int = 2_000
    """optimiser steps"""
    anchor: float = 0.05
    """hold each latent within about this many of its standard deviations of where it was"""
    least_r2: float = 0.98
    """refuse the new encoder where its latents explain less than this of the old ones' variance, on frames of
    the agent that neither was trained on"""
    policy_normalize: bool = NORMALIZE
    """whether the agent was trained on latents of zero mean and unit variance, as wrappers give them"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """keyword arguments for gymnasium.make, as JSON"""
    key: str | None = None
    """the entry of Dict observations that is the image"""
    render: bool = False
    """draw the environment, and let the drawing be the observation: for environments of states"""
    wrapper: str | None = None
    """module:callable around the environment, such as minigrid.wrappers:RGBImgObsWrapper"""
    workers: int | None = None
    """processes that collect; default: one per core"""
    seed: int = 0
    """seed of environments and batches"""

    def __post_init__(self) -> None:
        for name in ("frames", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.anchor > 0:
            raise ValueError(
                f"anchor must be above 0, got {self.anchor}: without it the latents move away from what the "
                "agent knows. For a new agent: latent-obs train FRAMES --init-from ENCODER."
            )
        if not 0 <= self.least_r2 <= 1:
            raise ValueError(f"least_r2 must be from 0 to 1, got {self.least_r2}.")


def refresh_encoder(config: RefreshConfig, *, progress: bool = True) -> EncoderFolder:
    """Fine-tune an encoder on its agent's frames, and publish it in the coordinates of the old one.

    An interrupted call goes on with the same one. A finished one is not done again.

    Args:
        config: The encoder, its agent, the environment, and how long.
        progress: Show progress on standard error.

    Returns:
        The new encoder folder. The field ``refreshed`` of its provenance has what was measured on held-out
        frames of the agent. Latents that were stored before, as in a replay buffer, may stay:
        ``refreshed.r2`` says how much of their variance the new encoder's latents explain.

    Raises:
        FileNotFoundError: If the encoder or the frames are missing.
        ImportError: If a package of the environment or the agent is not installed.
        ValueError: If encoder, agent, environment and frames do not fit each other, the folder was begun with
            other settings, or the new latents explain less than ``config.least_r2`` of the old ones.
        CollectError: If the environment fails midway.
        KeyboardInterrupt: After Ctrl-C, once what is begun is saved.

    Example:
        >>> config = RefreshConfig("breakout-v0", "ALE/Breakout-v5", "agent.zip", Path("refreshed"))
        >>> refresh_encoder(config).config.provenance.refreshed.r2  # doctest: +SKIP
        0.985

    Source: Ha & Schmidhuber (2018), "World Models", section 5, iterate collecting and training; there each
    round trains every part anew.
    """
    from latent_obs.training.train import train_vae

    out, old = config.out, resolve(config.encoder)
    run = old.config.provenance.run
    if run is not None and run.config.get("objective") == "pca":
        raise ValueError(
            f"The encoder {config.encoder} is PCA, which does not train on. Fit a VAE and train the agent on "
            f"that: latent-obs fit {config.env_id} --seconds 600"
        )
    work = out / WORK
    if (out / "config.json").is_file() and not work.exists():
        raise ValueError(
            f"{out} holds an encoder that latent-obs refresh did not make, so it is left alone. Choose "
            "another --out."
        )
    work.mkdir(parents=True, exist_ok=True)
    with locked(work):
        if _begun(config, old, work):
            return resolve(out)
        seen = _collect(config, old, work / "seen", config.policy, 0)
        collect_frames(seen, progress=progress, in_process=False)
        held_out = replace(
            seen, out=work / "held_out", frames=max(1, config.frames // 10), seed=config.seed + SEEDS
        )
        collect_frames(held_out, progress=progress, in_process=False)
        earlier = _earlier(config, old, work, progress)
        if not (work / "frames").exists():
            merge_frames(MergeConfig((seen.out, earlier), work / "frames"), progress=progress)
        train = _train_config(config, old, work)
        frames = FramesFolder(train.data)
        lengths, episodes = frames.episodes(), frames.split(train.validation, train.seed)[0]
        if (count := sum(lengths[episode] for episode in episodes)) < train.batch_size:
            raise ValueError(
                f"Of {len(frames)} frames {count} are left to train on, fewer than a batch of "
                f"{train.batch_size}. Use more --frames, and another --out."
            )
        train_vae(train, progress=progress)
        _publish(config, old, train, out)
    return resolve(out)


def _identity(config: RefreshConfig, old: EncoderFolder) -> dict[str, Any]:
    """Return what tells one refreshing from another, as JSON."""
    fields = asdict(config)
    del fields["out"], fields["workers"]
    digests = {
        part: hashlib.sha256(Path(part).read_bytes()).hexdigest()
        for part, _ in parse_mix(config.policy)
        if part.endswith(SUFFIXES) and Path(part).is_file()
    }
    fields |= {"encoder": old.sha256(), "policy_files": digests}
    fields["earlier"] = None if config.earlier is None else str(config.earlier)
    return fields


# What may change before the new encoder is published: the frames stay, and it trains anew.
_TRAINING = ("steps", "anchor", "least_r2")


def _begun(config: RefreshConfig, old: EncoderFolder, work: Path) -> bool:
    """Compare with what was begun in the folder, and return whether it is finished.

    Raises:
        ValueError: If it was begun with other settings.
    """
    now, path = _identity(config, old), work / "settings.json"
    finished = (work.parent / "config.json").is_file()
    # Before anything is collected, a mistyped setting may be mended.
    if path.is_file() and (finished or (work / "seen").exists()):
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name in now if before.get(name) != now[name]]
        if changed and (finished or set(changed) - set(_TRAINING)):
            name = next((name for name in changed if name not in _TRAINING), changed[0])
            raise ValueError(
                f"{work.parent} was begun with {name} {before.get(name)!r}, not {now[name]!r}. Use the same "
                "settings, or another --out."
            )
        if {"steps", "anchor"} & set(changed):
            shutil.rmtree(work / "trained", ignore_errors=True)
    write_atomically(path, (json.dumps(now, indent=1) + "\n").encode())
    return finished


def _collect(config: RefreshConfig, old: EncoderFolder, out: Path, policy: str, seeds: int) -> CollectConfig:
    saved = any(part.endswith(SUFFIXES) for part, _ in parse_mix(policy))
    return CollectConfig(
        config.env_id,
        out,
        frames=config.frames,
        workers=config.workers,
        policy=policy,
        policy_encoder=old.ref if saved else None,
        policy_normalize=config.policy_normalize if saved else NORMALIZE,
        seed=config.seed + seeds * SEEDS,
        env_kwargs=config.env_kwargs,
        key=config.key,
        render=config.render,
        wrapper=config.wrapper,
        crop=old.config.frame_spec.crop,
    )


def _earlier(config: RefreshConfig, old: EncoderFolder, work: Path, progress: bool) -> str | Path:
    """Return a folder with about as many frames of earlier play as the agent has."""
    if config.earlier is None:
        env = open_env(
            config.env_id, config.env_kwargs, config.key, render=config.render, wrapper=config.wrapper
        )
        policy = default_policy(env)
        env.close()
        collect = _collect(config, old, work / "earlier", policy, 2)
        collect_frames(collect, progress=progress, in_process=False)
        return collect.out
    share = config.frames / len(FramesFolder(config.earlier))
    if share >= 1:
        return config.earlier
    part = work / "earlier"
    if not part.exists():
        split_frames(SplitConfig(config.earlier, part, validation=share, seed=config.seed), progress=progress)
    return part / "validation"


def _train_config(config: RefreshConfig, old: EncoderFolder, work: Path) -> Any:
    """Return how to train on: with the sizes and the objective that the old encoder has."""
    from latent_obs.training.config import TrainConfig

    run = old.config.provenance.run
    settings: dict[str, Any] = {} if run is None else dict(run.config)
    names = ("objective", "beta", "free_bits", "foreground_weight", "rarity_weight")
    kept = {name: settings[name] for name in names if name in settings}
    return TrainConfig(
        work / "frames",
        work / "trained",
        init_from=old.ref,
        anchor=config.anchor,
        latent_dim=old.config.vae.latent_dim,
        channels=tuple(old.config.vae.channels),
        steps=config.steps,
        kl_warmup=0.0,
        seed=config.seed,
        # Encoders that record no weight of rare colours were trained without.
        **{"rarity_weight": 0.0, **kept},
    )


def _publish(config: RefreshConfig, old: EncoderFolder, train: Any, out: Path) -> None:
    """Fit the map to the old latents, fold it in, measure, and write the encoder folder.

    Raises:
        ValueError: If the new latents explain too little of the old ones.
    """
    from latent_obs.training.affine import AffineMap, fold_map, r2
    from latent_obs.training.held_out import evaluate_vae, latent_statistics
    from latent_obs.vae import latents, load_vae

    frames = FramesFolder(train.data)
    sample = frames.sample(MEASURED, frames.split(train.validation, train.seed)[0], train.seed)
    held_out = FramesFolder(out / WORK / "held_out").sample(MEASURED)
    before, (trained, made) = load_vae(old)[0], load_vae(train.out)
    vae = fold_map(trained, AffineMap.fit(latents(trained, sample), latents(before, sample)))
    kept = r2(latents(vae, held_out), latents(before, held_out), old.config.scaling[1])
    if kept < config.least_r2:
        raise ValueError(
            f"On held-out frames of the agent the new latents explain {kept:.4f} of the old ones' variance, "
            f"less than {config.least_r2:g}, so nothing was published: the agent would see something else. "
            f"Hold them tighter (--anchor {config.anchor / 2:g}), or take them as they are "
            f"(--least-r2 {max(0.0, np.floor(kept * 1000) / 1000):g})."
        )
    was, now = (evaluate_vae(each, held_out)["moving_r2"] for each in (before, vae))
    by = old.config.scaled_as or {name: old.config.latents[name] for name in ("mean", "std")}
    record = Refreshed(old.ref, old.sha256(), config.policy, len(held_out), kept, was, now)
    made = replace(
        made,
        latents=latent_statistics(vae, sample),
        scaled_as=by,
        provenance=replace(made.provenance, refreshed=record, places=old.config.provenance.places),
    )
    write_atomically(out / "history.csv", (train.out / "history.csv").read_bytes())
    write_encoder_folder(out, made, vae.tensors(), read_calibration(train.out))


def say_refreshed(encoder: EncoderFolder) -> None:
    """Print what a refreshing kept and gained, and the line that uses it."""
    record = encoder.config.provenance.refreshed
    assert record is not None
    for line in (
        f"On {record.frames:,} frames of the agent that neither encoder was trained on:",
        f"  R² of the old latents, from the new ones  {record.r2:.4f}",
        f"  moving R²  {record.moving_r2:.3f}   (before {record.moving_r2_before:.3f})",
        f'{encoder.path}: pass encoder="{encoder.path}" where the agent had "{record.encoder}"; the agent '
        "and its replay buffer stay as they are.",
    ):
        plain_console().print(line, soft_wrap=True)

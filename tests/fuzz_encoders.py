"""Encoder folders, recipes and checkpoints for the fuzz test."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import shutil
import struct
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import (
    EncoderConfig,
    read_calibration,
    read_config,
    read_tensors,
    write_encoder_folder,
)
from latent_obs.encoders.provenance import Run
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.recipes import RECIPES, read_recipe
from tests.conftest import TINY_VAE, random_tensors
from tests.damage import Kind, Rng, damage_bytes, damage_file, mutate_json, pick
from tests.data.test_folder import write_shard


def make_encoder(folder: Path) -> None:
    """Random weights, and a config in which every field of provenance and metrics that is common is set."""
    statistics = {"mean": [0.5] * 32, "std": [2.0] * 32, "kl": [1.0] * 32}
    provenance: Any = {
        "run": {"config": {"seed": 0}, "data": {"frames": 7, "env_id": "Pong"}, "init_from": None},
        "steps": 7,
        "seconds": 1.5,
        "created": "2026-11-27T00:00:00+00:00",
        "libraries": {"torch": "2"},
        "recipe": "pong-v0",
        "license": "MIT",
    }
    metrics: Any = {"psnr": 40.0, "moving_r2": 0.9, "active_units": 30, "collapsed": False}
    source = FrameSource.from_json(
        {"env_id": "Pong", "env_kwargs": {"mode": 1}, "emulator": {"frameskip": 4}}
    )
    config = EncoderConfig(FrameSpec(), TINY_VAE, statistics, source, provenance, metrics)
    frames = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    write_encoder_folder(folder, config, random_tensors(TINY_VAE), frames)


def damage_config(folder: Path, rng: Rng) -> None:
    """Change one place of config.json."""
    path = folder / "config.json"
    path.write_text(mutate_json(json.loads(path.read_text()), rng))


def damage_weights(folder: Path, rng: Rng) -> None:
    """Make a tensor infinite somewhere, take it away or turn it, in a folder that has no digest of them."""
    path, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    del config["weights_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.copy() for name, tensor in safetensors.numpy.load(path.read_bytes()).items()}
    name = str(rng.choice(sorted(tensors)))
    action = int(rng.integers(5))
    if action == 0:
        del tensors[name]
    elif action == 1:
        tensors["more"] = tensors[name]
    elif action == 2:
        tensors[name] = tensors[name][None]
    elif action == 3:
        tensors[name] = np.zeros(tensors[name].shape, np.int32)
    else:
        tensors[name].reshape(-1)[int(rng.integers(tensors[name].size))] = rng.choice([np.nan, np.inf])
    path.write_bytes(safetensors.numpy.save(tensors))


def damage_picture(folder: Path, rng: Rng) -> None:
    """Write another size into the header of calibration.png."""
    path = folder / "calibration.png"
    data = path.read_bytes()
    size = struct.pack(">II", *(int(rng.choice([0, 1, 511, 512, 513, 40_000, 2**31])) for _ in range(2)))
    path.write_bytes(data[:16] + size + data[24:])


def read_encoder(folder: Path) -> str:
    """Read every file."""
    config = read_config(folder)
    digest = hashlib.sha256()
    for tensor in read_tensors(folder, config).values():
        digest.update(np.ascontiguousarray(tensor).tobytes())
    calibration = read_calibration(folder)
    digest.update(b"" if calibration is None else calibration.tobytes())
    json.dumps([config.to_json(), [scale.tolist() for scale in config.scaling]])
    return digest.hexdigest()


def make_recipe(folder: Path) -> None:
    """A bundled one."""
    (folder / "mine.json").write_text((RECIPES / "breakout-v0.json").read_text())


def damage_recipe(folder: Path, rng: Rng) -> None:
    """Change one place of it."""
    path = pick(folder, rng)
    path.write_text(mutate_json(json.loads(path.read_text()), rng))


def read_mine(folder: Path) -> str:
    """Read a recipe, and what it says about collecting and training; any that can be read may be meant."""
    recipe = read_recipe(str(folder / "mine.json"))
    recipe.training(folder, folder)
    for collection in (*recipe.collect, *recipe.evaluate):
        for env_id in collection.env_ids:
            collection.config(env_id, folder)
    json.dumps(recipe.to_json())
    return ""


RUN = Run(config={"seed": 0}, data={"frames": 120}, init_from=None)


@functools.cache
def _training() -> Any:
    """A training run of a tiny network, two steps old."""
    from latent_obs.training.config import TrainConfig
    from latent_obs.training.distributed import make_fabric
    from latent_obs.training.run import TrainingRun

    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    frames = np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), dtype=np.uint8)
    write_shard(scratch / "part-000-00000.parquet", [i // 10 for i in range(120)], frames)
    config = TrainConfig(scratch, scratch / "encoder", steps=9, channels=(4, 4), latent_dim=4, batch_size=8)
    run = TrainingRun(make_fabric(1, 1, "float32"), config, FramesFolder(scratch), RUN)
    for frames, masks in (batch for batch, _ in zip(_batches(run), range(2), strict=False)):
        run.take_step(frames, masks)
    return run


def _batches(run: Any) -> Any:
    import torch

    for batch in run.folder.batches_and_foreground(8, run.medians, run.episodes):
        yield tuple(map(torch.from_numpy, batch))


def make_checkpoint(folder: Path) -> None:
    """The checkpoint of that run, with early stopping's best state."""
    run = _training()
    run.config, run.best = (
        replace(run.config, out=folder),
        {k: v.clone() for k, v in run.vae.state_dict().items()},
    )
    run.monitor.history[:] = [{"step": 1, "loss": 0.5, "held_out_loss": float("nan")}]
    run.save_checkpoint()


def damage_progress(folder: Path, rng: Rng) -> None:
    """Change one place of what a checkpoint says of itself, or take a tensor away."""
    path = pick(folder, rng)
    with safetensors.safe_open(path, framework="np") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    del metadata["sha256"]  # which would notice everything
    key = "progress" if rng.random() < 0.9 else "run"
    if rng.random() < 0.1:
        del tensors[str(rng.choice(sorted(tensors)))]
    elif rng.random() < 0.1:
        del metadata[key]
    else:
        metadata[key] = mutate_json(json.loads(metadata[key]), rng)
    with contextlib.suppress(UnicodeEncodeError):  # which such a file cannot hold
        path.write_bytes(safetensors.numpy.save(tensors, metadata))


def read_progress(folder: Path) -> str:
    """Go on from it; counters are not compared, for any may be meant."""
    run = _training()
    run.config = replace(run.config, out=folder)
    for tensor in run.vae.state_dict().values():
        tensor.zero_()  # what is not read is not right by chance
    history = run._resume()
    json.dumps(history)
    digest = hashlib.sha256()
    for state in (run.vae.state_dict(), run.best):
        for name, tensor in sorted(state.items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.numpy()).tobytes())
    return digest.hexdigest()


_FILES = {"bytes": damage_bytes, "file": damage_file}
KINDS = {
    "checkpoint": Kind(make_checkpoint, {**_FILES, "progress": damage_progress}, read_progress),
    "encoder": Kind(
        make_encoder,
        {**_FILES, "config": damage_config, "weights": damage_weights, "picture": damage_picture},
        read_encoder,
    ),
    "recipe": Kind(make_recipe, {"file": damage_file, "recipe": damage_recipe}, read_mine),
}

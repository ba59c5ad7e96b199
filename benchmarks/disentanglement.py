"""Does each dimension of the encoder of Scenes/Shapes-v0 follow one factor?

$ python benchmarks/disentanglement.py     # about 10 min of one core

The script trains as the recipe shapes-v0 says with five seeds, and measures MIG, DCI and SAP on scenes that
another seed draws. The baselines are the same training on single frames instead of pairs, and the same
network before training. With ``--encoders`` it measures encoders that are there.
"""

from __future__ import annotations

import statistics
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from machine import machine

from latent_obs.collecting.collect import collect_frames
from latent_obs.encoders.folder import VAEConfig
from latent_obs.evaluation.disentanglement import Disentanglement, measure_disentanglement
from latent_obs.evaluation.variables import Observed, play
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.recipes import read_recipe
from latent_obs.training.train import train_vae
from latent_obs.vae import VAE, latents, load_vae

COLUMNS = ("mig", "dci_disentanglement", "dci_completeness", "dci_informativeness", "sap")


@dataclass(frozen=True)
class Args:
    """Measure how far dimensions follow factors, for several seeds of training."""

    encoders: tuple[Path, ...] = ()
    """encoder folders to measure instead of training"""
    seeds: int = 5
    frames: int = 3000
    """scenes to measure on"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def show(name: str, measured: Disentanglement) -> None:
    values = "  ".join(f"{getattr(measured, column):.3f}" for column in COLUMNS)
    gaps = ", ".join(f"{factor} {gap:.2f}" for factor, gap in measured.gaps.items())
    print(f"{name:24} {values}   {gaps}", flush=True)


def measure(vae: VAE, observed: Observed) -> Disentanglement:
    return measure_disentanglement(latents(vae, observed.frames), observed.variables)


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, seeds=1, frames=600)
    print(f"# {machine('torch', 'numpy', 'scikit-learn')}")
    observed = play(FrameSource("Scenes/Shapes-v0"), FrameSpec(), args.frames)
    assert observed is not None
    # The factors themselves, as a code, must be found perfect, or the measure is wrong.
    values = np.stack([(each - each.mean()) / each.std() for each in observed.variables.values()], 1)
    perfect = measure_disentanglement(values.astype(np.float32), observed.variables)
    assert perfect.mig > 0.85  # few scenes make any two numbers look related
    assert perfect.dci_disentanglement > 0.95
    print(f"{'':24} {'  '.join(('MIG  ', 'DCI D', 'DCI C', 'DCI I', 'SAP  '))}   gap of each factor")
    show("the factors themselves", perfect)
    if args.encoders:
        found = []
        for path in args.encoders:
            found.append(measure(load_vae(path)[0], observed))
            show(path.name, found[-1])
    else:
        found = trained(args, observed)
    if len(found) > 1:
        for column in COLUMNS:
            each = [getattr(measured, column) for measured in found]
            print(f"{column}: mean {statistics.mean(each):.3f}, {min(each):.3f} to {max(each):.3f}")


def trained(args: Args, observed: Observed) -> list[Disentanglement]:
    """Train with each seed and without pairs, and measure; return what is measured of the recipe's way."""
    recipe = read_recipe("shapes-v0")
    with tempfile.TemporaryDirectory() as folder:
        collection = recipe.collect[0]
        if args.smallest:
            collection = replace(collection, frames=400)
        config = collection.config(collection.env_ids[0], Path(folder) / "frames")
        collect_frames(config, progress=False)
        plain: dict[str, Any] = {"steps": 20} if args.smallest else {}
        train = replace(recipe.training(Path(config.out), Path(folder) / "encoder"), **plain)
        untrained = VAE(VAEConfig(train.latent_dim, train.channels)).eval()
        show("untrained", measure(untrained, observed))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "POSTERIOR COLLAPSE")
            train_vae(replace(train, pairs=False, out=Path(folder) / "single"), progress=False)
        show("single frames, seed 0", measure(load_vae(Path(folder) / "single")[0], observed))
        found = []
        for seed in range(args.seeds):
            out = Path(folder) / f"seed-{seed}"
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "POSTERIOR COLLAPSE")
                train_vae(replace(train, seed=seed, out=out), progress=False)
            found.append(measure(load_vae(out)[0], observed))
            show(f"pairs, seed {seed}", found[-1])
    return found


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

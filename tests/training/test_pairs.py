"""Training on pairs: what the frames of a pair share, and which frames make pairs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.training.config import TrainConfig
from latent_obs.training.objective import share_posteriors
from latent_obs.training.train import train_vae
from latent_obs.vae import load_vae

pytestmark = pytest.mark.filterwarnings("ignore:.*(COLLAPSE|collapsed in training)")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    out = tmp_path_factory.mktemp("shapes") / "frames"
    config = CollectConfig("latent_obs.scenes:Scenes/Shapes-v0", out, frames=600, workers=1, policy="random")
    return collect_frames(config, progress=False)


def test_a_pair_shares_every_posterior_but_that_which_differs_most() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(2, 12, 5, generator=generator)
    means, log_variances = share_posteriors(mean, log_variance)
    for i in range(6):
        one, other = (Normal(mean[row], (log_variance[row] / 2).exp()) for row in (i, 6 + i))
        apart = kl_divergence(one, other) + kl_divergence(other, one)
        own = int(apart.argmax())
        for dim in range(5):
            pair = means[[i, 6 + i], dim], log_variances[[i, 6 + i], dim].exp()
            if dim == own:
                torch.testing.assert_close(pair[0], mean[[i, 6 + i], dim])
                torch.testing.assert_close(pair[1], log_variance[[i, 6 + i], dim].exp())
            else:
                assert (
                    pair[0][0] == pair[0][1] == pytest.approx(float(mean[[i, 6 + i], dim].mean()), abs=1e-6)
                )
                variance = float(log_variance[[i, 6 + i], dim].exp().mean())
                assert pair[1].tolist() == pytest.approx([variance] * 2, rel=1e-5)


def test_pairs_are_consecutive_frames_of_an_episode(shapes: FramesFolder) -> None:
    kept = list(shapes.episodes())[1:4]
    parts = [shapes.load([episode]) for episode in kept]
    known = {
        (first.tobytes(), second.tobytes()) for part in parts for first, second in itertools.pairwise(part)
    }
    batches = shapes.pairs(8, kept, seed=3)
    drawn = [next(batches) for _ in range(20)]
    pairs = [
        (one.tobytes(), other.tobytes())
        for batch in drawn
        for one, other in zip(batch[:4], batch[4:], strict=True)
    ]
    assert set(pairs) <= known
    assert len(set(pairs)) > 60
    skipped = next(shapes.pairs(8, kept, seed=3, skip=7))
    assert (skipped == drawn[7]).all(), "a run that is continued goes on with the same pairs"


def test_pairs_train_other_weights_than_single_frames(shapes: FramesFolder, tmp_path: Path) -> None:
    options: dict[str, Any] = {"channels": (4, 8), "latent_dim": 4, "batch_size": 8, "precision": "float32"}
    config = TrainConfig(shapes.path, tmp_path / "e", steps=6, objective="sse", pairs=True, **options)
    train_vae(config, progress=False)
    first = load_vae(config.out)[0](torch.from_numpy(shapes.load(limit=4)))
    other = replace(config, out=tmp_path / "other", pairs=False)
    train_vae(other, progress=False)
    assert not torch.equal(first, load_vae(other.out)[0](torch.from_numpy(shapes.load(limit=4))))


def test_pairs_need_an_even_batch_and_one_process() -> None:
    with pytest.raises(ValueError, match="pairs needs an even batch_size and one process, got a batch of 7"):
        TrainConfig("frames", pairs=True, batch_size=7)
    with pytest.raises(ValueError, match="and 2 processes"):
        TrainConfig("frames", pairs=True, devices=2)


def test_the_held_out_loss_of_pairs_knows_no_foreground_either(shapes: FramesFolder, tmp_path: Path) -> None:
    """Else --patience would keep the state that is best at something that is not trained."""
    options: dict[str, Any] = {"channels": (4, 8), "latent_dim": 4, "batch_size": 8, "precision": "float32"}
    histories = []
    for weight in (0.0, 20.0):
        config = TrainConfig(shapes.path, tmp_path / f"{weight}", steps=2, pairs=True, **options)
        train_vae(replace(config, foreground_weight=weight), progress=False)
        histories.append((config.out / "history.csv").read_text())
    assert histories[0] == histories[1]

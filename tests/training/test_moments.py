from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.provenance import Run
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import make_fabric
from latent_obs.training.moments import ImageMoments, _found, telling
from latent_obs.training.run import TrainingRun
from latent_obs.training.train import train_vae
from latent_obs.vae import latents, load_vae
from tests.data.test_folder import write_shard

RED, BLUE = (250, 30, 30), (30, 30, 250)


def squares(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A red and a blue square on gray: frames, and the centres (x, y) of both."""
    rng = np.random.default_rng(seed)
    frames = np.full((count, 64, 64, 3), 90, np.uint8)
    red, blue = rng.integers(4, 28, (count, 2)), rng.integers(34, 56, (count, 2))
    for frame, (x, y), (u, v) in zip(frames, red, blue, strict=True):
        frame[y : y + 4, x : x + 4] = RED
        frame[v : v + 6, u : u + 6] = BLUE
    return frames, red + 1.5, blue + 2.5


GRAY = np.full((64, 64, 3), 90, np.uint8)


def test_the_places_of_two_colours_are_linear_in_the_moments() -> None:
    fitted, test = squares(300, 0), squares(100, 1)
    moments = ImageMoments(fitted[0], GRAY, count=8)
    features, unseen = (moments(torch.from_numpy(part[0])).numpy() for part in (fitted, test))
    ones = np.ones((300, 1))
    for places, wanted in ((fitted[1], test[1]), (fitted[2], test[2])):
        solution = np.linalg.lstsq(np.hstack([features, ones]), places, rcond=None)[0]
        error = np.hstack([unseen, ones[:100]]) @ solution - wanted
        assert (1 - np.square(error).mean(0) / wanted.var(0)).min() > 0.99


def test_the_moments_of_all_colours_tell_the_place_of_a_dot_that_changes_colour() -> None:
    """It is small, and a bar that moves in a row of its own is always there in both of its colours."""
    rng = np.random.default_rng(0)
    frames, places = np.full((600, 64, 64, 3), 90, np.uint8), rng.integers(2, 48, (600, 2))
    for frame, (x, y), bar, color in zip(
        frames, places, rng.integers(0, 50, 600), rng.integers(0, 2, 600), strict=True
    ):
        frame[60, bar : bar + 6], frame[60, bar + 6 : bar + 12] = RED, BLUE
        frame[y, x] = (RED, BLUE)[color]
    moments = ImageMoments(frames[:400], GRAY, count=16)
    features = np.hstack([moments(torch.from_numpy(frames)).numpy(), np.ones((600, 1))])
    solution = np.linalg.lstsq(features[:400], places[:400], rcond=None)[0]
    residual = features[400:] @ solution - places[400:]
    assert (1 - np.square(residual).mean(0) / places[400:].var(0)).min() > 0.9
    assert any("of all colours where little moves" in name for name in moments.names)


def test_a_moment_is_chosen_for_what_it_tells_of_the_others() -> None:
    """Of twenty columns that stand alone and three that are nearly one, the first chosen is of the three."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        one = rng.normal(size=2000)
        related = [one + 0.3 * rng.normal(size=2000) for _ in range(3)]
        values = np.stack([*rng.normal(size=(20, 2000)), *related], 1)
        assert telling(torch.from_numpy(values.astype(np.float32)), 1)[0] >= 20


def test_a_moment_has_the_name_of_its_axis() -> None:
    frames = np.full((120, 64, 64, 3), 90, np.uint8)
    frames[np.arange(120), 20, np.arange(120) % 60] = RED  # a dot that runs to the right
    assert {name.split(" of ")[0] for name in ImageMoments(frames, GRAY, count=4).names} <= {"x", "size"}


def test_no_moment_is_chosen_that_the_others_predict() -> None:
    values = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    values = torch.cat([values, values.sum(1, keepdim=True), torch.ones(500, 1)], 1)
    chosen = telling(values, 5)
    assert len(chosen) == 3
    assert 4 not in chosen


def test_a_moment_is_left_out_of_which_a_coarse_picture_says_nothing() -> None:
    """Pairs of a white and a black pixel: however many there are, the mean of 4x4 pixels stays as gray."""
    rng = np.random.default_rng(0)
    frames = np.full((600, 64, 64, 3), 128, np.uint8)
    for frame, x, count in zip(frames, rng.integers(0, 56, 600), rng.integers(1, 17, 600), strict=True):
        frame[8:16, x : x + 8] = RED
        cells = rng.permutation(16)[:count]
        frame[40, 4 * cells], frame[40, 4 * cells + 1] = 255, 1
    names = ImageMoments(frames, np.full((64, 64, 3), 128, np.uint8), count=12).names
    assert names
    assert all("240, 16, 16" in name or "all colours" in name for name in names)


def test_what_is_found_of_a_moment_is_what_other_frames_tell_of_it() -> None:
    generator = torch.Generator().manual_seed(0)
    features, noise = torch.randn(200, 80, generator=generator), torch.randn(200, 1, generator=generator)
    found = _found(features, torch.cat([features @ torch.randn(80, 1, generator=generator), noise], 1))
    assert found[0] > 0.95
    assert found[1] < 0.1


def test_a_moment_is_in_standard_deviations() -> None:
    frames = squares(300, 0)[0]
    values = ImageMoments(frames, GRAY, count=4)(torch.from_numpy(frames))
    torch.testing.assert_close(values.mean(0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(4), atol=1e-2, rtol=0)


def test_the_likelihood_is_that_of_a_normal_distribution() -> None:
    frames = torch.from_numpy(squares(20, 0)[0])
    moments = ImageMoments(squares(300, 0)[0], GRAY, count=4)
    mean = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mean[:, :4], 0.15)
    at_mean, at_moments = normal.log_prob(mean[:, :4]), normal.log_prob(moments(frames))  # type: ignore[no-untyped-call]
    expected = (at_mean - at_moments).sum(1)
    torch.testing.assert_close(moments.nll(mean, frames), expected, rtol=1e-4, atol=1e-3)


def test_frames_in_which_nothing_moves_have_no_moments() -> None:
    assert ImageMoments(np.repeat(GRAY[None], 20, 0), GRAY, count=4).names == []


def test_training_holds_the_first_dimensions_to_the_moments(
    pong_frames: FramesFolder, tmp_path: Path
) -> None:
    config = TrainConfig(
        pong_frames.path, tmp_path / "encoder", steps=150, channels=(8, 8), batch_size=32,
        learning_rate=0.01, optimizer="muon", moments=4, precision="float32",
    )  # fmt: skip
    fabric = make_fabric(1, 1, "float32")
    moments = TrainingRun(fabric, config, pong_frames, Run(config={}, data={}, init_from=None)).moments
    assert moments is not None
    frames = pong_frames.sample(500, pong_frames.split(config.validation, config.seed)[0])
    wanted = moments(torch.from_numpy(frames)).numpy()

    def correlations(config: TrainConfig) -> list[float]:
        train_vae(config, progress=False)
        found = latents(load_vae(config.out)[0], frames)
        return [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(found.T, wanted.T, strict=False)]

    assert np.mean(correlations(config)) > 0.6
    without = replace(config, moments=0, out=tmp_path / "without")
    assert np.mean(correlations(without)) < 0.4


def test_moments_need_frames_of_one_environment(tmp_path: Path) -> None:
    frames, folder = squares(40, 0)[0], tmp_path / "frames"
    folder.mkdir()
    for number, env_id in enumerate(("A-v0", "B-v0")):
        write_shard(
            folder / f"{number}.parquet", [number * 2 + i // 20 for i in range(40)], frames, env_id=env_id
        )
    config = TrainConfig(folder, tmp_path / "out", steps=1, channels=(8,), moments=4)
    with pytest.raises(ValueError, match=r"moments=4 needs frames of one env.*A-v0, B-v0.*--moments 0"):
        train_vae(config, progress=False)

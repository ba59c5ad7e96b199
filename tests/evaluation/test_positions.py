from __future__ import annotations

import numpy as np
import pytest
import torch

from latent_obs.encoders.folder import Latents
from latent_obs.evaluation.positions import MAX_EXTENT, PositionReadout, color_positions, position_r2
from latent_obs.frames import Frames
from latent_obs.measures import color_bins

RED, BLUE = (200, 20, 20), (20, 20, 200)


def test_positions_are_centres_of_mass_of_what_lies_close_together() -> None:
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 5, (20, 64, 64))
    colors[colors > 2] = 0
    for image in colors:
        image[rng.random((64, 64)) < 0.999] = 0  # some four pixels a frame are left
        image[10:12, 20:23] = 3
    slots = torch.full((512,), -1)
    slots[[1, 2, 3, 9]] = torch.arange(4)
    positions, seen = color_positions(torch.from_numpy(colors), slots)
    assert positions.shape == (20, 4, 2)
    for i, image in enumerate(colors):
        for column, color in enumerate((1, 2, 3, 9)):
            y, x = np.nonzero(image == color)
            close = len(x) > 0 and x.var() + y.var() <= MAX_EXTENT**2
            assert bool(seen[i, column]) == close
            if close:
                np.testing.assert_allclose(positions[i, column], [x.mean(), y.mean()], rtol=1e-6)
    assert seen[:, 2].all()
    assert not seen[:, 3].any()
    assert 0 < seen[:, :2].float().mean() < 1


def test_it_reads_rare_colours_that_move() -> None:
    frames = np.zeros((400, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, : i % 40] = BLUE  # moves, but is not rare
        frame[3, 60] = (250, 250, 20)  # is rare, but does not move
        frame[10 + i % 20, 50] = RED
    frames[0, 40, 45] = (20, 250, 250)  # was seen once
    readout = PositionReadout(frames, latent_dim=4)
    red = int(color_bins(np.array([[[RED]]]))[0, 0, 0])
    assert torch.nonzero(readout.slots >= 0).tolist() == [[red]]
    torch.testing.assert_close(readout.mean, torch.tensor([[50, 19.5]]))
    torch.testing.assert_close(readout.std, torch.tensor([[1, 20 * (1 - 20**-2) ** 0.5 / 12**0.5]]))


def test_the_loss_is_the_mean_squared_error_of_what_is_seen_over_its_variance() -> None:
    frames = np.zeros((100, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[20, i % 50] = RED
        frame[i % 60, 40] = BLUE
    readout = PositionReadout(frames, latent_dim=4)
    frames[0, 20] = 0  # no red one here
    frames[1] = 0
    colors = color_bins(torch.from_numpy(frames[:3]).int())
    error, counted = readout(torch.zeros(3, 4), colors)
    blue, red = sorted(range(2), key=lambda slot: float(readout.mean[slot, 0]), reverse=True)
    wanted = ((torch.tensor([2.0, 20.0]) - readout.mean[red]) / readout.std[red]) ** 2
    torch.testing.assert_close(error[2, red], wanted)
    assert counted[:, red, 0].tolist() == [0, 0, 1]
    assert counted[:, blue, 0].tolist() == [1, 0, 1]
    readout.update(error.sum(0), counted.sum(0))
    moved = 1 + 0.02 * (wanted - 1)
    torch.testing.assert_close(readout.variance[red], moved.clamp(min=0.01))
    loss = readout.loss(error, counted)
    assert loss[1] == 0
    torch.testing.assert_close(loss[0], (error[0, blue] / (2 * readout.variance[blue])).mean())
    torch.testing.assert_close(loss[2], (error[2] / (2 * readout.variance)).mean())


def test_the_measure_is_1_for_coordinates_and_low_for_a_curled_or_blind_code() -> None:
    rng = np.random.default_rng(0)
    frames = np.zeros((600, 64, 64, 3), np.uint8)
    places = rng.integers(0, 64, (600, 2))
    frames[np.arange(600), places[:, 1], places[:, 0]] = RED
    frames[::3] = 0  # not there in every third

    def place(frames: Frames) -> Latents:
        return np.stack(np.unravel_index(frames[..., 0].reshape(-1, 4096).argmax(1), (64, 64)), 1).astype(
            "f4"
        )

    codes = {
        "coordinates": place,
        "mixed": lambda frames: place(frames) @ np.array([[1, 2], [3, 1]], "f4"),
        "curled": lambda frames: np.concatenate([np.sin(place(frames)), np.cos(place(frames))], 1),
        "blind": lambda frames: np.ones((len(frames), 3), "f4"),
    }
    scores = position_r2(frames[:400], frames[400:], codes)
    assert scores["coordinates"] == pytest.approx(1, abs=1e-3)
    assert scores["mixed"] == pytest.approx(1, abs=1e-3)
    assert scores["curled"] == pytest.approx(0, abs=0.3)
    assert scores["blind"] == pytest.approx(0, abs=0.05)
    assert position_r2(frames[:3] * 0, frames, codes) == dict.fromkeys(codes)

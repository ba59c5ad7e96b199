from __future__ import annotations

import numpy as np
import pytest

from latent_obs.encoders.folder import Latents
from latent_obs.evaluation.positions import MAX_EXTENT, color_positions, position_r2
from latent_obs.frames import Frames
from latent_obs.measures import color_bins

RED, BLUE = (200, 20, 20), (20, 20, 200)


def test_positions_are_centres_of_mass_of_what_lies_close_together() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 5, (20, 64, 64))
    levels[levels > 2] = 0
    for image in levels:
        image[rng.random((64, 64)) < 0.999] = 0  # some four pixels a frame are left
        image[10:12, 20:23] = 3
    frames = np.zeros((20, 64, 64, 3), np.uint8)
    frames[..., 2] = 32 * levels  # so a pixel's colour has its level as its number
    positions, seen = color_positions(frames, np.array([1, 2, 3, 7]))
    assert positions.shape == (20, 4, 2)
    for i, image in enumerate(levels):
        for column, color in enumerate((1, 2, 3, 7)):
            y, x = np.nonzero(image == color)
            close = len(x) > 0 and x.var() + y.var() <= MAX_EXTENT**2
            assert bool(seen[i, column]) == close
            if close:
                np.testing.assert_allclose(positions[i, column], [x.mean(), y.mean()], rtol=1e-6)
    assert seen[:, 2].all()
    assert not seen[:, 3].any()
    assert 0 < seen[:, :2].mean() < 1


def test_only_rare_colours_that_move_are_looked_for() -> None:
    """The code tells where red is and nothing else: any other object would cost it some of its R^2."""
    rng = np.random.default_rng(0)
    rows = rng.integers(10, 30, 800)
    frames = np.zeros((800, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, : rng.integers(0, 40)] = BLUE  # moves, but is not rare
        frame[3 + i % 2, 60] = (250, 250, 20)  # is rare, but hardly moves
        frame[rows[i], 50] = RED
        if i % 40 == 0:
            frame[rng.integers(32, 60), 45] = (20, 250, 250)  # was seen 10 times in 400 frames

    def red(frames: Frames) -> Latents:
        return np.array((frames == RED).all(-1)[:, :, 50].argmax(1), "f4")[:, None]

    assert position_r2(frames[:400], frames[400:], {"red": red})["red"] == pytest.approx(1, abs=1e-3)


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


def test_it_is_fitted_on_the_frames_to_fit_on_and_on_no_others() -> None:
    """By hand: in the measured frames the code tells a column 10 further right than the dot is."""
    rng = np.random.default_rng(0)
    columns = rng.integers(0, 50, 900)
    frames = np.zeros((900, 64, 64, 3), np.uint8)
    frames[np.arange(900), 20, columns] = RED
    fitted, measured = frames[:500], frames[500:]

    def code(frames: Frames) -> Latents:
        told = frames[:, 20, :, 0].argmax(1) + (10 if len(frames) == 400 else 0)
        return np.array(told, "f4")[:, None]

    energy = np.square(columns[500:] - columns[:500].mean()).mean()
    assert position_r2(fitted, measured, {"code": code})["code"] == pytest.approx(1 - 100 / energy, abs=0.02)


def test_positions_of_colours_are_counted_where_their_pixels_lie_together() -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[0, 10:12, 20:23] = RED
    frames[1, 10, 20] = frames[1, 10, 40] = RED  # 20 apart
    positions, seen = color_positions(frames, color_bins(np.array([[RED]], np.uint8)).ravel())
    assert positions[0].tolist() == [[21, 10.5]]
    assert seen[:, 0].tolist() == [True, False, False]

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.measures import (
    Dimension,
    Drift,
    Foreground,
    Residuals,
    changing_r2,
    color_bins,
    compare_latents,
    reconstruction_metrics,
)


def moving_dot(count: int) -> Any:
    """A dot of 100 levels that moves one pixel a frame over a background that scrolls."""
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[i % 64, 5] = 100
    return frames


def test_showing_the_previous_frame_scores_zero_on_what_changes_and_the_frame_itself_one() -> None:
    frames = moving_dot(20)
    previous = {frames[i].tobytes(): frames[i - 1] for i in range(1, 20)}
    late = changing_r2([frames], lambda batch: np.stack([previous[f.tobytes()] for f in batch]))
    assert late == pytest.approx(0)
    assert changing_r2([frames], lambda batch: batch) == 1
    # Black everywhere: of the two pixels that change in a step, the one left by the dot is right.
    assert changing_r2([frames], np.zeros_like) == pytest.approx(0.5)


def test_what_changes_is_never_measured_across_episodes() -> None:
    still = np.full((5, 64, 64, 3), 9, np.uint8)
    other = np.full((5, 64, 64, 3), 200, np.uint8)
    assert changing_r2([still, other], np.zeros_like) == 1  # nothing changes in either


def test_a_flash_does_not_count_as_change() -> None:
    frames = moving_dot(20)
    frames[9] = 255
    with_flash = changing_r2([frames], np.zeros_like)
    assert with_flash == pytest.approx(0.5)


def test_the_share_of_the_foreground_is_that_of_pixels_unlike_the_median() -> None:
    assert reconstruction_metrics(moving_dot(40), lambda f: f)["foreground"] == pytest.approx(1 / 4096)
    noise = np.random.default_rng(0).integers(0, 256, (21, 64, 64, 3), dtype=np.uint8)
    assert reconstruction_metrics(noise, lambda f: f)["foreground"] > 0.9


def test_the_residual_of_each_frame_is_over_its_moving_pixels() -> None:
    frames = moving_dot(40)
    decoded = frames.copy()
    decoded[3] = 0  # lost its dot
    decoded[4, 60, 60] = 255  # wrong where nothing moves
    residuals = Residuals.of(frames, lambda _: decoded, Foreground.of(frames))
    assert residuals.moving[3] == 3 * 100**2
    assert residuals.moving.sum() == residuals.moving[3]
    assert residuals.moving_energy.tolist() == [3 * 100**2] * 40
    assert residuals.squared[4] == 3 * 255**2


def test_what_moves_is_measured_episode_by_episode() -> None:
    """Of two dots one is lost in the first episode, both in the second, none in the third."""
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    frames[np.arange(40), 5, np.arange(40)] = 100
    frames[np.arange(40), 50, np.arange(40)] = 100
    episodes = np.repeat([7, 3, 20, 21], 10)
    frames[30:] = 0
    decoded = frames.copy()
    decoded[:10, 5] = 0
    decoded[10:20] = 0
    residuals = Residuals.of(frames, lambda _: decoded, Foreground.of(frames))
    assert residuals.moving_r2_by_episode(episodes) == pytest.approx([0, 0.5, 1])  # in order of numbers
    assert residuals.moving_r2() == pytest.approx(0.5)


def test_an_exact_reconstruction_has_the_psnr_of_rounding() -> None:
    """A uniform error of half a level has a mean square of 1/12 level^2."""
    psnr = reconstruction_metrics(moving_dot(20), lambda batch: batch)["psnr"]
    assert psnr == pytest.approx(10 * np.log10(255**2 * 12))


def test_colours_are_numbered_alike_in_bytes_and_in_wider_integers() -> None:
    """By hand: 255 >> 5 is 7, and 7 * 64 + 7 * 8 + 7 is 511, which no byte holds."""
    levels = np.array([[[[255, 255, 255], [224, 0, 31], [31, 32, 64]]]])
    wanted = [[[511, 448, 10]]]
    for frames in (levels, levels.astype(np.uint8), levels.astype(np.int32)):
        assert color_bins(frames).tolist() == wanted
        assert color_bins(torch.from_numpy(frames)).tolist() == wanted


def test_latents_that_moved_by_one_deviation_have_drifted() -> None:
    trained = {"mean": [0.0, 1.0, 0.0], "std": [1.0, 2.0, 0.01], "kl": [3.0, 2.0, 0.0]}
    assert compare_latents(trained, trained)[1] == Drift(shift=0, spread=1, drifted=False)
    here = {"mean": [1.0, 3.0, 5.0], "std": [1.0, 2.0, 9.0], "kl": [1.0, 1.0, 1.0]}
    dimensions, drift = compare_latents(trained, here)
    assert drift.shift == pytest.approx(1)  # the inactive third dimension has no say
    assert drift.spread == pytest.approx(1)
    assert drift.drifted
    assert dimensions[1] == Dimension(1, 3, 2, trained_kl=2, trained_mean=1, trained_std=2, shift=1, spread=1)
    drift = compare_latents(trained, {**trained, "std": [2.0, 4.0, 0.01]})[1]
    assert drift.drifted
    assert drift.spread == pytest.approx(2)


def test_a_shift_is_told_in_deviations_of_the_training_frames() -> None:
    """The mean moved by 3; training had a deviation of 2, these frames have one of 6."""
    trained = {"mean": [1.0], "std": [2.0], "kl": [1.0]}
    (dimension,), drift = compare_latents(trained, {"mean": [4.0], "std": [6.0], "kl": [1.0]})
    assert dimension.shift == drift.shift == pytest.approx(1.5)
    assert (dimension.spread, drift.spread) == pytest.approx((3, 3))


def test_a_lost_object_shows_in_the_r2_of_rare_colours_under_a_moving_camera() -> None:
    """Stripes scroll behind a dot: to lose the dot costs nothing elsewhere, and the dot alone here."""
    frames = np.zeros((200, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[:, i % 64 :: 16] = 160
        frame[i % 60, 30] = (255, 0, 0)
    lost = frames.copy()
    lost[(frames == (255, 0, 0)).all(-1)] = 0
    table = {frame.tobytes(): seen for frame, seen in zip(frames, lost, strict=True)}
    metrics = reconstruction_metrics(frames, lambda batch: np.stack([table[f.tobytes()] for f in batch]))
    assert metrics["moving_r2"] > 0.95
    assert metrics["rare_r2"] == pytest.approx(0)
    assert reconstruction_metrics(frames, lambda batch: batch)["rare_r2"] == 1


def test_a_colour_of_one_pixel_in_1000_is_not_rare() -> None:
    """The red dot is one pixel of 4,096, the green bar is four: only the dot is rarer than 1 in 2,000."""
    frames = np.zeros((200, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames):
        frame[i % 60, 30] = (255, 0, 0)
        frame[40, i % 60 : i % 60 + 4] = (0, 255, 0)
    without_bar, without_dot = frames.copy(), frames.copy()
    without_bar[(frames == (0, 255, 0)).all(-1)] = 0
    without_dot[(frames == (255, 0, 0)).all(-1)] = 0
    assert reconstruction_metrics(frames, lambda _: without_bar)["rare_r2"] == 1
    assert reconstruction_metrics(frames, lambda _: without_dot)["rare_r2"] == pytest.approx(0)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from latent_obs.measures import changing_r2, compare_latents, moving_residual, reconstruction_metrics


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
    residual = moving_residual(frames, decoded)
    assert residual[3] == 3 * 100**2
    assert residual.sum() == residual[3]


def test_latents_that_moved_by_one_deviation_have_drifted() -> None:
    trained = {"mean": [0.0, 1.0, 0.0], "std": [1.0, 2.0, 0.01], "kl": [3.0, 2.0, 0.0]}
    same = compare_latents(trained, trained)
    assert same["drift"] == {"shift": 0, "spread": 1, "drifted": False}
    moved = compare_latents(trained, {"mean": [1.0, 3.0, 5.0], "std": [1.0, 2.0, 9.0], "kl": [1.0, 1.0, 1.0]})
    assert moved["drift"]["shift"] == pytest.approx(1)  # the inactive third dimension has no say
    assert moved["drift"]["spread"] == pytest.approx(1)
    assert moved["drift"]["drifted"]
    assert moved["dimensions"][1]["shift"] == pytest.approx(1)
    wider = compare_latents(trained, {**trained, "std": [2.0, 4.0, 0.01]})
    assert wider["drift"]["drifted"]
    assert wider["drift"]["spread"] == pytest.approx(2)


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

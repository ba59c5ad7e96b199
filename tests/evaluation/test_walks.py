"""Walks along real frames, with a decoder whose pictures are known, and those of the bundled encoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.evaluation.labels import read_labels
from latent_obs.evaluation.walks import STOPS, Walk, find_walks
from latent_obs.vae import load_vae, to_frames

COUNT = 3000


class Draws:
    """Decodes (x, y, faint) to a white square at x and y, or to one that is hardly there."""

    def decode(self, z: Any) -> Any:
        return torch.from_numpy(squares(z.numpy()).astype(np.float32) / 255)


def squares(codes: Any) -> Any:
    frames = np.full((len(codes), 64, 64, 3), 40, np.uint8)
    for frame, (x, y, faint) in zip(frames, codes, strict=True):
        frame[int(y) : int(y) + 4, int(x) : int(x) + 4] = 60 if faint else 240
    return frames


@pytest.fixture(scope="module")
def codes() -> Any:
    rng = np.random.default_rng(0)
    places = rng.integers(0, 60, (COUNT, 2))
    return np.concatenate([places, rng.random((COUNT, 1)) < 0.5], 1).astype(np.float32)


def walks(codes: Any, variables: Any, names: list[str]) -> dict[str, Walk]:
    sharp = squares(np.where([True, True, False], codes, 0))
    return {walk.name: walk for walk in find_walks(Draws(), sharp, codes, variables, names)}  # type: ignore[arg-type]


def test_a_walk_moves_one_variable_along_frames_that_are_drawn(codes: Any) -> None:
    variables = {"x": codes[:, 0].astype(float), "y": codes[:, 1].astype(float)}
    found = walks(codes, variables, ["x", "y"])
    assert list(found) == ["x", "y"]
    for name, at, other in (("x", 0, 1), ("y", 1, 0)):
        walk = found[name]
        stops = np.array(walk.latents)
        assert len(stops) == STOPS
        assert {tuple(stop) for stop in stops} <= {tuple(code) for code in codes.tolist()}
        np.testing.assert_array_equal(stops[:, at], walk.values)
        np.testing.assert_allclose(walk.values, np.linspace(0, 59, STOPS), atol=1.5)
        assert stops[:, other].std() < 0.1 * codes[:, other].std()
        assert stops[:, 2].mean() < 0.2, "half of the frames are drawn faintly; they are avoided"
        assert walk.drawn > 0.8
        assert walk.along == ()


def test_what_cannot_be_held_still_is_named(codes: Any) -> None:
    x = codes[:, 0].astype(float)
    found = walks(codes, {"x": x, "shadow": 2 * x + codes[:, 1] / 50, "y": codes[:, 1].astype(float)}, ["x"])
    assert found["x"].along == ("shadow",)


def test_only_frames_that_have_the_variable_are_walked_along(codes: Any) -> None:
    x = codes[:, 0].astype(float)
    seen = np.where(x < 30, x, np.nan)
    found = walks(
        codes, {"ball x": seen, "bit map 0": x % 4, "y": codes[:, 1].astype(float)}, ["ball x", "bit map 0"]
    )
    assert list(found) == ["ball x"]
    assert np.isfinite(found["ball x"].values).all()
    assert np.array(found["ball x"].latents)[:, 0].max() < 30


def test_what_is_never_drawn_has_no_walk(codes: Any) -> None:
    faint = np.where([True, True, False], codes, 1).astype(np.float32)
    variables = {"x": codes[:, 0].astype(float), "y": codes[:, 1].astype(float)}
    assert walks(faint, variables, ["x"]) == {}


@pytest.mark.parametrize(
    ("name", "field", "channel"),
    # The field without score, walls and paddles: the ball is the only thing there that is white, or red.
    [("pong-v0", np.s_[14:58, 8:54], 2), ("breakout-v0", np.s_[30:56, 4:60], 0)],
)
def test_the_slider_ball_x_moves_the_ball(name: str, field: Any, channel: int) -> None:
    """The ball is found in the decoded picture by its colour alone."""
    vae, config = load_vae(name)
    labels = read_labels(PRETRAINED / name, config.vae.latent_dim)
    assert labels is not None
    walk = {walk.name: walk for walk in labels.walks}["ball x"]
    with torch.no_grad():
        images = to_frames(vae.decode(torch.tensor(walk.latents, dtype=torch.float32)))
    light = images[(slice(None), *field, channel)].astype(int)
    light -= np.median(light, 0).astype(int)
    columns = light.max(1)
    seen = columns.max(1) > 60  # levels: elsewhere the decoder blurs it, or it is beyond a paddle
    assert seen.mean() > 0.5
    place = columns.argmax(1)[seen]
    assert np.corrcoef(place, np.array(walk.values)[seen])[0, 1] > 0.99
    assert np.ptp(place) > 25

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from latent_obs.collecting.sources import open_env
from latent_obs.evaluation.probe import (
    ProbeFrames,
    collect_probe_frames,
    probe,
    probe_ball,
    probe_codes,
    probed_variables,
)
from latent_obs.evaluation.ram import CATEGORIES, games, state_variables
from latent_obs.evaluation.readers import label_entropy, probe_features, whiten
from latent_obs.frames import FrameSource, FrameSpec, preprocess

PONG = {49: "ball_x", 54: "ball_y", 50: "enemy_y", 51: "player_y", 13: "enemy_score", 14: "player_score"}


def pong_like(count: int = 1200, episodes: int = 6) -> ProbeFrames:
    """Random RAM of Pong's variables behind frames that are all different."""
    rng = np.random.default_rng(0)
    ram = np.zeros((count, 128), np.uint8)
    for address in PONG:
        ram[:, address] = rng.choice([10, 90, 200], count, p=[0.5, 0.3, 0.2])
    frames = rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    return ProbeFrames("pong", frames, ram, np.arange(count) * episodes // count)


def one_hot(data: ProbeFrames) -> Any:
    return np.concatenate([data.ram[:, [at]] == [10, 90, 200] for at in PONG], 1).astype(np.float32)


@pytest.mark.parametrize("reader", ["converged", "paper"])
def test_features_that_spell_out_the_state_score_one(reader: Any) -> None:
    data = pong_like()
    report = probe(data, 5 * one_hot(data), reader)
    assert report["f1"] == pytest.approx(1)
    assert set(report["variables"]) == set(PONG.values())
    assert set(report["categories"]) == {"agent", "small_object", "other", "status"}


def test_noise_scores_no_better_than_always_naming_the_usual_value() -> None:
    """By hand: half of the frames have the usual value, so its precision is 1/2 and its recall 1."""
    data = pong_like()
    majority = probe(data, None)["f1"]
    assert majority == pytest.approx(0.5 * 2 / 3, abs=0.04)
    noise = np.random.default_rng(1).normal(size=(len(data.frames), 4)).astype(np.float32)
    assert probe(data, noise)["f1"] == pytest.approx(majority, abs=0.06)


def test_the_converged_reader_does_not_care_how_features_are_mixed() -> None:
    data = pong_like(600)
    features = np.random.default_rng(1).normal(size=(600, 6)).astype(np.float32) + one_hot(data)[:, :6]
    mixed = features @ np.random.default_rng(2).normal(size=(6, 6)) * 100 + 7
    assert probe(data, mixed)["f1"] == pytest.approx(probe(data, features)["f1"], abs=0.01)


def test_whitened_features_have_unit_covariance() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=(500, 3)) * [100, 1, 0.01]
    features = np.concatenate([base, base[:, :1]], 1).astype(np.float32)  # one column twice
    white = whiten(features)[0]
    assert white.shape == (500, 3)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(3), atol=1e-2)


def test_no_episode_and_no_frame_is_on_both_sides() -> None:
    data = pong_like()
    data.frames[::50] = 7  # a frame with which every episode begins
    train, test = data.split()
    assert not set(data.episodes[train]) & set(data.episodes[test])
    assert not test[::50].any()
    assert 0.2 < test.mean() < 0.4


def test_values_never_fitted_on_count_as_missed() -> None:
    """By hand: 0 and 1 are named twice and right once, F1 2/3 each with weight 1/4; the 9s score 0."""
    train = np.array([[0], [1]] * 50, np.uint8)
    features = train.astype(np.float32)
    scores = probe_features(features, train, features[:4], np.array([[0], [1], [9], [9]], np.uint8))
    assert scores == pytest.approx([1 / 3])


def test_the_ball_is_read_where_the_features_have_it_and_only_there() -> None:
    data = pong_like()
    data.ram[:, 49] = np.random.default_rng(3).integers(50, 200, len(data.ram))
    data.ram[:, 54] = np.random.default_rng(4).integers(0, 200, len(data.ram))
    data.ram[::3, 54] = 0  # no ball
    features = np.random.default_rng(5).normal(size=(len(data.ram), 3)).astype(np.float32)
    features[:, 0] = data.ram[:, 49]
    features[::3, 0] = 1e4  # would ruin the fit if the frames without a ball took part
    report = probe_ball(data, features)
    assert report is not None
    for reader in ("ridge", "mlp"):
        assert report[reader]["x"] > 0.98
        assert report[reader]["y"] < 0.1


def test_probe_frames_are_a_random_agents_with_their_ram() -> None:
    data = collect_probe_frames("ALE/Pong-v5", {"frameskip": 2}, count=60, seed=5)
    again = collect_probe_frames("ALE/Pong-v5", {"frameskip": 2}, count=60, seed=5)
    np.testing.assert_array_equal(data.ram, again.ram)
    np.testing.assert_array_equal(data.frames, again.frames)
    assert data.game == "pong"
    env = open_env("ALE/Pong-v5", {"frameskip": 2})
    obs, _ = env.reset()
    np.testing.assert_array_equal(data.frames[0], preprocess(obs, FrameSpec()))
    assert len(np.unique(data.ram[:, 51])) > 1  # the paddle moves
    env.close()


def test_only_atari_games_can_be_probed() -> None:
    with pytest.raises(ValueError, match=r"CartPole-v1 is none: leave --probe out"):
        collect_probe_frames("CartPole-v1", count=10)
    with pytest.raises(ValueError, match=r"RAM of 'adventure' is not annotated"):
        collect_probe_frames("ALE/Adventure-v5", count=10)


def test_the_ram_says_where_pongs_ball_is_drawn() -> None:
    """Found in the picture: the ball alone is that white inside the field."""
    env = open_env("ALE/Pong-v5")
    env.action_space.seed(0)
    env.reset(seed=0)
    seen, told = [], []
    for _ in range(400):
        obs, _, terminated, _, _ = env.step(env.action_space.sample())
        rows, columns = np.nonzero((obs[34:194] == 236).all(-1))
        ram = env.unwrapped.ale.getRAM()  # type: ignore[attr-defined]
        assert not terminated
        if len(rows) and ram[54]:
            seen.append((columns.mean(), rows.mean()))
            told.append((ram[49], ram[54]))
    env.close()
    assert len(seen) > 100
    for axis in (0, 1):
        assert np.corrcoef(np.array(seen)[:, axis], np.array(told)[:, axis])[0, 1] > 0.999


def test_the_ram_kept_with_a_frame_is_the_ram_behind_it() -> None:
    """The ball moves several pixels a step, so RAM of the next step would be off by as many."""
    seen: list[Any] = []
    data = collect_probe_frames("ALE/Pong-v5", count=500, watch=lambda obs: seen.append(obs.copy()))
    drawn, told = [], []
    for obs, ram in zip(seen, data.ram, strict=True):
        rows, columns = np.nonzero((obs[34:194] == 236).all(-1))
        if len(rows) and ram[54]:
            drawn.append((columns.mean(), rows.mean()))
            told.append((ram[49], ram[54]))
    assert len(drawn) > 100
    moved = np.abs(np.diff(np.array(drawn), axis=0)).max(1)
    assert np.median(moved) > 1
    off = np.array(drawn) - np.array(told).astype(float)
    assert (np.abs(off - np.median(off, 0)).max(1) < 1.5).mean() > 0.95


def test_the_majority_is_that_of_the_frames_to_fit_on() -> None:
    """By hand: 10 is usual to fit on and has 20% of the test frames, so its F1 is 2 * 0.2 / (0.2 + 1)."""
    data = pong_like()
    train, test = data.split()
    for address in PONG:
        data.ram[train, address] = np.where(np.arange(train.sum()) % 10 < 7, 10, 200)
        data.ram[test, address] = np.where(np.arange(test.sum()) % 10 < 2, 10, 200)
    share = float((data.ram[test, 49] == 10).mean())
    assert probe(data, None)["f1"] == pytest.approx(share * 2 * share / (1 + share))


def test_test_features_are_whitened_by_the_mean_of_those_fitted_on() -> None:
    fitted = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32) * [1, 2] + [5, 0]
    train, test = whiten(fitted.astype(np.float32), np.full((9, 2), (8, 0), np.float32))
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(test[0]) == pytest.approx(3, rel=0.1)  # three deviations from the mean


def test_entropy_is_in_nats_and_decides_what_is_probed() -> None:
    assert label_entropy(np.array([3, 3, 9, 9], np.uint8)) == pytest.approx(np.log(2))
    data = pong_like()
    data.ram[:, 51] = np.where(np.arange(len(data.ram)) % 5 == 0, 10, 90)  # 0.50 nats, 0.72 bits
    names = {name for group in probed_variables(data).values() for name in group}
    assert names == set(PONG.values()) - {"player_y"}


def test_the_annotations_are_addresses_of_the_console() -> None:
    assert len(games()) == 24
    for game in games():
        for category, variables in state_variables(game).items():
            assert category in CATEGORIES
            assert all(0 <= address < 128 for address in variables.values())
    assert state_variables("pong")["small_object"] == {"ball_x": 49, "ball_y": 54}


def test_codes_are_compared_on_the_same_frames_by_both_readers() -> None:
    """The player's paddle alone moves in its columns, so their rows tell its place and nothing else."""
    codes = {
        "paddle": lambda frames: frames[:, :, 55:60].astype(np.float32).mean((2, 3)) / 30,
        "nothing": lambda frames: np.zeros((len(frames), 2), np.float32),
    }
    source = FrameSource("ALE/Pong-v5", {"max_episode_steps": 150}, {"game": "pong"})
    report = probe_codes(source, FrameSpec(), codes, 900)
    json.dumps(report, allow_nan=False)
    assert report["episodes"] >= 6
    assert (report["published"] or {})["st-dim"] == 0.81
    assert set(report["readers"]["paper"]) == {"majority", "paddle", "nothing"}
    table = report["readers"]["converged"]
    assert table["paddle"]["variables"]["player_y"] > 2 * table["majority"]["variables"]["player_y"]
    nothing = report["readers"]["converged"]["nothing"]
    assert nothing["variables"] == pytest.approx(report["readers"]["converged"]["majority"]["variables"])

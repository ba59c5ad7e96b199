from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.training.config import TrainConfig
from latent_obs.training.objective import terms
from latent_obs.training.pca import write_pca
from latent_obs.training.places import Places
from latent_obs.training.train import train_vae
from tests.data.test_folder import write_shard

BLACK = np.zeros((64, 64, 3), np.uint8)


def between(frames: np.ndarray) -> np.ndarray:
    """Return which pixels differ from the frame before or after."""
    changed = np.zeros(frames.shape[:3], bool)
    changed[1:] |= (frames[1:] != frames[:-1]).any(-1)
    changed[:-1] |= changed[1:]
    return changed


def drawn(count: int, *objects: tuple[np.ndarray, int, int, int]) -> np.ndarray:
    """Draw objects on black; of each: the upper left corner (x, y) in each frame, width, height and level."""
    frames = np.zeros((count, 64, 64, 3), np.uint8)
    for corners, width, height, level in objects:
        for frame, (x, y) in zip(frames, corners, strict=True):
            frame[y : y + height, x : x + width] = level
    return frames


def anywhere(count: int, seed: int, low: int = 2, high: int = 52) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, (count, 2))


def named(places: Places, frames: np.ndarray) -> dict[str, Any]:
    """Return the places, masked in the few frames that do not show them."""
    values, shown = places(torch.from_numpy(frames), torch.from_numpy(between(frames)))
    assert shown.float().mean() > 0.95
    return dict(zip(places.names, np.ma.array(values.numpy(), mask=~shown.numpy()).T, strict=True))


def correlation(place: Any, truth: np.ndarray) -> float:
    return float(np.corrcoef(place.data[~place.mask], truth[~place.mask])[0, 1])


def test_places_are_those_of_what_moves_and_not_of_what_seldom_changes() -> None:
    """A ball jumps beside a wall of its colour that loses a brick now and then."""
    ball = anywhere(600, 0, 20, 60)
    frames = drawn(600, (ball, 2, 2, 200))
    for i, frame in enumerate(frames):
        frame[4:8] = np.repeat(np.arange(16) >= i // 40, 4)[:, None] * np.uint8(200)
    found = named(Places(frames, np.median(frames, 0).astype(np.uint8), 4, between(frames)), frames)
    assert max(correlation(value, ball[:, 0]) for value in found.values()) > 0.95
    assert not any("where" in name for name in found), "the wall is no region in which something moves"


def test_a_ball_and_a_paddle_of_one_colour_are_told_apart_by_how_often_something_moves_there() -> None:
    ball, paddle = anywhere(600, 0, 2, 50), anywhere(600, 1, 2, 50)
    paddle[:, 1] = 60
    frames = drawn(600, (ball, 2, 2, 200), (paddle, 8, 2, 200))
    found = named(Places(frames, BLACK, 6, between(frames)), frames)
    (x,) = (value for name, value in found.items() if name[0] == "x" and "where little" in name)
    assert correlation(x, ball[:, 0]) > 0.99
    assert max(correlation(value, paddle[:, 0]) for value in found.values()) > 0.95
    for name in found:
        assert not (name.startswith("y") and "much" in name), "the paddle stays in its row"


def test_the_middle_between_two_objects_is_no_place() -> None:
    """Two players share a colour; a third has its own."""
    first, second, third = (anywhere(600, seed) for seed in range(3))
    frames = drawn(600, (first, 5, 5, 200), (second, 5, 5, 200), (third, 3, 3, 90))
    found = named(Places(frames, BLACK, 6, between(frames)), frames)
    assert set(found) == {"x of the colour (80, 80, 80)", "y of the colour (80, 80, 80)"}
    assert correlation(found["y of the colour (80, 80, 80)"], third[:, 1]) > 0.99


def test_frames_in_which_two_objects_move_show_no_place() -> None:
    """A score of another colour changes in one frame of ten."""
    ball = anywhere(600, 0, 20, 60)
    frames = drawn(600, (ball, 2, 2, 200))
    for i, frame in enumerate(frames):
        frame[2:6, 2 : 6 + i // 20 % 2 * 3] = 90
    changed, median = between(frames), np.median(frames, 0).astype(np.uint8)
    places = Places(frames, median, 6, changed)
    values, shown = (each.numpy() for each in places(torch.from_numpy(frames), torch.from_numpy(changed)))
    score = changed[:, 2:6] & (frames != median).any(-1)[:, 2:6]
    scored = score.any((1, 2))
    assert 50 < scored.sum() < 70
    for axis in (0, 1):
        i = places.names.index(f"{'xy'[axis]} of all colours")
        assert not shown[scored, i].any()
        assert shown[~scored, i].all()
        assert np.corrcoef(values[~scored, i], ball[~scored, axis])[0, 1] > 0.999
        assert values[~scored, i].mean() == pytest.approx(0, abs=1e-3)
        assert values[~scored, i].std() == pytest.approx(1, rel=1e-3)


def test_what_moves_by_less_than_a_pixel_is_no_target() -> None:
    ball = anywhere(600, 0)
    ball[:, 0] = 20 + ball[:, 0] % 2
    frames = drawn(600, (ball, 1, 1, 200))
    assert Places(frames, BLACK, 4, between(frames)).names == ["y of the colour (208, 208, 208)"]


def test_places_of_what_stands_still_are_no_target() -> None:
    frames = drawn(600, (anywhere(600, 0), 2, 2, 200))
    places = Places(frames, BLACK, 4, between(frames))
    mean = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(frames[:20])
    assert (places.nll(mean, images, torch.from_numpy(between(frames)[:20])) > 0).all()
    assert (places.nll(mean, images, torch.zeros(20, 64, 64, dtype=torch.bool)) == 0).all()


def test_what_is_seldom_there_is_no_place() -> None:
    frames = drawn(600, (anywhere(600, 0), 3, 3, 200))
    frames[:580] = 0
    assert Places(frames, BLACK, 4, between(frames)).names == []
    assert Places(np.repeat(BLACK[None], 20, 0), BLACK, 4, np.zeros((20, 64, 64), bool)).names == []


def test_a_place_is_in_standard_deviations_and_its_likelihood_is_normal_near_it() -> None:
    frames = drawn(600, (anywhere(600, 0), 2, 2, 200))
    changed = torch.from_numpy(between(frames))
    places = Places(frames, BLACK, 2, changed.numpy())
    images = torch.from_numpy(frames)
    values, shown = places(images, changed)
    assert shown.all()
    torch.testing.assert_close(values.mean(0), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(0), torch.ones(2), atol=1e-2, rtol=0)
    off = 0.4 * torch.rand(600, 2, generator=torch.Generator().manual_seed(0)) - 0.2
    normal = torch.distributions.Normal(values, 0.03)
    expected = (normal.log_prob(values) - normal.log_prob(values + off)).sum(1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(places.nll(values + off, images, changed), expected, rtol=1e-4, atol=1e-2)
    # Farther away it grows as it does at 0.3, the tangent: 0.3 (|off| - 0.15) / 0.03^2.
    one = torch.tensor([1.0, 0.0])
    far = places.nll(values + 2 * one, images, changed)
    torch.testing.assert_close(far, torch.full((600,), 0.3 * 1.85 / 0.03**2), rtol=1e-4, atol=1e-2)


def test_dimensions_of_places_are_held_to_them_and_louder_than_others(
    pong_frames: FramesFolder, tmp_path: Path
) -> None:
    config = TrainConfig(
        pong_frames.path, tmp_path / "encoder", steps=100, channels=(8, 8), batch_size=32,
        learning_rate=0.01, optimizer="muon", places=2, precision="float32",
    )  # fmt: skip
    record = train_vae(config, progress=False).provenance.places
    episodes = pong_frames.split(config.validation, config.seed)[0]
    frames = pong_frames.sample(500, episodes)
    latents = load_encoder(config.out, precision="float32")(frames)
    std = latents.std(0)
    assert np.allclose(std[:2], 4, rtol=0.2)
    assert std[2:].max() < 1.5
    medians = pong_frames.medians()
    images, kinds = next(pong_frames.batches_and_foreground(500, medians, episodes, seed=config.seed))
    assert record is not None
    places = Places.of(record)
    values, shown = places(torch.from_numpy(images), torch.from_numpy(kinds[:, 1]))
    held = load_encoder(config.out, precision="float32")(images)
    for i in range(2):
        there = shown[:, i].numpy()
        assert np.corrcoef(held[there, i], values[there, i])[0, 1] > 0.8
    write_pca(config, pong_frames, tmp_path / "pca")  # in its place: PCA has no places
    std = load_encoder(tmp_path / "pca", precision="float32")(frames).std(0)
    assert std.max() < 1.5


@pytest.mark.filterwarnings("ignore:POSTERIOR COLLAPSE")
def test_the_decoder_bends_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = drawn(40, (anywhere(40, 0), 4, 4, 200))
    write_shard(tmp_path / "0.parquet", [i // 20 for i in range(40)], frames)
    held: list[int] = []

    def spied(*args: Any, **options: Any) -> Any:
        held.append(options["held"])
        return terms(*args, **options)

    monkeypatch.setattr("latent_obs.training.run.terms", spied)
    for places in (0, 2):
        out = tmp_path / f"places-{places}"
        train_vae(
            TrainConfig(tmp_path, out, steps=1, channels=(8,), batch_size=8, places=places), progress=False
        )
        assert set(held) == {places}
        held.clear()


def test_places_need_frames_of_one_environment(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, env_id in enumerate(("A-v0", "B-v0")):
        frames = drawn(40, (anywhere(40, number), 2, 2, 200))
        write_shard(
            folder / f"{number}.parquet", [number * 2 + i // 20 for i in range(40)], frames, env_id=env_id
        )
    config = TrainConfig(folder, tmp_path / "out", steps=1, channels=(8,), places=4)
    with pytest.raises(ValueError, match=r"places=4 needs frames of one env.*A-v0, B-v0.*--places 0"):
        train_vae(config, progress=False)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"places": 33}, "places must be from 0 to latent_dim, which is 32; got 33"),
        ({"places": 2, "moments": 2}, "places cannot be combined with moments or pairs"),
        ({"places": 2, "pairs": True}, "places cannot be combined with moments or pairs"),
    ],
)
def test_places_that_cannot_be_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TrainConfig(Path("frames"), **fields)


def test_training_from_an_encoder_goes_on_with_its_places(tmp_path: Path) -> None:
    """Where the old encoder never saw the ball it was wrong."""

    def folder(name: str, ball: np.ndarray) -> Path:
        frames = drawn(len(ball), (ball, 4, 4, 200))
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / "0.parquet", [i // 20 for i in range(len(ball))], frames)
        return tmp_path / name

    ball, later = anywhere(400, 0, 2, 30), anywhere(400, 1, 2, 58)
    config = TrainConfig(
        folder("a", ball), tmp_path / "old", steps=200, channels=(8, 8), latent_dim=8, batch_size=32,
        learning_rate=0.01, optimizer="muon", places=2, precision="float32",
    )  # fmt: skip
    before = train_vae(config, progress=False)
    again = replace(config, data=folder("b", later), out=tmp_path / "new", init_from=tmp_path / "old")
    after = train_vae(again, progress=False)
    assert before.provenance.places == after.provenance.places
    images = FramesFolder(tmp_path / "b").load()
    assert before.provenance.places is not None
    order = [("x", "y").index(name[0]) for name in before.provenance.places.names]

    def told(encoder: Path) -> float:
        held = load_encoder(encoder, precision="float32", normalize=False)(images)
        return float(min(np.corrcoef(held[:, i], later[:, axis])[0, 1] for i, axis in enumerate(order)))

    assert told(tmp_path / "new") > 0.95
    assert told(tmp_path / "old") < 0.9


def test_a_damaged_record_of_places_is_refused() -> None:
    frames = drawn(200, (anywhere(200, 0), 2, 2, 200))
    record = Places(frames, BLACK, 2, between(frames)).record()
    assert Places.of(record).names == record.names
    for damaged in (
        replace(record, median="?"),
        replace(record, median="AAAA"),
        replace(record, seldom=record.median),
        replace(record, chosen=[0, 99]),
        replace(record, std=[1.0]),
    ):
        with pytest.raises(ValueError, match=r"provenance\.places is damaged"):
            Places.of(damaged)

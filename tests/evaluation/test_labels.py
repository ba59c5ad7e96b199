"""Labels of dimensions and directions, against codes whose meaning is known."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs.encoders.folder import EncoderConfig, VAEConfig
from latent_obs.encoders.provenance import Provenance, Run
from latent_obs.encoders.resolve import EncoderFolder, resolve
from latent_obs.evaluation import labelling
from latent_obs.evaluation.labelling import explained_by, measure_labels
from latent_obs.evaluation.labels import (
    LABELS,
    Direction,
    Explained,
    Label,
    Labels,
    read_labels,
    write_labels,
)
from latent_obs.evaluation.variables import Observed, image_variables, play, play_again
from latent_obs.evaluation.walks import Walk
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.vae import VAE
from tests.conftest import FrameEnv, random_tensors, save_encoder

SHAPES = FrameSource("Scenes/Shapes-v0")


@pytest.fixture(scope="module")
def observed() -> Observed:
    found = play(SHAPES, FrameSpec(), count=1500)
    assert found is not None
    return found


def labels_of(codes: Any, observed: Observed, monkeypatch: pytest.MonkeyPatch) -> Labels:
    """Label codes that are given, whatever the frames; the decoder is random and of no interest."""
    size = codes.shape[1]
    config = EncoderConfig(
        FrameSpec(),
        VAEConfig(size, (4, 8)),
        {"mean": codes.mean(0).tolist(), "std": codes.std(0).tolist(), "kl": [1.0] * size},
    )
    vae = VAE.from_tensors(config.vae, random_tensors(config.vae))
    monkeypatch.setattr("latent_obs.vae.latents", lambda *_: codes.astype(np.float32))
    return measure_labels(vae, config, observed, walks=False)


def test_each_dimension_has_the_name_of_what_it_follows(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    x, y, hue = (observed.variables[name] for name in ("x", "y", "hue"))
    half = (x - x.mean()) / x.std() + (y - y.mean()) / y.std()
    codes = np.stack([np.cos(x / 8), 3 * hue, half, rng.normal(size=len(x))], 1)
    found = labels_of(codes, observed, monkeypatch).dimensions
    assert [label.explained[0].name for label in found[:2]] == ["x", "hue"]
    assert min(label.explained[0].r2 for label in found[:2]) > 0.97
    assert min(label.exclusive for label in found[:2]) > 0.9
    assert {each.name for each in found[2].explained[:2]} == {"x", "y"}
    assert [each.r2 for each in found[2].explained[:2]] == pytest.approx([0.5, 0.5], abs=0.2)
    assert found[2].exclusive < 0.3
    assert max([each.r2 for each in found[3].explained], default=0) < 0.05


def test_the_principal_directions_are_those_of_the_covariance(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = (observed.variables[name] for name in ("x", "y"))
    both = np.stack([(x - x.mean()) / x.std(), (y - y.mean()) / y.std()], 1)
    mixed = both @ np.array([[2.0, 1.0], [0.5, 1.5]])
    found = labels_of(mixed, observed, monkeypatch).directions
    variances, vectors = np.linalg.eigh(np.cov(mixed.T))
    assert [each.name for each in found] == ["principal 1", "principal 2"]
    assert [each.r2 for each in found] == pytest.approx(list(variances[::-1] / variances.sum()), abs=1e-6)
    for direction, variance, vector in zip(found, variances[::-1], vectors.T[::-1], strict=True):
        assert np.abs(np.dot(direction.moves, vector)) == pytest.approx(np.sqrt(variance), rel=1e-4)
        read = (mixed - mixed.mean(0)) @ np.array(direction.reads)
        assert read.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("explained", "exclusive", "said"),
    [
        ((("x", 0.9), ("y", 0.1)), 0.89, "x, R² 0.90"),
        ((("x", 0.9), ("y", 0.8)), 0.11, "mixed: x 0.90, y 0.80"),
        ((("x", 0.3), ("y", 0.1)), 0.67, "partly x, R² 0.30"),
        ((("x", 0.3),), 1.0, "partly x, R² 0.30"),
        ((), 0.0, "unknown"),
    ],
)
def test_a_label_says_whether_a_dimension_is_mixed(explained: Any, exclusive: float, said: str) -> None:
    assert str(Label(tuple(Explained(*each) for each in explained), exclusive, 90.0)) == said


def test_the_picture_follows_as_far_as_it_is_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that shows the first dimension and not the second; its pictures are encoded by brightness."""

    class Shows:
        def decode(self, z: Any) -> Any:
            return (0.5 + 0.1 * z[:, :1, None, None]).expand(-1, 64, 64, 3)

    monkeypatch.setattr(
        "latent_obs.vae.latents",
        lambda _, frames: np.stack([(frames.mean((1, 2, 3)) / 255 - 0.5) / 0.1, np.zeros(len(frames))], 1),
    )
    codes = np.random.default_rng(0).uniform(-1, 1, (200, 2)).astype(np.float32)
    shown, hidden = (
        labelling._follows(Shows(), codes, Direction("", 1, tuple(unit), tuple(unit)), 0)  # type: ignore[arg-type]
        for unit in np.eye(2)
    )
    assert shown == pytest.approx(1, abs=0.03)
    assert hidden == 0


def test_the_distance_is_mahalanobis(observed: Observed, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(1).normal(size=(1500, 3)) @ np.array([[2.0, 1, 0], [0, 1, 0.5], [0, 0, 3]])
    found = labels_of(codes, observed, monkeypatch)
    inverse = np.linalg.inv(np.cov(codes.T))
    offset = codes - codes.mean(0)
    wanted = np.sqrt((offset @ inverse * offset).sum(1))
    ours = np.linalg.norm(offset @ np.array(found.whitening).T, axis=1)
    np.testing.assert_allclose(ours, wanted, rtol=1e-3)
    assert found.distances == pytest.approx(np.percentile(wanted, (50, 95, 99)), rel=1e-3)


def test_known_factors_are_measured_by_the_metrics(
    observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = np.stack([(v - v.mean()) / v.std() for v in observed.variables.values()], 1)
    metrics = labels_of(codes, observed, monkeypatch).metrics
    assert metrics["mig"] > 0.9
    assert metrics["dci_disentanglement"] > 0.9


def test_a_variable_that_is_not_in_a_frame_counts_only_where_it_is() -> None:
    rng = np.random.default_rng(0)
    place = rng.uniform(size=2000)
    code = np.where(rng.random(2000) < 0.5, place, 5.0).astype(np.float32)
    seen = np.where(code < 2, place, np.nan)
    (best,) = explained_by(code, {"ball": seen}, np.arange(2000) < 1000)
    assert best.r2 > 0.98


def test_labels_are_read_as_they_were_written(
    observed: Observed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = np.random.default_rng(0).normal(size=(1500, 3))
    walk = Walk("x", (1.0, 2.0), ((0.5, 1.5, 2.5), (3.0, 4.0, 5.0)), 0.75, ("y",))
    written = replace(labels_of(codes, observed, monkeypatch), walks=(walk,))
    assert read_labels(tmp_path, 3) is None
    write_labels(written, tmp_path)
    known = read_labels(tmp_path, 3)
    assert known is not None
    assert known.to_json() == written.to_json()
    assert known.walks == (walk,)
    np.testing.assert_allclose(known.whitening, written.whitening, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="another encoder"):
        read_labels(tmp_path, 4)
    content = json.loads((tmp_path / LABELS).read_text())
    del content["directions"]
    (tmp_path / LABELS).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"labels\.json: It is damaged: .*directions"):
        read_labels(tmp_path, 3)


def test_play_reads_ram_by_its_names_and_no_ball_that_is_not_there() -> None:
    found = play(FrameSource("ALE/Pong-v5"), FrameSpec(), count=300)
    assert found is not None
    assert {"ball x", "ball y", "player y", "enemy y"} <= set(found.variables)
    ball = found.variables["ball x"]
    assert 0 < np.isnan(ball).mean() < 1
    # The player's paddle is the green one, on the right.
    green = (found.frames[..., 1] > 150) & (found.frames[..., 0] < 120) & (found.frames[..., 2] < 120)
    green[:, :14] = False  # the score
    y = np.mgrid[:64, :64][0]
    there = green.sum((1, 2)) > 0
    middle = (green * y).sum((1, 2))[there] / green.sum((1, 2))[there]
    assert np.corrcoef(middle, found.variables["player y"][there])[0, 1] > 0.98


def test_play_reads_a_state_vector_and_knows_when_there_is_none() -> None:
    found = play(FrameSource("Scenes/CartPole-v1"), FrameSpec(), count=60)
    if found is not None:  # pygame may be missing
        assert list(found.variables) == [f"state {i}" for i in range(4)]
        assert not found.factors
    assert play(FrameSource("ALE/Tetris-v5"), FrameSpec(), count=10) is None
    assert play(FrameSource("Nowhere/Nothing-v0"), FrameSpec(), count=10) is None
    assert play(FrameSource(""), FrameSpec(), count=10) is None


class FlatEnv(FrameEnv):
    """Shows one colour, draws itself in another, and fails where it shall."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  # an instance variable in its base class

    def __init__(self, render_mode: str | None = None, fails_in: str = "") -> None:
        super().__init__()
        self.render_mode, self.fails_in = render_mode, fails_in
        self._trouble("constructor")

    def reset(self, **options: Any) -> Any:
        self._trouble("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self._trouble("step")
        return super().step(action)

    def render(self) -> Any:
        return np.full((64, 64, 3), 99, np.uint8)

    def _image(self) -> Any:
        return np.full((64, 64, 3), 10, np.uint8)

    def _trouble(self, call: str) -> None:
        if self.fails_in == call:
            raise RuntimeError("no display")


def negative(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return gym.wrappers.TransformObservation(env, lambda obs: 255 - obs, env.observation_space)


def in_dict(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    space = gym.spaces.Dict({"image": env.observation_space})
    return gym.wrappers.TransformObservation(env, lambda obs: {"image": obs}, space)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gym.envs.registration, "registry", dict(gym.registry))
    gym.register("Flat-v0", f"{__name__}:FlatEnv", disable_env_checker=True)


def encoder_of(folder: Path, env_id: str, **data: Any) -> EncoderFolder:
    run = Run({}, {"env_id": env_id, **data}, None)
    return resolve(save_encoder(folder, source=FrameSource(env_id), provenance=Provenance(run=run)))


@pytest.mark.parametrize(
    ("data", "level"),
    [
        ({}, 10),
        ({"wrapper": f"{__name__}:negative"}, 245),
        ({"render": True}, 99),
        ({"wrapper": f"{__name__}:in_dict", "key": "image"}, 10),
    ],
)
def test_an_encoders_environment_is_opened_as_it_was_for_its_frames(
    data: dict[str, Any], level: int, tmp_path: Path, flat: None
) -> None:
    found = play_again(encoder_of(tmp_path / "e", "Flat-v0", **data), 3, state=False)
    assert found is not None
    assert (found.frames == level).all()


@pytest.mark.parametrize("call", ["constructor", "reset", "step"])
def test_an_environment_that_fails_is_not_played_and_a_warning_says_why(call: str, flat: None) -> None:
    source = FrameSource("Flat-v0", {"fails_in": call})
    with pytest.warns(UserWarning, match="Flat-v0 cannot be played here.*RuntimeError: no display"):
        assert play(source, FrameSpec(), count=3, state=False) is None


@pytest.mark.parametrize("which", ["env_id", "wrapper"])
def test_no_module_that_an_encoder_on_the_hub_names_is_imported(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: None
) -> None:
    """It is played where its module is imported already, as one in a local folder always is."""
    (tmp_path / f"named_{which}.py").write_text("from tests.evaluation.test_labels import negative\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = {"env_id": "Flat-v0"} | (
        {"env_id": "named_env_id:Flat-v0"} if which == "env_id" else {"wrapper": "named_wrapper:negative"}
    )
    here = encoder_of(tmp_path / "e", **names)
    on_hub = replace(here, ref="hf://user/flat")
    assert play_again(on_hub, 3, state=False) is None
    assert f"named_{which}" not in sys.modules
    for encoder in (here, on_hub):
        assert play_again(encoder, 3, state=False) is not None
    monkeypatch.delitem(sys.modules, f"named_{which}")


def test_statistics_of_pictures_name_a_colour_and_its_place() -> None:
    rng = np.random.default_rng(0)
    frames = np.full((300, 64, 64, 3), (130, 80, 40), np.uint8)
    places = rng.integers(2, 60, (300, 2))
    for frame, (y, x) in zip(frames, places, strict=True):
        frame[y : y + 3, x : x + 3] = (60, 200, 60)
    found = image_variables(frames)
    np.testing.assert_allclose(found["green x"], places[:, 1] + 1)
    np.testing.assert_allclose(found["green y"], places[:, 0] + 1)
    assert (found["green area"] == 9).all()

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import pytest

from latent_obs import recipe as recipes
from latent_obs.cli import main
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import read_calibration, read_config, read_tensors
from latent_obs.encoders.resolve import PRETRAINED, list_encoders
from latent_obs.evaluation.markdown import card_text, read_card
from latent_obs.frames import FrameSpec, preprocess
from latent_obs.recipe import BuildConfig, build_recipe, list_recipes, read_recipe
from latent_obs.scenes import RENDERED
from tests.quick_env import QuickEnv

gym.register("Quick2-v0", "tests.quick_env:QuickEnv", disable_env_checker=True)

QUICK: dict[str, Any] = {
    "about": "Dots.",
    "collect": [{"env_ids": ["Quick-v0"], "frames": 600, "policy": "random", "seed": 0, "workers": 1}],
    "train": {"channels": [4, 8], "steps": 60},
    "evaluate": [
        {"env_ids": ["Quick-v0", "Quick2-v0"], "frames": 300, "policy": "random", "seed": 7, "workers": 1}
    ],
    "failures": ["Dots are lost."],
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's file, built once; ``encoders`` and ``scratch`` lie beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "dots-v3.json").write_text(json.dumps(QUICK))
    build_recipe(config(folder), progress=False)
    return folder


def config(folder: Path) -> BuildConfig:
    return BuildConfig(str(folder / "dots-v3.json"), folder / "encoders", folder / "scratch")


def test_a_collection_may_name_an_entry_and_arguments(tmp_path: Path) -> None:
    pytest.importorskip("minigrid")
    value = {**QUICK, "collect": [{**QUICK["collect"][0], "frames": 30, "key": "image"}]}
    value["collect"][0] |= {"env_ids": ["minigrid:MiniGrid-Empty-6x6-v0"], "env_kwargs": {"max_steps": 7}}
    collections = recipes.Recipe.from_json("rooms-v0", value).collect
    (path,) = recipes._collect_all(collections, tmp_path, progress=False)
    settings = FramesFolder(path).shards[0].metadata
    assert settings["key"] == "image"
    assert settings["env_kwargs"] == {"max_steps": 7}


def test_a_build_leaves_an_encoder_with_its_card(built: Path) -> None:
    out = built / "encoders" / "dots-v3"
    encoder = load_encoder(out, precision="float32")
    frame = preprocess(QuickEnv().reset(seed=3)[0], FrameSpec())
    assert np.isfinite(encoder(frame)).all()
    assert encoder.config.provenance["recipe"] == "dots-v3"
    assert encoder.config.provenance["build_seconds"]["collect"] > 0
    card = json.loads((out / "reports.json").read_text())
    assert set(card["reports"]) == {"Quick-v0", "Quick2-v0"}
    assert card["unseen"] == ["Quick2-v0"]
    assert str(built) not in (out / "reports.json").read_text(), "whoever reads it has other folders"
    told = encoder.config.metrics
    assert told["psnr"] == pytest.approx(card["reports"]["Quick2-v0"]["psnr"], rel=1e-5), "of the unseen one"
    text = (out / "README.md").read_text()
    for wanted in ("library_name: latent_obs", "license: mit", "Dots are lost.", "never saw", "dots-v3"):
        assert wanted in text
    assert f"{card['reports']['Quick-v0']['moving_r2']:.3f}" in text
    picture = cv2.imread(str(out / "card.png"))
    assert picture is not None
    assert picture.std() > 5


def test_the_frames_measured_are_no_frames_trained_on(built: Path) -> None:
    trained = FramesFolder(built / "scratch" / "dots-v3" / "collected" / "Quick-v0").load()
    fresh = FramesFolder(built / "scratch" / "dots-v3" / "fresh" / "Quick-v0").load()
    seen = {frame.tobytes() for frame in trained}
    assert sum(frame.tobytes() in seen for frame in fresh) < len(fresh) / 10


def test_building_again_goes_on_from_what_is_there(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = built / "encoders" / "dots-v3"
    weights, card = (out / "model.safetensors").read_bytes(), json.loads((out / "reports.json").read_text())
    monkeypatch.setattr(
        "latent_obs.evaluation.evaluate.evaluate_encoder", None
    )  # would fail if it measured again
    build_recipe(config(built), progress=False)
    assert (out / "model.safetensors").read_bytes() == weights
    assert json.loads((out / "reports.json").read_text()) == card


def test_half_precision_is_kept_only_where_latents_stay_the_same(built: Path) -> None:
    """Weights near 1 round well; with one of 10,000 cancelled by another, latents would move."""
    trained = built / "scratch" / "dots-v3" / "trained"
    rounded = built / "encoders" / "dots-v3"
    encoder = load_encoder(rounded)
    assert encoder.config.provenance["weights"] == "float16"
    exact = read_tensors(trained, read_config(trained))
    half = read_tensors(rounded, encoder.config)
    assert (rounded / "model.safetensors").stat().st_size < 0.6 * (
        trained / "model.safetensors"
    ).stat().st_size
    assert not np.array_equal(exact["mean.weight"], half["mean.weight"])
    assert exact["decoder_variance"] == half["decoder_variance"]
    calibration = read_calibration(rounded)
    assert calibration is not None
    from latent_obs.vae import VAE, latents

    a, b = (latents(VAE.from_tensors(encoder.config.vae, tensors), calibration) for tensors in (exact, half))
    moved = np.sqrt(np.square(a - b).mean(0)) / np.maximum(encoder.config.latents["std"], 0.1)
    assert 0 < moved.max() < recipes.HALF_TOLERANCE


def test_weights_that_half_precision_would_change_are_kept(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes, "HALF_TOLERANCE", 1e-9)
    trained = built / "scratch" / "dots-v3" / "trained"
    result = recipes._round_weights(trained, tmp_path)
    assert result.provenance["weights"] == "float32"
    a, b = (read_tensors(folder, result) for folder in (trained, tmp_path))
    assert all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collect": []}, "needs frames to train on"),
        ({"evaluate": [{**QUICK["evaluate"][0], "seed": 0}]}, "the seed 0 of collect"),
        ({"stepz": 3}, "stepz"),
        ({"collect": [{"frames": 3}]}, "'env_ids' is missing"),
        ({"collect": [{"env_ids": ["Quick-v0"], "frames": 3, "colour": 1}]}, "colour"),
    ],
)
def test_a_recipe_that_is_none_says_why(
    change: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad-v0.json"
    path.write_text(json.dumps({**QUICK, **change}))
    assert main(["recipe", "build", str(path)]) == 1
    told = capsys.readouterr().err
    assert "is no recipe" in told
    assert message in told


def test_an_unknown_recipe_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "build", "tetris-v0"]) == 1
    assert "pong-v0" in capsys.readouterr().err


def test_every_bundled_encoder_has_its_recipe_and_card() -> None:
    """Named alike, trained by the recipe's settings on the recipe's frames, and measured on others."""
    assert list_recipes()
    # The training option that made this one linear has been taken out, and its recipe with it.
    assert set(list_encoders()) == {*list_recipes(), "pong-linear-v0"}
    for name in list_recipes():
        encoder, recipe = list_encoders()[name], read_recipe(name)
        run = encoder.provenance["run"]
        wanted = {key: list(v) if isinstance(v, tuple) else v for key, v in recipe.train.items()}
        assert {key: run["config"][key] for key in wanted} == wanted, name
        collections = run["data"].get("collections", [run["data"]])
        told = {(c["env_id"], c["frames"], c["policy"], c["seed"], c["workers"]) for c in collections}
        assert told == {
            (env_id, c.frames, c.policy, c.seed, c.workers) for c in recipe.collect for env_id in c.env_ids
        }
        card = json.loads((PRETRAINED / name / "reports.json").read_text())
        assert set(card["reports"]) == {registered(env_id) for c in recipe.evaluate for env_id in c.env_ids}
        assert set(card["unseen"]) < set(card["reports"])
        own = [report for env_id, report in card["reports"].items() if env_id not in card["unseen"]]
        assert all(report["active_units"] >= 2 for report in own), name
        text = read_card(name)
        assert f"# {name}" in text
        for heading in ("## Report card", "## How it was made", "## Known failures", "## Licence"):
            assert heading in text, name
        assert (PRETRAINED / name / "card.png").is_file()


def registered(env_id: str) -> str:
    """Without the module that registers it."""
    return env_id.rpartition(":")[2]


def test_the_bundled_encoders_are_small_and_keep_what_moves() -> None:
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()) < 40e6
    for name, encoder in list_encoders().items():
        if len(encoder.source.env_ids) == 1 and encoder.source.emulator:
            assert encoder.metrics["moving_r2"] >= 0.85, name
            scores = read_json(PRETRAINED / name / "reports.json")["reports"][encoder.source.env_id]["probe"]
            readers = scores["readers"].values()
            assert all(reader["encoder"]["f1"] > reader["random"]["f1"] for reader in readers), name


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_card_of_an_encoder_without_one_tells_what_its_config_knows(
    encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(encoder)]) == 0
    assert f"# {encoder.name}" in capsys.readouterr().out
    assert "---" not in card_text("x", load_encoder(encoder).config).split("# x")[1].split("\n")[0]
    assert main(["card", "pong-v0"]) == 0
    assert "moving-object R²" in capsys.readouterr().out


@pytest.mark.parametrize("env_id", [f"Scenes/{name}" for name in ("DeadLeaves-v0", *RENDERED)])
def test_scenes_are_images_that_follow_the_seed_and_move(env_id: str) -> None:
    env = gym.make(env_id, disable_env_checker=True)
    first = preprocess(env.reset(seed=5)[0], FrameSpec())
    assert np.array_equal(first, preprocess(env.reset(seed=5)[0], FrameSpec()))
    assert first.std() > 5
    env.action_space.seed(0)
    for _ in range(20):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            break
    moved = (preprocess(obs, FrameSpec()) != first).any(-1).mean()
    assert 0.001 < moved < 0.9
    env.close()


def test_dead_leaves_drift_rather_than_jump() -> None:
    env = gym.make("Scenes/DeadLeaves-v0")
    frames = [env.reset(seed=1)[0].astype(float)]
    frames += [env.step(0)[0].astype(float) for _ in range(30)]
    other = env.reset(seed=2)[0].astype(float)
    steps = [np.abs(a - b).mean() for a, b in itertools.pairwise(frames)]
    assert 0 < np.mean(steps) < 0.25 * np.abs(frames[0] - other).mean()

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
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
from latent_obs.encoders.folder import EncoderConfig, VAEConfig, read_calibration, read_config, read_tensors
from latent_obs.encoders.provenance import Metrics
from latent_obs.encoders.resolve import PRETRAINED, list_encoders, resolve_auto
from latent_obs.evaluation.markdown import card_text, read_card
from latent_obs.evaluation.report import Reports
from latent_obs.frames import FrameSource, FrameSpec, preprocess
from latent_obs.recipe import BuildConfig, _write_card, build_recipe, list_recipes, read_recipe
from latent_obs.scenes import RENDERED
from tests.conftest import save_encoder
from tests.evaluation.test_report import CARD, PROBE
from tests.quick_env import QuickEnv

gym.register("Quick2-v0", "tests.quick_env:QuickEnv", disable_env_checker=True)
gym.register("Keyed-v0", "tests.conftest:DictEnv", disable_env_checker=True)

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
    value = {**QUICK, "collect": [{**QUICK["collect"][0], "frames": 30, "key": "image"}]}
    value["collect"][0] |= {"env_ids": ["Keyed-v0"], "env_kwargs": {"max_episode_steps": 7}}
    collections = recipes.Recipe.from_json("rooms-v0", value).collect
    (path,) = recipes._collect_all(collections, tmp_path, progress=False).values()
    settings = FramesFolder(path).shards[0].metadata
    assert settings["key"] == "image"
    assert settings["env_kwargs"] == {"max_episode_steps": 7}


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


def test_a_recipe_that_has_changed_is_trained_anew(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(built / "scratch", tmp_path / "scratch")
    (tmp_path / "dots-v3.json").write_text(json.dumps({**QUICK, "train": {"channels": [4, 8], "steps": 61}}))
    trained: list[Path] = []

    def end(folder: Path, _: Path) -> None:
        trained.append(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "_round_weights", end)
    with pytest.raises(KeyboardInterrupt):
        build_recipe(config(tmp_path), progress=False)
    assert read_config(trained[0]).provenance.steps == 61


def test_an_encoder_that_is_not_of_the_recipe_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "dots-v3.json").write_text(json.dumps(QUICK))
    save_encoder(tmp_path / "encoders" / "dots-v3")
    with pytest.raises(ValueError, match=r"was not built from the recipe dots-v3.* Choose another --out"):
        build_recipe(config(tmp_path), progress=False)
    assert not (tmp_path / "scratch").exists()


def test_two_collections_of_one_environment_are_kept_apart_and_both_trained_on(tmp_path: Path) -> None:
    one = QUICK["collect"][0]
    value = {
        **QUICK,
        "collect": [{**one, "frames": 60}, {**one, "frames": 40, "policy": "sticky", "seed": 3}],
    }
    collections = recipes.Recipe.from_json("dots-v0", value).collect
    paths = recipes._collect_all(collections, tmp_path, progress=False)
    assert list(paths) == ["Quick-v0", "Quick-v0 #2"]
    assert [len(FramesFolder(path)) for path in paths.values()] == [60, 40]
    policies = [FramesFolder(path).collections[0]["policy"] for path in paths.values()]
    assert policies == ["random", "sticky"]


def test_a_mixture_is_made_again_when_its_parts_have_grown(tmp_path: Path) -> None:
    """What is trained on holds as many frames of each part as the recipe asks for now."""
    for frames in (100, 200):
        value = {**QUICK, "collect": [{**QUICK["collect"][0], "env_ids": ["Quick-v0", "Quick2-v0"]}]}
        value["collect"][0]["frames"] = frames
        recipe = recipes.Recipe.from_json("dots-v0", value)
        data = list(recipes._collect_all(recipe.collect, tmp_path / "collected", progress=False).values())
        recipes._merge(data, tmp_path / "merged", progress=False)
        merged = {c["env_id"]: c["frames"] for c in FramesFolder(tmp_path / "merged").collections}
        assert merged == {"Quick-v0": frames, "Quick2-v0": frames}
    before = sorted((tmp_path / "merged").iterdir())[0].stat().st_mtime_ns
    recipes._merge(data, tmp_path / "merged", progress=False)
    assert sorted((tmp_path / "merged").iterdir())[0].stat().st_mtime_ns == before, "made again for nothing"


def test_measuring_again_changes_the_card_and_no_weights(built: Path, tmp_path: Path) -> None:
    """Measured on 320 frames instead of 300; what was read of the RAM before is kept with its date."""
    out = tmp_path / "dots"
    shutil.copytree(built / "encoders" / "dots-v3", out)
    reports = read_json(out / "reports.json")
    reports["reports"]["Quick-v0"]["probe"] = PROBE
    (out / "reports.json").write_text(json.dumps(reports))
    recipe = {**QUICK, "evaluate": [{**QUICK["evaluate"][0], "frames": 320}]}
    (tmp_path / "dots-v3.json").write_text(json.dumps(recipe))
    before = {name: (out / name).read_bytes() for name in ("model.safetensors", "calibration.png")}
    config_before, today = read_json(out / "config.json"), datetime.now(timezone.utc).date().isoformat()
    asked = recipes.MeasureConfig(str(tmp_path / "dots-v3.json"), out, tmp_path / "scratch")
    result = recipes.measure_recipe(asked, progress=False)
    assert {name: (out / name).read_bytes() for name in before} == before
    config_after = read_json(out / "config.json")
    assert config_after.pop("metrics") == result.metrics
    assert config_before.pop("metrics") != result.metrics
    assert config_after == config_before
    cards = read_json(out / "reports.json")["reports"]
    assert all(card["data"]["frames"] == 320 for card in cards.values())
    assert all(
        card["data"]["episodes"] == len(card["by_episode"]["moving_r2"]) >= 6 for card in cards.values()
    )
    assert cards["Quick-v0"]["created"] == today
    assert cards["Quick-v0"]["probe"]["created"] == reports["reports"]["Quick-v0"]["created"]
    assert cards["Quick2-v0"]["probe"] is None
    assert result.metrics["moving_r2"] == pytest.approx(cards["Quick2-v0"]["moving_r2"], rel=1e-5), (
        "the unseen one"
    )
    assert f"{cards['Quick2-v0']['moving_r2']:.3f}" in (out / "README.md").read_text()


def test_metrics_are_means_over_environments_never_seen_if_there_are_any() -> None:
    latents = {"mean": [0.0, 0.0], "std": [1.0, 1.0], "kl": [1.0, 1.0]}
    config = EncoderConfig(
        FrameSpec(), VAEConfig(2), latents, metrics=Metrics(active_units=2, collapsed=False)
    )
    cards = {
        "A-v0": CARD,
        "B-v0": replace(CARD, moving_r2=0.5),
        "C-v0": replace(CARD, moving_r2=0.2, rare_r2=None),
    }
    unseen = recipes._metrics(config, Reports({}, cards, ("B-v0", "C-v0")))
    assert unseen["moving_r2"] == pytest.approx(0.35)
    assert unseen["rare_r2"] == pytest.approx(0.703)
    assert unseen["frames"] == 2 * 4096
    assert unseen["probe_f1"] == {"paper": pytest.approx(0.41)}
    assert recipes._metrics(config, Reports({}, cards, ()))["moving_r2"] == pytest.approx(
        (0.901 + 0.5 + 0.2) / 3
    )


def test_reports_of_other_frames_are_made_anew(built: Path, tmp_path: Path) -> None:
    """A report is kept for the frames that it is of; when the folder has grown, it is measured again."""
    shutil.copytree(built / "scratch", tmp_path / "scratch")
    shutil.copytree(built / "encoders" / "dots-v3", tmp_path / "dots")
    for frames in (300, 360):
        (tmp_path / "dots-v3.json").write_text(
            json.dumps({**QUICK, "evaluate": [{**QUICK["evaluate"][0], "frames": frames}]})
        )
        asked = recipes.MeasureConfig(str(tmp_path / "dots-v3.json"), tmp_path / "dots", tmp_path / "scratch")
        recipes.measure_recipe(asked, progress=False)
        cards = read_json(tmp_path / "dots" / "reports.json")["reports"]
        assert [card["data"]["frames"] for card in cards.values()] == [frames, frames]


def test_a_retired_recipe_says_why_it_cannot_be_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old-v0.json"
    path.write_text(json.dumps({**QUICK, "train": {"gone": 1}, "retired": "It used the option gone."}))
    assert main(["recipe", "build", str(path), "--scratch", str(tmp_path / "scratch")]) == 1
    assert "cannot be built. It used the option gone." in capsys.readouterr().err
    assert not (tmp_path / "scratch").exists()


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


COLLECT, EVALUATE = QUICK["collect"][0], QUICK["evaluate"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"collect": []}, "needs frames to train on"),
        ({"collect": {}}, "collect must be a list of collections, got {}"),
        ({"collect": ["ALE/Pong-v5"]}, "collect[0] must be an object, got 'ALE/Pong-v5'"),
        ({"evaluate": [{**EVALUATE, "seed": 0}]}, "the seed 0 of collect"),
        ({"stepz": 3}, "the unknown field 'stepz'"),
        ({"name": "other"}, "the name of the file is the recipe's name"),
        ({"about": 3}, "about must be a string, got 3"),
        ({"probe": "yes"}, "probe must be true or false, got 'yes'"),
        ({"failures": "It fails."}, "failures must be a list of strings"),
        ({"train": [1]}, "train must be an object, got [1]"),
        ({"collect": [{"frames": 3}]}, "'env_ids' is missing"),
        (
            {"collect": [{**COLLECT, "env_ids": "Quick-v0"}]},
            "env_ids must be a list of strings, got 'Quick-v0'",
        ),
        ({"collect": [{**COLLECT, "env_ids": ["A-v0", "A-v0"]}]}, "each once, got ['A-v0', 'A-v0']"),
        ({"collect": [{**COLLECT, "frames": "600"}]}, "collect[0] has a wrong field: frames must be a whole"),
        ({"collect": [{**COLLECT, "frames": True}]}, "frames must be a whole number, got True"),
        ({"evaluate": [EVALUATE, {**EVALUATE, "frames": 0}]}, "frames must be at least 1, got 0"),
        ({"collect": [{**COLLECT, "colour": 1}]}, "collect[0] has the unknown field 'colour'"),
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


def test_a_field_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad-v0.json"
    path.write_text(json.dumps(QUICK).replace('"seed": 0', '"seed": 5, "seed": 0'))
    with pytest.raises(ValueError, match="the field 'seed' is there 2 times"):
        read_recipe(str(path))


@pytest.mark.parametrize(
    ("train", "message"),
    [({"stepz": 3}, "stepz"), ({"steps": 0}, "steps must be at least 1"), ({"steps": "x"}, "'<'")],
)
def test_wrong_options_of_training_are_found_before_anything_is_collected(
    train: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad-v0.json"
    path.write_text(json.dumps({**QUICK, "train": train}))
    with pytest.raises(ValueError, match=f"bad-v0 trains with options that are wrong: .*{message}"):
        build_recipe(BuildConfig(str(path), tmp_path / "out", tmp_path / "scratch"), progress=False)
    assert not (tmp_path / "scratch").exists()


def test_an_unknown_recipe_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "build", "tetris-v0"]) == 1
    assert "pong-v0" in capsys.readouterr().err


def test_every_bundled_encoder_has_its_recipe_and_card() -> None:
    """Named alike, trained by the recipe's settings on the recipe's frames, and measured on others."""
    assert list_recipes()
    assert set(list_encoders()) == set(list_recipes())
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
        assert text == card_text(name, encoder, Reports.from_json(card)), name
        assert f"# {name}" in text
        for heading in ("## Report card", "## How it was made", "## Known failures", "## Licence"):
            assert heading in text, name
        assert (PRETRAINED / name / "card.png").is_file()


def test_a_card_shows_the_figures_that_are_stored_beside_it(tmp_path: Path) -> None:
    """0.91150004 is 0.912 in three digits, and 0.9115, which is stored, is 0.911."""
    name = "boxing-v0"
    reports = Reports.from_json(json.loads((PRETRAINED / name / "reports.json").read_text()))
    cards = {env_id: replace(card, moving_r2=0.91150004) for env_id, card in reports.reports.items()}
    encoder = list_encoders()[name]
    _write_card(tmp_path, read_recipe(name), encoder, replace(reports, reports=cards))
    stored = Reports.from_json(json.loads((tmp_path / "reports.json").read_text()))
    assert (tmp_path / "README.md").read_text() == card_text(name, encoder, stored)


def registered(env_id: str) -> str:
    """Without the module that registers it."""
    return env_id.rpartition(":")[2]


def test_the_bundled_encoders_are_small_and_keep_what_moves() -> None:
    assert sum(path.stat().st_size for path in PRETRAINED.rglob("*") if path.is_file()) < 40e6
    for name, encoder in list_encoders().items():
        if len(encoder.source.env_ids) > 1:
            continue
        card = read_json(PRETRAINED / name / "reports.json")["reports"][encoder.source.env_id]
        pca = card["floors"]["pca"]
        kept = card["moving_r2"] + card["changing_r2"]
        assert kept > pca["moving_r2"] + pca["changing_r2"], f"{name}: whoever wants this has PCA"
        if encoder.source.emulator:
            assert encoder.metrics["moving_r2"] >= 0.85, name
        if card["probe"] is not None:
            readers = card["probe"]["readers"].values()
            assert all(reader["encoder"]["f1"] > reader["random"]["f1"] for reader in readers), name


def test_auto_takes_the_encoder_of_each_bundled_game_by_id_and_by_game() -> None:
    """The versions and frame skips of an ALE game share its encoder; a variant of an encoder is not taken."""
    for name, encoder in list_encoders().items():
        source = encoder.source
        if len(source.env_ids) > 1 or name == "pong-linear-v0":
            continue
        assert resolve_auto(FrameSource(source.env_id)) == name
        if game := source.emulator.get("game"):
            assert name == f"{game}-v0"
            assert resolve_auto(FrameSource("NoFrameskip-v4", {"mode": 1}, {"game": game})) == name


def test_the_table_of_games_that_one_recipe_made_is_of_their_recipes_and_cards() -> None:
    text = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    made = [name for name in list_recipes() if read_recipe(name).train.get("optimizer") == "muon"]
    assert made
    for name in made:
        recipe = read_recipe(name)
        (card,) = read_json(PRETRAINED / name / "reports.json")["reports"].values()
        figures = ("moving_r2", "changing_r2", "position_r2")
        told = [f"{card[key]:.3f} ({card['floors']['pca'][key]:.3f})" for key in figures]
        sizes = [f"{recipe.collect[0].frames:,}", f"{recipe.train['steps']:,}", str(card["data"]["episodes"])]
        assert any(row[:7] == [name, *sizes, *told] for row in rows), name


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


def test_a_card_tells_the_optimizer_and_the_moments() -> None:
    config = read_config(PRETRAINED / "pong-v0")
    assert "16-32-64, Adam, learning rate 0.001, seed 0, objective calibrated, " in card_text("x", config)
    run = config.provenance.run
    assert run is not None
    run = replace(run, config={**run.config, "optimizer": "muon", "moments": 14})
    told = card_text("x", replace(config, provenance=replace(config.provenance, run=run)))
    assert "16-32-64, Muon, learning rate 0.001, seed 0, objective calibrated with 14 moments, " in told
    run = replace(run, config={**run.config, "moments": 0, "places": 6})
    told = card_text("x", replace(config, provenance=replace(config.provenance, run=run)))
    assert "objective calibrated with 6 places, " in told


def test_what_a_card_has_in_brackets_is_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_encoder(tmp_path / "tiny")
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n\nIt keeps [bold]32 numbers[/a] and [link](x.html).\n"
    )
    assert main(["card", str(folder)]) == 0
    assert capsys.readouterr().out.startswith("It keeps [bold]32 numbers[/a] and [link](x.html).\n")


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

"""The report card: one table, filled from fields whose values are known here by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from latent_obs.encoders.folder import EncoderConfig, VAEConfig, read_config
from latent_obs.encoders.provenance import Run
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.evaluation.markdown import card_text, lines_that_wrap
from latent_obs.evaluation.report import (
    Measured,
    Probe,
    ProbeScores,
    ReportCard,
    Reports,
    Scores,
    find_faults,
)
from latent_obs.frames import FrameSpec
from latent_obs.measures import Dimension, Drift


def scored(value: float) -> ProbeScores:
    return {"f1": value, "categories": {"agent": value}, "variables": {"player_x": value}}


PROBE: Probe = {
    "env_id": "ALE/Pong-v5",
    "env_kwargs": {},
    "emulator": {"frameskip": 4},
    "frames": {"train": 700, "test": 300},
    "episodes": 9,
    "seed": 0,
    "readers": {
        "paper": {
            "encoder": scored(0.41),
            "pca": scored(0.31),
            "random": scored(0.21),
            "majority": scored(0.11),
        }
    },
    "ball": {"encoder": {"ridge": {"x": 0.62, "y": 0.72}, "mlp": {"x": 0.82, "y": 0.92}}, "pca": None},
    "published": None,
}

CARD = ReportCard(
    encoder="pong-v0",
    env_id="ALE/Pong-v5",
    latent_dim=2,
    data=Measured(held_out=False, episodes=7, baseline_episodes=5, collection={"seed": 1000}),
    frames=4096,
    negative_elbo=25_300.25,
    bits_per_dim=2.97,
    reconstruction=25_150.5,
    kl=149.75,
    active_units=2,
    moving_r2=0.901,
    changing_r2=0.802,
    rare_r2=0.703,
    position_r2=0.604,
    psnr=41.5,
    foreground=0.125,
    by_episode={"moving_r2": [0.75, 0.95, 0.85], "changing_r2": [0.8]},
    baselines={
        "pca": Scores(
            moving_r2=0.301, changing_r2=0.302, rare_r2=0.303, position_r2=0.304, psnr=31.5, foreground=0.125
        ),
        "random": Scores(
            moving_r2=0.101, changing_r2=0.102, rare_r2=0.103, position_r2=None, psnr=21.5, foreground=0.125
        ),
    },
    dimensions=(Dimension(1, 2, 3, 4, 5, 6, 7, 8), Dimension(2, 3, 4, 5, 6, 7, 8, 9)),
    drift=Drift(shift=0.31, spread=1.21, drifted=False),
    encode_us={"torch": 1234.0},
    probe=PROBE,
    provenance={"created": "2026-11-24"},
    created="2026-11-27",
)


def test_the_table_has_each_figure_under_its_code() -> None:
    assert CARD.rows() == [
        ("moving-object R²", "0.901", "0.301", "0.101"),
        ("moving-object R², by episode: mean (range)", "0.850 (0.750 to 0.950)", "", ""),
        ("R² of what changes", "0.802", "0.302", "0.102"),
        ("R² of what changes, by episode: mean (range)", "0.800 (0.800 to 0.800)", "", ""),
        ("R² of rare colours", "0.703", "0.303", "0.103"),
        ("R² of positions, read linearly", "0.604", "0.304", ""),
        ("PSNR, dB", "41.5", "31.5", "21.5"),
        ("negative ELBO, nats/frame", "25,300.2", "", ""),
        ("negative ELBO, bits/dim", "2.970", "", ""),
        ("reconstruction, nats/frame", "25,150.5", "", ""),
        ("KL, nats/frame", "149.8", "", ""),
        ("active units", "2", "", ""),
        ("pixels that differ from the median", "12.5%", "", ""),
        ("probe F1, paper", "0.410", "0.310", "0.210"),
        ("latent drift", "no", "", ""),
        ("shift of the latents' means, std", "0.31", "", ""),
        ("spread of the latents, ratio", "1.21", "", ""),
        ("encode a frame in eager PyTorch, µs", "1,234", "", ""),
    ]


def test_a_card_is_the_same_after_json() -> None:
    assert ReportCard.from_json(json.loads(json.dumps(CARD.to_json()))) == CARD


def test_the_json_keeps_the_names_of_version_1() -> None:
    value = CARD.to_json()
    assert (value["format"], value["version"]) == ("latent_obs.report_card", 1)
    assert value["data"] == {"held_out": False, "episodes": 7, "floor_episodes": 5, "seed": 1000}
    assert value["floors"]["pca"]["psnr"] == 31.5
    assert value["dimensions"][1]["trained_mean"] == 6
    assert value["drift"] == {"shift": 0.31, "spread": 1.21, "drifted": False}
    assert "baselines" not in value


def test_a_card_from_before_rare_colours_and_episodes_loads_and_shows_what_it_has() -> None:
    value = CARD.to_json()
    for each in (value, *value["floors"].values()):
        del each["rare_r2"], each["position_r2"]
    for name in ("by_episode", "created", "provenance", "dimensions"):
        del value[name]
    card = ReportCard.from_json(value)
    labels = [row[0] for row in card.rows()]
    assert "moving-object R²" in labels
    assert not [label for label in labels if "rare" in label or "positions" in label or "episode" in label]
    assert find_faults(card) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "no report card"),
        ({"version": 2}, "version 2; this latent_obs reads 1"),
        ({"floors": None}, "damaged report card"),
        ({"data": {"held_out": True}}, "episodes"),
        ({"drift": {}}, "drift|shift"),
        ({"kl": "many"}, "kl must be a number, got 'many'"),
        ({"frames": 3.5}, "frames must be an integer"),
        ({"rare_r2": float("nan")}, "rare_r2 must be a finite number"),
    ],
)
def test_what_is_no_report_card_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReportCard.from_json({**CARD.to_json(), **change})
    with pytest.raises(ValueError, match="no report card"):
        ReportCard.from_json([])


def test_faults_are_found_one_by_one() -> None:
    assert find_faults(CARD) == ()
    beaten = {**PROBE, "readers": {"paper": {**PROBE["readers"]["paper"], "pca": scored(0.5)}}}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"active_units": 1}, "COLLAPSED: 1 of 2 units are active"),
        ({"psnr": 31.0}, "BEATEN BY PCA with 2 components in PSNR, dB (31 against 31.5)"),
        ({"rare_r2": 0.303}, "R² of rare colours (0.303 against 0.303)"),
        ({"position_r2": 0.0}, "R² of positions, read linearly (0 against 0.304)"),
        ({"drift": Drift(2.0, 1.0, drifted=True)}, "DRIFT"),
        ({"foreground": 0.8}, "MOVING CAMERA: 80%"),
        ({"probe": beaten}, "the paper probe's F1 (0.41 against 0.5)"),
    ]
    for change, words in changes:
        (fault,) = find_faults(replace(CARD, **change))
        assert words in fault


def test_where_there_is_nothing_to_lose_nobody_is_beaten() -> None:
    """Without rare colours, the R² of them is 1 of an encoder and of PCA."""
    pca = replace(CARD.baselines["pca"], rare_r2=1.0)
    assert find_faults(replace(CARD, rare_r2=1.0, baselines={**CARD.baselines, "pca": pca})) == ()


def test_the_markdown_says_how_many_episodes_how_they_differ_and_when_the_ram_was_read() -> None:
    config = EncoderConfig(FrameSpec(), VAEConfig(2), {"mean": [0, 0], "std": [1, 1], "kl": [1, 1]})
    known = replace(CARD, probe={**PROBE, "created": "2026-11-23"})
    never = replace(CARD, moving_r2=0.5, probe=None, by_episode={})
    reports = Reports({"failures": ["It [fails] <often>."]}, {"A-v0": known, "B-v0": never}, ("B-v0",))
    lines = card_text("pong-v0", config, reports).splitlines()
    head, row = (
        next(line for line in lines if line.startswith(start)) for start in ("| environment", "| A-v0")
    )
    cells = dict(zip(head.split(" | "), row.split(" | "), strict=True))
    assert cells["episodes"] == "7"
    assert cells["moving-object R²"] == "0.901 (0.301)"
    assert cells["PSNR, dB"] == "41.5 (31.5)"
    text = "\n".join(lines)
    assert "| A-v0 | 0.850 (0.750 to 0.950) | 0.800 (0.800 to 0.800) |" in text
    assert "measured on 2026-11-23" in text
    assert "Measured on 2026-11-27 with fresh seeds in environments that it never saw" in text
    assert "| F1, paper reader | 0.410 | 0.310 | 0.210 | 0.110 |" in text
    assert "- It [fails] <often>." in text
    assert reports == Reports.from_json(json.loads(json.dumps(reports.to_json())))


@pytest.mark.parametrize(
    "made",
    [
        {"env_id": "ALE/Pong-v5", "env_kwargs": {"mode": 1, "full_action_space": True}},
        {"env_id": "latent_obs.scenes:Scenes/Shapes-v0", "env_kwargs": {}},
        {"env_id": "FrozenLake-v1", "env_kwargs": {"desc": ["SF", "HG"]}, "render": True},
        {
            "env_id": "minigrid:MiniGrid-Empty-6x6-v0",
            "env_kwargs": {},
            "wrapper": "minigrid.wrappers:RGBImgObsWrapper",
            "key": "image",
        },
    ],
)
def test_the_lines_of_a_card_wrap_the_environment_as_it_was_collected(made: dict[str, Any]) -> None:
    if "minigrid" in made["env_id"]:
        pytest.importorskip("minigrid")
    config = read_config(PRETRAINED / "shapes-v0")
    run = Run({}, {"frames": 100, **made}, None)
    config = replace(config, provenance=replace(config.provenance, run=run))
    lines = card_text("shapes-v0", config).partition("```python\n")[2].partition("```")[0]
    assert lines.endswith("\n".join(lines_that_wrap(config, "shapes-v0")) + "\n")
    found: dict[str, Any] = {}
    exec(lines, found)
    with found["env"] as env:
        obs, _ = env.reset(seed=0)
    assert (obs[made["key"]] if "key" in made else obs).shape == (10,)
    for name, value in made["env_kwargs"].items():
        assert env.unwrapped.spec.kwargs[name] == value


def test_the_reports_of_every_bundled_encoder_load() -> None:
    for path in PRETRAINED.glob("*/reports.json"):
        reports = Reports.from_json(json.loads(path.read_text(encoding="utf-8")))
        assert all(card.rows() for card in reports.reports.values())

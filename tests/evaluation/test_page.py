from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from latent_obs.data.folder import FramesFolder
from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder, find_faults
from latent_obs.evaluation.markup import animation, text
from latent_obs.evaluation.page import table_rows, write_card
from latent_obs.evaluation.probe import PUBLISHED
from tests.conftest import save_encoder

VOID = {"meta", "img", "source", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps what is asked of other hosts, texts and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "object", "embed", "base")
        self.attributes += attrs
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.fixture(scope="module")
def card(pong_frames: FramesFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("card")
    config = EvaluateConfig(save_encoder(folder / "tiny"), pong_frames.path, folder / "report", limit=200)
    report = evaluate_encoder(config)
    # What the probe adds, without waiting for its fits.
    scores = {"f1": 0.5, "categories": {"agent": 0.5, "small_object": 0.25}, "variables": {"ball_x": 0.25}}
    report["probe"] = {
        "env_id": "ALE/Pong-v5",
        "emulator": {"frameskip": 4},
        "frames": {"train": 700, "test": 300},
        "episodes": 9,
        "readers": {
            reader: dict.fromkeys(("encoder", "pca", "random", "majority"), scores)
            for reader in ("converged", "paper")
        },
        "ball": {"encoder": {name: {"x": 0.9, "y": 0.8} for name in ("ridge", "mlp")}, "pca": None},
        "published": PUBLISHED["pong"],
    }
    write_card(report, config)
    return report, config.out


def test_the_json_is_the_report(card: tuple[dict[str, Any], Path]) -> None:
    report, out = card
    assert json.loads((out / "card.json").read_text()) == report
    assert report["format"] == "latent_obs.report_card"


def test_every_figure_of_the_table_stands_in_the_page(card: tuple[dict[str, Any], Path]) -> None:
    report, out = card
    words = Page((out / "card.html").read_text()).words
    for row in table_rows(report):
        for cell in row:
            assert cell in words
    assert f"{report['moving_r2']:.3f}" in words
    assert "small object localization" in words


def test_the_page_asks_nothing_of_anyone(card: tuple[dict[str, Any], Path]) -> None:
    _, out = card
    source = (out / "card.html").read_text()
    page = Page(source)
    assert len(page.links) > 5
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {name for name, _ in page.attributes} & {"style", "onclick", "onload"}
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert "default-src 'none'" in source
    assert len(source) < 3_000_000


def test_the_policy_lets_the_pages_own_style_through(card: tuple[dict[str, Any], Path]) -> None:
    import base64
    import hashlib

    source = (card[1] / "card.html").read_text()
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in source


def test_what_a_random_encoder_lacks_is_said_loudly(card: tuple[dict[str, Any], Path]) -> None:
    """Its decoder is noise, so PCA wins everything."""
    report, out = card
    assert any(fault.startswith("BEATEN BY PCA") for fault in report["warnings"])
    assert text("BEATEN BY PCA with 32 components") in (out / "card.html").read_text()


def test_floors_and_encoder_are_measured_on_frames_that_fitted_none(
    card: tuple[dict[str, Any], Path], pong_frames: FramesFolder
) -> None:
    data = card[0]["data"]
    assert not data["held_out"]  # another folder than it was trained on
    assert data["episodes"] + data["floor_episodes"] == len(pong_frames.episodes())


def test_faults_are_found_one_by_one(card: tuple[dict[str, Any], Path]) -> None:
    low = {"moving_r2": 0.1, "changing_r2": 0.1, "rare_r2": 0.1, "psnr": 10.0}
    good = {**card[0], "moving_r2": 0.9, "changing_r2": 0.9, "rare_r2": 0.9, "psnr": 40.0, "active_units": 32}
    good |= {"floors": {"pca": {**low, "position_r2": 0.1}}, "probe": None, "foreground": 0.1}
    good["position_r2"] = 0.9
    good |= {"drift": {"shift": 0.0, "spread": 1.0, "drifted": False}}
    assert find_faults(good) == []
    for change, word in (
        ({"active_units": 1}, "COLLAPSED"),
        ({"psnr": 9.0}, r"PSNR \(9 against 10\)"),
        ({"position_r2": 0.0}, r"linear R² of positions \(0 against 0.1\)"),
        ({"drift": {"shift": 2.0, "spread": 1.0, "drifted": True}}, "DRIFT"),
        ({"foreground": 0.8}, "MOVING CAMERA"),
        ({"probe": {"readers": {"paper": {"encoder": {"f1": 0.3}, "pca": {"f1": 0.4}}}}}, "paper probe"),
    ):
        (fault,) = find_faults({**good, **change})
        assert re.search(word, fault)


def test_the_clip_shows_every_frame_as_it_is() -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 128, 3), dtype=np.uint8)
    clip = PIL.Image.open(io.BytesIO(animation(images)))
    assert clip.n_frames == 4  # type: ignore[attr-defined]
    for i, image in enumerate(images):
        clip.seek(i)
        np.testing.assert_array_equal(np.asarray(clip.convert("RGB")), image)


def test_a_probe_of_no_atari_game_is_refused(pong_frames: FramesFolder, tmp_path: Path) -> None:
    from latent_obs.frames import FrameSource

    encoder = save_encoder(tmp_path / "pole", source=FrameSource("CartPole-v1"))
    with pytest.raises(ValueError, match="leave --probe out"):
        evaluate_encoder(EvaluateConfig(encoder, pong_frames.path, limit=50, probe=True))

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from latent_obs.data.folder import FramesFolder
from latent_obs.evaluation.evaluate import EvaluateConfig, Evaluation, evaluate, evaluate_encoder
from latent_obs.evaluation.markup import animation, text
from latent_obs.evaluation.page import _worst, card_page, write_card
from latent_obs.evaluation.report import ReportCard, find_faults
from latent_obs.measures import Foreground, Residuals
from latent_obs.vae import VAE, reconstruct
from tests.conftest import TINY_VAE, random_tensors, save_encoder
from tests.evaluation.test_report import PROBE

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
def evaluation(pong_frames: FramesFolder, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A random encoder on Pong, with figures that are known here by hand instead of its own."""
    folder = tmp_path_factory.mktemp("card")
    found = evaluate(EvaluateConfig(save_encoder(folder / "tiny"), pong_frames.path, limit=200))
    baselines = {
        "pca": replace(found.card.baselines["pca"], moving_r2=0.876, psnr=33.3),
        "random": replace(found.card.baselines["random"], moving_r2=0.432, psnr=22.2),
    }
    card = replace(found.card, moving_r2=0.654, psnr=11.1, baselines=baselines, probe=PROBE)
    return replace(found, card=replace(card, warnings=find_faults(card)))


@pytest.fixture(scope="module")
def card(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportCard, Path]:
    out = tmp_path_factory.mktemp("page") / "report"
    write_card(evaluation, out)
    return evaluation.card, out


def test_the_json_is_the_report(card: tuple[ReportCard, Path]) -> None:
    report, out = card
    content = json.loads((out / "card.json").read_text())
    assert content["format"] == "latent_obs.report_card"
    assert content["moving_r2"] == 0.654
    assert ReportCard.from_json(content) == report


def test_figures_stand_under_the_code_that_they_are_of(card: tuple[ReportCard, Path]) -> None:
    """Figures that were set by hand, in the table's columns; the headline is the first of them."""
    source = (card[1] / "card.html").read_text()
    figures = source.split("<h2>Figures</h2>")[1].split("</table>")[0]
    table = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in figures.split("<tr>")[1:]]
    assert table[0] == ["", "encoder", "PCA", "untrained"]
    assert ["moving-object R²", "0.654", "0.876", "0.432"] in table
    assert ["PSNR, dB", "11.1", "33.3", "22.2"] in table
    assert ["probe F1, paper", "0.410", "0.310", "0.210"] in table
    assert '<p class="figure">0.654</p>' in source
    bars = re.findall(r'<text class="start"[^>]*>(.*?)</text>', source)[:6]
    assert bars == ["encoder", "0.654", "PCA", "0.876", "untrained", "0.432"]
    words = Page(source).words
    assert "agent localization" in words
    (low, high) = (min(card[0].by_episode["moving_r2"]), max(card[0].by_episode["moving_r2"]))
    assert f"({low:.3f} to {high:.3f})" in words


def test_the_page_says_whether_and_how_many_frames_were_held_out(
    evaluation: Evaluation,
) -> None:
    measured = f"200 frames from {evaluation.card.data.episodes} episodes"
    assert f"{measured} of a folder it was not trained on." in card_page(evaluation)
    held_out = replace(evaluation.card.data, held_out=True)
    page = card_page(replace(evaluation, card=replace(evaluation.card, data=held_out)))
    assert f"{measured} that were held out of its training." in page


def test_what_a_card_says_is_text_and_no_html(evaluation: Evaluation) -> None:
    odd = '<script>alert("&")</script>'
    card = replace(evaluation.card, env_id=odd, encoder=odd.replace("/", "|"), warnings=(odd,))
    page = card_page(replace(evaluation, card=card))
    assert (
        page.count("&lt;script&gt;alert(&quot;&amp;&quot;)&lt;") == 4
    )  # title, heading, environment, warning
    assert odd in Page(page).words


def test_the_worst_reconstructions_are_shown_worst_first(evaluation: Evaluation) -> None:
    """Squares of more and more pixels on black, all lost: the largest square is the worst."""
    frames = np.zeros((40, 64, 64, 3), np.uint8)
    for i, frame in enumerate(frames[:20]):
        frame[: i + 1, :20] = 200
    black = VAE.from_tensors(TINY_VAE, {n: np.zeros_like(t) for n, t in random_tensors(TINY_VAE).items()})
    black.output_bias.fill_(-20)
    residuals = Residuals.of(frames, lambda batch: reconstruct(black, batch), Foreground.of(frames))
    section = _worst(black, frames, residuals)
    png = base64.b64decode(re.findall(r"base64,([^\"]+)", section)[0])
    sheet = np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB"))
    for i in range(6):
        np.testing.assert_array_equal(sheet[:64, 66 * i : 66 * i + 64], frames[19 - i])


def test_the_page_asks_nothing_of_anyone(card: tuple[ReportCard, Path]) -> None:
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


def test_the_policy_lets_the_pages_own_style_through(card: tuple[ReportCard, Path]) -> None:
    source = (card[1] / "card.html").read_text()
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in source


def test_what_the_encoder_lacks_is_said_loudly(card: tuple[ReportCard, Path]) -> None:
    report, out = card
    fault = next(fault for fault in report.warnings if fault.startswith("BEATEN BY PCA with 32 components"))
    assert "moving-object R² (0.654 against 0.876)" in fault
    assert text(fault) in (out / "card.html").read_text()


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

"""The page as a file, and the pictures; test_visualizer_page.py opens the page in a browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import subprocess
import sys
import webbrowser
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image, ImageSequence

from latent_obs.cli import main
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import read_calibration, read_config, read_tensors, write_encoder_folder
from latent_obs.encoders.resolve import PRETRAINED, resolve
from latent_obs.frames import FrameSource, FrameSpec
from latent_obs.vae import load_vae, reconstruct, to_frames
from latent_obs.visualizer import VisualizeConfig, choose_frames, visualize_encoder
from latent_obs.visualizer.page import LEFT_OUT, PARTS, SCRIPTS, WORKER, Shown, build_page
from latent_obs.visualizer.stills import FRAME_MS
from tests.conftest import random_tensors, save_encoder

ROOT = Path(__file__).parents[2]
PONG = PRETRAINED / "pong-v0"


@pytest.fixture(scope="module")
def pong_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "pong.html"
    return visualize_encoder(VisualizeConfig("pong-v0", out=out)).read_text(encoding="utf-8")


def element(page: str, name: str) -> str:
    """Return the text of one of the page's script elements."""
    match = re.search(rf'<script id="{re.escape(name)}"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert match, name
    return match[1]


def test_the_page_holds_the_weights_in_float16_and_the_frames(pong_page: str) -> None:
    held = safetensors.numpy.load(base64.b64decode(element(pong_page, "model")))
    tensors = read_tensors(PONG, read_config(PONG))
    assert set(held) == set(tensors) - set(LEFT_OUT)
    for name, value in held.items():
        assert value.dtype == np.float16
        np.testing.assert_array_equal(value, tensors[name].astype(np.float16))
    frames = np.frombuffer(zlib.decompress(base64.b64decode(element(pong_page, "frames"))), np.uint8)
    calibration = read_calibration(PONG)
    assert calibration is not None
    about = json.loads(element(pong_page, "about"))
    assert (about["gallery"]["count"], about["episode"]["count"]) == (24, 80)
    frames = frames.reshape(-1, 64, 64, 3)
    steps, jumps = (np.abs(each[1:].astype(int) - each[:-1]).mean() for each in (frames[24:], frames[24::7]))
    assert steps < jumps, "frames that follow one another are alike"
    assert {frame.tobytes() for frame in frames[:24]} <= {frame.tobytes() for frame in calibration}
    assert about["latents"] == read_config(PONG).latents
    assert "An episode of random play of ALE/Pong-v5" in about["episode"]["from"]
    assert len(about["labels"]["dimensions"]) == 32


def test_the_page_is_small_and_names_no_other_place(pong_page: str) -> None:
    assert len(pong_page) < 3_000_000
    code = re.sub(r'<script id="(model|frames)".*?</script>', "", pong_page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=\"(?!data:|#)", code)
    assert not re.search(r"\bon\w+=\"", code), "the policy allows no inline handlers"
    assert not re.search(r"\bstyle=\"", code)
    assert "innerHTML" not in code


def test_the_policy_allows_exactly_the_scripts_of_the_page(pong_page: str) -> None:
    found = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', pong_page)
    assert found
    rules = dict(rule.split(" ", 1) for rule in html.unescape(found[1]).split("; "))
    assert rules["default-src"] == "'none'"
    assert "connect-src" not in rules, "then default-src holds"

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    scripts = [allowed(element(pong_page, name)) for name in SCRIPTS]
    assert rules["script-src"].split() == scripts
    style = re.search(r"<style>(.*?)</style>", pong_page, re.DOTALL)
    assert style
    assert rules["style-src"] == allowed(style[1])


def test_no_part_can_end_its_own_element() -> None:
    for name in (*SCRIPTS, WORKER):
        assert "</script" not in (PARTS / name).read_text().lower()
    assert "</style" not in (PARTS / "style.css").read_text().lower()


def test_hostile_names_stay_text(tmp_path: Path, frames: Any) -> None:
    config = read_config(save_encoder(tmp_path / "e"))
    evil = "</script><script>alert(1)</script><!--"
    config = replace(config, source=replace(config.source, env_id=evil))
    shown = Shown(frames(8), frames(4), evil, evil)
    page = build_page(evil, config, random_tensors(config.vae), shown)
    assert evil not in page
    about = json.loads(element(page, "about"))
    assert (about["name"], about["environment"], about["gallery"]["from"]) == (evil, evil, evil)
    assert f"<title>{html.escape(evil)}" in page


def test_an_encoder_of_four_convolutions_fits_into_a_mail(tmp_path: Path, frames: Any) -> None:
    from latent_obs.encoders.folder import VAEConfig

    folder = save_encoder(tmp_path / "deep", VAEConfig(32, (32, 64, 128, 256)))
    config = read_config(folder)
    write_encoder_folder(folder, config, random_tensors(config.vae), np.repeat(frames(8), 8, 0))
    out = visualize_encoder(VisualizeConfig(str(folder), out=tmp_path / "deep.html"))
    assert out.stat().st_size < 5_000_000


def test_a_weight_beyond_float16_is_refused(tmp_path: Path, frames: Any) -> None:
    config = read_config(save_encoder(tmp_path / "e"))
    tensors = random_tensors(config.vae)
    tensors["mean.bias"][3] = 1e5
    with pytest.raises(ValueError, match=r"mean\.bias holds values beyond 65504"):
        build_page("e", config, tensors, Shown(frames(8), frames(4), "", ""))


def test_frames_come_from_the_folder(pong_frames: FramesFolder) -> None:
    shown = choose_frames(resolve("pong-v0"), pong_frames.path)
    recorded = pong_frames.load()
    assert shown.gallery.shape == (24, 64, 64, 3)
    assert {frame.tobytes() for frame in shown.gallery} <= {frame.tobytes() for frame in recorded}
    assert len({frame.tobytes() for frame in shown.gallery}) >= 20
    starts = [i for i in range(len(recorded) - 79) if (recorded[i : i + 80] == shown.episode).all()]
    assert len(starts) == 1
    assert "ALE/Pong-v5" in shown.gallery_from


def test_what_cannot_be_shown_is_said_before_anything_is_written(
    tmp_path: Path, encoder: Path, pong_frames: FramesFolder
) -> None:
    out = tmp_path / "x.html"
    with pytest.raises(ValueError, match=r"no calibration frames to show\. Name a frames folder: --frames"):
        visualize_encoder(VisualizeConfig(str(encoder), out=out))
    cropped = save_encoder(tmp_path / "cropped", frame_spec=FrameSpec((0, 50, 0, 50)))
    with pytest.raises(ValueError, match="Collect frames for it with the same crop"):
        visualize_encoder(VisualizeConfig(str(cropped), pong_frames.path, out))
    with pytest.raises(FileNotFoundError, match="no frames folder"):
        visualize_encoder(VisualizeConfig("pong-v0", tmp_path / "nowhere", out))
    assert not out.exists()


def test_the_command_writes_the_page_and_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", shown.append)
    monkeypatch.chdir(tmp_path)
    assert main(["visualize", "pong-v0"]) == 0
    assert shown == []
    assert main(["visualize", "pong-v0", "--out", "new/page.html", "--open"]) == 0
    assert shown == [(tmp_path / "new" / "page.html").as_uri()]
    said = capsys.readouterr().out
    assert "pong-v0.html: 1." in said
    assert "new/page.html: 1." in said


def test_an_unknown_encoder_brings_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "latent_obs", "visualize", "pong-v99"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 1
    assert run.stderr.startswith("error: There is no encoder 'pong-v99'")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("picture", ["traversals", "interpolation", "episode"])
def test_pictures_show_what_torch_decodes(picture: Any, tmp_path: Path, pong_frames: FramesFolder) -> None:
    out = visualize_encoder(
        VisualizeConfig("pong-v0", pong_frames.path, tmp_path / f"{picture}.x", picture=picture)
    )
    shown = choose_frames(resolve("pong-v0"), pong_frames.path)
    vae, _ = load_vae("pong-v0")
    if picture == "traversals":
        image = cv2.imread(str(out))
        assert image is not None
        assert image.shape[1] > 9 * 64
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    elif picture == "interpolation":
        image = np.array(Image.open(out))
        assert image.shape == (192, 11 * 192 + 10 * 6, 3)
        tiles = [image[::3, i * 198 : i * 198 + 192 : 3] for i in range(11)]
        ends = vae(torch.from_numpy(np.stack([shown.gallery[0], shown.gallery[-1]])))
        wanted = [to_frames(vae.decode(z[None]))[0] for z in (ends[0], ends.mean(0), ends[1])]
        for tile, frame in zip(
            [tiles[0], tiles[1], tiles[5], tiles[9], tiles[10]],
            [shown.gallery[0], *wanted, shown.gallery[-1]],
            strict=True,
        ):
            assert np.abs(tile.astype(int) - frame).max() <= 1
    else:
        with Image.open(out) as gif:
            assert gif.format == "GIF"
            images = []
            for shot in ImageSequence.Iterator(gif):  # one that stands still is stored once, for longer
                image = np.array(shot.convert("RGB")).astype(int)
                images += [image] * round(shot.info["duration"] / FRAME_MS)
            pair = zip(images, shown.episode, reconstruct(vae, shown.episode), strict=True)
            for image, frame, decoded in pair:
                assert image.shape == (192, 390, 3)
                # 256 colours for all: small errors, and none that loses ball or paddle.
                for half, true in ((image[::3, :192:3], frame), (image[::3, 198::3], decoded)):
                    assert np.abs(half - true).mean() < 3
                    assert np.abs(half - true).max() < 60


def test_an_environment_that_fails_leaves_the_page_without_an_episode(
    tmp_path: Path, frames: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says why; pictures that show no episode do without the environment."""
    config = read_config(save_encoder(tmp_path / "e", source=FrameSource("CartPole-v1")))
    write_encoder_folder(tmp_path / "e", config, random_tensors(config.vae), frames(8))

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no display")

    monkeypatch.setattr("gymnasium.make", broken)
    encoder, out = str(tmp_path / "e"), tmp_path / "out"
    with pytest.warns(UserWarning, match="CartPole-v1 cannot be played here.*no display"):
        visualize_encoder(VisualizeConfig(encoder, out=out))
    assert json.loads(element(out.read_text(encoding="utf-8"), "about"))["episode"]["count"] == 0
    for picture in ("traversals", "interpolation"):
        assert visualize_encoder(VisualizeConfig(encoder, out=out, picture=picture)) == out


def test_a_picture_of_an_episode_that_is_not_there_names_the_cure(tmp_path: Path) -> None:
    """The frames of general-v0 come from many environments."""
    with pytest.raises(ValueError, match=r"no episode of general-v0 to draw.*--frames FOLDER"):
        visualize_encoder(VisualizeConfig("general-v0", out=tmp_path / "x.gif", picture="episode"))


def test_the_example_page_is_what_the_code_makes_today() -> None:
    """Everything but its data: made again when a part of the page changes."""
    page = (ROOT / "examples" / "vae-visualizer.html").read_text(encoding="utf-8")
    for name in (*SCRIPTS, WORKER):
        assert element(page, name) == (PARTS / name).read_text(encoding="utf-8"), f"{name} changed: {REMAKE}"
    assert (PARTS / "style.css").read_text(encoding="utf-8") in page, REMAKE
    frame_of_page = re.sub(r"{{ \w+ }}|\s+", "", (PARTS / "page.html").read_text(encoding="utf-8"))
    assert len(page) < 3_000_000
    assert re.sub(r"\s+", "", page).startswith(frame_of_page[:60])
    body = (PARTS / "page.html").read_text(encoding="utf-8")
    body = body[body.index("<body") : body.index("{{ about }}")]
    assert body in page, REMAKE
    assert json.loads(element(page, "about"))["episode"]["count"] == 80


REMAKE = "Make it again: latent-obs visualize shapes-v0 --out examples/vae-visualizer.html"

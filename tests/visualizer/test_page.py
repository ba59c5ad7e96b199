"""The page in a real browser: Debian's Chromium, opened from disk. Without Chromium these tests fail."""

from __future__ import annotations

import base64
import json
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.numpy
import torch
from playwright.sync_api import Browser, Page, expect, sync_playwright

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import (
    EncoderConfig,
    VAEConfig,
    read_calibration,
    read_config,
    read_tensors,
    write_encoder_folder,
)
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.evaluation.labels import Explained, Label, Labels, read_labels, write_labels
from latent_obs.frames import FrameSpec, preprocess
from latent_obs.training.config import TrainConfig
from latent_obs.training.train import train_vae
from latent_obs.vae import VAE, load_vae, to_frames
from latent_obs.visualizer import VisualizeConfig, visualize_encoder
from latent_obs.visualizer.page import Shown, build_page
from tests.conftest import random_tensors

PONG = PRETRAINED / "pong-v0"
# Steps to the next position of a slider, and where its travel ends, in standard deviations.
SLIDER_STEP, SLIDER_END = 0.05, 3
DEEP = (16, 32, 64, 128)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    assert chromium, "The visualizer is tested in a real browser: apt-get install chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def river_frames(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    """A few hundred frames of a game whose whole picture moves, so that a VAE learns it soon."""
    out = tmp_path_factory.mktemp("river") / "frames"
    short: dict[str, Any] = {"shard_rows": 100, "env_kwargs": {"max_episode_steps": 100}}
    config = CollectConfig("ALE/Riverraid-v5", out, frames=400, workers=1, policy="sticky", **short)
    return collect_frames(config, progress=False)


@pytest.fixture(scope="session")
def deep(river_frames: FramesFolder) -> Path:
    """An encoder of four convolutions, trained until all of its dimensions are active."""
    folder = Path(river_frames.path).parent / "deep"
    settings: dict[str, Any] = {"steps": 150, "batch_size": 16, "beta": 0.1, "learning_rate": 2e-3}
    train_vae(TrainConfig(river_frames.path, folder, channels=DEEP, **settings), progress=False)
    return folder


@pytest.fixture(scope="session")
def pages(
    deep: Path,
    pong_frames: FramesFolder,
    river_frames: FramesFolder,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """The page of either encoder, with frames."""
    out = tmp_path_factory.mktemp("pages")
    return {
        name: visualize_encoder(VisualizeConfig(str(ref), frames.path, out / f"{name}.html"))
        for name, ref, frames in (("three", "pong-v0", pong_frames), ("four", deep, river_frames))
    }


class Opened:
    """A page with what it asked for and complained about."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def goto(self, path: Path, fragment: str = "") -> Page:
        self.page.goto(path.resolve().as_uri() + fragment)
        settle(self.page)
        return self.page


@pytest.fixture
def opened(browser: Browser) -> Iterator[Opened]:
    """A page that must neither complain nor ask for anything outside itself."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened = Opened(context.new_page())
    yield opened
    context.close()
    assert opened.complaints == []
    assert {url.split(":")[0] for url in opened.requests} <= {"file", "blob", "data"}
    assert sum(url.startswith("file:") for url in opened.requests) == 1


@pytest.fixture
def page(opened: Opened, pages: dict[str, Path]) -> Page:
    return opened.goto(pages["three"])


def wait(page: Page, condition: str) -> None:
    """Wait for a condition; Playwright's own way needs eval, which the page's policy forbids."""
    for _ in range(1500):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"It never held that {condition}")


def settle(page: Page) -> None:
    """Wait until the output is drawn."""
    wait(page, "document.body.ariaBusy === 'false' && scheduled === 0")


def read(page: Page, array: str, dtype: Any = np.uint8) -> Any:
    """Bring a typed array here; as a list of numbers it would take long."""
    text = page.evaluate(
        f"""() => {{
            const array = {array};
            const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
            let text = "";
            for (let i = 0; i < bytes.length; i += 8192) {{
                text += String.fromCharCode(...bytes.subarray(i, i + 8192));
            }}
            return btoa(text);
        }}"""
    )
    return np.frombuffer(base64.b64decode(text), dtype).copy()


def as_text(array: Any) -> str:
    """Turn an array into what `fromBase64` reads in the page."""
    return base64.b64encode(array.tobytes()).decode()


def pixels(page: Page, selector: str, side: int = 64) -> Any:
    """Read a square canvas."""
    canvas = f"document.querySelector({json.dumps(selector)})"
    assert page.evaluate(f"[{canvas}.width, {canvas}.height]") == [side, side]
    rgba = read(page, f"{canvas}.getContext('2d').getImageData(0, 0, {side}, {side}).data")
    return rgba.reshape(side, side, 4)[..., :3]


def latent(page: Page) -> Any:
    return read(page, "view.latent", np.float32)


def frames_of(page: Page, frames: str) -> Any:
    """Read a list of frames."""
    return read(page, joined(frames)).reshape(-1, 64, 64, 3)


def joined(arrays: str) -> str:
    """Put typed arrays one behind the other, in the page."""
    return f"""(() => {{
        const all = {arrays};
        const out = new all[0].constructor(all.length * all[0].length);
        all.forEach((array, i) => out.set(array, i * array.length));
        return out;
    }})()"""


def half_vae(folder: Path) -> VAE:
    """The VAE with its weights rounded to float16, as the page holds them."""
    vae, config = load_vae(folder)
    rounded = {name: value.astype(np.float16).astype(np.float32) for name, value in vae.tensors().items()}
    return VAE.from_tensors(config.vae, rounded)


@pytest.mark.parametrize("depth", ["three", "four"])
def test_encode_and_decode_equal_torch(
    depth: str, opened: Opened, pages: dict[str, Path], deep: Path, request: Any
) -> None:
    page = opened.goto(pages[depth])
    folder = PONG if depth == "three" else deep
    recorded: FramesFolder = request.getfixturevalue("pong_frames" if depth == "three" else "river_frames")
    frames = recorded.sample(16, seed=3)
    page.evaluate("text => { window.given = fromBase64(text); }", as_text(frames))
    each = "Array.from({ length: 16 }, (_, i) => given.subarray(i * 12288, (i + 1) * 12288))"
    latents = read(page, joined(f"{each}.map(f => view.encoder.network.encode(f))"), np.float32).reshape(
        16, 32
    )
    page.evaluate("text => { window.latents = new Float32Array(fromBase64(text).buffer); }", as_text(latents))
    each = "Array.from({ length: 16 }, (_, i) => latents.subarray(i * 32, (i + 1) * 32))"
    images = read(page, joined(f"{each}.map(z => view.encoder.network.decode(z))")).reshape(16, 64, 64, 4)
    given = torch.from_numpy(frames)

    exact = half_vae(folder)
    wanted = exact(given).numpy()
    assert wanted.std(0).max() > 0.1, "a test of constant outputs tests nothing"
    np.testing.assert_allclose(latents, wanted, atol=1e-4, rtol=1e-4)
    difference = images[..., :3].astype(int) - to_frames(exact.decode(torch.from_numpy(latents)))
    assert np.abs(difference).max() <= 1
    assert (difference != 0).mean() < 1e-3, "only a pixel on the border between two levels may differ"
    assert (images[..., 3] == 255).all()
    # Rounding to float16 itself costs little.
    full, config = load_vae(folder)
    error = np.sqrt(np.square(latents - full(given).numpy()).mean(0))
    assert (error <= 0.01 * np.maximum(config.latents["std"], 0.1)).all()
    moved = images[..., :3].astype(int) - to_frames(full.decode(torch.from_numpy(latents)))
    assert np.abs(moved).mean() < 0.3


def test_float16_is_read_as_numpy_reads_it(page: Page) -> None:
    """Also where the browser has no Float16Array."""
    halves = np.arange(65536, dtype=np.uint16)
    wanted = halves.view(np.float16).astype(np.float32)
    ours = read(page, "float16ToFloat(Uint16Array.from({ length: 65536 }, (_, i) => i))", np.float32)
    np.testing.assert_array_equal(ours, wanted)
    b = (np.arange(-300, 300, dtype=np.float32) / 7).view(np.uint32) >> 16
    page.evaluate(
        "text => { window.halves = new Uint16Array(fromBase64(text).buffer); }", as_text(b.astype(np.uint16))
    )
    np.testing.assert_array_equal(
        read(page, "bfloat16ToFloat(halves)", np.float32), (b << 16).astype(np.uint32).view(np.float32)
    )


def test_every_depth_and_odd_widths_equal_torch(page: Page) -> None:
    """One to six convolutions, in widths that fill no pair of channels."""
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    for channels in (
        (5,),
        (4, 7),
        (3, 5, 7),
        (8, 6, 5, 3),
        (4, 4, 4, 4, 5),
        (4, 4, 4, 4, 4, 5),
        (32, 64, 128, 256),
    ):
        config = VAEConfig(3, channels)
        tensors = random_tensors(config)
        vae = VAE.from_tensors(config, tensors)
        wanted = vae(torch.from_numpy(frame))
        result = page.evaluate(
            """([model, frame]) => {
                const network = new Network(readSafetensors(fromBase64(model)));
                const latent = network.encode(fromBase64(frame));
                return [Array.from(latent), Array.from(network.decode(latent))];
            }""",
            [base64.b64encode(safetensors.numpy.save(tensors)).decode(), as_text(frame)],
        )
        np.testing.assert_allclose(result[0], wanted[0].numpy(), atol=1e-4, rtol=1e-4)
        image = np.array(result[1]).reshape(64, 64, 4)[..., :3]
        assert np.abs(image - to_frames(vae.decode(wanted))[0].astype(int)).max() <= 1
        assert image.std() > 5


@pytest.mark.parametrize(
    ("shape", "crop"),
    [
        ((210, 160), None),
        ((210, 160), (34, 194, 0, 160)),
        ((96, 96), None),
        ((128, 128), None),
        ((64, 64), None),
        ((64, 64), (0, 40, 0, 40)),
        ((101, 67), None),
        ((40, 50), None),
        ((40, 200), None),
        ((1, 1), None),
        ((720, 1280), (0, 720, 280, 1000)),
    ],
)
def test_an_image_becomes_a_frame_as_in_python(
    shape: tuple[int, int], crop: Any, page: Page, pong_frames: FramesFolder
) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    rgba = np.dstack([image, np.full(shape, 255, np.uint8)])
    run = """([data, height, width, crop]) =>
        Array.from(toFrame({ data: fromBase64(data), width, height }, crop))"""
    ours = np.array(page.evaluate(run, [as_text(rgba), *shape, crop])).reshape(64, 64, 3)
    # An image of 64x64 is a frame already.
    spec = FrameSpec(None if shape == (64, 64) else crop)
    theirs = preprocess(image, spec)
    assert np.abs(ours - theirs.astype(int)).max() <= 1
    assert (ours == theirs).mean() > 0.9


def test_a_page_shows_a_frame_and_its_reconstruction(page: Page) -> None:
    frame = read(page, "frames.gallery[0]").reshape(64, 64, 3)
    assert (pixels(page, "#source") == frame).all()
    vae = half_vae(PONG)
    wanted = to_frames(vae.decode(vae(torch.from_numpy(frame[None]))))[0].astype(int)
    for canvas in ("#reconstruction", "#output"):
        assert np.abs(pixels(page, canvas) - wanted).max() <= 1
    assert page.locator("#gallery button").count() >= 8
    mse = np.square(wanted - frame).mean()
    said = page.locator("#reconstruction-note").inner_text()
    assert float(said.removesuffix(" dB")) == pytest.approx(10 * np.log10(255**2 / mse), abs=0.2)


def test_rows_are_sorted_by_kl_and_inactive_ones_folded(
    opened: Opened, tmp_path: Path, pong_frames: FramesFolder
) -> None:
    vae = VAEConfig(6, (4, 8))
    kl = [0.5, 3.0, 0.001, 2.0, 0.002, 4.0]
    std = [0.5, 1.0, 0.05, 0.9, 0.01, 1.2]
    folder = tmp_path / "<b>six"
    config = EncoderConfig(FrameSpec(), vae, {"mean": [0.1] * 6, "std": std, "kl": kl})
    write_encoder_folder(folder, config, random_tensors(vae), pong_frames.load(limit=64))
    page = opened.goto(visualize_encoder(VisualizeConfig(str(folder), out=tmp_path / "six.html")))
    dims = "rows => rows.map(r => Number(r.dataset.dim))"
    assert page.eval_on_selector_all("#active .row", dims) == [5, 1, 3, 0]
    assert page.eval_on_selector_all("#inactive .row", dims) == [4, 2]
    assert page.locator("#inactive summary").inner_text() == "2 inactive dimensions"
    assert not page.locator("#inactive .row").first.is_visible()
    page.locator("#inactive summary").click()
    expect(page.locator("#inactive .row").first).to_be_visible()
    bars = page.eval_on_selector_all(
        "#active .bar span", "bars => bars.map(b => b.getBoundingClientRect().width)"
    )
    np.testing.assert_allclose(np.array(bars) / bars[0], [1, 0.75, 0.5, 0.125], atol=0.02)
    assert page.locator("#active .kl").all_inner_texts() == ["4.00", "3.00", "2.00", "0.50"]
    # A name is text, whatever it holds.
    assert page.locator("h1").inner_text() == "<b>six"
    assert page.title().startswith("<b>six")


def test_a_slider_moves_its_dimension_with_the_keyboard(page: Page) -> None:
    before, start = pixels(page, "#output"), latent(page)
    row = page.locator("#active .row").first
    dim = int(row.get_attribute("data-dim") or "")
    std = read_config(PONG).latents["std"][dim]
    slider = row.get_by_role("slider", name=f"z{dim}")
    slider.focus()
    at = float(slider.input_value())
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    settle(page)
    assert float(slider.input_value()) == pytest.approx(at + 3 * SLIDER_STEP, abs=1e-6)
    moved = latent(page) - start
    assert moved[dim] == pytest.approx(3 * SLIDER_STEP * std, abs=0.6 * SLIDER_STEP * std)
    assert np.count_nonzero(moved) == 1
    page.keyboard.press("End")
    settle(page)
    assert latent(page)[dim] == pytest.approx(
        read_config(PONG).latents["mean"][dim] + SLIDER_END * std, abs=1e-4
    )
    assert (pixels(page, "#output") != before).any()
    vae = half_vae(PONG)
    wanted = to_frames(vae.decode(torch.from_numpy(latent(page))[None]))[0].astype(int)
    assert np.abs(pixels(page, "#output") - wanted).max() <= 1
    number = row.get_by_role("spinbutton", name=f"Value of z{dim}")
    assert float(number.input_value()) == pytest.approx(latent(page)[dim], abs=0.006)
    number.fill("0.5")
    number.press("Enter")
    settle(page)
    assert latent(page)[dim] == 0.5
    assert "standard deviations" in (slider.get_attribute("aria-valuetext") or "")


def test_dragging_a_slider_draws_once_for_each_animation_frame(page: Page) -> None:
    page.evaluate("""() => {
        window.drawn = 0; window.inputs = 0; window.ticks = 0;
        const decode = view.encoder.network.decode;
        view.encoder.network.decode = function (z) { window.drawn++; return decode.call(this, z); };
        addEventListener("input", () => window.inputs++, true);
        const tick = () => { window.ticks++; requestAnimationFrame(tick); };
        requestAnimationFrame(tick);
    }""")
    before = pixels(page, "#output")
    slider = page.locator("#active .row input[type=range]").first
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, y)
    page.mouse.down()
    for step in range(1, 41):
        page.mouse.move(box["x"] + box["width"] * (0.5 + step / 100), y)
    page.mouse.up()
    settle(page)
    counts = page.evaluate("[window.drawn, window.inputs, window.ticks]")
    assert counts[1] >= 10, "the browser must have sent many changes"
    assert 1 <= counts[0] <= counts[2] + 1
    assert (pixels(page, "#output") != before).any()


def test_strips_show_the_traversal_and_are_clickable(page: Page) -> None:
    row = page.locator("#active .row").first
    dim = int(row.get_attribute("data-dim") or "")
    config = read_config(PONG)
    row.scroll_into_view_if_needed()  # strips that nobody sees are not drawn
    wait(page, "rows.rows[0].drawn && !rows.busy")
    moved = np.repeat(latent(page)[None], 7, 0)
    moved[:, dim] = config.latents["mean"][dim] + np.arange(-3, 4) * config.latents["std"][dim]
    wanted = to_frames(half_vae(PONG).decode(torch.from_numpy(moved))).astype(int)
    change = np.ptp(wanted, axis=0).max(-1)
    left, top, side = (page.evaluate(f"rows.rows[0].region.{name}") for name in ("left", "top", "side"))
    for i in range(7):
        tile = f"#active .row:first-child .strip button:nth-child({i + 1}) canvas"
        part = wanted[i, top : top + side, left : left + side]
        assert np.abs(pixels(page, tile, side) - part).max() <= 1
    # What the strip leaves out changes little.
    outside = change.copy()
    outside[top : top + side, left : left + side] = 0
    assert outside.max() <= 0.25 * max(change.max(), 32)
    # The picture of changes is brightest where the strip differs most.
    shown = pixels(page, "#active .row:first-child .change").astype(int)
    warm = shown[..., 0] - shown[..., 2]
    inside = np.ones((64, 64), bool)
    if side < 64:  # the frame that says what the strip zooms into
        inside[top : top + side, left : left + side] = False
        inside[top + 1 : top + side - 1, left + 1 : left + side - 1] = True
    assert np.corrcoef(warm[inside], change[inside])[0, 1] > 0.95
    row.get_by_role("button", name=f"z{dim} at +2 standard deviations").click()
    settle(page)
    assert latent(page)[dim] == pytest.approx(moved[5, dim], abs=1e-5)
    assert np.abs(pixels(page, "#output") - wanted[5]).max() <= 1


def test_the_worker_keeps_up_with_another_source(page: Page) -> None:
    """After another frame is chosen the visible strips are of that frame."""
    page.locator("#active .row").first.scroll_into_view_if_needed()
    wait(page, "rows.rows[0].drawn && !rows.busy")
    page.get_by_role("button", name="Frame 5", exact=True).click()
    page.locator("#active .row").first.scroll_into_view_if_needed()
    wait(page, "!rows.isStale(rows.rows[0]) && !rows.busy && rows.rows[0].drawn[5] === view.latent[5]")
    middle = "#active .row:first-child .strip button:nth-child(4) canvas"
    dim = page.evaluate("rows.rows[0].dim")
    left, top, side = (page.evaluate(f"rows.rows[0].region.{name}") for name in ("left", "top", "side"))
    wanted = latent(page)
    wanted[dim] = read_config(PONG).latents["mean"][dim]
    image = to_frames(half_vae(PONG).decode(torch.from_numpy(wanted[None])))[0].astype(int)
    part = image[top : top + side, left : left + side]
    assert np.abs(pixels(page, middle, side) - part).max() <= 1


def test_all_dimensions_can_be_set_at_once(page: Page) -> None:
    config, start = read_config(PONG), latent(page)

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()
        settle(page)

    press("Zero")
    assert (latent(page) == 0).all()
    press("Data mean")
    np.testing.assert_allclose(latent(page), config.latents["mean"], rtol=1e-6)
    press("Source")
    assert (latent(page) == start).all()
    samples: dict[str, list[Any]] = {"Sample prior N(0, I)": [], "Sample data": []}
    for name, drawn in samples.items():
        for _ in range(12):
            press(name)
            drawn.append(latent(page))
    prior, data = (np.array(drawn) for drawn in samples.values())
    assert abs(prior.mean()) < 0.2
    assert prior.std() == pytest.approx(1, abs=0.15)
    scaled = (data - config.latents["mean"]) / config.latents["std"]
    assert abs(scaled.mean()) < 0.2
    assert scaled.std() == pytest.approx(1, abs=0.15)
    assert not (pixels(page, "#output") == pixels(page, "#reconstruction")).all()


def test_interpolation_goes_from_one_frame_to_the_other_and_plays(page: Page) -> None:
    page.get_by_role("button", name="Frame 3", exact=True).click()
    page.get_by_role("button", name="A: put the source frame here").click()
    first = latent(page)
    page.get_by_role("button", name="Frame 9", exact=True).click()
    page.get_by_role("button", name="B: put the source frame here").click()
    last = latent(page)
    slider = page.get_by_role("slider", name="Interpolation from A to B")
    for position, share in ((0, 0), (15, 0.25), (60, 1)):
        slider.fill(str(position))
        settle(page)
        np.testing.assert_allclose(latent(page), (1 - share) * first + share * last, atol=1e-5)
    slider.fill("10")
    page.get_by_role("button", name="Interpolate").click()
    wait(page, "Number($('interpolation').value) >= 20")
    page.get_by_role("button", name="Pause").click()
    settle(page)
    share = float(slider.input_value()) / 60
    np.testing.assert_allclose(latent(page), (1 - share) * first + share * last, atol=1e-5)


def test_live_mode_plays_the_episode_through_the_vae(page: Page, pong_frames: FramesFolder) -> None:
    page.get_by_role("button", name="Play episode").click()
    wait(page, "Number($('episode').value) >= 12")
    page.get_by_role("button", name="Pause").click()
    settle(page)
    position = int(page.get_by_role("slider", name="Frame of the episode").input_value())
    shown = pixels(page, "#source")
    episode = frames_of(page, "frames.episode")
    assert (shown == episode[position]).all()
    np.testing.assert_allclose(latent(page), half_vae(PONG)(torch.from_numpy(shown[None]))[0], atol=1e-4)
    row = page.locator("#active .row").first
    dim = int(row.get_attribute("data-dim") or "")
    assert float(row.locator("input[type=number]").input_value()) == pytest.approx(
        latent(page)[dim], abs=0.006
    )
    # The episode is a stretch of one that was recorded.
    recorded = pong_frames.load()
    (start,) = [i for i in range(len(recorded) - 79) if (recorded[i : i + 80] == episode).all()]
    assert start >= 0
    assert len(episode) == 80


def test_a_single_frame_is_not_played(opened: Opened, tmp_path: Path, frames: Any) -> None:
    config = read_config(PONG)
    shown = Shown(frames(8), frames(1), "", "")
    path = tmp_path / "single.html"
    path.write_text(build_page("single", config, read_tensors(PONG, config), shown), encoding="utf-8")
    page = opened.goto(path)
    assert page.evaluate("frames.episode.length") == 1
    expect(page.get_by_role("button", name="Play episode")).to_be_hidden()


def test_the_address_holds_the_view(opened: Opened, browser: Browser, pages: dict[str, Path]) -> None:
    page = opened.goto(pages["three"])
    page.get_by_role("button", name="Frame 7", exact=True).click()
    wait(page, "location.hash === '#frame=7'")
    page.get_by_role("button", name="Sample data").click()
    wait(page, "location.hash.includes('z=')")
    address, shared = page.evaluate("location.hash"), latent(page)
    assert len(address) < 64
    other = Opened(browser.new_context().new_page())
    again = other.goto(pages["three"], address)
    assert again.locator("#source-note").inner_text() == "frame 7"
    std = np.array(read_config(PONG).latents["std"])
    assert (np.abs(latent(again) - shared) <= std / 16 / 2 + 1e-5).all()
    again.evaluate("location.hash = '#frame=2'")
    wait(again, "view.source.index === 1 && view.latent === view.source.latent")
    for nonsense in ("#frame=999", "#frame=-1&z=%%%", "#z=AAAA", "#frame=<img>&z=!!", "#constructor"):
        again.evaluate("hash => location.hash = hash", nonsense)
        again.wait_for_timeout(30)
        assert again.evaluate("view.source.index") == 0
        assert np.isfinite(latent(again)).all()
    assert other.complaints == []
    again.context.close()


def test_an_own_image_is_encoded(page: Page, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (210, 160, 3), dtype=np.uint8)
    path = tmp_path / "<i>mine</i>.png"
    cv2.imwrite(str(tmp_path / "mine.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    page.set_input_files(
        "#files",
        {"name": path.name[:20], "mimeType": "image/png", "buffer": (tmp_path / "mine.png").read_bytes()},
    )
    expect(page.locator("#message")).to_contain_text("Encoded")
    settle(page)
    frame = preprocess(image, FrameSpec())
    assert np.abs(pixels(page, "#source").astype(int) - frame).max() <= 1
    wanted = half_vae(PONG)(torch.from_numpy(pixels(page, "#source")[None]))[0]
    np.testing.assert_allclose(latent(page), wanted, atol=1e-4)
    assert page.locator("#gallery [aria-pressed=true]").count() == 0
    assert page.locator("#source i").count() == 0


def test_another_encoder_takes_over(page: Page, deep: Path) -> None:
    """Three convolutions to four: with its config and frames, then the weights alone."""
    assert read_config(deep).vae.channels == DEEP
    page.set_input_files(
        "#files", [deep / name for name in ("model.safetensors", "config.json", "calibration.png")]
    )
    expect(page.locator("#message")).to_contain_text("Opened")
    settle(page)
    assert "convolutions 16-32-64-128" in page.locator("#summary").inner_text()
    config = read_config(deep)
    order = np.argsort(-np.array(config.latents["kl"]), kind="stable")
    shown = page.eval_on_selector_all(".rows .row", "rows => rows.map(r => Number(r.dataset.dim))")
    active = [d for d in order if config.latents["std"][d] ** 2 > 0.01]
    assert shown[: len(active)] == active
    calibration = read_calibration(deep)
    assert calibration is not None
    assert (pixels(page, "#source") == calibration[0]).all()
    wanted = load_vae(deep)[0](torch.from_numpy(calibration[:1]))[0]
    np.testing.assert_allclose(latent(page), wanted, atol=1e-3)

    page.get_by_role("button", name="Frame 4", exact=True).click()
    page.get_by_role("button", name="Sample data").click()
    settle(page)
    frame = pixels(page, "#source")
    page.set_input_files("#files", deep / "model.safetensors")
    expect(page.locator("#statistics-note")).to_contain_text("Statistics are over the frames in this page")
    wait(page, "view.latent === view.source.latent")
    assert (pixels(page, "#source") == frame).all(), "the frame stays, a latent of another encoder does not"
    vae = load_vae(deep)[0]
    images = torch.from_numpy(frames_of(page, "[...frames.gallery, ...frames.episode]"))
    mean, log_variance = (part.numpy() for part in vae.encode(images))
    latents = page.evaluate("view.encoder.latents")
    np.testing.assert_allclose(latents["mean"], mean.mean(0), atol=1e-3)
    np.testing.assert_allclose(latents["std"], mean.std(0), atol=1e-3)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    np.testing.assert_allclose(latents["kl"], kl.mean(0), atol=1e-2, rtol=1e-3)


def test_of_two_encoders_opened_at_once_the_last_is_shown(page: Page, deep: Path) -> None:
    """Weights alone have to be measured first, which takes longer than to open a whole folder."""
    breakout = PRETRAINED / "breakout-v0"
    page.set_input_files("#files", deep / "model.safetensors")
    page.set_input_files("#files", [breakout / name for name in ("config.json", "model.safetensors")])
    expect(page.locator("#message")).to_contain_text("Opened")
    wait(page, "assistant.waiting.size === 0")
    settle(page)
    assert page.locator("h1").inner_text() == "breakout-v0"
    assert page.locator("#statistics-note").inner_text() == ""


def test_an_encoder_that_another_replaces_while_it_is_drawn_gets_no_rows(page: Page) -> None:
    """Its rows would read dimensions that the other's latents lack."""
    page.evaluate("globalThis.before = view.encoder")
    shapes = PRETRAINED / "shapes-v0"
    page.set_input_files("#files", [shapes / name for name in ("config.json", "model.safetensors")])
    expect(page.locator("#message")).to_contain_text("Opened")
    assert len(latent(page)) < read_config(PONG).vae.latent_dim
    both = "Promise.all([before, view.encoder].map((encoder) => useEncoder(encoder, '', restore)))"
    page.evaluate(f"async () => {{ await {both} }}")
    assert page.locator("h1").inner_text() == "shapes-v0"
    assert page.locator("#dimensions-panel .row[data-dim]").count() == len(latent(page))


def header(value: Any) -> bytes:
    text = json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


GOOD = (PONG / "model.safetensors").read_bytes()


def changed(name: str, value: Any) -> bytes:
    tensors = {**safetensors.numpy.load(GOOD), name: value}
    return safetensors.numpy.save({key: tensor for key, tensor in tensors.items() if tensor is not None})


HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("m.safetensors", lambda: b"", "too short"),
    "truncated": ("m.safetensors", lambda: GOOD[: len(GOOD) // 2], "lies outside the file"),
    "header too long": ("m.safetensors", lambda: b"\xff" * 8 + GOOD[8:], "header does not fit"),
    "huge header": (
        "m.safetensors", lambda: struct.pack("<Q", 2_000_000) + b" " * 2_000_100, "header does not fit"
    ),
    "no JSON": ("m.safetensors", lambda: struct.pack("<Q", 8) + b"\x80nonsens", "not JSON"),
    "null": ("m.safetensors", lambda: header(None), "not an object"),
    "list": ("m.safetensors", lambda: header([1]), "not an object"),
    "prototype": (
        "m.safetensors",
        lambda: header({"__proto__": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
        "not the model.safetensors of an encoder",
    ),
    "type that every object has": (
        "m.safetensors",
        lambda: header({"x": {"dtype": "constructor", "shape": [1], "data_offsets": [0, 4]}}) + b"0000",
        "not floating point",
    ),
    "negative offsets": (
        "m.safetensors",
        lambda: header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}) + b"0000",
        "no valid shape or place",
    ),
    "size that overflows": (
        "m.safetensors",
        lambda: header({"x": {"dtype": "F32", "shape": [2**52, 2**52], "data_offsets": [0, 4]}}) + b"0000",
        "does not fit its shape",
    ),
    "HTML in a name": (
        "m.safetensors",
        lambda: header({"<img src=x onerror=alert(1)>": {"dtype": "I8"}}),
        "<img src=x onerror=alert(1)>",
    ),
    "NaN": (
        "m.safetensors", lambda: changed("mean.bias", np.full(32, np.nan, np.float32)), "not finite"
    ),
    "wrong shape": (
        "m.safetensors", lambda: changed("output_bias", np.zeros(3, np.float32)), "must have the shape"
    ),
    "missing tensor": ("m.safetensors", lambda: changed("decoder.conv1.weight", None), "got none"),
    "other model": (
        "m.safetensors",
        lambda: safetensors.numpy.save({"weight": np.zeros(3, np.float32)}),
        "not the model.safetensors of an encoder",
    ),
    "no image": ("picture.png", lambda: b"<svg onload=alert(1)>", "cannot read this image"),
    "empty image": ("picture.png", lambda: b"", "cannot read this image"),
    "20 MB of noise": ("picture.png", lambda: GOOD * 9, "cannot read this image"),
    "too large an image": ("picture.png", lambda: b"0" * 33_000_000, "33 MB"),
    "too many pixels": ("picture.png", lambda: bomb(9000, 9000), "9000 x 9000"),
    "config alone": ("config.json", lambda: b"{}", "model.safetensors beside it"),
    "something else": ("notes.txt", lambda: b"hello", "Open an image"),
}  # fmt: skip


def bomb(height: int, width: int) -> bytes:
    """A small file of a very large image."""
    done, png = cv2.imencode(".png", np.zeros((height, width), np.uint8))
    assert done
    return png.tobytes()


@pytest.fixture(scope="module")
def tough(browser: Browser, pages: dict[str, Path]) -> Iterator[Page]:
    """One page that must survive all bad files."""
    opened = Opened(browser.new_context().new_page())
    yield opened.goto(pages["three"])
    assert opened.complaints == []
    opened.page.context.close()


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_file_shows_a_message_and_changes_nothing(case: str, tough: Page, tmp_path: Path) -> None:
    page = tough
    page.get_by_role("button", name="Source", exact=True).click()
    settle(page)
    name, content, message = HOSTILE[case]
    before, start, title = pixels(page, "#output"), latent(page), page.locator("h1").inner_text()
    (tmp_path / name).write_bytes(content())
    page.set_input_files("#files", tmp_path / name)
    expect(page.locator("#message.error")).to_contain_text(message)
    assert page.locator("#message *").count() == 0, "a message is text"
    assert (pixels(page, "#output") == before).all()
    assert (latent(page) == start).all()
    assert page.locator("h1").inner_text() == title
    page.locator("#active input[type=range]").first.press("Home")
    settle(page)
    assert (pixels(page, "#output") != before).any(), "the page still works"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="other"), "does not describe an encoder"),
        (lambda c: c["latents"].update(kl=[1.0] * 31), "does not belong to this encoder"),
        (lambda c: c["latents"].update(mean="<b>"), "latents.mean must be a list of numbers"),
        (lambda c: c["frame_spec"].update(crop=[9, 3, 0, 1]), "frame_spec.crop must be"),
        (lambda c: c["frame_spec"].update(crop={"length": 4}), "frame_spec.crop must be"),
    ],
)
def test_a_bad_config_shows_a_message(
    change: Callable[[Any], None], message: str, tough: Page, tmp_path: Path
) -> None:
    page = tough
    config = json.loads((PONG / "config.json").read_text())
    change(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    page.set_input_files("#files", [PONG / "model.safetensors", tmp_path / "config.json"])
    expect(page.locator("#message.error")).to_contain_text(message)
    assert page.locator("h1").inner_text() == "pong-v0"


def test_an_image_that_is_too_small_to_crop_says_so(opened: Opened, tmp_path: Path, frames: Any) -> None:
    vae = VAEConfig(4, (4, 8))
    flat = {"mean": [0.0] * 4, "std": [1.0] * 4, "kl": [1.0] * 4}
    config = EncoderConfig(FrameSpec((34, 194, 0, 160)), vae, flat)
    write_encoder_folder(tmp_path / "cropped", config, random_tensors(vae), frames(64))
    path = visualize_encoder(VisualizeConfig(str(tmp_path / "cropped"), out=tmp_path / "p.html"))
    page = opened.goto(path)
    page.set_input_files("#files", {"name": "x.png", "mimeType": "image/png", "buffer": bomb(100, 100)})
    expect(page.locator("#message.error")).to_contain_text(
        "at least 160 x 194 pixels, but this image has 100 x 100"
    )


def test_every_control_has_a_name_and_a_tab_stop(page: Page) -> None:
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, [role]")]
        .filter((e) => !e.hidden && !["status", "list"].includes(e.role))
        .filter((e) => !(e.getAttribute("aria-label") || e.textContent.trim()))
        .map((e) => e.outerHTML)""")
    assert nameless == []
    twice = page.evaluate("""() => {
        const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
        return ids.filter((id, i) => ids.indexOf(id) !== i);
    }""")
    assert twice == []
    assert page.locator("html").get_attribute("lang") == "en"
    reached = set()
    for _ in range(64):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            )
        )
    first, title = page.evaluate("[rows.rows[0].dim, rows.rows[0].axis.title]")
    assert {
        "Skip to the dimensions",
        "Copy link",
        "Zero",
        "Frame 24",
        f"z{first}: {title}",
        f"Value of z{first}",
    } <= reached
    assert "Interpolation from A to B" in reached
    live = page.eval_on_selector_all(
        "[aria-live], [role=status], [role=alert], output", "all => all.map(e => e.id)"
    )
    assert live == ["episode-position", "message"]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_needs_scrolling_sideways(width: int, opened: Opened, pages: dict[str, Path]) -> None:
    opened.page.set_viewport_size({"width": width, "height": 844})
    page = opened.goto(pages["three"])
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator("#active .row").nth(3).scroll_into_view_if_needed()
    box = page.locator("#output").bounding_box()
    assert box
    assert 0 <= box["y"] < 300, "the output stays in sight"
    assert box["width"] % 64 == 0, "one pixel of a frame is a whole number of pixels"


def test_dark_and_light_follow_the_system_until_chosen(browser: Browser, pages: dict[str, Path]) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    shades = {}
    for scheme in ("light", "dark"):
        page = Opened(browser.new_context(color_scheme=scheme).new_page()).goto(pages["three"])
        shades[scheme] = page.evaluate(back)
        button = page.get_by_role("button", name="Dark")
        assert button.get_attribute("aria-pressed") == str(scheme == "dark").lower()
        button.click()
        shades[f"not {scheme}"] = page.evaluate(back)
        page.context.close()
    assert shades["light"] == shades["not dark"]
    assert shades["dark"] == shades["not light"]
    assert shades["light"] != shades["dark"]


def test_the_policy_stops_foreign_code_and_connections(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_context().new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(pages["three"].as_uri())
    wait(page, "view.source !== null")
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.intruder = true";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.intruder = true'>");
    }""")
    assert page.evaluate("window.intruder") is None
    assert page.evaluate("fetch('https://example.org').then(() => 'reached', () => 'stopped')") == "stopped"
    assert any("Content Security Policy" in line for line in complaints)
    policy = page.locator("meta[http-equiv]").get_attribute("content") or ""
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page.context.close()


def test_no_animation_runs_by_itself(page: Page) -> None:
    before = latent(page)
    page.wait_for_timeout(400)
    assert (latent(page) == before).all()
    assert re.fullmatch("Play episode", page.locator("#episode-play").inner_text())


def test_labels_say_what_dimensions_do_and_fold_what_nobody_sees(
    opened: Opened, tmp_path: Path, frames: Any
) -> None:
    """Ten dimensions: seven that are seen, in the order of what explains them, and three that are not."""
    size = 12
    vae = VAEConfig(size, (4, 8))
    latents = {"mean": [0.0] * size, "std": [1.0] * 11 + [0.01], "kl": [float(i) for i in range(size)]}
    explained = [0.1, 0.9, 0.3, 0.97, 0.6, 0.2, 0.05, 0.8, 0.7, 0.95, 0.99, 0.0]
    # Not exclusive: no other is explained better, and yet they come after those that follow. 2 has one.
    mixed = {9, 2}
    folder = tmp_path / "labelled"
    write_encoder_folder(folder, EncoderConfig(FrameSpec(), vae, latents), random_tensors(vae), frames(64))
    write_labels(
        Labels(
            source="six <b>frames</b>",
            dimensions=tuple(
                Label(
                    (Explained(f"thing {i}", r2), Explained("other", r2 / 4))[: 1 if i == 2 else 2],
                    0.1 if i in mixed else 0.75,
                    2.0 if i == 10 else 90.0,
                )
                for i, r2 in enumerate(explained)
            ),
            walks=(),
            directions=(),
            whitening=tuple(map(tuple, np.eye(size).tolist())),
            distances=(3.3, 4.6, 5.1),
            mean=(0.0,) * size,
            metrics={},
        ),
        folder,
    )
    page = opened.goto(visualize_encoder(VisualizeConfig(str(folder), out=tmp_path / "labelled.html")))
    dims = "rows => rows.map(r => Number(r.dataset.dim))"
    assert page.eval_on_selector_all("#active .row", dims) == [3, 1, 7, 8, 4, 9, 2, 5]
    assert page.eval_on_selector_all("#more .row", dims) == [0, 6]
    assert page.eval_on_selector_all("#inactive .row", dims) == [10, 11]
    assert page.locator("#more summary").inner_text() == "2 more"
    assert page.locator("#inactive summary").inner_text() == "2 dimensions that change nothing visible"
    assert page.locator("#active .dim").all_inner_texts() == [
        *(f"thing {i}" for i in (3, 1, 7, 8, 4)),
        "mixed: thing 9, other",
        "mixed: thing 2",
        "partly thing 5",
    ]
    assert page.locator("#active .note").first.inner_text() == "z3, R² 0.97, exclusive 75%"
    assert page.locator("#active .note").nth(6).inner_text() == "z2, R²: thing 2 0.30"
    note = page.locator("#labels-note").inner_text()
    assert (
        "Of 10 dimensions that change the picture, 5 follow one variable, measured on six <b>frames</b>"
        in note
    )
    bars = page.eval_on_selector_all(
        "#active .bar span", "bars => bars.map(b => b.getBoundingClientRect().width)"
    )
    np.testing.assert_allclose(
        np.array(bars) / bars[0] * 0.97, [0.97, 0.9, 0.8, 0.7, 0.6, 0.95, 0.3, 0.2], atol=0.02
    )
    # The distance of a latent is judged by that of the data.
    for far, text in ((4.0, "like the data"), (4.8, "rarer than 19 of 20"), (6.0, "unlike the data")):
        page.evaluate(f"setLatent(Float32Array.from({{ length: {size} }}, (_, i) => i ? 0 : {far}))")
        settle(page)
        assert page.locator("#distance-note").inner_text().startswith(text)


def test_a_walk_goes_from_real_frame_to_real_frame(page: Page) -> None:
    """Its slider stops at the latents in labels.json, and nowhere else."""
    labels = read_labels(PONG, 32)
    assert labels is not None
    walk = {each.name: each for each in labels.walks}["ball x"]
    panels = page.eval_on_selector_all(".panels > section", "all => all.map(one => one.id)")
    assert panels.index("walks-panel") < panels.index("dimensions-panel"), "Pong's dimensions are mixed"
    row = page.locator("#walks-list .row").filter(has=page.get_by_text("ball x", exact=True))
    assert f"25 real frames, {100 * walk.drawn:.0f}% drawn" in row.locator(".note").inner_text()
    slider = row.locator("input[type=range]")
    slider.press("Home")
    for stop in range(4):
        settle(page)
        np.testing.assert_allclose(latent(page), walk.latents[stop], atol=1e-6)
        assert float(row.locator("input[type=number]").input_value()) == pytest.approx(walk.values[stop])
        said = slider.get_attribute("aria-valuetext")
        assert said == f"{walk.values[stop]:.0f}, frame {stop + 1} of 25"
        slider.press("ArrowRight")
    slider.press("End")
    settle(page)
    vae, _ = load_vae("pong-v0")
    wanted = to_frames(vae.decode(torch.tensor(walk.latents[-1])[None]))[0]
    assert np.abs(pixels(page, "#output").astype(int) - wanted).max() <= 2
    row.locator("input[type=number]").fill(str(walk.values[12]))
    row.locator("input[type=number]").press("Enter")
    settle(page)
    np.testing.assert_allclose(latent(page), walk.latents[12], atol=1e-6)
    # Walking moves the other sliders along, and moving one of them leaves the walk.
    page.locator("#active input[type=range]").first.press("End")
    settle(page)
    assert np.abs(latent(page) - np.array(walk.latents[12])).max() > 0.1


def test_a_direction_moves_what_is_read_along_it(page: Page) -> None:
    """The slider leads to where it stands, and is the line that Python found."""
    labels = read_labels(PONG, 32)
    assert labels is not None
    start = latent(page)
    row = page.locator("#directions-list .row").first
    assert row.locator(".dim").inner_text() == labels.directions[0].name
    direction = labels.directions[0]

    def reading(z: Any) -> float:
        return float((z - np.array(labels.mean)) @ np.array(direction.reads))

    assert float(row.locator("input[type=number]").input_value()) == pytest.approx(reading(start), abs=0.01)
    row.locator("input[type=range]").press("Home")
    settle(page)
    moved = latent(page)
    assert reading(moved) == pytest.approx(-3, abs=0.02)
    way = -3 - reading(start)
    np.testing.assert_allclose(moved - start, way * np.array(direction.moves), atol=0.02)
    distance = np.linalg.norm(np.array(labels.whitening) @ (moved - labels.mean))
    said = page.locator("#distance-note").inner_text()
    assert said.startswith("like the data") == bool(distance <= labels.distances[1])


def drop(page: Page, *files: Path) -> None:
    """Drag files over the page and drop them, as the browser itself does it."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})
        if kind == "dragOver":
            assert "dropping" in (page.locator("body").get_attribute("class") or "")
    session.detach()


def test_dropped_files_are_opened(page: Page, deep: Path, tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "mine.png"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    drop(page, tmp_path / "mine.png")
    expect(page.locator("#message")).to_contain_text("Encoded mine.png")
    settle(page)
    assert (pixels(page, "#source") == image).all()
    assert page.locator("body").get_attribute("class") == ""
    drop(page, *sorted(path for path in PRETRAINED.joinpath("breakout-v0").iterdir() if path.is_file()))
    expect(page.locator("#message")).to_contain_text("Opened breakout-v0")
    settle(page)
    assert page.locator("h1").inner_text() == "breakout-v0"
    assert page.title().startswith("breakout-v0")


def test_the_episode_says_which_frame_is_shown(page: Page) -> None:
    position = page.locator("#episode-position")
    assert position.inner_text() == "– / 80"
    slider = page.get_by_role("slider", name="Frame of the episode")
    slider.fill("11")
    settle(page)
    assert position.inner_text() == "12 / 80"
    wait(page, "location.hash === '#episode=12'")
    page.get_by_role("button", name="Play episode").click()
    wait(page, "Number($('episode').value) >= 14")
    page.locator("#active input[type=range]").first.press("Home")
    settle(page)
    assert page.locator("#episode-play").inner_text() == "Play episode", "moving a slider pauses"
    stopped = int(slider.input_value())
    page.wait_for_timeout(300)
    assert int(slider.input_value()) == stopped
    assert position.inner_text() == f"{stopped + 1} / 80"
    page.get_by_role("button", name="Frame 5", exact=True).click()
    settle(page)
    assert position.inner_text() == "– / 80"
    page.evaluate("location.hash = '#episode=20'")
    wait(page, "view.source.position === 19")
    assert slider.input_value() == "19"

"""How fast does the visualizer's page decode, encode and start, and how large is it?

$ pip install playwright              # and Debian's Chromium: apt-get install chromium
$ python benchmarks/visualizer.py     # about 1 min on 2 cores

The page runs in headless Chromium, opened from disk; eager PyTorch, on one thread, takes turns with it. The
script first asserts that the page decodes and encodes as PyTorch does with the same float16 weights. All
times are CPU time: that of the page's main thread for decoding and encoding, that of its renderer process for
the first image, and that of this process for PyTorch.
"""

from __future__ import annotations

import base64
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
from machine import machine

from latent_obs.encoders.folder import (
    EncoderConfig,
    VAEConfig,
    read_calibration,
    read_config,
    read_tensors,
    write_encoder_folder,
)
from latent_obs.encoders.resolve import PRETRAINED
from latent_obs.vae import VAE, load_vae, to_frames
from latent_obs.visualizer import VisualizeConfig, visualize_encoder

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page


@dataclass(frozen=True)
class Args:
    """Time the page."""

    rounds: int = 15
    """rounds in which page and PyTorch take turns"""
    calls: int = 20
    """calls in a round"""
    starts: int = 7
    """how often the page is opened"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


def deep_encoder(folder: Path, calibration: Any) -> Path:
    """Write an encoder of four convolutions; its weights are random, which changes no time."""
    vae = VAEConfig(32, (32, 64, 128, 256))
    torch.manual_seed(0)
    flat = {"mean": [0.0] * 32, "std": [1.0] * 32, "kl": [1.0] * 32}
    config = EncoderConfig(read_config(PRETRAINED / "pong-v0").frame_spec, vae, flat)
    write_encoder_folder(folder, config, VAE(vae).tensors(), calibration)
    return folder


def half(folder: Path) -> VAE:
    """Load a VAE with its weights as the page holds them."""
    config = read_config(folder)
    tensors = read_tensors(folder, config)
    return VAE.from_tensors(
        config.vae, {name: value.astype(np.float16).astype(np.float32) for name, value in tensors.items()}
    )


def metric(session: CDPSession, name: str) -> float:
    """Return one of Chromium's performance metrics, in milliseconds."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(float(entry["value"]) for entry in metrics if entry["name"] == name) * 1e3


def until_image(browser: Browser, path: Path) -> float:
    """Open a page and return its renderer's CPU time until the first image, start-up included."""
    page = browser.new_context().new_page()
    # What the page does after the first image begins with a timer. Without timers it ends there.
    page.add_init_script("window.setTimeout = () => 0")
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.goto(path.as_uri())
    wait_for_image(page)
    spent = metric(session, "ProcessTime")
    page.context.close()
    return spent


def wait_for_image(page: Page) -> None:
    while not page.evaluate("view.source !== null && scheduled === 0"):
        time.sleep(0.01)


def check(page: Page, vae: VAE, frame: Any) -> Any:
    """Compare the page with PyTorch and return the latent of the frame."""
    text = base64.b64encode(frame.tobytes()).decode()
    encode = "text => Array.from(view.encoder.network.encode(fromBase64(text)))"
    latent = np.array(page.evaluate(encode, text), np.float32)
    np.testing.assert_allclose(latent, vae(torch.from_numpy(frame[None]))[0], atol=1e-4, rtol=1e-4)
    decode = "latent => Array.from(view.encoder.network.decode(Float32Array.from(latent)))"
    image = np.array(page.evaluate(decode, latent.tolist())).reshape(64, 64, 4)[..., :3]
    wanted = to_frames(vae.decode(torch.from_numpy(latent[None])))[0]
    assert np.abs(image - wanted.astype(int)).max() <= 1
    return latent


def in_page(page: Page, session: CDPSession, call: str, calls: int) -> float:
    """Return the main thread's CPU time of one call, in milliseconds."""
    begun = metric(session, "ThreadTime")
    page.evaluate(f"() => {{ for (let i = 0; i < {calls}; i++) {call}; }}")
    return (metric(session, "ThreadTime") - begun) / calls


def in_torch(call: Callable[[], Any], calls: int) -> float:
    begun = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begun) / calls * 1e3


def report(name: str, samples: list[float], baseline: list[float] | None = None) -> None:
    p10, median, p90 = np.percentile(samples, [10, 50, 90])
    ratio = f"{median / np.median(baseline):8.1f}x" if baseline else ""
    print(f"{name:34} {median:8.1f} {p10:8.1f} {p90:8.1f} {ratio}")


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, rounds=1, calls=1, starts=1)
    chromium = shutil.which("chromium")
    if find_spec("playwright") is None or chromium is None:
        message = "this needs playwright (pip install playwright) and Chromium (apt-get install chromium)."
        sys.exit(print(f"skipped: {message}") if args.smallest else f"error: {message}")
    from playwright.sync_api import sync_playwright

    torch.set_num_threads(1)
    calibration = read_calibration(PRETRAINED / "pong-v0")
    assert calibration is not None
    with TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        print(f"# {machine('torch', 'playwright')}, Chromium {browser.version}")
        print(f"{'CPU time':34} {'ms':>8} {'p10':>8} {'p90':>8}  page / eager PyTorch")
        for folder in (PRETRAINED / "pong-v0", deep_encoder(Path(temporary) / "deep", calibration)):
            vae = half(folder)
            name = "-".join(map(str, load_vae(folder)[1].vae.channels))
            path = visualize_encoder(VisualizeConfig(str(folder), out=Path(temporary) / f"{name}.html"))
            empty = Path(temporary) / "empty.html"
            empty.write_text(
                "<!doctype html><title>empty</title><script>var view = {source: 1}, scheduled = 0</script>"
            )
            first, nothing = [], []
            for _ in range(args.starts):
                first.append(until_image(browser, path))
                nothing.append(until_image(browser, empty))
            page = browser.new_context().new_page()
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            page.goto(path.as_uri())
            wait_for_image(page)
            latent = torch.from_numpy(check(page, vae, calibration[0])[None])
            frame = torch.from_numpy(calibration[:1])
            torch_decode = partial(lambda vae, latent: to_frames(vae.decode(latent)), vae, latent)
            torch_encode = partial(vae, frame)
            times: dict[str, list[float]] = {
                "decode": [],
                "encode": [],
                "torch decode": [],
                "torch encode": [],
            }
            warm_up = 0 if args.smallest else 2
            for round_ in range(args.rounds + warm_up):
                with torch.inference_mode():
                    new = {
                        "decode": in_page(
                            page, session, "view.encoder.network.decode(view.latent)", args.calls
                        ),
                        "torch decode": in_torch(torch_decode, args.calls),
                        "encode": in_page(
                            page, session, "view.encoder.network.encode(view.source.frame)", args.calls
                        ),
                        "torch encode": in_torch(torch_encode, args.calls),
                    }
                if round_ >= warm_up:
                    for key, value in new.items():
                        times[key].append(value)
            report(f"{name}: decode", times["decode"], times["torch decode"])
            report(f"{name}: decode, eager PyTorch", times["torch decode"])
            report(f"{name}: encode", times["encode"], times["torch encode"])
            report(f"{name}: encode, eager PyTorch", times["torch encode"])
            report(f"{name}: first image", first)
            report("an empty page", nothing)
            print(f"{name + ': page with 64 frames':34} {path.stat().st_size / 1e6:8.2f} MB")
            page.context.close()
        browser.close()


if __name__ == "__main__":
    main(tyro.cli(Args))

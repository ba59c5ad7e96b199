"""The report card as a page: one HTML file that needs nothing else, and the same figures as JSON.

Pictures are inlined as lossless PNG, charts are SVG, and a content security policy forbids the page
every request and every script.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import EncoderConfig
from latent_obs.encoders.resolve import encoder_name, resolve
from latent_obs.evaluation.evaluate import STRETCH, EvaluateConfig, evaluation_split
from latent_obs.evaluation.markup import animation, bars, details, picture, section, strip, table, text
from latent_obs.evaluation.pictures import liveliest, traversal_frames
from latent_obs.evaluation.ram import CATEGORIES
from latent_obs.files import write_atomically
from latent_obs.frames import Frame, Frames
from latent_obs.measures import moving_residual
from latent_obs.vae import VAE, load_vae, reconstruct

CLIP_FRAMES = 120
CLIP_BYTES = 700_000
_COLUMNS = {"encoder": "encoder", "pca": "PCA", "random": "untrained"}


def write_card(report: dict[str, Any], config: EvaluateConfig) -> tuple[Path, Path]:
    """Write ``card.json`` and ``card.html`` to ``config.out``.

    Args:
        report: The value of :func:`latent_obs.evaluation.evaluate.evaluate_encoder`.
        config: What it was called with; the pictures show the same frames.

    Returns:
        The two paths.
    """
    found, folder = resolve(config.encoder), FramesFolder(config.frames)
    vae, encoder = load_vae(found)
    _, measured = evaluation_split(found, folder)
    frames = folder.sample(config.limit, measured, config.seed)
    stretch = folder.load(measured[:1], STRETCH)[-CLIP_FRAMES:]
    page = card_page(report, vae, encoder, frames, stretch)
    config.out.mkdir(parents=True, exist_ok=True)
    paths = config.out / "card.json", config.out / "card.html"
    write_atomically(paths[0], (json.dumps(report, indent=1, allow_nan=False) + "\n").encode())
    write_atomically(paths[1], page.encode())
    return paths


def card_page(
    report: dict[str, Any], vae: VAE, encoder: EncoderConfig, frames: Frames, stretch: Frames
) -> str:
    """Build the page.

    Args:
        report: The value of :func:`latent_obs.evaluation.evaluate.evaluate_encoder`.
        vae: The model, for its pictures.
        encoder: Its config.
        frames: Those measured, ``uint8`` of shape (N, 64, 64, 3).
        stretch: Consecutive ones of an episode, for the clip.
    """
    css = resources.files("latent_obs.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    policy = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    lively = liveliest(frames, 6)
    sections = [
        _summary(report),
        _figures(report),
        section(
            "Beside its reconstruction",
            f"{len(stretch)} consecutive frames of an episode it was not trained on; on the right, what its "
            f"{report['latent_dim']} numbers keep.",
            _clip(vae, stretch),
        ),
        section(
            "Reconstructions",
            "Frames above, their reconstructions below.",
            strip([lively, reconstruct(vae, lively)], "frames above their reconstructions"),
        ),
        _worst(vae, frames),
        _dimensions(report),
        _traversals(vae, encoder, lively[len(lively) // 2]),
        _probe(report),
        _about(report),
    ]
    title = f"Report card of {encoder_name(report['encoder'])}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src \
'sha256-{policy}'; base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>{css}</style>
</head>
<body>
<header><h1>{text(title)}</h1>
<p>{text(report["env_id"] or "environment unknown")}, {report["latent_dim"]} dimensions, measured on \
{report["frames"]:,} frames of {report["data"]["episodes"]} episodes \
{"held out of its training" if report["data"]["held_out"] else "of another folder"}.</p></header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _summary(report: dict[str, Any]) -> str:
    faults = "".join(f"<li>{text(fault)}</li>" for fault in report["warnings"])
    floors = report["floors"]
    rows = [
        ("encoder", report["moving_r2"], "own"),
        ("PCA", floors["pca"]["moving_r2"], "floor"),
        ("untrained", floors["random"]["moving_r2"], "floor"),
    ]
    chart = bars(rows, 1.0, "{:.3f}", "Moving-object R² of this encoder and its floors")
    return f"""<section class="summary">
{f'<ul class="faults" role="alert">{faults}</ul>' if faults else '<p class="good">Nothing to warn of.</p>'}
<div class="hero"><div><p class="figure">{report["moving_r2"]:.3f}</p>
<p class="label">moving-object R²</p></div>
<div class="grow">{chart}</div></div>
<p>1 means that everything that moves is where it should be; 0, that the reconstruction shows it no better
than the median frame would. It is 1 - residual energy / energy over the pixels that differ from the per-pixel
median, {report["foreground"]:.1%} of them here. PSNR hides a lost ball; here it shows, unless larger things
outweigh it, such as a score: then the R² of what changes shows it, and under a moving camera that of rare
colours. PCA with as many dimensions and the same
network untrained are the floors: an encoder below them has no reason to exist.</p>
</section>
"""


def _figures(report: dict[str, Any]) -> str:
    """The table of every scalar, floors beside it."""
    return section(
        "Figures",
        "PCA and the linear decoder of the untrained network were fitted on "
        f"{report['data']['floor_episodes']} other episodes of the same folder.",
        table(("", *_COLUMNS.values()), table_rows(report)),
    )


def table_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: name, then the figure of the encoder, of PCA and of the untrained one."""
    floors, drift = report["floors"], report["drift"]
    rows: list[tuple[str, str, str, str]] = []
    for name, key, form in (
        ("moving-object R²", "moving_r2", "{:.3f}"),
        ("R² of what changes", "changing_r2", "{:.3f}"),
        ("R² of rare colours", "rare_r2", "{:.3f}"),
        ("PSNR, dB", "psnr", "{:.2f}"),
    ):
        cells = [form.format(own[key]) for own in (report, floors["pca"], floors["random"])]
        rows.append((name, cells[0], cells[1], cells[2]))
    if report["position_r2"] is not None:
        places = [f"{own['position_r2']:.3f}" for own in (report, floors["pca"], floors["random"])]
        rows.append(("R² of positions, linear", places[0], places[1], places[2]))
    for reader, scores in ((report["probe"] or {}).get("readers") or {}).items():
        cells = [f"{scores[code]['f1']:.3f}" for code in _COLUMNS]
        rows.append((f"probe F1, {reader}", cells[0], cells[1], cells[2]))
    for name, value in (
        ("negative ELBO, nats/frame", f"{report['negative_elbo']:,.1f}"),
        ("negative ELBO, bits/dim", f"{report['bits_per_dim']:.3f}"),
        ("reconstruction, nats/frame", f"{report['reconstruction']:,.1f}"),
        ("KL, nats/frame", f"{report['kl']:.1f}"),
        ("active units", f"{report['active_units']} of {report['latent_dim']}"),
        ("latent drift", "yes" if drift["drifted"] else "no"),
        ("shift of the latents' means, std", f"{drift['shift']:.2f}"),
        ("spread of the latents, ratio", f"{drift['spread']:.2f}"),
        ("pixels that differ from the median", f"{report['foreground']:.1%}"),
        *((f"encode a frame, {name}, µs", f"{us:,.0f}") for name, us in report["encode_us"].items()),
    ):
        rows.append((name, value, "", ""))
    return rows


def _worst(vae: VAE, frames: Frames, count: int = 6) -> str:
    """Show the frames with the largest residual on what moves."""
    residual = moving_residual(frames, reconstruct_all(vae, frames))
    picked: list[Frame] = []
    for row in np.argsort(residual)[::-1]:
        if len(picked) < count and not any(np.array_equal(frames[row], other) for other in picked):
            picked.append(frames[row])
    worst = np.stack(picked)
    decoded = reconstruct(vae, worst)
    error = np.abs(worst.astype(np.int16) - decoded).max(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    return section(
        "Worst reconstructions",
        "By residual energy on what moves: frame, reconstruction, and error, white where it is largest.",
        strip([worst, decoded, error], "frames, their reconstructions and the error"),
    )


def reconstruct_all(vae: VAE, frames: Frames) -> Frames:
    """Reconstruct any number of frames, in batches."""
    return np.concatenate([reconstruct(vae, frames[i : i + 256]) for i in range(0, len(frames), 256)])


def _dimensions(report: dict[str, Any]) -> str:
    """Draw KL and drift of each dimension, largest KL first."""
    order = sorted(range(report["latent_dim"]), key=lambda dim: -report["dimensions"][dim]["kl"])
    rows = [report["dimensions"][dim] for dim in order]
    most = max(row["kl"] for row in rows) or 1.0
    width, height, step = 760, 150, 760 / len(rows)
    parts = []
    for i, (dim, row) in enumerate(zip(order, rows, strict=True)):
        tall, x = max(row["kl"], 0) / most * (height - 40), i * step
        hint = f"z{dim}: {row['kl']:.2f} nats, mean off by {row['shift']:+.2f} std"
        label = f'<text x="{x + step / 2:.1f}" y="{height - 6}">{dim}</text>' if len(rows) <= 40 else ""
        place = f'x="{x + step * 0.1:.1f}" y="{height - 20 - tall:.1f}"'
        size = f'width="{step * 0.8:.1f}" height="{max(tall, 0.5):.1f}"'
        parts.append(f'<g><title>{hint}</title><rect class="own" {place} {size}/>{label}</g>')
    chart = (
        f'<div class="scroll"><svg class="columns" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="KL of each dimension"><text class="start" x="0" y="12">{most:.1f} nats</text>'
        f"{''.join(parts)}</svg></div>"
    )
    keys = ("kl", "trained_kl", "mean", "trained_mean", "std", "trained_std", "shift", "spread")
    head = ("dimension", "KL, nats", "trained", "mean", "trained", "std", "trained", "shift", "spread")
    cells = [(f"z{dim}", *(f"{row[key]:.2f}" for key in keys)) for dim, row in zip(order, rows, strict=True)]
    return section(
        "KL per dimension",
        f"{report['kl']:.1f} nats in all; {report['active_units']} dimensions are active, that is, their "
        "mean varies by more than 0.01. The table compares them with the training frames: a shift is in "
        "training standard deviations.",
        chart + details("All dimensions, and their drift", table(head, cells)),
    )


def _traversals(vae: VAE, encoder: EncoderConfig, frame: Frame, count: int = 10) -> str:
    rows = []
    for dim, offsets, images in traversal_frames(vae, encoder, frame, count):
        label = f"z{dim}, {encoder.latents['kl'][dim]:.1f} nats"
        alt = f"{label}, moved from {offsets[0]:+.0f} to {offsets[-1]:+.0f}"
        rows.append(f"<dt>{label}</dt><dd>{strip([images], alt)}</dd>")
    return section(
        "Traversals",
        "One dimension moved per row, from -3 to +3 training standard deviations; most informative first.",
        f'<dl class="traversals">{"".join(rows)}</dl>',
    )


def _probe(report: dict[str, Any]) -> str:
    probe = report["probe"]
    if probe is None:
        return ""
    parts, columns = [], {**_COLUMNS, "majority": "majority"}
    for reader, scores in probe["readers"].items():
        own = scores["encoder"]
        rows = [("mean of the categories", *(f"{scores[name]['f1']:.3f}" for name in columns))]
        rows += [
            (CATEGORIES[key], *(f"{scores[name]['categories'][key]:.3f}" for name in columns))
            for key in own["categories"]
        ]
        each = [
            (key, *(f"{scores[name]['variables'][key]:.3f}" for name in columns)) for key in own["variables"]
        ]
        head = ("F1", *columns.values())
        parts.append(f"<h3>{_READERS[reader]}</h3>{table(head, rows)}")
        parts.append(details("Each variable", table(head, each)))
    if probe["published"]:
        known = "; ".join(f"{name} {f1:.2f}" for name, f1 in probe["published"].items())
        parts.append(f"<p>Published for this reader, 256 features, 35,000 frames of 210x160: {known}.</p>")
    balls = [
        (_COLUMNS[name], *(f"{ball[reader][axis]:.3f}" for reader in ("ridge", "mlp") for axis in "xy"))
        for name, ball in probe["ball"].items()
        if ball
    ]
    if balls:
        head = ("R²", "ridge, x", "ridge, y", "MLP, x", "MLP, y")
        parts.append(f"<h3>Where is the ball, when it is drawn?</h3>{table(head, balls)}")
    emulator = probe["emulator"]
    return section(
        "Probe of the game's state",
        "How well a linear classifier reads variables of the console's RAM (AtariARI, Anand et al. 2019) "
        f"from the features: class-weighted F1 on other episodes. {probe['frames']['train']:,} frames to fit "
        f"and {probe['frames']['test']:,} to test, from {probe['episodes']} episodes of a random agent in "
        f"{probe['env_id']} (frameskip {emulator.get('frameskip')}, sticky actions "
        f"{emulator.get('repeat_action_probability')}). PCA's features have unit variance.",
        "".join(parts),
    )


_READERS = {
    "converged": "Logistic regression on whitened features, fitted to convergence",
    "paper": "The paper's reader: 100 epochs of Adam",
}


def _about(report: dict[str, Any]) -> str:
    told = {"data": report["data"], "encode_us": report["encode_us"], "provenance": report["provenance"]}
    return section(
        "Provenance",
        "Every figure of this page is in card.json, beside it.",
        details(
            "Frames measured, and how the encoder was trained",
            f"<pre>{text(json.dumps(told, indent=1))}</pre>",
        ),
    )


def _clip(vae: VAE, stretch: Frames) -> str:
    """Animate frames beside their reconstructions, losslessly, as many as fit."""
    pair = np.concatenate([stretch, reconstruct_all(vae, stretch)], 2)
    while len(data := animation(pair)) > CLIP_BYTES and len(pair) > 10:
        pair = pair[: len(pair) // 2]
    alt = f"{len(pair)} frames beside their reconstructions"
    return (
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{picture(pair[0])}">'
        f'<img class="pixels clip" width="128" height="64" alt="{alt}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></picture>'
    )

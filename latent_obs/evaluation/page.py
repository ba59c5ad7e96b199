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

import numpy as np

from latent_obs.encoders.resolve import encoder_name
from latent_obs.evaluation.evaluate import Evaluation
from latent_obs.evaluation.markup import animation, bars, details, picture, section, strip, table, text
from latent_obs.evaluation.pictures import liveliest, traversal_frames
from latent_obs.evaluation.ram import CATEGORIES
from latent_obs.evaluation.report import CODES, FIGURES, ReportCard
from latent_obs.files import write_atomically
from latent_obs.frames import Frame, Frames
from latent_obs.measures import Residuals
from latent_obs.vae import VAE, reconstruct

CLIP_FRAMES = 120
CLIP_BYTES = 700_000


def write_card(evaluation: Evaluation, out: Path) -> tuple[Path, Path]:
    """Write ``card.json`` and ``card.html``.

    Args:
        evaluation: The value of :func:`latent_obs.evaluation.evaluate.evaluate`.
        out: Folder to write to, made where it is missing.

    Returns:
        The two paths.
    """
    page = card_page(evaluation)
    content = json.dumps(evaluation.card.to_json(), indent=1, allow_nan=False) + "\n"
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "card.json", out / "card.html"
    write_atomically(paths[0], content.encode())
    write_atomically(paths[1], page.encode())
    return paths


def card_page(evaluation: Evaluation) -> str:
    """Build the page.

    Args:
        evaluation: The figures, and the frames that they were measured on.
    """
    css = resources.files("latent_obs.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    policy = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    card, vae, frames = evaluation.card, evaluation.vae, evaluation.selection.frames
    lively = liveliest(frames, 6)
    stretch = max(evaluation.selection.stretches, key=len)[-CLIP_FRAMES:]
    sections = [
        _summary(card),
        _figures(card),
        section(
            "A clip beside its reconstruction",
            f"Left: {len(stretch)} consecutive frames of an episode that the encoder was not trained on. "
            f"Right: what the decoder makes of their {card.latent_dim} numbers.",
            _clip(vae, stretch),
        ),
        section(
            "Reconstructions",
            "Frames above, their reconstructions below.",
            strip([lively, reconstruct(vae, lively)], "frames above their reconstructions"),
        ),
        _worst(vae, frames, evaluation.residuals),
        _dimensions(card),
        _traversals(evaluation, lively[len(lively) // 2]),
        _probe(card),
        _about(card),
    ]
    title = f"Report card of {encoder_name(card.encoder)}"
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
<p>{text(card.env_id or "environment unknown")}, {card.latent_dim} dimensions. {text(_measured(card))}</p>
</header>
<main>
{"".join(sections)}
</main>
</body>
</html>
"""


def _measured(card: ReportCard) -> str:
    """Say which frames the figures are of."""
    where = (
        "that were held out of its training" if card.data.held_out else "of a folder it was not trained on"
    )
    on = f" on {card.created}" if card.created else ""
    return f"Measured{on} on {card.frames:,} frames from {card.data.episodes} episodes {where}."


def _summary(card: ReportCard) -> str:
    faults = "".join(f"<li>{text(fault)}</li>" for fault in card.warnings)
    headline = FIGURES[0]
    rows = [
        (CODES[code], getattr(card.of(code), headline.key), "own" if code == "encoder" else "baseline")
        for code in card.codes
    ]
    chart = bars(rows, 1.0, headline.form, f"{headline.label} of this encoder and its baselines")
    spread = card.spread(headline)
    range_ = f'<p class="label">by episode: {text(spread)}</p>' if spread else ""
    return f"""<section class="summary">
{f'<ul class="faults" role="alert">{faults}</ul>' if faults else '<p class="good">Nothing to warn of.</p>'}
<div class="hero"><div><p class="figure">{headline.shown(card)}</p>
<p class="label">{text(headline.label)}</p>{range_}</div>
<div class="grow">{chart}</div></div>
<p>An R² of 1 means that everything that moves is shown where it is; 0 means that the reconstruction shows it
no better than the median frame would. It is 1 - residual energy / energy over the pixels that differ from the
per-pixel median frame, {card.foreground:.1%} of all pixels here. PSNR hides a lost ball; this R² shows it,
unless larger things such as a score outweigh the ball. Then the R² of what changes shows it, and under a
moving camera the R² of rare colours. PCA has as many dimensions, and the untrained network is the same one
before training: an encoder that does not beat them was not worth training.</p>
</section>
"""


def _figures(card: ReportCard) -> str:
    """Lay out the table of all figures, those of the baselines beside them."""
    return section(
        "Figures",
        f"The baselines were fitted on {card.data.baseline_episodes} other episodes of the same folder. By "
        "episode: the mean over the episodes, the lowest and the highest.",
        table(("", *card.codes.values()), [row[: 1 + len(card.codes)] for row in card.rows()]),
    )


def _worst(vae: VAE, frames: Frames, residuals: Residuals, count: int = 6) -> str:
    """Show the frames with the largest squared error on what moves, each picture once."""
    picked: list[Frame] = []
    for row in np.argsort(-residuals.moving):
        if len(picked) < count and not any(np.array_equal(frames[row], other) for other in picked):
            picked.append(frames[row])
    worst = np.stack(picked)
    decoded = reconstruct(vae, worst)
    error = np.abs(worst.astype(np.int16) - decoded).max(-1, keepdims=True).repeat(3, -1).astype(np.uint8)
    return section(
        "Worst reconstructions",
        "The frames with the largest squared error on what moves, worst first. Above: the frame; in the "
        "middle: its reconstruction; below: the error, white where it is largest.",
        strip([worst, decoded, error], "frames, their reconstructions and the error"),
    )


def _dimensions(card: ReportCard) -> str:
    """Draw KL and drift of each dimension, largest KL first."""
    order = sorted(range(card.latent_dim), key=lambda dim: -card.dimensions[dim].kl)
    rows = [card.dimensions[dim] for dim in order]
    most = max(row.kl for row in rows) or 1.0
    width, height, step = 760, 150, 760 / len(rows)
    parts = []
    for i, (dim, row) in enumerate(zip(order, rows, strict=True)):
        tall, x = max(row.kl, 0) / most * (height - 40), i * step
        hint = f"z{dim}: {row.kl:.2f} nats, mean off by {row.shift:+.2f} std"
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
    cells = [
        (f"z{dim}", *(f"{getattr(row, key):.2f}" for key in keys))
        for dim, row in zip(order, rows, strict=True)
    ]
    return section(
        "KL per dimension",
        f"The dimensions carry {card.kl:.1f} nats in all. {card.active_units} of them are active, that is, "
        "the variance of their mean exceeds 0.01. The table compares each with the training frames: its "
        "shift is the difference of the means in training standard deviations, its spread the ratio of the "
        "standard deviations.",
        chart + details("All dimensions, and their drift", table(head, cells)),
    )


def _traversals(evaluation: Evaluation, frame: Frame, count: int = 10) -> str:
    """Show what each dimension does, those first that do most clearly one thing, and say it."""
    encoder, labels = evaluation.encoder, evaluation.labels
    order = None
    about = "The dimension of the largest KL comes first."
    if labels is not None:
        best = [max((each.r2 for each in one.explained), default=0.0) for one in labels.dimensions]
        order = sorted(range(len(best)), key=lambda dim: -best[dim])
        about = (
            f"Beside each stands the variable that explains it, measured on {labels.source}, and the share "
            "of the dimension's variance that the variable explains; a dimension of which no variable "
            "explains half is mixed."
        )
        if labels.metrics:
            shown = ("mig", "MIG"), ("dci_disentanglement", "DCI disentanglement"), ("sap", "SAP")
            values = ", ".join(f"{name} {labels.metrics[key]:.2f}" for key, name in shown)
            about += f" By the field's metrics: {values}; 1 is the best value of each."
    rows = []
    for dim, offsets, images in traversal_frames(evaluation.vae, encoder, frame, count, order):
        label = f"z{dim}, {encoder.latents['kl'][dim]:.1f} nats"
        said = f"{label}: {labels.dimensions[dim]}" if labels else label
        alt = f"{label}, moved from {offsets[0]:+.0f} to {offsets[-1]:+.0f}"
        rows.append(f"<dt>{text(said)}</dt><dd>{strip([images], alt)}</dd>")
    return section(
        "What each dimension does",
        "Each row decodes one frame with one dimension moved from -3 to +3 training standard deviations. "
        + about,
        f'<dl class="traversals">{"".join(rows)}</dl>',
    )


def _probe(card: ReportCard) -> str:
    probe = card.probe
    if probe is None:
        return ""
    parts, columns = [], {**CODES, "majority": "majority"}
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
        parts.append(
            "<p>The paper's own figures, by the second reader, from 256 features and 35,000 frames of "
            f"210x160 pixels: {text(known)}.</p>"
        )
    balls = [
        (CODES[name], *(f"{ball[reader][axis]:.3f}" for reader in ("ridge", "mlp") for axis in "xy"))
        for name, ball in probe["ball"].items()
        if ball
    ]
    if balls:
        head = ("R²", "ridge, x", "ridge, y", "MLP, x", "MLP, y")
        parts.append(f"<h3>The ball's position, in frames that show it</h3>{table(head, balls)}")
    emulator = probe["emulator"]
    return section(
        "Probe of the game's state",
        "How well a linear classifier reads variables of the console's RAM (AtariARI, Anand et al. 2019) "
        "from the features, as the class-weighted F1 on episodes that it was not fitted on. It was fitted on "
        f"{probe['frames']['train']:,} frames and tested on {probe['frames']['test']:,}, from "
        f"{probe['episodes']} episodes of a random agent in "
        f"{probe['env_id']} (frameskip {emulator.get('frameskip')}, sticky actions "
        f"{emulator.get('repeat_action_probability')}). PCA's features have unit variance. The column "
        "majority always names each variable's most frequent value.",
        "".join(parts),
    )


_READERS = {
    "converged": "Logistic regression on whitened features, fitted to convergence",
    "paper": "The paper's reader: 100 epochs of Adam",
}


def _about(card: ReportCard) -> str:
    told = {name: card.to_json()[name] for name in ("data", "encode_us", "provenance")}
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
    pair = np.concatenate([stretch, reconstruct(vae, stretch)], 2)
    while len(data := animation(pair)) > CLIP_BYTES and len(pair) > 10:
        pair = pair[: len(pair) // 2]
    alt = f"{len(pair)} frames beside their reconstructions"
    return (
        f'<picture><source media="(prefers-reduced-motion: reduce)" srcset="{picture(pair[0])}">'
        f'<img class="pixels clip" width="128" height="64" alt="{alt}" '
        f'src="data:image/png;base64,{base64.b64encode(data).decode()}"></picture>'
    )

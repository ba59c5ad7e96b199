"""The card of an encoder as text: the ``README.md`` of its folder, which the Hub shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_obs.encoders.folder import EncoderConfig
from latent_obs.encoders.resolve import encoder_name, resolve

_FIGURES = {
    "moving-object R²": ("moving_r2", "{:.3f}"),
    "R² of what changes": ("changing_r2", "{:.3f}"),
    "PSNR, dB": ("psnr", "{:.1f}"),
    "KL, nats/frame": ("kl", "{:.0f}"),
    "active units": ("active_units", "{}"),
}
_FLOORED = ("moving_r2", "changing_r2", "psnr")  # PCA's figure stands beside


def read_card(ref: str | Path) -> str:
    """Return the card of an encoder: its ``README.md``, or what its config tells.

    Args:
        ref: What finds the encoder, as :func:`latent_obs.load_encoder` takes it.

    Returns:
        Markdown, with the front matter that the Hugging Face Hub reads.

    Raises:
        FileNotFoundError: If there is no such encoder.
        ValueError: If it is damaged.

    Example:
        >>> "moving-object R²" in read_card("pong-v0")
        True
    """
    found = resolve(ref)
    path = found.path / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else card_text(found.ref, found.config)


def card_text(ref: str, config: EncoderConfig, card: dict[str, Any] | None = None) -> str:
    """Write the card of an encoder.

    Args:
        ref: What finds the encoder: its name, its folder, or ``hf://USER/NAME``.
        config: Content of its ``config.json``.
        card: Content of its ``reports.json``, which recipes write: ``recipe``, ``reports`` by
            environment, and which of them are ``unseen``.
    """
    recipe = card["recipe"] if card else {}
    licence = config.provenance.get("license")
    envs = config.source.env_ids
    tags = ["reinforcement-learning", "vae", "gymnasium"]
    tags += ["atari"] if any(env_id.startswith("ALE/") for env_id in envs) else []
    front = ["library_name: latent_obs", f"tags: [{', '.join(tags)}]"]
    front += [f"license: {licence.lower()}"] if licence else []
    trained_on = envs[0] if len(envs) == 1 else f"{len(envs)} environments" if envs else "unknown frames"
    about = recipe.get("about") or f"A frozen VAE encoder of 64x64 frames, trained on {trained_on}."
    parts = ["---", *front, "---", "", f"# {encoder_name(ref)}", "", about, ""]
    if card:
        parts += [
            f"![Frames it was not trained on, and what {config.vae.latent_dim} numbers keep](card.png)",
            "",
        ]
    env_id = envs[0] if len(envs) == 1 else "ENV"
    atari = "ale_py:" if env_id.startswith("ALE/") else ""
    parts += [
        "```python",
        "import gymnasium as gym",
        "from latent_obs import LatentObservationWrapper",
        "",
        f'env = LatentObservationWrapper(gym.make("{atari}{env_id}"), encoder="{ref}")',
        "```",
        "",
        "## Report card",
        "",
        *(_by_environment(card) if card else _held_out(config.metrics)),
        "",
        *(_probes(card) if card else []),
        "## How it was made",
        "",
        *_making(config, recipe),
        "",
    ]
    if failures := recipe.get("failures"):
        parts += ["## Known failures", "", *(f"- {failure}" for failure in failures), ""]
    if licence:
        parts += ["## Licence", "", f"{licence}. The frames come from the environments named above.", ""]
    return "\n".join(parts)


def probed(report: dict[str, Any]) -> dict[str, float]:
    """Return the probe's F1 of the encoder by reader."""
    return {reader: scores["encoder"]["f1"] for reader, scores in report["probe"]["readers"].items()}


def _held_out(metrics: Mapping[str, Any]) -> list[str]:
    rows = [(label, form.format(metrics[key])) for label, (key, form) in _FIGURES.items() if key in metrics]
    return _table(("on held-out episodes", ""), rows)


def _by_environment(card: dict[str, Any]) -> list[str]:
    unseen, lines = set(card["unseen"]), []
    for title, wanted in (("environments it was trained on", False), ("environments it never saw", True)):
        reports = {e: r for e, r in card["reports"].items() if (e in unseen) == wanted}
        if not reports:
            continue
        rows = []
        for env_id, report in reports.items():
            cells = []
            for key, form in _FIGURES.values():
                floor = f" ({form.format(report['floors']['pca'][key])})" if key in _FLOORED else ""
                cells.append(form.format(report[key]) + floor)
            rows.append((env_id, *cells))
        lines += [
            f"Fresh seeds, {title}; in brackets PCA with as many dimensions, fitted to other episodes of it:"
        ]
        lines += ["", *_table(("environment", *_FIGURES), rows), ""]
    return lines[:-1]


def _probes(card: dict[str, Any]) -> list[str]:
    lines = []
    for env_id, report in card["reports"].items():
        if not (probe := report["probe"]):
            continue
        columns = {"encoder": "encoder", "pca": "PCA", "random": "untrained", "majority": "majority"}
        rows = [
            (f"F1, {reader} reader", *(f"{scores[column]['f1']:.3f}" for column in columns))
            for reader, scores in probe["readers"].items()
        ]
        for reader in ("ridge", "mlp"):
            if balls := {code: ball[reader] for code, ball in probe["ball"].items() if ball}:
                cells = [f"{b['x']:.2f}, {b['y']:.2f}" if (b := balls.get(c)) else "" for c in columns]
                rows.append((f"R² of the visible ball's x, y, {reader}", *cells))
        published = "; ".join(f"{name} {f1:.2f}" for name, f1 in (probe["published"] or {}).items())
        lines += [
            f"What a linear classifier reads of {env_id}'s RAM (AtariARI, Anand et al. 2019; random agent"
            + (f"; published for the paper's reader: {published}" if published else "")
            + "):",
            "",
            *_table(("", *columns.values()), rows),
            "",
        ]
    return lines


def _making(config: EncoderConfig, recipe: dict[str, Any]) -> list[str]:
    provenance = config.provenance
    run = provenance.get("run", {})
    lines = []
    for each in recipe.get("collect", ()):
        envs = each["env_ids"]
        of = envs[0] if len(envs) == 1 else f"each of {len(envs)} environments ({', '.join(envs)})"
        lines.append(f"- {each['frames']:,} frames of {of}, policy `{each['policy']}`, seed {each['seed']}.")
    settings = run.get("config", {})
    if settings:
        channels = "-".join(map(str, settings["channels"]))
        lines.append(
            f"- {settings['steps']:,} steps of {settings['batch_size']} frames, convolutions {channels}, "
            f"learning rate {settings['learning_rate']:g}, seed {settings['seed']}, objective "
            f"{settings['objective']}, {provenance.get('precision', 'float32')}."
        )
    if "seconds" in provenance:
        spent = provenance.get("build_seconds", {})
        collected = f"{spent['collect']:,.0f} s to collect, " if "collect" in spent else ""
        lines.append(
            f"- It took {collected}{provenance['seconds']:,.0f} s to train on "
            f"{provenance.get('machine', '?')}; {provenance.get('created', '')[:10]}."
        )
    if "recipe" in provenance:
        lines.append(f"- `latent-obs recipe build {provenance['recipe']}` makes it again.")
    if libraries := provenance.get("libraries"):
        lines.append(f"- {', '.join(f'{name} {number}' for name, number in libraries.items())}.")
    return lines or ["Nothing is known of it."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    rule = "|" + "---|" * len(head)
    return [line, rule, *("| " + " | ".join(row) + " |" for row in rows)]

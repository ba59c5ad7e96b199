"""The card of an encoder as text: the ``README.md`` of its folder, which the Hub shows too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_obs.encoders.folder import EncoderConfig
from latent_obs.encoders.resolve import encoder_name, resolve
from latent_obs.evaluation.report import BRIEF, CODES, Figure, ReportCard, Reports
from latent_obs.images import as_python, keywords

_MEANING = (
    "An R² of 1 is perfect. 0 is no better than showing the median frame (moving objects, rare colours) or "
    "the previous frame (what changes), or than always naming the mean position (positions)."
)


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


def card_text(ref: str, config: EncoderConfig, reports: Reports | None = None) -> str:
    """Write the card of an encoder.

    Args:
        ref: What finds the encoder: its name, its folder, or ``hf://USER/NAME``.
        config: Content of its ``config.json``.
        reports: Content of its ``reports.json``, which recipes write; ``None`` (default): tell only what the
            config knows.
    """
    recipe = reports.recipe if reports else {}
    licence = config.provenance.get("license")
    envs = config.source.env_ids
    tags = ["reinforcement-learning", "vae", "gymnasium"]
    tags += ["atari"] if any(env_id.startswith("ALE/") for env_id in envs) else []
    front = ["library_name: latent_obs", f"tags: [{', '.join(tags)}]"]
    front += [f"license: {licence.lower()}"] if licence else []
    trained_on = envs[0] if len(envs) == 1 else f"{len(envs)} environments" if envs else "unknown frames"
    about = recipe.get("about") or f"A frozen VAE encoder of 64x64 frames, trained on {trained_on}."
    parts = ["---", *front, "---", "", f"# {encoder_name(ref)}", "", about, ""]
    if reports:
        what = f"Frames that it was not trained on, and what {config.vae.latent_dim} numbers keep of them"
        parts += [f"![{what}](card.png)", ""]
    parts += [
        "```python",
        "import gymnasium as gym",
        "from latent_obs import LatentObservationWrapper",
        "",
        *lines_that_wrap(config, ref),
        "```",
        "",
        "## Report card",
        "",
        *(_by_environment(reports) if reports else _held_out(config.metrics)),
        "",
        *(_probes(reports) if reports else []),
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


def lines_that_wrap(config: EncoderConfig, ref: str | None = None) -> list[str]:
    """Return the Python that wraps an encoder's environment, made as it was made to collect its frames.

    Args:
        config: Content of its ``config.json``.
        ref: What finds the encoder; ``None`` leaves it to ``encoder="auto"``.

    Example:
        >>> print(*lines_that_wrap(resolve("pong-v0").config))
        env = LatentObservationWrapper(gym.make("ale_py:ALE/Pong-v5"))
    """
    run, envs = config.provenance.run, config.source.env_ids
    data: Mapping[str, Any] = {} if run is None else run.data
    env_id = str(data.get("env_id", envs[0] if len(envs) == 1 else "ENV"))
    # What registers the environment, so that the lines run as they stand.
    module = {"ALE": "ale_py:", "Scenes": "latent_obs.scenes:"}.get(env_id.partition("/")[0], "")
    kwargs = {**data.get("env_kwargs", {}), **({"render_mode": "rgb_array"} if data.get("render") else {})}
    made = f"gym.make({', '.join([as_python(module + env_id), *keywords(kwargs)])})"
    if data.get("render"):
        made = f"gym.wrappers.AddRenderObservation({made})"
    lines = []
    if wrapper := data.get("wrapper"):
        imported, _, name = str(wrapper).partition(":")
        lines.append(f"from {imported} import {name}")
        made = f"{name}({made})"
    options = {"encoder": ref, "key": data.get("key")}
    given = keywords({name: value for name, value in options.items() if value is not None})
    return [*lines, f"env = LatentObservationWrapper({', '.join([made, *given])})"]


def _held_out(metrics: Mapping[str, Any]) -> list[str]:
    rows = [(figure.label, shown) for figure in BRIEF if (shown := figure.shown(metrics))]
    return _table(("on held-out episodes", ""), rows)


def _by_environment(reports: Reports) -> list[str]:
    lines = []
    for known, cards in reports.seen():
        which = "environments that it was trained on" if known else "environments that it never saw"
        dates = " and ".join(sorted({card.created for card in cards.values() if card.created}))
        on = f" on {dates}" if dates else ""
        rows = [
            (env_id, str(card.data.episodes), *(_cell(card, figure) for figure in BRIEF))
            for env_id, card in cards.items()
        ]
        heads = (figure.label for figure in BRIEF)
        lines += [
            f"Measured{on} with fresh seeds in {which}. In brackets: PCA with as many dimensions, fitted on "
            "other episodes of the same environment.",
            "",
            *_table(("environment", "episodes", *heads), rows),
            "",
        ]
        if told := [figure for figure in BRIEF if any(card.spread(figure) for card in cards.values())]:
            spreads = [(env_id, *(card.spread(figure) for figure in told)) for env_id, card in cards.items()]
            heads = (figure.label for figure in told)
            lines += ["Mean over the episodes, with the lowest and the highest in brackets:", ""]
            lines += [*_table(("environment", *heads), spreads), ""]
    return [*lines, _MEANING]


def _cell(card: ReportCard, figure: Figure) -> str:
    own = figure.shown(card)
    return f"{own} ({figure.shown(card.baselines['pca'])})" if figure.baselines and own else own


def _probes(reports: Reports) -> list[str]:
    lines = []
    for env_id, card in reports.reports.items():
        if not (probe := card.probe):
            continue
        columns = {**CODES, "majority": "majority"}
        rows = [
            (f"F1, {reader} reader", *(f"{scores[column]['f1']:.3f}" for column in columns))
            for reader, scores in probe["readers"].items()
        ]
        for reader in ("ridge", "mlp"):
            if balls := {code: ball[reader] for code, ball in probe["ball"].items() if ball}:
                cells = [f"{b['x']:.2f}, {b['y']:.2f}" if (b := balls.get(c)) else "" for c in columns]
                rows.append((f"R² of the visible ball's x, y, {reader}", *cells))
        published = "; ".join(f"{name} {f1:.2f}" for name, f1 in (probe["published"] or {}).items())
        frames = probe["frames"]["train"] + probe["frames"]["test"]
        date = probe.get("created") or card.created
        lines += [
            f"What a linear classifier reads of {env_id}'s RAM from the latents (AtariARI, Anand et al. "
            f"2019), on {frames:,} frames from {probe['episodes']} episodes of a random agent"
            + (f", measured on {date}" if date else "")
            + (f"; the paper's own figures, by the paper's reader: {published}" if published else "")
            + ":",
            "",
            *_table(("", *columns.values()), rows),
            "",
        ]
    return lines


def _making(config: EncoderConfig, recipe: Mapping[str, Any]) -> list[str]:
    provenance = config.provenance
    run = provenance.get("run", {})
    lines = []
    for each in recipe.get("collect", ()):
        envs = each["env_ids"]
        of = envs[0] if len(envs) == 1 else f"each of {len(envs)} environments ({', '.join(envs)})"
        lines.append(f"- {each['frames']:,} frames of {of}, policy `{each['policy']}`, seed {each['seed']}.")
    settings = run.get("config", {})
    if {"steps", "batch_size", "channels", "learning_rate", "seed", "objective"} <= settings.keys():
        channels = "-".join(map(str, settings["channels"]))
        held = "".join(
            f" with {settings[name]} {name}" for name in ("moments", "places") if settings.get(name)
        )
        lines.append(
            f"- {settings['steps']:,} steps of {settings['batch_size']} frames, convolutions {channels}, "
            f"{settings.get('optimizer', 'adam').capitalize()}, learning rate {settings['learning_rate']:g}, "
            f"seed {settings['seed']}, objective {settings['objective']}{held}, "
            f"{provenance.get('precision', 'float32')}."
        )
    if "seconds" in provenance:
        spent = provenance.get("build_seconds", {})
        collected = f"{spent['collect']:,.0f} s to collect, " if "collect" in spent else ""
        lines.append(
            f"- It took {collected}{provenance['seconds']:,.0f} s to train on "
            f"{provenance.get('machine', '?')}; {provenance.get('created', '')[:10]}."
        )
    if retired := recipe.get("retired"):
        lines.append(f"- {retired}")
    elif "recipe" in provenance:
        lines.append(f"- `latent-obs recipe build {provenance['recipe']}` makes it again.")
    if libraries := provenance.get("libraries"):
        lines.append(f"- {', '.join(f'{name} {number}' for name, number in libraries.items())}.")
    return lines or ["Nothing is known of it."]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    line = "| " + " | ".join(head) + " |"
    rule = "|" + "---|" * len(head)
    return [line, rule, *("| " + " | ".join(row) + " |" for row in rows)]

"""What a report card holds: its fields, and one table of its figures.

The HTML page, the Markdown card, the tables of the command line and of the demo, and the metrics of recipes
are all made from that table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, TypedDict, TypeVar, get_type_hints

from latent_obs.encoders.provenance import check
from latent_obs.measures import Dimension, Drift

FORMAT = "latent_obs.report_card"
VERSION = 1
REPORTS_FORMAT = "latent_obs.reports"

# How an encoder runs in each backend; "openvino" is the fastest way on this CPU, by the compiled kernel too.
RUNS = {"openvino": "as wrappers do", "torch": "in eager PyTorch"}
# The encoder and its baselines, as fields and as headings of columns.
CODES = {"encoder": "encoder", "pca": "PCA", "random": "untrained"}

Content = Mapping[str, Any]  # JSON that other parts of the package wrote, kept as it is
_T = TypeVar("_T")


class ProbeScores(TypedDict):
    """What a reader scores on the game's state, with the features of one code: class-weighted F1, 0 to 1."""

    f1: float  # the mean over categories
    categories: dict[str, float]  # the mean over the variables of each
    variables: dict[str, float]


class _Probe(TypedDict):
    env_id: str
    env_kwargs: dict[str, Any]
    emulator: dict[str, Any]
    frames: dict[str, int]  # to "train" and to "test" on
    episodes: int
    seed: int
    readers: dict[str, dict[str, ProbeScores]]  # by reader, then by code or "majority"
    ball: dict[str, dict[str, dict[str, float]] | None]  # R^2 by code, reader and axis
    published: dict[str, float] | None


class Probe(_Probe, total=False):
    """What was read of a game's state: the value of :func:`latent_obs.evaluation.probe.probe_codes`."""

    created: str  # date (UTC), unless it is that of the card


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The figures that an encoder shares with its baselines.

    Attributes:
        moving_r2: 1 - residual energy / energy over the pixels that differ from the median frame.
        changing_r2: The same over the pixels that differ from the previous frame, relative to that frame.
        rare_r2: The same over the pixels of rare colours; ``None`` in cards made before it was measured.
        psnr: Peak signal-to-noise ratio in dB.
        position_r2: R^2 of ridge regression that reads where rare colours are; ``None`` where no rare colour
            moves.
        foreground: Share of the pixels that differ from the median frame.
    """

    moving_r2: float
    changing_r2: float
    psnr: float
    foreground: float
    rare_r2: float | None = None
    position_r2: float | None = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Which frames a card was measured on.

    Attributes:
        held_out: Whether they are the episodes that the encoder's own training held out, and those that were
            collected into its folder since, rather than episodes of another folder.
        episodes: How many episodes were measured on.
        baseline_episodes: On how many others the baselines were fitted.
        folder: The frames folder; ``None`` where the reader of the card does not have it.
        collection: What identifies the frames folder.
    """

    held_out: bool
    episodes: int
    baseline_episodes: int
    folder: str | None = None
    collection: Content = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the field ``data`` of ``card.json``."""
        folder = {} if self.folder is None else {"folder": self.folder}
        counts = {"episodes": self.episodes, "floor_episodes": self.baseline_episodes}
        return {**folder, "held_out": self.held_out, **counts, **self.collection}

    @classmethod
    def from_json(cls, value: Content) -> Measured:
        """Build from the field ``data`` of ``card.json``."""
        rest = {**value}
        own = {name: rest.pop(name) for name in ("held_out", "episodes")}
        return cls(
            **own,
            baseline_episodes=rest.pop("floor_episodes"),
            folder=rest.pop("folder", None),
            collection=rest,
        )


@dataclass(frozen=True, kw_only=True)
class ReportCard(Scores):
    """Numbers of an encoder on frames that it was not trained on; ``docs/formats.md`` says more of each.

    Attributes:
        encoder: What was asked for: a name, a folder or ``hf://USER/NAME``.
        env_id: What it was trained on, ``""`` where that is not known or several.
        latent_dim: Size of the latent.
        data: Which frames it was measured on.
        frames: How many.
        negative_elbo: Nats per frame, like the next three but one.
        bits_per_dim: ``negative_elbo`` / (12,288 ln 2).
        reconstruction: The first part of ``negative_elbo``.
        kl: The second part.
        active_units: Dimensions whose mean varies by more than 0.01 over the frames.
        by_episode: ``moving_r2`` and ``changing_r2`` of each episode; empty in older cards.
        baselines: The same scores of ``"pca"`` and ``"random"``.
        dimensions: The latents' statistics; empty where a card leaves them out.
        drift: How far the latents are from those of training.
        encode_us: Median microseconds to encode one frame, by backend; empty where a card leaves them out.
        probe: What was read of the game's state, if asked for.
        provenance: That of the encoder.
        labels: What the dimensions do, the value of :meth:`latent_obs.evaluation.labels.Labels.summary`;
            ``None`` where it was not measured.
        created: Date of the measurement (UTC), ``""`` in older cards.
        warnings: What a reader must not miss.
    """

    encoder: str
    env_id: str
    latent_dim: int
    data: Measured
    frames: int
    negative_elbo: float
    bits_per_dim: float
    reconstruction: float
    kl: float
    active_units: int
    baselines: Mapping[str, Scores]
    drift: Drift
    encode_us: Mapping[str, float] = field(default_factory=dict)
    dimensions: tuple[Dimension, ...] = ()
    by_episode: Mapping[str, list[float]] = field(default_factory=dict)
    probe: Probe | None = None
    labels: Content | None = None
    provenance: Content = field(default_factory=dict)
    created: str = ""
    warnings: tuple[str, ...] = ()

    def of(self, code: str) -> Scores:
        """Return the scores of ``"encoder"``, ``"pca"`` or ``"random"``."""
        return self if code == "encoder" else self.baselines[code]

    @property
    def following(self) -> int | None:
        """How many dimensions follow one variable; ``None`` where that was not measured."""
        return None if self.labels is None else int(self.labels["following"])

    @property
    def mig(self) -> float | None:
        """Mutual information gap, where the factors are known."""
        return self._metric("mig")

    @property
    def dci_disentanglement(self) -> float | None:
        """DCI's disentanglement, where the factors are known."""
        return self._metric("dci_disentanglement")

    def _metric(self, name: str) -> float | None:
        value = (self.labels or {}).get("metrics", {}).get(name)
        return None if value is None else float(value)

    @property
    def codes(self) -> dict[str, str]:
        """What was measured, with the name that people read: the encoder, then its baselines."""
        return {code: name for code, name in CODES.items() if code == "encoder" or code in self.baselines}

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Return the table of all figures: label, then the encoder's, PCA's and the untrained network's."""
        rows = []
        for figure in FIGURES:
            known = self.codes if figure.baselines else ("encoder",)
            cells = [figure.shown(self.of(code)) if code in known else "" for code in CODES]
            if cells[0]:
                rows.append((figure.label, *cells))
            if spread := self.spread(figure):
                rows.append((f"{figure.label}, by episode: mean (range)", spread, "", ""))
        for reader, scores in (self.probe or {"readers": {}})["readers"].items():
            rows.append((f"probe F1, {reader}", *(f"{scores[code]['f1']:.3f}" for code in CODES)))
        rows += [
            ("latent drift", "yes" if self.drift.drifted else "no", "", ""),
            ("shift of the latents' means, std", f"{self.drift.shift:.2f}", "", ""),
            ("spread of the latents, ratio", f"{self.drift.spread:.2f}", "", ""),
        ]
        rows += [
            (f"encode a frame {RUNS.get(name, name)}, µs", f"{us:,.0f}", "", "")
            for name, us in self.encode_us.items()
        ]
        return [(label, own, pca, random) for label, own, pca, random in rows]

    def spread(self, figure: Figure) -> str:
        """Return mean and range of a figure over episodes, ``""`` where they are not known."""
        values = self.by_episode.get(figure.key)
        if not values:
            return ""
        mean, low, high = (
            figure.form.format(x) for x in (sum(values) / len(values), min(values), max(values))
        )
        return f"{mean} ({low} to {high})"

    def probe_f1(self) -> dict[str, float]:
        """Return the probe's F1 of the encoder by reader; empty without a probe."""
        readers = self.probe["readers"] if self.probe else {}
        return {reader: scores["encoder"]["f1"] for reader, scores in readers.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``card.json``."""
        value = {each.name: getattr(self, each.name) for each in fields(self)}
        del value["baselines"]
        return {
            "format": FORMAT,
            "version": VERSION,
            **value,
            "data": self.data.to_json(),
            "floors": {code: asdict(scores) for code, scores in self.baselines.items()},
            "drift": asdict(self.drift),
            "dimensions": [asdict(dimension) for dimension in self.dimensions],
            "encode_us": dict(self.encode_us),
            "by_episode": dict(self.by_episode),
            "warnings": list(self.warnings),
        }

    @classmethod
    def from_json(cls, value: Any) -> ReportCard:
        """Build from the content of ``card.json``, also of an earlier version of this package.

        Raises:
            ValueError: If it is no report card, of another version, or lacks a field.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"It is no report card: its 'format' is not {FORMAT!r}.")
        if value.get("version") != VERSION:
            raise ValueError(
                f"It is a report card of version {value.get('version')!r}; this latent_obs reads {VERSION}."
            )
        try:
            parts = {
                "data": Measured.from_json(value["data"]),
                "baselines": {code: _build(Scores, each) for code, each in value["floors"].items()},
                "drift": _build(Drift, value["drift"]),
                "dimensions": tuple(_build(Dimension, each) for each in value.get("dimensions", ())),
                "warnings": tuple(value.get("warnings", ())),
            }
            card = _build(cls, {**value, **parts})
            _ = card.following, card.mig, card.dci_disentanglement  # what they look into is there
            return card
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"It is a damaged report card: a field is missing or wrong ({error})."
            ) from error


def _build(kind: type[_T], value: Content) -> _T:
    """Build from JSON, having checked its numbers and texts; parts that are built already stay."""
    types = get_type_hints(kind)
    known = {name: each for name, each in value.items() if name in types}
    for name, each in known.items():
        if types[name] in (bool, int, float, str, float | None):
            known[name] = check(each, types[name], name)
    return kind(**known)


@dataclass(frozen=True)
class Figure:
    """One row of the table of figures.

    Attributes:
        key: Name of the field of :class:`ReportCard`.
        label: What people read.
        form: How its value is formatted.
        baselines: Whether the baselines have it too.
        brief: Heading of its column in small tables, ``""`` where it is left out there.
    """

    key: str
    label: str
    form: str
    baselines: bool = False
    brief: str = ""

    def shown(self, scores: Scores | Content) -> str:
        """Format the figure of a card, of a baseline, or of the metrics in an encoder's config."""
        value = scores.get(self.key) if isinstance(scores, Mapping) else getattr(scores, self.key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "" if value is None else str(value)  # the metrics of an odd encoder
        return self.form.format(value)


FIGURES = (
    Figure("moving_r2", "moving-object R²", "{:.3f}", True, "moving R²"),
    Figure("changing_r2", "R² of what changes", "{:.3f}", True, "changing R²"),
    Figure("rare_r2", "R² of rare colours", "{:.3f}", True, "rare R²"),
    Figure("position_r2", "R² of positions, read linearly", "{:.3f}", True, "position R²"),
    Figure("psnr", "PSNR, dB", "{:.1f}", True, "PSNR dB"),
    Figure("negative_elbo", "negative ELBO, nats/frame", "{:,.1f}"),
    Figure("bits_per_dim", "negative ELBO, bits/dim", "{:.3f}"),
    Figure("reconstruction", "reconstruction, nats/frame", "{:,.1f}"),
    Figure("kl", "KL, nats/frame", "{:.1f}", brief="KL nats"),
    Figure("active_units", "active units", "{}", brief="active"),
    Figure("following", "dimensions that follow one variable", "{}"),
    Figure("mig", "mutual information gap (MIG)", "{:.3f}"),
    Figure("dci_disentanglement", "disentanglement (DCI)", "{:.3f}"),
    Figure("foreground", "pixels that differ from the median", "{:.1%}"),
)
BRIEF = tuple(figure for figure in FIGURES if figure.brief)


@dataclass(frozen=True)
class Reports:
    """The content of ``reports.json``: the cards of an encoder in several environments, on fresh frames.

    Attributes:
        recipe: Content of the recipe file.
        reports: A card for each environment.
        unseen: The environments that the encoder was not trained on.
    """

    recipe: Content
    reports: Mapping[str, ReportCard]
    unseen: tuple[str, ...]

    def seen(self) -> Iterator[tuple[bool, dict[str, ReportCard]]]:
        """Yield the environments trained on (``True``), then those never seen, as far as there are any."""
        for known in (True, False):
            if cards := {name: c for name, c in self.reports.items() if (name not in self.unseen) == known}:
                yield known, cards

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``reports.json``."""
        return {
            "format": REPORTS_FORMAT,
            "version": VERSION,
            "recipe": dict(self.recipe),
            "unseen": list(self.unseen),
            "reports": {name: card.to_json() for name, card in self.reports.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> Reports:
        """Build from the content of ``reports.json``.

        Raises:
            ValueError: If it is something else, or lacks a field.
        """
        if not isinstance(value, Mapping) or value.get("format") != REPORTS_FORMAT:
            raise ValueError(f"It holds no reports: its 'format' is not {REPORTS_FORMAT!r}.")
        try:
            cards = {name: ReportCard.from_json(card) for name, card in value["reports"].items()}
            return cls(dict(value["recipe"]), cards, tuple(value["unseen"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"It is damaged: a field is missing or wrong ({error}).") from error


def find_faults(card: ReportCard) -> tuple[str, ...]:
    """Say what a reader of the card must not miss, the worst first."""
    faults = []
    if card.active_units < 2:
        faults.append(
            f"COLLAPSED: {card.active_units} of {card.latent_dim} units are active, so the latent "
            "says next to nothing about the frame."
        )
    pca, compared = card.baselines["pca"], []
    for figure in FIGURES:
        if figure.baselines and (own := getattr(card, figure.key)) is not None:
            compared.append((figure.label, own, getattr(pca, figure.key)))
    for reader, scores in (card.probe or {"readers": {}})["readers"].items():
        compared.append((f"the {reader} probe's F1", scores["encoder"]["f1"], scores["pca"]["f1"]))
    # An R² of 1 of both means that nothing of the kind was there to be lost, such as rare colours.
    lost = [
        f"{label} ({own:.3g} against {best:.3g})" for label, own, best in compared if own <= best and own != 1
    ]
    if lost:
        faults.append(
            f"BEATEN BY PCA with {card.latent_dim} components in {'; '.join(lost)}. In that respect training "
            "the encoder was of no use."
        )
    if card.drift.drifted:
        faults.append(
            "DRIFT: these frames are unlike those that the encoder was trained on. The latents' means are "
            f"{card.drift.shift:.2f} standard deviations off, and their spread is {card.drift.spread:.2f} "
            "times that of training."
        )
    if card.foreground > 0.5:
        faults.append(
            f"MOVING CAMERA: {card.foreground:.0%} of the pixels differ from the per-pixel median, so "
            "the moving-object R² is about the whole picture here. Read the R² of what changes instead."
        )
    return tuple(faults)

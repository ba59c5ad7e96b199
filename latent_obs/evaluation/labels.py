"""What each dimension of a latent does, and what else in it a slider can move: ``labels.json``.

A dimension is labelled with the variable that explains most of it; :mod:`latent_obs.evaluation.labelling`
measures that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latent_obs.evaluation.walks import Walk
from latent_obs.files import write_atomically

FORMAT, VERSION = "latent_obs.labels", 1
LABELS = "labels.json"

# A dimension follows a variable that explains at least this share of its variance, and is ahead of the second
# variable by at least this share of its own.
FOLLOWS, EXCLUSIVE = 0.5, 0.25
# A dimension is visible if, moved from -2 to +2 standard deviations, it changes some pixel by this many
# levels.
VISIBLE = 16


@dataclass(frozen=True)
class Explained:
    """How much of a dimension a variable explains.

    Attributes:
        name: The variable.
        r2: Share of the dimension's variance that the variable alone explains, on episodes not fitted on.
    """

    name: str
    r2: float


@dataclass(frozen=True)
class Label:
    """What a dimension does.

    Attributes:
        explained: The three variables that explain most of it, the best first; empty if none explains 1%.
        exclusive: How far the best variable is ahead of the second, as a share of the best; 0 to 1.
        change: By how many levels the dimension changes the pixel that it changes most, 0 to 255.
    """

    explained: tuple[Explained, ...]
    exclusive: float
    change: float

    def __str__(self) -> str:
        """Say it in a few words."""
        if not self.visible:
            return "nothing visible"
        if self.follows:
            return f"{self.explained[0].name}, R² {self.explained[0].r2:.2f}"
        if not self.explained:
            return "unknown"
        if self.exclusive >= EXCLUSIVE:
            return f"partly {self.explained[0].name}, R² {self.explained[0].r2:.2f}"
        return f"mixed: {', '.join(f'{each.name} {each.r2:.2f}' for each in self.explained[:2])}"

    @property
    def follows(self) -> bool:
        """Whether one variable explains most of the dimension, and clearly more than any other."""
        return bool(self.explained) and self.explained[0].r2 >= FOLLOWS and self.exclusive >= EXCLUSIVE

    @property
    def visible(self) -> bool:
        """Whether a person can see the dimension move."""
        return self.change >= VISIBLE


@dataclass(frozen=True)
class Direction:
    """A straight line through the latent.

    Moving a latent by ``moves`` changes its reading, ``reads`` times (latent - mean), by 1. Readings have
    mean 0 and standard deviation 1 over the data.

    Attributes:
        name: ``"principal 1"``, of the largest variance, and so on.
        r2: Its share of the latents' variance.
        reads: Shape (latent_dim,).
        moves: Shape (latent_dim,).
        follows: How far the picture follows: a latent is moved by one standard deviation either way, decoded
            and encoded again, and this is the share of the way that its reading has then gone.
    """

    name: str
    r2: float
    reads: tuple[float, ...]
    moves: tuple[float, ...]
    follows: float = 1.0


@dataclass(frozen=True)
class Labels:
    """What the dimensions of an encoder do.

    Attributes:
        source: On which frames it was measured, as a part of a sentence.
        dimensions: A label for each dimension.
        walks: Walks along real frames, for the variables that the decoder draws.
        directions: The principal directions.
        whitening: Matrix that turns (latent - mean) into numbers of unit covariance, so that their length is
            the Mahalanobis distance from the data; shape (latent_dim, latent_dim).
        distances: The 50th, 95th and 99th percentile of that distance over the data.
        mean: Mean of the latents, shape (latent_dim,).
        metrics: MIG, DCI and SAP where the factors are known, else empty.
    """

    source: str
    dimensions: tuple[Label, ...]
    walks: tuple[Walk, ...]
    directions: tuple[Direction, ...]
    whitening: tuple[tuple[float, ...], ...]
    distances: tuple[float, float, float]
    mean: tuple[float, ...]
    metrics: Mapping[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return what a report card holds: how many dimensions are visible and how many follow a variable."""
        seen = [label for label in self.dimensions if label.visible]
        return {
            "source": self.source,
            "visible": len(seen),
            "following": sum(label.follows for label in seen),
            "metrics": self.to_json()["metrics"],
        }

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``labels.json``."""
        content: dict[str, Any] = _short({"format": FORMAT, "version": VERSION, **asdict(self)})
        return content

    @classmethod
    def from_json(cls, value: Any) -> Labels:
        """Build from the content of ``labels.json``.

        Raises:
            ValueError: If it is something else, or lacks a field.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"It holds no labels: its 'format' is not {FORMAT!r}.")
        try:
            return cls(
                source=str(value["source"]),
                dimensions=tuple(
                    Label(
                        tuple(Explained(str(each["name"]), float(each["r2"])) for each in one["explained"]),
                        float(one["exclusive"]),
                        float(one["change"]),
                    )
                    for one in value["dimensions"]
                ),
                walks=tuple(
                    Walk(
                        str(one["name"]),
                        _floats(one["values"]),
                        tuple(_floats(row) for row in one["latents"]),
                        float(one["drawn"]),
                        tuple(map(str, one["along"])),
                    )
                    for one in value.get("walks", ())  # an encoder labelled without them has none
                ),
                directions=tuple(
                    Direction(
                        str(one["name"]),
                        float(one["r2"]),
                        _floats(one["reads"]),
                        _floats(one["moves"]),
                        float(one["follows"]),
                    )
                    for one in value["directions"]
                ),
                whitening=tuple(_floats(row) for row in value["whitening"]),
                distances=_three(value["distances"]),
                mean=_floats(value["mean"]),
                metrics=dict(value["metrics"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"It is damaged: a field is missing or wrong ({error}).") from error


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = _floats(values)
    return first, second, third


def _short(value: Any) -> Any:
    """Round to four digits: nobody sees more of them."""
    if isinstance(value, Mapping):
        return {key: _short(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_short(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def write_labels(labels: Labels, folder: Path) -> None:
    """Write ``labels.json`` into an encoder folder."""
    content = json.dumps(labels.to_json(), separators=(",", ":"), allow_nan=False) + "\n"
    write_atomically(folder / LABELS, content.encode())


def read_labels(folder: Path, latent_dim: int) -> Labels | None:
    """Read an encoder folder's labels; ``None`` if it has none.

    Raises:
        ValueError: If the file is damaged, or of an encoder of another size.
    """
    path = folder / LABELS
    if not path.exists():
        return None
    try:
        labels = Labels.from_json(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    sizes = {len(labels.dimensions), len(labels.mean), len(labels.whitening)}
    sizes |= {len(row) for walk in labels.walks for row in walk.latents}
    if sizes != {latent_dim}:
        raise ValueError(f"{path}: It belongs to another encoder, whose latents have another size.")
    return labels

"""How an encoder was made and how good it is: ``provenance`` and ``metrics`` of ``config.json``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R", bound="Record")


@dataclass(frozen=True, eq=False)
class Record(Mapping[str, Any]):
    """A JSON object with declared fields, which also reads like the object itself: ``record["name"]``.

    A field that is ``None`` by default is left out of the object while it is ``None``.

    Attributes:
        other: Fields that this version does not know. They are kept, so that writing an object that was read
            loses nothing.
    """

    other: Mapping[str, object] = field(default_factory=dict, kw_only=True)

    @classmethod
    def from_json(cls: type[R], value: object, where: str = "") -> R:
        """Build from a JSON object.

        Args:
            value: The object.
            where: Its name for error messages; by default that of the class.

        Raises:
            ValueError: If it is no object, or a declared field is missing or has the wrong type.
        """
        where = where or cls.__name__.lower()
        if isinstance(value, cls):
            return value
        content = _object(value, where)
        types, known = get_type_hints(cls), {}
        for each in fields(cls):
            if each.name == "other":
                continue
            if each.name in content:
                known[each.name] = check(content[each.name], types[each.name], f"{where}.{each.name}")
            elif each.default is MISSING and each.default_factory is MISSING:
                raise ValueError(f"{where}.{each.name} is missing")
        return cls(**known, other={name: content[name] for name in content if name not in known})

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        content: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name != "other" and not (value is None and each.default is None):
                content[each.name] = value.to_json() if isinstance(value, Record) else value
        return {**content, **self.other}

    def __getitem__(self, name: str) -> Any:
        """Return the value of a field of the JSON object."""
        return self.to_json()[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the JSON object's fields."""
        return iter(self.to_json())

    def __len__(self) -> int:
        """Return the number of the JSON object's fields."""
        return len(self.to_json())


@dataclass(frozen=True, eq=False)
class Run(Record):
    """What identifies a training run; two runs that are equal in it train the same encoder.

    Args:
        config: The options of ``latent-obs train`` that decide the weights
            (:meth:`latent_obs.TrainConfig.to_json`).
        data: What identifies the frames (:attr:`latent_obs.FramesFolder.identity`).
        init_from: SHA-256 of the weights that training started from, if it started from an encoder.
    """

    config: dict[str, object]
    data: dict[str, object]
    init_from: str | None


@dataclass(frozen=True, eq=False)
class Refreshed(Record):
    """What ``latent-obs refresh`` started from, and what it measured on held-out frames of the agent.

    Args:
        encoder: The old encoder.
        sha256: SHA-256 of its weights.
        policy: The agent.
        frames: Number of those frames.
        r2: How much of the variance of the old encoder's latents the new one's are.
        moving_r2_before: R² of what moves in the frames, of the old encoder.
        moving_r2: The same of the new one.
    """

    encoder: str
    sha256: str
    policy: str
    frames: int
    r2: float
    moving_r2_before: float
    moving_r2: float


@dataclass(frozen=True, eq=False)
class HeldPlaces(Record):
    """What the first dimensions of a latent are held to: :class:`latent_obs.training.places.Places` as JSON.

    Args:
        names: What each of these dimensions is, such as ``"x of all colours where little moves"``.
        chosen: Their numbers among all coordinates of all groups of pixels.
        mean: The mean of each over the frames that it was chosen on, from -1 (left, top) to 1.
        std: Its standard deviation.
        widest: The variance of the pixels, in x and y together, up to which a frame shows this place.
        colors: The colours that pixels are grouped by, levels (at most 5, 3).
        median: The median frame, base64 of zlib of ``uint8`` (64, 64, 3).
        seldom: Where pixels of each colour, and of all, move seldom; base64 of zlib of bits
            (colours + 1, 64, 64).
    """

    names: list[str]
    chosen: list[int]
    mean: list[float]
    std: list[float]
    widest: list[float]
    colors: list[list[float]]
    median: str
    seldom: str


@dataclass(frozen=True, eq=False)
class Provenance(Record):
    """How an encoder was made. A field is ``None`` where nothing is known of it.

    Args:
        run: The training run.
        steps: Optimiser steps taken.
        kept_step: The step whose weights were kept; less than ``steps`` after early stopping.
        collapsed: Whether fewer than 2 latent dimensions are active.
        seconds: Duration of training.
        created: Date and time (UTC) of its end, in ISO format.
        machine: Architecture, device and number of threads.
        processes: Processes that shared each batch.
        precision: ``"float32"`` or ``"bfloat16"``.
        precision_because: Why training ran in that precision.
        libraries: Versions by name.
        weights: Precision of the stored weights, ``"float16"`` or ``"float32"``. Recipes set this field and
            the next ones.
        recipe: Name of the recipe.
        license: SPDX identifier of the weights' licence.
        build_seconds: Seconds of collecting and of measuring, and the number of ``cores``.
        refreshed: Of a refreshed encoder, which one it goes on from.
        places: Where dimensions are held to places, what these are.
    """

    run: Run | None = None
    steps: int | None = None
    kept_step: int | None = None
    collapsed: bool | None = None
    seconds: float | None = None
    created: str | None = None
    machine: str | None = None
    processes: int | None = None
    precision: str | None = None
    precision_because: str | None = None
    libraries: dict[str, str] | None = None
    weights: str | None = None
    recipe: str | None = None
    license: str | None = None
    build_seconds: dict[str, float] | None = None
    refreshed: Refreshed | None = None
    places: HeldPlaces | None = None


@dataclass(frozen=True, eq=False)
class Metrics(Record):
    """How good an encoder is on frames that it was not trained on; a field is ``None`` if not measured.

    Args:
        frames: Number of those frames.
        negative_elbo: Nats per frame, the decoder's density taken over levels 0 to 255.
        bits_per_dim: The same over 12,288 ln 2.
        reconstruction: -log p(frame | z), a part of it.
        kl: KL divergence of the posterior, the other part.
        active_units: Dimensions of the latent whose mean varies by more than 0.01 over the frames.
        psnr: Peak signal-to-noise ratio of the reconstruction in dB.
        moving_r2: 1 - residual energy / energy over the pixels that differ from the median frame.
        rare_r2: The same over the pixels of rare colours.
        changing_r2: The same over the pixels that differ from the previous frame, relative to that frame.
        position_r2: R^2 of ridge regression that reads where rare colours are.
        following: Dimensions that follow one variable, where that was measured.
        mig: Mutual information gap, where the factors of the frames are known.
        dci_disentanglement: DCI's disentanglement, likewise.
        foreground: Share of the pixels that differ from the median frame.
        collapsed: Whether fewer than 2 latent dimensions are active.
        probe_f1: What a linear classifier reads of the game's state, 0 to 1, by the way of fitting it.
    """

    frames: int | None = None
    negative_elbo: float | None = None
    bits_per_dim: float | None = None
    reconstruction: float | None = None
    kl: float | None = None
    active_units: int | None = None
    psnr: float | None = None
    moving_r2: float | None = None
    rare_r2: float | None = None
    changing_r2: float | None = None
    position_r2: float | None = None
    following: float | None = None
    mig: float | None = None
    dci_disentanglement: float | None = None
    foreground: float | None = None
    collapsed: bool | None = None
    probe_f1: dict[str, float] | None = None


def check(value: object, wanted: Any, where: str) -> Any:
    """Return a JSON value if it has the declared type.

    Args:
        value: The value.
        wanted: ``bool``, ``int``, ``float`` (a finite number), ``str``, ``object`` (any JSON value), a
            :class:`Record`, a ``dict`` or ``list`` of these, or one of them ``| None``.
        where: The value's name for error messages.

    Raises:
        ValueError: If it has another type.

    Example:
        >>> check({"a": 1}, dict[str, float], "seconds")
        {'a': 1.0}
    """
    if get_origin(wanted) in (Union, UnionType):
        (wanted,) = (kind for kind in get_args(wanted) if kind is not NoneType)
        return None if value is None else check(value, wanted, where)
    if wanted is object:
        return value
    if get_origin(wanted) is dict:
        kind = get_args(wanted)[1]
        return {name: check(each, kind, f"{where}.{name}") for name, each in _object(value, where).items()}
    if get_origin(wanted) is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {shown(value)}")
        return [check(each, get_args(wanted)[0], f"{where}[{i}]") for i, each in enumerate(value)]
    if isinstance(wanted, type) and issubclass(wanted, Record):
        return wanted.from_json(value, where)
    if wanted is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) < math.inf and abs(value) <= 1e308:
            return float(value)
        raise ValueError(f"{where} must be a finite number, got {shown(value)}")
    if isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)):
        return value
    raise ValueError(f"{where} must be {_NAMES[wanted]}, got {shown(value)}")


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    return value


def shown(value: object) -> str:
    """Return a value of an artefact for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

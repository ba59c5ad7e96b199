"""What a recipe says: the dataclasses behind the JSON files of this folder, and how one is read.

``docs/formats.md`` specifies the files. :mod:`latent_obs.recipe` builds and measures by them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from latent_obs.collecting.config import CollectConfig

if TYPE_CHECKING:
    from latent_obs.training.config import TrainConfig

RECIPES = Path(__file__).parent
_T = TypeVar("_T")


@dataclass(frozen=True)
class Collection:
    """Frames to collect, of one environment after another.

    Args:
        env_ids: Environments, each as :class:`~latent_obs.CollectConfig` takes it.
        frames: Frames of each.
        policy: What acts.
        seed: Seed of environments and policies.
        workers: A part of the recipe: other workers collect other frames.
        env_kwargs: Keyword arguments for ``gymnasium.make``.
        key: The entry of ``Dict`` observations to collect.

    Raises:
        ValueError: If a number is out of range, or an environment is missing or named twice.
    """

    env_ids: tuple[str, ...]
    frames: int
    policy: str = "random:0.5,sticky:0.5"
    seed: int = 0
    workers: int = 2
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    key: str | None = None

    def __post_init__(self) -> None:
        if not self.env_ids or len(set(self.env_ids)) < len(self.env_ids):
            raise ValueError(
                f"env_ids must name one environment or more, each once, got {list(self.env_ids)}"
            )
        self.config(self.env_ids[0], Path())  # a number out of range is reported here

    def config(self, env_id: str, out: Path) -> CollectConfig:
        """Return what to collect of one environment."""
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "env_ids"}
        return CollectConfig(env_id, out, **options)


@dataclass(frozen=True)
class Recipe:
    """How to make an encoder.

    Args:
        name: The encoder's name, such as ``"pong-v0"``; new weights get a new number.
        about: What it is for, one sentence.
        collect: Frames to train on.
        train: Fields of :class:`~latent_obs.TrainConfig` that differ from its defaults.
        evaluate: Frames to measure on; their seed differs from all of ``collect``.
        probe: Also read the game's RAM from the latents.
        license: SPDX identifier of the weights' licence.
        failures: What it is known to get wrong, a sentence each.
        retired: Why this version of latent_obs cannot build it, a sentence; ``""`` (default): it can.

    Raises:
        ValueError: If a field is missing, unknown or wrong, or a seed to measure with was trained on.

    Example:
        >>> read_recipe("pong-v0").collect[0].env_ids
        ('ALE/Pong-v5',)
    """

    name: str
    about: str
    collect: tuple[Collection, ...]
    train: dict[str, Any]
    evaluate: tuple[Collection, ...]
    probe: bool = False
    license: str = "MIT"
    failures: tuple[str, ...] = field(default=())
    retired: str = ""

    def __post_init__(self) -> None:
        if not self.collect or not self.evaluate:
            raise ValueError("it needs frames to train on (collect) and to measure on (evaluate)")
        if seeds := {c.seed for c in self.collect} & {c.seed for c in self.evaluate}:
            raise ValueError(
                f"evaluate has the seed {min(seeds)} of collect, so it would see the same episodes"
            )

    @classmethod
    def from_json(cls, name: str, value: Any) -> Recipe:
        """Build from the content of a recipe file."""
        if not isinstance(value, Mapping):
            raise ValueError("it is no JSON object")
        if "name" in value:
            raise ValueError("it has the unknown field 'name': the name of the file is the recipe's name")
        parts = {**value, "name": name}
        for part in {"collect", "evaluate"} & set(value):
            if not isinstance(value[part], list):
                raise ValueError(f"{part} must be a list of collections, got {value[part]!r}")
            each = (_typed(Collection, item, f"{part}[{i}]") for i, item in enumerate(value[part]))
            parts[part] = tuple(each)
        return _typed(cls, parts, "it")

    def to_json(self) -> dict[str, Any]:
        """Return the content of a recipe file."""
        content = asdict(self)
        del content["name"]
        return content

    def training(self, data: Path, out: Path) -> TrainConfig:
        """Return how to train.

        Raises:
            ValueError: If ``train`` holds an option that training does not have, or a wrong value.
        """
        from latent_obs.training.config import TrainConfig

        options: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.train.items()
        }
        try:
            return TrainConfig(data, out, **options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The recipe {self.name} trains with options that are wrong: {error}") from error


# How the fields of a recipe are written in JSON.
_JSON_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a string", lambda value: isinstance(value, str)),
    "str | None": ("a string or null", lambda value: value is None or isinstance(value, str)),
    "int": ("a whole number", lambda value: type(value) is int),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "dict[str, Any]": ("an object", lambda value: isinstance(value, dict)),
    "tuple[str, ...]": (
        "a list of strings",
        lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
    ),
}


def _typed(kind: type[_T], value: Any, where: str) -> _T:
    """Build a part of a recipe from JSON, having checked the names and types of its fields."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {value!r}")
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - set(known)):
        raise ValueError(f"{where} has the unknown field {unknown[0]!r}; there are {', '.join(known)}")
    for name, each in known.items():
        if name not in value and each.default is MISSING and each.default_factory is MISSING:
            raise ValueError(f"{where} lacks a field: {name!r} is missing")
        expected, fits = _JSON_TYPES.get(str(each.type), ("", lambda _: True))
        if name in value and not fits(value[name]):
            raise ValueError(f"{where} has a wrong field: {name} must be {expected}, got {value[name]!r}")
    return kind(**{name: tuple(each) if isinstance(each, list) else each for name, each in value.items()})


def list_recipes() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.json"))


def read_recipe(ref: str) -> Recipe:
    """Read a recipe file.

    Args:
        ref: Name of a bundled recipe, or path of a file.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If it is no recipe.
    """
    path = RECIPES / f"{ref}.json" if ref in list_recipes() else Path(ref)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {ref!r}: neither a bundled one ({', '.join(list_recipes())}) nor a file."
        )
    try:
        text = path.read_text(encoding="utf-8")
        return Recipe.from_json(path.stem, json.loads(text, object_pairs_hook=_once))
    except ValueError as error:
        raise ValueError(f"{path} is no recipe: {str(error).rstrip('.')}.") from error
    except RecursionError as error:
        raise ValueError(f"{path} is no recipe: it is nested too deeply.") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object, and refuse a name that it gives twice: only one of the values would count."""
    counts = Counter(name for name, _ in pairs)
    if repeated := [name for name, count in counts.items() if count > 1]:
        raise ValueError(f"the field {repeated[0]!r} is there {counts[repeated[0]]} times")
    return dict(pairs)

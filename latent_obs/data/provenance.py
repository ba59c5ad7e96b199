"""What identifies a collection: everything that decides its frames.

Resuming, training, merging, checking and encoding all compare a :class:`Collection`; none of them
keeps a list of names of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from latent_obs.frames import FrameSpec

# Bounds of what is believed of a file's metadata.
MAX_WORKERS = 100_000


@dataclass(frozen=True)
class Collection:
    """Everything that decides the frames of a collection; each of its shards stores it.

    Two collections that are equal have the same frames. Fields without a default are always in the
    JSON; the others are left out of it while they have their default, so that what was stored before
    a field existed still compares as equal.

    Args:
        env_id: Gymnasium id; ``None`` where it is not known.
        env_kwargs: Keyword arguments of ``gymnasium.make``.
        frame_spec: How frames are made from observations.
        policy: What acted, as ``latent-obs collect`` names it.
        seed: Seed of environments and policies.
        workers: Number of workers that shared the work.
        shard_rows: Rows after which a shard ended; ``None`` where shards were made otherwise.
        key: Entry of Dict observations that was collected.
        render: Whether drawings of the environment were collected; ``None`` for its own observations.
        wrapper: What was put around the environment.
        policy_encoder: Encoder whose latents the policy's saved model acted on.
        policy_normalize: Whether that model was given scaled latents.
        policy_files: Digest of each saved model and encoder that acted, by its name.
        minari: The Minari dataset that the frames were imported from.
        split: Which part of which split this is, one entry for each time it was split.

    Example:
        >>> pong = Collection("ALE/Pong-v5", {}, FrameSpec(), "random", 0, 2, 8192)
        >>> pong.differences(replace(pong, seed=1))
        [('seed', 0, 1)]
    """

    env_id: str | None
    env_kwargs: dict[str, Any] | None
    frame_spec: FrameSpec
    policy: str | None
    seed: int | None
    workers: int | None
    shard_rows: int | None
    key: str | None = None
    render: bool | None = None
    wrapper: str | None = None
    policy_encoder: str | None = None
    policy_normalize: bool | None = None
    policy_files: dict[str, str] | None = None
    minari: dict[str, Any] | None = None
    split: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the collection as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["frame_spec"] = self.frame_spec.to_json()
        return {name: value for name, value in values.items() if name in _ALWAYS or value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Collection:
        """Read a collection from a shard's metadata or an encoder's provenance.

        Args:
            value: What :meth:`to_json` returned, among other fields; missing fields are ``None``.

        Raises:
            ValueError: If a field has another type than it must have, or is out of bounds.
        """
        found: dict[str, Any] = {field.name: value.get(field.name) for field in fields(cls)}
        for name, kind in _KINDS.items():
            given = found[name]
            if given is not None and (not isinstance(given, kind) or (kind is int and given is True)):
                raise ValueError(f"its {name} must be {_WORDS[kind]}, got {_short(given)}")
        if found["seed"] is not None and found["seed"] < 0:
            raise ValueError(f"its seed must not be negative, got {found['seed']}")
        for name, most in (("workers", MAX_WORKERS), ("shard_rows", 2**31)):
            if found[name] is not None and not 1 <= found[name] <= most:
                raise ValueError(f"its {name} must be from 1 to {most:,}, got {_short(found[name])}")
        if not isinstance(value.get("frame_spec"), Mapping):
            raise ValueError(f"its frame_spec must be an object, got {_short(value.get('frame_spec'))}")
        found["frame_spec"] = FrameSpec.from_json(value["frame_spec"])
        return cls(**found)

    def differences(self, other: Collection) -> list[tuple[str, Any, Any]]:
        """Return name, value here and value there of each field in which two collections differ."""
        mine, theirs = self.to_json(), other.to_json()
        names = [field.name for field in fields(self)]
        return [(n, mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n)]

    def origin(self) -> Collection:
        """Return what decides a single episode of a given worker and shard.

        How many workers there were, where shards ended and which part a split kept decide which
        episodes there are, but not what is in one.
        """
        return replace(self, workers=None, shard_rows=None, split=None)


_ALWAYS = ("env_id", "env_kwargs", "frame_spec", "policy", "seed", "workers", "shard_rows")
_KINDS: dict[str, type] = {
    "env_id": str,
    "env_kwargs": dict,
    "policy": str,
    "seed": int,
    "workers": int,
    "shard_rows": int,
    "key": str,
    "render": bool,
    "wrapper": str,
    "policy_encoder": str,
    "policy_normalize": bool,
    "policy_files": dict,
    "minari": dict,
    "split": list,
}
_WORDS = {str: "a string", dict: "an object", int: "an integer", bool: "true or false", list: "a list"}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

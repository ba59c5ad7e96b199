"""The frame contract: what a frame is, and how an observation becomes one.

A frame is ``uint8``, RGB, shape ``(64, 64, 3)``, C-contiguous, values 0 to 255. Cropping and
resizing happen here and nowhere else, so what the encoder was trained on and what it meets
when a policy is served cannot differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

from latent_obs.images import ABOUT_VECTORS, ImageLayout, as_json, image_layout

try:
    from latent_obs import _area
except ImportError:  # it is optional: built only where there is a C compiler
    _area = None  # type: ignore[assignment]

Frame = npt.NDArray[np.uint8]  # (64, 64, 3)
Frames = npt.NDArray[np.uint8]  # (N, 64, 64, 3)

FRAME_SHAPE = (64, 64, 3)
FRAME_BYTES = 64 * 64 * 3


@dataclass(frozen=True)
class FrameSpec:
    """How an observation becomes a frame; stored in frames folders and encoder folders.

    Args:
        crop: Rows and columns to keep before resizing, as ``(top, bottom, left, right)`` in
            pixels with Python's slice meaning, or ``None`` for the whole image.
        interpolation: ``"area"``, cv2's ``INTER_AREA``. Linear makes small objects flicker
            and nearest loses them, so there is no other choice.

    Raises:
        ValueError: If the crop is empty or the interpolation is unknown.

    Example:
        >>> FrameSpec(crop=(34, 194, 0, 160))
        FrameSpec(crop=(34, 194, 0, 160), interpolation='area')
        >>> FrameSpec.from_json({"crop": None, "interpolation": "area"}) == FrameSpec()
        True
    """

    crop: tuple[int, int, int, int] | None = None
    interpolation: str = "area"

    def __post_init__(self) -> None:
        if self.interpolation != "area":
            raise ValueError(
                f"FrameSpec.interpolation must be 'area', got {self.interpolation!r}. "
                "This version of latent_obs resizes frames in no other way."
            )
        if self.crop is not None:
            if len(self.crop) != 4 or not all(isinstance(n, int) for n in self.crop):
                raise ValueError(f"FrameSpec.crop must be four integers, got {self.crop!r}.")
            top, bottom, left, right = self.crop
            if not (0 <= top < bottom and 0 <= left < right):
                raise ValueError(
                    "FrameSpec.crop must be (top, bottom, left, right) with 0 <= top < bottom "
                    f"and 0 <= left < right, got {self.crop}."
                )

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON values."""
        return {
            "crop": None if self.crop is None else list(self.crop),
            "interpolation": self.interpolation,
        }

    @classmethod
    def from_json(cls, value: Any) -> FrameSpec:
        """Build a spec from :meth:`to_json`'s value.

        Raises:
            ValueError: If a field is missing, unknown or invalid.
        """
        if not isinstance(value, Mapping) or set(value) != {"crop", "interpolation"}:
            raise ValueError(
                f"A frame spec must have exactly the fields 'crop' and 'interpolation', got {value!r}."
            )
        crop = value["crop"]
        if crop is not None and not isinstance(crop, (list, tuple)):
            raise ValueError(f"FrameSpec.crop must be four integers or null, got {crop!r}.")
        return cls(None if crop is None else tuple(crop), value["interpolation"])


@dataclass(frozen=True)
class FrameSource:
    """Where frames come from: the environment and the emulator settings behind its pixels.

    Args:
        env_id: Gymnasium id, such as ``"ALE/Pong-v5"``; ``""`` when the env has no spec.
        env_kwargs: Keyword arguments given to ``gymnasium.make``; JSON values.
        emulator: For ALE games ``game``, ``frameskip``, ``repeat_action_probability``,
            ``max_pool`` and ``noop_max``; empty for other environments.
    """

    env_id: str = ""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    emulator: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the source as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FrameSource:
        """Build a source from :meth:`to_json`'s value; missing fields keep their defaults."""
        return cls(
            str(value.get("env_id", "")),
            dict(value.get("env_kwargs", {})),
            dict(value.get("emulator", {})),
        )

    @classmethod
    def combine(cls, sources: Sequence[FrameSource]) -> FrameSource:
        """Describe frames of several sources together: every environment, and the settings all share.

        Args:
            sources: At least one.

        Example:
            >>> pong = FrameSource("ALE/Pong-v5", {}, {"game": "pong", "frameskip": 4})
            >>> tennis = FrameSource("ALE/Tennis-v5", {}, {"game": "tennis", "frameskip": 4})
            >>> FrameSource.combine([pong, tennis])
            FrameSource(env_id='ALE/Pong-v5 + ALE/Tennis-v5', env_kwargs={}, emulator={'frameskip': 4})
        """

        def shared(values: list[dict[str, Any]]) -> dict[str, Any]:
            first, *others = values
            missing = object()
            return {k: v for k, v in first.items() if all(o.get(k, missing) == v for o in others)}

        ids = dict.fromkeys(env_id for source in sources for env_id in source.env_ids)
        return cls(
            " + ".join(ids),
            shared([source.env_kwargs for source in sources]),
            shared([source.emulator for source in sources]),
        )

    @property
    def env_ids(self) -> tuple[str, ...]:
        """The environments, more than one for frames of a merged folder."""
        return tuple(self.env_id.split(" + ")) if self.env_id else ()

    def differences(self, other: FrameSource, ignore: Sequence[str] = ()) -> list[str]:
        """Name the emulator settings in which two sources differ; empty when either has none.

        Args:
            other: The source that is called "here".
            ignore: Settings that do not matter.

        Example:
            >>> pong = FrameSource("ALE/Pong-v5", {}, {"game": "pong", "frameskip": 4})
            >>> pong.differences(FrameSource("X", {}, {"game": "pong", "frameskip": 1}))
            ['frameskip 4, here 1']
        """
        if not (self.emulator and other.emulator):
            return []
        return [
            f"{name} {value!r}, here {other.emulator.get(name)!r}"
            for name, value in self.emulator.items()
            if other.emulator.get(name) != value and name not in ignore
        ]


def frame_source(env: Any) -> FrameSource:
    """Read off an environment's spec which game and emulator settings its pixels come from.

    Args:
        env: An environment, a vector environment or a spec. An environment without a Gymnasium
            spec, because it was not made by ``gymnasium.make``, has no settings to compare. Of a vector
            environment without one, its environments are asked.

    Example:
        >>> frame_source(gym.make("CartPole-v1")).env_id
        'CartPole-v1'
        >>> pongs = gym.vector.SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 2)
        >>> frame_source(pongs).env_id
        'CartPole-v1'
    """
    specs = specs_of(env)
    sources = [_source_of(spec) for spec in specs]
    if not sources:
        return FrameSource()
    return sources[0] if all(source == sources[0] for source in sources) else FrameSource.combine(sources)


def specs_of(env: Any) -> list[EnvSpec]:
    """Return the spec of an environment, or those of a vector environment's; empty where none is known."""
    if isinstance(env, list):
        return [spec for spec in env if isinstance(spec, EnvSpec)]
    spec = env if isinstance(env, EnvSpec) else getattr(env, "spec", None)
    if isinstance(spec, EnvSpec):
        return [spec]
    if not isinstance(env, gym.vector.VectorEnv):
        return []
    inner = env.unwrapped
    if isinstance(inner, gym.vector.SyncVectorEnv):
        found = [one.spec for one in inner.envs]
    elif isinstance(inner, gym.vector.AsyncVectorEnv):
        # A spec that holds a lambda would not come back from a worker, and the worker would end. The names
        # of the environments do come back; if all are alike, one that is made here speaks for them.
        if len(set(inner.call("__str__"))) > 1:
            return []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the vector environment was made
            one = inner.env_fns[0]()
        found = [one.spec]
        one.close()
    else:
        return []
    return [spec for spec in found if spec is not None] if None not in found else []


def _source_of(spec: EnvSpec) -> FrameSource:
    kwargs = {name: as_json(value) for name, value in spec.kwargs.items() if name not in ABOUT_VECTORS}
    emulator: dict[str, Any] = {}
    if str(spec.entry_point).startswith("ale_py"):
        # ALE's own vector environment has other defaults than the plain one.
        native = spec.kwargs.get("vectorization_mode") == "vector_entry_point"
        emulator = {
            "game": kwargs.get("game"),
            "frameskip": kwargs.get("frameskip", 4),
            "repeat_action_probability": kwargs.get("repeat_action_probability", 0.0 if native else 0.25),
            "max_pool": bool(native and kwargs.get("maxpool", True)),
            "noop_max": kwargs.get("noop_max", 30) if native else 0,
        }
        for wrapper in spec.additional_wrappers:
            options = wrapper.kwargs or {}
            if wrapper.name in ("AtariPreprocessing", "MaxAndSkipObservation", "MaxAndSkipEnv"):
                skip = options.get("frame_skip", options.get("skip", 4))
                emulator["frameskip"] *= skip
                emulator["max_pool"] = skip > 1
            if wrapper.name in ("AtariPreprocessing", "NoopResetEnv"):
                emulator["noop_max"] = options.get("noop_max", 30)
    return FrameSource(spec.id, kwargs, emulator)


def check_frame_space(space: gym.Space[Any], who: str, env: Any = None) -> None:
    """Refuse, before the first step, a space whose observations are no ``uint8`` RGB images.

    Args:
        space: The space of one observation.
        who: The name that opens the error message.
        env: The environment or its spec, whose makers' line the error shows.

    Raises:
        ValueError: If the space is not a ``uint8`` ``Box`` of shape ``(H, W, 3)``.
    """
    if (layout := image_layout(space, who, env)) is not None:
        about = f"a {space.dtype} Box of shape {space.shape}"
        cure = (
            "Ask the environment for RGB (for ALE, obs_type='rgb')."
            if layout.gray
            else ("Put it before wrappers that scale or transpose.")
        )
        raise ValueError(f"{who} needs uint8 RGB observations of shape (H, W, 3), got {about}. {cure}")


def preprocess(obs: npt.NDArray[Any], spec: FrameSpec, layout: ImageLayout | None = None) -> Frame:
    """Turn one raw observation into a frame.

    Args:
        obs: RGB image, ``uint8`` in [0, 255], shape ``(H, W, 3)``; with a ``layout``, what that describes.
        spec: Crop and interpolation; at run time ``encoder.frame_spec``, so the policy
            sees what the encoder was trained on.
        layout: How ``obs`` is arranged if not so, from :func:`~latent_obs.images.image_layout`. A gray
            image becomes RGB of equal channels.

    Returns:
        RGB image, ``uint8`` in [0, 255], shape ``(64, 64, 3)``, C-contiguous. It is ``obs``
        itself when that already is such an image.

    Raises:
        ValueError: If ``obs`` is not ``uint8`` of shape ``(H, W, 3)``, or the crop leaves
            nothing of it.

    Example:
        >>> preprocess(np.zeros((210, 160, 3), np.uint8), FrameSpec()).shape
        (64, 64, 3)

    Source: Ha & Schmidhuber (2018), "World Models".
    """
    if layout is not None:
        obs = layout.to_rgb(obs)
    if not isinstance(obs, np.ndarray) or obs.dtype != np.uint8 or obs.ndim != 3 or obs.shape[2] != 3:
        got = f"{obs.dtype} of shape {obs.shape}" if isinstance(obs, np.ndarray) else type(obs).__name__
        raise ValueError(f"An observation must be uint8 RGB of shape (H, W, 3), got {got}.")
    if spec.crop is not None:
        top, bottom, left, right = spec.crop
        if bottom > obs.shape[0] or right > obs.shape[1]:
            raise ValueError(
                f"The crop {spec.crop} (top, bottom, left, right) needs an image of at least "
                f"({bottom}, {right}) pixels, got {obs.shape[:2]}. The encoder or frames folder "
                "was made for another image size."
            )
        obs = obs[top:bottom, left:right]
    if obs.shape == FRAME_SHAPE:
        return np.ascontiguousarray(obs)
    if _area is not None and min(obs.shape[:2]) >= 64:
        frame = np.empty(FRAME_SHAPE, np.uint8)
        _area.resize(obs if obs.strides[1:] == (3, 1) else np.ascontiguousarray(obs), frame)
        return frame
    return cv2.resize(obs, (64, 64), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

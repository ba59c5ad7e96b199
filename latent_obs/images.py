"""How environments arrange their images, and the line to type where they show none that can be encoded.

Environments give gray images, planar ones, floats or a stack of one; each becomes ``uint8`` RGB here, before
:mod:`latent_obs.frames` crops and resizes it. A space that can be read in two ways is refused, and the error
holds the line that decides.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec

# Smaller than this on a side is no picture; without channels it may be a table, as highway-env's of cars is.
_SMALLEST, _SMALLEST_GRAY = 4, 16
# What of a vector environment's arguments a plain ALE environment takes too.
_ALE_OPTIONS = ("frameskip", "repeat_action_probability", "mode", "difficulty")
# Arguments that say how environments run together or draw, not what they show.
ABOUT_VECTORS = ("render_mode", "num_envs", "vectorization_mode", "vector_kwargs", "autoreset_mode")
_RENDERERS = {"RGBImgObsWrapper", "RGBImgPartialObsWrapper", "AddRenderObservation"}
_RENDER = "gym.wrappers.AddRenderObservation"


@dataclass(frozen=True)
class ImageLayout:
    """How the images of a space are arranged, where that is not ``uint8`` of shape ``(H, W, 3)``.

    Args:
        order: The axes: height, width and channels last, channels first, or without channels.
        gray: Whether there is one channel, which becomes three equal ones.
        stack_of_one: Whether an axis of size 1 comes before these axes, as in ALE's vector environment
            with ``stack_num=1``.
        scale: What values are multiplied by to lie in [0, 255]: 255 for images in [0, 1].
    """

    order: Literal["HWC", "CHW", "HW"] = "HWC"
    gray: bool = False
    stack_of_one: bool = False
    scale: int = 1

    def to_rgb(self, images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Turn one image or a batch of them into ``uint8`` RGB.

        Args:
            images: Arranged as this layout says, with any batch axes before, of any dtype. What they become
                is rounded to the nearest integer.

        Returns:
            ``uint8``, shape ``(..., H, W, 3)``.

        Example:
            >>> ImageLayout("HW", gray=True, scale=255).to_rgb(np.full((5, 84, 84), 0.2)).shape
            (5, 84, 84, 3)
        """
        if self.stack_of_one:
            images = images[..., 0, :, :] if self.order == "HW" else images[..., 0, :, :, :]
        if self.order == "HW":
            images = images[..., None]
        elif self.order == "CHW":
            images = np.moveaxis(images, -3, -1)
        if images.dtype != np.uint8 or self.scale != 1:
            images = np.rint(images * float(self.scale)).clip(0, 255).astype(np.uint8)
        return np.repeat(images, 3, axis=-1) if self.gray else images


def image_layout(space: Any, who: str, env: Any = None) -> ImageLayout | None:
    """Read off a space how its images are arranged.

    Args:
        space: The space of one image.
        who: The name that opens the error message.
        env: The environment or its spec, whose makers' line the error shows.

    Returns:
        ``None`` for what needs no change: ``uint8`` RGB of shape ``(H, W, 3)``.

    Raises:
        ValueError: If the observations are no images, or can be read in two ways.

    Example:
        >>> image_layout(gym.spaces.Box(0, 1, (3, 84, 84)), "Me")
        ImageLayout(order='CHW', gray=False, stack_of_one=False, scale=255)
    """
    made = MadeBy.of(env)
    if made.package == "minigrid" and _is_object_codes(space, made):
        plain = MadeBy(made.env_id, made.kwargs, made.package)
        where = " in each environment" if made.num_envs else ""
        raise _refusal(
            who,
            f"the object codes of {made.env_id}, which are no colours",
            f"Draw them: from minigrid.wrappers import RGBImgObsWrapper, then env = "
            f"{plain.line('RGBImgObsWrapper(%s)')}{where}, and name the entry: key='image'. On the command "
            "line: --wrapper minigrid.wrappers:RGBImgObsWrapper --key image.",
        )
    if not isinstance(space, gym.spaces.Box):
        raise _refusal(who, _shown(space), _cure_without_box(space, made))
    order, gray, stack_of_one = _order(space, who, made)
    layout = ImageLayout(order, gray, stack_of_one, _scale(space, who))
    return None if layout == ImageLayout() and space.dtype == np.uint8 else layout


def _is_object_codes(space: Any, made: MadeBy) -> bool:
    """Whether these are MiniGrid's grids of codes, at most 25 cells wide, and not its drawings."""
    if isinstance(space, gym.spaces.Dict) and "image" in space.spaces:
        space = space["image"]
    shape = getattr(space, "shape", None) or ()
    return not _RENDERERS & set(made.wrappers) and len(shape) == 3 and max(shape[:2]) < 32


def _order(space: gym.spaces.Box, who: str, made: MadeBy) -> tuple[Literal["HWC", "CHW", "HW"], bool, bool]:
    """Name the axes of a Box, say whether it is gray, and whether a stack of one comes first."""
    shape = space.shape
    if shape == (7, 7, 3):
        raise _refusal(
            who,
            f"{_shown(space)}, which is MiniGrid's default view: object codes, no colours",
            "Put minigrid.wrappers.RGBImgObsWrapper around each environment.",
        )
    stack_of_one = len(shape) == 4 and shape[0] == 1
    image = shape[1:] if stack_of_one else shape
    if len(image) == 2 and min(image) >= _SMALLEST_GRAY:
        return "HW", True, stack_of_one
    if len(image) == 3:
        if image[2] in (1, 3) and min(image[:2]) >= _SMALLEST:
            return "HWC", image[2] == 1, stack_of_one
        planar = image[0] == 1 or (image[0] == 3 and not made.stacks_gray)
        if planar and min(image[1:]) >= _SMALLEST:
            return "CHW", image[0] == 1, stack_of_one
    raise _refusal(who, _shown(space), _cure_of_shape(space, made))


def _scale(space: gym.spaces.Box, who: str) -> int:
    """Say what brings the values of a Box to [0, 255]."""
    low, high = float(space.low.min()), float(space.high.max())
    if (low, high) == (0, 1) and space.dtype != bool:
        return 255
    if space.dtype == np.uint8 or (low, high) == (0, 255):
        return 1
    shape = ", ".join(map(str, space.shape))
    raise _refusal(
        who,
        f"{_shown(space)} with values from {low:g} to {high:g}, where [0, 1] or [0, 255] would tell which "
        "value is white",
        "Put it before wrappers that scale or transpose. If the environment itself gives values in [0, 1], "
        "say so: env = gym.wrappers.TransformObservation(env, lambda image: image, "
        f"gym.spaces.Box(0, 1, ({shape}))).",
    )


def _cure_of_shape(space: gym.spaces.Box, made: MadeBy) -> str:
    shape = space.shape
    if len(shape) < 3:
        return made.render_line()
    if len(shape) == 3 and shape[2] == 4:
        height, width = shape[:2]
        return (
            "Four channels are RGBA or a stack of four gray images. If RGBA: env = "
            "gym.wrappers.TransformObservation(env, lambda image: image[..., :3], "
            f"gym.spaces.Box(0, 255, ({height}, {width}, 3), np.uint8)). If a stack: leave out the wrapper "
            "that stacks images, and stack latents instead with stack=4."
        )
    if made.is_native_ale:
        line = made.line(stack_num=1, grayscale=False)
        return f"Make the environments with {line}, and stack latents with stack={shape[0]}."
    if len(shape) in (3, 4):
        count = shape[-1] if shape[0] >= _SMALLEST * 2 else shape[0]
        return (
            f"Put it before wrappers that stack or reshape: this looks like a stack of {count} images. "
            "Leave out the wrapper that stacks them, such as FrameStackObservation, and stack latents "
            f"instead with stack={count}."
        )
    return "Put it before wrappers that stack or reshape; stack latents instead with stack=4."


def _cure_without_box(space: Any, made: MadeBy) -> str:
    if not isinstance(space, gym.spaces.Dict):
        return made.render_line()
    names = image_entries(space)
    name = (names or sorted(space))[0]
    several = f", or all of them in one batch: key={tuple(names)!r}" if len(names) > 1 else ""
    return f"Name the entry to encode: key={name!r}{several}; on the command line --key {name}."


def image_entries(space: gym.spaces.Dict, prefix: str = "") -> list[str]:
    """Name the entries of a Dict that are images, nested ones as ``outer/inner``."""
    names: list[str] = []
    for name, entry in space.items():
        if isinstance(entry, gym.spaces.Dict):
            names += image_entries(entry, f"{prefix}{name}/")
        elif isinstance(entry, gym.spaces.Box) and entry.dtype == np.uint8 and len(entry.shape) >= 2:
            names.append(prefix + name)
    return names


def entry_path(space: Any, name: str) -> tuple[str, ...] | None:
    """Return the way to an entry of a Dict, or of a nested one (``outer/inner``); ``None`` without one.

    Example:
        >>> entry_path(gym.spaces.Dict(far=gym.spaces.Dict(top=gym.spaces.Discrete(2))), "far/top")
        ('far', 'top')
    """
    for path in ((name,), tuple(name.split("/"))):
        inner: Any = space
        for step in path:
            inner = inner.spaces.get(step) if isinstance(inner, gym.spaces.Dict) else None
        if inner is not None:
            return path
    return None


def _shown(space: Any) -> str:
    if isinstance(space, gym.spaces.Box):
        return f"a {space.dtype} Box of shape {space.shape}"
    return f"a Dict with the keys {sorted(space)}" if isinstance(space, gym.spaces.Dict) else f"{space}"


def _refusal(who: str, got: str, cure: str) -> ValueError:
    return ValueError(
        f"{who} needs uint8 RGB observations of shape (H, W, 3), or gray, planar or float images, got {got}. "
        f"{cure}"
    )


@dataclass(frozen=True)
class MadeBy:
    """The line that made an environment, as its user would type it.

    Args:
        env_id: Gymnasium id; ``""`` when the environment was not made by one.
        kwargs: What ``gymnasium.make`` was given.
        package: The package to import for the id to exist; ``""`` for Gymnasium's own.
        wrappers: Names of the wrappers around it, the innermost first.
        num_envs: Number of environments in a vector environment, 0 for a plain one.
        vectorization: How ``gymnasium.make_vec`` was told to make them, if it was.
    """

    env_id: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    wrappers: tuple[str, ...] = ()
    num_envs: int = 0
    vectorization: str = ""

    @classmethod
    def of(cls, env: Any) -> MadeBy:
        """Read it off an environment, a vector environment or a spec; empty where none is known."""
        spec = env if isinstance(env, EnvSpec) else getattr(env, "spec", None)
        if not isinstance(spec, EnvSpec):
            return cls(wrappers=_wrappers(env))
        kwargs: dict[str, Any] = as_json(spec.kwargs)
        num_envs = kwargs.pop("num_envs", 0)
        vectorization = str(kwargs.pop("vectorization_mode", ""))
        package = str(spec.entry_point).partition(":")[0].partition(".")[0]
        if (
            spec.id.startswith(("ALE/", "LatentObs/"))
            or package == "gymnasium"
            or not isinstance(spec.entry_point, str)
        ):
            package = ""
        elif package == "vizdoom":
            package = "vizdoom.gymnasium_wrapper"
        elif package == "latent_obs":
            package = "latent_obs.scenes"
        kwargs = {name: value for name, value in kwargs.items() if not _is_default(spec.id, name, value)}
        names = tuple(wrapper.name for wrapper in spec.additional_wrappers)
        return cls(spec.id, kwargs, package, names, num_envs, vectorization)

    @property
    def _own(self) -> dict[str, Any]:
        """The arguments that one environment takes, to show the same."""
        own = {name: value for name, value in self.kwargs.items() if name not in ABOUT_VECTORS}
        if self.is_native_ale:  # how it arranges frames is no business of a plain environment
            own = {name: value for name, value in own.items() if name in _ALE_OPTIONS}
        return own

    @property
    def untypable(self) -> list[str]:
        """The names of arguments of one environment that are no JSON values: no command can be told them."""
        return [name for name, value in self._own.items() if not _is_plain(value)]

    @property
    def is_native_ale(self) -> bool:
        """Whether it is ALE's own vector environment."""
        return self.env_id.startswith("ALE/") and self.vectorization == "vector_entry_point"

    @property
    def stacks_gray(self) -> bool:
        """Whether three planes are gray images that follow each other, and no colours."""
        gray_ale = self.is_native_ale and self.kwargs.get("grayscale", True)
        return "FrameStackObservation" in self.wrappers or gray_ale

    def line(self, around: str = "%s", **changes: Any) -> str:
        """Return the Python expression that makes it, with other arguments."""
        name = "gym.make_vec" if self.num_envs else "gym.make"
        known = {name: value for name, value in self.kwargs.items() if _is_plain(value)}
        arguments = [as_python(f"{self.package}:{self.env_id}" if self.package else self.env_id)]
        if self.num_envs:
            arguments.append(str(self.num_envs))
        arguments += keywords({**known, **changes})
        return around % f"{name}({', '.join(arguments)})"

    def render_line(self) -> str:
        """Say how its rendering becomes its observation."""
        if not self.env_id:
            return (
                'If the environment renders, make it with render_mode="rgb_array" and draw its observations: '
                f"env = {_RENDER}(env); on the command line --render."
            )
        plain = MadeBy(self.env_id, self.kwargs, self.package)
        line = plain.line(f"{_RENDER}(%s)", render_mode="rgb_array")
        where = " in each environment" if self.num_envs else ""
        return f"If the environment renders: env = {line}{where}; on the command line --render."

    def options(self, key: str | None = None) -> dict[str, Any]:
        """Return what commands that make this environment are told, by the name of the option.

        Args:
            key: The entry of ``Dict`` observations that is the image.

        Example:
            >>> MadeBy.of(gym.spec("CartPole-v1")).options()
            {'env_id': 'CartPole-v1'}
        """
        known = {name: value for name, value in self._own.items() if _is_plain(value)}
        options: dict[str, Any] = {"env_id": f"{self.package}:{self.env_id}" if self.package else self.env_id}
        if known:
            options["env_kwargs"] = known
        if "AddRenderObservation" in self.wrappers:
            options["render"] = True
        elif rendering := [name for name in self.wrappers if name in _RENDERERS]:
            options["wrapper"] = f"minigrid.wrappers:{rendering[-1]}"
        if key is not None and "render" not in options:
            options["key"] = key
        return options

    def command(self, verb: str, key: str | None = None) -> str:
        """Return the command that works on this environment.

        Example:
            >>> MadeBy.of(gym.spec("CartPole-v1")).command("fit")
            'latent-obs fit CartPole-v1'
        """
        options = self.options(key)
        words = ["latent-obs", verb, options.pop("env_id") or "ENV"]
        for name, value in options.items():
            value = shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))
            words.append(f"--{name.replace('_', '-')}" + ("" if options[name] is True else f" {value}"))
        return " ".join(words)


def _wrappers(env: Any) -> tuple[str, ...]:
    """Name the wrappers around an environment, the innermost first."""
    return (*_wrappers(env.env), type(env).__name__) if isinstance(env, gym.Wrapper) else ()


def as_json(value: Any) -> Any:
    """Return an argument as JSON has it: tuples and arrays become lists; what JSON does not have stays.

    Example:
        >>> as_json({"lookat": np.array([0.0, 1.5]), "size": (2, 2)})
        {'lookat': [0.0, 1.5], 'size': [2, 2]}
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [as_json(each) for each in value]
    if isinstance(value, dict):
        return {name: as_json(each) for name, each in value.items()}
    return value


def as_python(value: Any) -> str:
    """Return a value as Python, texts in double quotes.

    Example:
        >>> print(as_python("the track's camera"))
        "the track's camera"
    """
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def keywords(values: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments as Python.

    Example:
        >>> keywords({"mode": 30, "map_name": "4x4"})
        ['mode=30', 'map_name="4x4"']
    """
    return [f"{name}={as_python(value)}" for name, value in values.items()]


def _is_plain(value: Any) -> bool:
    """Whether a value can be typed, as Python and as JSON."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(each) for name, each in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def _is_default(env_id: str, name: str, value: Any) -> bool:
    """Whether an id brings this argument along, so that nobody has to type it."""
    known = gym.registry.get(env_id)
    if known is None:
        return False
    default = known.max_episode_steps if name == "max_episode_steps" else as_json(known.kwargs.get(name))
    return bool(value == default)

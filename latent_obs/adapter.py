"""What the wrapper and the adapters for other libraries share: opening encoders, the latent space, batches.

Libraries arrange observations in their own ways; here their images become frames, and a batch of them latents
in one call.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from latent_obs.encoders.encoder import NORMALIZE as NORMALIZE
from latent_obs.encoders.encoder import Encoder, load_encoder
from latent_obs.encoders.folder import Latents
from latent_obs.encoders.hub import HUB_PREFIX
from latent_obs.encoders.resolve import level_of_caller, resolve, resolve_auto
from latent_obs.frames import FRAME_SHAPE, Frame, FrameSource, frame_source, preprocess, specs_of
from latent_obs.images import ImageLayout, MadeBy, entry_path, image_entries, image_layout

EncoderLike = str | Path | Encoder | Mapping[str, Any]
Key = str | Sequence[str] | None
Rows = slice | Sequence[int] | npt.NDArray[np.intp]
ALL = slice(None)


class ImageEntries:
    """The images in an observation: where they are, how they are arranged, and the encoder of each.

    Args:
        space: The space of one observation.
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        key: As :class:`latent_obs.LatentObservationWrapper` takes it.
        stack: Latents of one observation.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        env: The environment, for ``"auto"`` and for errors that show the line to type; ``None`` where it
            is not known.
        who: The name that opens error messages.

    Attributes:
        encoder: The encoder, or of several the first.
        encoders: The encoder of each entry.
        space: The space of one observation after encoding.

    Raises:
        ValueError: If an argument is wrong or the observations are no images.
    """

    def __init__(
        self,
        space: gym.Space[Any],
        encoder: EncoderLike,
        *,
        key: Key = None,
        stack: int = 1,
        normalize: bool | None = None,
        fingerprint: str | Mapping[str, str | None] | None = None,
        env: Any = None,
        who: str = "LatentObservationWrapper",
    ) -> None:
        if not isinstance(stack, (int, np.integer)) or isinstance(stack, bool) or stack < 1:
            raise ValueError(f"{who} needs stack to be an integer of at least 1, got {stack!r}.")
        specs = specs_of(env)
        made_by = specs[0] if specs else env
        self.stack = int(stack)
        self._keys = _names(key, who)
        self._paths = [_path(space, name, key, who) for name in self._keys]
        images = [_follow(space, path) for path in self._paths]
        self._layouts = [
            image_layout(image, who if name is None else f"{who}(key={name!r})", made_by)
            for name, image in zip(self._keys, images, strict=True)
        ]
        # The encoder comes last: its warnings would be moot before an error.
        self.source = FrameSource.combine([frame_source(s) for s in specs]) if specs else FrameSource()
        command = MadeBy.of(made_by).command("demo --env", self._keys[0])
        self._each = (
            isinstance(encoder, Mapping) and self._keys[0] is not None and set(encoder) == set(self._keys)
        )
        given = [encoder[name] if self._each else encoder for name in self._keys]  # type: ignore[index]
        prints: Mapping[Any, str | None] = (
            fingerprint if isinstance(fingerprint, Mapping) else dict.fromkeys(self._keys, fingerprint)
        )
        loaded: dict[int, Encoder] = {}
        self.encoders: list[Encoder] = []
        for name, one in zip(self._keys, given, strict=True):
            if id(one) not in loaded:
                loaded[id(one)] = open_encoder(
                    one, self.source, normalize, fingerprint=prints.get(name), command=command
                )
            self.encoders.append(loaded[id(one)])
        self.encoder = self.encoders[0]
        self.space = space
        for path, image, layout, one in zip(self._paths, images, self._layouts, self.encoders, strict=True):
            assert image.shape is not None
            preprocess(np.zeros(image.shape, image.dtype), one.frame_spec, layout)  # refuses a crop too large
            latent = gym.spaces.Box(-np.inf, np.inf, (one.latent_dim * self.stack,), np.float32)
            self.space = _put(self.space, path, latent)
        for one in {id(one): one for one in self.encoders}.values():
            warn_of_other_source(self.source, one)
        for layout, one in zip(self._layouts, self.encoders, strict=True):
            if layout is not None and layout.gray:
                _warn_of_gray(one, who)

    @property
    def arguments(self) -> dict[str, Any]:
        """JSON values of the arguments that make a wrapper with these encoders again, from anywhere."""
        specs, prints = [one.spec for one in self.encoders], [fingerprint_of(one) for one in self.encoders]
        names = [name or "" for name in self._keys]
        return {
            "encoder": dict(zip(names, specs, strict=True)) if self._each else specs[0],
            "stack": self.stack,
            "key": self._keys[0] if len(names) == 1 and not self._each else names,
            "normalize": self.encoder.normalize,
            "fingerprint": dict(zip(names, prints, strict=True)) if self._each else prints[0],
        }

    def stacks(self, rows: int = 1) -> list[LatentStack]:
        """Make the stacks of latents, one for each entry, for a number of environments."""
        return [LatentStack(self.stack, encoder.latent_dim, rows) for encoder in self.encoders]

    def images(self, obs: Any) -> list[Any]:
        """Return the images in an observation, or in a batch of them, in the order of the keys."""
        return [_follow(obs, path) for path in self._paths]

    def put(self, obs: Any, entries: Sequence[Latents]) -> Any:
        """Return the observation with latents in place of its images."""
        for path, entry in zip(self._paths, entries, strict=True):
            obs = _put(obs, path, entry)
        return obs

    def frame(self, obs: Any) -> Frame:
        """Turn the first entry's image of one observation into a frame."""
        return preprocess(_follow(obs, self._paths[0]), self.encoder.frame_spec, self._layouts[0])

    def encode_one(self, obs: Any) -> list[Latents]:
        """Encode the images of one observation; each latent has shape (1, latent_dim)."""
        if len(self._paths) == 1:
            return [self.encoder(self.frame(obs)[None])]
        return self.encode([[image] for image in self.images(obs)])

    def encode(self, images: Sequence[Any]) -> list[Latents]:
        """Encode a batch of each entry's images, all that share an encoder in one call.

        Args:
            images: For every entry its N images, an array or a sequence. They may differ in size. Those
                that already are 64x64 are not resized.

        Returns:
            For every entry its latents, float32 of shape (N, latent_dim).

        Raises:
            ValueError: If an image is not arranged as its space says, or too small for the crop.
        """
        if len(images) == 1:
            return [encode_images(self.encoder, images[0], self._layouts[0])]
        frames = [
            to_frames(one, batch, layout)
            for one, batch, layout in zip(self.encoders, images, self._layouts, strict=True)
        ]
        latents: list[Latents] = [np.empty(0, np.float32)] * len(frames)
        for encoder in {id(one): one for one in self.encoders}.values():
            mine = [i for i, one in enumerate(self.encoders) if one is encoder]
            both = encoder(np.concatenate([frames[i] for i in mine]))
            ends = np.cumsum([len(frames[i]) for i in mine])
            for i, part in zip(mine, np.split(both, ends[:-1]), strict=True):
                latents[i] = part
        return latents


def _names(key: Key, who: str) -> list[str | None]:
    """Return the names of the entries to encode; ``[None]`` where the observation is the image."""
    if key is None or isinstance(key, str):
        return [key]
    names = list(key)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{who} needs key to be an entry's name, or several different ones, got {key!r}.")
    return list(names)


def _path(space: gym.Space[Any], name: str | None, key: Key, who: str) -> tuple[str, ...]:
    """Return the way to an entry of a Dict: its name, or ``outer/inner`` for one of a nested Dict."""
    if name is None:
        return ()
    if (path := entry_path(space, name)) is not None:
        return path
    got = f"{space}"
    if isinstance(space, gym.spaces.Dict):
        nested = [entry for entry in image_entries(space) if "/" in entry]
        got = f"a Dict with the keys {sorted(space)}" + (f" and the images {nested}" if nested else "")
    raise ValueError(f"{who} was told key={key!r}, but the observation space is {got}.")


def _follow(tree: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        tree = tree[step]
    return tree


def _put(tree: Any, path: tuple[str, ...], leaf: Any) -> Any:
    """Return a copy of nested dictionaries, or ``Dict`` spaces, with another leaf."""
    if not path:
        return leaf
    step, *rest = path
    changed = {**tree, step: _put(tree[step], tuple(rest), leaf)}
    return gym.spaces.Dict(changed) if isinstance(tree, gym.spaces.Dict) else changed


def encode_images(encoder: Encoder, images: Any, layout: ImageLayout | None = None) -> Latents:
    """Turn images into frames as the encoder's frame spec says, and encode them as one batch.

    Args:
        encoder: Its frame spec says how to crop and resize.
        images: N images, an array or a sequence. They may differ in size. Those that already are 64x64
            are not resized.
        layout: How they are arranged, from :func:`~latent_obs.images.image_layout`.

    Returns:
        float32, shape (N, latent_dim).

    Raises:
        ValueError: If an image is not arranged so, or too small for the crop.
    """
    return encoder(to_frames(encoder, images, layout))


def to_frames(encoder: Encoder, images: Any, layout: ImageLayout | None = None) -> npt.NDArray[np.uint8]:
    """Turn images into frames as the encoder's frame spec says; the arguments are :func:`encode_images`'s."""
    spec = encoder.frame_spec
    if isinstance(images, np.ndarray):
        if layout is not None:
            images, layout = layout.to_rgb(images), None
        if spec.crop is None and images.shape[1:] == FRAME_SHAPE and images.dtype == np.uint8:
            return images  # type: ignore[no-any-return]
    frames = np.empty((len(images), *FRAME_SHAPE), np.uint8)
    for frame, image in zip(frames, images, strict=True):
        frame[...] = preprocess(image, spec, layout)
    return frames


class LatentStack:
    """The last latents of each environment, oldest first, which is how an agent sees speed.

    An episode begins with its first latent in all places.

    Args:
        stack: Latents of one observation.
        latent_dim: Size of a latent.
        rows: Number of environments.

    Example:
        >>> stack = LatentStack(2, latent_dim=1, rows=2)
        >>> stack.push(np.array([[1], [2]], np.float32)).tolist()
        [[1.0, 1.0], [2.0, 2.0]]
        >>> stack.begin([1])
        >>> stack.push(np.array([[3], [4]], np.float32)).tolist()
        [[1.0, 3.0], [4.0, 4.0]]
    """

    def __init__(self, stack: int, latent_dim: int, rows: int = 1) -> None:
        self._latents = np.zeros((rows, stack, latent_dim), np.float32)
        self._begins = np.ones(rows, bool)  # the next latent is an episode's first

    def begin(self, rows: Rows = ALL) -> None:
        """Begin an episode in these environments: their next latent fills their stack."""
        self._begins[rows] = True

    def resume(self, row: int, flat: Latents) -> None:
        """Go on in the middle of an episode, after the observation ``flat``, shape (stack * latent_dim,)."""
        self._latents[row] = flat.reshape(self._latents.shape[1:])
        self._begins[row] = False

    def push(self, latents: Latents, rows: Rows = ALL) -> Latents:
        """Add one latent to the stack of each of these environments.

        Args:
            latents: Shape (N, latent_dim).
            rows: The N environments, each at most once.

        Returns:
            Their stacks, as :meth:`read` returns them.
        """
        if self._latents.shape[1] == 1:  # nothing to shift and nothing to fill
            self._latents[rows, 0] = latents
            return latents.copy()
        self._latents[rows, :-1] = self._latents[rows, 1:]
        self._latents[rows, -1] = latents
        begins = self._begins[rows]
        if begins.any():
            beginning = np.arange(len(self._begins))[rows][begins]
            self._latents[beginning] = latents[begins, None]
            self._begins[rows] = False
        return self.read(rows)

    def read(self, rows: Rows = ALL) -> Latents:
        """Return the stacks of these environments, a new array of shape (N, stack * latent_dim)."""
        stacks = self._latents[rows]
        return stacks.reshape(len(stacks), -1).copy()


def open_encoder(
    encoder: EncoderLike,
    source: FrameSource,
    normalize: bool | None = None,
    *,
    fingerprint: str | None = None,
    command: str = "latent-obs demo --env ENV",
) -> Encoder:
    """Load what a wrapper's ``encoder`` argument names.

    Args:
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        source: Where the observations come from, for ``"auto"``.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        command: What trains an encoder of this environment, for the warning that there is none.

    Raises:
        ValueError: If ``encoder`` does not fit :func:`~latent_obs.load_encoder`, says otherwise than
            ``normalize``, or has other weights than ``fingerprint`` says.
    """
    given = encoder.get("normalize") if isinstance(encoder, Mapping) else getattr(encoder, "normalize", None)
    if None not in (given, normalize) and given != normalize:
        raise ValueError(
            f"encoder= comes with normalize={given!r}, but normalize={normalize!r} was asked for. Load the "
            f"encoder with normalize={normalize!r}, or leave normalize out here."
        )
    if isinstance(encoder, Encoder):
        return encoder
    options: dict[str, Any] = dict(encoder) if isinstance(encoder, Mapping) else {"ref": encoder}
    options.setdefault("normalize", NORMALIZE if normalize is None else normalize)
    try:
        inspect.signature(load_encoder).bind(**options)
    except TypeError as error:
        raise ValueError(f"encoder={encoder!r} does not fit load_encoder: {error}.") from error
    if options["ref"] == "auto":
        options["ref"] = resolve_auto(source, command)
    options["ref"] = resolve(options["ref"], fingerprint)
    return load_encoder(**options)


def open_named_encoder(
    encoder: EncoderLike, who: str, normalize: bool | None = None, fingerprint: str | None = None
) -> Encoder:
    """Load an encoder where no environment says which one ``"auto"`` would be.

    Raises:
        ValueError: If ``encoder`` is ``"auto"``, does not fit :func:`~latent_obs.load_encoder`, or says
            otherwise than ``normalize``.
    """
    if encoder == "auto" or (isinstance(encoder, Mapping) and encoder.get("ref") == "auto"):
        raise ValueError(
            f"{who} does not know its environment, so encoder='auto' cannot be resolved. Name the encoder, "
            "such as 'pong-v0' or 'hf://USER/NAME', or pass the path of an encoder folder."
        )
    return open_encoder(encoder, FrameSource(), normalize, fingerprint=fingerprint)


def fingerprint_of(encoder: Encoder) -> str | None:
    """Return the SHA-256 of an encoder's weights; ``None`` for one on the Hub, or whose folder is gone.

    A commit on the Hub names the same weights for ever, and asking what a branch names takes a request.
    """
    if encoder.ref.startswith(HUB_PREFIX):
        return None
    try:
        return resolve(encoder.ref).sha256()
    except (OSError, ValueError):
        return None


def check_is_env(env: Any, who: str) -> None:
    """Refuse what is no Gymnasium environment, and name the wrapper that takes it.

    Raises:
        ValueError: If ``env`` is a vector environment, another library's, or of the old Gym.
    """
    if isinstance(env, gym.Env):
        return
    kind = f"{type(env).__module__}.{type(env).__qualname__}"
    if isinstance(env, gym.vector.VectorEnv):
        cure = "For vector environments: latent_obs.vector.LatentObservationWrapper(envs)."
    elif hasattr(env, "step_wait"):
        cure = "For Stable-Baselines3's: latent_obs.sb3.VecLatentObservation(venv, encoder)."
    elif hasattr(env, "possible_agents"):
        cure = "For PettingZoo's: latent_obs.pettingzoo.LatentObservationWrapper(env, encoder)."
    else:
        cure = (
            "If it has the interface of the old Gym, pip install shimmy and wrap "
            'gym.make("GymV21Environment-v0", env=env), or write a class as examples/environments.py does '
            "for Crafter."
        )
    raise ValueError(f"{who} wraps a gymnasium.Env, got a {kind}. {cure}")


def warn_of_other_source(source: FrameSource, encoder: Encoder) -> None:
    """Warn when an ALE environment draws its frames otherwise than the encoder's training frames.

    Sticky actions change which frames come, but none of their pixels.
    """
    differences = encoder.config.source.differences(source, ignore=("repeat_action_probability",))
    if differences:
        warnings.warn(
            f"The encoder {encoder.ref} was trained on frames with {'; '.join(differences)}. Its latents "
            "may be off: make the environment alike, or train an encoder on this one.",
            UserWarning,
            stacklevel=level_of_caller(),
        )


def is_trained_on_gray(ref: str | Path) -> bool | None:
    """Whether an encoder's training frames were gray; ``None`` if it brings no calibration frames along."""
    try:
        frames = resolve(ref).calibration()
    except (OSError, ValueError):
        return None
    return None if frames is None else bool((frames == frames[..., :1]).all())


def _warn_of_gray(encoder: Encoder, who: str) -> None:
    if is_trained_on_gray(encoder.ref) is False:
        warnings.warn(
            f"{who} encodes gray images as RGB of equal channels, but {encoder.ref} was trained on images in "
            'colour. Ask the environment for colour, such as gym.make("ALE/Pong-v5", obs_type="rgb") or '
            "AtariPreprocessing(env, grayscale_obs=False), or train an encoder on gray images.",
            UserWarning,
            stacklevel=level_of_caller(),
        )

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
from latent_obs.frames import FRAME_SHAPE, FrameSource, preprocess
from latent_obs.images import ImageLayout, MadeBy

EncoderLike = str | Path | Encoder | Mapping[str, Any]
Key = str | Sequence[str] | None
Rows = slice | Sequence[int] | npt.NDArray[np.intp]
ALL = slice(None)


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
    made: MadeBy | None = None,
    key: str | None = None,
) -> Encoder:
    """Load what a wrapper's ``encoder`` argument names.

    Args:
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it.
        source: Where the observations come from, for ``"auto"``.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.
        fingerprint: As :class:`latent_obs.LatentObservationWrapper` takes it.
        made: How the environment was made and wrapped, for ``"auto"``.
        key: The entry of ``Dict`` observations that is encoded, for ``"auto"``.

    Raises:
        ValueError: If ``encoder`` does not fit :func:`~latent_obs.load_encoder`, says otherwise than
            ``normalize``, or has other weights than ``fingerprint`` says, or that is no string.
        FileNotFoundError: If there is no such encoder.
    """
    if fingerprint is not None and not isinstance(fingerprint, str):
        raise ValueError(
            f"fingerprint= takes the SHA-256 of an encoder's weights as a string, got {fingerprint!r}."
        )
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
    if not isinstance(options["ref"], (str, Path)):
        raise ValueError(
            "encoder= takes a bundled encoder's name, the path of an encoder folder, hf://USER/NAME, a "
            f"dictionary of load_encoder's arguments or an encoder from it; got {encoder!r}."
        )
    try:
        Path(options["ref"]).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(
            f"There is no encoder {str(options['ref'])!r}: this machine does not know the home folder that ~ "
            "stands for. Write the whole path."
        ) from error
    if options["ref"] == "auto":
        options["ref"] = resolve_auto(source, made, key)
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
    ref = encoder.get("ref") if isinstance(encoder, Mapping) else encoder
    if isinstance(ref, str) and ref in ("auto", "fit"):
        raise ValueError(
            f"{who} does not know its environment, so encoder={ref!r} cannot be resolved. Name the encoder, "
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


def check_is_env(env: Any, kind: type[Any], who: str) -> None:
    """Refuse an environment of another kind than a wrapper takes, and name the wrapper that takes it.

    Args:
        env: What the wrapper was given.
        kind: The class of what it takes, such as ``gym.Env``.
        who: The name of the wrapper.

    Raises:
        ValueError: If ``env`` is no instance of ``kind``. EnvPool's are vector environments, though they are
            instances of ``gym.Env`` too.
    """
    many = isinstance(env, gym.vector.VectorEnv)
    if isinstance(env, kind) and not (many and kind is gym.Env):
        return
    wanted = f"{kind.__module__.partition('.')[0]}'s {kind.__qualname__}"
    got = f"{type(env).__module__}.{type(env).__qualname__}"
    if many:
        cure = "For vector environments: latent_obs.vector.LatentObservationWrapper(envs)."
    elif isinstance(env, gym.Env):
        cure = "For plain environments: latent_obs.LatentObservationWrapper(env)."
    elif hasattr(env, "step_wait"):
        cure = "For Stable-Baselines3's: latent_obs.sb3.VecLatentObservation(venv, encoder)."
    elif hasattr(env, "possible_agents"):
        cure = (
            "For PettingZoo's parallel ones: latent_obs.pettingzoo.LatentObservationWrapper(env, encoder). "
            "pettingzoo.utils.aec_to_parallel(env) makes an AEC environment parallel."
        )
    else:
        cure = (
            "If it has the interface of the old Gym, pip install shimmy and wrap "
            'gym.make("GymV21Environment-v0", env=env), or write a class as examples/environments.py does '
            "for Crafter."
        )
    raise ValueError(f"{who} wraps {wanted}, got a {got}. {cure}")


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


def warn_of_gray(encoder: Encoder, who: str) -> None:
    """Warn when gray images go to an encoder that was trained on images in colour."""
    if is_trained_on_gray(encoder.ref) is False:
        warnings.warn(
            f"{who} encodes gray images as RGB of equal channels, but {encoder.ref} was trained on images in "
            'colour. Ask the environment for colour, such as gym.make("ALE/Pong-v5", obs_type="rgb") or '
            "AtariPreprocessing(env, grayscale_obs=False), or train an encoder on gray images.",
            UserWarning,
            stacklevel=level_of_caller(),
        )

"""The images in observations: where they are, how they are arranged, and the encoder of each."""

from __future__ import annotations

import multiprocessing
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from latent_obs.adapter import (
    EncoderLike,
    Key,
    LatentStack,
    encode_images,
    fingerprint_of,
    open_encoder,
    to_frames,
    warn_of_gray,
    warn_of_other_source,
)
from latent_obs.encoders.encoder import Encoder
from latent_obs.encoders.folder import Latents
from latent_obs.encoders.resolve import find_fitted
from latent_obs.frames import Frame, FrameSource, frame_source, preprocess, specs_of
from latent_obs.images import MadeBy, entry_path, image_entries, image_layout


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
        self._made = made = MadeBy.of(made_by)
        self._each = isinstance(encoder, Mapping) and set(encoder) == set(self._keys)
        given = [encoder[name] if self._each else encoder for name in self._keys]  # type: ignore[index]
        if isinstance(fingerprint, Mapping) and not (self._each and set(fingerprint) <= set(self._keys)):
            raise ValueError(
                f"{who} takes a dictionary as fingerprint= only where encoder= is one too, with the same "
                f"keys; got fingerprint={fingerprint!r} for key={key!r}. The fingerprint of one encoder is a "
                "string."
            )
        prints: Mapping[Any, str | None] = (
            fingerprint if isinstance(fingerprint, Mapping) else dict.fromkeys(self._keys, fingerprint)
        )
        self.encoders: list[Encoder] = []
        for name, one in zip(self._keys, given, strict=True):
            if self.encoders and not self._each:
                self.encoders.append(self.encoders[0])  # one for all, in one batch
                continue
            opened = open_encoder(
                fitted_encoder(one, self.source, made, name),
                self.source,
                normalize,
                fingerprint=prints.get(name),
                made=made,
                key=name,
            )
            alike = (
                other
                for other in self.encoders
                if (other.spec, other.normalize) == (opened.spec, opened.normalize)
            )
            self.encoders.append(next(alike, opened))
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
                warn_of_gray(one, who)

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """JSON values of the arguments that make a wrapper with these encoders again, from anywhere."""
        specs, prints = [one.spec for one in self.encoders], [fingerprint_of(one) for one in self.encoders]
        names = [name or "" for name in self._keys]
        return {
            "encoder": dict(zip(names, specs, strict=True)) if self._each else specs[0],
            "stack": self.stack,
            "key": self._keys[0] if len(names) == 1 else names,
            "normalize": self.encoder.normalize,
            "fingerprint": dict(zip(names, prints, strict=True)) if self._each else prints[0],
        }

    def name_encoder(self, spec: EnvSpec | None) -> EnvSpec | None:
        """Return the spec of an id that brings its encoder along, with the encoder that was taken."""
        named = {name: self.arguments[name] for name in ("encoder", "normalize", "fingerprint")}
        return None if spec is None else replace(spec, kwargs={**spec.kwargs, **named})

    def refresh_command(self) -> str:
        """Return the command that trains the first entry's encoder on with frames of its agent."""
        words = [self._made.command(f"refresh {shlex.quote(self.encoder.ref)}", self._keys[0]), "agent.zip"]
        if not self.encoder.normalize:
            words.append("--no-policy-normalize")
        return " ".join(words)

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


def fitted_encoder(
    encoder: EncoderLike, source: FrameSource, made: MadeBy, key: str | None = None
) -> EncoderLike:
    """Return the encoder folder in the place of ``"fit"``: the fitted one, or one that is fitted now.

    Args:
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it; what is not ``"fit"`` is returned.
        source: Where the observations come from.
        made: How the environment was made.
        key: The entry of ``Dict`` observations that is encoded.

    Raises:
        ValueError: If it is not known how the environment was made, it has arguments that are no JSON, or
            this process may start no others.
        ImportError: If the packages to train with are missing.
    """
    ref = encoder.get("ref") if isinstance(encoder, Mapping) else encoder
    if not isinstance(ref, str) or ref != "fit":
        return encoder
    found = find_fitted(source, made, key)
    if found is None:
        if not made.env_id:
            raise ValueError(
                "encoder='fit' needs an environment that gymnasium.make made, so that it can be made again "
                "to collect frames. Collect and train by hand: latent-obs collect, latent-obs train."
            )
        if "TransformObservation" in made.wrappers:
            raise ValueError(
                f"encoder='fit' cannot make the TransformObservation around {made.env_id} again to collect "
                "frames. Put what it does into a function of a module, fit with it, and pass the encoder: "
                f"{MadeBy(made.env_id, made.kwargs, made.package).command('fit', key)} --wrapper "
                "MODULE:FUNCTION --out FOLDER."
            )
        if multiprocessing.current_process().daemon:
            raise ValueError(
                "encoder='fit' collects frames in processes of its own, which the worker process of a vector "
                "environment may not start. Wrap the vector environment instead, or fit before: "
                f"{made.command('fit', key)}"
            )
        if made.untypable:
            raise ValueError(
                f"encoder='fit' makes {made.env_id} again in other processes, with arguments that are JSON. "
                f"These are not: {', '.join(made.untypable)}. Register a Gymnasium id that needs no such "
                "argument, and make the environment by that id."
            )
        from latent_obs.fit import FitConfig, fit_encoder

        found = fit_encoder(FitConfig(**made.options(key)))
    path = str(found.path)
    return {**encoder, "ref": path} if isinstance(encoder, Mapping) else path


def _names(key: Key, who: str) -> list[str | None]:
    """Return the names of the entries to encode; ``[None]`` where the observation is the image."""
    if key is None or isinstance(key, str):
        return [key]
    names = list(key) if isinstance(key, Iterable) else []
    if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
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

"""TorchRL: a transform that turns pixels into latents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from latent_obs.adapter import EncoderLike, encode_images, open_named_encoder
from latent_obs.extras import needs
from latent_obs.images import ImageLayout, image_layout

with needs("latent_obs.torchrl", "torchrl"):
    import torch
    from tensordict import NestedKey, TensorDictBase
    from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
    from torchrl.envs.transforms import ObservationTransform
    from torchrl.envs.transforms.utils import _set_missing_tolerance


class LatentTransform(ObservationTransform):
    """Replaces the images of a tensordict with latents.

    Does what :class:`latent_obs.LatentObservationWrapper` does, for any batch of environments in one
    call: in ``TransformedEnv(ParallelEnv(...), LatentTransform(...))`` all share this encoder.
    Images may be ``(*batch, H, W, 3)`` or ``(*batch, 3, H, W)``, RGB or gray, ``uint8`` or floats whose
    spec is bounded by [0, 1] or [0, 255], on any device; latents come back on theirs.
    ``CatFrames(4, dim=-1, in_keys=["latent"])`` after it concatenates the last four latents, so that the
    agent sees speed.

    Args:
        encoder: As :class:`latent_obs.LatentObservationWrapper` takes it, but for ``"auto"``: a
            transform is made before it knows its environment.
        in_keys: Entries with images.
        out_keys: Entries for the latents, float32 ``(*batch, latent_dim)``.
        del_keys: Remove the images.
        normalize: As :class:`latent_obs.LatentObservationWrapper` takes it.

    Raises:
        ValueError: If ``encoder`` is ``"auto"`` or damaged or says otherwise than ``normalize``, or the
            keys do not pair up; when an environment is attached, if its entries are no images.
        FileNotFoundError: If there is no such encoder.

    Example:
        >>> transform = LatentTransform("pong-v0")
        >>> spec = Composite(pixels=Unbounded((8, 210, 160, 3), dtype=torch.uint8))
        >>> transform.transform_observation_spec(spec)["latent"].shape
        torch.Size([8, 32])
    """

    def __init__(
        self,
        encoder: EncoderLike,
        *,
        in_keys: Sequence[NestedKey] = ("pixels",),
        out_keys: Sequence[NestedKey] = ("latent",),
        del_keys: bool = True,
        normalize: bool | None = None,
    ) -> None:
        if len(in_keys) != len(out_keys):
            raise ValueError(f"LatentTransform needs an out_key per in_key, got {in_keys} and {out_keys}.")
        super().__init__(in_keys=in_keys, out_keys=out_keys)
        self.encoder = open_named_encoder(encoder, "LatentTransform", normalize)
        self.del_keys = del_keys
        self._layouts: dict[tuple[NestedKey, Sequence[int]], ImageLayout | None] = {}

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        for in_key, out_key in zip(self.in_keys, self.out_keys, strict=True):
            if (obs := next_tensordict.get(in_key, default=None)) is not None:
                next_tensordict.set(out_key, self._encode(in_key, obs))
            elif not self.missing_tolerance:
                raise KeyError(_missing(self.in_keys, next_tensordict.keys(True, True)))
        if self.del_keys:
            next_tensordict.exclude(*(key for key in self.in_keys if key not in self.out_keys), inplace=True)
        return next_tensordict

    forward = _call

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        with _set_missing_tolerance(self, True):
            return self._call(tensordict_reset)

    def _encode(self, in_key: NestedKey, obs: torch.Tensor) -> torch.Tensor:
        batch, image = obs.shape[:-3], obs.shape[-3:]
        images = obs.reshape(-1, *image).cpu().numpy()  # (N, H, W, 3) or (N, 3, H, W)
        if (in_key, image) not in self._layouts:  # no environment is attached: the tensor says what it is
            high = 255 if obs.dtype == torch.uint8 else np.inf
            box = _box(image, images.dtype.type, 0, high)
            self._layouts[in_key, image] = image_layout(box, f"LatentTransform({in_key!r})")
        latents = encode_images(self.encoder, images, self._layouts[in_key, image])
        return torch.from_numpy(latents).to(obs.device).reshape(*batch, self.encoder.latent_dim)

    def transform_observation_spec(self, observation_spec: TensorSpec) -> TensorSpec:
        """Return the spec with latents for images.

        Raises:
            ValueError: If an entry is missing or no image.
        """
        spec = observation_spec.clone()
        known = spec.keys(True, True) if isinstance(spec, Composite) else []
        for in_key, out_key in zip(self.in_keys, self.out_keys, strict=True):
            if in_key not in known:
                raise ValueError(_missing(self.in_keys, known))
            entry = spec[in_key]
            dtype, image = np.dtype(str(entry.dtype).removeprefix("torch.")).type, entry.shape[-3:]
            low, high = _bounds(entry)
            box = _box(image, dtype, low, high)
            self._layouts[in_key, image] = image_layout(box, f"LatentTransform({in_key!r})")
            if self.del_keys:
                del spec[in_key]
            shape = (*entry.shape[:-3], self.encoder.latent_dim)
            spec[out_key] = Unbounded(shape, device=entry.device, dtype=torch.float32)
        return spec


def _missing(in_keys: Sequence[NestedKey], known: Iterable[NestedKey]) -> str:
    return (
        f"LatentTransform was told in_keys={list(in_keys)}, but the observation has the keys "
        f"{sorted(map(str, known))}."
    )


def _bounds(entry: TensorSpec) -> tuple[float, float]:
    """Return the least and the greatest value that a spec allows; ``uint8`` is bounded by itself."""
    if isinstance(entry, Bounded):
        return float(entry.space.low.min()), float(entry.space.high.max())
    return (0, 255) if entry.dtype == torch.uint8 else (-np.inf, np.inf)


def _box(shape: Sequence[int], dtype: Any, low: float, high: float) -> gym.spaces.Box:
    """Return the space of one image, of which the frame contract can judge."""
    return gym.spaces.Box(low, high, tuple(shape), dtype)

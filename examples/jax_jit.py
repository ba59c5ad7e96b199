"""Encode frames inside a jitted JAX function, which calls the encoder as it is.

$ python examples/jax_jit.py     # about 10 s; needs jax
jit:  (256, 4) logits from (256, 32) latents
vmap: the same latents, bit for bit
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from latent_obs import load_encoder


@dataclass(frozen=True)
class Args:
    """Encode frames inside a jitted function."""

    encoder: str = "pong-v0"
    """a bundled encoder's name or an encoder folder"""
    frames: int = 256


def in_jax(name: str) -> Callable[[jax.Array], jax.Array]:
    """Return a function of uint8 frames, (64, 64, 3) or (N, 64, 64, 3), for jax.jit and jax.vmap."""
    encoder = load_encoder(name)

    def encode(frames: jax.Array) -> jax.Array:
        latents = jax.ShapeDtypeStruct((*frames.shape[:-3], encoder.latent_dim), jnp.float32)
        # "expand_dims" hands a vmapped batch over at once instead of frame by frame.
        return jax.pure_callback(
            lambda pixels: encoder(np.asarray(pixels)), latents, frames, vmap_method="expand_dims"
        )

    return encode


def main(args: Args) -> None:
    encode = in_jax(args.encoder)
    frames = np.random.default_rng(0).integers(0, 256, (args.frames, 64, 64, 3), dtype=np.uint8)
    expected = load_encoder(args.encoder)(frames)
    weights = jax.random.normal(jax.random.key(0), (expected.shape[1], 4))

    def policy(pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        latents = encode(pixels)
        return latents, latents @ weights

    latents, logits = jax.jit(policy)(frames)
    np.testing.assert_array_equal(latents, expected)
    print(f"jit:  {logits.shape} logits from {latents.shape} latents")
    np.testing.assert_array_equal(jax.jit(jax.vmap(encode))(frames), expected)
    print("vmap: the same latents, bit for bit")


if __name__ == "__main__":
    main(tyro.cli(Args))

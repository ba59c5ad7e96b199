"""Draw what an encoder keeps of its game: the pictures of the README.

$ python examples/look_at_encoder.py     # about 5 s on 2 cores
pictures/filmstrip.png
pictures/traversals.png
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from latent_obs import preprocess
from latent_obs.collecting.policies import make_policy
from latent_obs.collecting.sources import open_env
from latent_obs.evaluation.pictures import filmstrip, traversals
from latent_obs.vae import load_vae


@dataclass(frozen=True)
class Args:
    """Draw a film strip and traversals."""

    encoder: str = "pong-v0"
    """name of a bundled encoder, or encoder folder"""
    out: Path = Path("pictures")


def main(args: Args) -> None:
    vae, config = load_vae(args.encoder)
    env = open_env(config.source.env_id, config.source.env_kwargs)
    policy = make_policy("sticky", env)
    policy.reset(123)
    observations = [env.reset(seed=123)[0]]
    for _ in range(200):
        observations.append(env.step(policy.act(observations[-1]))[0])
    observations = observations[-28::3]  # ten of them, three steps apart
    args.out.mkdir(parents=True, exist_ok=True)
    filmstrip(vae, config, observations, args.out / "filmstrip.png")
    print(args.out / "filmstrip.png")
    traversals(vae, config, preprocess(observations[-1], config.frame_spec), args.out / "traversals.png")
    print(args.out / "traversals.png")


if __name__ == "__main__":
    main(tyro.cli(Args))

"""Collect latents beside pixels with stable-worldmodel, and read windows of them for a dynamics model.

$ python examples/stable_worldmodel_data.py     # about a minute; needs stable-worldmodel and imageio
4 episodes, 200 steps
a window: observation (4, 32), action (4, 1), pixels (4, 3, 64, 64)

stable-worldmodel stores pixels as JPEG and latents as they are.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import stable_worldmodel as swm
import tyro

from latent_obs import LatentObservationWrapper


@dataclass(frozen=True)
class Args:
    """Collect latents beside pixels."""

    env_id: str = "ale_py:ALE/Pong-v5"
    encoder: str = "auto"
    """a bundled encoder's name or an encoder folder"""
    episodes: int = 4
    episode_steps: int = 50
    window: int = 4
    """steps in a window"""
    out: Path = Path("pong.lance")


def main(args: Args) -> None:
    world = swm.World(
        args.env_id,
        num_envs=2,
        image_shape=(64, 64),
        max_episode_steps=args.episode_steps,
        goal_conditioned=False,
        pre_wrappers=[partial(LatentObservationWrapper, encoder=args.encoder)],
    )
    world.set_policy(swm.policy.RandomPolicy(seed=0))
    world.collect(args.out, episodes=args.episodes, seed=0, progress=False)
    world.close()
    data = swm.data.LanceDataset(args.out, num_steps=args.window)
    print(f"{len(data.lengths)} episodes, {int(sum(data.lengths))} steps")
    shapes = {name: tuple(data[0][name].shape) for name in ("observation", "action", "pixels")}
    print("a window: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()))


if __name__ == "__main__":
    main(tyro.cli(Args))

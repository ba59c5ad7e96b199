r"""Does a VAE keep a monster in front of a moving background?

$ latent-obs collect vizdoom.gymnasium_wrapper:VizdoomBasic-v1 --key screen --env-kwargs '{"frame_skip": 4}' \
      --frames 12000 --policy random:0.5,sticky:0.5 --out frames
$ python benchmarks/monster.py frames --steps 1500

In ViZDoom's Basic the camera moves, so all pixels differ from the median frame, and the monster is some ten
of 4,096. Trains a small VAE (16-32-64) with and without what the trainer does for rare colours. Prints, on
held-out episodes, what report cards have; on other episodes, where ViZDoom tells the monster's place, how
well ridge regression and an MLP read its column in the frame. Needs vizdoom.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import tyro
from machine import machine

from latent_obs import FramesFolder, FrameSpec, TrainConfig, load_encoder, preprocess, train_vae
from latent_obs.evaluation.evaluate import EvaluateConfig, evaluate_encoder
from latent_obs.evaluation.readers import mlp, ridge, whiten

RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear positions": {"position_weight": 1000.0},
    "no emphasis on rare colours": {"rarity_weight": 0.0},
}
MONSTER, WIDTH = "Cacodemon", 320  # of the screen, in pixels


@dataclass(frozen=True)
class Args:
    """Compare training with and without what the trainer does for rare colours."""

    frames: Path
    """frames folder of VizdoomBasic-v1"""
    steps: int = 1500
    learning_rate: float = 3e-3
    seed: int = 0
    labelled: int = 6000
    """frames in which the monster's place is read"""


def labelled_frames(
    count: int, seed: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return frames of sticky random actions, the monster's column in each and its episode's number."""
    import vizdoom.gymnasium_wrapper  # noqa: F401  # registers the ids

    env = gym.make("VizdoomBasic-v1", frame_skip=4)
    game, rng = env.unwrapped.game, np.random.default_rng(seed)  # type: ignore[attr-defined]
    game.close()
    game.set_labels_buffer_enabled(True)
    game.set_seed(seed)
    game.init()
    frames: list[npt.NDArray[np.uint8]] = []
    columns: list[float] = []
    episodes: list[int] = []
    episode = action = 0
    env.reset()
    while len(frames) < count:
        action = int(rng.integers(4)) if rng.random() < 0.25 else action
        obs, _, terminated, truncated, _ = env.step(action)
        state = game.get_state()
        for label in () if state is None else state.labels:
            if label.object_name == MONSTER:
                frames.append(preprocess(obs["screen"], FrameSpec()))
                columns.append((label.x + label.width / 2) * 64 / WIDTH)
                episodes.append(episode)
        if terminated or truncated:
            env.reset()
            episode += 1
    env.close()
    return np.array(frames), np.array(columns), np.array(episodes)


def main(args: Args) -> None:
    folder = FramesFolder(args.frames)
    frames, columns, episodes = labelled_frames(args.labelled, 2**20 + args.seed)
    test = episodes > episodes.max() * 2 / 3
    centred = (columns - columns[~test].mean())[:, None]
    print(f"# {machine('torch', 'vizdoom')}")
    print(
        f"# {len(folder):,} frames, {args.steps:,} steps of 64, learning rate {args.learning_rate:g}, "
        f"seed {args.seed}; {test.sum():,} of {len(frames):,} labelled frames to test on"
    )
    names = ("moving R2", "rare R2", "positions R2", "PSNR", "KL", "monster: ridge", "MLP")
    print(f"{'':30}" + "".join(f"{name:>15}" for name in names))
    with tempfile.TemporaryDirectory() as scratch:
        for name, changes in RECIPES.items():
            out = Path(scratch) / name.replace(" ", "-")
            config = TrainConfig(
                args.frames,
                out,
                channels=(16, 32, 64),
                steps=args.steps,
                learning_rate=args.learning_rate,
                kl_warmup=0.1,
                seed=args.seed,
            )
            train_vae(replace(config, **changes))
            card = evaluate_encoder(EvaluateConfig(out, args.frames, Path(scratch)))
            latents = load_encoder(out, precision="float32")(frames)
            fitted, read = whiten(latents[~test], latents[test])
            errors = [
                np.square(reader(fitted, centred[~test], read) - centred[test]).mean()
                for reader in (ridge, mlp)
            ]
            scores = [1 - error / centred[test].var() for error in errors]
            row = [
                f"{np.float64(getattr(card, key)):15.3f}" for key in ("moving_r2", "rare_r2", "position_r2")
            ]
            row += [f"{card.psnr:15.1f}", f"{card.kl:15.0f}"]
            print(f"{name:30}{''.join(row)}" + "".join(f"{score:15.3f}" for score in scores), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Args, config=(tyro.conf.PositionalRequiredArgs,)))

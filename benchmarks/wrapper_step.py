"""How much slower is a wrapped step than a bare one?

$ python benchmarks/wrapper_step.py     # about 1 min on 2 cores

Three environments take turns in short runs of steps, so that a machine that is busy with other
things slows all of them alike: the bare ALE environment, the same with ``LatentObservationWrapper``,
and the same with a wrapper that resizes with cv2 and encodes with eager PyTorch, as World Models
ports do. All three see the same actions. First the latents are compared: in float32 they are equal,
in the precision that is timed they pass the parity gate. The baseline's latents are scaled as ours are.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import torch
import tyro
from encode import played
from machine import machine

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.encoders.quantise import parity_error
from latent_obs.encoders.resolve import resolve
from latent_obs.encoders.runtimes import PARITY
from latent_obs.vae import load_vae

gym.register_envs(ale_py)


@dataclass(frozen=True)
class Args:
    """Compare steps of bare and wrapped environments."""

    env_id: str = "ALE/Pong-v5"
    encoder: str = "pong-v0"
    steps: int = 5_000
    """steps of each environment"""
    smallest: bool = False
    """the smallest form, which CI runs, in seconds"""


class EagerWrapper(gym.ObservationWrapper[Any, Any, Any]):
    """The usual way: cv2, a float tensor, eager PyTorch with default threads, then scaling."""

    def __init__(self, env: gym.Env[Any, Any], encoder: str) -> None:
        super().__init__(env)
        self.vae, _ = load_vae(encoder)
        self.vae.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # PyTorch's default, as users have it
        self.shift, self.scale = (x.astype(np.float32) for x in resolve(encoder).config.scaling)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (32,), np.float32)

    def observation(self, observation: Any) -> Any:
        frame = cv2.resize(observation, (64, 64), interpolation=cv2.INTER_AREA)
        with torch.no_grad():
            latent = self.vae(torch.from_numpy(frame).unsqueeze(0))[0].numpy()
        return (latent - self.shift) / self.scale


def main(args: Args) -> None:
    if args.smallest:
        args = replace(args, steps=200)
    encoder = load_encoder(args.encoder, normalize=True)
    eager = EagerWrapper(gym.make(args.env_id), args.encoder)
    envs = {
        "bare": gym.make(args.env_id),
        "eager PyTorch": eager,
        "wrapped": LatentObservationWrapper(gym.make(args.env_id), encoder),
    }
    spaces = next(iter(envs.values())).action_space
    spaces.seed(0)
    actions = [spaces.sample() for _ in range(args.steps)]

    frames = played(args.env_id, 200)
    exact = load_encoder(args.encoder, precision="float32", normalize=True)(frames)
    np.testing.assert_allclose(exact, [eager.observation(frame) for frame in frames], atol=1e-3)
    error = parity_error(exact, encoder(frames), exact.std(0))
    assert error < PARITY, f"{encoder.precision} is off by {error:.1%}"
    for env in envs.values():
        env.reset(seed=0)

    chunk = 100
    times: dict[str, list[float]] = {name: [] for name in envs}
    for start in range(0, args.steps, chunk):
        for name, env in envs.items():
            begun = time.perf_counter()
            for action in actions[start : start + chunk]:
                _, _, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    env.reset()
            times[name].append((time.perf_counter() - begun) / chunk * 1e6)

    print(f"# {machine('torch', 'openvino', 'ale-py')}")
    print(f"# encoder {args.encoder} in {encoder.precision}, off from float32 by {error:.2%} of a std")
    print(f"# {encoder.precision_reason}")
    print("environment      us/step   p10   p90")
    median = {}
    for name, samples in times.items():
        median[name] = statistics.median(samples)
        p10, p90 = np.percentile(samples, [10, 90])
        print(f"{name:15} {median[name]:8.0f} {p10:5.0f} {p90:5.0f}")
    print(f"wrapped / bare: {median['wrapped'] / median['bare']:.2f}x")
    added = {name: median[name] - median["bare"] for name in ("wrapped", "eager PyTorch")}
    print(f"added by us / bare: {added['wrapped'] / median['bare']:.2f}")
    print(f"added by eager PyTorch / added by us: {added['eager PyTorch'] / added['wrapped']:.1f}x")


if __name__ == "__main__":
    main(tyro.cli(Args))

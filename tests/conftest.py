"""A tiny environment and a tiny encoder, for tests that need no real game."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import EncoderConfig, VAEConfig, write_encoder_folder
from latent_obs.frames import FrameSpec, preprocess

# Of Gymnasium's vector environments; before 1.1 they had no other mode than the first, and no name for it.
AUTORESET_MODES = (
    ["NextStep", "SameStep", "Disabled"] if hasattr(gym.vector, "AutoresetMode") else ["NextStep"]
)
NATIVE_ALE = hasattr(ale_py, "AtariVectorEnv")  # since ale-py 0.11
needs_native_ale = pytest.mark.skipif(not NATIVE_ALE, reason="ale-py before 0.11 has no vector environment")


def vector_env(make: Any, mode: str, kind: Any = gym.vector.SyncVectorEnv) -> Any:
    """Make a vector environment with an autoreset mode."""
    if mode == "NextStep":
        return kind(make)
    return kind(make, autoreset_mode=gym.vector.AutoresetMode(mode))


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until a condition is true; fail after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.005)


TINY_VAE = VAEConfig(latent_dim=32, channels=(4, 8))


class FrameEnv(gym.Env[Any, Any]):
    """A bright square moves over noise; episodes last 5 steps, alternately ended and cut."""

    def __init__(
        self,
        shape: tuple[int, ...] = (80, 72, 3),
        dtype: Any = np.uint8,
        length: int = 5,
        high: float = 255,
    ) -> None:
        self.observation_space = gym.spaces.Box(0, high, shape, dtype)
        self.action_space = gym.spaces.Discrete(4)
        self.length, self.episodes = length, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.episodes = 0
        self.episodes += 1
        self.t, self.place = 0, self.np_random.integers(0, 60, 2)
        return self._image(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.place = (self.place + (action + 1) * np.array([3, 5])) % 60
        over = self.t >= self.length
        return (
            self._image(),
            float(action),
            over and self.episodes % 2 == 0,
            over and self.episodes % 2 == 1,
            {},
        )

    def _image(self) -> Any:
        image = self.np_random.integers(0, 40, self.observation_space.shape).astype(np.uint8)
        y, x = self.place
        image[y : y + 12, x : x + 12] = (250, 200, 50)
        return image.astype(self.observation_space.dtype)


class DictEnv(gym.ObservationWrapper[Any, Any, Any]):
    """Puts FrameEnv's image into a Dict, beside a speed."""

    def __init__(self) -> None:
        super().__init__(FrameEnv())
        self.observation_space = gym.spaces.Dict(
            {"image": self.env.observation_space, "speed": gym.spaces.Box(0, 1, (2,), np.float32)}
        )

    def observation(self, observation: Any) -> Any:
        return {"image": observation, "speed": np.array([0.5, 0.25], np.float32)}


def random_tensors(vae: VAEConfig, seed: int = 0) -> dict[str, Any]:
    """Weights large enough that different frames have clearly different latents."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in vae.tensor_shapes().items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 1
        tensors[name] = (rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)
    tensors["decoder_variance"] = np.array(0.01, np.float32)
    return tensors


def save_encoder(folder: Path, vae: VAEConfig = TINY_VAE, seed: int = 0, **fields: Any) -> Path:
    """Write an encoder folder with random weights."""
    flat = {"mean": [0.0] * vae.latent_dim, "std": [1.0] * vae.latent_dim, "kl": [1.0] * vae.latent_dim}
    config = EncoderConfig(fields.pop("frame_spec", FrameSpec()), vae, flat, **fields)
    write_encoder_folder(folder, config, random_tensors(vae, seed))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_remembered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What an earlier version computed must not pass for this one's result, nor stay in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENT_OBS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random encoder."""
    return save_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="session")
def training_frames() -> Any:
    """Frames of FrameEnv, on which ``trained`` has the statistics of its latents."""
    env, images = FrameEnv(length=20), []
    for seed in range(40):
        images.append(env.reset(seed=seed)[0])
        images.extend(env.step(step % 4)[0] for step in range(19))
    return np.stack([preprocess(image, FrameSpec()) for image in images])


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, training_frames: Any) -> Path:
    """A small random encoder whose config holds the true statistics of FrameEnv's latents."""
    folder = save_encoder(tmp_path_factory.mktemp("encoder") / "trained")
    latents = load_encoder(folder, normalize=False)(training_frames)
    statistics = {"mean": latents.mean(0), "std": latents.std(0), "kl": np.ones(32)}
    config = EncoderConfig(
        FrameSpec(), TINY_VAE, {name: value.tolist() for name, value in statistics.items()}
    )
    write_encoder_folder(folder, config, random_tensors(TINY_VAE))
    return folder


@pytest.fixture(scope="session")
def pong_frames(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    """Two thousand real frames of Pong in eight parts of two workers' episodes."""
    out = tmp_path_factory.mktemp("pong") / "frames"
    config = CollectConfig("ALE/Pong-v5", out, frames=2000, workers=1, shard_rows=256)
    return collect_frames(config, progress=False)


@pytest.fixture
def frames() -> Callable[[int], Any]:
    """Random frames of a given number."""
    rng = np.random.default_rng(0)
    return lambda n: rng.integers(0, 256, (n, 64, 64, 3), dtype=np.uint8)

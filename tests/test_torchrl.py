from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite
from torchrl.envs import GymEnv, GymWrapper, SerialEnv, TransformedEnv
from torchrl.envs.transforms import CatFrames, Compose, ToTensorImage
from torchrl.envs.utils import check_env_specs

from latent_obs import LatentObservationWrapper, load_encoder, preprocess
from latent_obs.torchrl import LatentTransform
from tests.conftest import FrameEnv

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def frames_env() -> Any:
    return GymWrapper(FrameEnv(), categorical_action_encoding=True)


def transform(encoder: Any, **options: Any) -> LatentTransform:
    return LatentTransform(encoder, **options)


@pytest.mark.parametrize("batched", [False, True])
def test_torchrls_own_check_passes(batched: bool, encoder: Path) -> None:
    env = SerialEnv(2, frames_env) if batched else frames_env()
    env = TransformedEnv(env, transform(encoder))
    check_env_specs(env)
    assert env.observation_spec["latent"].shape == ((2, 32) if batched else (32,))
    assert "pixels" not in env.observation_spec.keys()
    env.close()


@pytest.mark.parametrize("normalize", [False, True])
def test_rollouts_hold_the_wrappers_latents(normalize: bool, trained: Path) -> None:
    """GymWrapper passes resets and steps on, so both environments play the same game."""
    wrapped = LatentObservationWrapper(FrameEnv(), trained, normalize=normalize)
    env = TransformedEnv(frames_env(), transform(trained, normalize=normalize))
    np.testing.assert_array_equal(env.reset(seed=3)["latent"], wrapped.reset(seed=3)[0])
    for action in (0, 3, 1, 2, 1):
        out = env.step(TensorDict({"action": torch.tensor(action)}))["next"]
        obs, _, terminated, truncated, _ = wrapped.step(action)
        np.testing.assert_array_equal(out["latent"], obs)
        assert bool(out["done"]) == (terminated or truncated)


def test_the_images_can_stay(encoder: Path) -> None:
    env = TransformedEnv(frames_env(), transform(encoder, del_keys=False))
    check_env_specs(env)
    step = env.rollout(2)["next"]
    encode = load_encoder(encoder)
    for image, latent in zip(step["pixels"], step["latent"], strict=True):
        np.testing.assert_array_equal(latent, encode(preprocess(image.numpy(), encode.frame_spec)))


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("planar", [False, True])
def test_any_batch_is_encoded_in_one_call(batch: Any, planar: bool, encoder: Path) -> None:
    loaded = load_encoder(encoder)
    loaded(np.zeros((64, 64, 3), np.uint8))
    run, sizes = loaded._run, []
    assert run is not None
    loaded._run = lambda frames: sizes.append(len(frames)) or run(frames)  # type: ignore[func-returns-value]
    images = torch.randint(0, 256, (*batch, 64, 64, 3), dtype=torch.uint8)
    shown = images.movedim(-1, -3) if planar else images
    out = LatentTransform(loaded)(TensorDict({"pixels": shown}, batch))
    assert "pixels" not in out
    assert sizes == [int(np.prod(batch))]
    expected = load_encoder(encoder)(images.reshape(-1, 64, 64, 3).numpy())
    np.testing.assert_array_equal(out["latent"], expected.reshape(*batch, 32))


def test_each_entry_is_read_as_its_own_spec_says(encoder: Path) -> None:
    """Three of one shape: the values of the first end at 1, those of the others at 255 and at 1."""
    image = torch.randint(0, 2, (64, 64, 3)) * 255
    shown = {"a": image / 255, "b": image.float(), "c": (image / 255).to(torch.uint8)}
    highs, names = {"a": 1.0, "b": 255.0, "c": 1}, {name: f"latent {name}" for name in shown}
    both = transform(encoder, in_keys=list(shown), out_keys=list(names.values()))
    both.transform_observation_spec(
        Composite({n: Bounded(0, highs[n], (64, 64, 3), dtype=shown[n].dtype) for n in shown})
    )
    expected = load_encoder(encoder)(image.to(torch.uint8).numpy())
    found = both(TensorDict(shown))
    for name in names.values():
        np.testing.assert_array_equal(found[name], expected)


def test_latents_can_be_stacked(encoder: Path) -> None:
    steps = Compose(transform(encoder), CatFrames(3, dim=-1, in_keys=["latent"]))
    env = TransformedEnv(frames_env(), steps)
    check_env_specs(env)
    assert env.observation_spec["latent"].shape == (96,)


def test_what_cannot_be_encoded_is_refused(encoder: Path) -> None:
    scaled = TransformedEnv(frames_env(), ToTensorImage())
    with pytest.raises(ValueError, match="before wrappers that scale or transpose"):
        TransformedEnv(scaled, transform(encoder)).observation_spec  # noqa: B018
    with pytest.raises(ValueError, match="the keys \\['pixels'\\]"):
        TransformedEnv(frames_env(), transform(encoder, in_keys=["eye"])).observation_spec  # noqa: B018
    with pytest.raises(KeyError, match="the keys \\['eye'\\]"):
        transform(encoder)(TensorDict(eye=torch.zeros(64, 64, 3)))
    with pytest.raises(ValueError, match="does not know its environment"):
        LatentTransform("auto")
    with pytest.raises(ValueError, match="out_key per in_key"):
        LatentTransform(encoder, in_keys=["a", "b"])


def test_a_rendered_gym_env_has_pixels(encoder: Path) -> None:
    make = functools.partial(GymEnv, "CartPole-v1", from_pixels=True, pixels_only=True)
    env = TransformedEnv(make(), LatentTransform(encoder))
    check_env_specs(env)
    assert env.rollout(3)["latent"].shape == (3, 32)
    assert isinstance(gym.spec("CartPole-v1").id, str)
    env.close()

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env

from latent_obs import LatentObservationWrapper
from latent_obs.encoders.encoder import load_encoder
from latent_obs.frames import FrameSource, FrameSpec, preprocess
from tests.conftest import DictEnv, FrameEnv, save_encoder

gym.register_envs(ale_py)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    gym.register("Frame-v0", "tests.conftest:FrameEnv", disable_env_checker=True)
    yield
    del gym.registry["Frame-v0"]


def rollout(env: Any, steps: int = 12) -> list[Any]:
    observations = [env.reset(seed=3)[0]]
    env.action_space.seed(3)
    for _ in range(steps):
        obs, _, terminated, truncated, _ = env.step(env.action_space.sample())
        observations.append(obs)
        if terminated or truncated:
            observations.append(env.reset()[0])
    return observations


def test_the_observation_is_the_latent_of_the_resized_frame(encoder: Path) -> None:
    encode = load_encoder(encoder)
    wrapped = rollout(LatentObservationWrapper(FrameEnv(), encoder))
    plain = rollout(FrameEnv())
    for latent, image in zip(wrapped, plain, strict=True):
        assert np.array_equal(latent, encode(preprocess(image, FrameSpec())))
    assert np.std(wrapped, 0).min() > 0.01


def test_the_encoders_crop_is_applied(tmp_path: Path) -> None:
    spec = FrameSpec(crop=(4, 70, 6, 66))
    folder = save_encoder(tmp_path / "cropped", frame_spec=spec)
    latent, _ = LatentObservationWrapper(FrameEnv(), folder).reset(seed=1)
    image, _ = FrameEnv().reset(seed=1)
    assert np.array_equal(latent, load_encoder(folder)(preprocess(image, spec)))


def test_the_space_is_a_box_of_32(encoder: Path) -> None:
    env = LatentObservationWrapper(FrameEnv(), encoder)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (32,), np.float32)
    assert all(obs in env.observation_space for obs in rollout(env))


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_stacked_latents_are_the_last_ones_oldest_first(encoder: Path, stack: int) -> None:
    single = LatentObservationWrapper(FrameEnv(), encoder)
    stacked = LatentObservationWrapper(FrameEnv(), encoder, stack=stack)
    assert stacked.observation_space.shape == (32 * stack,)
    for env in (single, stacked):
        env.reset(seed=5)
    first = single.reset(seed=6)[0]
    history = [first] * stack
    assert np.array_equal(stacked.reset(seed=6)[0], np.concatenate(history))
    for _ in range(5):
        history = [*history[1:], single.step(1)[0]]
        assert np.array_equal(stacked.step(1)[0], np.concatenate(history))


def test_the_stack_begins_anew_above_autoreset(encoder: Path) -> None:
    """FrameEnv ends and cuts its episodes by turns; the latents alone say what the stacks hold."""
    single, stacked = (
        LatentObservationWrapper(gym.wrappers.Autoreset(FrameEnv(length=3)), encoder, stack=n) for n in (1, 2)
    )
    latents, found = (
        [env.reset(seed=5)[0], *(env.step(1)[0] for _ in range(8))] for env in (single, stacked)
    )
    for step, obs in enumerate(found):
        first = step % 4 == 0  # three steps of an episode, then the one that resets
        assert np.array_equal(obs, np.concatenate([latents[step - (not first)], latents[step]]))


def test_every_observation_is_a_new_array(encoder: Path) -> None:
    env = LatentObservationWrapper(FrameEnv(), encoder, stack=2)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(0)
    assert np.array_equal(first, kept)


def test_a_dict_keeps_its_other_entries(encoder: Path) -> None:
    env = LatentObservationWrapper(DictEnv(), encoder, key="image", stack=2)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert env.observation_space["image"].shape == (64,)
    obs, _ = env.reset(seed=1)
    assert obs in env.observation_space
    assert np.array_equal(obs["speed"], [0.5, 0.25])
    plain = LatentObservationWrapper(FrameEnv(), encoder, stack=2)
    assert np.array_equal(obs["image"], plain.reset(seed=1)[0])
    assert np.array_equal(env.step(2)[0]["image"], plain.step(2)[0])


def test_a_state_only_env_is_wrapped_through_its_rendering(encoder: Path) -> None:
    bare = gym.make("CartPole-v1", render_mode="rgb_array")
    env = LatentObservationWrapper(gym.wrappers.AddRenderObservation(bare), encoder)
    assert rollout(env, 3)[-1].shape == (32,)
    env.close()


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: FrameEnv((80, 72, 4)), {}, "RGBA or a stack of four gray images"),
        (lambda: FrameEnv((4, 80, 72)), {}, "stack latents instead with stack=4"),
        (lambda: FrameEnv((80, 72, 3), np.float64, high=np.inf), {}, "before wrappers that scale"),
        (lambda: FrameEnv((2, 80, 72, 3)), {}, "needs uint8 RGB .* stack=2"),
        (lambda: gym.make("CartPole-v1"), {}, "AddRenderObservation"),
        (DictEnv, {}, "key='image'"),
        (DictEnv, {"key": "camera"}, r"\['image', 'speed'\]"),
        (DictEnv, {"key": "speed"}, r"key='speed'"),
        (FrameEnv, {"key": "image"}, "was told key='image'"),
        (FrameEnv, {"stack": 0}, "stack"),
        (FrameEnv, {"stack": 1.5}, "stack"),
        (FrameEnv, {"encoder": {"reference": "x"}}, "does not fit load_encoder"),
        (FrameEnv, {"encoder": None}, "encoder= takes a bundled encoder's name, .*; got None"),
        (FrameEnv, {"encoder": 5}, "got 5"),
        (FrameEnv, {"encoder": ["pong-v0"]}, r"got \['pong-v0'\]"),
        (FrameEnv, {"encoder": {"ref": None}}, "got {'ref': None}"),
        (FrameEnv, {"fingerprint": 5}, "fingerprint= takes the SHA-256 .* got 5"),
        (FrameEnv, {"fingerprint": {"image": "5e"}}, "a dictionary as fingerprint= only .* got .*'5e'"),
        (DictEnv, {"key": 3}, "key to be an entry's name, or several different ones, got 3"),
        (DictEnv, {"key": [["image"]]}, "several different ones, got"),
        (FrameEnv, {"normalize": "yes"}, "normalize must be True or False, got 'yes'"),
    ],
)
def test_what_cannot_be_encoded_is_refused_by_the_constructor(
    encoder: Path, make: Any, options: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LatentObservationWrapper(make(), **{"encoder": encoder, **options})


def test_an_encoder_in_the_home_of_nobody_is_not_found() -> None:
    with pytest.raises(FileNotFoundError, match="no encoder '~nobody-at-all/x'"):
        LatentObservationWrapper(FrameEnv(), "~nobody-at-all/x")


def test_an_encoder_cropped_for_larger_images_is_refused_by_the_constructor(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "big", frame_spec=FrameSpec(crop=(34, 194, 0, 160)))
    with pytest.raises(ValueError, match="another image size"):
        LatentObservationWrapper(FrameEnv(), folder)


def test_auto_without_a_fitting_encoder_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    with pytest.warns(UserWarning, match="latent-obs fit tests:Frame-v0") as told:
        env = LatentObservationWrapper(gym.make("Frame-v0"))
    assert told[0].filename == __file__, "it points at the line that wraps"
    assert len(told) == 1
    assert env.encoder.ref == "general-v0"
    assert LatentObservationWrapper(gym.make("Frame-v0")).encoder.ref == "general-v0"
    assert env.spec is not None
    assert env.spec.additional_wrappers[-1].kwargs is not None
    assert env.spec.additional_wrappers[-1].kwargs["encoder"] == "general-v0", "the resolved name is recorded"


# The checker dislikes every unbounded Box and every wrapper; both are meant here.
@pytest.mark.filterwarnings("ignore:.*Box observation space m.*infinity.*")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped version.*")
@pytest.mark.parametrize("make", [lambda: gym.make("Frame-v0"), lambda: gym.make("ALE/Pong-v5")])
def test_gymnasiums_checker_passes(encoder: Path, make: Any) -> None:
    check_env(LatentObservationWrapper(make(), encoder, stack=2), skip_render_check=True)


@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version.*")
def test_sb3s_checker_passes(encoder: Path) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    sb3_check_env(LatentObservationWrapper(gym.make("Frame-v0"), encoder))


@pytest.mark.parametrize(
    "travel",
    [
        lambda spec: EnvSpec.from_json(spec.to_json()),
        lambda spec: pickle.loads(pickle.dumps(spec)),
        copy.deepcopy,
    ],
    ids=["json", "pickle", "deepcopy"],
)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("make", ["path", "encoder", "options"])
def test_the_spec_makes_the_same_env_again(trained: Path, travel: Any, make: str, normalize: bool) -> None:
    options = {"ref": str(trained), "precision": "bfloat16", "num_threads": 2}
    loaded = load_encoder(trained, normalize=normalize)
    given: Any = {"path": trained, "encoder": loaded, "options": options}[make]
    env = LatentObservationWrapper(gym.make("Frame-v0"), given, stack=2, normalize=normalize)
    again = gym.make(travel(env.spec))
    assert isinstance(again, LatentObservationWrapper)
    assert repr(again.encoder) == repr(env.encoder)
    json.dumps(again.spec.additional_wrappers[-1].kwargs)  # type: ignore[union-attr]
    for a, b in zip(rollout(env), rollout(again), strict=True):
        assert np.array_equal(a, b)


def test_normalised_latents_are_stacked_as_the_encoder_gives_them(trained: Path) -> None:
    encode = load_encoder(trained, normalize=True)
    env = LatentObservationWrapper(DictEnv(), trained, stack=2, key="image", normalize=True)
    plain = DictEnv()
    first, second = (
        encode(preprocess(o["image"], FrameSpec())) for o in (plain.reset(seed=1)[0], plain.step(2)[0])
    )
    np.testing.assert_array_equal(env.reset(seed=1)[0]["image"], np.concatenate([first, first]))
    np.testing.assert_array_equal(env.step(2)[0]["image"], np.concatenate([first, second]))
    assert (
        abs(
            first
            - load_encoder(trained, normalize=False)(
                preprocess(DictEnv().reset(seed=1)[0]["image"], FrameSpec())
            )
        ).max()
        > 0.1
    )


@pytest.mark.parametrize("given", [False, True])
def test_an_encoder_that_says_otherwise_about_scaling_is_refused(trained: Path, given: bool) -> None:
    encoders: list[Any] = [load_encoder(trained, normalize=given), {"ref": str(trained), "normalize": given}]
    for encoder in encoders:
        for silent_or_alike in (None, given):
            env = LatentObservationWrapper(FrameEnv(), encoder, normalize=silent_or_alike)
            assert env.encoder.normalize == given
        with pytest.raises(ValueError, match=f"comes with normalize={given}, but normalize={not given} was"):
            LatentObservationWrapper(FrameEnv(), encoder, normalize=not given)


def test_a_used_env_deepcopies_and_pickles(encoder: Path) -> None:
    env = LatentObservationWrapper(FrameEnv(), encoder, stack=2)
    env.reset(seed=1)
    env.step(0)
    for twin in (copy.deepcopy(env), pickle.loads(pickle.dumps(env))):
        assert np.array_equal(twin.step(1)[0], copy.deepcopy(env).step(1)[0])


def make_wrapped(encoder: Path, stack: int) -> Any:
    return LatentObservationWrapper(FrameEnv(), encoder, stack=stack)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_sync_and_async_vector_envs_of_wrapped_envs_agree(encoder: Path, context: str) -> None:
    load_encoder(encoder)(np.zeros((64, 64, 3), np.uint8))  # a used runtime in the parent
    thunks = [functools.partial(make_wrapped, encoder, 2)] * 2
    sync = gym.vector.SyncVectorEnv(thunks)
    asynchronous = gym.vector.AsyncVectorEnv(thunks, context=context)
    try:
        assert sync.single_observation_space.shape == (64,)
        obs, other = sync.reset(seed=4)[0], asynchronous.reset(seed=4)[0]
        for action in ([0, 1], [2, 3], [1, 1], [0, 0], [3, 1], [1, 2], [0, 1]):
            assert np.array_equal(obs, other)
            obs, other = sync.step(np.array(action))[0], asynchronous.step(np.array(action))[0]
    finally:
        asynchronous.close()


def pong_encoder(folder: Path, **emulator: Any) -> Path:
    settings = {"game": "pong", "frameskip": 4, "repeat_action_probability": 0.25}
    source = FrameSource("ALE/Pong-v5", {}, {**settings, "max_pool": False, "noop_max": 0, **emulator})
    return save_encoder(folder, source=source)


def test_the_encoders_own_environment_brings_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentObservationWrapper(gym.make("ALE/Pong-v5"), pong_encoder(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gym.make("ALE/Pong-v5", frameskip=2), "frameskip 4, here 2"),
        (lambda: gym.make("ALE/Breakout-v5"), "game 'pong', here 'breakout'"),
        (
            lambda: gym.wrappers.AtariPreprocessing(
                gym.make("ALE/Pong-v5", frameskip=1), grayscale_obs=False, noop_max=0
            ),
            "max_pool False, here True",
        ),
    ],
)
def test_other_emulator_settings_than_in_training_bring_a_warning(
    make: Any, message: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=message):
        LatentObservationWrapper(make(), pong_encoder(tmp_path))


def moved_spec(encoder: Path, tmp_path: Path) -> tuple[Any, Any, Path]:
    """Make a spec whose encoder then lies elsewhere; return it, the latents it gave, and the new place."""
    before = tmp_path / "before" / "runs" / "mine"
    shutil.copytree(encoder, before)
    env = LatentObservationWrapper(gym.make("Frame-v0"), before)
    assert env.spec is not None
    spec, latents = EnvSpec.from_json(env.spec.to_json()), rollout(env)
    shutil.move(tmp_path / "before", tmp_path / "after")
    return spec, latents, tmp_path / "after"


@pytest.mark.parametrize("how", ["path", "working directory", "cache"])
def test_an_encoder_that_moved_is_found_by_its_weights(
    how: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, latents, after = moved_spec(trained, tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(after if how == "working directory" else tmp_path / "here")
    monkeypatch.setenv("LATENT_OBS_HOME", str(after if how == "cache" else tmp_path / "nothing"))
    (tmp_path / "decoy").mkdir()
    save_encoder(tmp_path / "decoy" / "runs" / "mine", seed=1)  # the name is right, the weights are not
    path = [tmp_path / "decoy", *([after] if how == "path" else [])]
    monkeypatch.setenv("LATENT_OBS_PATH", os.pathsep.join(map(str, path)))
    env: Any = gym.make(spec)
    assert env.encoder.ref == str(after / "runs" / "mine")
    for a, b in zip(rollout(env), latents, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("left", ["", "config.json"])
@pytest.mark.parametrize("broken", ["config.json", "model.safetensors"])
def test_an_encoder_that_moved_is_found_past_what_is_left_of_folders(
    left: str, broken: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder on the way has a link to nothing, as git-annex leaves them; the old place is not empty."""
    spec, _, after = moved_spec(trained, tmp_path)
    monkeypatch.setenv("LATENT_OBS_PATH", str(after))
    decoy = save_encoder(after / "annex")
    (decoy / broken).unlink()
    (decoy / broken).symlink_to("nowhere")
    before = tmp_path / "before" / "runs" / "mine"
    before.mkdir(parents=True)
    if left:
        shutil.copy(trained / left, before)
    assert gym.make(spec).get_wrapper_attr("encoder").ref == str(after / "runs" / "mine")


def test_the_error_of_an_encoder_that_is_gone_says_where_it_looked(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, after = moved_spec(trained, tmp_path)
    shutil.rmtree(after)
    for name in ("here", "cache", "named"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LATENT_OBS_PATH", str(tmp_path / "named"))
    with pytest.raises(FileNotFoundError) as caught:
        gym.make(spec)
    for place in (tmp_path / "before" / "runs" / "mine", *(tmp_path / n for n in ("here", "cache", "named"))):
        assert str(place) in str(caught.value)


def test_another_encoder_under_the_same_name_is_refused(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec, _, after = moved_spec(trained, tmp_path)
    shutil.rmtree(after)
    save_encoder(tmp_path / "before" / "runs" / "mine", seed=1)
    with pytest.raises(ValueError, match="latents would mean something else") as caught:
        gym.make(spec)
    wanted = hashlib.sha256((trained / "model.safetensors").read_bytes()).hexdigest()
    assert wanted[:12] in str(caught.value)


def test_a_relative_path_is_looked_for_on_the_search_path(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained, tmp_path / "there" / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="LATENT_OBS_PATH"):
        LatentObservationWrapper(FrameEnv(), "runs/mine")
    monkeypatch.setenv("LATENT_OBS_PATH", str(tmp_path / "there"))
    env = LatentObservationWrapper(FrameEnv(), "runs/mine")
    assert env.encoder.ref == str(tmp_path / "there" / "runs" / "mine")


def test_without_a_home_folder_auto_takes_the_bundled_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs under a number without a name."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for name in ("LATENT_OBS_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert LatentObservationWrapper(gym.make("ALE/Pong-v5")).encoder.ref == "pong-v0"
    with pytest.raises(FileNotFoundError, match="neither a bundled one"):
        LatentObservationWrapper(FrameEnv(), "runs/mine")


def test_a_deleted_working_directory_is_not_looked_at(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, _, after = moved_spec(trained, tmp_path)
    monkeypatch.setenv("LATENT_OBS_PATH", str(after))

    def cwd() -> Path:
        raise FileNotFoundError("No such file or directory")

    monkeypatch.setattr(Path, "cwd", cwd)
    env: Any = gym.make(spec)
    assert env.encoder.ref == str(after / "runs" / "mine")


def test_specs_without_a_fingerprint_still_load(trained: Path) -> None:
    """Such as were written before there were fingerprints."""
    env = LatentObservationWrapper(gym.make("Frame-v0"), trained)
    assert env.spec is not None
    written = json.loads(env.spec.to_json())
    assert written["additional_wrappers"][-1]["kwargs"].pop("fingerprint")
    again = gym.make(EnvSpec.from_json(json.dumps(written)))
    np.testing.assert_array_equal(again.reset(seed=0)[0], env.reset(seed=0)[0])

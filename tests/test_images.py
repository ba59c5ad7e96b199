"""What environments show as images, and what is typed where they show none."""

from __future__ import annotations

import ast
import copy
import functools
import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from latent_obs import LatentObservationWrapper, load_encoder, pettingzoo, vector
from latent_obs.frames import FrameSpec, frame_source
from latent_obs.images import ImageLayout, MadeBy, image_layout
from latent_obs.sb3 import VecLatentObservation
from tests.conftest import AUTORESET_MODES, FrameEnv, needs_native_ale, save_encoder, vector_env
from tests.test_pettingzoo import TwoFrameEnvs

gym.register_envs(ale_py)
GRAY = np.array([0.299, 0.587, 0.114])


class Arranged(gym.ObservationWrapper[Any, Any, Any]):
    """Shows FrameEnv's image in another arrangement."""

    def __init__(self, change: Any, shape: tuple[int, ...], dtype: Any = np.uint8, high: float = 255) -> None:
        super().__init__(FrameEnv())
        self.change, self.observation_space = change, gym.spaces.Box(0, high, shape, dtype)

    def observation(self, observation: Any) -> Any:
        shown = self.change(observation).astype(self.observation_space.dtype)
        assert shown in self.observation_space
        return shown


def gray(image: Any) -> Any:
    return np.rint(image @ GRAY)


ARRANGEMENTS: dict[str, tuple[Any, ...]] = {
    "HW": (gray, (80, 72)),
    "HW1": (lambda image: gray(image)[..., None], (80, 72, 1)),
    "1HW": (lambda image: gray(image)[None], (1, 80, 72)),
    "planar": (lambda image: image.transpose(2, 0, 1), (3, 80, 72)),
    "stack of one": (lambda image: image[None], (1, 80, 72, 3)),
    "float to 255": (lambda image: image, (80, 72, 3), np.float32, 255),
    "float to 1": (lambda image: image / 255, (80, 72, 3), np.float64, 1),
    "planar float to 1": (lambda image: image.transpose(2, 0, 1) / 255, (3, 80, 72), np.float32, 1),
    "gray float to 1": (lambda image: gray(image) / 255, (80, 72), np.float32, 1),
    "integers": (lambda image: image, (80, 72, 3), np.int64, 255),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
@pytest.mark.parametrize("vectorised", [False, True])
def test_an_image_is_encoded_as_what_it_shows(name: str, vectorised: bool, encoder: Path) -> None:
    """The frame is made by hand: cv2 resizes the RGB image, or three times the gray one."""
    make = functools.partial(Arranged, *ARRANGEMENTS[name])
    encode = load_encoder(encoder)
    wrapped: Any = (
        vector.LatentObservationWrapper(SyncVectorEnv([make]), encode)
        if vectorised
        else LatentObservationWrapper(make(), encode)
    )
    image = FrameEnv().reset(seed=1)[0]
    if "HW" in name or "gray" in name:
        image = np.stack([gray(image).astype(np.uint8)] * 3, -1)
    expected = encode(cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(wrapped.reset(seed=1)[0].reshape(-1), expected)


def test_floats_are_rounded_to_the_nearest_value() -> None:
    """And what lies outside of the bounds that the space promised does not wrap around."""
    given = np.array([[0.0, 0.4, 0.6, 99.6], [254.4, 254.6, 256.0, -3.0]])
    wanted = [[0, 0, 1, 100], [254, 255, 255, 0]]
    for scale, images in ((1, given), (255, given / 255)):
        found = ImageLayout("HW", gray=True, scale=scale).to_rgb(images)
        assert found.dtype == np.uint8
        assert found.tolist() == [[[value] * 3 for value in row] for row in wanted]


@pytest.mark.parametrize("given", [np.uint8, np.float32, bool])
@pytest.mark.parametrize("told", [np.uint8, np.int64, np.float32])
def test_one_is_white_where_the_space_ends_at_one(told: Any, given: Any, encoder: Path) -> None:
    """Whatever the type of the values, which need not be that of the space."""
    env = gym.wrappers.TransformObservation(
        FrameEnv(), lambda image: (image > 99).astype(given), gym.spaces.Box(0, 1, (80, 72, 3), told)
    )
    shown: Any = np.where(FrameEnv().reset(seed=1)[0] > 99, 255, 0).astype(np.uint8)
    expected = load_encoder(encoder)(cv2.resize(shown, (64, 64), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(LatentObservationWrapper(env, encoder).reset(seed=1)[0], expected)


@pytest.mark.parametrize(
    ("space", "line"),
    [
        (
            gym.spaces.Box(0, 255, (84, 80, 4), np.uint8),
            "lambda image: image[..., :3], gym.spaces.Box(0, 255, (84, 80, 3), np.uint8))",
        ),
        (
            gym.spaces.Box(-1, 1, (84, 80, 3), np.float32),
            "lambda image: image, gym.spaces.Box(0, 1, (84, 80, 3)))",
        ),
    ],
)
def test_the_line_for_what_can_be_read_in_two_ways_decides(space: Any, line: str) -> None:
    with pytest.raises(ValueError, match="Me needs uint8 RGB") as caught:
        image_layout(space, "Me")
    assert f"gym.wrappers.TransformObservation(env, {line}" in str(caught.value)
    typed = re.search(
        r"env = (gym.wrappers.TransformObservation\(env, .*?\){2,3})[.]( |$)", str(caught.value)
    )
    assert typed is not None
    env = FrameEnv(space.shape, space.dtype, high=np.inf if space.dtype != np.uint8 else 255)
    mended = eval(typed[1], {"gym": gym, "np": np, "env": env})
    image_layout(mended.observation_space, "Me")


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((7, 7, 3), np.uint8),
        ((5, 5), np.float32),
        ((84, 84, 2), np.uint8),
        ((9,), np.uint8),
        ((84, 84, 3), bool),
    ],
)
def test_what_is_no_image_is_refused(shape: Any, dtype: Any) -> None:
    with pytest.raises(ValueError, match="Me needs"):
        image_layout(gym.spaces.Box(0, 1, shape, dtype), "Me")


class Cameras(gym.ObservationWrapper[Any, Any, Any]):
    """Three views of FrameEnv, one of them nested, and a speed."""

    def __init__(self, length: int = 5) -> None:
        super().__init__(FrameEnv(length=length))
        image, small = (gym.spaces.Box(0, 255, shape, np.uint8) for shape in ((80, 72, 3), (40, 36, 3)))
        self.observation_space = gym.spaces.Dict(
            front=image, wrist=small, speed=gym.spaces.Box(0, 1, (2,)), far=gym.spaces.Dict(top=image)
        )

    def observation(self, observation: Any) -> Any:
        views = {"front": observation, "wrist": observation[::2, ::2].copy()}
        return {**views, "speed": np.ones(2, np.float32), "far": {"top": 255 - observation}}


def make_cameras() -> Any:
    return Cameras()


def wrap_each(make: Any, encoder: Any, **options: Any) -> Any:
    return LatentObservationWrapper(make(), encoder, **options)


def other_encoder(folder: Path) -> Path:
    from latent_obs.encoders.folder import VAEConfig

    return save_encoder(folder / "other", VAEConfig(8, (4,)))


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("stack", [1, 2])
def test_several_entries_are_encoded_as_wrapping_twice_does(
    each: bool, stack: int, encoder: Path, tmp_path: Path
) -> None:
    keys = ("front", "far/top", "wrist")
    encoders = {key: str(other_encoder(tmp_path) if key == "wrist" and each else encoder) for key in keys}
    expected: Any = Cameras()
    for key in keys:
        expected = LatentObservationWrapper(expected, encoders[key], key=key, stack=stack)
    given: Any = encoders if each else encoder
    env: Any = LatentObservationWrapper(Cameras(), given, key=keys, stack=stack)
    assert env.observation_space == expected.observation_space
    for a, b in ((env.reset(seed=1)[0], expected.reset(seed=1)[0]), (env.step(1)[0], expected.step(1)[0])):
        assert a in env.observation_space
        for one, other in ((a[k], b[k]) for k in ("front", "wrist", "speed")):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(a["far"]["top"], b["far"]["top"])


def test_the_fingerprint_of_an_entry_that_is_not_encoded_is_refused(encoder: Path) -> None:
    given = {"front": encoder, "wrist": encoder}
    with pytest.raises(ValueError, match=r"same keys; got fingerprint=.*frnt"):
        LatentObservationWrapper(Cameras(), given, key=("front", "wrist"), fingerprint={"frnt": None})


def test_entries_with_one_encoder_are_one_batch(encoder: Path) -> None:
    loaded, sizes = load_encoder(encoder), []
    env = LatentObservationWrapper(Cameras(), loaded, key=("front", "wrist"))
    env.reset(seed=0)
    run = loaded._run
    assert run is not None
    loaded._run = lambda frames: sizes.append(len(frames)) or run(frames)  # type: ignore[func-returns-value]
    env.step(0)
    assert sizes == [2]


@pytest.mark.parametrize("mode", AUTORESET_MODES)
def test_several_entries_of_a_vector_env_equal_those_of_each_env(
    mode: Any, encoder: Path, tmp_path: Path
) -> None:
    keys = ["front", "far/top"]
    encoders: Any = {"front": encoder, "far/top": other_encoder(tmp_path)}
    make = [functools.partial(Cameras, length) for length in (3, 4)]
    outer = vector.LatentObservationWrapper(vector_env(make, mode), encoders, key=keys, stack=2)
    inner = vector_env([functools.partial(wrap_each, m, encoders, key=keys, stack=2) for m in make], mode)
    pairs = [(outer.reset(seed=3)[0], inner.reset(seed=3)[0])]
    finals = 0
    for _ in range(9):
        a, b = outer.step(np.array([1, 2])), inner.step(np.array([1, 2]))
        pairs.append((a[0], b[0]))
        for mine, theirs in zip(a[4].get("final_obs", ()), b[4].get("final_obs", ()), strict=True):
            if theirs is not None:
                pairs.append((mine, theirs))
                finals += 1
        done = np.logical_or(a[2], a[3])
        if mode == "Disabled" and done.any():
            again = [envs.reset(options={"reset_mask": done.copy()})[0] for envs in (outer, inner)]
            pairs.append((again[0], again[1]))
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine["far"]["top"], theirs["far"]["top"])
        for entry in ("front", "wrist"):
            np.testing.assert_array_equal(mine[entry], theirs[entry])
    assert (finals > 2) == (mode == "SameStep")


def gray_pong() -> Any:
    return gym.wrappers.FrameStackObservation(gym.make("ALE/Pong-v5", obs_type="grayscale"), 3)


@pytest.mark.parametrize(
    ("make", "cure"),
    [
        (gray_pong, "stack latents instead with stack=3"),
        (lambda: SyncVectorEnv([gray_pong]), "stack latents instead with stack=3"),
        (
            lambda: gym.wrappers.FrameStackObservation(FrameEnv((80, 72)), 3),
            "stack latents instead with stack=3",
        ),
        pytest.param(
            lambda: gym.make_vec("ALE/Pong-v5", num_envs=2, stack_num=3),
            r'gym.make_vec\("ALE/Pong-v5", 2, stack_num=1, grayscale=False\), and stack latents with stack=3',
            marks=needs_native_ale,
        ),
    ],
    ids=["registered", "vector", "no spec", "native"],
)
def test_three_gray_images_are_no_planes_of_one_in_colour(make: Any, cure: str, encoder: Path) -> None:
    env = make()
    wrap: Any = LatentObservationWrapper if isinstance(env, gym.Env) else vector.LatentObservationWrapper
    with pytest.raises(ValueError, match=cure):
        wrap(env, encoder)


def test_the_spec_of_several_entries_survives_json(encoder: Path, tmp_path: Path) -> None:
    gym.register("Cameras-v0", "tests.test_images:make_cameras", disable_env_checker=True)
    try:
        encoders: Any = {"front": encoder, "far/top": other_encoder(tmp_path)}
        env = LatentObservationWrapper(gym.make("Cameras-v0"), encoders, key=("front", "far/top"))
        assert env.spec is not None
        again = gym.make(type(env.spec).from_json(env.spec.to_json()))
        assert again.spec == env.spec
        a, b = env.reset(seed=2)[0], again.reset(seed=2)[0]
        np.testing.assert_array_equal(a["front"], b["front"])
        np.testing.assert_array_equal(a["far"]["top"], b["far"]["top"])
        assert b["far"]["top"].shape == (8,)
    finally:
        del gym.registry["Cameras-v0"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, r"key='front', or all of them in one batch: key=\('front', 'wrist', 'far/top'\)"),
        ("far/left", r"was told key='far/left', .* and the images \['far/top'\]"),
        (("front", "front"), "several different ones"),
        ((), "several different ones"),
    ],
)
def test_a_key_that_is_not_there_is_refused(key: Any, message: str, encoder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        LatentObservationWrapper(Cameras(), encoder, key=key)


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_auto_knows_the_game_in_a_vector_env(kind: Any) -> None:
    """As in every CleanRL script; the lambda keeps the spec from travelling between processes."""

    def make() -> Any:
        return gym.wrappers.TransformObservation(gym.make("ale_py:ALE/Pong-v5"), lambda image: image, None)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = vector.LatentObservationWrapper(kind([make] * 2))
    assert envs.encoder.ref == "pong-v0"
    assert envs.reset(seed=0)[0].shape == (2, 32)
    envs.close()


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_auto_takes_no_games_encoder_for_two_games(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    games = [functools.partial(gym.make, f"ale_py:ALE/{game}-v5") for game in ("Pong", "SpaceInvaders")]
    with pytest.warns(UserWarning, match="takes general-v0"):
        envs = vector.LatentObservationWrapper(kind(games))
    envs.close()


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (
            lambda: gym.make("CartPole-v1"),
            'env = gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array"))',
        ),
        (
            lambda: gym.make("minigrid:MiniGrid-Empty-6x6-v0"),
            'env = RGBImgObsWrapper(gym.make("minigrid:MiniGrid-Empty-6x6-v0"))',
        ),
    ],
)
def test_the_error_holds_the_line_and_the_line_works(
    make: Any, line: str, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "minigrid" in line:
        pytest.importorskip("minigrid")
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning about the encoder would be moot
        with pytest.raises(ValueError, match="needs uint8 RGB") as caught:
            LatentObservationWrapper(make())
    assert line in str(caught.value)
    scope: dict[str, Any] = {"gym": gym}
    if "RGBImg" in line:
        exec("from minigrid.wrappers import RGBImgObsWrapper", scope)
    exec(line, scope)
    key = "image" if "RGBImg" in line else None
    obs, _ = LatentObservationWrapper(scope["env"], encoder, key=key).reset(seed=0)
    assert (obs["image"] if key else obs).shape == (32,)


def test_grids_of_object_codes_are_refused_by_size_too(encoder: Path) -> None:
    pytest.importorskip("minigrid")
    from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper, RGBImgPartialObsWrapper

    env = gym.make("minigrid:MiniGrid-Empty-16x16-v0")
    for coded in (FullyObsWrapper(env), ImgObsWrapper(FullyObsWrapper(env))):
        with pytest.raises(ValueError, match="object codes of MiniGrid-Empty-16x16-v0"):
            LatentObservationWrapper(coded, encoder, key=None)
    envs = SyncVectorEnv([lambda: ImgObsWrapper(gym.make("minigrid:MiniGrid-Empty-16x16-v0"))])
    with pytest.raises(ValueError, match="object codes"):
        vector.LatentObservationWrapper(envs, encoder)
    LatentObservationWrapper(ImgObsWrapper(RGBImgPartialObsWrapper(env)), encoder)


@pytest.mark.parametrize(
    ("make", "command"),
    [
        (
            lambda: gym.make("ALE/Pooyan-v5", mode=30),
            """ALE/Pooyan-v5 --env-kwargs '{"mode": 30}'""",
        ),
        (
            lambda: gym.wrappers.AddRenderObservation(gym.make("CartPole-v1", render_mode="rgb_array")),
            "CartPole-v1 --render",
        ),
        (
            lambda: SyncVectorEnv([lambda: rgb_minigrid()]),
            "minigrid:MiniGrid-Empty-6x6-v0 --wrapper minigrid.wrappers:RGBImgObsWrapper --key image",
        ),
        (
            lambda: gym.wrappers.AddRenderObservation(
                gym.make("FrozenLake-v1", render_mode="rgb_array", desc=["SF", "FG"])
            ),
            """FrozenLake-v1 --env-kwargs '{"desc": ["SF", "FG"]}' --render""",
        ),
    ],
)
def test_the_warning_of_a_general_encoder_names_the_whole_command(
    make: Any, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "minigrid" in command:
        pytest.importorskip("minigrid")
    monkeypatch.setattr("latent_obs.encoders.resolve._told", set())
    env = make()
    wrap: Any = LatentObservationWrapper if isinstance(env, gym.Env) else vector.LatentObservationWrapper
    key = "image" if "--key" in command else None
    with pytest.warns(UserWarning, match=re.escape(f"finds it: latent-obs fit {command}")) as told:
        wrap(env, key=key)
    assert told[0].filename == __file__


def test_arguments_are_shown_as_they_must_be_typed() -> None:
    """The shell and Python read back what the environment was made with, quotes and nested values too."""
    wanted = {"title": "it's \"6\" o'clock ☀", "config": {"lanes": [1, 2.5], "ego": None, "dense": True}}
    made = MadeBy("Some-v0", {**wanted, "reward": object()})
    words = shlex.split(made.command("fit"))
    assert words[:4] == ["latent-obs", "fit", "Some-v0", "--env-kwargs"]
    assert json.loads(words[4]) == wanted
    call: Any = ast.parse(made.line(), mode="eval").body
    assert {word.arg: ast.literal_eval(word.value) for word in call.keywords} == wanted


@pytest.mark.parametrize("given", [("SF", "FG"), np.array(["SF", "FG"])])
def test_tuples_and_arrays_are_the_same_arguments_as_lists(given: Any) -> None:
    """A command can be told lists only, and the encoder it fits has to be found again."""
    spec = copy.deepcopy(gym.spec("FrozenLake-v1"))
    spec.kwargs["desc"] = given
    assert frame_source(spec) == frame_source(gym.make("FrozenLake-v1", desc=["SF", "FG"]))
    assert MadeBy.of(spec).options()["env_kwargs"] == {"desc": ["SF", "FG"]}


@pytest.mark.skipif(not hasattr(gym.vector, "AutoresetMode"), reason="Gymnasium before 1.1 has no modes")
def test_how_environments_run_together_is_no_argument_of_one() -> None:
    """gymnasium.make would refuse it, and JSON does not have the mode."""
    mode = gym.vector.AutoresetMode.SAME_STEP
    for told in ({"autoreset_mode": mode}, {"copy": False}):
        envs = gym.make_vec("CartPole-v1", 2, "sync", vector_kwargs=told, sutton_barto_reward=True)
        made = MadeBy.of(envs)
        assert made.untypable == []
        assert made.options() == {"env_id": "CartPole-v1", "env_kwargs": {"sutton_barto_reward": True}}
        assert frame_source(envs.spec).env_kwargs == made.options()["env_kwargs"]
        envs.close()
    spec = copy.deepcopy(gym.spec("ALE/Pong-v5"))
    spec.kwargs |= {"vectorization_mode": "vector_entry_point", "autoreset_mode": mode, "mode": 1}
    assert MadeBy.of(spec).untypable == []
    assert MadeBy.of(spec).options() == {"env_id": "ALE/Pong-v5", "env_kwargs": {"mode": 1}}


def rgb_minigrid() -> Any:
    from minigrid.wrappers import RGBImgObsWrapper

    return RGBImgObsWrapper(gym.make("minigrid:MiniGrid-Empty-6x6-v0"))


def test_gray_images_for_an_encoder_of_colours_bring_a_warning(tmp_path: Path, frames: Any) -> None:
    from latent_obs.encoders.folder import read_config, read_tensors, write_encoder_folder

    folders = {}
    for name, shown in (("colour", frames(64)), ("gray", np.repeat(frames(64)[..., :1], 3, -1))):
        plain = save_encoder(tmp_path / name)
        config = read_config(plain)
        write_encoder_folder(plain, config, read_tensors(plain, config), shown)
        folders[name] = plain
    make = functools.partial(Arranged, *ARRANGEMENTS["HW"])
    with pytest.warns(UserWarning, match=r"trained on images in colour.*grayscale_obs=False"):
        LatentObservationWrapper(make(), folders["colour"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentObservationWrapper(make(), folders["gray"])
        LatentObservationWrapper(FrameEnv(), folders["colour"])


class OldEnv:
    """Has the interface of the old Gym."""

    observation_space = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)


class Turns:
    """Has agents that take turns, as PettingZoo's AEC environments do."""

    possible_agents = ("a", "b")


class Pool(SyncVectorEnv, gym.Env[Any, Any]):  # type: ignore[misc]
    """Is an environment and a vector environment at once, as EnvPool's are."""


WRAPPERS: dict[str, Any] = {
    "latent_obs.LatentObservationWrapper": LatentObservationWrapper,
    "latent_obs.vector.LatentObservationWrapper": vector.LatentObservationWrapper,
    "latent_obs.sb3.VecLatentObservation": VecLatentObservation,
    "latent_obs.pettingzoo.LatentObservationWrapper": pettingzoo.LatentObservationWrapper,
}
KINDS: dict[str, Any] = {
    "latent_obs.LatentObservationWrapper(": FrameEnv,
    "latent_obs.vector.LatentObservationWrapper(": lambda: Pool([FrameEnv]),
    "latent_obs.sb3.VecLatentObservation(": lambda: DummyVecEnv([FrameEnv]),
    "latent_obs.pettingzoo.LatentObservationWrapper(": TwoFrameEnvs,
    "aec_to_parallel": Turns,
    "GymV21Environment-v0": OldEnv,
}


@pytest.mark.parametrize("cure", KINDS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_an_environment_of_another_kind_is_refused_with_the_wrapper_that_takes_it(
    wrapper: str, cure: str, encoder: Path
) -> None:
    env = KINDS[cure]()
    if cure == f"{wrapper}(":
        WRAPPERS[wrapper](env, encoder)
        return
    name = re.escape(wrapper.removeprefix("latent_obs.").removeprefix("sb3."))
    with pytest.raises(ValueError, match=rf"^{name} wraps [^ ]+'s [^ ]+, got a .*{re.escape(cure)}"):
        WRAPPERS[wrapper](env, encoder)


def test_no_false_alarms() -> None:
    """Skipping frames in a wrapper is skipping frames; sticky actions change no pixel."""
    skipping = gym.wrappers.MaxAndSkipObservation(gym.make("ALE/Pong-v5", frameskip=1), skip=4)
    assert frame_source(skipping).emulator["frameskip"] == 4
    assert frame_source(skipping).emulator["max_pool"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LatentObservationWrapper(gym.make("ALE/Pong-v5", repeat_action_probability=0.0))


def test_an_env_without_spec_is_no_error(encoder: Path) -> None:
    assert MadeBy.of(OldEnv()).env_id == ""
    assert frame_source(OldEnv()).env_id == ""
    with pytest.raises(ValueError, match='render_mode="rgb_array"'):
        LatentObservationWrapper(FrameEnv((9,)), encoder)
    assert LatentObservationWrapper(FrameEnv(), encoder).encoder.frame_spec == FrameSpec()

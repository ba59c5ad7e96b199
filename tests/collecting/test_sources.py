from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.sources import open_env
from latent_obs.data.folder import FramesFolder
from latent_obs.frames import FrameSpec, preprocess

gym.register_envs(ale_py)
needs_envpool = pytest.mark.skipif(
    importlib.util.find_spec("envpool") is None, reason="EnvPool is not installed; it is optional"
)


@pytest.mark.skipif(importlib.util.find_spec("envpool") is not None, reason="EnvPool is installed")
def test_a_missing_envpool_is_named() -> None:
    with pytest.raises(ImportError, match="envpool"):
        open_env("envpool/CarRacing-v3")


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_frames_of_envpool_are_what_it_returns_for_these_actions(tmp_path: Path) -> None:
    """Rows equal stepping EnvPool by hand with the shard's seed and actions, episode for episode."""
    import envpool

    config = CollectConfig("envpool/CarRacing-v3", tmp_path, frames=130, workers=1, shard_rows=60)
    config = CollectConfig(**{**vars(config), "policy": "brownian", "env_kwargs": {"max_episode_steps": 40}})
    folder = collect_frames(config, progress=False)
    assert folder.source.env_id == "envpool/CarRacing-v3"
    for number, shard in enumerate(folder.shards):
        with shard.open() as file:
            rows = file.read().to_pydict()
        seed = int(np.random.SeedSequence((0, 0, number)).generate_state(2)[0]) % 2**31
        envs = envpool.make(
            "CarRacing-v3", env_type="gymnasium", num_envs=1, num_threads=1, seed=seed, max_episode_steps=40
        )
        for frame, step, action in zip(rows["frame"], rows["step"], rows["action"], strict=True):
            image = envs.reset()[0] if step == 0 else envs.step(np.array([action], np.float32))[0]
            assert frame == preprocess(image[0], FrameSpec()).tobytes()
        assert max(rows["step"]) > 0


def test_one_entry_of_dict_observations_is_collected(tmp_path: Path) -> None:
    """Rows equal stepping MiniGrid by hand, whose observations also hold a direction and a mission."""
    minigrid = pytest.importorskip("minigrid")
    drawn = "minigrid.wrappers:RGBImgObsWrapper"
    config = CollectConfig("minigrid:MiniGrid-Empty-6x6-v0", tmp_path, frames=60, key="image", wrapper=drawn)
    folder = collect_frames(replace(config, workers=1), progress=False)
    env = minigrid.wrappers.RGBImgObsWrapper(gym.make(config.env_id))
    with folder.shards[0].open() as file:
        rows = file.read().to_pydict()
    seed = int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0])
    obs, _ = env.reset(seed=seed)
    for number, (frame, step, action) in enumerate(
        zip(rows["frame"], rows["step"], rows["action"], strict=True)
    ):
        if number:
            obs = env.reset()[0] if step == 0 else env.step(action)[0]
        assert frame == preprocess(obs["image"], FrameSpec()).tobytes()
    assert len(set(rows["frame"])) > 5
    assert (folder.identity["key"], folder.identity["wrapper"]) == ("image", drawn)
    env.close()


@pytest.mark.parametrize(
    ("env_id", "found"),
    [
        ("minigrid:MiniGrid-Empty-6x6-v0", r"the keys \['direction', 'image', 'mission'\]"),
        ("ALE/Pong-v5", "no keys"),
    ],
)
def test_an_entry_that_is_not_there_is_refused(env_id: str, found: str) -> None:
    pytest.importorskip("minigrid")
    with pytest.raises(ValueError, match=f"have no key 'screen': they have {found}"):
        open_env(env_id, key="screen")


@needs_envpool
@pytest.mark.filterwarnings("ignore:.*precision lowered by casting")
def test_a_seed_repeats_an_episode_of_envpool() -> None:
    env = open_env("envpool/CarRacing-v3")
    first = [env.reset(seed=seed)[0] for seed in (3, 3, 4)]
    assert np.array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    env.close()


@needs_envpool
@pytest.mark.parametrize(
    ("env_id", "kwargs", "message"),
    [
        ("envpool/Pong-v5", {}, "collect from ALE/Pong-v5"),
        ("envpool/Pongg-v5", {}, "no task 'Pongg-v5'"),
        ("envpool/CarRacing-v3", {"wheels": 3}, "no option 'wheels'"),
    ],
)
def test_a_task_that_cannot_be_collected_from_is_refused(
    env_id: str, kwargs: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        open_env(env_id, kwargs)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_state_environment_is_drawn(workers: int, tmp_path: Path) -> None:
    """Rows equal the rendering of CartPole, stepped by hand with the shard's seed and actions."""
    config = CollectConfig("CartPole-v1", tmp_path, frames=60, workers=workers, render=True)
    folder = collect_frames(config, progress=False)
    assert folder.source.env_id == "CartPole-v1"
    assert folder.identity["render"] is True
    assert len(folder.shards) == workers
    for number, shard in enumerate(folder.shards):
        env = gym.make("CartPole-v1", render_mode="rgb_array")
        env.reset(seed=int(np.random.SeedSequence((0, number, 0)).generate_state(2)[0]))
        with shard.open() as file:
            rows = file.read().to_pydict()
        for row, (frame, step, action) in enumerate(
            zip(rows["frame"], rows["step"], rows["action"], strict=True)
        ):
            if row:
                env.reset() if step == 0 else env.step(action)
            image: Any = env.render()
            assert frame == cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA).tobytes()
        env.close()


class CameraEnv(gym.Env[Any, Any]):
    """Its first drawing decides where its camera stands for ever, as in MuJoCo."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(0, 1, (1,))
    action_space = gym.spaces.Discrete(2)
    camera: int | None = None

    def __init__(self, **options: Any) -> None:
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(2**16))
        return np.zeros(1, np.float32), {}

    def render(self) -> Any:
        self.camera = self.state if self.camera is None else self.camera
        return np.full((8, 8, 3), (self.camera % 256, self.camera // 256, self.state % 256), np.uint8)


def test_a_seed_repeats_a_drawing_whose_camera_stands_where_the_first_reset_was() -> None:
    gym.register("Camera-v0", CameraEnv)
    try:
        first, second = (open_env("Camera-v0", {}, render=True).reset(seed=3)[0] for _ in range(2))
    finally:
        del gym.registry["Camera-v0"]
    assert np.array_equal(first, second)


def test_frames_of_states_and_of_drawings_do_not_mix(tmp_path: Path) -> None:
    config = CollectConfig("ALE/Pong-v5", tmp_path, frames=20, workers=1)
    assert "render" not in collect_frames(config, progress=False).identity, "as before there was --render"
    with pytest.raises(ValueError, match="render"):
        collect_frames(replace(config, frames=40, render=True), progress=False)
    with pytest.raises(ValueError, match="wrapper"):
        collect_frames(replace(config, frames=40, wrapper="tests.collecting.test_sources:upside_down"))


def upside_down(env: Any) -> Any:
    return gym.wrappers.TransformObservation(env, lambda image: image[::-1], None)


def no_environment(env: Any) -> int:
    return 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"wrapper": "tests.collecting.test_sources:nothing"}, "could not be imported: .*nothing"),
        ({"wrapper": "RGBImgObsWrapper"}, "module:callable"),
        ({"wrapper": "tests.collecting.test_sources:no_environment"}, "returned a int, no environment"),
        ({}, r'AddRenderObservation\(gym.make\("CartPole-v1", .* --render'),
    ],
)
def test_what_shows_no_images_is_refused_before_collecting(
    options: dict[str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        collect_frames(CollectConfig("CartPole-v1", tmp_path / "out", **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("old", [True, False])
def test_an_environment_that_only_the_old_gym_knows_is_told_how_to_come_in(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old Gym, whose name is all that is needed of it here, is imported by packages of that time."""
    (tmp_path / "gym.py").write_text("")
    (tmp_path / "marioland.py").write_text("import gym\n" if old else "")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("gym", "marioland"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match="Mario") as refused:
        open_env("marioland:Mario-v0")
    assert ("imports the old Gym" in str(refused.value)) == old
    for name in ("gym", "marioland"):
        sys.modules.pop(name, None)


def test_gray_images_are_collected_as_rgb_of_equal_channels(tmp_path: Path) -> None:
    config = CollectConfig("ALE/Pong-v5", tmp_path, frames=5, workers=1)
    folder = collect_frames(replace(config, env_kwargs={"obs_type": "grayscale"}), progress=False)
    env = gym.make("ALE/Pong-v5", obs_type="grayscale")
    image, _ = env.reset(seed=int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0]))
    frame = folder.load()[0]
    np.testing.assert_array_equal(frame, np.stack([cv2.resize(image, (64, 64), interpolation=3)] * 3, -1))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is a screen")
def test_drawing_without_a_screen_prints_no_error(tmp_path: Path) -> None:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    command = [sys.executable, "-m", "latent_obs", "collect", "CartPole-v1", "--render", "--frames", "5"]
    run = subprocess.run(
        [*command, "--workers", "1", "--out", str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "error" not in run.stderr + run.stdout


KART = """
import gymnasium as gym
import numpy as np

class Kart(gym.Env):
    observation_space = gym.spaces.Dict(cameras=gym.spaces.Dict(front=gym.spaces.Box(0, 1, (3, 40, 30))))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.see(), {}

    def step(self, action):
        return self.see(), 0.0, False, False, {}

    def see(self):
        return {"cameras": {"front": self.np_random.random((3, 40, 30), np.float32)}}

def darker(env):
    def half(obs):
        return {"cameras": {"front": obs["cameras"]["front"] / 2}}
    return gym.wrappers.TransformObservation(env, half, None)

gym.register("Kart-v0", "kart:Kart")
"""


def test_modules_of_the_current_folder_are_found(tmp_path: Path) -> None:
    """By the program as it is installed, whose own folder is another, and by its workers."""
    (tmp_path / "kart.py").write_text(KART)
    code = "import sys; sys.path.remove(''); from latent_obs.cli import main; sys.exit(main())"
    options = ["--frames", "40", "--workers", "2", "--key", "cameras/front", "--wrapper", "kart:darker"]
    run = subprocess.run(
        [sys.executable, "-c", code, "collect", "kart:Kart-v0", "--out", "out", *options],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    folder = FramesFolder(tmp_path / "out")
    assert len(folder) == 40
    assert 50 < folder.load().mean() < 78, "half of a mean of 127"

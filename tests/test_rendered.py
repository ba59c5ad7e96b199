"""Environments of states or object codes: the lines of ``docs/libraries.md`` draw what the commands draw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs import LatentObservationWrapper
from latent_obs.data.folder import FramesFolder
from latent_obs.frames import FrameSpec, preprocess

ROOT = Path(__file__).parents[1]
STATE = 'gym.wrappers.AddRenderObservation(gym.make("{}", render_mode="rgb_array"))'
# Without a camera of its own, MuJoCo puts one where an unseeded reset has put the robot.
ROBOT = STATE.replace('"rgb_array"', '"rgb_array", camera_name="track"')
ROOM = 'RGBImgObsWrapper(gym.make("{}"))'


@pytest.mark.filterwarnings("ignore")  # of the environments' own
@pytest.mark.parametrize(
    ("package", "env_id", "line", "options", "key"),
    [
        ("mujoco", "HalfCheetah-v5", ROBOT, ["--render", "--env-kwargs", '{"camera_name": "track"}'], None),
        ("highway_env", "highway_env:highway-v0", STATE, ["--render"], None),
        (
            "minigrid",
            "minigrid:MiniGrid-Empty-6x6-v0",
            ROOM,
            ["--wrapper", "minigrid.wrappers:RGBImgObsWrapper", "--key", "image"],
            "image",
        ),
    ],
    ids=["mujoco", "highway", "minigrid"],
)
def test_the_line_and_the_command_draw_the_same(
    package: str,
    env_id: str,
    line: str,
    options: list[str],
    key: str | None,
    encoder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip(package)
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)  # the package chooses one that draws
    out = tmp_path / "frames"
    collect = ["collect", env_id, *options, "--frames", "6", "--workers", "1", "--out", str(out)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its log there
    command = [sys.executable, "-m", "latent_obs", *collect]
    run = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert run.returncode == 0, run.stderr
    collected = FramesFolder(out).load()
    assert len(collected) == 6
    assert collected.std() > 5  # SDL's dummy driver would leave highway-env black
    assert any((frame != collected[0]).any() for frame in collected[1:])
    scope: dict[str, Any] = {"gym": gym}
    if key:
        exec("from minigrid.wrappers import RGBImgObsWrapper", scope)
    made = eval(line.format(env_id), scope)
    # The seed of the first episode, as docs/formats.md says.
    seed = int(np.random.SeedSequence((0, 0, 0)).generate_state(2)[0])
    obs, _ = made.reset(seed=seed)
    assert np.array_equal(collected[0], preprocess(obs[key] if key else obs, FrameSpec()))
    wrapped = LatentObservationWrapper(made, encoder, key=key)
    latent, _ = wrapped.reset(seed=seed)
    assert np.array_equal(latent[key] if key else latent, wrapped.encoder(collected[0]))
    wrapped.close()

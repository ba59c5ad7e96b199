from __future__ import annotations

import base64
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from stable_baselines3 import PPO

from latent_obs import LatentObservationWrapper
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.trial import CollectError
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import read_shard
from latent_obs.encoders.encoder import NORMALIZE
from latent_obs.frames import FrameSpec, preprocess
from tests.conftest import FrameEnv, wait_for

PONG = CollectConfig("ALE/Pong-v5", frames=1500, workers=2, shard_rows=300)


class Failing(FrameEnv):
    """Breaks in its ninth episode, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.begun = how, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.begun += 1
        return super().reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)
        if self.begun == 9 and self.how == "raise":
            raise RuntimeError("the robot fell over")
        if self.begun == 9:
            obs = {"shape": obs[:, :, 0], "size": obs[:70], "dtype": obs / 255, "none": None}[self.how]
        return obs, reward, terminated, truncated, info


class Moody(FrameEnv):
    """Does not repeat itself: its episodes are now longer, now shorter."""

    today = 30

    def __init__(self) -> None:
        super().__init__(length=self.today)


class Named(FrameEnv):
    """Takes nothing but a tuple as its shape, and numbers as names."""

    def __init__(self, shape: tuple[int, ...], length: int, names: dict[int, float]) -> None:
        assert isinstance(shape, tuple)
        assert all(isinstance(name, int) for name in names)
        super().__init__(shape, length=length)


class Steered(FrameEnv):
    """Takes two numbers, or one, rewards with their sum, and turns them to 0 where it was given them."""

    def __init__(self, one: bool = False) -> None:
        super().__init__()
        if not one:
            self.action_space: gym.Space[Any] = gym.spaces.Box(-1, 1, (2,), np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(0)
        reward = float(action.sum())
        action *= 0
        return obs, reward, terminated, truncated, info


class Drifting:
    """Moves the array that it returned before, as noise that is correlated in time often does."""

    def __init__(self) -> None:
        self.action = np.zeros(2, np.float32)

    def __call__(self, obs: Any, space: gym.Space[Any]) -> Any:
        self.action += np.array([0.5, 0.25], np.float32)
        return self.action


drifting = Drifting()


def two_in_an_array(obs: Any, space: gym.Space[Any]) -> Any:
    return np.array([2])


@pytest.fixture(scope="module", autouse=True)
def registered() -> Any:
    gym.register("Named-v0", "tests.collecting.test_collect:Named", disable_env_checker=True)
    gym.register("Steered-v0", "tests.collecting.test_collect:Steered", disable_env_checker=True)
    gym.register("Moody-v0", "tests.collecting.test_collect:Moody", disable_env_checker=True)
    gym.register("Frame-v0", "tests.conftest:FrameEnv", disable_env_checker=True)
    gym.register("Failing-v0", "tests.collecting.test_collect:Failing", disable_env_checker=True)
    yield
    for name in ("Named-v0", "Steered-v0", "Moody-v0", "Frame-v0", "Failing-v0"):
        del gym.registry[name]


def command(config: CollectConfig) -> list[str]:
    options = ["--out", config.out, "--frames", config.frames, "--workers", config.workers]
    options += ["--shard-rows", config.shard_rows, "--seed", config.seed]
    return [sys.executable, "-m", "latent_obs", "collect", config.env_id, *map(str, options)]


def table(folder: FramesFolder | Path) -> dict[str, Any]:
    """All rows, by the shard they are in."""
    folder = folder if isinstance(folder, FramesFolder) else FramesFolder(folder)
    rows = {}
    for shard in folder.shards:
        with shard.open() as file:
            rows[shard.name] = file.read().to_pydict()
    return rows


def times(folder: FramesFolder) -> list[int]:
    return [path.stat().st_mtime_ns for shard in folder.shards if isinstance(path := shard.path, Path)]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> FramesFolder:
    """A collection that nothing interrupted."""
    out = tmp_path_factory.mktemp("straight")
    return collect_frames(replace(PONG, out=out), progress=False)


def test_the_folder_holds_exactly_the_frames_asked_for(straight: FramesFolder) -> None:
    assert len(straight) == 1500
    assert {s.metadata["worker"] for s in straight.shards} == {0, 1}
    assert straight.source.env_id == "ALE/Pong-v5"
    assert straight.source.emulator["game"] == "pong"


def test_workers_collect_different_frames(straight: FramesFolder) -> None:
    first = {s.metadata["worker"]: straight.read(s, 0) for s in reversed(straight.shards)}
    assert not np.array_equal(first[0][50:200], first[1][50:200])


def test_rows_are_what_reset_and_step_returned(tmp_path: Path) -> None:
    config = CollectConfig("Frame-v0", tmp_path, frames=20, workers=1, seed=3, crop=(0, 70, 0, 70))
    folder = collect_frames(config, progress=False)
    rows = pq.read_table(folder.shards[0].path).to_pydict()
    env_seed = np.random.SeedSequence((3, 0, 0)).generate_state(2)[0]
    env, t = FrameEnv(), 0
    obs, _ = env.reset(seed=int(env_seed))
    expected: tuple[Any, ...] = (obs, 0.0, False, False)
    for row in range(20):
        frame = preprocess(expected[0], FrameSpec(crop=(0, 70, 0, 70)))
        assert rows["frame"][row] == frame.tobytes()
        assert (rows["reward"][row], rows["terminated"][row], rows["truncated"][row]) == expected[1:]
        assert rows["step"][row] == t
        assert (rows["action"][row] is None) == (t == 0)
        if row == 19:
            break
        if expected[2] or expected[3]:
            t, expected = 0, (env.reset()[0], 0.0, False, False)
        else:
            t, expected = t + 1, env.step(rows["action"][row + 1])[:4]


@pytest.mark.parametrize("policy", ["random", "tests.collecting.test_collect:drifting"])
def test_an_action_is_stored_as_it_was_when_it_was_taken(policy: str, tmp_path: Path) -> None:
    """Whoever changes the array in place afterwards, the environment or the policy."""
    config = CollectConfig("Steered-v0", tmp_path, frames=20, workers=1, policy=policy)
    rows = pq.read_table(collect_frames(config, progress=False).shards[0].path).to_pydict()
    taken = [sum(action or [0]) for action in rows["action"]]
    assert taken == pytest.approx(rows["reward"])
    assert any(taken)


def test_a_policy_may_give_a_number_as_an_array_of_one(tmp_path: Path) -> None:
    policy = "tests.collecting.test_collect:two_in_an_array"
    config = CollectConfig("Steered-v0", tmp_path, 5, workers=1, policy=policy, env_kwargs={"one": True})
    (columns,) = table(collect_frames(config, progress=False)).values()
    assert columns["action"] == [None, 2, 2, 2, 2]


def test_episodes_have_their_own_numbers(straight: FramesFolder, tmp_path: Path) -> None:
    """In both workers of one folder, and in the six shards of a worker of another."""
    config = CollectConfig("Frame-v0", tmp_path, frames=600, workers=1, shard_rows=100)
    for folder in (straight, collect_frames(config, progress=False)):
        check_episode_numbers(folder)


def check_episode_numbers(folder: FramesFolder) -> None:
    assert len(folder.shards) >= 2
    seen: set[int] = set()
    for columns in table(folder).values():
        starts = [e for e, step in zip(columns["episode"], columns["step"], strict=True) if step == 0]
        assert len(set(starts)) == len(starts)
        assert not seen & set(starts)
        seen |= set(starts)


def test_every_shard_has_seeds_of_its_own(tmp_path: Path) -> None:
    """The environment's noise and the policy's actions follow from seeds that no two shards share."""
    config = CollectConfig("Frame-v0", tmp_path, frames=600, workers=1, shard_rows=100)
    shards = table(collect_frames(config, progress=False)).values()
    assert len(shards) == 6
    assert len({columns["frame"][0] for columns in shards}) == 6
    assert len({tuple(columns["action"][:60]) for columns in shards}) == 6


def test_policies_act_differently_in_each_episode(tmp_path: Path) -> None:
    config = CollectConfig("Frame-v0", tmp_path, frames=600, workers=1, shard_rows=300)
    episodes: dict[int, list[Any]] = {}
    for columns in table(collect_frames(config, progress=False)).values():
        for episode, action in zip(columns["episode"], columns["action"], strict=True):
            episodes.setdefault(episode, []).append(action)
    # Of 100 sequences of 5 out of 4 actions, about 5 occur by chance a second time.
    assert len({tuple(actions) for actions in episodes.values()}) > 80


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_collection_resumes_to_the_same_frames(
    how: signal.Signals, straight: FramesFolder, tmp_path: Path
) -> None:
    config = replace(PONG, out=tmp_path)
    process = subprocess.Popen(command(config), stderr=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: list(tmp_path.glob(".*.tmp")), 300)
    time.sleep(0.1)
    os.kill(process.pid, how)
    _, messages = process.communicate(timeout=300)
    if how is signal.SIGKILL:
        time.sleep(1.5)  # the orphans notice at their next report
    else:
        assert process.returncode == 130, messages
        assert "Stopping: what is begun is being finished and saved" in messages
        assert "Traceback" not in messages
        assert list(tmp_path.glob(".*.tmp")) == []
    rows = sum(read_shard(path).rows for path in tmp_path.glob("*.parquet"))
    assert rows < 1500
    if how is not signal.SIGKILL:
        assert rows > 0
    collect_frames(config, progress=False)
    assert table(tmp_path) == table(straight)


def test_a_deleted_shard_is_collected_again(straight: FramesFolder, tmp_path: Path) -> None:
    config = CollectConfig("ALE/Pong-v5", tmp_path, frames=900, workers=1, shard_rows=100)
    collect_frames(config, progress=False)
    before = table(tmp_path)
    sorted(tmp_path.glob("*.parquet"))[0].unlink()
    collect_frames(config, progress=False)
    assert table(tmp_path) == before


def test_a_copy_of_a_shard_is_not_counted_as_frames(tmp_path: Path) -> None:
    config = CollectConfig("Frame-v0", tmp_path, frames=20, workers=1)
    shard = Path(collect_frames(config, progress=False).shards[0].path)
    shutil.copy(shard, tmp_path / "part-000-00000 (copy).parquet")
    with pytest.raises(ValueError, match=r"\(copy\).parquet in .* was written as part-000-00000.parquet"):
        collect_frames(replace(config, frames=60), progress=False)


def test_asking_for_more_frames_extends_the_folder(tmp_path: Path) -> None:
    config = CollectConfig("Frame-v0", tmp_path / "a", frames=33, workers=1, shard_rows=10)
    collect_frames(config, progress=False)
    assert len(collect_frames(replace(config, frames=60), progress=False)) == 60
    collect_frames(replace(config, frames=60, out=tmp_path / "b"), progress=False)
    assert table(tmp_path / "a") == table(tmp_path / "b")


def test_an_env_that_does_not_repeat_itself_still_gives_the_frames_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The open shard of 25 rows is collected again, and this time is complete with 12."""
    config = CollectConfig("Moody-v0", tmp_path, frames=25, workers=1, shard_rows=10)
    collect_frames(config, progress=False)
    monkeypatch.setattr(Moody, "today", 5)
    assert len(collect_frames(replace(config, frames=40), progress=False)) == 40


def test_a_finished_folder_is_left_alone(straight: FramesFolder) -> None:
    before = times(straight)
    collect_frames(replace(PONG, out=straight.path, workers=None), progress=False)
    assert before == times(straight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "begun with seed=0, got seed=1"),
        ({"policy": "sticky"}, "begun with policy="),
        ({"workers": 3}, "begun with workers=2"),
        ({"crop": (0, 60, 0, 60)}, "begun with frame_spec="),
        ({"env_kwargs": {"frameskip": 2}}, "begun with env_kwargs="),
        ({"env_id": "ALE/Breakout-v5"}, "begun with env_id="),
        ({"frames": 100}, "larger --frames"),
    ],
)
def test_a_folder_takes_no_frames_of_another_collection(
    changes: dict[str, Any], message: str, straight: FramesFolder
) -> None:
    before = table(straight)
    with pytest.raises(ValueError, match=message):
        collect_frames(replace(PONG, out=straight.path, **changes), progress=False)
    assert table(straight) == before


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "the robot fell over"),
        ("shape", r"got uint8 of shape \(80, 72\)"),
        ("size", r"promises observations of shape \(80, 72, 3\), got \(70, 72, 3\)"),
        ("dtype", "got float64"),
        ("none", "got NoneType"),
    ],
)
def test_an_env_that_breaks_midway_leaves_the_committed_shards(
    how: str, message: str, tmp_path: Path
) -> None:
    config = CollectConfig(
        "Failing-v0", tmp_path, frames=100, workers=1, shard_rows=20, env_kwargs={"how": how}
    )
    with pytest.raises(CollectError, match=message) as failure:
        collect_frames(config, progress=False)
    assert "run the same command again" in str(failure.value)
    assert len(FramesFolder(tmp_path)) == 48  # two shards of four episodes of six frames
    assert list(tmp_path.glob(".*.tmp")) == []


def test_a_broken_env_in_one_worker_stops_the_others_cleanly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "breaking.py").write_text(
        "import gymnasium as gym\n"
        "from tests.conftest import FrameEnv\n"
        "class Breaking(FrameEnv):\n"
        "    steps = 0\n"
        "    def step(self, action):\n"
        "        self.steps += 1\n"
        "        if self.steps > 50:\n"
        "            raise RuntimeError('the cable came off')\n"
        "        return super().step(action)\n"
        "gym.register('Breaking-v0', Breaking)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "frames"
    config = CollectConfig("breaking:Breaking-v0", out, frames=100_000, workers=2, shard_rows=12)
    with pytest.raises(CollectError, match="the cable came off"):
        collect_frames(config, progress=False)
    folder = FramesFolder(out)
    assert len(folder.load()) == len(folder) > 0
    assert list(out.glob(".*.tmp")) == []


def test_a_disk_that_fills_is_reported_and_loses_only_the_open_shard(tmp_path: Path) -> None:
    """A limit on the size of a file fails the write as a full disk does."""
    small = replace(PONG, out=tmp_path, frames=200, workers=1, shard_rows=100)
    collect_frames(small, progress=False)
    before = table(tmp_path)
    first = sorted(tmp_path.glob("*.parquet"))[0]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    big = replace(small, frames=4000, shard_rows=100)
    run = subprocess.run(command(big), capture_output=True, text=True, preexec_fn=limit, check=False)
    assert run.returncode == 1
    assert re.search(r"error: Collecting from ALE/Pong-v5 failed: worker 0 \(part-\S+\): OSError", run.stderr)
    assert "Traceback" not in run.stderr
    assert list(tmp_path.glob(".*.tmp")) == []
    assert table(tmp_path)[first.name] == before[first.name]
    assert len(collect_frames(big, progress=False)) == 4000


@pytest.mark.parametrize(
    ("env_id", "kwargs", "error", "message"),
    [
        ("ALE/Pongg-v5", {}, ValueError, "cannot make the environment"),
        ("Nothing-v0", {}, ValueError, "cannot make the environment"),
        ("no_such_module:X-v0", {}, ImportError, "needs a package that is missing"),
        ("ALE/Pong-v5", {"wheels": 4}, ValueError, "refuses env_kwargs"),
        ("ALE/Pong-v5", {"obs_type": "ram"}, ValueError, "AddRenderObservation"),
        ("CartPole-v1", {}, ValueError, "AddRenderObservation"),
    ],
)
def test_an_env_that_cannot_be_collected_from_is_refused_before_anything_is_written(
    env_id: str, kwargs: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "frames"
    with pytest.raises(error, match=message):
        collect_frames(CollectConfig(env_id, out, env_kwargs=kwargs), progress=False)
    assert not out.exists()


PICKLES = pytest.mark.filterwarnings("ignore:Loading the policy .* runs code:UserWarning")


@PICKLES
def test_an_agent_on_scaled_latents_is_shown_them(trained: Path, tmp_path: Path) -> None:
    wrapped = LatentObservationWrapper(FrameEnv(), str(trained), normalize=True)
    agent = tmp_path / "agent.zip"
    model = PPO("MlpPolicy", wrapped, n_steps=8, batch_size=8, device="cpu", seed=0)
    for weights in model.policy.action_net.parameters():
        weights.data *= 300  # so that its actions follow the latent, not chance
    model.save(agent)
    config = CollectConfig("Frame-v0", tmp_path / "scaled", frames=40, workers=1, policy=str(agent))
    config = replace(config, policy_encoder=str(trained), policy_normalize=True)
    folder = collect_frames(config, progress=False)
    assert folder.shards[0].metadata["policy_normalize"] is True
    raw = replace(config, out=tmp_path / "raw", policy_normalize=False)
    taken = [
        [action for columns in table(out).values() for action in columns["action"]]
        for out in (folder, collect_frames(raw, progress=False))
    ]
    assert taken[0] != taken[1]
    with pytest.raises(ValueError, match="begun with policy_normalize=True"):
        collect_frames(replace(raw, out=config.out, frames=80), progress=False)


def test_arguments_of_python_are_given_as_they_are_and_resume_the_folder(tmp_path: Path) -> None:
    """A shard stores neither tuples nor numbers as keys."""
    kwargs = {"shape": (80, 72, 3), "length": np.int64(7), "names": {1: np.float32(0.5)}}
    config = CollectConfig("Named-v0", tmp_path, frames=20, workers=1, env_kwargs=kwargs)
    collect_frames(config, progress=False)
    folder = collect_frames(replace(config, frames=30), progress=False)
    (stored,) = folder.collections
    assert stored["env_kwargs"] == {"shape": [80, 72, 3], "length": 7, "names": {"1": 0.5}}


@pytest.mark.parametrize("value", [float("nan"), Path("world.xml"), {(1, 2): 3}])
def test_an_argument_that_json_lacks_is_refused_by_name_before_anything_runs(value: Any) -> None:
    with pytest.raises(ValueError, match=r"env_kwargs must be values that JSON has.* got world="):
        CollectConfig("Nothing-v0", env_kwargs={"frameskip": 4, "world": value})


@pytest.mark.parametrize(
    "fields",
    [
        {"frames": 0},
        {"workers": 0},
        {"seed": -1},
        {"crop": (9, 1, 0, 5)},
        {"policy_normalize": not NORMALIZE},
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must|--policy-encoder"):
        CollectConfig("ALE/Pong-v5", **fields)


def test_a_mix_of_policies_collects_the_same_frames_in_pieces(tmp_path: Path) -> None:
    """Which policy acts depends on the episode alone, not on where collection stopped."""
    config = CollectConfig("Frame-v0", tmp_path / "a", frames=90, workers=1, shard_rows=20)
    config = replace(config, policy="random:1,sticky:1,tests.collecting.test_policies:always_two:1")
    collect_frames(config, progress=False)
    for frames in (35, 90):
        collect_frames(replace(config, out=tmp_path / "b", frames=frames), progress=False)
    assert table(tmp_path / "a") == table(tmp_path / "b")
    episodes: dict[int, list[Any]] = {}
    for columns in table(tmp_path / "a").values():
        for episode, action in zip(columns["episode"], columns["action"], strict=True):
            episodes.setdefault(episode, []).append(action)
    twos = [set(actions[1:]) == {2} for actions in episodes.values()]
    assert 0 < sum(twos) < len(twos)


@PICKLES
def test_an_agent_on_latents_collects_raw_frames_again_and_again(encoder: Path, tmp_path: Path) -> None:
    """World Models' second round: the agent that learned on V's latents collects for the next V."""
    wrapped = LatentObservationWrapper(FrameEnv(), str(encoder), stack=2)
    agent = tmp_path / "agent.zip"
    PPO("MlpPolicy", wrapped, n_steps=8, batch_size=8, device="cpu", seed=0).save(agent)
    config = CollectConfig("Frame-v0", tmp_path / "a", frames=40, workers=1, shard_rows=12)
    config = replace(config, policy=str(agent), policy_encoder=str(encoder))
    folder = collect_frames(config, progress=False)
    assert folder.shards[0].metadata["policy_encoder"] == str(encoder)
    collect_frames(replace(config, out=tmp_path / "b"), progress=False)
    assert table(tmp_path / "a") == table(tmp_path / "b")
    rows = next(iter(table(folder).values()))
    env_seed = np.random.SeedSequence((0, 0, 0)).generate_state(2)[0]
    obs, _ = FrameEnv().reset(seed=int(env_seed))
    assert rows["frame"][0] == preprocess(obs, FrameSpec()).tobytes()
    PPO("MlpPolicy", wrapped, n_steps=8, batch_size=8, device="cpu", seed=1).save(agent)
    with pytest.raises(ValueError, match="begun with policy_files="):
        collect_frames(replace(config, frames=80), progress=False)


def test_a_model_of_pickles_is_announced_once_and_before_it_is_loaded(tmp_path: Path) -> None:
    """Its pickle writes a file; two workers load it too."""
    marks = tmp_path / "loaded"

    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marks),)

    agent = tmp_path / "agent.zip"
    PPO("MlpPolicy", FrameEnv(), n_steps=8, batch_size=8, device="cpu").save(agent)
    with zipfile.ZipFile(agent) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(contents["data"])
    data["learning_rate"] = {":serialized:": base64.b64encode(pickle.dumps(Payload())).decode()}
    contents["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(agent, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    config = CollectConfig("Frame-v0", tmp_path / "frames", frames=40, workers=1, policy=str(agent))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Loading the policy")
        with pytest.raises(UserWarning, match=r"agent.zip runs code .* --policy agent.onnx"):
            collect_frames(config, progress=False)
    assert not marks.exists()
    line = command(replace(config, env_id="tests.quick_env:Quick-v0", workers=2))
    run = subprocess.run([*line, "--policy", agent], capture_output=True, text=True, check=False)
    assert run.stderr.count("warning: Loading the policy") == 1
    assert marks.exists()


def test_progress_shows_rate_size_and_episodes(tmp_path: Path) -> None:
    config = CollectConfig("tests.quick_env:Quick-v0", tmp_path, frames=2000, workers=2)
    root = Path(__file__).parents[2]
    run = subprocess.run(command(config), capture_output=True, text=True, check=True, cwd=root)
    assert re.search(r"2000/2000 [\d,]+ frames/s  \d+ bytes/frame  \d+ episodes", run.stderr)

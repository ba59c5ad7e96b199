from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from latent_obs import LatentObservationWrapper
from latent_obs.cli import main
from latent_obs.data.folder import FramesFolder
from latent_obs.data.storage import locked
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import read_config
from latent_obs.encoders.resolve import find_fitted, resolve
from latent_obs.evaluation.report import ReportCard, Scores
from latent_obs.evaluation.selection import Selection, evaluation_split, select_frames
from latent_obs.files import write_atomically
from latent_obs.fit import (
    FitConfig,
    Plan,
    _collect_config,
    _keeps_as_much,
    _plan,
    fit_encoder,
    say_fitted,
    score,
)
from latent_obs.frames import FrameSource, FrameSpec, frame_source, preprocess
from latent_obs.images import MadeBy
from latent_obs.training.config import TrainConfig
from latent_obs.training.train import train_vae
from latent_obs.vector import LatentObservationWrapper as VectorWrapper
from tests.conftest import FrameEnv, save_encoder, wait_for
from tests.evaluation.test_selection import grow, trained_on

# Five seconds are little: what is fitted in them may lose to PCA, and int8 may be off.
pytestmark = pytest.mark.filterwarnings("ignore:.*(parity gate|COLLAPSE|collapsed)")
QUICK = FitConfig("ALE/Boxing-v5", seconds=5)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of Boxing, fitted once for all tests that look at it."""
    out = tmp_path_factory.mktemp("fitted") / "boxing"
    fit_encoder(replace(QUICK, out=out), progress=False)
    return out


def test_a_fit_is_an_encoder_folder_with_card_and_calibration(fitted: Path) -> None:
    assert {path.name for path in fitted.iterdir()} == {
        ".fit", "README.md", "calibration.png", "card.html", "card.json", "card.png", "config.json",
        "history.csv", "model.safetensors",
    }  # fmt: skip
    config = read_config(fitted)
    assert config.source.env_id == "ALE/Boxing-v5"
    assert config.metrics["moving_r2"] > 0.3
    assert sorted(path.name for path in (fitted / ".fit").iterdir()) == [".lock", "finished.json", "frames"]
    with gym.make("ALE/Boxing-v5") as env, LatentObservationWrapper(env, fitted) as wrapped:
        assert wrapped.reset(seed=0)[0].shape == (32,)


def test_the_steps_are_those_that_fit_into_what_is_left_of_the_time(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "boxing" / ".fit"
    shutil.copytree(fitted / ".fit", work)
    monkeypatch.setattr("latent_obs.fit.MIN_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.LAST_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.MEASURE_STEPS", 100)  # which take 5 s at 20 steps a second
    asked: list[int] = []

    def train(config: TrainConfig, *, progress: bool, steps_left: Callable[[float, int], int]) -> Any:
        asked.append(steps_left(20.0, 0))
        return train_vae(replace(config, steps=1), progress=progress)

    monkeypatch.setattr("latent_obs.training.train.train_vae", train)
    config = replace(QUICK, out=work.parent, seconds=9)
    plan = _plan(config, work)
    plan.seconds = 3.0  # spent before an interruption
    write_atomically(work / "plan.json", json.dumps(asdict(plan)).encode())
    begun = time.monotonic()
    fit_encoder(config, progress=False)
    most = 20 * (9 - 3) - 100
    assert most - 20 * (time.monotonic() - begun) < asked[0] <= most


def test_auto_takes_the_fitted_encoder_of_this_environment_and_of_no_other(fitted: Path, cache: Path) -> None:
    (cache / "encoders").mkdir(parents=True)
    (cache / "encoders" / "boxing").symlink_to(fitted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with LatentObservationWrapper(gym.make("ALE/Boxing-v5")) as env:
            assert env.encoder.ref == str(cache / "encoders" / "boxing")
        # The prefix imports ALE in spawned workers too, which importing TorchRL makes the default.
        make = lambda: gym.make("ale_py:ALE/Boxing-v5")  # noqa: E731
        for kind in (gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv):
            envs = VectorWrapper(kind([make] * 2))
            assert envs.encoder.ref == str(cache / "encoders" / "boxing")
            envs.close()
    with LatentObservationWrapper(gym.make("ALE/Pong-v5")) as env:
        assert env.encoder.ref == "pong-v0"
    other = {"game": "boxing", "frameskip": 2, "repeat_action_probability": 0.25, "max_pool": False}
    assert find_fitted(FrameSource("ALE/Boxing-v5", {"frameskip": 2}, other)) is None
    assert find_fitted(frame_source(gym.spec("ALE/Boxing-v5")), key="screen") is None


def test_of_two_fits_of_an_environment_auto_takes_the_newer(fitted: Path, cache: Path) -> None:
    """The ids ALE/Boxing-v5 and ale_py:ALE/Boxing-v5 have a folder each, for one."""
    for name, day in (("first", 2), ("second", 3), ("third", 1)):
        folder = shutil.copytree(fitted, cache / "encoders" / name, ignore=shutil.ignore_patterns(".fit"))
        config = json.loads((folder / "config.json").read_text())
        config["provenance"]["created"] = f"2026-11-0{day}T00:00:00+00:00"
        (folder / "config.json").write_text(json.dumps(config))
    found = find_fitted(frame_source(gym.spec("ALE/Boxing-v5")))
    assert found is not None
    assert found.path.name == "second"


class Turned(gym.ObservationWrapper[Any, Any, Any]):
    """Shows images upside down."""

    def observation(self, observation: Any) -> Any:
        return observation[::-1]


def turned(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return Turned(env)


def drawn(env_id: str) -> gym.Env[Any, Any]:
    env = gym.make(env_id, render_mode="rgb_array")
    return gym.wrappers.AddRenderObservation(env, render_only=False)


def copied(fitted: Path, folder: Path, kwargs: Any = None, source: Any = None, **data: Any) -> None:
    """Copy an encoder, and say that it was fitted to something else."""
    shutil.copytree(fitted, folder, ignore=shutil.ignore_patterns(".fit"))
    config = json.loads((folder / "config.json").read_text())
    config["source"]["env_kwargs"].update(kwargs or {})
    config["source"].update(source or {})
    config["provenance"]["run"]["data"].update(data)
    (folder / "config.json").write_text(json.dumps(config))


BOXING = "ALE/Boxing-v5"


@pytest.mark.parametrize(
    ("fitted_to", "make", "key", "taken"),
    [
        ({"kwargs": {"difficulty": 1}}, lambda: gym.make(BOXING), None, False),
        ({"kwargs": {"difficulty": 1}}, lambda: gym.make(BOXING, difficulty=1), None, True),
        ({"kwargs": {"mode": 1}}, lambda: gym.make(BOXING, difficulty=1), None, False),
        ({"kwargs": {"obs_type": "grayscale"}}, lambda: gym.make(BOXING), None, False),
        ({"render": True}, lambda: gym.make(BOXING), None, False),
        ({"render": True}, lambda: drawn(BOXING), "pixels", True),
        ({}, lambda: drawn(BOXING), "pixels", False),
        ({"wrapper": "tests.test_fit:Turned"}, lambda: gym.make(BOXING), None, False),
        ({"wrapper": "tests.test_fit:Turned"}, lambda: Turned(gym.make(BOXING)), None, True),
        ({"wrapper": "tests.test_fit:turned"}, lambda: turned(gym.make(BOXING)), None, True),
        ({"wrapper": "tests.nowhere:turned"}, lambda: gym.make(BOXING), None, False),
    ],
)
def test_a_fit_is_taken_where_the_images_come_about_as_its_own_did(
    fitted_to: Any, make: Any, key: str | None, taken: bool, fitted: Path, cache: Path
) -> None:
    copied(fitted, cache / "encoders" / "boxing", **fitted_to)
    with make() as env:
        assert (find_fitted(frame_source(env), MadeBy.of(env), key) is not None) is taken


def test_each_camera_gets_the_fit_of_its_own_key(fitted: Path, cache: Path) -> None:
    image = gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)
    one = FrameEnv((64, 64, 3))
    one.spec = EnvSpec("Arm-v0", "tests.conftest:FrameEnv")
    cameras = gym.spaces.Dict(front=image, wrist=image)
    arm = gym.wrappers.TransformObservation(one, lambda seen: {"front": seen, "wrist": seen}, cameras)
    for key in ("front", "wrist"):
        named = {"env_id": "Arm-v0", "env_kwargs": {}, "emulator": {}}
        copied(fitted, cache / "encoders" / key, source=named, key=key)
    keys = ("wrist", "front")
    with LatentObservationWrapper(arm, dict.fromkeys(keys, "auto"), key=keys) as env:
        assert env.spec is not None
        (wrapper,) = env.spec.additional_wrappers[-1:]
        assert wrapper.kwargs is not None
        assert wrapper.kwargs["encoder"] == {key: str(cache / "encoders" / key) for key in keys}


def test_the_spec_refuses_another_encoder_of_the_same_name(fitted: Path, cache: Path) -> None:
    """A machine that fitted another encoder of the environment must not take it for this one."""
    folder = cache / "encoders" / "boxing"
    folder.parent.mkdir(parents=True)
    folder.symlink_to(fitted)
    with LatentObservationWrapper(gym.make("ALE/Boxing-v5")) as env:
        spec = env.spec
    assert spec is not None
    folder.unlink()
    save_encoder(folder)
    with pytest.raises(ValueError, match="its latents would mean something else"):
        gym.make(spec)


def test_the_same_fit_again_is_finished(fitted: Path) -> None:
    before = (fitted / "model.safetensors").stat().st_mtime_ns
    assert fit_encoder(replace(QUICK, out=fitted), progress=False).path == fitted
    assert (fitted / "model.safetensors").stat().st_mtime_ns == before


def test_a_worse_encoder_never_replaces_a_better_one(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "boxing"
    shutil.copytree(fitted, out)
    before = read_config(out).weights_sha256
    monkeypatch.setattr("latent_obs.fit.MEASURE_STEPS", 10**9)  # so the fewest steps are taken
    monkeypatch.setattr("latent_obs.fit.MIN_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.LAST_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.score", lambda card: 0)  # so PCA is not tried
    for seconds, value, replaced in ((6, -1, False), (7, 1, True)):

        def score(selection: Selection, encoder: Path, new: int = value) -> int:
            return new if ".fit" in str(encoder) else 0

        monkeypatch.setattr("latent_obs.fit._score_on", score)
        fit_encoder(replace(QUICK, out=out, seconds=seconds), progress=False)
        assert (read_config(out).weights_sha256 != before) == replaced


def test_the_old_and_the_new_encoder_are_compared_on_frames_that_neither_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, seen, frames = grow(tmp_path)
    new = trained_on(frames, tmp_path / "new")
    seen |= {frame.tobytes() for frame in frames.load(frames.split(0.3, 0)[0])}
    measured: list[Selection] = []

    def score(selection: Selection, encoder: Path) -> float:
        measured.append(selection)
        return 0.0

    monkeypatch.setattr("latent_obs.fit._score_on", score)
    whole = select_frames(frames, *evaluation_split(new, frames), 768, 0)
    _keeps_as_much(new.path, old.path, frames, whole)
    assert measured[0] is measured[1]
    assert not any(frame.tobytes() in seen for frame in measured[0].frames)
    assert not any(frame.tobytes() in seen for part in measured[0].stretches for frame in part)


def test_an_encoder_that_loses_a_rare_object_is_worse() -> None:
    """A VAE's and PCA's figures of ViZDoom's Basic, where the VAE alone keeps the monster."""
    vae = Scores(moving_r2=0.845, changing_r2=0.848, psnr=31.2, foreground=0.96, rare_r2=0.986)
    pca = Scores(moving_r2=0.888, changing_r2=0.894, psnr=32.6, foreground=0.96, rare_r2=0.962)
    assert score(vae) > score(pca)
    assert score(replace(vae, rare_r2=None)) < score(replace(pca, rare_r2=None))
    assert score(replace(vae, moving_r2=-0.5)) < score(replace(vae, moving_r2=0.0))
    assert math.isfinite(score(replace(vae, moving_r2=1.0)))


def test_where_pca_wins_pca_is_the_encoder(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "boxing"
    shutil.copytree(fitted / ".fit", out / ".fit")
    monkeypatch.setattr("latent_obs.fit.MEASURE_STEPS", 10**9)  # so the fewest steps are taken
    monkeypatch.setattr("latent_obs.fit.MIN_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.LAST_STEPS", 1)
    encoder = fit_encoder(replace(QUICK, out=out), progress=False)
    say_fitted(encoder)
    told = " ".join(capsys.readouterr().out.split())
    assert "PCA kept more than the VAE in this time" in told
    assert "bundled boxing-v0 has a moving R² of 0.938" in told  # as docs/encoders.md has it
    assert (
        f'Take it with env = LatentObservationWrapper(gym.make("ale_py:ALE/Boxing-v5"), encoder="{out}")'
        in told
    )
    card = ReportCard.from_json(json.loads((out / "card.json").read_text()))
    assert card.moving_r2 == pytest.approx(card.baselines["pca"].moving_r2, abs=0.03)
    with gym.make("ALE/Boxing-v5") as env, LatentObservationWrapper(env, out) as wrapped:
        obs, _ = wrapped.reset(seed=0)
        frame = preprocess(env.reset(seed=0)[0], FrameSpec())
    exact = load_encoder(out, precision="float32", backend="torch")(frame)
    np.testing.assert_allclose(obs, exact, atol=0.1)


def test_an_encoder_of_another_size_is_replaced(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two numbers keep less than 32, but they were asked for."""
    out = shutil.copytree(fitted, tmp_path / "boxing")
    monkeypatch.setattr("latent_obs.fit.MEASURE_STEPS", 10**9)  # so the fewest steps are taken
    monkeypatch.setattr("latent_obs.fit.MIN_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.LAST_STEPS", 1)
    monkeypatch.setattr("latent_obs.fit.score", lambda card: 0)  # so PCA is not tried
    monkeypatch.setattr("latent_obs.fit._score_on", lambda _, encoder: int(encoder == out))
    small = replace(QUICK, out=out, latent_dim=2)
    assert fit_encoder(small, progress=False).config.vae.latent_dim == 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"policy": "sticky"}, {"env_kwargs": {"mode": 0}}])
def test_a_command_that_is_refused_leaves_the_finished_fit(
    change: dict[str, Any], fitted: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(fitted, tmp_path / "boxing")
    (name,) = change
    with pytest.raises(ValueError, match=f"boxing was begun with {name}=.*, got {name}=.*--out"):
        fit_encoder(replace(QUICK, out=out, **change), progress=False)
    fit_encoder(replace(QUICK, out=out), progress=False)
    written = [(folder / ".fit" / "finished.json").stat().st_mtime_ns for folder in (out, fitted)]
    assert written[0] == written[1], "it was fitted again"


@pytest.mark.parametrize("after", [0.5, 7.0])
def test_an_interrupted_fit_goes_on_with_its_plan(tmp_path: Path, after: float) -> None:
    out = tmp_path / "boxing"
    command = [sys.executable, "-m", "latent_obs", "fit", "ALE/Boxing-v5", "--seconds", "15"]
    # Tests that run in the background of a shell ignore SIGINT, and so would their children.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        [*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, preexec_fn=heeds
    )
    wait_for((out / ".fit" / "plan.json").exists, 300)
    time.sleep(after)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "the same command continues from there" in told
    config = FitConfig("ALE/Boxing-v5", seconds=15, out=out)
    plan = _plan(config, out / ".fit")
    assert plan.seconds > 0
    fit_encoder(config, progress=False)
    assert len(FramesFolder(out / ".fit" / "frames")) == plan.frames
    assert json.loads((out / ".fit" / "finished.json").read_text())["seconds"] > plan.seconds


def test_each_environment_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LATENT_OBS_HOME", str(tmp_path))
    long = "made/Of-v0", {"name": "x" * 90}
    configs = [
        FitConfig("CartPole-v1"),
        FitConfig("CartPole-v1", render=True),
        FitConfig(long[0], env_kwargs={**long[1], "level": 1}),
        FitConfig(long[0], env_kwargs={**long[1], "level": 2}),
    ]
    names = [config.folder.name for config in configs]
    assert names[:2] == ["cartpole-v1", "cartpole-v1-render"]
    assert len(set(names)) == 4
    assert max(map(len, names)) <= 100


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"env_kwargs": {"gravity": 9.8}}, {"env_kwargs": {"gravity": -9.8}}),
        ({"env_kwargs": {"size": [1, 2]}}, {"env_kwargs": {"size": "1,2"}}),
        ({"env_kwargs": {"size": 1}}, {"env_kwargs": {"size": "1"}}),
        ({"env_kwargs": {"map": "a"}}, {"env_kwargs": {"map": "A"}}),
        ({"env_kwargs": {"name": "x" * 90, "to": 1}}, {"env_kwargs": {"name": "x" * 90, "to": -1}}),
        ({"render": True}, {"key": "render"}),
    ],
)
def test_options_that_are_spelt_alike_have_a_folder_of_their_own(one: Any, other: Any) -> None:
    assert FitConfig("CartPole-v1", **one).folder != FitConfig("CartPole-v1", **other).folder


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"env_kwargs": {"frameskip": 4, "obs_type": "ram", "on": True}}, "frameskip-4-obs-type-ram-on-true"),
        ({"env_kwargs": {"map": "4x4", "p": 0.5}, "key": "image_front"}, "map-4x4-p-0.5-image-front"),
        ({"wrapper": "minigrid.wrappers:RGBImgObsWrapper"}, "minigrid.wrappers-rgbimgobswrapper"),
        ({"env_kwargs": {"name": "x" * 90}}, f"name-{'x' * 72}-2547e8f9"),
    ],
)
def test_a_folder_is_named_as_it_always_was(options: dict[str, Any], name: str) -> None:
    """Else the encoders in people's caches would be fitted again."""
    assert FitConfig("ALE/Boxing-v5", **options).folder.name == f"ale-boxing-v5-{name}"


def test_an_encoder_that_was_trained_otherwise_is_left_alone(encoder: Path) -> None:
    with pytest.raises(ValueError, match="holds an encoder that latent-obs fit did not make"):
        fit_encoder(replace(QUICK, out=encoder), progress=False)


def test_a_longer_fit_collects_more_to_what_is_there(fitted: Path, tmp_path: Path) -> None:
    work = tmp_path / "boxing" / ".fit"
    shutil.copytree(fitted / ".fit", work)
    few = len(FramesFolder(work / "frames"))
    plan = _plan(replace(QUICK, seconds=50, out=work.parent), work)
    assert isinstance(plan, Plan)
    assert plan.frames > few


def test_fit_at_construction_makes_the_encoder_once(monkeypatch: pytest.MonkeyPatch, fitted: Path) -> None:
    asked: list[FitConfig] = []

    def fit(config: FitConfig, **_: Any) -> Any:
        asked.append(config)
        return resolve(fitted)

    monkeypatch.setattr("latent_obs.fit.fit_encoder", fit)
    env = gym.make("ALE/Boxing-v5", frameskip=2)
    with pytest.warns(UserWarning, match="frameskip 4, here 2"), LatentObservationWrapper(env, "fit") as env:
        assert env.encoder.ref == str(fitted)
    assert asked == [FitConfig("ALE/Boxing-v5", env_kwargs={"frameskip": 2})]


def test_an_environment_that_nobody_can_make_again_is_refused() -> None:
    with pytest.raises(ValueError, match=r"encoder='fit' needs an environment that gymnasium\.make made"):
        LatentObservationWrapper(FrameEnv(), "fit")


def test_a_fit_of_a_part_of_the_images_has_a_folder_of_its_own(tmp_path: Path) -> None:
    whole, part = QUICK, replace(QUICK, crop=(0, 84, 0, 96))
    assert part.folder.name == "ale-boxing-v5-0-84-0-96"
    assert whole.folder.name == "ale-boxing-v5"
    plan = Plan({}, "random", 600)
    assert _collect_config(part, plan, tmp_path).frame_spec == FrameSpec(crop=(0, 84, 0, 96))
    with pytest.raises(ValueError, match="top < bottom"):
        replace(QUICK, crop=(9, 9, 0, 96))


def test_a_wrapper_that_cannot_be_made_again_is_refused() -> None:
    cut = gym.spaces.Box(0, 255, (105, 160, 3), np.uint8)
    env = gym.wrappers.TransformObservation(gym.make("ALE/Boxing-v5"), lambda image: image[:105], cut)
    with pytest.raises(ValueError, match=r"fit ALE/Boxing-v5 --wrapper MODULE:FUNCTION --out FOLDER"):
        LatentObservationWrapper(env, "fit")


def test_a_worker_that_may_start_no_processes_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers of vector environments are daemons."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"fit before: latent-obs fit ALE/Boxing-v5"):
        LatentObservationWrapper(gym.make(BOXING), "fit")


def test_a_fit_waits_for_another_one_of_the_same_environment(
    fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latent_obs.data.storage.PATIENCE", 0.0)
    out = shutil.copytree(fitted, tmp_path / "boxing")
    with ThreadPoolExecutor() as pool:
        with locked(out / ".fit"):
            second = pool.submit(fit_encoder, replace(QUICK, out=out), progress=False)
            wait_for(lambda: "Waiting for it." in capfd.readouterr().err)
            assert not second.done()
        assert second.result(60).path == out


def test_an_argument_that_no_other_process_can_be_told_is_refused() -> None:
    frozen = gym.make("FrozenLake-v1", render_mode="rgb_array", desc=["SF", "FG"], map_name=object())
    env = gym.wrappers.AddRenderObservation(frozen)
    with pytest.raises(ValueError, match=r"FrozenLake-v1 again .* These are not: map_name\."):
        LatentObservationWrapper(env, "fit")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["CartPole-v1"], "--render"),
        (["ALE/Nothing-v5"], "cannot make the environment"),
        (["ALE/Boxing-v5", "--seconds", "1"], "seconds must be from 5 to 86,400"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(["fit", *words]) == 1
    captured = capsys.readouterr()
    assert told in " ".join((captured.err + captured.out).split())
    assert "Traceback" not in captured.err


WITHOUT_GUARD = """
import gymnasium as gym
from latent_obs import LatentObservationWrapper
print("begun", flush=True)
LatentObservationWrapper(gym.make("ale_py:ALE/Boxing-v5"), encoder="fit")
"""


def test_a_script_without_a_main_guard_is_told_about_it(tmp_path: Path) -> None:
    """Each process imports it again, where it would fit again; one error says so, not three stack traces."""
    (tmp_path / "script.py").write_text(WITHOUT_GUARD)
    run = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stdout.split() == ["begun", "begun"]  # the second time in the process that collects
    assert run.stderr.count("Traceback") == 1
    assert 'check that its work stands under if __name__ == "__main__":' in run.stderr.splitlines()[-1]

"""The scripts of benchmarks/rl, with budgets too small to learn anything."""

from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.collecting.sources import open_env
from latent_obs.encoders.provenance import Provenance, Refreshed
from latent_obs.encoders.resolve import resolve
from tests.conftest import save_encoder

SCRIPTS = Path(__file__).parents[1] / "benchmarks" / "rl"
sys.path.append(str(SCRIPTS))

PPO = pytest.importorskip("stable_baselines3").PPO
SAC = pytest.importorskip("stable_baselines3").SAC
QRDQN = pytest.importorskip("sb3_contrib").QRDQN

import agents  # noqa: E402
import atari_100k  # noqa: E402
import car_racing  # noqa: E402
import dm_control_100k  # noqa: E402
import dm_suite  # noqa: E402
import random_play  # noqa: E402
import records  # noqa: E402
import refresh  # noqa: E402
import run  # noqa: E402
import train_agent  # noqa: E402

needs_car_racing = pytest.mark.skipif(importlib.util.find_spec("Box2D") is None, reason="needs Box2D")
needs_dm_control = pytest.mark.skipif(  # importing shimmy here would choose how it draws
    None in map(importlib.util.find_spec, ("dm_control", "shimmy")), reason="needs dm_control and shimmy"
)
GAME = "tests.quick_env:Quick-v0"
SMALL = '{"n_steps": 16, "n_epochs": 1, "batch_size": 64}'


def config(
    tmp_path: Path, encoder: Path, arm: agents.Arm = "latents", **changes: Any
) -> train_agent.RunConfig:
    options = {"steps": 640, "encoder": str(encoder), "changes": SMALL, "progress": False, **changes}
    return train_agent.RunConfig(GAME, arm, out=tmp_path / "runs", **options)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("arm", ["pixels", "latents"])
def test_a_run_writes_what_it_reached(arm: agents.Arm, tmp_path: Path, encoder: Path) -> None:
    folder = train_agent.train(config(tmp_path, encoder, arm, steps=512))
    about, progress = json.loads((folder / "run.json").read_text()), rows(folder / "progress.csv")
    episodes = rows(folder / "episodes.csv")
    assert about["observation_shape"] == ([4, 84, 84] if arm == "pixels" else [128])
    assert int(progress[-1]["steps"]) == about["finished"]["steps"] == 512
    assert int(progress[-1]["episodes"]) == len(episodes) > 10
    last = [float(row["return"]) for row in episodes[-100:]]
    assert float(progress[-1]["mean_return"]) == pytest.approx(np.mean(last), rel=1e-5)
    assert sum(int(row["length"]) for row in episodes) <= 512  # each step is of one episode at most
    assert (folder / "model.zip").exists()
    assert not (folder / "checkpoint.zip").exists()


def test_a_finished_run_is_left_alone_and_other_settings_are_refused(tmp_path: Path, encoder: Path) -> None:
    first = config(tmp_path, encoder)
    folder = train_agent.train(first)
    before = (folder / "run.json").stat().st_mtime_ns
    train_agent.train(first)
    assert (folder / "run.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="begun with steps 640, not 1280"):
        train_agent.train(config(tmp_path, encoder, steps=1280))


@pytest.mark.parametrize("killed", [False, True])
def test_an_interrupted_run_goes_on_as_one(
    killed: bool, tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it could still save itself or not: one table, whose rows are in order and none twice."""
    settings = config(tmp_path, encoder, checkpoint_seconds=0.0 if killed else 1000.0)
    add_episode, update = train_agent.Journal.add_episode, PPO.train
    rates = []

    def stop_midway(journal: train_agent.Journal, steps: int, episode: dict[str, Any]) -> None:
        add_episode(journal, steps, episode)
        if 300 < steps < 400 and not (settings.folder / "stopped").exists():
            (settings.folder / "stopped").touch()
            if killed:
                raise SystemExit
            signal.raise_signal(signal.SIGINT)

    def train(model: Any) -> None:
        update(model)
        rates.append(model.policy.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(train_agent.Journal, "add_episode", stop_midway)
    monkeypatch.setattr(PPO, "train", train)
    with pytest.raises(SystemExit if killed else KeyboardInterrupt):
        train_agent.train(settings)
    assert (settings.folder / "checkpoint.zip").exists()
    assert not train_agent.is_finished(settings.folder)
    folder = train_agent.train(settings)
    about, progress = json.loads((folder / "run.json").read_text()), rows(folder / "progress.csv")
    assert about["parts"] == 2
    assert about["finished"]["steps"] == 640
    # Its learning rate falls over the whole run, in the five updates that an undisturbed run has.
    np.testing.assert_allclose(rates, 2.5e-4 * np.array([0.8, 0.6, 0.4, 0.2, 0.0]), atol=1e-12)
    assert (np.diff([int(row["steps"]) for row in progress[:-1]]) > 0).all()
    for name in ("seconds", "cpu_seconds", "episodes"):
        assert (np.diff([float(row[name]) for row in progress]) >= 0).all(), name
    episodes = rows(folder / "episodes.csv")
    assert int(progress[-1]["episodes"]) == len(episodes) == about["finished"]["episodes"]
    ends = [int(row["steps"]) for row in episodes]
    assert ends == sorted(ends)
    # No more episodes than steps allow: none was written twice.
    assert sum(int(row["length"]) for row in episodes) <= 640


def test_an_interrupted_run_goes_on_with_a_refreshed_encoder_and_with_no_other(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, encoder)
    add_episode = train_agent.Journal.add_episode

    def stop_once(journal: train_agent.Journal, steps: int, episode: dict[str, Any]) -> None:
        add_episode(journal, steps, episode)
        if steps > 300 and not (settings.folder / "stopped").exists():
            (settings.folder / "stopped").touch()
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_agent.Journal, "add_episode", stop_once)
    with pytest.raises(KeyboardInterrupt):
        train_agent.train(settings)
    old, stopped = resolve(encoder), json.loads((settings.folder / "run.json").read_text())
    folders = {}
    for seed, (name, sha256) in enumerate({"refreshed": old.sha256(), "of another": "0" * 64}.items(), 1):
        record = Refreshed("old", sha256, "agent.zip", 100, 0.99, 0.8, 0.9)
        provenance = Provenance(refreshed=record)
        folders[name] = save_encoder(tmp_path / name, seed=seed, provenance=provenance)
    for other in (folders["of another"], "pong-v0"):
        with pytest.raises(ValueError, match="was begun with encoder"):
            train_agent.train(dataclasses.replace(settings, encoder=str(other)))
    goes_on = dataclasses.replace(settings, encoder=str(folders["refreshed"]))
    about = json.loads((train_agent.train(goes_on) / "run.json").read_text())
    assert about["settings"]["encoder"] == str(folders["refreshed"])
    assert about["encoder"]["sha256"] == resolve(folders["refreshed"]).sha256()[:16]
    assert about["encoder"]["sha256"] != stopped["encoder"]["sha256"]
    assert len(about["refreshed_at"]) == 1
    assert 128 <= about["refreshed_at"][0] < 640
    with pytest.raises(ValueError, match="was begun with encoder"):
        train_agent.train(settings)  # back to the old one
    finished = config(tmp_path, encoder, seed=1, steps=128)
    train_agent.train(finished)
    with pytest.raises(ValueError, match="was begun with encoder"):
        train_agent.train(dataclasses.replace(finished, encoder=str(folders["refreshed"])))


def test_the_arm_on_the_state_sees_four_times_where_the_ram_has_paddle_and_ball() -> None:
    venv = agents.make_venv("Breakout", "state", n_envs=1, algorithm="qrdqn")
    obs: Any = venv.reset()
    ram = venv.get_attr("unwrapped")[0].ale.getRAM()
    np.testing.assert_allclose(obs[0, -3:] * 64 + 128, ram[[72, 99, 101]])
    assert obs.shape == (1, 12)
    venv.close()


def test_runs_begin_with_the_first_seed_of_every_game_and_arm() -> None:
    many = run.all_runs(run.Args(("Pong", "Breakout"), seeds=(0, 1), encoders=("Pong=x",)))
    assert [c.seed for c in many] == [0] * 4 + [1] * 4
    assert [c.arm for c in many[:4]] == ["pixels", "latents"] * 2
    assert [c.encoder for c in many[:4]] == ["auto", "x", "auto", "auto"]
    with pytest.raises(ValueError, match="GAME=VALUE"):
        run.all_runs(run.Args(encoders=("Tennis=x",)))


def test_run_all_finishes_what_it_can(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails says why and leaves the others alone."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS.parents[1]))
    good, bad = config(tmp_path, encoder, steps=128), config(tmp_path, tmp_path / "none", steps=128, seed=1)
    assert run.run_all([bad, good], jobs=2) == ["failed", "finished"]
    assert "neither a bundled one" in " ".join(capsys.readouterr().err.split())
    assert int(rows(good.folder / "progress.csv")[-1]["steps"]) == 128
    assert run.run_all([good], jobs=1) == ["finished"]


def test_random_play_is_of_whole_games_with_true_rewards(tmp_path: Path) -> None:
    """Quick's games last 5 to 40 steps and its reward is the action, 1.5 on average."""
    returns = random_play.play(GAME, 200, 0)
    assert len(returns) == 200
    assert random_play.play(GAME, 3, 0) == returns[:3]
    assert random_play.play(GAME, 3, 1) != returns[:3]
    # A game has 22.5 steps on average, and a deviation of about 17.
    assert np.mean(returns) == pytest.approx(22.5 * 1.5, abs=4 * 17 / math.sqrt(200))
    path = tmp_path / "random_play.csv"
    records.record_random_play("b", [1.0, 2.0, 6.0], path)
    records.record_random_play("a", [1.0, 1.0], path)
    records.record_random_play("b", [0.0, 2.0, 4.0], path)
    assert path.read_text() == "game,episodes,mean,std\na,2,1.0,0.0\nb,3,2.0,2.0\n"


def test_controllers_have_the_papers_sizes_and_ranges() -> None:
    linear, hidden = car_racing.Controller("linear", 32), car_racing.Controller("hidden", 32)
    assert linear.size == 99
    assert hidden.size == 33 * 40 + 41 * 3
    latents = np.zeros((1, 32), np.float32)
    parameters = np.zeros(99)
    np.testing.assert_array_equal(linear.act(parameters, latents), [[0.0, 0.5, 0.0]])
    parameters[-3:] = (-50, 50, -50)  # the biases
    np.testing.assert_allclose(linear.act(parameters, latents), [[-1.0, 1.0, 0.0]])
    parameters[:3] = (2.0, 0.0, 0.0)
    parameters[-3:] = 0.0
    latents[0, 0] = 0.25
    assert linear.act(parameters, latents)[0, 0] == pytest.approx(math.tanh(0.5))


@needs_car_racing
def test_a_controller_drives_and_gives_up(encoder: Path) -> None:
    """Standing still without patience costs 0.1 a step; with it the rest is charged at once."""
    worker = car_racing.Worker(str(encoder), "linear", 1)
    parameters = np.zeros(99)
    parameters[-2] = -50.0  # no gas
    (total,) = worker.play("CarRacing-v3", parameters, [3], patience=5)
    # The start gives what lies under the wheels, then 0.1 is lost a step until step 1000.
    first = total + 100.0
    assert 0 <= first < 60
    assert first == pytest.approx(worker.play("CarRacing-v3", parameters, [3], patience=9)[0] + 100.0)


def test_collect_opens_an_environment_as_it_was_trained(tmp_path: Path) -> None:
    settings = CollectConfig(
        "agents:AsTrained-v0", tmp_path / "frames", frames=60, workers=1, env_kwargs={"game": GAME}
    )
    assert len(collect_frames(settings, progress=False)) == 60


def test_refreshing_measures_the_same_agent_with_both_encoders(tmp_path: Path, trained: Path) -> None:
    """And trains it on with each; a second call finds everything done."""
    run_folder = train_agent.train(config(tmp_path, trained, steps=256))
    args = refresh.Args(
        run_folder, tmp_path / "out", new_frames=150, encoder_steps=3, games=5, more_steps=256
    )
    result = refresh.measure(args)
    assert [len(result["returns"][name]) for name in ("old", "new")] == [5, 5]
    assert all(0 <= value <= 120 for values in result["returns"].values() for value in values)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    runs = [tmp_path / "out" / f"runs_{name}" for name in ("old", "new")]
    abouts = [json.loads(next(run.glob("*/*/*/run.json")).read_text()) for run in runs]
    assert [about["settings"]["encoder"] for about in abouts] == [
        str(trained),
        str(tmp_path / "out" / "encoder"),
    ]
    assert {about["settings"]["start"] for about in abouts} == {str(run_folder / "model.zip")}
    told = refresh.lines(result)
    assert "old" in told[2]
    assert f"{sum(result['returns']['old']) / 5:.2f}" in told[2]
    assert refresh.measure(args) == result
    with pytest.raises(ValueError, match="no finished run"):
        refresh.measure(dataclasses.replace(args, run=tmp_path / "none"))


def test_an_agent_is_trained_on_from_another_run(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its weights, which stay where no update is made, and for as many steps as are asked for."""
    first = train_agent.train(config(tmp_path, encoder, steps=256)) / "model.zip"
    monkeypatch.setattr(PPO, "train", lambda _: None)
    onward = dataclasses.replace(config(tmp_path, encoder, steps=128, start=first), out=tmp_path / "onward")
    folder = train_agent.train(onward)
    before, after = (
        PPO.load(path, device="cpu").get_parameters()["policy"] for path in (first, folder / "model.zip")
    )
    assert all(before[name].equal(after[name]) for name in before)
    assert json.loads((folder / "run.json").read_text())["finished"]["steps"] == 128


def test_an_agent_is_evaluated_on_whole_games(tmp_path: Path, encoder: Path) -> None:
    """As many as were asked for, with true rewards: at most 3 for each of at most 40 steps."""
    folder = train_agent.train(config(tmp_path, encoder, steps=256))
    agent, out = folder / "model.zip", tmp_path / "trials"
    result = car_racing.run(car_racing.Args(str(encoder), out, agent=agent, test_env=GAME, trials=11))
    assert len(result["returns"]) == result["trials"] == 11
    assert all(value == int(value) and 0 <= value <= 120 for value in result["returns"])
    assert len(set(result["returns"])) > 1
    written, returns = json.loads((out / "result.json").read_text()), result["returns"]
    assert written["mean"] == pytest.approx(sum(returns) / 11)
    # The spread of single trials, as World Models reports it.
    assert written["std"] == pytest.approx(math.sqrt(sum((v - sum(returns) / 11) ** 2 for v in returns) / 11))


def test_a_recorded_game_of_atari_is_whole_and_its_rewards_are_true() -> None:
    """The agent is trained on clipped rewards and single lives; the record is what the emulator gave."""
    env = agents.make_env("SpaceInvaders")
    game: Any = env.unwrapped
    step, given = game.step, list[float]()

    def watch(action: int) -> Any:
        result = step(action)
        given.append(float(result[1]))
        return result

    game.step = watch
    env.action_space.seed(0)
    env.reset(seed=0)
    ends, trained_on = 0, 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        trained_on += float(reward)
        ends += terminated
        if "episode" in info:
            break
        if terminated or truncated:
            env.reset()
    assert info["episode"]["r"] == sum(given) > trained_on > 0
    assert info["episode"]["l"] == len(given)
    assert trained_on <= sum(value > 0 for value in given)  # one for each, but for those of no-ops
    assert (ends, game.ale.lives()) == (3, 0)


@needs_car_racing
def test_leaving_out_frames_that_nobody_sees_changes_nothing() -> None:
    """The same frames, rewards and ends as repeating the action oneself, and a frame drawn for four."""
    skipping = agents.FrameSkip(open_env("CarRacing-v3"), 4)
    plain, rng = open_env("CarRacing-v3"), np.random.default_rng(0)
    np.testing.assert_array_equal(skipping.reset(seed=3)[0], plain.reset(seed=3)[0])
    for _ in range(20):
        action = np.array([rng.uniform(-1, 1), 1.0, 0.0], np.float32)
        frame, total, *ends = skipping.step(action)
        steps = [plain.step(action) for _ in range(4)]
        np.testing.assert_array_equal(frame, steps[-1][0])
        assert float(total) == pytest.approx(sum(float(step[1]) for step in steps))
        assert ends[:2] == list(steps[-1][2:4])
    car: Any = skipping.unwrapped
    draws, draw = [], type(car)._render

    def count(self: Any, mode: str) -> Any:
        draws.append(mode)
        return draw(self, mode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(car), "_render", count)
        skipping.step(action)
    assert draws == ["state_pixels"]


def test_an_agent_that_gives_up_is_charged() -> None:
    class Idle(gym.Env[Any, Any]):
        action_space = gym.spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return action, 3.0 if action[1] > 0 else -0.1, False, False, {}

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            return None, {}

    env = agents.Pedals(agents.GiveUp(Idle(), 3, 20.0))
    env.reset()
    brake, gas = np.array([0.5, -1.0]), np.array([0.5, 1.0])
    np.testing.assert_allclose(env.step(brake)[0], [0.5, 0.0, 0.5])
    assert env.step(brake)[1:3] == (-0.1, False)
    np.testing.assert_allclose(env.step(gas)[0], [0.5, 1.0, 0.0])
    assert [env.step(brake)[2] for _ in range(3)] == [False, False, True]
    env.reset()
    assert [env.step(brake)[1] for _ in range(3)] == pytest.approx([-0.1, -0.1, -20.1])


@needs_car_racing
def test_an_interrupted_sac_run_goes_on_with_what_it_remembers(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = '{"learning_starts": 8, "batch_size": 8, "buffer_size": 400, "gradient_steps": 1}'
    settings = train_agent.RunConfig(
        "CarRacing",
        "latents",
        steps=60,
        encoder=str(encoder),
        changes=small,
        algorithm="sac",
        progress=False,
        checkpoint_seconds=0.0,
        out=tmp_path / "runs",
    )
    meant = json.loads(json.dumps(agents.SAC_ARGUMENTS))
    on_step, update, remembered = train_agent.Recorder._on_step, SAC.train, []

    def die_once(recorder: train_agent.Recorder) -> bool:
        if recorder.num_timesteps == 40 and not (settings.folder / "died").exists():
            (settings.folder / "died").touch()
            raise SystemExit
        return on_step(recorder)

    def train(model: Any, *args: Any, **options: Any) -> None:
        update(model, *args, **options)
        remembered.append(model.replay_buffer.size() * model.n_envs)

    monkeypatch.setattr(train_agent.Recorder, "_on_step", die_once)
    monkeypatch.setattr(SAC, "train", train)
    with pytest.raises(SystemExit):
        train_agent.train(settings)
    folder = train_agent.train(settings)
    about = json.loads((folder / "run.json").read_text())
    assert (about["parts"], about["finished"]["steps"]) == (2, 60)
    assert about["settings"]["algorithm"] == "sac"
    assert meant == agents.SAC_ARGUMENTS, "SB3 changed them, so that another process would refuse to go on"
    assert about["observation_shape"] == [3 * 32]
    assert remembered == [*range(12, 61, 4)]
    with pytest.raises(ValueError, match="begun with"):
        train_agent.train(dataclasses.replace(settings, algorithm="ppo"))

    # Trials are whole games: one that stands still is not given up.
    trials = car_racing.Args(str(encoder), tmp_path / "trials", agent=folder / "model.zip", trials=1)
    result = car_racing.run(trials)
    assert result["name"].startswith("SAC on stacked latents")
    assert -100.0 <= result["mean"] < 950.0


def test_sac_is_refused_for_other_games(tmp_path: Path, encoder: Path) -> None:
    with pytest.raises(ValueError, match="CarRacing, Pendulum and DMControl only"):
        train_agent.train(config(tmp_path, encoder, algorithm="sac"))


def test_dqn_learns_once_for_each_step_and_its_settings_are_kept(tmp_path: Path, encoder: Path) -> None:
    small = '{"learning_starts": 40, "batch_size": 8, "buffer_size": 400}'
    folder = train_agent.train(config(tmp_path, encoder, algorithm="dqn", steps=120, changes=small))
    model = agents.load_model(folder / "model.zip", None, "cpu", "dqn")
    assert model.observation_space.shape == (4 * 32,)
    # Four environments: from step 44 to step 120 a rollout of 4 steps is followed by 4 updates.
    assert model._n_updates == 80
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["algorithm"] == "dqn"
    assert about["settings"]["hyperparameters"]["n_steps"] == 10
    with pytest.raises(ValueError, match="discrete actions"):
        train_agent.train(dataclasses.replace(config(tmp_path, encoder), game="CarRacing", algorithm="dqn"))


def test_qrdqn_learns_once_for_four_steps(tmp_path: Path, encoder: Path) -> None:
    small = '{"learning_starts": 40, "batch_size": 8, "buffer_size": 400}'
    folder = train_agent.train(config(tmp_path, encoder, algorithm="qrdqn", steps=120, changes=small))
    model = agents.load_model(folder / "model.zip", None, "cpu", "qrdqn")
    assert isinstance(model, QRDQN)
    # Eight environments: from step 48 to step 120 a rollout of 8 steps is followed by 2 updates.
    assert model._n_updates == 20
    about = json.loads((folder / "run.json").read_text())
    assert about["settings"]["hyperparameters"]["n_steps"] == 3
    with pytest.raises(ValueError, match="QRDQN takes discrete actions, not those of CarRacing"):
        train_agent.train(dataclasses.replace(config(tmp_path, encoder), game="CarRacing", algorithm="qrdqn"))


def score(game: str, seed: int, mean_return: float) -> atari_100k.Score:
    return atari_100k.Score(game, seed, 0.9, 20_000, 80_000, mean_return, 1.0, 60.0)


def test_scores_are_normalised_by_random_play_and_the_human(tmp_path: Path) -> None:
    rows = [
        score("Pong", 0, 14.6),
        score("Boxing", 0, 0.1),
        score("Freeway", 0, 2.96),
        score("Krull", 0, 1598),
    ]
    assert [row.normalised for row in rows] == pytest.approx([1, 0, 0.1, 0])
    found = atari_100k.aggregate(rows)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(
        {"median": 0.05, "mean": 0.275, "IQM": 0.05}
    )
    assert all(bounds is None for _, bounds in found.values()), "one seed tells nothing of other seeds"
    atari_100k.write_scores(rows, tmp_path / "scores.csv")
    assert atari_100k.read_scores(tmp_path / "scores.csv") == rows


def test_seeds_are_drawn_anew_within_each_game() -> None:
    rows = [score("Pong", seed, [-20.7, 14.6][seed]) for seed in (0, 1)] + [
        score("Boxing", seed, 12.1) for seed in (0, 1)
    ]
    value, bounds = atari_100k.aggregate(rows)["mean"]
    assert value == pytest.approx(0.75)
    # Pong's mean of two draws is 0, 0.5 or 1, with probabilities 1/4, 1/2, 1/4; Boxing's is always 1.
    assert bounds == pytest.approx([0.5, 1.0])


def test_only_games_of_atari_100k_have_a_score() -> None:
    with pytest.raises(ValueError, match="got Tetris"):
        atari_100k.main(atari_100k.Args(games=("Tetris",)))


class Counting(gym.Env[Any, Any]):
    """Rewards its n-th step with n, and ends with the tenth."""

    observation_space = gym.spaces.Box(0, 10, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.array([self.steps], np.float32), float(self.steps), False, self.steps == 10, {}


def test_an_action_is_repeated_and_its_rewards_add_up() -> None:
    env = dm_suite.ActionRepeat(Counting(), 4)
    assert [env.step(0)[:4] for _ in range(3)] == [
        (4, 1 + 2 + 3 + 4, False, False),
        (8, 5 + 6 + 7 + 8, False, False),
        (10, 9 + 10, False, True),
    ]


@needs_dm_control
@pytest.mark.parametrize(("task", "steps"), [("cartpole-swingup", 125), ("walker-walk", 500)])
def test_a_task_of_dm_control_gives_images_for_a_thousand_frames(task: str, steps: int) -> None:
    env = agents.make_env(task, "sac")
    first, _ = env.reset(seed=1)
    again, _ = env.reset(seed=1)
    np.testing.assert_array_equal(first, again)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    env.action_space.seed(0)
    ends = [env.step(env.action_space.sample())[2:] for _ in range(steps)]
    assert not any(terminated or truncated for terminated, truncated, _ in ends[:-1])
    terminated, truncated, info = ends[-1]
    assert truncated, "time ran out, which is no state to learn from"
    assert not terminated
    assert 0 < info["episode"]["r"] < 1000
    assert (env.render() != first).any()
    env.close()
    short = dm_suite.make(task, repeat=4, frames=10)
    short.reset(seed=1)
    assert [short.step(env.action_space.sample())[3] for _ in range(3)] == [False, False, True]
    short.close()
    with pytest.raises(ValueError, match="no task 'cartpole-fly'"):
        dm_suite.make("cartpole-fly")


def test_every_task_of_dm_control_is_trained_for_as_many_updates(tmp_path: Path, encoder: Path) -> None:
    """Steps take 2, 4 or 8 frames, and an update is for 8 frames."""
    for task, frames in agents.ACTION_REPEATS.items():
        arguments = agents.hyperparameters(task, "latents", {"tau": 0.5}, "sac")
        assert arguments["tau"] == 0.5
        assert agents.N_ENVS["sac"] * frames / arguments["gradient_steps"] == 8
    with pytest.raises(ValueError, match="walker-walk is set up for SAC only"):
        train_agent.train(dataclasses.replace(config(tmp_path, encoder), game="walker-walk"))


def test_the_table_of_dm_control_has_the_published_means() -> None:
    """Of all six tasks CURL's and DrQ's are 560 and 688; means are of the tasks that were played."""
    scores = [
        dm_control_100k.Score(task, 0, 0.9, 100, 500.0, 10.0, 60.0) for task in dm_control_100k.PUBLISHED
    ]
    assert "| mean | | | | | 500 | 560 | 688 |" in dm_control_100k.report(scores)
    two = [dataclasses.replace(scores[0], seed=seed, mean_return=100.0 * seed) for seed in (1, 4)]
    table = dm_control_100k.report(two)
    assert "| finger-spin | 2 | 0.900 | 100 | 60 | 250 ± 10 | 767 | 901 |" in table
    assert "| mean | | | | | 250 | 767 | 901 |" in table
    with pytest.raises(ValueError, match="fewer than the 100 of --frames"):
        dm_control_100k.score("finger-spin", 0, dm_control_100k.Args(frames=100, encoder_frames=99))


def test_sac_swings_a_rendered_pendulum(tmp_path: Path, encoder: Path) -> None:
    pytest.importorskip("pygame")
    small = '{"learning_starts": 8, "batch_size": 8, "buffer_size": 400, "gradient_steps": 1}'
    settings = config(tmp_path, encoder, algorithm="sac", steps=820, changes=small)
    folder = train_agent.train(dataclasses.replace(settings, game="Pendulum-v1"))
    about = json.loads((folder / "run.json").read_text())
    assert about["observation_shape"] == [3 * 32]
    # Four environments, whose episodes have 200 steps with rewards from -16.3 to 0.
    assert about["finished"]["episodes"] == 4
    assert -16.3 * 200 < about["finished"]["mean_return"] < 0
    with pytest.raises(ValueError, match="set up for SAC only"):
        train_agent.train(dataclasses.replace(settings, game="Pendulum-v1", algorithm="ppo", out=tmp_path))

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from latent_obs import LatentObservationWrapper, load_encoder
from latent_obs.cli import main
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.folder import EncoderConfig, read_config, write_encoder_folder
from latent_obs.encoders.provenance import Provenance, Run
from latent_obs.encoders.resolve import resolve
from latent_obs.frames import FrameSpec
from latent_obs.refresh import RefreshConfig, _begun, refresh_encoder, say_refreshed
from latent_obs.training.affine import AffineMap, fold_map, r2
from latent_obs.training.anchor import Anchor
from latent_obs.training.config import TrainConfig
from latent_obs.training.objective import bounded_exp
from latent_obs.training.train import train_vae
from latent_obs.vae import VAE, load_vae
from tests.conftest import TINY_VAE, random_tensors, save_encoder, wait_for

ENV = "tests.quick_env:Quick-v0"
# Encoders that saw a few frames may fail the gate of int8, and agents' zips hold pickles.
pytestmark = pytest.mark.filterwarnings("ignore:.*(parity gate|COLLAPSE|collapsed|runs code)")


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that was trained for a few steps on random play."""
    root = tmp_path_factory.mktemp("old")
    collect_frames(CollectConfig(ENV, root / "frames", frames=800, workers=1), progress=False)
    config = TrainConfig(root / "frames", root / "encoder", channels=(4, 8), steps=60, latent_dim=8)
    train_vae(replace(config, batch_size=32, learning_rate=0.01, precision="float32"), progress=False)
    return root / "encoder"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, old: Path) -> Path:
    """A PPO agent on two latents of that encoder."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    venv = DummyVecEnv([lambda: LatentObservationWrapper(gym.make(ENV), old, stack=2)])
    model = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, seed=0, device="cpu")
    path = tmp_path_factory.mktemp("agent") / "agent.zip"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def config(old: Path, agent: Path, tmp_path_factory: pytest.TempPathFactory) -> RefreshConfig:
    out = tmp_path_factory.mktemp("refreshed") / "new"
    return RefreshConfig(old, ENV, str(agent), out, frames=400, steps=60, workers=1)


@pytest.fixture(scope="module")
def refreshed(config: RefreshConfig) -> Path:
    return refresh_encoder(config, progress=False).path


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Frames of episodes that no encoder was trained on."""
    out = tmp_path_factory.mktemp("unseen") / "frames"
    return collect_frames(CollectConfig(ENV, out, frames=300, workers=1, seed=77), progress=False).load()


def correlation(one: Any, other: Any) -> float:
    """Mean correlation over dimensions."""
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(one.T, other.T, strict=True)]))


def test_an_agent_sees_what_it_saw(old: Path, refreshed: Path, unseen: Any) -> None:
    """As wrappers scale latents; the weights have changed, and what moves is reconstructed better."""
    before, after = (load_encoder(path, precision="float32")(unseen) for path in (old, refreshed))
    assert correlation(before, after) > 0.99
    assert np.abs(after - before).max() > 0.01
    record = read_config(refreshed).provenance.refreshed
    assert record is not None
    assert record.r2 > 0.98
    assert record.moving_r2 > record.moving_r2_before
    assert record.encoder == str(old)


def test_the_recorded_r2_is_that_of_the_held_out_frames(old: Path, refreshed: Path) -> None:
    frames = FramesFolder(refreshed / ".refresh" / "held_out").load()
    before, after = (
        load_encoder(path, precision="float32")(frames).astype(float) for path in (old, refreshed)
    )
    record = read_config(refreshed).provenance.refreshed
    assert record is not None
    assert record.frames == len(frames) == 40
    told = 1 - ((after - before) ** 2).sum() / ((before - before.mean(0)) ** 2).sum()
    assert record.r2 == pytest.approx(told, abs=1e-4)


def test_without_the_anchor_the_latents_move(
    config: RefreshConfig, refreshed: Path, tmp_path: Path, unseen: Any
) -> None:
    """The same steps on the same frames: the agent would see something else."""
    run = read_config(refreshed).provenance.run
    assert run is not None
    assert run.config["anchor"] == 0.05
    train = TrainConfig(
        refreshed / ".refresh" / "frames",
        tmp_path / "free",
        init_from=config.encoder,
        latent_dim=8,
        channels=(4, 8),
        steps=60,
        kl_warmup=0.0,
    )
    train_vae(train, progress=False)
    before, held, after, free = (
        load_encoder(path, precision="float32", normalize=False)(unseen)
        for path in (config.encoder, refreshed / ".refresh" / "trained", refreshed, train.out)
    )
    scale = np.ones(8)
    assert r2(after, before, scale) > 0.98 > r2(free, before, scale)
    # Before the linear map, too, which here makes up for a lot.
    assert 1 - r2(held, before, scale) < 0.5 * (1 - r2(free, before, scale))


def test_a_refreshed_encoder_says_what_its_places_are(
    old: Path, config: RefreshConfig, tmp_path: Path
) -> None:
    """They are held where the old encoder had them, as all dimensions are: the agent knows no others."""
    train = TrainConfig(
        old.parent / "frames", tmp_path / "held", channels=(4, 8), latent_dim=8, batch_size=32,
        steps=60, learning_rate=0.01, precision="float32", places=2,
    )  # fmt: skip
    places = train_vae(train, progress=False).provenance.places
    assert places is not None
    settings = replace(config, encoder=train.out, policy="random", out=tmp_path / "new", least_r2=0.9)
    assert refresh_encoder(settings, progress=False).config.provenance.places == places


def test_latents_are_scaled_as_before_and_drift_is_measured_from_the_new_frames(
    old: Path, refreshed: Path, unseen: Any
) -> None:
    first, second = read_config(old), read_config(refreshed)
    for mine, theirs in zip(first.scaling, second.scaling, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    encoder = load_encoder(refreshed, precision="float32")
    shift, scale = first.scaling
    np.testing.assert_allclose(encoder(unseen), (encoder.posterior(unseen)[0] - shift) / scale, atol=1e-4)
    sample = FramesFolder(refreshed / ".refresh" / "frames").load()
    mean, std = encoder.statistics
    np.testing.assert_allclose(mean, encoder(sample).mean(0), atol=0.1)
    np.testing.assert_allclose(std, encoder(sample).std(0), rtol=0.1)


def test_a_refreshed_encoder_can_be_refreshed(config: RefreshConfig, refreshed: Path, tmp_path: Path) -> None:
    """Its latents stay on the first one's scale."""
    few = replace(config, encoder=refreshed, out=tmp_path / "again", policy="sticky", frames=80, steps=1)
    few = replace(few, least_r2=0.0)
    again = refresh_encoder(few, progress=False)
    first = read_config(Path(config.encoder)).latents
    assert again.config.scaled_as == {name: first[name] for name in ("mean", "std")}


def test_frames_of_the_agent_and_of_random_play_are_trained_on(
    config: RefreshConfig, refreshed: Path, agent: Path
) -> None:
    collections = FramesFolder(refreshed / ".refresh" / "frames").collections
    assert [(each["policy"], each["frames"]) for each in collections] == [(str(agent), 400), ("random", 400)]
    held_out = FramesFolder(refreshed / ".refresh" / "held_out").collections[0]
    assert held_out["policy"] == str(agent)
    assert held_out["policy_encoder"] == str(config.encoder)
    assert held_out["seed"] != collections[0]["seed"]


def test_earlier_frames_are_taken_where_they_are_at_hand(
    config: RefreshConfig, old: Path, tmp_path: Path
) -> None:
    """As many as the agent's, in whole episodes."""
    few = replace(config, policy="sticky", frames=200, steps=1)
    refresh_encoder(replace(few, out=tmp_path / "new", earlier=old.parent / "frames"), progress=False)
    merged = FramesFolder(tmp_path / "new" / ".refresh" / "frames")
    taken = [each for each in merged.collections if each["policy"] == "random"]
    assert len(taken) == 1
    assert 200 <= taken[0]["frames"] < 200 + 41


def test_the_same_refreshing_again_is_finished(config: RefreshConfig, refreshed: Path) -> None:
    before = (refreshed / "model.safetensors").stat().st_mtime_ns
    assert refresh_encoder(config, progress=False).path == refreshed
    assert (refreshed / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(
        ValueError, match=r"was begun with steps 60, not 61\. Use the same settings, or another"
    ):
        refresh_encoder(replace(config, steps=61), progress=False)


def test_another_agent_under_the_same_name_is_noticed(config: RefreshConfig, tmp_path: Path) -> None:
    agent, out = tmp_path / "agent.zip", tmp_path / "new"
    shutil.copy(config.policy, agent)
    mine = replace(config, policy=str(agent), out=out)
    found = resolve(mine.encoder)
    (out / ".refresh" / "seen").mkdir(parents=True)
    assert not _begun(mine, found, out / ".refresh")
    assert not _begun(mine, found, out / ".refresh")
    with open(agent, "ab") as file:
        file.write(b"trained on")
    with pytest.raises(ValueError, match="was begun with policy_files"):
        _begun(mine, found, out / ".refresh")


def test_a_mistyped_setting_may_be_mended_until_something_is_collected(
    config: RefreshConfig, tmp_path: Path
) -> None:
    found = resolve(config.encoder)
    assert not _begun(replace(config, policy="agnet.zip"), found, tmp_path)
    assert not _begun(config, found, tmp_path)
    (tmp_path / "seen").mkdir()
    with pytest.raises(ValueError, match=r"was begun with policy .*, not 'agnet\.zip'"):
        _begun(replace(config, policy="agnet.zip"), found, tmp_path)


def test_too_little_kept_is_refused_and_a_tighter_anchor_goes_on_with_the_frames(
    config: RefreshConfig, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    loose = replace(config, policy="sticky", out=out, anchor=100.0, least_r2=1.0)
    with pytest.raises(ValueError, match=r"explain 0\.\d{4} of .*tighter \(--anchor 50\)") as refused:
        refresh_encoder(loose, progress=False)
    assert not (out / "config.json").exists()
    shard = next((out / ".refresh" / "seen").glob("*.parquet"))
    before = shard.stat().st_mtime_ns
    tight = replace(loose, anchor=0.02, least_r2=0.98)
    record = refresh_encoder(tight, progress=False).config.provenance.refreshed
    assert record is not None
    assert record.r2 > float(str(refused.value).split("explain ")[1][:6])
    assert shard.stat().st_mtime_ns == before


def test_an_interrupted_refreshing_goes_on(config: RefreshConfig, tmp_path: Path) -> None:
    out = tmp_path / "new"
    words = [str(config.encoder), ENV, "sticky", "--frames", "400", "--steps", "150", "--workers", "1"]
    command = [sys.executable, "-m", "latent_obs", "refresh", *words, "--out", str(out)]
    # Tests that run in the background of a shell ignore SIGINT, and so would their children.
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heeds)
    wait_for((out / ".refresh" / "trained").exists, 300)
    time.sleep(1)  # in which it loads the encoder or takes some steps
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=300)
    assert process.returncode == 130, told
    assert "the same command continues from there" in told
    assert not (out / "config.json").exists()
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "the agent and its replay buffer stay" in finished.stdout
    assert read_config(out).provenance.steps == 150
    assert "collect" not in finished.stderr  # nothing is collected again


def test_an_encoder_of_somebody_else_is_left_alone(config: RefreshConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds an encoder that latent-obs refresh did not make"):
        refresh_encoder(replace(config, out=save_encoder(tmp_path / "other")), progress=False)


def test_pca_does_not_train_on(config: RefreshConfig, tmp_path: Path) -> None:
    run = Run(config={"objective": "pca"}, data={}, init_from=None)
    encoder = save_encoder(tmp_path / "pca", provenance=Provenance(run=run))
    with pytest.raises(ValueError, match="is PCA, which does not train on"):
        refresh_encoder(replace(config, encoder=encoder, out=tmp_path / "new"), progress=False)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing", ENV, "random"], "There is no encoder 'nothing'"),
        (["pong-v0", ENV, "nobody.zip"], "The policy nobody.zip does not exist"),
        (["pong-v0", ENV, "random", "--anchor", "0"], "anchor must be above 0"),
        (["pong-v0", ENV, "random", "--frames", "0"], "frames must be at least 1"),
        (["pong-v0", ENV, "random", "--least-r2", "98"], "least_r2 must be from 0 to 1"),
    ],
)
def test_what_cannot_be_refreshed_is_one_line(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        assert main(["refresh", *words, "--out", str(tmp_path / "new")]) == 1
    captured = capsys.readouterr()
    assert told in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert not (tmp_path / "new" / ".refresh" / "seen").exists()  # so the same folder takes the right words


def test_the_command_says_what_it_kept_and_gained(
    refreshed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = resolve(refreshed)
    say_refreshed(found)
    record = found.config.provenance.refreshed
    assert record is not None
    told = " ".join(capsys.readouterr().out.split())
    assert f"R² of the old latents, from the new ones {record.r2:.4f}" in told
    assert f"moving R² {record.moving_r2:.3f} (before {record.moving_r2_before:.3f})" in told
    assert f'pass encoder="{refreshed}"' in told


def test_the_map_is_that_of_least_squares() -> None:
    rng = np.random.default_rng(0)
    new, matrix, offset = rng.normal(size=(500, 5)), rng.normal(size=(5, 5)), rng.normal(size=5)
    found = AffineMap.fit(new, np.array([matrix @ each + offset for each in new]))
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-8)
    np.testing.assert_allclose(found.offset, offset, atol=1e-8)


def test_a_map_that_is_folded_in_moves_latents_and_leaves_images(frames: Any) -> None:
    rng = np.random.default_rng(0)
    vae = VAE.from_tensors(TINY_VAE, random_tensors(TINY_VAE))
    matrix = np.eye(32) + 0.05 * rng.normal(size=(32, 32))
    to = AffineMap(matrix, rng.normal(size=32))
    folded, images = fold_map(vae, to), torch.from_numpy(frames(6))
    with torch.no_grad():
        mean, log_variance = vae.encode(images)
        moved, spread = folded.encode(images)
        wanted = np.array([matrix @ each + to.offset for each in mean.double().numpy()])
        np.testing.assert_allclose(moved.numpy(), wanted, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(folded.decode(moved), vae.decode(mean), atol=1e-3)
    np.testing.assert_allclose(
        bounded_exp(spread - log_variance, 0.5).numpy(), np.tile(np.abs(np.diag(matrix)), (6, 1)), rtol=1e-3
    )


def test_the_anchor_counts_in_standard_deviations_of_each_latent(tmp_path: Path, frames: Any) -> None:
    """An inactive dimension, which wrappers do not scale, counts as one of deviation 1."""
    latents = {"mean": [0.0] * 32, "std": [2.0] * 31 + [0.01], "kl": [1.0] * 32}
    write_encoder_folder(
        tmp_path / "old", EncoderConfig(FrameSpec(), TINY_VAE, latents), random_tensors(TINY_VAE)
    )
    images = torch.from_numpy(frames(3))
    mean = load_vae(tmp_path / "old")[0](images)
    moved = mean + torch.linspace(-1, 1, 32)
    scale = torch.tensor([2.0] * 31 + [1.0])
    old = torch.distributions.Normal(mean, 0.2 * scale)
    wanted: Any = old.log_prob(mean) - old.log_prob(moved)  # type: ignore[no-untyped-call]
    found = Anchor(tmp_path / "old", 0.2, "cpu").nll(moved, images)
    torch.testing.assert_close(found, wanted.sum(1), rtol=1e-3, atol=1e-2)


def test_an_anchor_needs_something_to_hold_to() -> None:
    with pytest.raises(ValueError, match="needs an encoder to start from"):
        TrainConfig("frames", anchor=0.1)


def test_the_encoder_is_swapped_under_a_running_agent(
    config: RefreshConfig, refreshed: Path, agent: Path
) -> None:
    """The weights stay, and what the agent would do changes hardly."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    from latent_obs.sb3 import VecLatentObservation

    def play(model: Any) -> Any:
        env = model.get_env()
        env.seed(0)
        return np.concatenate([env.reset(), *(env.step([step % 4])[0] for step in range(100))])[:, 8:]

    def venv(encoder: Any) -> Any:
        return VecFrameStack(VecLatentObservation(DummyVecEnv([lambda: gym.make(ENV)]), encoder), 2)

    model = PPO.load(agent, venv(config.encoder))
    before = [weight.clone() for weight in model.policy.parameters()]
    seen = play(model)
    model.set_env(venv(refreshed))
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    assert 0.98 < correlation(seen, play(model)) < 1
    model.learn(32)
    assert model.num_timesteps == 32


def test_too_few_frames_to_train_on_name_the_option_of_this_command(
    old: Path, agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = lambda config, **_: collect_frames(config, progress=False)  # noqa: E731  # without processes
    monkeypatch.setattr("latent_obs.refresh.collect_frames", here)
    config = RefreshConfig(old, ENV, str(agent), tmp_path / "new", frames=20, steps=1, workers=1)
    with pytest.raises(ValueError, match=r"Of 40 frames \d+ are left to train on, .* 64\. Use more --frames"):
        refresh_encoder(config, progress=False)

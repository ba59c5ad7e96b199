from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors
import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.encoder import load_encoder
from latent_obs.encoders.folder import read_config, read_tensors
from latent_obs.encoders.provenance import Run
from latent_obs.frames import FrameSpec
from latent_obs.training.batch_norm import fold
from latent_obs.training.checkpoint import CHECKPOINT
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import make_fabric
from latent_obs.training.run import HELD_OUT, TrainingRun
from latent_obs.training.train import steps_of, train_vae
from latent_obs.vae import load_vae, reconstruct
from tests.conftest import save_encoder
from tests.data.test_folder import write_shard

# A test that takes a few steps may well end collapsed; that this is announced has its own test.
pytestmark = pytest.mark.filterwarnings("ignore:.*(COLLAPSE|collapsed in training)")


@pytest.fixture
def quick(pong_frames: FramesFolder, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        pong_frames.path,
        tmp_path / "encoder",
        steps=60,
        channels=(8, 8),
        batch_size=32,
        precision="float32",
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RUN = Run(config={}, data={}, init_from=None)


def tensors(folder: Path) -> Any:
    return read_tensors(folder, read_config(folder))


def history(folder: Path) -> list[dict[str, float]]:
    with open(folder / "history.csv") as file:
        return [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def test_training_improves_the_objective_and_writes_a_whole_encoder(quick: TrainConfig) -> None:
    result = train_vae(replace(quick, steps=150), progress=False)
    rows = history(quick.out)
    assert rows[-1]["reconstruction"] < rows[0]["reconstruction"] - 3000
    assert sorted(set(os.listdir(quick.out)) - {".lock"}) == [
        "calibration.png",
        "config.json",
        "history.csv",
        "model.safetensors",
        "reconstructions.png",
    ]
    assert read_config(quick.out) == result
    assert result.provenance["run"]["config"]["steps"] == 150
    assert load_encoder(quick.out)(np.zeros((64, 64, 3), np.uint8)).shape == (32,)


def test_the_statistics_are_those_of_the_latents(quick: TrainConfig, pong_frames: FramesFolder) -> None:
    latents = train_vae(quick, progress=False).latents
    train, _ = pong_frames.split(quick.validation, quick.seed)
    encoded = load_encoder(quick.out, precision="float32", normalize=False)(pong_frames.load(train))
    np.testing.assert_allclose(latents["mean"], encoded.mean(0), atol=1e-4)
    np.testing.assert_allclose(latents["std"], encoded.std(0), atol=1e-4)


def test_the_same_seed_trains_the_same_weights(quick: TrainConfig) -> None:
    first, second = quick, replace(quick, out=quick.out.with_name("second"))
    train_vae(first, progress=False)
    train_vae(second, progress=False)
    a, b = tensors(first.out), tensors(second.out)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_planned_steps_are_those_of_the_run(quick: TrainConfig, one_thread: None) -> None:
    asked: list[tuple[float, int]] = []
    left = [100, 84, 30]

    def steps_left(rate: float, taken: int) -> int:
        asked.append((rate, taken))
        return left[len(asked) - 1]

    begun = time.monotonic()
    result = train_vae(replace(quick, steps=1000), progress=False, steps_left=steps_left)
    assert [taken for _, taken in asked] == [15, 15 + 100 // 4, 15 + 100 // 4 + 84 // 4]
    assert min(rate for rate, _ in asked) > 91 / (time.monotonic() - begun)
    assert result.provenance.steps == steps_of(quick.out) == 61 + 30
    last = history(quick.out)[-1]
    expected = quick.learning_rate * math.sin(math.pi / 2 / 91) ** 2  # half a cosine, a step before its end
    assert last["learning_rate"] == pytest.approx(expected, rel=1e-4)
    assert train_vae(replace(quick, steps=91), progress=False) == result


def test_a_planned_run_that_was_interrupted_goes_on_with_the_steps_of_its_checkpoint(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def interrupt(training: TrainingRun, save: Any = TrainingRun.save_checkpoint) -> None:
        save(training)
        if training.step > 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("latent_obs.training.run.CHECKPOINT_SECONDS", 0)
        patch.setattr(TrainingRun, "save_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train_vae(replace(quick, steps=1000), progress=False, steps_left=lambda *_: 40)
    assert steps_of(quick.out) == 55
    again = replace(quick, steps=55)
    result = train_vae(again, progress=False, steps_left=lambda *_: 9)
    assert result.provenance.steps == 21 + 15 + 9


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_resumes_to_the_same_weights(
    quick: TrainConfig, how: signal.Signals, tmp_path: Path
) -> None:
    config = replace(quick, steps=200)
    straight = replace(config, out=tmp_path / "straight")
    train_vae(straight, progress=False)
    command = f"""
import os
import latent_obs.training.train as t
from latent_obs.training import run
from pathlib import Path

def save(training, save=run.TrainingRun.save_checkpoint):
    save(training)
    if not run.CHECKPOINT_SECONDS:
        run.CHECKPOINT_SECONDS = 60
        os.kill(os.getpid(), {int(how)})

run.CHECKPOINT_SECONDS, run.TrainingRun.save_checkpoint = 0, save
t.train_vae(t.TrainConfig(Path({str(config.data)!r}), Path({str(config.out)!r}), steps=200,
    channels=(8, 8), batch_size=32, precision="float32"), progress=False)
"""
    process = subprocess.Popen([sys.executable, "-c", command], stderr=subprocess.PIPE, text=True)
    process.communicate(timeout=300)
    assert (config.out / CHECKPOINT).exists()
    assert not (config.out / "config.json").exists(), "it finished before it could be interrupted"
    train_vae(config, progress=False)
    a, b = tensors(config.out), tensors(straight.out)
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert (config.out / "history.csv").read_text() == (straight.out / "history.csv").read_text()
    assert not (config.out / CHECKPOINT).exists()


def test_ctrl_c_in_the_last_step_is_heeded(quick: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = TrainingRun._evaluate

    def interrupted(run: TrainingRun) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(run)

    monkeypatch.setattr(TrainingRun, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_vae(replace(quick, evaluate_every=10**6), progress=False)
    assert not (quick.out / "config.json").exists()
    monkeypatch.undo()
    assert train_vae(replace(quick, evaluate_every=10**6), progress=False).provenance.steps == quick.steps


def test_a_finished_encoder_is_kept(quick: TrainConfig) -> None:
    train_vae(quick, progress=False)
    before = (quick.out / "model.safetensors").stat().st_mtime_ns
    train_vae(quick, progress=False)
    assert (quick.out / "model.safetensors").stat().st_mtime_ns == before


def test_another_encoder_is_only_replaced_when_told_to(quick: TrainConfig) -> None:
    """And with it its card, whose figures are not the new one's; a README of somebody's own stays."""
    quick = replace(quick, steps=2)
    train_vae(quick, progress=False)
    card = {"README.md": b"---\nlibrary_name: latent_obs\n---\n", "card.png": b"", "reports.json": b"{}"}
    for name, content in card.items():
        (quick.out / name).write_bytes(content)
    other = replace(quick, seed=1)
    with pytest.raises(ValueError, match="already holds an encoder"):
        train_vae(other, progress=False)
    assert set(card) <= set(os.listdir(quick.out))
    result = train_vae(replace(other, overwrite=True), progress=False)
    assert result.provenance["run"]["config"]["seed"] == 1
    assert not set(card) & set(os.listdir(quick.out))
    (quick.out / "README.md").write_text("My project")
    train_vae(replace(quick, seed=2, overwrite=True), progress=False)
    assert (quick.out / "README.md").read_text() == "My project"


def test_a_checkpoint_left_by_a_kill_after_the_last_write_goes_with_the_next_call(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemError("killed")

    quick = replace(quick, steps=2)
    with monkeypatch.context() as patch:
        patch.setattr("latent_obs.training.train.remove_checkpoint", killed)
        with pytest.raises(SystemError):
            train_vae(quick, progress=False)
    assert (quick.out / CHECKPOINT).exists()
    before = (quick.out / "model.safetensors").stat().st_mtime_ns
    train_vae(quick, progress=False)
    assert not (quick.out / CHECKPOINT).exists()
    assert (quick.out / "model.safetensors").stat().st_mtime_ns == before


def test_a_second_training_in_one_folder_is_refused(
    quick: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_obs.data.storage.PATIENCE", 0.2)
    quick.out.mkdir()
    code = f"""
import sys
from pathlib import Path
from latent_obs.data.storage import locked
with locked(Path({str(quick.out)!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=f"Another process is writing .*process {other.pid} "):
            train_vae(quick, progress=False)
    assert os.listdir(quick.out) == [".lock"]
    train_vae(replace(quick, steps=1), progress=False)


@pytest.mark.parametrize(
    ("amx", "precision", "because"),
    [(True, "bfloat16", "the CPU has AMX"), (False, "float32", "the CPU has no AMX")],
)
def test_auto_takes_bfloat16_on_a_cpu_only_with_amx(
    quick: TrainConfig,
    amx: bool,
    precision: str,
    because: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever else the CPU lists; the log and the provenance say which and why."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    result = train_vae(replace(quick, precision="auto", steps=1))
    assert f"Training in {precision}, because {because}" in capsys.readouterr().err
    assert result.provenance.precision == precision
    assert (result.provenance.precision_because or "").startswith(because)


def test_an_unfinished_run_of_other_settings_is_not_continued(quick: TrainConfig) -> None:
    quick.out.mkdir()
    (quick.out / CHECKPOINT).write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="damaged"):
        train_vae(quick, progress=False)


def test_sse_is_the_plain_squared_error(quick: TrainConfig) -> None:
    """World Models' objective knows no emphasis."""
    train_vae(replace(quick, objective="sse", steps=2), progress=False)
    for row in history(quick.out):
        assert row["reconstruction"] == row["squared_error"]


def test_a_collapsed_encoder_is_announced(quick: TrainConfig) -> None:
    """A KL term that outweighs all else leaves nothing in the latent; the same run without it does not."""
    short = replace(quick, objective="sse", steps=30, batch_size=16, learning_rate=3e-3, kl_warmup=0.0)
    kept = replace(short, beta=0.0, out=quick.out.with_name("kept"))
    result = train_vae(kept, progress=False)
    assert (result.metrics.active_units or 0) > 10
    assert result.metrics.collapsed is False
    collapsing = replace(short, beta=1000.0)
    with pytest.warns(RuntimeWarning, match=r"POSTERIOR COLLAPSE.* Use --objective calibrated, train longer"):
        result = train_vae(collapsing, progress=False)
    assert result.metrics.active_units == 0
    assert result.metrics.collapsed
    assert result.provenance.collapsed
    with pytest.warns(RuntimeWarning, match="collapsed in training"):
        load_encoder(quick.out)


def test_a_collapse_is_not_to_be_cured_by_the_objective_that_it_came_from(quick: TrainConfig) -> None:
    with pytest.warns(RuntimeWarning, match=r"about the frame\. Train longer, lower --beta"):
        train_vae(replace(quick, steps=2, beta=1e6, kl_warmup=0.0), progress=False)


def test_the_metrics_are_those_of_held_out_episodes(quick: TrainConfig, pong_frames: FramesFolder) -> None:
    quick = replace(quick, steps=2)
    metrics = train_vae(quick, progress=False).metrics
    held_out = pong_frames.load(pong_frames.split(quick.validation, quick.seed)[1])
    vae, _ = load_vae(quick.out)
    error = reconstruct(vae, held_out).astype(float) - held_out
    assert metrics.frames == len(held_out)
    assert metrics.psnr == pytest.approx(10 * math.log10(255**2 / np.square(error).mean()), abs=1e-3)


def test_the_calibrated_objective_is_the_entropy_of_its_variance(quick: TrainConfig) -> None:
    """At the variance's optimum the Gaussian costs (log(2 pi variance) + 1) / 2 nats a value."""
    train_vae(replace(quick, foreground_weight=0.0, rarity_weight=0.0, steps=1), progress=False)
    row = history(quick.out)[0]
    levels = row["squared_error"] / 12288 * 255**2
    assert row["reconstruction"] == pytest.approx(6144 * (math.log(2 * math.pi * levels) + 1), rel=1e-4)


def test_beta_warms_up_and_weighs_the_kl(quick: TrainConfig) -> None:
    train_vae(replace(quick, beta=4.0, kl_warmup=0.5, steps=10, evaluate_every=1), progress=False)
    rows = history(quick.out)
    assert [row["beta"] for row in rows] == pytest.approx([4 * min(1, step / 5) for step in range(10)])
    for row in rows:
        assert row["loss"] == pytest.approx(row["reconstruction"] + row["beta"] * row["kl"], rel=1e-5)
        held_out = row["held_out_reconstruction"] + 4 * row["held_out_kl"]
        assert row["held_out_loss"] == pytest.approx(held_out, rel=1e-5)


def test_beta_anneals_by_a_constant_factor(quick: TrainConfig) -> None:
    """From 16 to 1 over four steps it halves at each, and then it stays."""
    annealed = replace(quick, beta=1.0, beta_start=16.0, kl_warmup=0.5, steps=8, evaluate_every=1)
    train_vae(annealed, progress=False)
    rows = history(quick.out)
    betas = {row["step"]: row["beta"] for row in rows}
    assert [betas[step] for step in range(1, 9)] == pytest.approx([16, 8, 4, 2, 1, 1, 1, 1])
    for beta in (0.0, 17.0):
        told = rf"beta_start=16\.0 needs a beta above 0 and below it to fall to, got {beta}\."
        with pytest.raises(ValueError, match=told):
            replace(annealed, beta=beta)


def test_the_warmup_is_a_fraction_of_the_steps() -> None:
    with pytest.raises(ValueError, match=r"kl_warmup is a fraction of the steps, from 0 to 1, got 1000\."):
        TrainConfig("frames", kl_warmup=1000)


def test_free_bits_charge_every_dimension_its_floor(quick: TrainConfig) -> None:
    """Before training every dimension says less than 3 nats, so the 32 of them cost 96."""
    train_vae(replace(quick, free_bits=3.0, kl_warmup=0.0, steps=1), progress=False)
    row = history(quick.out)[0]
    assert row["kl"] < 10
    assert row["loss"] == pytest.approx(row["reconstruction"] + 96, rel=1e-5)


def test_early_stopping_keeps_the_best_state(quick: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 3.0, 4.0, 4.0, 4.0])
    seen: list[Any] = []

    def scripted(run: TrainingRun) -> dict[str, float]:
        seen.append(fold(run.vae).tensors())
        return dict.fromkeys(HELD_OUT, next(losses))

    monkeypatch.setattr(TrainingRun, "_evaluate", scripted)
    result = train_vae(replace(quick, patience=3, evaluate_every=2), progress=False)
    assert (result.provenance["steps"], result.provenance["kept_step"]) == (10, 4)
    kept = tensors(quick.out)
    assert all(np.array_equal(kept[name], seen[1][name]) for name in kept)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nan_stops_training_and_the_state_before_it_is_kept(
    quick: TrainConfig, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, straight = replace(quick, steps=6), replace(quick, steps=6, out=tmp_path / "straight")
    train_vae(straight, progress=False)
    add, compute = TrainingRun._sum_gradients, TrainingRun._terms

    def poisoned_gradient(run: TrainingRun) -> None:
        add(run)
        if run.step == 3:
            run.vae.output_bias.grad[0, 0, 0] = math.inf  # type: ignore[index]

    def poisoned_loss(run: TrainingRun, *arguments: Any) -> Any:
        parts = compute(run, *arguments)
        return replace(parts, weighted_error=parts.weighted_error * math.nan) if run.step == 3 else parts

    with monkeypatch.context() as patch:
        if where == "loss":
            patch.setattr(TrainingRun, "_terms", poisoned_loss)
        else:
            patch.setattr(TrainingRun, "_sum_gradients", poisoned_gradient)
        with pytest.raises(FloatingPointError, match="at step 4; the state before it is kept"):
            train_vae(config, progress=False)
    with safetensors.safe_open(config.out / CHECKPOINT, framework="np") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}
    assert all(np.isfinite(tensor).all() for tensor in saved.values())
    train_vae(config, progress=False)
    a, b = tensors(config.out), tensors(straight.out)
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_fine_tuning_starts_from_the_weights_of_an_encoder(quick: TrainConfig) -> None:
    train_vae(quick, progress=False)
    tuned = replace(quick, init_from=quick.out, out=quick.out.with_name("tuned"), steps=1, learning_rate=1e-9)
    result = train_vae(tuned, progress=False)
    before, after = tensors(quick.out), tensors(tuned.out)
    np.testing.assert_allclose(after["mean.weight"], before["mean.weight"], atol=1e-7)
    assert result.provenance["run"]["init_from"] is not None


def test_an_encoder_that_does_not_fit_is_no_start(quick: TrainConfig, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--channels 4 8$"):
        train_vae(replace(quick, init_from=encoder), progress=False)
    cropped = save_encoder(tmp_path / "cropped", frame_spec=FrameSpec(crop=(34, 194, 0, 160)))
    with pytest.raises(ValueError, match="same crop"):
        train_vae(replace(quick, init_from=cropped, channels=(4, 8)), progress=False)
    with pytest.raises(FileNotFoundError, match="no encoder"):
        train_vae(replace(quick, init_from=tmp_path / "none"), progress=False)
    assert not quick.out.exists()


def test_it_can_be_watched(quick: TrainConfig) -> None:
    """Held-out loss and pictures while it lasts; the same in TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_vae(replace(quick, steps=6, evaluate_every=3, tensorboard=True), progress=False)
    rows = history(quick.out)
    assert [row["step"] for row in rows if not math.isnan(row["held_out_loss"])] == [3, 6]
    picture = cv2.imread(str(quick.out / "reconstructions.png"))
    assert picture is not None
    assert picture.shape == (2 * 132, 12 * 132, 3)
    events = EventAccumulator(str(quick.out / "tensorboard")).Reload()
    scalars = {event.step: event.value for event in events.Scalars("held_out_loss")}
    assert scalars == pytest.approx({3: rows[1]["held_out_loss"], 6: rows[2]["held_out_loss"]}, rel=1e-5)
    assert [event.step for event in events.Images("reconstructions")] == [3, 6]


@pytest.mark.parametrize("how", ["spawn", "torchrun"])
def test_two_processes_take_the_steps_of_one(quick: TrainConfig, how: str) -> None:
    """Batches of 31, so that the shares differ.

    Where a gradient is all but zero Adam steps by the sign of a rounding error: which weights those are
    depends on the CPU. Normalised gradients, of which many are so, have a test in test_batch_norm.py.
    """
    one = replace(quick, steps=12, batch_size=31, evaluate_every=4, batch_norm=False)
    two = replace(one, out=quick.out.with_name("two"), devices=2)
    train_vae(one, progress=False)
    if how == "spawn":
        result = train_vae(two, progress=False)
    else:
        options = f"{two.data} --out {two.out} --steps 12 --batch-size 31 --evaluate-every 4 --channels 8 8"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [
            *torchrun,
            "-m",
            "latent_obs",
            "train",
            *options.split(),
            "--precision",
            "float32",
            "--no-batch-norm",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        result = read_config(two.out)
    assert result.provenance["processes"] == 2
    for a, b in zip(history(one.out), history(two.out), strict=True):
        assert a == pytest.approx(b, rel=1e-4, nan_ok=True)
    weights = [np.concatenate([t.ravel() for t in tensors(c.out).values()]) for c in (one, two)]
    assert np.mean(np.abs(weights[0] - weights[1]) > 1e-4) < 1e-3


def test_processes_read_only_their_shares_from_a_store(tmp_path: Path) -> None:
    """16 shards of noise, 12.3 MB, of which a pass reads nine tenths.

    The first process also opens the folder and draws the samples. The second one reads half of the frames,
    and the ends of the files that it opens.
    """
    rng, frames, counts = np.random.default_rng(0), tmp_path / "frames", dict[int, list[int]]()
    frames.mkdir()
    for shard in range(16):
        noise = rng.integers(0, 256, (63, 64, 64, 3), dtype=np.uint8)
        episodes = np.repeat(np.arange(9) + 9 * shard, 7).tolist()
        write_shard(frames / f"part-000-{shard:05d}.parquet", episodes, noise, env_id="Noise-v0")
    whole = FramesFolder(frames).num_bytes
    options = "--steps 28 --batch-size 32 --channels 4 8 --precision float32 --no-batch-norm"
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        words = ["-m", "tests.counted_store", folder, "train", f"counted://here{frames}", *options.split()]
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split()
        command = [sys.executable, *torchrun, *words, "--out", folder / "encoder"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert not done.returncode, done.stderr
        counts[processes] = [int((folder / str(rank)).read_text()) for rank in range(processes)]
    assert counts[1][0] > 1.5 * whole, "samples and a pass"
    assert 0.4 * whole < counts[2][1] < 0.55 * whole
    assert sum(counts[2]) < 1.1 * counts[1][0]
    weights = [np.concatenate([t.ravel() for t in tensors(tmp_path / n / "encoder").values()]) for n in "12"]
    assert np.mean(np.abs(weights[0] - weights[1]) > 1e-4) < 1e-3


def test_processes_report_their_errors(quick: TrainConfig) -> None:
    """An error in a process that Fabric started arrives as itself."""
    with pytest.raises(FloatingPointError, match="Lower --learning-rate"):
        train_vae(replace(quick, foreground_weight=1e38, devices=2), progress=False)


def test_a_flash_does_not_throw_training_back(quick: TrainConfig) -> None:
    """A batch of noise has a gradient many times the usual one, and moves the weights no more than others."""
    run = TrainingRun(make_fabric(1, 1, "float32"), quick, FramesFolder(quick.data), RUN)
    batches = run.folder.batches_and_foreground(32, run.medians, run.episodes)
    norm_of = {"before": 0.0, "taken": 0.0}
    limit = run._limit_gradient

    def watched(norm: torch.Tensor) -> None:
        norm_of["before"] = float(norm)
        limit(norm)
        norm_of["taken"] = float(torch.stack([g.norm() for g in run._gradients()]).norm())

    run._limit_gradient = watched  # type: ignore[method-assign]
    for _ in range(40):
        run.take_step(*map(torch.from_numpy, next(batches)))
    usual, norms = float(run.gradient_norm), []
    for flash in (False, True):
        frames, foreground = map(torch.from_numpy, next(batches))
        if flash:
            noise = np.random.default_rng(0).integers(0, 256, frames.shape)
            frames = torch.from_numpy(noise.astype(np.uint8))
        run.take_step(frames, foreground)
        norms.append(norm_of["before"])
        assert norm_of["taken"] <= 2 * usual * 1.05
    assert norms[1] > 5 * norms[0], "else the flash would be none"
    assert float(run.gradient_norm) < 1.1 * usual


def test_a_loss_that_is_not_finite_stops_training(quick: TrainConfig) -> None:
    with pytest.raises(FloatingPointError, match="Lower --learning-rate"):
        train_vae(replace(quick, foreground_weight=1e38), progress=False)
    assert not (quick.out / "config.json").exists()


def test_bfloat16_trains_as_well_as_float32(quick: TrainConfig) -> None:
    last = []
    for precision in ("float32", "bfloat16"):
        config = replace(quick, out=quick.out / precision, precision=precision, steps=100)
        train_vae(config, progress=False)
        last.append(history(config.out)[-1]["reconstruction"])
    assert last[0] == pytest.approx(last[1], rel=0.05)


def test_decoding_resembles_the_frame_more_than_another_frame(
    quick: TrainConfig, pong_frames: FramesFolder
) -> None:
    train_vae(replace(quick, steps=300, learning_rate=3e-3), progress=False)
    vae, _ = load_vae(quick.out)
    frames = pong_frames.sample(64)
    decoded = reconstruct(vae, frames).astype(float)
    own = np.square(decoded - frames).mean()
    other = np.square(decoded - np.roll(frames, 1, 0)).mean()
    assert own < other


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"beta": -1.0},
        {"free_bits": -1.0},
        {"validation": 0.0},
        {"validation": 1.0},
        {"channels": ()},
        {"patience": -1},
        {"devices": 0},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        TrainConfig(Path("frames"), **fields)


def test_training_without_frames_names_the_cure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="latent-obs collect"):
        train_vae(TrainConfig(tmp_path / "none", tmp_path / "encoder"), progress=False)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "Muon"}, "optimizer must be adam or muon, got 'Muon'"),
        ({"objective": "SSE"}, "objective must be calibrated or sse, got 'SSE'"),
        ({"precision": "bf16"}, "precision must be auto or float32 or bfloat16, got 'bf16'"),
        ({"seed": -1}, "seed must be from 0 to 1,000,000,000,000, got -1"),
        ({"seed": 2**63}, "seed must be from 0 to 1,000,000,000,000, got 9223372036854775808"),
    ],
)
def test_an_option_that_is_none_of_its_choices_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig("frames", **options)


def test_the_largest_seed_trains(quick: TrainConfig, tmp_path: Path) -> None:
    train_vae(replace(quick, steps=1, seed=10**12, out=tmp_path / "large"), progress=False)

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latent_obs.cli import main
from latent_obs.data.folder import FramesFolder


def test_help_lists_every_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latent_obs", "--help"], capture_output=True, text=True, check=True
    )
    for name in (
        "collect",
        "train",
        "evaluate",
        "export",
        "encode",
        "frames",
        "push",
        "pull",
        "list",
        "demo",
    ):
        assert name in run.stdout


def test_help_lists_what_can_be_done_with_frames() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latent_obs", "frames", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("info", "check", "show", "merge", "split", "import-minari", "export-minari"):
        assert name in run.stdout


@pytest.mark.filterwarnings("ignore:POSTERIOR COLLAPSE", "ignore:.*collapsed in training")
def test_collect_train_evaluate_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of the README, one after the other, on real Pong."""
    frames, encoder = str(tmp_path / "frames"), str(tmp_path / "encoder")
    collect = ["collect", "ALE/Pong-v5", "--frames", "1200", "--workers", "2", "--out", frames]
    assert main([*collect, "--env-kwargs", '{"max_episode_steps": 200}', "--policy", "sticky"]) == 0
    assert "1,200 frames" in capsys.readouterr().out
    assert FramesFolder(frames).source.env_id == "ALE/Pong-v5"
    train = ["train", frames, "--out", encoder, "--steps", "20", "--channels", "4", "8"]
    assert main(train) == 0
    assert "negative_elbo" in capsys.readouterr().out
    assert json.loads((tmp_path / "encoder" / "config.json").read_text())["vae"]["channels"] == [4, 8]
    card = tmp_path / "report"
    assert main(["evaluate", encoder, "--frames", frames, "--out", str(card)]) == 0
    told = capsys.readouterr().out
    assert "moving-object R²" in told
    assert "BEATEN BY PCA" in told, "after 20 steps anything is"
    assert str(card / "card.html") in told
    assert {path.name for path in card.iterdir()} == {"card.html", "card.json"}
    assert main(["list", "--folder", str(tmp_path)]) == 0
    listed = capsys.readouterr().out
    assert "pong-v0" in listed
    assert encoder in listed, "a path is there to be copied, however narrow the terminal"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "ALE/Nonsense-v5"], "cannot make the environment"),
        (["collect", "ALE/Pong-v5", "--frames", "0"], "frames must be at least 1"),
        (["collect", "ALE/Pong-v5", "--policy", "clever"], "Unknown policy"),
        (["train", "nowhere"], "There is no frames folder nowhere"),
        (["evaluate", "nowhere"], "There is no encoder 'nowhere'"),
        (["frames", "info", "nowhere"], "There is no frames folder nowhere"),
        (["frames", "check", "nowhere"], "There is no frames folder nowhere"),
        (["frames", "merge", "nowhere", "--out", "x"], "at least two frames folders"),
        (["encode", "nowhere", "pong-v0"], "There is no frames folder nowhere"),
        (["list", "--folder", "nowhere"], "There is no folder nowhere"),
        (["demo", "--env", "CartPole-v1"], "AddRenderObservation"),
    ],
)
def test_a_mistake_brings_one_line_and_no_traceback(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "latent_obs", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode in (1, 2)
    assert message in run.stderr + run.stdout
    assert "Traceback" not in run.stderr
    assert list(tmp_path.rglob("*.parquet")) == []


def test_env_kwargs_that_are_no_json_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["collect", "ALE/Pong-v5", "--env-kwargs", "frameskip=4"])
    assert stopped.value.code == 2


def test_a_read_only_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    command = [
        sys.executable,
        "-m",
        "latent_obs",
        "collect",
        "ALE/Pong-v5",
        "--out",
        str(tmp_path / "file" / "x"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "error:" in run.stderr
    assert "Traceback" not in run.stderr

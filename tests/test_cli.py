from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from latent_obs.cli import main
from latent_obs.collecting.collect import collect_frames
from latent_obs.collecting.config import CollectConfig
from latent_obs.data.folder import FramesFolder
from latent_obs.data.shards import METADATA_KEY
from latent_obs.frames import FrameSource
from tests.conftest import save_encoder


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


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"latent_obs {metadata.version('latent_obs')}\n"


def test_help_lists_what_can_be_done_with_frames() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latent_obs", "frames", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("info", "check", "show", "merge", "split", "minari", "export-lerobot", "push"):
        assert name in run.stdout


def test_help_names_what_an_option_takes_and_not_none() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "latent_obs", "fit", "--help"], capture_output=True, text=True, check=True
    )
    assert "--out PATH" in run.stdout
    assert "--crop {INT INT INT INT}" in run.stdout
    assert "{None}" not in run.stdout


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


ODD = "x[/a] [red]:smile:"  # rich would fail on the first, drop the second and draw the third


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with frames of an oddly named environment, and an encoder with odd metrics and card."""
    root = tmp_path_factory.mktemp("odd")
    collect_frames(CollectConfig("tests.quick_env:Quick-v0", root / "plain", frames=600, workers=1))
    (root / ODD).mkdir(parents=True)
    for path in (root / "plain").glob("*.parquet"):
        table = pq.read_table(path)
        about = json.loads(pq.read_metadata(path).metadata[METADATA_KEY])
        about["env_id"] = about["source"]["env_id"] = ODD
        changed = table.replace_schema_metadata({METADATA_KEY: json.dumps(about)})
        pq.write_table(changed, root / ODD / path.name, row_group_size=512)
    encoder = save_encoder(root / f"encoder {ODD}", source=FrameSource(ODD))
    (encoder / "README.md").write_text(f"---\na: b\n---\nThe card of {ODD}.")
    broken = save_encoder(root / "broken [/b]")
    config = json.loads((broken / "config.json").read_text())
    config["metrics"] = {"moving_r2": "good [/a]", "active_units": "[red]", "probe_f1": [1]}
    (broken / "config.json").write_text(json.dumps(config))
    return root


@pytest.mark.filterwarnings("ignore:.*was trained on", "ignore:POSTERIOR COLLAPSE", "ignore:.*collapsed")
@pytest.mark.parametrize(
    "words",
    [
        "collect tests.quick_env:Quick-v0 --workers 1 --frames 50 --out {out}",
        "frames info {frames} --shards",
        "frames check {frames}",
        "frames check {damaged}",
        "frames show {frames} --out {out}.png",
        "frames merge {frames} {plain} --out {out}",
        "frames split {frames} --out {out}",
        "encode {frames} {encoder} --out {out}",
        "visualize {encoder} --frames {frames} --out {out}.html",
        "export {encoder} --out {out}",
        "train {frames} --steps 2 --channels 4 8 --out {out}",
        "evaluate {encoder} --frames {frames} --out {out}",
        "list --folder {root}",
        "card {encoder}",
    ],
)
def test_no_command_reads_names_as_markup(
    words: str, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / f"damaged {ODD}"
    damaged.mkdir(parents=True)
    (damaged / "part-000-00000[b].parquet").write_bytes(b"nothing")
    places = {"root": odd, "plain": odd / "plain", "frames": odd / ODD, "encoder": odd / f"encoder {ODD}"}
    places |= {"out": tmp_path / f"out {ODD}", "damaged": damaged}
    status = main([word.format(**places) for word in words.split()])
    told = capsys.readouterr()
    assert status == (1 if "damaged" in words else 0), told.err
    wrapped = " ".join((told.out + told.err).replace("│", " ").split())
    assert "x[/a] [red]:smile:" in wrapped


def test_the_card_in_a_terminal_keeps_brackets(odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["card", str(odd / f"encoder {ODD}")]) == 0
    assert ODD in screen.getvalue()


def test_a_name_that_the_terminal_cannot_show_is_no_error(tmp_path: Path) -> None:
    out = tmp_path / "x²"
    command = [sys.executable, "-m", "latent_obs", "collect", "tests.quick_env:Quick-v0", "--frames", "20"]
    run = subprocess.run(
        [*command, "--workers", "1", "--out", str(out)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert rb"x\xb2: 20 frames" in run.stdout


def test_an_error_that_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("colour")

    monkeypatch.setattr("latent_obs.evaluation.markdown.read_card", broken)
    assert main(["card", "pong-v0"]) == 1
    told = capsys.readouterr().err
    assert re.search(r"error: KeyError: 'colour' \(in .*test_cli.py, line \d+\)", told)
    assert "Traceback" not in told


@pytest.mark.parametrize("command", ["fit", "collect"])
def test_an_error_in_the_environment_names_it_and_the_line_and_is_not_called_our_bug(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ["--env-kwargs", '{"break_after": 2}', "--out", str(out)]
    assert main([command, "tests.quick_env:Quick-v0", *options]) == 1
    told = capsys.readouterr().err
    lines = (Path(__file__).parent / "quick_env.py").read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if "the cable came off" in text)
    assert (
        f"RuntimeError: the cable came off (in {Path(__file__).parent / 'quick_env.py'}, line {line})" in told
    )
    assert "tests.quick_env:Quick-v0" in told
    assert "This is a bug" not in told


def test_code_that_exits_in_the_midst_of_a_command_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("latent_obs.evaluation.markdown.read_card", lambda _: sys.exit(0))
    assert main(["card", "pong-v0"]) == 1
    assert "called sys.exit(0) before" in capsys.readouterr().err


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


def test_a_coloured_warning_is_plain_where_it_goes_into_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Gymnasium says so of old versions, in yellow, before it refuses this one."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["fit", "Taxi-v3", "--render"]) == 1
    told = capsys.readouterr().err
    assert "WARN: The environment Taxi-v3 is out of date" in told
    assert "\x1b" not in told


def test_ctrl_c_in_code_that_exec_ran_has_the_same_exit_status(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        """
import sys
from latent_obs import cli

cli._run = lambda *_: exec("raise KeyboardInterrupt")
sys.exit(cli.main(["list"]))
"""
    )
    command = [sys.executable, "-m", "interrupted"]
    assert subprocess.run(command, cwd=tmp_path, stderr=subprocess.DEVNULL).returncode == 130


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--help"], ["card", "pong-v0"]])
def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word(command: list[str], unbuffered: str) -> None:
    """As ``| head`` does when it has seen enough."""
    reader, writer = os.pipe()
    os.close(reader)
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    line = [sys.executable, "-m", "latent_obs", *command]
    try:
        run = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE, env=env, check=False)
    finally:
        os.close(writer)
    assert (run.returncode, run.stderr) == (141, b"")


def test_a_deleted_working_directory_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["card", "pong-v0"]) == 0
    assert "pong-v0" in capsys.readouterr().out

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from latent_obs.extras import EXTRAS, install_line, needs

ROOT = Path(__file__).parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text()


HIDE = """
import sys
from importlib.machinery import PathFinder
class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def run_without(packages: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process that finds none of these packages, as if they were not installed."""
    command = [sys.executable, "-c", f"HIDDEN = {packages}\n{HIDE}\n{code}"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@functools.cache
def not_in_base() -> set[str]:
    """Every importable package here that neither the base dependencies nor theirs bring."""
    match = re.search(r"^dependencies = \[.*?\n(.*?)^\]", PYPROJECT, re.S | re.M)
    assert match is not None
    todo = [Requirement(each) for each in re.findall(r'"(.+?)"', match[1])]
    base = {"latent-obs"}
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if name in base or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        base.add(name)
        todo += [Requirement(each) for each in metadata.requires(name) or []]
    return {
        package
        for package, owners in metadata.packages_distributions().items()
        if not base & {canonicalize_name(owner) for owner in owners} and package.isidentifier()
    }


ACT = """
import gymnasium as gym, numpy as np, latent_obs
env = gym.make("latent_obs:LatentObs/Pong-v5", stack=2)
print(env.reset(seed=0)[0].shape, env.step(0)[0].shape)
envs = gym.make_vec("latent_obs:LatentObs/Pong-v5", num_envs=2)
print(envs.reset(seed=0)[0].shape, envs.step(envs.action_space.sample())[0].shape)
print(latent_obs.LatentDriftMonitor(env).reset()[0].shape)
print(latent_obs.load_encoder("car_racing-v0")(np.zeros((64, 64, 3), np.uint8)).shape)
"""


def test_acting_needs_the_base_dependencies_alone() -> None:
    assert {"torch", "pyarrow", "matplotlib", "lightning_fabric", "pytest"} <= not_in_base()
    assert not {"numpy", "openvino", "gymnasium", "cv2", "tyro"} & not_in_base()
    run = run_without(not_in_base(), ACT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["(64,) (64,)", "(2, 32) (2, 32)", "(64,)", "(32,)"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--help", "collect"),
        ("frames --help", "export-minari"),
        ("train --help", "--latent-dim"),
        ("list", "space_invaders-v0"),
        ("card pong-v0", "moving-object R²"),
    ],
)
def test_these_commands_need_the_base_dependencies_alone(arguments: str, expected: str) -> None:
    code = f"from latent_obs.cli import main; sys.exit(main({arguments.split()}))"
    run = run_without(not_in_base(), code)
    assert run.returncode == 0, run.stderr
    assert expected in run.stdout


@pytest.mark.parametrize(
    ("arguments", "package", "extra"),
    [
        ("collect ALE/Pong-v5", "pyarrow", "make"),
        ("train frames", "(torch|pyarrow)", "make"),
        ("evaluate pong-v0", "(torch|pyarrow)", "make"),
        ("visualize pong-v0", "(torch|pyarrow)", "make"),
        ("encode frames pong-v0", "pyarrow", "make"),
        ("recipe build pong-v0", "(torch|pyarrow)", "make"),
        ("frames check frames", "pyarrow", "make"),
        ("frames import-minari pong/random-v0", "pyarrow", "make"),
        ("frames export-lerobot frames", "pyarrow", "make"),
        ("frames push frames user/pong", "huggingface_hub", "hub"),
        ("export pong-v0", "torch", "onnx"),
        ("demo", "pyarrow", "make,sb3"),
        ("pull user/pong", "huggingface_hub", "hub"),
        ("push pong-v0 user/pong", "huggingface_hub", "hub"),
    ],
)
def test_a_command_that_lacks_a_package_names_the_line_to_type(
    arguments: str, package: str, extra: str
) -> None:
    code = f"from latent_obs.cli import main; sys.exit(main({arguments.split()}))"
    run = run_without(not_in_base(), code)
    assert run.returncode == 1
    line = (
        rf"error: .+ needs {package}, which is not installed. Install it with: .*pip install .*\[{extra}\]'"
    )
    assert re.fullmatch(line, run.stderr.strip()), run.stderr


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("from latent_obs import train_vae", "torch", "make"),
        ("from latent_obs import FramesFolder", "pyarrow", "make"),
        ("import latent_obs.vae", "torch", "make"),
        ("import latent_obs.sb3", "(torch|stable_baselines3)", "sb3"),
        ("import latent_obs.torchrl", "torch", "torchrl"),
        ("import latent_obs.rllib", "ray", "rllib"),
        ("import latent_obs.pettingzoo", "pettingzoo", "pettingzoo"),
    ],
)
def test_an_import_that_lacks_a_package_names_the_line_to_type(code: str, package: str, extra: str) -> None:
    run = run_without(not_in_base(), code)
    assert run.returncode == 1
    last = run.stderr.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"ImportError: .+ needs {package}, which is not installed. Install it with: .*\[{extra}\]'", last
    )


def test_every_extra_that_is_named_exists() -> None:
    match = re.search(r"^\[project.optional-dependencies\].*?\n(.*?)^\[", PYPROJECT, re.S | re.M)
    assert match is not None
    known = set(re.findall(r"^(\w+) = \[", match[1], re.M))
    assert {*EXTRAS.values(), "make", "rllib"} <= known


def test_a_fault_inside_an_installed_package_is_not_blamed_on_an_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_package"), needs("Training"):
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (None, "'latent_obs[hub]'"),
        ({"url": "file:///home/me/my%20clone", "dir_info": {}}, "'/home/me/my clone[hub]'"),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, "--editable '/clone[hub]'"),
        (
            {"url": "https://git.example/latent_obs", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "'latent_obs[hub] @ git+https://git.example/latent_obs'",
        ),
        (
            {"url": "file:///latent_obs-0.1.0-py3-none-any.whl", "archive_info": {}},
            "'latent_obs[hub] @ file:///latent_obs-0.1.0-py3-none-any.whl'",
        ),
    ],
)
def test_the_line_installs_from_where_the_package_came(
    record: object, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "latent_obs-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: latent_obs\nVersion: 9.9\n")
    if record is not None:
        (about / "direct_url.json").write_text(json.dumps(record))
    monkeypatch.syspath_prepend(tmp_path)
    assert install_line("hub").endswith(f"pip install {expected}")

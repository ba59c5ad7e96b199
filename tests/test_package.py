from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import latent_obs

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch",
    "openvino",
    "onnx",
    "pyarrow",
    "ray",
    "stable_baselines3",
    "matplotlib",
    "ale_py",
    "cv2",
    "tyro",
    "huggingface_hub",
}


def test_import_is_light() -> None:
    code = "import latent_obs, sys; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(out.stdout.split())


def test_every_public_name_exists_and_is_documented() -> None:
    for name in latent_obs.__all__:
        assert getattr(latent_obs, name).__doc__, name
    assert set(latent_obs.__all__) <= set(dir(latent_obs))
    assert not hasattr(latent_obs, "no_such_name")


def test_the_version_is_the_same_everywhere() -> None:
    version = latent_obs.__version__
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(version)})\]", (ROOT / "CHANGELOG.md").read_text(), re.M)


def test_the_changelog_has_each_heading_once() -> None:
    """A doubled heading hides half of what changed from whoever reads the first one."""
    unreleased = (ROOT / "CHANGELOG.md").read_text().partition("## [Unreleased]")[2].partition("\n## ")[0]
    assert re.findall("^### (.*)$", unreleased, re.M) == ["Added", "Changed", "Fixed", "Removed"]
    assert len(unreleased.splitlines()) < 120

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import save_encoder

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block, in order, as a newcomer would type them; only the million steps are fewer."""
    monkeypatch.chdir(tmp_path)
    save_encoder(tmp_path / "encoder")
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    names: dict[str, Any] = {}
    for block in blocks:
        assert "wrapper_kwargs" not in block or "1_000_000" in block
        exec(block.replace("n_envs=8", "n_envs=2").replace("1_000_000", "1"), names)
    assert names["obs"].shape == (32,)
    assert names["obs"].dtype == np.float32


def test_the_readmes_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target

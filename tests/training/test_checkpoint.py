from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from latent_obs.training.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint

RUN = {"config": {"seed": 0}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "b": torch.tensor(2)}
    write_checkpoint(tmp_path, RUN, tensors, {"step": 7, "best_loss": math.inf})
    found = read_checkpoint(tmp_path, RUN, overwrite=False)
    assert found is not None
    assert found[1] == {"step": 7, "best_loss": math.inf}
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor)


def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RUN, {"a": torch.ones(2)}, {"step": 1})
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FloatingPointError, match="a holds values that are not finite"):
        write_checkpoint(tmp_path, RUN, {"a": torch.tensor([1.0, math.nan])}, {"step": 2})
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_belongs_to_one_run(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, RUN, overwrite=False) is None
    write_checkpoint(tmp_path, RUN, {"a": torch.ones(2)}, {"step": 1})
    with pytest.raises(ValueError, match="unfinished run with other settings"):
        read_checkpoint(tmp_path, {"config": {"seed": 1}}, overwrite=False)
    assert read_checkpoint(tmp_path, {"config": {"seed": 1}}, overwrite=True) is None


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(damage)
    with pytest.raises(ValueError, match="delete it to start again"):
        read_checkpoint(tmp_path, RUN, overwrite=False)

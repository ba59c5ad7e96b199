from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from latent_obs.encoders.provenance import Run
from latent_obs.training.checkpoint import (
    CHECKPOINT,
    Progress,
    read_checkpoint,
    remove_checkpoint,
    write_checkpoint,
)

RUN = Run(config={"seed": 0}, data={"frames": 7}, init_from=None)
OTHER = replace(RUN, config={"seed": 1})
ROW: dict[str, float | None] = {"step": 7, "loss": 0.5, "held_out_loss": None}
PROGRESS = Progress(step=7, seconds=1.5, best_loss=None, best_step=0, waited=0, history=[ROW])


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last), "b": torch.tensor(2)}
    write_checkpoint(tmp_path, RUN, tensors, PROGRESS)
    found = read_checkpoint(tmp_path, RUN, overwrite=False)
    assert found is not None
    assert (found[1].step, found[1].seconds, found[1].best_loss, found[1].history) == (7, 1.5, None, [ROW])
    for name, tensor in tensors.items():
        assert torch.equal(found[0][name], tensor)


def test_a_bit_that_flipped_is_noticed(tmp_path: Path) -> None:
    """In a tensor, whose numbers may all be right, and in what is said of the run."""
    write_checkpoint(tmp_path, RUN, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(2)}, PROGRESS)
    data = (tmp_path / CHECKPOINT).read_bytes()
    step = data.index(b'\\"step\\": 7') + 10
    for place in (len(data) - 1, step):
        flipped = bytes([data[place] ^ 1])
        (tmp_path / CHECKPOINT).write_bytes(data[:place] + flipped + data[place + 1 :])
        with pytest.raises(ValueError, match="something else than was written"):
            read_checkpoint(tmp_path, RUN, overwrite=False)


def test_a_pipe_under_the_name_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """Opening it would wait for ever."""
    os.mkfifo(tmp_path / CHECKPOINT)
    with pytest.raises(ValueError, match=r"not a regular file.* delete it to start again"):
        read_checkpoint(tmp_path, RUN, overwrite=False)


def test_a_state_that_is_not_finite_never_replaces_a_good_one(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RUN, {"a": torch.ones(2)}, PROGRESS)
    before = (tmp_path / CHECKPOINT).read_bytes()
    with pytest.raises(FloatingPointError, match="a holds values that are not finite"):
        write_checkpoint(tmp_path, RUN, {"a": torch.tensor([1.0, math.nan])}, PROGRESS)
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_checkpoint_belongs_to_one_run(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path, RUN, overwrite=False) is None
    write_checkpoint(tmp_path, RUN, {"a": torch.ones(2)}, PROGRESS)
    with pytest.raises(ValueError, match="unfinished run with other settings"):
        read_checkpoint(tmp_path, OTHER, overwrite=False)
    assert read_checkpoint(tmp_path, OTHER, overwrite=True) is None


def test_a_checkpoint_is_removed_with_its_own_run_only(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RUN, {"a": torch.ones(2)}, PROGRESS)
    remove_checkpoint(tmp_path, OTHER)
    assert (tmp_path / CHECKPOINT).exists()
    remove_checkpoint(tmp_path, RUN)
    assert not (tmp_path / CHECKPOINT).exists()
    remove_checkpoint(tmp_path, RUN)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(damage)
    with pytest.raises(ValueError, match="delete it to start again"):
        read_checkpoint(tmp_path, RUN, overwrite=False)


@pytest.mark.parametrize(
    ("run", "progress", "message"),
    [
        (None, PROGRESS.to_json(), "run is missing"),
        (RUN.to_json(), None, "progress is missing"),
        ({"config": {}}, PROGRESS.to_json(), "run.data is missing"),
        (RUN.to_json(), {"step": 7}, "progress.seconds is missing"),
        (RUN.to_json(), {**PROGRESS.to_json(), "step": "7"}, "progress.step must be an integer, got '7'"),
        (RUN.to_json(), {**PROGRESS.to_json(), "best_loss": math.inf}, "best_loss must be a finite number"),
        (
            RUN.to_json(),
            {**PROGRESS.to_json(), "history": [{"loss": []}]},
            r"history\[0\].loss must be a number",
        ),
    ],
)
def test_a_field_that_is_missing_or_mistyped_is_named(
    tmp_path: Path, run: object, progress: object, message: str
) -> None:
    fields = {"run": run, "progress": progress}
    metadata = {name: json.dumps(value) for name, value in fields.items() if value is not None}
    (tmp_path / CHECKPOINT).write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
    with pytest.raises(ValueError, match=f"damaged .*{message}.* delete it to start again"):
        read_checkpoint(tmp_path, RUN, overwrite=False)

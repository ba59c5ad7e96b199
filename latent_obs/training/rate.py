"""How fast this machine trains."""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import replace
from typing import Any

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.provenance import Run
from latent_obs.progress import progress_bar
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import choose_precision, make_fabric
from latent_obs.training.run import TrainingRun

# The first steps are slower: libraries choose their kernels in them.
WARM, TIMED = 5, 15


class _TimedRun(TrainingRun):
    """A run that notes when each of its steps ended."""

    ends: list[float]

    def take_step(self, *arguments: Any, **options: Any) -> Any:
        row = super().take_step(*arguments, **options)
        self.ends = [*getattr(self, "ends", []), time.monotonic()]
        return row


def steps_per_second(config: TrainConfig, frames: FramesFolder) -> float:
    """Measure at which rate a run takes steps, by some that are thrown away.

    Args:
        config: The run; its ``steps`` do not matter.
        frames: The frames folder.

    Raises:
        ValueError: If the frames cannot be trained on.
    """
    scratch = config.out.with_name("measured")
    scratch.mkdir(parents=True, exist_ok=True)
    trial = replace(config, out=scratch, steps=WARM + TIMED)
    fabric = make_fabric(1, 1, choose_precision(config.precision)[0])
    run = _TimedRun(fabric, trial, frames, Run(config={}, data={}, init_from=None))
    with progress_bar("", 1, "", False) as bar:
        run.train(bar, threading.Event())
    shutil.rmtree(scratch)
    return TIMED / (run.ends[-1] - run.ends[WARM - 1])

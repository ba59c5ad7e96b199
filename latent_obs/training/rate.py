"""How fast this machine trains."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace

import torch

from latent_obs.data.folder import FramesFolder
from latent_obs.encoders.provenance import Run
from latent_obs.training.config import TrainConfig
from latent_obs.training.distributed import choose_precision, make_fabric
from latent_obs.training.run import TrainingRun

# The first steps are slower: libraries choose their kernels in them.
WARM, TIMED = 5, 15


class _TimedRun(TrainingRun):
    """A run whose steps are only timed."""

    def rate(self) -> float:
        batches, begun = self._batches(), 0.0
        for step in range(WARM + TIMED):
            if step == WARM:
                begun = time.monotonic()
            self.take_step(*(torch.from_numpy(array).to(self.fabric.device) for array in next(batches)))
        return TIMED / (time.monotonic() - begun)


def steps_per_second(config: TrainConfig, frames: FramesFolder) -> float:
    """Measure at which rate a run takes steps, by some that are thrown away.

    Args:
        config: The run; its ``steps`` and ``evaluate_every`` do not matter.
        frames: The frames folder.

    Raises:
        ValueError: If the frames cannot be trained on.
    """
    scratch = config.out.with_name("measured")
    scratch.mkdir(parents=True, exist_ok=True)
    trial = replace(config, out=scratch, steps=WARM + TIMED, evaluate_every=1)
    fabric = make_fabric(1, 1, choose_precision(config.precision)[0])
    rate = _TimedRun(fabric, trial, frames, Run(config={}, data={}, init_from=None)).rate()
    shutil.rmtree(scratch)
    return rate

"""What people watch while a run trains: history.csv, a picture of reconstructions, TensorBoard."""

from __future__ import annotations

import csv
import importlib.util
import io
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from latent_obs.extras import missing
from latent_obs.files import write_atomically
from latent_obs.frames import Frames

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, float]
PICTURE = "reconstructions.png"


class Monitor:
    """Keeps the history of a run and writes what people look at while it lasts.

    Args:
        out: Encoder folder of the run.
        tensorboard: Write event files to ``out/tensorboard`` as well.
        history: Rows that the run logged before it was interrupted.

    Attributes:
        history: All rows so far, in order.

    Raises:
        ImportError: If TensorBoard is wanted and not installed.
    """

    def __init__(self, out: Path, tensorboard: bool, history: list[Row]) -> None:
        self.out, self.history = out, history
        self._writer: SummaryWriter | None = None
        if tensorboard:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            # Events after the checkpoint that is continued from will be written again.
            purge = int(history[-1]["step"]) + 1 if history else None
            self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=purge)

    def log(self, row: Row) -> None:
        """Add a row to the history; a value that was not measured is NaN."""
        self.history.append(row)
        if self._writer is not None:
            for name, value in row.items():
                if name != "step" and value == value:
                    self._writer.add_scalar(name, value, int(row["step"]))

    def show(self, frames: Frames, decoded: Frames, step: int) -> None:
        """Rewrite ``reconstructions.png``, frames above their reconstructions, and ``history.csv``.

        Args:
            frames: ``uint8``, shape (N, 64, 64, 3).
            decoded: Their reconstructions, of the same type and shape.
            step: Optimiser steps taken.
        """
        tiles = np.pad(np.stack([frames, decoded]), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
        sheet = tiles.swapaxes(1, 2).reshape(2 * 66, -1, 3)  # (2, N, 66, 66, 3) to rows of N tiles
        large = cv2.resize(sheet, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
        done, png = cv2.imencode(".png", cv2.cvtColor(large, cv2.COLOR_RGB2BGR))
        assert done
        write_atomically(self.out / PICTURE, png.tobytes())
        if self.history:
            self.write_history()
        if self._writer is not None:
            self._writer.add_image("reconstructions", sheet, step, dataformats="HWC")

    def write_history(self) -> None:
        """Write ``history.csv``."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.history)
        write_atomically(self.out / "history.csv", out.getvalue().encode())

    def close(self) -> None:
        """Flush what TensorBoard still holds."""
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Refuse a run that wants TensorBoard before it trains, if TensorBoard is missing.

    Raises:
        ImportError: If it is not installed.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise missing("Writing TensorBoard files", "tensorboard")

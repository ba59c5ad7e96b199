from typing import Any

import numpy as np
import numpy.typing as npt

def prepare(
    channels: tuple[int, ...],
    weight: npt.NDArray[np.int8],
    bias: npt.NDArray[np.int32],
    multiplier: npt.NDArray[np.float32],
    head: npt.NDArray[np.int16],
    scale: npt.NDArray[np.float64],
    offset: npt.NDArray[np.float64],
    background: npt.NDArray[np.uint8],
    path: str,
    /,
) -> Any: ...
def encode(network: Any, frames: npt.NDArray[np.uint8], latents: npt.NDArray[np.float32], /) -> None: ...
def paths() -> list[str]: ...

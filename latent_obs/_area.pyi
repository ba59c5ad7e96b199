import numpy as np
import numpy.typing as npt

def resize(src: npt.NDArray[np.uint8], dst: npt.NDArray[np.uint8], /) -> None: ...

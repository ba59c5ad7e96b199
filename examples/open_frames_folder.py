"""Read a frames folder with pandas, DuckDB and Hugging Face datasets; latent_obs is not needed for that.

$ latent-obs collect ALE/Pong-v5 --frames 2000 --workers 1 --out frames
$ pip install pandas duckdb datasets     # the first command needs the extra `make`
$ python examples/open_frames_folder.py frames     # about 5 s
pandas: 2,000 rows; the frame at step 100 has 47 colours
DuckDB: 3 episodes, the longest 902 steps
datasets: 2,000 rows, batches of (32, 64, 64, 3) uint8
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import tyro


@dataclass(frozen=True)
class Args:
    """Read a frames folder with other people's tools."""

    folder: Path
    """frames folder"""


def to_frames(column: Any) -> Any:
    """Turn the bytes of frames into an array (N, 64, 64, 3)."""
    return np.frombuffer(b"".join(column), np.uint8).reshape(-1, 64, 64, 3)


def main(args: Args) -> None:
    files = sorted(str(path) for path in args.folder.glob("*.parquet"))

    table = pd.read_parquet(args.folder)
    frame = to_frames(table.loc[table["step"] == 100, "frame"])[0]
    colours = len(np.unique(frame.reshape(-1, 3), axis=0))
    print(f"pandas: {len(table):,} rows; the frame at step 100 has {colours} colours")

    # DuckDB reads only the columns that a query names, so this costs a few kilobytes.
    lengths = "SELECT max(step) AS length FROM read_parquet(?) GROUP BY episode"
    query = f"SELECT count(*), max(length) FROM ({lengths})"
    found = duckdb.execute(query, [files]).fetchone()
    assert found is not None
    print(f"DuckDB: {found[0]} episodes, the longest {found[1]} steps")

    data = datasets.load_dataset("parquet", data_files=files, split="train")
    loader = data.shuffle(seed=0).iter(batch_size=32)
    batch = to_frames(next(loader)["frame"])
    print(f"datasets: {len(data):,} rows, batches of {batch.shape} {batch.dtype}")


if __name__ == "__main__":
    main(tyro.cli(Args, config=(tyro.conf.PositionalRequiredArgs,)))

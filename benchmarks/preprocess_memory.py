"""Peak memory of `clsd preprocess`, for a log and for one four times as long.

Each measurement is a new process. Its peak resident memory includes the memory-mapped files of rows between the stages.

    python benchmarks/preprocess_memory.py [--quick] [--json FILE]
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import tempfile
import warnings
from pathlib import Path

from common import Goal, arguments, finish, show
from preprocess import make_config

from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset


def peak(log: Path, out: Path) -> float:
    """Mebibytes, of a process that does nothing else."""
    warnings.filterwarnings("ignore")
    preprocess(make_config(log), out)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    rows = 200_000 if options.quick else 5_000_000
    result: dict[str, list[float]] = {}
    for size in (rows, 4 * rows):
        with tempfile.TemporaryDirectory() as name:
            made = SyntheticSettings(rows=size, extra_categorical=15, extra_numeric=9)
            log = write_dataset("synthetic", Path(name) / "log", format="parquet", synthetic=made)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result[f"{size:,} rows"] = [pool.apply(peak, (log, Path(name) / "out"))]
            shutil.rmtree(Path(name) / "out")
    show("peak memory of one process", "MiB", result)
    few, many = (values[0] for values in result.values())
    finish("MiB", result, [Goal("preprocess_memory", many / few, 1.3, at_most=True)], options.json)


if __name__ == "__main__":
    main()

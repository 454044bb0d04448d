"""Memory of a served model over many requests: is it flat?

An exported model is called as in a model server: with TensorFlow's C API, in a process without Python's TensorFlow
(`tests/e2e/c_session.py`), by requests of all signatures with 1, 16 and 128 rows or candidates, drawn at random. The control
makes the same requests and does not ask the model. Memory after a tenth of the requests is compared with memory at the end.

    python benchmarks/soak.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Goal, arguments, finish
from rich.console import Console
from rich.table import Table
from serving import LIBRARY, SESSION, make_config

from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.serving.export import export
from clsd.pipeline.shared.model_versions import WARMUP_REQUESTS_FILE
from clsd.pipeline.training.train import train

#: Largest growth from a tenth of the requests to the end.
GROWTH = 1.02


def main() -> None:
    given = arguments(__doc__ or "")
    count = 20_000 if given.quick else 200_000
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        settings = SyntheticSettings(rows=20_000, users=2_000, items=500, extra_categorical=15, extra_numeric=9)
        config = make_config(write_dataset("synthetic", place / "log", synthetic=settings))
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"epochs": 2, "batch_size": 512, "tensorboard": False})}
        )
        dataset = preprocess(config, place / "dataset")
        train(config, dataset, place / "run")
        version = export(dataset, place / "run", place / "models", version=1)
        described = place / "descriptors"
        subprocess.run([sys.executable, SESSION, "--describe", described], check=True, capture_output=True)
        command = [sys.executable, "-I", SESSION, version, version / WARMUP_REQUESTS_FILE, LIBRARY, described]
        sides: dict[str, list[dict[str, Any]]] = {}
        for side in ("soak", "control"):
            done = subprocess.run([*command, f"--{side}", str(count)], check=True, capture_output=True, text=True)
            sides[side] = [json.loads(line) for line in done.stdout.splitlines()]
    table = Table("requests", "with the model, MiB", "control, MiB", title="memory of the process")
    for soaked, alone in zip(*sides.values(), strict=True):
        table.add_row(f"{soaked['requests']:,}", f"{soaked['mebibytes']:.1f}", f"{alone['mebibytes']:.1f}")
    Console().print(table)
    goals = [
        Goal(f"soak_{side}_growth", found[-1]["mebibytes"] / found[0]["mebibytes"], GROWTH, at_most=True)
        for side, found in sides.items()
    ]
    mebibytes = {side: [float(one["mebibytes"]) for one in found] for side, found in sides.items()}
    finish("MiB", mebibytes, goals, given.json)


if __name__ == "__main__":
    main()

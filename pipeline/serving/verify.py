"""Verify an exported version: the checksum of every file, and the scores of its golden rows (`clsd inspect`)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from clsd.features.errors import UserError
from clsd.pipeline.serving import canary
from clsd.pipeline.shared.model_versions import GOLDEN_FILE, verified_metadata


def verify_version(version: Path) -> tuple[dict[str, Any], float]:
    """Verify a copy of an exported version before it is served.

    Args:
        version: the version's directory, on this machine.

    Returns:
        its metadata, and the largest difference of a golden row's score from the trainer's (relative above 1).

    Raises:
        UserError: a file is missing or altered, or the scores differ by more than ``export.canary_tolerance``.
    """
    hint = "copy it again, or export it again"
    metadata = verified_metadata(version, hint)
    return metadata, run_canary(version, metadata["export"]["canary_tolerance"], hint)


def run_canary(version: Path, tolerance: float, hint: str) -> float:
    """Score a version's golden rows in a process that cannot import clsd; gives the largest difference from the trainer's scores.

    Raises:
        UserError: the model cannot be loaded, or the difference is more than ``tolerance``.
    """
    paths = (Path(canary.__file__), version, version / GOLDEN_FILE)
    command = [sys.executable, "-I", *(str(path.resolve()) for path in paths), str(tolerance)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=version, check=False)
    printed = done.stdout.strip().splitlines()
    if done.returncode == 0:
        return float(printed[-1])
    if printed:
        what = f"the canary's scores differ from the trainer's by {printed[-1]}"
    else:
        what = f"the canary failed ({(done.stderr.strip().splitlines() or ['it printed nothing'])[-1]})"
    raise UserError(str(version), what, hint)

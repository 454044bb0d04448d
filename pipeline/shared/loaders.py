"""Loads files by libraries that may raise anything for a damaged file: whatever they raise becomes one line.

Each library is called here only: Parquet, NumPy, SavedModels and TensorFlow's checkpoints.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clsd.features.arrays import Array
from clsd.features.errors import UserError


@contextmanager
def as_damage(where: str | Path, what: str, hint: str) -> Iterator[None]:
    """Turn any error of a library into a UserError that names the file; ``what`` says what the file is not.

    Raises:
        UserError: the block raised an ``Exception``.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
        raise UserError(str(where), f"{what} ({reason})", hint) from error


def read_parquet(content: bytes, where: str | Path, hint: str) -> pa.Table:
    """A Parquet file that clsd wrote, from its bytes.

    Raises:
        UserError: the file is damaged.
    """
    with as_damage(where, "is not a complete Parquet file", hint):
        return pq.read_table(io.BytesIO(content))


def read_arrays(path: Path, hint: str) -> dict[str, Array]:
    """The arrays of an ``.npz`` file that clsd wrote, by name; NumPy verifies their checksums.

    Raises:
        UserError: the file is missing or damaged.
    """
    with as_damage(path, "cannot be read", hint), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_saved_model(directory: Path, hint: str) -> Any:
    """A SavedModel, as ``tf.saved_model.load`` gives it.

    Raises:
        UserError: it is missing or damaged.
    """
    from clsd.features.tf_runtime import tf

    with as_damage(directory, "is not a complete model", hint):
        return tf.saved_model.load(str(directory))


def open_checkpoint(prefix: Path, hint: str) -> Any:
    """A reader of a TensorFlow checkpoint: ``get_variable_to_shape_map`` and ``get_tensor``.

    Raises:
        UserError: it is missing or damaged.
    """
    from clsd.features.tf_runtime import tf

    with as_damage(prefix, "cannot be restored", hint):
        return tf.train.load_checkpoint(str(prefix))


def restore_checkpoint(checkpoint: Any, prefix: Path, hint: str, *, whole: bool = False) -> None:
    """Read a TensorFlow checkpoint's values into the objects of a ``tf.train.Checkpoint``.

    Args:
        checkpoint: the objects.
        prefix: prefix of the checkpoint's files.
        hint: how to fix a damaged checkpoint.
        whole: whether every object must be in the checkpoint.

    Raises:
        UserError: it is missing or damaged, or has other shapes.
    """
    with as_damage(prefix, "cannot be restored", hint):
        status = checkpoint.read(str(prefix)).expect_partial()
        if whole:
            status.assert_existing_objects_matched()

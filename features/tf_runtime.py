"""TensorFlow and Keras, imported the one way that works for every part of this project.

Write ``from clsd.features.tf_runtime import keras, tf`` instead of ``import tensorflow``. ``TF_USE_LEGACY_KERAS=1`` must be
set before TensorFlow is imported: tensorflow-recommenders needs Keras 2, and Keras 3 turns sparse embedding gradients dense.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # below that, importing it without a GPU prints three errors that are none

if "keras" in sys.modules and "tf_keras" not in sys.modules:
    raise ImportError(
        "Keras 3 is loaded already, and clsd needs Keras 2: put `import clsd` before `import tensorflow` and `import keras`, "
        "or set TF_USE_LEGACY_KERAS=1"
    )

from clsd.features.native_imports import import_interruptibly

with import_interruptibly():
    import tensorflow as _tensorflow
    import tf_keras as _tf_keras

from clsd.features import keras_private

keras_private.patch()

# Neither package ships types that fit, so Any stands for both here, once.
tf: Any = _tensorflow
keras: Any = _tf_keras
# Aliases that say more than Any: a tensor (or what converts to one), a Keras model or layer, a Keras optimizer, a
# tf.distribute strategy, a tf.data data set, a variable, a tf.function.
Tensor: TypeAlias = Any
Network: TypeAlias = Any
Optimizer: TypeAlias = Any
Strategy: TypeAlias = Any
TfDataset: TypeAlias = Any
Variable: TypeAlias = Any
TfFunction: TypeAlias = Any
#: A tensor, or tuples and dictionaries of tensors: what a network takes, or a batch of tf.data.
Tensors: TypeAlias = Any
#: Columns of a batch, or raw inputs, by name.
Batch: TypeAlias = dict[str, Tensor]


def register_file_systems(paths: Iterable[str | Path]) -> None:
    """Let TensorFlow read and write these paths: register tensorflow-io's file systems if one is in an object store.

    The endpoint is the one that botocore reads, ``AWS_ENDPOINT_URL``.
    """
    if any("://" in str(path) for path in paths):
        _load_object_stores()


@cache
def _load_object_stores() -> None:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        os.environ.setdefault("S3_ENDPOINT", endpoint)
    import tensorflow_io  # noqa: F401  (loads the plugin)

    if not sys.platform.startswith("linux"):
        return
    # A process that used the plugin aborts in the destructors of its threads ("pure virtual method called"). libc calls its own
    # _exit before those destructors, after Python has flushed its files, and keeps the exit code.
    libc = ctypes.CDLL(None)
    libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)

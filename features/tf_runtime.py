"""TensorFlow, imported the one way that works for every part of this project.

``from clsd.features.tf_runtime import keras, tf`` instead of ``import tensorflow``:

- ``TF_USE_LEGACY_KERAS=1`` must be set before the import: tensorflow-recommenders needs Keras 2, and Keras 3 turns
  sparse embedding gradients dense.
- tf_keras 2.16 draws seeds with ``randint(1, 1e9)``, which Python 3.12 refuses for the float.
- AutoGraph of TF 2.16 would convert the source of tf_keras itself, which makes the first step take up to a minute.
"""

from __future__ import annotations

import ctypes
import os
import random
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault(
    "TF_CPP_MIN_LOG_LEVEL", "3"
)  # below that, importing it without a GPU prints three errors that are none

if "keras" in sys.modules and "tf_keras" not in sys.modules:
    raise ImportError(
        "import clsd.features.tf_runtime before keras: Keras 2 must be chosen before TensorFlow is imported"
    )

import tensorflow as _tensorflow
import tf_keras as _tf_keras
from tensorflow.python.autograph.core import config as _autograph
from tf_keras.src import backend as _backend
from tf_keras.src.utils import tf_utils as _tf_utils

# Neither package ships types that fit; Any says so once, here.
tf: Any = _tensorflow
keras: Any = _tf_keras

if not any(getattr(rule, "_prefix", "") == "tf_keras" for rule in _autograph.CONVERSION_RULES):
    _autograph.CONVERSION_RULES = (_autograph.DoNotConvert("tf_keras"), *_autograph.CONVERSION_RULES)


def _drawn_seed() -> int:
    generator = getattr(_backend._SEED_GENERATOR, "generator", None) or random
    return int(generator.randint(1, 10**9))


_tf_utils.get_random_seed = _drawn_seed
_backend.RandomGenerator._create_seed = lambda self, given: _drawn_seed() if given is None else given


def register_file_systems(paths: Iterable[str | Path]) -> None:
    """Make TensorFlow read from and write to the places of these paths: tensorflow-io's file systems for object stores.

    The endpoint of botocore's variable holds for them too.
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
    # A process that used the plugin aborts in the destructors of its threads ("pure virtual method called"). libc's own _exit,
    # called first on exit and after Python has flushed its files, ends it before them, with the exit code that it had.
    libc = ctypes.CDLL(None)
    libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)

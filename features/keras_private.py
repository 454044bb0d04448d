"""Every use of private names of TensorFlow and Keras.

Written for tensorflow 2.16.2 and tf_keras 2.16.0. tests/features/test_private_names.py fails if the meaning of one of these names
changes, so an upgrade starts there.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from tensorflow.python.autograph.core import config as _autograph
from tf_keras.src import backend as _backend
from tf_keras.src.utils import tf_utils as _tf_utils

#: Versions for which this file was written.
WRITTEN_FOR = {"tensorflow": "2.16", "tf-keras": "2.16"}
#: Packages whose functions AutoGraph leaves as they are. TensorFlow 2.16 would convert tf_keras itself, and the first step would
#: take up to a minute. clsd has no Python control flow over tensors, and converting its functions takes 5 s in every process.
#: Networks of a user's own package are still converted.
_NOT_CONVERTED = ("tf_keras", "tensorflow_recommenders", "clsd")


def patch() -> None:
    """Change what TensorFlow and tf_keras 2.16 do in two places. It may be called several times.

    - AutoGraph leaves the packages in :data:`_NOT_CONVERTED` alone.
    - tf_keras draws seeds as whole numbers; its own ``randint(1, 1e9)`` is refused by Python 3.12.
    """
    known = {getattr(rule, "_prefix", "") for rule in _autograph.CONVERSION_RULES}
    added = [_autograph.DoNotConvert(name) for name in _NOT_CONVERTED if name not in known]
    _autograph.CONVERSION_RULES = (*added, *_autograph.CONVERSION_RULES)
    _tf_utils.get_random_seed = _draw_seed
    _backend.RandomGenerator._create_seed = lambda self, given: _draw_seed() if given is None else given


def _draw_seed() -> int:
    generator = getattr(_backend._SEED_GENERATOR, "generator", None) or random
    return int(generator.randint(1, 10**9))


def all_layers(model: Any, include_self: bool = True) -> Iterable[Any]:
    """All layers of a model or layer, including nested ones."""
    layers: Iterable[Any] = model._flatten_layers(include_self=include_self)
    return layers


def create_slots(optimizer: Any, variables: list[Any]) -> None:
    """Create a legacy optimizer's variables now; its first ``apply_gradients`` would create them otherwise."""
    optimizer._create_all_weights(variables)


def set_dtype_policy(layer: Any, policy: Any) -> None:
    """Change the precision in which an existing layer computes."""
    layer._set_dtype_policy(policy)


def local_copy(variable: Any) -> Any:
    """This replica's copy of a mirrored variable. Reading the mirrored variable gives the same values, but copies it whole."""
    return variable._get()

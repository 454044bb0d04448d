"""The private names of TensorFlow and Keras that clsd uses have not changed their meaning."""

from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from clsd.features import keras_private
from clsd.features.tf_runtime import keras, tf
from clsd.models.keras_model import KerasConfidenceModel
from clsd.models.settings import ConfidenceSettings


@pytest.mark.parametrize("package", ["tensorflow", "tf-keras"])
def test_they_were_read_in_the_version_that_is_installed(package: str) -> None:
    assert version(package).startswith(f"{keras_private.WRITTEN_FOR[package]}.")


@pytest.mark.parametrize("package", ["tf_keras", "tensorflow_recommenders", "clsd"])
def test_autograph_leaves_a_package_alone_and_patching_again_adds_no_rule(package: str) -> None:
    from tensorflow.python.autograph.core import config

    keras_private.patch()
    assert [rule._prefix for rule in config.CONVERSION_RULES].count(package) == 1


class _Own(keras.layers.Layer):  # type: ignore[misc]
    """A layer of a user, with Python control flow over a tensor."""

    def call(self, x: Any) -> Any:
        if tf.reduce_sum(x) > 0:
            return x + 1
        return x - 1


def test_autograph_still_converts_the_networks_of_users() -> None:
    model = KerasConfidenceModel(
        lambda: keras.Sequential([_Own(), keras.layers.Dense(1)]), tf.ones([2, 3]), ConfidenceSettings(gate="off")
    )
    step = tf.function(model.train_metric_sums)
    assert np.isfinite(step((tf.ones([2, 3]), tf.constant([0.0, 1.0]))).numpy()).all()


def test_seeds_are_drawn_as_whole_numbers() -> None:
    keras.utils.set_random_seed(3)
    first = keras.layers.Dense(2)(tf.ones([1, 2]))
    keras.utils.set_random_seed(3)
    np.testing.assert_array_equal(first, keras.layers.Dense(2)(tf.ones([1, 2])))


def test_layers_slots_policies_and_copies() -> None:
    inner = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(1)])
    model = keras.Sequential([inner])
    model(tf.ones([1, 3]))
    assert sum(isinstance(layer, keras.layers.Dense) for layer in keras_private.all_layers(model)) == 2
    optimizer = keras.optimizers.legacy.Adagrad()
    keras_private.create_slots(optimizer, model.trainable_variables)
    assert len(optimizer.variables()) == 1 + len(model.trainable_variables)
    keras_private.set_dtype_policy(inner.layers[0], keras.mixed_precision.Policy("mixed_bfloat16"))
    assert inner.layers[0].compute_dtype == "bfloat16"
    strategy = tf.distribute.MirroredStrategy(["/cpu:0"])
    with strategy.scope():
        variable = tf.Variable(2.0)
    assert float(keras_private.local_copy(variable)) == 2.0

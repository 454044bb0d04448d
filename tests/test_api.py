"""The public interface: what it names is there, and importing it is cheap."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import clsd
from clsd import keras, tf


def test_every_public_name_is_there() -> None:
    for name in clsd.__all__:
        assert getattr(clsd, name) is not None
    assert sorted(name for names in clsd._HOMES.values() for name in names) == clsd.__all__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clsd.nothing


def test_importing_it_loads_neither_tensorflow_nor_beam() -> None:
    code = (
        "import clsd, sys; print({'tensorflow', 'apache_beam', 'pyarrow'} & {m.partition('.')[0] for m in sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def _network() -> keras.Model:
    return keras.Sequential([keras.layers.Embedding(10, 4), keras.layers.Dense(1)])


def _clicks(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(10, size=n)
    return ids, (rng.random(n) < 0.05 + 0.09 * ids).astype(np.float32)


@pytest.mark.parametrize(
    "preset", ["stable", "plain"]
)  # the literal reading of the paper collapses here, as documented
def test_a_network_of_ones_own_learns_the_ctr(preset: str) -> None:
    keras.utils.set_random_seed(1)
    ids, clicks = _clicks()
    settings = clsd.ConfidenceSettings(preset=preset, gate="off", warmup_steps=8)
    model = clsd.KerasConfidenceModel(_network, ids, settings, clsd.TrainingSetup(warmup_steps=8, prior_ctr=0.45))
    model.compile()
    data = tf.data.Dataset.from_tensor_slices((ids, clicks)).batch(500)
    history = model.fit(data, epochs=8, verbose=0).history
    scores = model.score_inputs(tf.constant([0, 9]))
    assert scores.logit[1] > scores.logit[0] + 0.5
    weighted = history["largest_weight"][-1] > history["least_weight"][-1] + 0.01
    assert weighted == (preset != "plain")


def test_padding_changes_nothing() -> None:
    ids, clicks = _clicks(100)
    losses = []
    for padding in (0, 28):
        keras.utils.set_random_seed(1)
        settings = clsd.ConfidenceSettings(gate="off", warmup_steps=0)
        model = clsd.KerasConfidenceModel(_network, ids, settings)
        batch = (np.pad(ids, (0, padding)), np.pad(clicks, (0, padding)), np.pad(np.ones(100), (0, padding)))
        losses.append([float(model.train_step(tuple(map(tf.constant, batch)))["loss"]) for _ in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_metrics_cover_all_batches_and_not_the_last_one() -> None:
    ids, clicks = _clicks(100)  # batches of 64 and 36 rows
    model = clsd.KerasConfidenceModel(_network, ids, clsd.ConfidenceSettings(gate="off", warmup_steps=1))
    model.compile()
    data = tf.data.Dataset.from_tensor_slices((ids, clicks)).batch(64)
    history = model.fit(data, validation_data=data, epochs=2, verbose=0).history
    measured = model.evaluate(data, return_dict=True, verbose=0)
    logits = model.score_inputs(tf.constant(ids)).logit.numpy()
    losses = np.log1p(np.exp(logits)) - clicks * logits
    np.testing.assert_allclose(measured["loss"], losses.mean(), rtol=1e-5)
    np.testing.assert_allclose(measured["ctr"], clicks.mean(), rtol=1e-6)
    np.testing.assert_allclose(history["val_loss"][-1], measured["loss"], rtol=1e-6)
    np.testing.assert_allclose(history["ctr"], clicks.mean(), rtol=1e-6)


def test_a_sample_of_one_row_is_refused() -> None:
    with pytest.raises(clsd.UserError, match="sample: has fewer than 2 rows"):
        clsd.KerasConfidenceModel(_network, np.array([1]), clsd.ConfidenceSettings(gate="off"))


@pytest.mark.parametrize(
    ("changes", "groups", "message"),
    [
        ({"source": "item", "gate": "off"}, {}, "confidence.source: item"),
        ({}, {}, "groups: are missing"),
        ({}, {"age": 3}, "groups: age: is not an input"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes: dict[str, str], groups: dict[str, int], message: str) -> None:
    with pytest.raises(clsd.UserError, match=message):
        clsd.KerasConfidenceModel(_network, {"ids": np.arange(4)}, clsd.ConfidenceSettings(**changes), groups=groups)

"""Trains variants over the same global batches on N replicas: ``replica_run.py N out.npz variant ...``.

A process of its own, because the devices of a process are fixed once TensorFlow runs. With ``TF_CONFIG``: of one of N processes
that train together.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import keras_run
import numpy as np

from clsd.features.tf_runtime import keras, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import TrainingSetup
from clsd.models.input_spec import Field, InputSpec
from clsd.models.settings import ConfidenceSettings, ModelSettings, OptimizerSettings
from clsd.models.step_metrics import metrics_from

ROWS, STEPS, WARMUP = 32, 50, 3

#: name: (confidence, tables' optimizer, dense optimizer, l2); every switch that a step takes another way for.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, float], tuple[str, float], float]] = {
    "frozen": ({"gate_learning_rate": 0.01}, ("adagrad", 0.05), ("adam", 0.01), 0.0),
    "frozen-refreshed": (
        {"refresh_steps": 4, "gate": "calibration", "normalise": "gradient_mass", "gate_learning_rate": 0.01},
        ("sgd", 0.1),
        ("sgd", 0.1),
        1e-2,
    ),
    "ema": (
        {"teacher": "ema", "ema_decay": 0.9, "normalise": "gradient_mass", "soften": 0.3},
        ("adagrad", 0.05),
        ("adagrad", 0.05),
        0.0,
    ),
    "previous": (
        {"teacher": "previous", "gate": "calibration", "gate_learning_rate": 0.01},
        ("adam", 0.01),
        ("adam", 0.01),
        1e-2,
    ),
    "self": (
        {"teacher": "self", "alpha": 0.7, "scale": "odds", "gate_learning_rate": 0.01},
        ("sgd", 0.1),
        ("adagrad", 0.05),
        1e-2,
    ),
    "paper": ({"preset": "paper"}, ("adagrad", 0.05), ("sgd", 0.1), 0.0),
    "popularity": ({"source": "popularity", "gate_learning_rate": 0.01}, ("lazy_adam", 0.01), ("sgd", 0.1), 0.0),
    "intensity": (
        {"source": "intensity", "alpha": 0.5, "gate_learning_rate": 0.01},
        ("sgd", 0.1),
        ("adagrad", 0.05),
        1e-2,
    ),
    "constant": (
        {"control": "constant", "normalise": "none", "gate_learning_rate": 0.01},
        ("adagrad", 0.05),
        ("adam", 0.01),
        0.0,
    ),
    "permuted": (
        {"control": "permuted", "blend": float("inf"), "gate_learning_rate": 0.01},
        ("adagrad", 0.05),
        ("adagrad", 0.05),
        0.0,
    ),
    "rce": ({"control": "rce", "rce_exponent": 0.5, "gate": "off"}, ("rowwise_adagrad", 0.05), ("sgd", 0.1), 0.0),
    "tce": (
        {"control": "tce", "tce_share": 0.4, "tce_ramp_steps": 5, "gate": "off"},
        ("sgd", 0.1),
        ("adagrad", 0.05),
        1e-2,
    ),
    "plain": ({"preset": "plain"}, ("sgd", 0.1), ("adam", 0.01), 1e-2),
}

SPEC = InputSpec(
    fields=(
        Field("user", "id", "user", 30),
        Field("item", "id", "item", 20),
        Field("history", "sequence", "item", 20, 3),
        Field("price", "number"),
    ),
    groups=(("band", 5),),
    id_slices={"user": slice(0, 1), "item": slice(1, 2), "band": slice(2, 3), "history": slice(3, 6)},
    value_columns={"price": 0},
)


def global_batches() -> list[dict[str, np.ndarray]]:
    """50 batches, a fifth of their intensities unknown, among them: no positives (1 in warm-up, 7 after it), positives on
    the first or the last quarter of the rows alone (4, 5, 11), one positive (9), positives alone (13), and a last one of 19
    rows, which leaves the fourth of four replicas nothing but padding."""
    rng = np.random.default_rng(0)
    batches = []
    for number in range(STEPS):
        sizes = (30, 20, 5, 20, 20, 20)
        label = (rng.random(ROWS) < 0.3).astype(np.float32)
        place = np.arange(ROWS)
        rules = {
            1: place < 0,
            4: place < 8,
            5: place >= 24,
            7: place < 0,
            9: place == 17,
            11: place < 8,
            13: place >= 0,
        }
        if number in rules:
            label = (rules[number] * (1.0 if number in (9, 13) else (rng.random(ROWS) < 0.6))).astype(np.float32)
        valid = np.ones(ROWS, np.float32)
        ids = np.stack([rng.integers(0, size, ROWS) for size in sizes], axis=1).astype(np.int32)
        values = rng.normal(size=(ROWS, 1)).astype(np.float32)
        intensity = rng.exponential(size=ROWS).astype(np.float32)
        intensity[::5] = np.nan
        if number == STEPS - 1:
            for column in (label, valid, ids, values):
                column[19:] = 0
        batches.append({"ids": ids, "values": values, "label": label, "valid": valid, "intensity": intensity})
    return batches


def run(strategy: Any, name: str) -> dict[str, np.ndarray]:
    """Everything that a variant leaves behind: all variables, and moments and figures after every step."""
    confidence, tables, dense, l2 = VARIANTS[name]
    keras.utils.set_random_seed(1)  # of the permutation
    with strategy.scope():
        model = ClsdModel(
            SPEC,
            ModelSettings(embedding_dim=4, options={"hidden_units": [8]}),
            ConfidenceSettings(**confidence),
            TrainingSetup(
                warmup_steps=WARMUP,
                embedding_optimizer=OptimizerSettings(name=tables[0], learning_rate=tables[1]),
                dense_optimizer=OptimizerSettings(name=dense[0], learning_rate=dense[1]),
                l2=l2,
            ),
            items=("item", np.linspace(0, 1, 20)),
        )
        rng = np.random.default_rng(1)
        for part in (model.backbone, model.gate):
            for variable in [] if part is None else part.trainable_variables:
                variable.assign(rng.normal(scale=0.3, size=variable.shape))

        if name != "frozen":  # that one makes them in its first step, as training does; the others save a second trace
            model.create_slots()

    @tf.function
    def step(batch: Any) -> Any:
        return tf.stack(strategy.experimental_local_results(strategy.run(model.train_metric_sums, args=(batch,))))

    replicas = strategy.num_replicas_in_sync
    shown, moments = [], []
    for columns in global_batches():
        parts = [{k: tf.constant(np.split(x, replicas)[i]) for k, x in columns.items()} for i in range(replicas)]
        batch = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        sums = step(batch).numpy()
        assert (sums == sums[0]).all(), "the sums must be those of the global batch on every replica"
        shown.append([float(x) for x in metrics_from(tf.constant(sums[0])).values()])
        moments.append(model.moments.numpy())
    out = {f"{name}/figures": np.array(shown), f"{name}/moments": np.array(moments)}
    out[f"{name}/weight_moments"] = model.weight_moments.numpy()
    if name == "frozen":
        out["lookups"] = np.array(lookups(step.get_concrete_function(batch).graph.as_graph_def()))
    for part in ("backbone", "teacher", "gate"):
        vocabulary_source = getattr(model, part)
        for number, variable in enumerate([] if vocabulary_source is None else vocabulary_source.variables):
            copies = [v.numpy() for v in strategy.experimental_local_results(variable)]
            assert all(np.array_equal(copy, copies[0]) for copy in copies), f"replicas differ in {variable.name}"
            out[f"{name}/{part}/{number}"] = copies[0]
    return out


def lookups(graph: Any) -> tuple[int, int]:
    """Gathers of a graph and its branches that read a variable's rows, and those that read it whole before."""
    rows = whole = 0
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        read = {node.name for node in nodes if node.op == "ReadVariableOp"}
        rows += sum(node.op == "ResourceGather" for node in nodes)
        whole += sum(node.op == "GatherV2" and node.input[0].split(":")[0] in read for node in nodes)
    return rows, whole


def main() -> None:
    replicas, path, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    warnings.filterwarnings("ignore")
    together = bool(os.environ.get("TF_CONFIG"))
    if together:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
        strategy = tf.distribute.MirroredStrategy(
            [f"/cpu:{i}" for i in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
        )
    assert strategy.num_replicas_in_sync == replicas
    results = {"labels": np.array([b["label"] for b in global_batches()])}
    for name in names:
        results.update(run(strategy, name))
    if replicas <= 2 and not together:  # Keras cannot split its ten rows over four
        results.update(keras_run.run(strategy))
    if replicas == 1:
        bare = run(tf.distribute.get_strategy(), "frozen")
        results.update({f"without-strategy/{key}": value for key, value in bare.items()})
    np.savez(path, **results)


if __name__ == "__main__":
    main()

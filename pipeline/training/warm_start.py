"""Warm start: begin a run on the next data set with a finished run, or with the model exported from it.

The next data set keeps the ids of the one before (`clsd preprocess --base`), so its embedding tables are the old ones with rows
added at the end. New rows and their optimizer slots are initialised as in a new model; all other values are restored. An
exported model holds only what serving reads. With one, the optimizers start anew, and so does a teacher that serving does not
use.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clsd.features.errors import UserError
from clsd.features.tf_runtime import register_file_systems, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.settings import ModelSettings
from clsd.pipeline.shared.checksums import require_unchanged
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.loaders import open_checkpoint
from clsd.pipeline.shared.model_versions import (
    PROVENANCE_FILE,
    exported_config,
    newest_version,
    verified_metadata,
    versions_in,
)
from clsd.pipeline.training.checkpoints import BEST, RUN_FILE, read_run

#: Variables that are not restored: the run's position, the moments that normalise weights, the items' scores (counted on the
#: data set), the gate's optimizer (it counts its own steps), and the hyperparameters of the optimizers (they are settings).
_NOT_RESTORED = (
    "model/step/",
    "model/moments/",
    "model/weight_moments/",
    "model/_item_scores/",
    "gate_optimizer",
    "save_counter",
    *(f"_optimizer/{name}/" for name in ("learning_rate", "decay", "beta_1", "beta_2", "epsilon", "momentum")),
)
_HINT = "restore it, or start without --base"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
#: Suffix of a variable's name in TensorFlow's checkpoints.
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class BaseRun(NamedTuple):
    """The run that a warm start begins with.

    Args:
        directory: directory of the earlier run or of the exported version.
        fingerprint, dataset_fingerprint: fingerprints of that run and of its data set.
        model: its model settings.
        weights: prefix of the files of its weights.
        names: maps a variable's name in a run's checkpoint to its name in these files.
    """

    directory: Path
    fingerprint: str
    dataset_fingerprint: str
    model: ModelSettings
    weights: Path
    names: dict[str, str]


def load_base_run(directory: Path) -> BaseRun:
    """Load a finished run, an exported version, or the newest version in a directory of versions.

    Raises:
        UserError: the directory is none of these.
    """
    register_file_systems([directory])
    if (directory / PROVENANCE_FILE).exists() or versions_in(directory):
        version = newest_version(directory)
        metadata = verified_metadata(version, "copy it again, or give the training run instead")
        weights = version / "variables" / "variables"
        model = exported_config(version).model
        return BaseRun(
            version, metadata["fingerprint"], metadata["dataset_fingerprint"], model, weights, metadata["variables"]
        )
    inside = directory / "train" / RUN_FILE
    hint = f"did you mean {inside.parent}?" if inside.exists() else "finish it first with `clsd train`"
    run = read_run(directory, hint)
    require_unchanged(directory, run["files"], "restore it, or train it again")
    weights, model = directory / BEST, load_config(directory / "config.yaml").model
    names = {name: name for name in open_checkpoint(weights, _HINT).get_variable_to_shape_map()}
    return BaseRun(directory, run["fingerprint"], run["dataset_fingerprint"], model, weights, names)


def names_in_checkpoint(model: ClsdModel) -> dict[int, str]:
    """The names of a model's variables in a run's checkpoint, by the variables' ``id``.

    TensorFlow names a value by the shortest path of attributes to it, with dots and slashes escaped.
    """
    root = tf.train.Checkpoint(model=model)
    view, result, queue = tf.train.TrackableView(root), {}, deque([(root, "")])
    seen = {id(root)}
    while queue:
        parent, prefix = queue.popleft()
        for name, child in view.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = f"{prefix}{name.replace('.', '..').replace('/', '.S')}"
            if isinstance(child, tf.Variable):
                result[id(child)] = f"{path}{VALUE}"
            queue.append((child, f"{path}/"))
    return result


def require_compatible(config: Config, dataset: Dataset, base: BaseRun) -> None:
    """Refuse a warm start with other ids or another model than those of this data set and config.

    Args:
        config, dataset: config and data set of the new run.
        base: the earlier run.

    Raises:
        UserError: naming what differs.
    """
    new_value = dataset.manifest
    if base.dataset_fingerprint not in (new_value["fingerprint"], (new_value["base"] or {}).get("fingerprint")):
        what = f"was not trained on the data set that {dataset.directory} is based on"
        raise UserError(str(base.directory), what, "preprocess with --base and that run's data set")
    if base.model != config.model:
        raise UserError(str(base.directory), "has another model", "give both runs the same settings under model")


def expand_checkpoint(base: BaseRun, model: ClsdModel, out: Path) -> Path:
    """Write a checkpoint of an earlier model's weights in this model's shapes. New rows keep this model's initial values.

    Args:
        base: the earlier model.
        model: the untrained model of the next data set, with its optimizers' variables.
        out: directory for the checkpoint.

    Returns:
        the prefix of the checkpoint's files.

    Raises:
        UserError: a variable has another shape in the earlier run, or is missing there.
    """
    fresh = tf.train.load_checkpoint(tf.train.Checkpoint(model=model).write(str(out / "fresh")))
    before, tensors = open_checkpoint(base.weights, _HINT), {}
    before_shapes = before.get_variable_to_shape_map()
    shapes = {name: before_shapes[old] for name, old in base.names.items() if old in before_shapes}
    for name in fresh.get_variable_to_shape_map():
        new_value, old_name = fresh.get_tensor(name), name
        if name not in shapes:
            # If max_table_rows splits a table only now, its old rows become the remainder table. Their quotients are 1, so
            # vectors stay the same.
            old_name = name.replace("/remainder/embeddings/", "/embeddings/")
        # Dropout counts its calls; an exported model has no dropout.
        optional = ".OPTIMIZER_SLOT" in name or "/quotient/embeddings/" in name or name.endswith(f"/calls{VALUE}")
        required = name.startswith("model/backbone/") and not optional
        if required and old_name not in shapes:
            what = f"has no {name.split('/.ATTRIBUTES')[0].removeprefix('model/')}: another version wrote it"
            raise UserError(str(base.directory), what, "train it again, or start without --base")
        if name == _GRAPH or old_name not in shapes or any(anew in name for anew in _NOT_RESTORED):
            tensors[name] = new_value
            continue
        old_value = before.get_tensor(base.names[old_name])
        if np.shape(old_value)[1:] != np.shape(new_value)[1:] or np.shape(old_value)[:1] > np.shape(new_value)[:1]:
            shapes_differ = f"{list(np.shape(old_value))} values of {name.split('/.ATTRIBUTES')[0]}"
            what = f"has {shapes_differ}, and this run {list(np.shape(new_value))}"
            raise UserError(str(base.directory), what, "start anew, or with the same model and settings")
        tensors[name] = np.concatenate([old_value, new_value[len(old_value) :]]) if np.ndim(new_value) else old_value
    expanded = out / "expanded"
    tf.raw_ops.SaveV2(
        prefix=str(expanded), tensor_names=[*tensors], shape_and_slices=[""] * len(tensors), tensors=[*tensors.values()]
    )
    return expanded

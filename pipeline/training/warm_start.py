"""A finished run, or the model exported from it, as the start of a run on the next data set: every id that was known keeps
its vectors.

The next data set keeps the ids of the one before (`clsd preprocess --base`), so its tables are the old ones with rows added at
the end. Those rows, and their slots in the optimizers, begin as a new model's do; everything else begins as it ended. An
exported model holds what serving reads: the optimizers begin anew then, and so does a teacher that serving does not ask.
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
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import load_config
from clsd.pipeline.shared.dataset import Dataset
from clsd.pipeline.shared.files import read_json
from clsd.pipeline.shared.model_versions import PROVENANCE_FILE, exported_config, newest_version, versions_in
from clsd.pipeline.training.checkpoints import BEST, RUN_FILE

#: Not taken over: where a run stands, what its weights were normalised by, the scores of items, which its data set counted, the
#: gate's optimizer, which counts its own steps, and what the settings say of the optimizers.
_ANEW = (
    "model/step/",
    "model/moments/",
    "model/weight_moments/",
    "model/_item_scores/",
    "gate_optimizer",
    "save_counter",
    *(f"_optimizer/{name}/" for name in ("learning_rate", "decay", "beta_1", "beta_2", "epsilon", "momentum")),
)
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
#: How the name of a variable ends in TensorFlow's files.
VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class BaseRun(NamedTuple):
    """What a run begins with.

    Args:
        directory: of the earlier run or of the exported version.
        fingerprint, dataset_fingerprint: of that run and of what it was trained on.
        model: its settings.
        weights: how the names of the files of its weights begin.
        names: by the name that a variable has in a run's checkpoint, the one that it has in these files.
    """

    directory: Path
    fingerprint: str
    dataset_fingerprint: str
    model: ModelSettings
    weights: Path
    names: dict[str, str]


def load_base_run(directory: Path) -> BaseRun:
    """A finished run, an exported version, or the newest of a directory of those.

    Raises:
        UserError: it is none of them.
    """
    register_file_systems([directory])
    if (directory / PROVENANCE_FILE).exists() or versions_in(directory):
        version = newest_version(directory)
        metadata = read_json(version / PROVENANCE_FILE, "model that clsd exported", "give the training run instead")
        if "variables" not in metadata:
            raise UserError(str(version), "does not name its weights", "export it again, or give the run")
        weights = version / "variables" / "variables"
        model = exported_config(version).model
        return BaseRun(
            version, metadata["fingerprint"], metadata["dataset_fingerprint"], model, weights, metadata["variables"]
        )
    inside = directory / "train" / RUN_FILE
    hint = f"did you mean {inside.parent}?" if inside.exists() else "finish it first with `clsd train`"
    run = read_json(directory / RUN_FILE, "finished training run", hint)
    weights, model = directory / BEST, load_config(directory / "config.yaml").model
    names = {name: name for name in tf.train.load_checkpoint(str(weights)).get_variable_to_shape_map()}
    return BaseRun(directory, run["fingerprint"], run["dataset_fingerprint"], model, weights, names)


def names_in_checkpoint(model: ClsdModel) -> dict[int, str]:
    """The names that a run's checkpoint gives the variables of its model, by the variables' ``id``.

    TensorFlow names a value by the shortest way to it over the attributes of objects, escaping dots and slashes.
    """
    root = tf.train.Checkpoint(model=model)
    view, result, ways = tf.train.TrackableView(root), {}, deque([(root, "")])
    seen = {id(root)}
    while ways:
        parent, way = ways.popleft()
        for name, child in view.children(parent).items():
            if id(child) in seen:
                continue
            seen.add(id(child))
            path = f"{way}{name.replace('.', '..').replace('/', '.S')}"
            if isinstance(child, tf.Variable):
                result[id(child)] = f"{path}{VALUE}"
            ways.append((child, f"{path}/"))
    return result


def require_compatible(config: Config, dataset: Dataset, base: BaseRun) -> None:
    """Refuse a start whose ids or model are not those of this data set and config.

    Args:
        config, dataset: of the run that is to begin.
        base: what it is to begin with.

    Raises:
        UserError: naming what differs.
    """
    mine = dataset.manifest
    if base.dataset_fingerprint not in (mine["fingerprint"], (mine["base"] or {}).get("fingerprint")):
        what = f"was not trained on the base of {dataset.directory}"
        raise UserError(str(base.directory), what, "preprocess with --base and that run's data set")
    if base.model != config.model:
        raise UserError(str(base.directory), "has another model", "give both runs the same settings under model")


def expand_checkpoint(base: BaseRun, model: ClsdModel, out: Path) -> Path:
    """An earlier model's weights, as this model has them: those of the rows that are new are this model's own.

    Args:
        base: the earlier model.
        model: of the next data set, not trained.
        out: directory for the checkpoint.

    Returns:
        how the names of the checkpoint's files begin.

    Raises:
        UserError: a variable that the earlier run has in another shape.
    """
    model.create_slots()
    fresh = tf.train.load_checkpoint(tf.train.Checkpoint(model=model).write(str(out / "fresh")))
    before, tensors = tf.train.load_checkpoint(str(base.weights)), {}
    there = before.get_variable_to_shape_map()
    shapes = {name: there[at] for name, at in base.names.items() if at in there}
    for name in fresh.get_variable_to_shape_map():
        mine, then = fresh.get_tensor(name), name
        if name not in shapes:
            # A table that was short enough is one of remainders now, whose first quotient is 1: the same vectors.
            then = name.replace("/remainder/embeddings/", "/embeddings/")
        # Dropout counts its calls, and serving has none.
        free = ".OPTIMIZER_SLOT" in name or "/quotient/embeddings/" in name or name.endswith(f"/calls{VALUE}")
        kept = name.startswith("model/backbone/") and not free
        if kept and then not in shapes:
            what = f"has no {name.split('/.ATTRIBUTES')[0].removeprefix('model/')}: another version wrote it"
            raise UserError(str(base.directory), what, "train it again, or start without --base")
        if name == _GRAPH or then not in shapes or any(anew in name for anew in _ANEW):
            tensors[name] = mine
            continue
        theirs = before.get_tensor(base.names[then])
        if np.shape(theirs)[1:] != np.shape(mine)[1:] or np.shape(theirs)[:1] > np.shape(mine)[:1]:
            what = f"has {list(np.shape(theirs))} values of {name.split('/.ATTRIBUTES')[0]}, and this run {list(np.shape(mine))}"
            raise UserError(str(base.directory), what, "start anew, or with the same model and settings")
        tensors[name] = np.concatenate([theirs, mine[len(theirs) :]]) if np.ndim(mine) else theirs
    made = out / "grown"
    tf.raw_ops.SaveV2(
        prefix=str(made), tensor_names=[*tensors], shape_and_slices=[""] * len(tensors), tensors=[*tensors.values()]
    )
    return made

"""A finished run as the start of a run on the next data set: every id that was known keeps its vectors.

The next data set keeps the ids of the one before (`clsd preprocess --base`), so its tables are the old ones with rows added at
the end. Those rows, and their slots in the optimizers, begin as a new model's do; everything else begins as it ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from features.errors import UserError
from features.tf_runtime import tf
from models.clsd import ClsdModel
from pipeline.config import Config, load_config
from pipeline.dataset import Dataset
from pipeline.files import read_json

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


def require_next(config: Config, dataset: Dataset, base: Path, run: dict[str, Any]) -> None:
    """Refuse a run whose ids or model are not those of this data set and config.

    Args:
        config, dataset: of the run that is to begin.
        base: directory of the earlier run, and ``run`` the content of its run.json.

    Raises:
        UserError: naming what differs.
    """
    mine = dataset.manifest
    if run["dataset_fingerprint"] not in (mine["fingerprint"], (mine["base"] or {}).get("fingerprint")):
        what = f"was not trained on what {dataset.directory} keeps the ids of"
        raise UserError(str(base), what, "preprocess with --base and that run's data set")
    theirs = load_config(base / "config.yaml")
    if theirs.model != config.model:
        raise UserError(str(base), "has another model", "give both runs the same settings under model")


def grown(weights: Path, model: ClsdModel, out: Path) -> Path:
    """An earlier run's weights, as this model has them: those of the rows that are new are this model's own.

    Args:
        weights: how the names of the earlier checkpoint's files begin.
        model: of the next data set, not trained.
        out: directory for the checkpoint.

    Returns:
        how the names of the checkpoint's files begin.

    Raises:
        UserError: a variable that the earlier run has in another shape.
    """
    model.create_slots()
    fresh = tf.train.load_checkpoint(tf.train.Checkpoint(model=model).write(str(out / "fresh")))
    before = tf.train.load_checkpoint(str(weights))
    shapes, tensors = before.get_variable_to_shape_map(), {}
    for name in fresh.get_variable_to_shape_map():
        mine, then = fresh.get_tensor(name), name
        if name not in shapes:
            # A table that was short enough is one of remainders now, whose first quotient is 1: the same vectors.
            then = name.replace("/remainder/embeddings/", "/embeddings/")
        kept = (
            name.startswith("model/backbone/") and ".OPTIMIZER_SLOT" not in name and "/quotient/embeddings/" not in name
        )
        if kept and then not in shapes:
            what = f"has no {name.split('/.ATTRIBUTES')[0].removeprefix('model/')}: another version wrote it"
            raise UserError(str(weights.parent), what, "train it again, or begin without --base")
        if name == _GRAPH or then not in shapes or any(anew in name for anew in _ANEW):
            tensors[name] = mine
            continue
        theirs = before.get_tensor(then)
        if np.shape(theirs)[1:] != np.shape(mine)[1:] or np.shape(theirs)[:1] > np.shape(mine)[:1]:
            what = f"has {list(np.shape(theirs))} values of {name.split('/.ATTRIBUTES')[0]}, and this run {list(np.shape(mine))}"
            raise UserError(str(weights.parent), what, "begin anew, or with the same model and settings")
        tensors[name] = np.concatenate([theirs, mine[len(theirs) :]]) if np.ndim(mine) else theirs
    made = out / "grown"
    tf.raw_ops.SaveV2(
        prefix=str(made), tensor_names=[*tensors], shape_and_slices=[""] * len(tensors), tensors=[*tensors.values()]
    )
    return made


def started_from(base: Path) -> dict[str, Any]:
    """The content of the earlier run's run.json."""
    inside = base / "train" / "run.json"
    mend = f"did you mean {inside.parent}?" if inside.exists() else "finish it first with `clsd train`"
    return dict(read_json(base / "run.json", "finished training run", mend))

"""The cache of a frozen teacher's scores of the training clicks: computed once, then looked up by the reader."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from clsd.features.arrays import Array
from clsd.features.input_pipeline import read_batches
from clsd.features.tf_runtime import Batch, Tensor, tf
from clsd.models.clsd_model import ClsdModel
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset

_BATCH = 16_384


def worth_it(config: Config, clicks: int, epochs_left: int) -> bool:
    """Whether a cache is cheaper than running the teacher in each step.

    Filling the cache costs as much as running the teacher for one epoch, so it pays off from the second epoch on. Only a
    teacher that no longer changes can be cached. The cache holds scores of clicks alone; the calibration gate and soft labels
    need all rows.
    """
    settings = config.confidence
    asked = settings.source == "teacher" and settings.control in ("none", "constant", "permuted")
    of_clicks_alone = settings.gate != "calibration" and settings.soften == 0
    frozen = settings.teacher == "frozen" and settings.refresh_steps == 0
    fits = clicks <= config.train.teacher_cache_clicks
    return asked and of_clicks_alone and frozen and fits and epochs_left >= 2


def click_scores(model: ClsdModel, dataset: Dataset) -> tuple[Array, Array]:
    """Keys int64 ``[clicks]`` and teacher scores q float32 ``[clicks]`` of the clicks in the training split."""

    @tf.function
    def score(batch: Batch) -> tuple[Tensor, Tensor]:
        rows = tf.where(batch["label"] * batch["valid"] > 0)[:, 0]
        ids, values = tf.gather(batch["ids"], rows), tf.gather(batch["values"], rows)
        return tf.gather(batch["key"], rows), tf.sigmoid(model.teacher_logit(ids, values))

    columns = ("ids", "values", "label", "key")
    data = read_batches(
        dataset.schema, dataset.files("train"), _BATCH, columns=columns, rows_per_block=dataset.rows_per_block
    )
    keys, scores = zip(*(score(batch) for batch in data), strict=True)
    return np.concatenate(keys), np.concatenate(scores)


def lookup(keys: Array, scores: Array) -> Callable[[Batch], Batch]:
    """A function for ``tf.data`` map: it replaces ``key`` by ``teacher`` float32 ``[B]``, which is 0 for a non-click."""
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.int64), tf.constant(scores, tf.float32)), 0.0
    )

    def add(batch: Batch) -> Batch:
        rows = tf.where(batch["label"] > 0)
        result = table.lookup(tf.gather_nd(batch["key"], rows))
        scores = tf.scatter_nd(rows, result, tf.shape(batch["label"], out_type=tf.int64))
        with_teacher = {**batch, "teacher": tf.ensure_shape(scores, batch["label"].shape)}
        with_teacher.pop("key")
        return with_teacher

    return add

"""Sums and columns over all replicas of a training step. On one replica, each function returns its argument."""

from __future__ import annotations

from clsd.features.keras_private import local_copy
from clsd.features.tf_runtime import Tensor, tf


def num_replicas() -> int:
    """Number of replicas."""
    return int(tf.distribute.get_replica_context().num_replicas_in_sync)


def sum_over(values: Tensor) -> Tensor:
    """Sum of a tensor over the replicas, the same on each."""
    if num_replicas() == 1:
        return values
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)


def gather(values: Tensor) -> Tensor:
    """Gather rows ``[B / N, ...]`` of each replica into the global batch ``[B, ...]``, in the order of the replicas."""
    if num_replicas() == 1:
        return values
    return tf.distribute.get_replica_context().all_gather(values, axis=0)


def local_slice(values: Tensor, like: Tensor) -> Tensor:
    """This replica's rows of a global column, which was gathered from columns shaped as ``like``."""
    if num_replicas() == 1:
        return values
    rows = tf.shape(like)[0]
    start = tf.distribute.get_replica_context().replica_id_in_sync_group * rows
    return values[start : start + rows]


def local(variable: Tensor) -> Tensor:
    """This replica's copy of a mirrored variable; any other variable itself.

    Reading the mirrored variable gives the same values but copies it whole, see :class:`clsd.models.embedding_table.Table`.
    """
    return local_copy(variable) if isinstance(variable, tf.distribute.DistributedValues) else variable

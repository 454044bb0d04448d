"""Replicas (the machine's GPUs, or logical CPU devices), and the workers of a multi-machine job, named by TF_CONFIG."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clsd.features.errors import TryAgainError, UserError
from clsd.features.tf_runtime import Batch, Strategy, Tensor, TfDataset, keras, tf
from clsd.pipeline.shared.progress import say

#: The errors of a collective if one of its machines is gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.InternalError,
)


def workers() -> tuple[int, int]:
    """(number of workers, index of this worker) by ``TF_CONFIG``; (1, 0) without it.

    Worker 0, the chief, writes the run's files.

    Raises:
        UserError: TF_CONFIG is not the JSON of a cluster that has workers only.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return 1, 0
    try:
        cluster_config = json.loads(text)
        cluster, task = cluster_config["cluster"], cluster_config["task"]
        if set(cluster) != {"worker"} or task["type"] != "worker":
            raise UserError("TF_CONFIG", "names other tasks than workers", "list every machine under cluster.worker")
        num_workers, worker = len(cluster["worker"]), int(task["index"])
        if not 0 <= worker < num_workers:
            raise UserError("TF_CONFIG", f"task {worker} is not one of {num_workers} workers", "number them from 0 on")
        for address in cluster["worker"]:
            port = str(address).rpartition(":")[2]
            if ":" not in address or not port.isdigit() or not 0 < int(port) < 1 << 16:
                raise UserError(
                    "TF_CONFIG", f"{address} is not HOST:PORT", "give every machine's address and a free port"
                )
        if len({*cluster["worker"]}) < num_workers:
            raise UserError("TF_CONFIG", "names a machine twice", "give each its own address and port")
        return num_workers, worker
    except (ValueError, KeyError, TypeError) as error:
        hint = 'write {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": N}}'
        raise UserError("TF_CONFIG", f"cannot be read ({type(error).__name__}: {error})", hint) from None


@contextmanager
def lost_machines_reported() -> Iterator[None]:
    """Turn TensorFlow's errors into one clear error if a machine of a multi-machine job is lost.

    Raises:
        TryAgainError: a machine is lost.
    """
    try:
        yield
    except _LOST as error:
        if workers()[0] == 1:
            raise
        hint = "start all machines again: they continue from the newest checkpoint"
        said = [line for line in str(error).splitlines() if line.strip() and line != "Graph execution error:"]
        reason = said[0][:200] if said else type(error).__name__
        raise TryAgainError("train", f"lost a machine of the job ({reason})", hint) from error


class Machines:
    """Collectives over the machines of a job; every machine must reach each call.

    Args:
        strategy: the training's strategy.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._num_workers = workers()[0]

        @tf.function
        def gather(value: Tensor) -> Tensor:
            # tf.identity places the value on the replica's device.
            context = tf.distribute.get_replica_context
            result = strategy.run(lambda x: context().all_gather(tf.identity(x), axis=0), args=(value,))
            return strategy.experimental_local_results(result)[0]

        self._gather = gather

    def gather(self, value: int) -> list[int]:
        """The values of all machines, in order; a value is below 2**32. The call is a barrier: it waits for all machines."""
        if self._num_workers == 1:
            return [value]
        return [int(gathered) for gathered in self._gather(tf.constant([value], tf.int64)).numpy()]


def is_chief() -> bool:
    """Whether this process writes the run's files."""
    return workers()[1] == 0


def distribute(strategy: Strategy, data: TfDataset) -> TfDataset:
    """Split global batches over the replicas. Each machine reads all batches and keeps its own rows, so batches do not change."""
    num_workers, worker = workers()
    if num_workers == 1:
        return distribute_locally(strategy, data)
    replicas = strategy.num_replicas_in_sync
    local_slice = slice(worker * replicas // num_workers, (worker + 1) * replicas // num_workers)

    def split(batch: Batch) -> TfDataset:
        parts = {
            name: tf.reshape(x, [replicas, x.shape[0] // replicas, *x.shape[1:]])[local_slice]
            for name, x in batch.items()
        }
        return tf.data.Dataset.from_tensor_slices(parts)

    return strategy.distribute_datasets_from_function(lambda context: data.flat_map(split).prefetch(4))


def distribute_locally(strategy: Strategy, data: TfDataset) -> TfDataset:
    """Split batches over the replicas of this machine. A single CPU device reads them as they are, which starts sooner."""
    if strategy.num_replicas_in_sync == 1 and not tf.config.list_physical_devices("GPU"):
        return data
    return strategy.experimental_distribute_dataset(data)


def make_strategy(replicas: int, batch_size: int) -> Strategy:
    """The distribution strategy: MirroredStrategy, OneDeviceStrategy for one device, MultiWorkerMirroredStrategy with TF_CONFIG.

    The devices are the machine's GPUs if it has any, otherwise logical CPU devices. Those share the cores; they exist to test
    that a step gives the same result on one replica and on several.

    Args:
        replicas: number of devices; 0 for all GPUs, or for one CPU device.
        batch_size: global batch size; it must be a multiple of the number of replicas, so that all rows count the same.

    Raises:
        UserError: more replicas than GPUs, a batch that does not divide, or TensorFlow already runs with other CPU devices.
    """
    if workers()[0] > 1:
        return _of_several_machines(batch_size)
    gpus = tf.config.list_physical_devices("GPU")
    count = replicas or max(1, len(gpus))
    if gpus and count > len(gpus):
        raise UserError("train.replicas", f"{count} replicas on {len(gpus)} GPUs", f"set it to at most {len(gpus)}")
    _require_divides(batch_size, count)
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        devices = [f"/gpu:{i}" for i in range(count)]
        return tf.distribute.MirroredStrategy(devices) if count > 1 else tf.distribute.OneDeviceStrategy(devices[0])
    if count == 1:
        return tf.distribute.OneDeviceStrategy("/cpu:0")
    _make_logical_cpus(count)
    devices = [f"/cpu:{i}" for i in range(count)]
    # Sum on one device: collectives of logical CPUs fail when a process makes a second strategy.
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=tf.distribute.ReductionToOneDevice())


def _of_several_machines(batch_size: int) -> Strategy:
    """All GPUs of each machine, or one CPU device of each. Waits until all machines are there."""
    with _ended_by_ctrl_c():
        say(f"waiting for all {workers()[0]} machines")
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    _require_divides(batch_size, strategy.num_replicas_in_sync)
    return strategy


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once: Python's handlers do not run while TensorFlow waits. TensorFlow catches SIGTERM."""
    previous_handler = signal.getsignal(signal.SIGINT)
    replaces_handler = threading.current_thread() is threading.main_thread() and previous_handler is not signal.SIG_IGN
    if replaces_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if replaces_handler:
            signal.signal(signal.SIGINT, previous_handler)


def _require_divides(batch_size: int, count: int) -> None:
    if batch_size % count:
        larger = -(-batch_size // count) * count
        raise UserError("train.batch_size", f"{batch_size} rows do not divide into {count} replicas", f"take {larger}")


def _make_logical_cpus(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    made = tf.config.get_logical_device_configuration(cpu)
    if made is not None and len(made) >= count:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    except RuntimeError:
        hint = "run this in a new process"
        raise UserError(
            "train.replicas", f"TensorFlow is already running, with other devices than {count} CPUs", hint
        ) from None


def make_reproducible(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and TensorFlow. If ``deterministic``, the same seed on the same machine gives the same weights."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()


def compile_by_xla(on: bool) -> None:
    """Turn XLA's auto-clustering on or off, on CPUs too. Call it before the first call of any ``tf.function``.

    XLA has no kernels for sparse updates of embedding tables, so it cannot compile the whole step.
    """
    flag = "--tf_xla_cpu_global_jit"  # TensorFlow reads it at the first compilation
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if on and flag not in flags:
        os.environ["TF_XLA_FLAGS"] = f"{flags} {flag}".strip()
    tf.config.optimizer.set_jit("autoclustering" if on else False)

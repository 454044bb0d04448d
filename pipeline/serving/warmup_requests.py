"""Warm-up requests, which a model server runs before it serves a version: real rows, all signatures, several batch sizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from clsd.features.tf_runtime import tf
from clsd.pipeline.serving.serving_inputs import as_arrays

#: Numbers of rows, or of candidates, of the requests.
SIZES = (1, 16, 128)
#: The model's name in the requests; a server runs them under any name.
MODEL_NAME = "clsd"


def warmup_requests(signatures: dict[str, dict[str, Any]], golden: dict[str, Any]) -> Iterator[bytes]:
    """Serialized ``PredictionLog`` messages of TF Serving, with one request each.

    Args:
        signatures: by signature, the ``tf.TensorSpec`` of each input.
        golden: the result of :func:`clsd.pipeline.serving.export.golden_rows`; rows are repeated if there are too few.
    """
    # After clsd.features.tf_runtime, which must come before TensorFlow.
    from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

    columns = signatures["serving_default"]
    for size in SIZES if any(golden["inputs"].values()) else ():
        rows = {name: _repeated(values, size) for name, values in golden["inputs"].items()}
        for name, specs in signatures.items():
            log = PredictionLog()
            if name in ("classify", "regress"):
                request = getattr(log, f"{name}_log").request
                request.input.example_list.examples.extend(examples(rows, columns))
            else:
                request = log.predict_log.request
                arrays = {}
                if name == "serialized_examples":
                    arrays["examples"] = [example.SerializeToString() for example in examples(rows, columns)]
                elif name == "rank":
                    ranked = golden["rank"]
                    first = {key: values[:1] for key, values in ranked["inputs"].items()}
                    arrays = as_arrays({**first, **{key: [rows[key]] for key in ranked["candidates"]}}, specs)
                else:
                    arrays = as_arrays(rows, specs)
                for key, array in arrays.items():
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(array, specs[key].dtype))
            request.model_spec.name, request.model_spec.signature_name = MODEL_NAME, name
            yield log.SerializeToString()


def examples(inputs: dict[str, list[Any]], signature: dict[str, Any]) -> list[Any]:
    """Rows as ``tf.train.Example``, without missing values.

    Args:
        inputs: lists by name, the result of :func:`clsd.pipeline.serving.serving_inputs.serving_inputs`.
        signature: the ``tf.TensorSpec`` of each input of ``serving_default``.
    """
    out = []
    for row in range(len(next(iter(inputs.values()), []))):
        example = tf.train.Example()
        for name, spec in signature.items():
            value = inputs[name][row]
            if value is None:  # a float list needs a value
                continue
            values = value if isinstance(value, list) else [value]
            feature = example.features.feature[name]
            if spec.dtype == tf.string:
                feature.bytes_list.value.extend(value.encode() for value in values)
            elif spec.dtype == tf.int64:
                feature.int64_list.value.extend(values)
            else:
                feature.float_list.value.extend(values)
        out.append(example)
    return out


def _repeated(values: list[Any], size: int) -> list[Any]:
    return [values[at % len(values)] for at in range(size)]

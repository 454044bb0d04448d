"""The signatures of an exported model, with TF Serving's names and types.

========================  ==============================================  ===========================================
signature                 inputs                                          outputs, float32 unless noted
========================  ==============================================  ===========================================
``serving_default``       raw columns, ``[rows]`` or ``[rows, any]``      ``score``, ``ctr``, ``confidence``, ``[rows]``
``serialized_examples``   ``examples``, serialized ``tf.train.Example``s  the same
``rank``                  one row of raw columns per request, and N       the same, ``[requests, N]``
                          values of candidate columns, ``[requests, N]``
``classify``              ``inputs``, Examples                            ``classes`` string and ``scores``, ``[rows, 2]``
``regress``               ``inputs``, Examples                            ``outputs``, the CTR, ``[rows]``
========================  ==============================================  ===========================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from clsd.features.serving_transform import ServingTransform, missing
from clsd.features.tf_runtime import Batch, Tensor, tf
from clsd.models.clsd_model import ClsdModel
from clsd.models.confidence_model import Scores
from clsd.models.input_spec import InputSpec
from clsd.models.model_inputs import ModelInputs
from clsd.pipeline.serving.serving_inputs import OUTPUTS
from clsd.pipeline.shared.model_versions import MODEL_FILE
from clsd.pipeline.training.warm_start import VALUE, names_in_checkpoint

#: The classes of ``classify``.
CLASSES = ("no click", "click")
Score: TypeAlias = Callable[[ModelInputs], Scores]

_METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}


class ServingModel(tf.Module):  # type: ignore[misc]
    """The exported model: raw rows in; ``score``, ``ctr`` and ``confidence`` out.

    score = sigmoid(s), for ranking; ctr = sigmoid(s - log w + log r), the calibrated click-through rate; confidence = a / c,
    the confidence that a click on the row would have (1 for the mean click).

    Args:
        transform: the raw-feature transform; its tables become assets.
        spec: the model's inputs.
        score: function from rows to :class:`clsd.models.confidence_model.Scores`, on one device.
        candidates: the features that differ between the candidates of a ``rank`` request; without any, there is no ``rank``.
    """

    def __init__(
        self, transform: ServingTransform, spec: InputSpec, score: Score, candidates: Sequence[str] = ()
    ) -> None:
        super().__init__(name="clsd_serving")
        self.transform = transform
        self.spec = spec
        self.candidates = list(candidates)

        def answer(rows: ModelInputs, shape: Tensor = None) -> Batch:
            scores = score(rows)
            result = zip(
                OUTPUTS, (tf.sigmoid(scores.logit), tf.sigmoid(scores.ctr_logit), scores.confidence), strict=True
            )
            return {name: tf.identity(x if shape is None else tf.reshape(x, shape), name=name) for name, x in result}

        def of_rows(raw: Batch) -> Batch:
            return answer(ModelInputs(spec, transform(raw)))

        def of_examples(examples: Tensor) -> Batch:
            return of_rows(transform.parse_examples(examples))

        def of_requests(raw: Batch) -> Batch:
            request, columns, shape = transform.rank(raw, candidates)
            return answer(ModelInputs(spec, columns, request), shape)

        def classify(inputs: Tensor) -> Batch:
            ctr = of_examples(inputs)["ctr"]
            classes = tf.broadcast_to(tf.constant([CLASSES]), [tf.shape(ctr)[0], 2])
            return {"classes": classes, "scores": tf.stack([1.0 - ctr, ctr], axis=1)}

        examples, inputs = (tf.TensorSpec([None], tf.string, name=name) for name in ("examples", "inputs"))
        self.answers = {
            "serving_default": _concrete(lambda **raw: of_rows(raw), **transform.signature()),
            "serialized_examples": _concrete(lambda examples: of_examples(examples), examples),
            "classify": _concrete(classify, inputs),
            "regress": _concrete(lambda inputs: {"outputs": of_examples(inputs)["ctr"]}, inputs),
        }
        if candidates:
            self.answers["rank"] = _concrete(lambda **raw: of_requests(raw), **transform.rank_signature(candidates))
        # Only the variables that the graph reads: the Keras objects would add optimizers, training graphs and unused teachers.
        self.weights = list(self.answers["serving_default"].variables)

    @property
    def inputs(self) -> dict[str, dict[str, Any]]:
        """By signature: the ``tf.TensorSpec`` of each input by name."""
        named = {"serialized_examples": "examples", "classify": "inputs", "regress": "inputs"}
        result = {name: answer.structured_input_signature for name, answer in self.answers.items()}
        return {name: {named[name]: a[0]} if name in named else dict(k) for name, (a, k) in result.items()}

    def names(self, model: ClsdModel) -> dict[str, str]:
        """Maps the name of a weight in a run's checkpoint to its name in the SavedModel, for a warm start."""
        checkpoint_names = names_in_checkpoint(model)
        return {
            checkpoint_names[id(weight)]: f"weights/{at}{VALUE}"
            for at, weight in enumerate(self.weights)
            if id(weight) in checkpoint_names
        }

    def save(self, directory: Path) -> None:
        """Write the SavedModel."""
        tf.saved_model.save(self, str(directory), signatures=self.answers)
        _finish(directory)


def _concrete(function: Callable[..., Any], /, *specs: Any, **named: Any) -> Any:
    return tf.function(function).get_concrete_function(*specs, **named)


def _finish(directory: Path) -> None:
    """Add to a SavedModel what TensorFlow 2 cannot express: which signatures are TF Serving's classify and regress, and the
    default of each raw input, both for a server and for a session that feeds inputs by name."""
    from tensorflow.core.protobuf import (
        saved_model_pb2,
    )  # after clsd.features.tf_runtime, which must come before TensorFlow

    saved = saved_model_pb2.SavedModel.FromString((directory / MODEL_FILE).read_bytes())
    (meta,) = saved.meta_graphs
    nodes = {node.name: node for node in meta.graph_def.node}
    for name, signature in meta.signature_def.items():
        signature.method_name = _METHODS.get(name, signature.method_name)
        for key, info in signature.inputs.items() if name in ("serving_default", "rank") else ():
            value = tf.make_tensor_proto(missing(tf.as_dtype(info.dtype), len(info.tensor_shape.dim)))
            signature.defaults[key].CopyFrom(value)
            node = nodes[info.name.partition(":")[0]]
            default = meta.graph_def.node.add(name=f"{node.name}/default", op="Const")
            default.attr["dtype"].type = info.dtype
            default.attr["value"].tensor.CopyFrom(value)
            node.op = "PlaceholderWithDefault"
            node.input.append(default.name)
    (directory / MODEL_FILE).write_bytes(saved.SerializeToString())
    # The fingerprint of the unchanged file; nothing needs it.
    (directory / "fingerprint.pb").unlink(missing_ok=True)

"""Score golden rows with an exported model in a separate process, and compare the results with the trainer's.

Run as a script, ``python -I canary.py MODEL_DIR GOLDEN_JSON TOLERANCE``. It imports only TensorFlow and NumPy, and ensures that
clsd cannot be imported, as on a model server. It calls each signature. The last line is the largest difference; the exit code
is 0 if it is within the tolerance, otherwise 1.
"""

import json
import math
import os
import sys
from typing import Any

OURS = {"clsd"}
INPUT_DEFAULTS = {"string": "", "int64": -(2**63), "float32": math.nan}


class Block:
    """Import hook that blocks clsd."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Part of the import protocol."""
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is blocked: a model server has no such package")


def main() -> int:
    """Run the canary; see the module."""
    model_dir, golden_file, tolerance = sys.argv[1], sys.argv[2], float(sys.argv[3])
    sys.meta_path.insert(0, Block())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf

    with open(golden_file, encoding="utf-8") as file:
        golden = json.load(file)
    loaded = tf.saved_model.load(model_dir)
    raw = loaded.signatures["serving_default"]
    specs = raw.structured_input_signature[1]
    rows = len(golden["expected"]["score"])

    def tensor(values: Any, spec: Any) -> Any:
        """Nested lists as a tensor of the spec's rank; the innermost lists are padded."""
        default, depth = INPUT_DEFAULTS[spec.dtype.name], spec.shape.rank
        width = max([len(row) for row in flat(values, depth - 2)] + [1]) if depth > 1 else 0

        def padded(part: Any, level: int) -> Any:
            if level == 0:
                return default if part is None else part
            filled = [padded(value, level - 1) for value in part]
            return filled + [default] * (width - len(filled)) if level == 1 and depth > 1 else filled

        return tf.constant(padded(values, depth), spec.dtype)

    def flat(values: list[Any], levels: int) -> list[Any]:
        for _ in range(levels):
            values = [value for row in values for value in row]
        return values

    examples = []
    for row in range(rows):
        example = tf.train.Example()
        for name, spec in specs.items():
            value = golden["inputs"][name][row]
            values = value if isinstance(value, list) else [] if value is None else [value]
            feature = example.features.feature[name]
            if spec.dtype == tf.string:
                feature.bytes_list.value.extend(v.encode() for v in values)
            elif spec.dtype == tf.int64:
                feature.int64_list.value.extend(values)
            elif values:
                feature.float_list.value.extend(values)
        examples.append(example.SerializeToString())

    serialized, expected = tf.constant(examples, tf.string), golden["expected"]
    click = [[1.0 - ctr, ctr] for ctr in expected["ctr"]]
    calls = {
        "serving_default": ({name: tensor(golden["inputs"][name], spec) for name, spec in specs.items()}, expected),
        "serialized_examples": ({"examples": serialized}, expected),
        "classify": ({"inputs": serialized}, {"scores": click}),
        "regress": ({"inputs": serialized}, {"outputs": expected["ctr"]}),
    }
    if "rank" in golden:
        ranked, rank_specs = golden["rank"], loaded.signatures["rank"].structured_input_signature[1]
        tensors = {name: tensor(ranked["inputs"][name], spec) for name, spec in rank_specs.items()}
        calls["rank"] = (tensors, ranked["expected"])
    worst = 0.0
    for signature, (inputs, wanted) in calls.items():
        outputs = loaded.signatures[signature](**inputs)
        for name, values in wanted.items():
            right = np.array(values, np.float32).reshape(outputs[name].shape)
            # Relative above 1: a confidence may be several times 1.
            difference = np.abs(outputs[name].numpy() - right) / np.maximum(1.0, np.abs(right))
            if not np.isfinite(difference).all():
                worst = math.inf
            worst = max(worst, float(np.max(difference, initial=0.0)))
    print(worst)
    return 0 if worst <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main())

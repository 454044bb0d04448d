"""Ask an exported model in a process that knows nothing of this project, and compare its answers with the trainer's.

Run as a script, ``python -I canary.py MODEL_DIR GOLDEN_JSON TOLERANCE``. It imports TensorFlow and NumPy alone, and makes
sure that this project's packages cannot be imported, as on a model server. Both signatures are asked. The last line is the
largest difference; the exit code is 0 if it is within the tolerance, else 1.
"""

import json
import math
import os
import sys

OURS = {"features", "models", "pipeline"}
INPUT_DEFAULTS = {"string": "", "int64": -(2**63), "float32": math.nan}


class Block:
    """Refuses to import this project."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Part of the import protocol."""
        if name.partition(".")[0] in OURS:
            raise ImportError(f"{name} is blocked: a model server has no such package")


def main() -> int:
    """See the module."""
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
    tensors, rows = {}, len(golden["expected"]["score"])
    for name, spec in specs.items():
        default = INPUT_DEFAULTS[spec.dtype.name]
        values = golden["inputs"][name]
        if spec.shape.rank == 2:
            width = max([len(row) for row in values] + [1])
            values = [row + [default] * (width - len(row)) for row in values]
        else:
            values = [default if value is None else value for value in values]
        tensors[name] = tf.constant(values, spec.dtype)

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

    worst = 0.0
    for answer in (raw(**tensors), loaded.signatures["serialized_examples"](examples=tf.constant(examples))):
        for name, expected in golden["expected"].items():
            difference = np.abs(answer[name].numpy() - np.array(expected, np.float32))
            worst = max(worst, float(np.max(difference)) if np.isfinite(difference).all() else math.inf)
    print(worst)
    return 0 if worst <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main())

"""Answers of a SavedModel by TensorFlow's C API, in the way a model server asks it: a session of the tag `serve`, fed by the
names that the signature gives its tensors, in a process that imports neither TensorFlow's Python nor this project.

    python c_session.py --describe DESCRIPTORS
    python -I c_session.py MODEL_DIR REQUESTS LIBRARY DESCRIPTORS [ROUNDS]
    python -I c_session.py MODEL_DIR REQUESTS LIBRARY DESCRIPTORS --soak|--control COUNT

REQUESTS is a warm-up file: TFRecords of PredictionLog. LIBRARY is TensorFlow's own, libtensorflow_cc.so.2. DESCRIPTORS
describes the messages; the first form, which does import TensorFlow, writes it. One line of JSON a request is printed:
signature, outputs and, where ROUNDS is given, the seconds that each of so many calls took. The last form sends COUNT requests,
drawn at random, and prints the process's memory ten times on the way; with --control the requests are made, and the model is not
asked.
"""

import ctypes
import json
import random
import resource
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

STRING = 7
DTYPES = {1: np.float32, 3: np.int32, 9: np.int64}
TSTRING_BYTES = 24
P = ctypes.c_void_p
#: Functions that give a pointer.
POINTERS = (
    "TF_NewStatus",
    "TF_NewGraph",
    "TF_NewSessionOptions",
    "TF_NewBuffer",
    "TF_LoadSessionFromSavedModel",
    "TF_GraphOperationByName",
    "TF_AllocateTensor",
    "TF_TensorData",
    "TF_StringGetDataPointer",
)


def descriptors() -> bytes:
    """The descriptions of TF Serving's messages and of a SavedModel's, for a process that does not import them."""
    from tensorflow.core.protobuf import meta_graph_pb2
    from tensorflow_serving.apis import prediction_log_pb2

    out, seen = descriptor_pb2.FileDescriptorSet(), set()

    def add(file: Any) -> None:
        if file.name not in seen:
            seen.add(file.name)
            for dependency in file.dependencies:
                add(dependency)
            file.CopyToProto(out.file.add())

    add(prediction_log_pb2.DESCRIPTOR)
    add(meta_graph_pb2.DESCRIPTOR)
    return out.SerializeToString()


class Output(ctypes.Structure):
    """TF_Output."""

    _fields_ = (("operation", P), ("index", ctypes.c_int))


class Session:
    """A loaded model."""

    def __init__(self, model: str, library: str, meta_graph: Any) -> None:
        self._c = c = ctypes.CDLL(library)
        for name in POINTERS:
            getattr(c, name).restype = P
        c.TF_Message.restype = ctypes.c_char_p
        c.TF_StringGetSize.restype = c.TF_TensorElementCount.restype = c.TF_Dim.restype = ctypes.c_int64
        self._status, self._graph = P(c.TF_NewStatus()), P(c.TF_NewGraph())
        buffer = P(c.TF_NewBuffer())
        tags = (ctypes.c_char_p * 1)(b"serve")
        options = P(c.TF_NewSessionOptions())
        self._session = P(
            c.TF_LoadSessionFromSavedModel(options, None, model.encode(), tags, 1, self._graph, buffer, self._status)
        )
        self._check()
        data, length = (
            ctypes.cast(buffer, ctypes.POINTER(P))[0],
            ctypes.cast(buffer, ctypes.POINTER(ctypes.c_size_t))[1],
        )
        self.signatures = meta_graph.FromString(ctypes.string_at(data, length)).signature_def

    def _check(self) -> None:
        if self._c.TF_GetCode(self._status):
            raise RuntimeError(self._c.TF_Message(self._status).decode())

    def _output(self, name: str) -> Output:
        operation, _, index = name.partition(":")
        result = self._c.TF_GraphOperationByName(self._graph, operation.encode())
        assert result, f"the graph has no {operation}"
        return Output(result, int(index or 0))

    def _tensor(self, values: Any) -> Any:
        c, dims = self._c, (ctypes.c_int64 * values.ndim)(*values.shape)
        if values.dtype == object:
            tensor = P(c.TF_AllocateTensor(STRING, dims, values.ndim, ctypes.c_size_t(TSTRING_BYTES * values.size)))
            start = c.TF_TensorData(tensor)
            for at, text in enumerate(values.ravel()):
                cell = P(start + at * TSTRING_BYTES)
                c.TF_StringInit(cell)
                c.TF_StringCopy(cell, text, ctypes.c_size_t(len(text)))
            return tensor
        code = next(code for code, dtype in DTYPES.items() if dtype == values.dtype)
        tensor = P(c.TF_AllocateTensor(code, dims, values.ndim, ctypes.c_size_t(values.nbytes)))
        if values.nbytes:
            ctypes.memmove(c.TF_TensorData(tensor), np.ascontiguousarray(values).ctypes.data, values.nbytes)
        return tensor

    def _values(self, tensor: Any) -> Any:
        c = self._c
        shape = [c.TF_Dim(tensor, i) for i in range(c.TF_NumDims(tensor))]
        size, start = int(np.prod(shape, dtype=np.int64)), c.TF_TensorData(tensor)
        if c.TF_TensorType(tensor) == STRING:
            cells = [P(start + at * TSTRING_BYTES) for at in range(size)]
            texts = [ctypes.string_at(c.TF_StringGetDataPointer(cell), c.TF_StringGetSize(cell)) for cell in cells]
            return np.array([text.decode() for text in texts], object).reshape(shape)
        dtype = DTYPES[c.TF_TensorType(tensor)]
        content = ctypes.string_at(start, size * np.dtype(dtype).itemsize) if size else b""
        return np.frombuffer(content, dtype).reshape(shape)

    def make(self, inputs: dict[str, Any]) -> None:
        """Make the tensors of a request, and free them."""
        for tensor in [self._tensor(values) for values in inputs.values()]:
            self._c.TF_DeleteTensor(tensor)

    def ask(self, signature: str, inputs: dict[str, Any], rounds: int = 0) -> tuple[dict[str, Any], list[float]]:
        """The outputs of a signature by name, and the seconds of so many more calls."""
        c, signed = self._c, self.signatures[signature]
        feeds = (Output * len(inputs))(*(self._output(signed.inputs[name].name) for name in inputs))
        tensors = (P * len(inputs))(*(self._tensor(values) for values in inputs.values()))
        fetches = (Output * len(signed.outputs))(*(self._output(info.name) for info in signed.outputs.values()))
        result = (P * len(fetches))()

        def run() -> None:
            c.TF_SessionRun(
                self._session,
                None,
                feeds,
                tensors,
                len(feeds),
                fetches,
                result,
                len(fetches),
                None,
                0,
                None,
                self._status,
            )
            self._check()

        run()
        answers = {name: self._values(P(tensor)) for name, tensor in zip(signed.outputs, result, strict=True)}
        seconds = []
        for _ in range(rounds):
            for tensor in result:
                c.TF_DeleteTensor(P(tensor))
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        for tensor in (*result, *tensors):
            c.TF_DeleteTensor(P(tensor))
        return answers, seconds


def array(proto: Any) -> Any:
    """A TensorProto as NumPy's array; of text, of bytes."""
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.dtype == STRING:
        values = np.array([*proto.string_val], object)
    elif proto.tensor_content:
        values = np.frombuffer(proto.tensor_content, DTYPES[proto.dtype])
    else:
        values = np.array(
            [*getattr(proto, {1: "float_val", 3: "int_val", 9: "int64_val"}[proto.dtype])], DTYPES[proto.dtype]
        )
    size = int(np.prod(shape, dtype=np.int64))
    return np.resize(values, size).reshape(shape) if size else np.empty(shape, values.dtype)


def records(path: str) -> list[bytes]:
    """The records of a file of TFRecords."""
    content, out, at = Path(path).read_bytes(), [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        out.append(content[at + 12 : at + 12 + length])
        at += 12 + length + 4
    return out


def soak(session: Session, requests: list[tuple[str, dict[str, Any]]], count: int, *, ask: bool) -> None:
    """Send so many requests, and print the process's memory ten times on the way. Small requests are frequent, as in service."""
    draw, page = random.Random(7), resource.getpagesize()
    sizes = [
        max(values.shape[-1] if name == "rank" else len(values) for values in inputs.values())
        for name, inputs in requests
    ]
    chosen = draw.choices(requests, [1 / size for size in sizes], k=count)
    for number, (signature, inputs) in enumerate(chosen, 1):
        if ask:
            session.ask(signature, inputs)
        else:
            session.make(inputs)
        if number % (count // 10) == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
            print(json.dumps({"requests": number, "mebibytes": resident / 2**20}), flush=True)


def main() -> None:
    """See the module."""
    if sys.argv[1] == "--describe":
        Path(sys.argv[2]).write_bytes(descriptors())
        return
    model, requests, library, described = sys.argv[1:5]
    mode = sys.argv[5] if sys.argv[5:] and sys.argv[5].startswith("--") else ""
    rounds = int(sys.argv[5]) if len(sys.argv) > 5 and not mode else 0
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(Path(described).read_bytes()).file:
        pool.Add(file)
    log_class, meta_graph = (
        message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
        for name in ("tensorflow.serving.PredictionLog", "tensorflow.MetaGraphDef")
    )
    session = Session(model, library, meta_graph)
    asked = []
    for record in records(requests):
        log = log_class.FromString(record)
        request = getattr(log, log.WhichOneof("log_type")).request
        if log.WhichOneof("log_type") == "predict_log":
            inputs = {name: array(proto) for name, proto in request.inputs.items()}
        else:
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            inputs = {"inputs": np.array(examples, object)}
        asked.append((request.model_spec.signature_name, inputs))
        if mode:
            continue
        answers, seconds = session.ask(request.model_spec.signature_name, inputs, rounds)
        answer = {
            "signature": request.model_spec.signature_name,
            "outputs": {name: values.tolist() for name, values in answers.items()},
            "seconds": seconds,
        }
        print(json.dumps(answer), flush=True)
    if mode:
        soak(session, asked, int(sys.argv[6]), ask=mode == "--soak")
    assert not any(name.partition(".")[0] in ("tensorflow", "features", "models", "pipeline") for name in sys.modules)


if __name__ == "__main__":
    main()

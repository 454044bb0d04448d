"""The record format: blocks of rows as TFRecords, written and read without TensorFlow.

A record is a ``tf.train.Example`` that holds a block of rows as little-endian buffers, so writing and parsing copy memory instead
of looping in Python::

    rows        int64 [1]     number of rows n
    ids         int32 [n, fixed_width]          features with exactly one id a row
    <name>.lengths int32 [n]  and <name>.ids int32 [sum of lengths]   for each bag and sequence
    values      float32 [n, n_numeric]
    label       uint8 [n]
    key, user   uint64 [n];  timestamp int64 [n];  intensity float32 [n]
    passthrough an Arrow IPC stream of strings, only where the schema names such columns

The message class is built from a descriptor equal to that of tensorflow/core/example, so a preprocessing worker needs
protobuf but not TensorFlow.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple, cast

import google_crc32c
import numpy as np
import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from clsd.features.encoded_rows import EncodedRows
from clsd.features.errors import UserError
from clsd.features.paths import as_path
from clsd.features.schema import Schema

# Level 6 would halve the writing speed for hardly smaller files.
_GZIP_LEVEL = 4


def _example_class() -> Any:
    """The ``tf.train.Example`` message, in a separate descriptor pool, so that TensorFlow's can be loaded too."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="clsd/example.proto", package="clsd", syntax="proto3")

    def message(name: str, *members: tuple[str, int, int, int, str], oneof: bool = False) -> Any:
        made = file.message_type.add(name=name)
        if oneof:
            made.oneof_decl.add(name="kind")
        for member, number, label, kind, type_name in members:
            added = made.field.add(name=member, number=number, label=label, type=kind, type_name=type_name or None)
            if oneof:
                added.oneof_index = 0
        return made

    optional, repeated, sub = field.LABEL_OPTIONAL, field.LABEL_REPEATED, field.TYPE_MESSAGE
    message("BytesList", ("value", 1, repeated, field.TYPE_BYTES, ""))
    message("FloatList", ("value", 1, repeated, field.TYPE_FLOAT, ""))
    message("Int64List", ("value", 1, repeated, field.TYPE_INT64, ""))
    message(
        "Feature",
        ("bytes_list", 1, optional, sub, ".clsd.BytesList"),
        ("float_list", 2, optional, sub, ".clsd.FloatList"),
        ("int64_list", 3, optional, sub, ".clsd.Int64List"),
        oneof=True,
    )
    features = message("Features", ("feature", 1, repeated, sub, ".clsd.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=optional, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=optional, type=sub, type_name=".clsd.Feature")
    message("Example", ("features", 1, optional, sub, ".clsd.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("clsd.Example"))


Example = _example_class()

_PLAIN = {"label": "u1", "key": "<u8", "user": "<u8", "timestamp": "<i8", "intensity": "<f4"}


def serialize_block(schema: Schema, rows: EncodedRows) -> bytes:
    """One block as a serialized ``tf.train.Example``; equal rows give equal bytes."""
    example = Example()
    feature = example.features.feature
    feature["rows"].int64_list.value.append(len(rows))
    buffers = {
        "ids": rows.ids[:, : schema.fixed_width].astype("<i4").tobytes(),
        "values": rows.values.astype("<f4").tobytes(),
    }
    buffers |= {name: getattr(rows, name).astype(kind).tobytes() for name, kind in _PLAIN.items()}
    for ragged in schema.ragged:
        padded = rows.ids[:, schema.id_slices[ragged.name]]
        buffers[f"{ragged.name}.lengths"] = (padded != 0).sum(axis=1).astype("<i4").tobytes()
        buffers[f"{ragged.name}.ids"] = padded[padded != 0].astype("<i4").tobytes()
    if schema.passthrough:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.passthrough.schema) as writer:
            # A copy: of a slice, the stream would hold bytes of its neighbours.
            writer.write_batch(rows.passthrough.take(pa.array(np.arange(len(rows)))))
        buffers["passthrough"] = sink.getvalue().to_pybytes()
    for name, buffer in buffers.items():
        feature[name].bytes_list.value.append(buffer)
    return bytes(example.SerializeToString(deterministic=True))


def parse_block(schema: Schema, serialized: bytes) -> EncodedRows:
    """Parse what :func:`serialize_block` wrote; the NumPy twin of :func:`clsd.features.input_pipeline.parse_blocks`."""
    feature = Example.FromString(serialized).features.feature
    n = feature["rows"].int64_list.value[0]

    def buffer(name: str, kind: str) -> np.ndarray[Any, Any]:
        return np.frombuffer(feature[name].bytes_list.value[0], dtype=kind)

    ids = np.zeros((n, schema.width), dtype=np.int32)
    ids[:, : schema.fixed_width] = buffer("ids", "<i4").reshape(n, schema.fixed_width)
    for ragged in schema.ragged:
        at = schema.id_slices[ragged.name]
        filled = np.arange(ragged.max_length) < buffer(f"{ragged.name}.lengths", "<i4")[:, None]
        ids[:, at][filled] = buffer(f"{ragged.name}.ids", "<i4")
    if schema.passthrough:
        with pa.ipc.open_stream(feature["passthrough"].bytes_list.value[0]) as reader:
            passthrough = reader.read_next_batch()
    else:
        passthrough = pa.RecordBatch.from_arrays([], names=[])
    return EncodedRows(
        ids=ids,
        values=buffer("values", "<f4").reshape(n, len(schema.numeric)),
        passthrough=passthrough,
        **{name: buffer(name, kind) for name, kind in _PLAIN.items()},
    )


class Written(NamedTuple):
    """A written file: number of records, bytes, CRC-32C, and the CRC-32C of its first record's data, which tells files apart."""

    records: int
    bytes: int
    crc32c: int
    first_crc32c: int


def write_records(file: IO[bytes], records: Iterator[bytes], *, gzipped: bool = False) -> Written:
    """Write records in TFRecord framing: length, masked CRC-32C of it, data, masked CRC-32C of the data.

    Args:
        file: the file to write.
        records: serialized blocks.
        gzipped: whether to compress the file as one gzip stream. It has no name and no time, so equal records give equal bytes.
    """
    count = size = crc = first = 0
    packer = zlib.compressobj(_GZIP_LEVEL, wbits=31) if gzipped else None
    for data in records:
        first = first if count else int(google_crc32c.value(data))
        length = struct.pack("<Q", len(data))
        framed = b"".join((length, _masked(length), data, _masked(data)))
        framed = packer.compress(framed) if packer else framed
        file.write(framed)
        count, size, crc = count + 1, size + len(framed), google_crc32c.extend(crc, framed)
    if packer:
        rest = packer.flush()
        file.write(rest)
        size, crc = size + len(rest), google_crc32c.extend(crc, rest)
    return Written(count, size, crc, first)


def first_crc32c(path: str) -> int:
    """CRC-32C of the data of a file's first record; 0 if it has none.

    Raises:
        UserError: the record is damaged.
    """
    with open_records(path) as file:
        data = next(read_records(file, path), None)
    return 0 if data is None else int(google_crc32c.value(data))


def open_records(path: str) -> IO[bytes]:
    """Open a TFRecord file for reading, through gzip if its name ends in .gz."""
    file = as_path(path).open("rb")
    return cast(IO[bytes], gzip.open(file) if is_gzipped(path) else file)


def is_gzipped(path: str) -> bool:
    """Whether a shard is compressed, by its name."""
    return path.endswith(".gz")


def begins_as_records(head: bytes) -> bool:
    """Whether these first 12 bytes are a TFRecord header: a length and its checksum."""
    return len(head) == 12 and head[8:] == _masked(head[:8])


def read_records(file: IO[bytes], name: str) -> Iterator[bytes]:
    """The records of a TFRecord file; checksums are verified.

    Raises:
        UserError: the file ends inside a record, or a checksum differs; it names the file and the record.
    """
    at = 0
    while header := _read(file, 12, name, at):
        if not begins_as_records(header):
            raise _damaged(name, at, "its header is truncated or altered")
        (length,) = struct.unpack("<Q", header[:8])
        data, footer = _read(file, length, name, at), _read(file, 4, name, at)
        if len(data) < length or len(footer) < 4:
            raise _damaged(name, at, "the file ends inside it")
        if footer != _masked(data):
            raise _damaged(name, at, "its checksum differs")
        yield data
        at += 1


def offset_of(path: str, record: int) -> int:
    """Byte offset of a record of an uncompressed TFRecord file, found from the lengths of the records before it.

    Raises:
        UserError: the file has fewer records.
    """
    at = 0
    with as_path(path).open("rb") as file:
        for number in range(record):
            file.seek(at)
            length = file.read(8)
            if len(length) < 8:
                raise _damaged(path, number, "the file ends before it")
            at += 16 + int(struct.unpack("<Q", length)[0])
    return at


def _read(file: IO[bytes], size: int, name: str, record: int) -> bytes:
    try:
        return file.read(size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(name, record, f"its gzip stream is truncated or altered ({error})") from None


def _damaged(name: str, record: int, what: str) -> UserError:
    return UserError(
        name, f"record {record} is damaged: {what}", "restore the file, or run preprocess again with --overwrite"
    )


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)

"""Seeded 64-bit hashes and random keys that are the same on every machine, engine and number of workers."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from clsd.features.arrays import Float64s, Int64s, UInt64s
from clsd.features.tokens import as_dictionary

_ZERO = bytes(8)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix64(values: npt.ArrayLike) -> UInt64s:
    """A bijection of uint64 whose output bits look random: the finaliser of SplitMix64 (Steele, Lea & Flood 2014).

    Args:
        values: uint64 array of any shape.

    Returns:
        uint64 array of the same shape.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(values, dtype=np.uint64) + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


def seeded(values: npt.ArrayLike, *salts: int) -> UInt64s:
    """``mix64`` chained over the salts: independent random keys for each combination of salts."""
    keys = np.asarray(values, dtype=np.uint64)
    for salt in salts:
        keys = mix64(keys ^ mix64(np.uint64(salt % 2**64)))
    return keys


def unit_interval(keys: UInt64s) -> Float64s:
    """Uniform float64 in [0, 1) from the upper 53 bits of random keys."""
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash64(values: pa.Array) -> UInt64s:
    """BLAKE2b of 8 bytes of each text; computed once per distinct value.

    Args:
        values: Arrow array ``[rows]`` of strings (other types are cast). Null becomes 0, which no text does.

    Returns:
        uint64 ``[rows]``.
    """
    encoded = as_dictionary(values)
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    texts = encoded.dictionary.cast(pa.string()).cast(pa.binary()).to_pylist()
    digests = [_ZERO if text is None else blake2b(text, digest_size=8).digest() for text in texts]
    table = np.frombuffer(b"".join([*digests, _ZERO]), "<u8").astype(np.uint64)
    codes = pc.fill_null(encoded.indices, len(digests)).to_numpy(zero_copy_only=False)
    return np.asarray(table[codes], dtype=np.uint64)


def bin_of(values: pa.Array, bins: int) -> Int64s:
    """``tf.strings.to_hash_bucket_fast`` (FarmHash fingerprint modulo ``bins``) of each text; -1 for null.

    TensorFlow computes it on the distinct values, so the bins are the serving graph's by construction. It is imported only if a
    schema hashes values.
    """
    from clsd.features.tf_runtime import tf

    encoded = pc.dictionary_encode(values)
    texts = [text.encode() for text in encoded.dictionary.to_pylist()]
    table = np.array([*tf.strings.to_hash_bucket_fast(tf.constant(texts, tf.string), bins).numpy(), -1], dtype=np.int64)
    codes = pc.fill_null(encoded.indices, len(texts)).to_numpy(zero_copy_only=False)
    return np.asarray(table[codes], dtype=np.int64)

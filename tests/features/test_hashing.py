"""Hashes: the published constants, a bijection, TensorFlow's bins."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from clsd.features.hashing import bin_of, hash64, mix64, seeded, unit_interval
from clsd.features.tf_runtime import tf

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


def _unmixed(z: int) -> int:
    """The inverse of mix64: its steps undone from last to first."""

    def unshifted(y: int, by: int) -> int:
        x = y
        for _ in range(64 // by):
            x = y ^ (x >> by)
        return x

    z = unshifted(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) & MASK
    z = unshifted(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & MASK
    return (unshifted(z, 30) - GOLDEN) & MASK


def test_mix64_gives_the_published_splitmix64_stream_of_seed_0():
    states = np.array([0, GOLDEN, 2 * GOLDEN & MASK], np.uint64)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_mix64_can_be_undone():
    values = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64)
    values[:3] = 0, 1, MASK
    assert [_unmixed(z) for z in mix64(values).tolist()] == values.tolist()


def test_mix64_keeps_the_shape():
    values = np.arange(6, dtype=np.uint64).reshape(2, 3)
    assert mix64(values).shape == (2, 3)
    assert mix64(np.uint64(0)) == 0xE220A8397B1DCDAF


def test_keys_of_different_salts_have_nothing_in_common():
    values = np.arange(1000, dtype=np.uint64)
    keys = [seeded(values, *salts) for salts in [(1,), (2,), (-1,), (1, 2), (2, 1)]]
    assert len(np.unique(np.concatenate(keys))) == 5000


def test_keys_of_the_same_salts_are_the_same():
    values = np.arange(10, dtype=np.uint64)
    assert (seeded(values, 7, -3) == seeded(values, 7, 2**64 - 3)).all()


def test_unit_interval_holds_0_and_leaves_out_1():
    low, high = unit_interval(np.array([0, MASK], np.uint64))
    assert low == 0.0
    assert high == 1.0 - 2.0**-53


def test_unit_interval_is_uniform_over_counted_keys():
    tenths = np.bincount((unit_interval(seeded(np.arange(100_000), 5)) * 10).astype(int), minlength=10)
    assert ((tenths - 10_000.0) ** 2 / 10_000).sum() < 27.9  # chi-squared with 9 degrees of freedom, p = 0.001


def test_hash64_is_blake2b_of_the_utf8_text():
    expected = int.from_bytes(hashlib.blake2b("日本".encode(), digest_size=8).digest(), "little")
    assert hash64(pa.array(["日本"])).tolist() == [expected]


def test_hash64_of_null_is_0_and_of_empty_text_is_not():
    null, empty = hash64(pa.array([None, ""], pa.string()))
    assert null == 0
    assert empty != 0


@pytest.mark.parametrize(
    "same",
    [
        pa.array(["1", "22", None, "1"]),
        pa.array([1, 22, None, 1]),
        pa.array(["1", "22", None, "1"]).dictionary_encode(),
        pa.chunked_array([["1", "22"], pa.array([None, "1"])]),
        pa.array(["0", "1", "22", None, "1"]).slice(1),
    ],
    ids=["strings", "integers", "dictionary", "chunks", "slice"],
)
def test_hash64_sees_the_text_and_not_how_it_is_stored(same: pa.Array):
    one, two = (int(hash64(pa.array([text]))[0]) for text in ("1", "22"))
    assert hash64(same).tolist() == [one, two, 0, one]
    assert one != two


def test_hash64_of_no_rows_is_empty():
    assert hash64(pa.array([], pa.string())).shape == (0,)


def test_bin_of_is_the_bin_that_tensorflow_serves():
    texts = ["", "a", "日本", "a", "x\x00y", *(f"value {i}" for i in range(200))]
    for bins in (1, 2, 97, 2**31):
        expected = [int(tf.strings.to_hash_bucket_fast(text.encode(), bins)) for text in texts]
        assert bin_of(pa.array(texts), bins).tolist() == expected


def test_bin_of_null_is_minus_1():
    assert bin_of(pa.array([None, "a", None], pa.string()), 1).tolist() == [-1, 0, -1]
    assert bin_of(pa.array([None], pa.string()), 5).tolist() == [-1]
    assert bin_of(pa.array([], pa.string()), 5).tolist() == []

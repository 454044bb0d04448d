"""Rows per second of `clsd preprocess`, compared with the usual Beam pipeline and with the same work written by hand.

The input is a synthetic log of 20 categorical and 10 numeric features, as JSON lines and as Parquet. All sides write their
results:

- usual: ReadFromText, json.loads and one tf.train.Example per row in DoFns, WriteToTFRecord; no vocabularies. Its rate does
  not depend on the number of rows, so it gets a fiftieth of them;
- jsonl, parquet: `clsd preprocess` in one process, on the same engine as the usual pipeline, with one thread per core;
- by hand: pyarrow and NumPy in one process, with all rows in memory: Parquet, vocabularies, encoding, permutation, blocks;
- one, two: parquet with one and with two worker processes of one thread each; and the same for a log four times as long, for
  which the two seconds of process starts matter less.

Before a side's clock starts, the files of its last round are removed and the disk's write cache is flushed. Before all
measurements, the benchmark checks that the job and the work by hand write the same number of rows and equal vocabulary sizes.

    python benchmarks/preprocess.py [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import Goal, arguments, finish, median_ratio, rates, show

from clsd.features.encoded_rows import EncodedRows
from clsd.features.records import serialize_block, write_records
from clsd.features.schema import Schema
from clsd.features.tf_runtime import tf
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import parse_config
from clsd.pipeline.shared.dataset import Dataset

CATEGORICAL = ["user_id", "item_id", "age_band", "gender", "category", *(f"cat_{i}" for i in range(15))]
NUMERIC = ["hour", *(f"num_{i}" for i in range(9))]
BLOCK = 512
LONGER = 4


def make_config(log: Path, threads: int = 0) -> Config:
    features = [
        *({"name": name, "kind": "categorical"} for name in CATEGORICAL),
        *({"name": name, "kind": "numeric"} for name in NUMERIC),
    ]
    rows = {"label": "click", "user": "user_id", "timestamp": "timestamp", "features": features}
    split = {"by": "hash", "key": "user_id", "validation": 0.1, "test": 0.1}
    raw = {
        "name": "benchmark",
        "logs": {"files": [str(log)]},
        "rows": rows,
        "preprocess": {"split": split, "threads": threads},
    }
    return parse_config({**raw, "confidence": {"gate": "off"}}, "benchmark")


def usual(log: Path, out: Path) -> None:
    """One Example a row, in Python."""

    def to_example(row: dict[str, Any]) -> bytes:
        feature = {
            name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[row[name].encode()])) for name in CATEGORICAL
        }
        feature |= {name: tf.train.Feature(float_list=tf.train.FloatList(value=[row[name]])) for name in NUMERIC}
        feature["click"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[row["click"]]))
        return bytes(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    with beam.Pipeline() as pipeline:
        _ = (
            pipeline
            | beam.io.ReadFromText(str(log))
            | "Parse" >> beam.Map(json.loads)
            | "Example" >> beam.Map(to_example)
            | beam.io.WriteToTFRecord(str(out / "part"), file_name_suffix=".tfrecord")
        )


def by_hand(log: Path, out: Path, schema: Schema) -> dict[str, int]:
    """All rows in memory; gives the sizes of the vocabularies of the training rows."""
    table = pq.read_table(log)
    rng = np.random.default_rng(1)
    users = pc.dictionary_encode(table["user_id"].combine_chunks()).indices.to_numpy()
    split = rng.choice(3, users.max() + 1, p=[0.8, 0.1, 0.1])[users]
    training = pa.array(split == 0)
    ids, sizes = np.empty((len(table), len(CATEGORICAL)), np.int32), {}
    for at, name in enumerate(CATEGORICAL):
        column = table[name].combine_chunks()
        counts = pc.value_counts(column.filter(training))
        order = np.argsort(-counts.field("counts").to_numpy(), kind="stable")
        vocabulary = counts.field("values").take(pa.array(order))
        sizes[name] = len(vocabulary)
        ids[:, at] = pc.fill_null(pc.index_in(column, value_set=vocabulary), -1).to_numpy() + 3
    values = np.empty((len(table), len(NUMERIC)), np.float32)
    for at, name in enumerate(NUMERIC):
        x = table[name].to_numpy().astype(np.float32)
        mine = x[split == 0]
        values[:, at] = (x - mine.mean()) / mine.std()
    rows = EncodedRows(
        key=rng.integers(0, 2**63, len(table)).astype(np.uint64),
        ids=ids,
        values=values,
        label=table["click"].to_numpy().astype(np.uint8),
        user=users.astype(np.uint64),
        timestamp=table["timestamp"].to_numpy() * 1_000_000,
        intensity=np.full(len(table), np.nan, np.float32),
        passthrough=pa.RecordBatch.from_arrays([], names=[]),
    )
    for number in range(3):
        mine_rows = rows.take(split == number).sorted_by_key()
        starts = range(0, len(mine_rows), BLOCK)
        with open(out / f"{number}.tfrecord", "wb") as file:
            write_records(file, (serialize_block(schema, mine_rows.take(slice(at, at + BLOCK))) for at in starts))
    return sizes


def check(config: Config, log: Path, directory: Path, rows: int) -> None:
    """Every side's output holds what it should."""
    made = preprocess(config, directory / "check", overwrite=True)
    assert sum(made.rows(split) for split in made.splits) == rows
    shutil.rmtree(directory / "hand", ignore_errors=True)
    (directory / "hand").mkdir()
    sizes = by_hand(log, directory / "hand", config.row_schema)
    for name, size in sizes.items():
        result = len(made.transform.vocabularies[name])
        assert abs(result - size) <= 0.1 * size + 5, (
            f"{name}: {result} values, by hand {size}"
        )  # of other training users
    assert len(Dataset.load(directory / "check").read("test")) == made.rows("test")


def main() -> None:
    """See the module."""
    options = arguments(__doc__ or "")
    rows, rounds = (200_000, 2) if options.quick else (5_000_000, 5)
    few = max(rows // 50, 10_000)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        logs = {}
        for format, n in (("jsonl", rows), ("parquet", rows), ("few.jsonl", few), ("long.parquet", LONGER * rows)):
            made = SyntheticSettings(rows=n, extra_categorical=15, extra_numeric=9)
            logs[format] = write_dataset(
                "synthetic", directory / "logs" / format, format=format.split(".")[-1], synthetic=made
            )
        config = make_config(logs["parquet"])
        check(config, logs["parquet"], directory, rows)

        def settle(side: str) -> None:
            """What the side wrote before is gone, and the disk owes no side's bytes."""
            shutil.rmtree(directory / side, ignore_errors=True)
            (directory / side).mkdir()
            os.sync()

        def job(side: str, format: str, workers: int = 0) -> Callable[[], int]:
            config = make_config(logs[format], threads=1 if workers else 0)
            beam_options = ["--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"]

            def work() -> int:
                preprocess(config, directory / side / "dataset", beam_options=beam_options if workers else None)
                return LONGER * rows if format == "long.parquet" else rows

            return work

        def do_usual() -> int:
            usual(logs["few.jsonl"], directory / "usual")
            return few

        def do_by_hand() -> int:
            by_hand(logs["parquet"], directory / "by hand", config.row_schema)
            return rows

        sides = {"usual": do_usual, "jsonl": job("jsonl", "jsonl"), "parquet": job("parquet", "parquet")}
        few_workers = {"one": job("one", "parquet", 1), "two": job("two", "parquet", 2)}
        result = rates({**sides, "by hand": do_by_hand, **few_workers}, rounds, settle)
        longer = {side: job(side, "long.parquet", n) for side, n in (("one, longer", 1), ("two, longer", 2))}
        result |= rates(longer, rounds, settle)
    show(f"{rows:,} rows, {len(CATEGORICAL)} categorical and {len(NUMERIC)} numeric features", "rows/s", result)
    goals = [
        Goal("preprocess_jsonl_usual", median_ratio(result, "jsonl", "usual"), 15),
        Goal("preprocess_parquet_usual", median_ratio(result, "parquet", "usual"), 40),
        Goal("preprocess_parquet_by_hand", median_ratio(result, "parquet", "by hand"), 0.7),
        Goal("preprocess_two_one", median_ratio(result, "two", "one"), 1.6),
        Goal("preprocess_two_one_longer", median_ratio(result, "two, longer", "one, longer"), 1.6),
    ]
    finish("rows/s", result, goals, options.json)


if __name__ == "__main__":
    main()

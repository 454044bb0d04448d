from __future__ import annotations

import gzip
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clsd.features.errors import UserError
from clsd.features.hashing import hash64
from clsd.features.schema import Schema
from clsd.features.transform import first_value_id
from clsd.pipeline.preprocess.job import preprocess
from clsd.pipeline.public_data import SyntheticSettings, write_dataset
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def test_every_row_of_the_log_is_in_one_split_encoded_as_itself(small_log: Path, small_dataset: Dataset) -> None:
    log = _rows(small_log)
    schema, transform = small_dataset.schema, small_dataset.transform
    names = {name: transform.id_names(name) for name in ("user_id", "item_id", "age_band", "tags")}
    times = sorted(row["timestamp"] for row in log)
    result: Counter[Any] = Counter()
    for split in small_dataset.splits:
        rows = small_dataset.read(split)
        assert len(rows) == small_dataset.rows(split)
        assert rows.label.mean() == pytest.approx(small_dataset.ctr(split))
        for i in range(len(rows)):
            ids = rows.ids[i]
            tags = ids[schema.id_slices["tags"]]
            result[
                rows.timestamp[i] // 1_000_000,
                int(rows.label[i]),
                names["user_id"][ids[schema.id_slices["user_id"].start]],
                tuple(names["tags"][t] for t in tags if t),
                rows.passthrough["accidental"][i].as_py(),
            ] += 1
    known_users, known_tags = set(names["user_id"]), set(names["tags"])
    expected: Counter[Any] = Counter()
    for row in log:
        user = row["user_id"] if row["user_id"] in known_users else "(unknown)"
        tags = tuple(t if t in known_tags else "(unknown)" for t in (row["tags"] or [])[:3])
        expected[row["timestamp"], row["click"], user, tags, str(row["accidental"])] += 1
    assert result == expected
    # By time: nothing that trains is newer than what validates, nothing that validates newer than what tests.
    ends = [
        (small_dataset.read(s).timestamp.min(), small_dataset.read(s).timestamp.max()) for s in small_dataset.splits
    ]
    assert ends[0][1] < ends[1][0] <= ends[1][1] < ends[2][0]
    assert ends[2][1] == times[-1] * 1_000_000


def test_vocabularies_and_numbers_come_from_training_rows_alone(small_log: Path, small_dataset: Dataset) -> None:
    last = small_dataset.read("train").timestamp.max() // 1_000_000
    training = [row for row in _rows(small_log) if row["timestamp"] <= last]
    assert len(training) == small_dataset.rows("train")
    counts = Counter(row["item_id"] for row in training)
    expected = [i for i, n in sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])) if n >= 2]
    vocabulary = small_dataset.transform.vocabularies["item_id"]
    assert vocabulary.tokens.to_pylist() == expected
    assert vocabulary.rows.tolist() == [counts[i] for i in expected]
    clicks = Counter(row["item_id"] for row in training if row["click"])
    assert vocabulary.clicks.tolist() == [clicks[i] for i in expected]
    logs = np.log1p([row["price"] for row in training])
    price = small_dataset.transform.numerics["price"]
    assert price.mean == pytest.approx(logs.mean(), rel=1e-9)
    assert price.sd == pytest.approx(logs.std(), rel=1e-9)
    hours = np.float32([row["hour"] for row in training])
    cuts = np.unique(np.quantile(hours, np.arange(1, 6) / 6, method="lower"))
    assert list(small_dataset.transform.numerics["hour"].boundaries) == cuts.tolist()


def test_the_manifest_counts_what_is_there(small_log: Path, small_dataset: Dataset) -> None:
    manifest = small_dataset.manifest
    assert manifest["rows"] == {"read": 6000, "kept": 6000, "refused": 0, "in_gap": 0}
    written = {name for row in _rows(small_log) for name in row}
    assert manifest["columns_not_read"] == sorted(written - set(small_dataset.schema.columns))
    rows = small_dataset.read("test")
    oov = (rows.ids[:, small_dataset.schema.id_slices["item_id"].start] == 2).sum()
    assert manifest["splits"]["test"]["quality"]["item_id"]["out_of_vocabulary"] == oov
    assert len(manifest["splits"]["train"]["shards"]) == 2  # 4,800 rows in shards of about 2,000
    users = pa.array([row["user_id"] for row in _rows(small_log)])
    assert set(rows.user.tolist()) <= set(hash64(users).tolist())


def test_records_are_identical_again_with_any_threads_and_with_two_workers(
    small_config: Config, small_dataset: Dataset, tmp_path: Path
) -> None:
    for threads in (1, 3):
        settings = small_config.preprocess.model_copy(update={"threads": threads})
        again = preprocess(small_config.model_copy(update={"preprocess": settings}), tmp_path / f"{threads}")
        assert _files(again.directory) == _files(small_dataset.directory)
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    two = preprocess(small_config, tmp_path / "two", beam_options=options)
    assert _files(two.directory) == _files(small_dataset.directory)


def test_the_order_on_disk_is_shuffled(small_dataset: Dataset) -> None:
    times = small_dataset.read("train").timestamp
    assert abs(np.corrcoef(times, np.arange(len(times)))[0, 1]) < 4 / np.sqrt(len(times))


@pytest.mark.parametrize("form", ["csv", "parquet", "jsonl.gz"])
def test_every_log_format_gives_the_same_rows(
    form: str, make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    synthetic = SyntheticSettings(rows=6000, users=200, items=300, ctr=0.2, seed=3)
    log = write_dataset("synthetic", tmp_path, format=form, synthetic=synthetic)
    config = make_config(logs={"files": [str(log)]})
    if form == "csv":
        raw = config.model_dump(by_alias=True)
        raw["rows"]["features"][6]["separator"] = "|"  # the bag: a CSV has no lists
        config = Config.model_validate(raw)
    rows, same = preprocess(config, tmp_path / "dataset").read("train"), small_dataset.read("train")

    def ordered(r: Any) -> Any:
        order = np.lexsort((*r.ids.T, r.timestamp))
        return r.ids[order], r.values[order], r.label[order], r.intensity[order]

    for mine, theirs in zip(ordered(rows), ordered(same), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_sampled_negatives_and_a_split_by_user(
    make_config: Callable[..., Config], tmp_path: Path, small_log: Path
) -> None:
    clicks = tmp_path / "log.jsonl"
    clicks.write_text("".join(line + "\n" for line in small_log.read_text().splitlines() if '"click":1' in line))
    config = make_config(
        logs={"files": [str(clicks)]},
        preprocess={
            "split": {"by": "user_time", "validation": 0.1, "test": 0.2},
            "negatives": {"per_click": 2, "from": "popularity", "item": "item_id", "item_columns": ["category"]},
        },
    )
    made = preprocess(config, tmp_path / "dataset")
    n = len(_rows(clicks))
    assert sum(made.rows(split) for split in made.splits) == 3 * n
    assert all(made.ctr(split) == pytest.approx(1 / 3) for split in made.splits)
    at = {name: made.schema.id_slices[name].start for name in ("user_id", "item_id")}
    clicked, sampled = set(), set()
    for split in made.splits:
        rows = made.read(split)
        items = rows.ids[:, at["item_id"]]
        known = items >= first_value_id(made.schema.feature("item_id"))  # type: ignore[arg-type]
        pairs = list(zip(rows.user.tolist(), items.tolist(), strict=True))
        clicked |= {p for p, k, y in zip(pairs, known, rows.label, strict=True) if k and y}
        sampled |= {p for p, k, y in zip(pairs, known, rows.label, strict=True) if k and not y}
        assert np.isnan(rows.intensity[rows.label == 0]).all()
    assert sampled
    assert not clicked & sampled
    two = preprocess(
        config, tmp_path / "two", beam_options=["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    )
    assert _files(two.directory) == _files(made.directory)


def _damaged_log(small_log: Path, path: Path, bad: list[bytes]) -> Path:
    lines = small_log.read_bytes().splitlines()
    for number, line in enumerate(bad):
        lines.insert(100 + 7 * number, line)
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


BAD = [b"", b"{", b'{"user_id": "\xff"}', b'{"user_id": 12}', b'{"user_id": "u", "click": 7, "timestamp": 5}']


def test_refused_rows_become_dead_letters_with_place_reason_and_text(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    log = _damaged_log(small_log, tmp_path / "log.jsonl", BAD)
    made = preprocess(make_config(logs={"files": [str(log)]}), tmp_path / "dataset")
    assert made.manifest["rows"] == {"read": 6005, "kept": 6000, "refused": 5, "in_gap": 0}
    assert made.manifest["dead_letters"]["reasons"] == {
        "broken UTF-8": 1,
        "click is neither 0 nor 1": 1,
        "empty line": 1,
        "not JSON": 1,
        "wrong type in 'user_id'": 1,
    }
    text = gzip.decompress((tmp_path / "dataset" / "dead_letters.jsonl.gz").read_bytes())
    dead_letters = [json.loads(line) for line in text.splitlines()]
    assert [(dead_letter["line"], dead_letter["path"]) for dead_letter in dead_letters] == [
        (101 + 7 * i, str(log)) for i in range(5)
    ]
    assert dead_letters[1]["text"] == "{"


def test_too_many_refused_rows_leave_no_data_set_but_the_dead_letters(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    log = _damaged_log(small_log, tmp_path / "log.jsonl", BAD)
    config = make_config(logs={"files": [str(log)]}, preprocess={"max_refused": 0.0005})
    with pytest.raises(UserError) as error:
        preprocess(config, tmp_path / "out" / "dataset")
    assert str(error.value).startswith(f"{log}:101: 5 of 6005 rows refused")
    assert "max_refused" in str(error.value)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["dataset.dead_letters.jsonl.gz"]
    preprocess(make_config(logs={"files": [str(log)]}), tmp_path / "out" / "dataset")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["dataset"]


def test_a_truncated_gzip_fails_the_job_and_leaves_nothing(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl.gz"
    log.write_bytes(gzip.compress(small_log.read_bytes())[:-1000])
    with pytest.raises(UserError, match=r"log.jsonl.gz: the .gz file is truncated"):
        preprocess(make_config(logs={"files": [str(log)]}), tmp_path / "out" / "dataset")
    assert list((tmp_path / "out").iterdir()) == []
    options = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    with pytest.raises(UserError, match=r"log.jsonl.gz: the .gz file is truncated"):
        preprocess(make_config(logs={"files": [str(log)]}), tmp_path / "out" / "dataset", beam_options=options)


def test_what_is_there_is_not_replaced_unasked(small_config: Config, small_dataset: Dataset, tmp_path: Path) -> None:
    target = tmp_path / "dataset"
    shutil.copytree(small_dataset.directory, target)
    with pytest.raises(UserError, match="exists already"):
        preprocess(small_config.model_copy(update={"seed": 99}), target)
    assert _files(target) == _files(small_dataset.directory)
    preprocess(small_config, target, overwrite=True)
    assert _files(target) == _files(small_dataset.directory)
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_what_the_same_settings_made_of_the_same_logs_is_used_again(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    log, target = tmp_path / "log.jsonl", tmp_path / "dataset"
    shutil.copy(small_log, log)
    config = make_config(logs={"files": [str(log)]})
    preprocess(config, target)
    made = (target / "dataset.json").stat().st_mtime_ns
    preprocess(config, target)
    assert (target / "dataset.json").stat().st_mtime_ns == made
    for written in (made + 10**9, 10**18):  # since, or a file of before in its place: it may differ at the same size
        os.utime(log, ns=(written, written))
        with pytest.raises(UserError, match="exists already"):
            preprocess(config, target)


def test_nothing_to_train_on_is_said(make_config: Callable[..., Config], tmp_path: Path) -> None:
    early = {"split": {"by": "time", "validation_from": "1990-01-01", "test_from": "1991-01-01"}}
    with pytest.raises(UserError, match="no row is left to train on"):
        preprocess(make_config(preprocess=early), tmp_path / "dataset")


def test_options_that_beam_does_not_take_are_said(small_config: Config, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NoSuchRunner"):
        preprocess(small_config, tmp_path / "dataset", beam_options=["--runner=NoSuchRunner"])


def test_labels_of_different_types_in_two_files(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    lines = small_log.read_text().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_text("".join(lines[:3000]))
    as_bool = [line.replace('"click":0', '"click":false').replace('"click":1', '"click":true') for line in lines[3000:]]
    (tmp_path / "b.jsonl").write_text("".join(as_bool))
    split = {"by": "user_time", "validation": 0.1, "test": 0.1}
    config = make_config(logs={"files": [str(tmp_path / "*.jsonl")]}, preprocess={"split": split})
    made = preprocess(config, tmp_path / "dataset")
    assert made.manifest["rows"] == {"read": 6000, "kept": 6000, "refused": 0, "in_gap": 0}
    assert sum(made.manifest["splits"][s]["clicks"] for s in made.splits) == sum('"click":1' in line for line in lines)


def test_a_log_of_one_class_is_refused_with_the_mend(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    clicks = tmp_path / "log.jsonl"
    clicks.write_text("".join(line + "\n" for line in small_log.read_text().splitlines() if '"click":1' in line))
    with pytest.raises(UserError, match=r"every training row has click = 1; .* \(preprocess.negatives\)"):
        preprocess(make_config(logs={"files": [str(clicks)]}), tmp_path / "dataset")


def test_only_a_data_set_is_ever_overwritten(small_config: Config, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="holds something that clsd did not make"):
        preprocess(small_config, tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_rows_in_the_gap_are_left_out_counted_and_learnt_from_by_nothing(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    plain = small_dataset
    gap = int(plain.read("test").timestamp.min() - plain.read("validation").timestamp.min()) // 4
    config = make_config(preprocess={"split": {"gap_hours": gap / 3_600_000_000}})
    gapped = preprocess(config, tmp_path / "dataset")
    kept = {split: gapped.read(split) for split in gapped.splits}
    for split, after in (("train", "validation"), ("validation", "test")):
        whole = plain.read(split)
        start = plain.read(after).timestamp.min()
        assert sorted(kept[split].key) == sorted(whole.key[whole.timestamp < start - gap])
        assert 0 < len(kept[split]) < len(whole)
    assert sorted(kept["test"].key) == sorted(plain.read("test").key)
    assert gapped.manifest["rows"]["in_gap"] == 6000 - sum(map(len, kept.values()))
    assert gapped.transform.vocabularies["user_id"].rows.sum() == len(kept["train"])


def test_the_next_day_keeps_the_ids_and_scales_of_the_day_before(
    make_config: Callable[..., Config], small_log: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    rows = _rows(small_log)
    for row in rows[::3]:
        row["item_id"] = f"new-{row['item_id']}"
        row["price"] = 1000.0
    (tmp_path / "day-2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(logs={"files": [str(tmp_path / "day-2.jsonl")]})
    made = preprocess(config, tmp_path / "next", base=small_dataset.directory)
    before, after = small_dataset.transform, made.transform
    for name, vocabulary in before.vocabularies.items():
        assert after.vocabularies[name].tokens.to_pylist()[: len(vocabulary)] == vocabulary.tokens.to_pylist()
    added = after.vocabularies["item_id"].tokens.to_pylist()[len(before.vocabularies["item_id"]) :]
    assert added and all(token.startswith("new-") for token in added)
    assert after.numerics == before.numerics
    assert made.manifest["base"] == {"name": "small", "fingerprint": small_dataset.manifest["fingerprint"]}
    anew = preprocess(config, tmp_path / "anew")
    assert anew.manifest["fingerprint"] != made.manifest["fingerprint"]
    assert anew.transform.numerics != before.numerics
    # A row's id means the same value in both, old values and new ones.
    at = made.schema.id_slices["item_id"].start
    names = [data.transform.id_names("item_id") for data in (made, anew)]
    ids = [dict(zip(data.read("train").key, data.read("train").ids[:, at], strict=True)) for data in (made, anew)]
    shared = {key for key in ids[0] if names[1][ids[1][key]] != "(unknown)"}
    assert len(shared) > 3000
    assert all(names[0][ids[0][key]] == names[1][ids[1][key]] for key in shared)


def test_a_base_of_other_rows_is_refused(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    config = make_config(rows={"passthrough": []})
    with pytest.raises(UserError, match=r"data set .*: has other rows than the config: they differ in passthrough"):
        preprocess(config, tmp_path / "next", base=small_dataset.directory)
    with pytest.raises(UserError, match="no such data set"):
        preprocess(make_config(), tmp_path / "next", base=tmp_path / "nowhere")
    assert not (tmp_path / "next").exists()


def test_gzipped_shards_hold_the_same_rows_and_train_the_same(
    make_config: Callable[..., Config], small_dataset: Dataset, tmp_path: Path
) -> None:
    from clsd.features.input_pipeline import ALL_COLUMNS, read_batches

    made = preprocess(make_config(preprocess={"gzip": True}), tmp_path / "dataset")
    again = preprocess(make_config(preprocess={"gzip": True}), tmp_path / "again")
    assert _files(again.directory) == _files(made.directory)
    assert made.verify() == small_dataset.verify()
    for split in small_dataset.splits:
        assert all(path.endswith(".tfrecord.gz") for path in made.files(split))
        mine, theirs = made.read(split), small_dataset.read(split)
        np.testing.assert_array_equal(mine.key, theirs.key)
        np.testing.assert_array_equal(mine.ids, theirs.ids)
        first = [
            next(
                iter(
                    read_batches(
                        data.schema, data.files(split), 100, shuffle_seed=3, columns=ALL_COLUMNS, rows_per_block=64
                    )
                )
            )
            for data in (made, small_dataset)
        ]
        for name in first[0]:
            np.testing.assert_array_equal(first[0][name], first[1][name])
    sizes = [sum(Path(f).stat().st_size for f in data.files("train")) for data in (made, small_dataset)]
    assert sizes[0] < 0.8 * sizes[1]
    shard = Path(made.files("train")[0])
    shard.write_bytes(shard.read_bytes()[:2000] + b"\0" * (shard.stat().st_size - 2000))
    with pytest.raises(UserError, match=r"part-00000-of-0000\d\.tfrecord\.gz: record \d+ is damaged"):
        made.verify()


TWO = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.mark.parametrize(
    ("first", "second", "carried"),
    [
        ({"note": 9007199254740993}, {"note": None}, {"9007199254740993", None}),
        ({"note": 3}, {"note": "three"}, {"3", "three"}),
        ({"note": 3}, {"note": 1.5}, {"3", "1.5"}),
        ({"note": True}, {}, {"true", None}),
    ],
)
def test_files_may_differ_in_what_is_carried_along(
    first: dict[str, Any],
    second: dict[str, Any],
    carried: set[str | None],
    make_config: Callable[..., Config],
    small_log: Path,
    tmp_path: Path,
) -> None:
    """And in an optional column, which the second file lacks; for any number of workers the bytes are the same."""
    rows = _rows(small_log)[:2000]
    for number, more in enumerate((first, second)):
        half = [{**row, "note": None, **more} for row in rows[number::2]]
        for row in half if number else []:
            del row["age_band"]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in half))
    made = make_config(logs={"files": [str(tmp_path / "*.jsonl")]})
    rows_of = made.row_schema.model_dump() | {"passthrough": ["note"]}
    for feature in rows_of["features"]:
        feature["optional"] = feature["name"] == "age_band"
    config = made.model_copy(update={"row_schema": Schema.model_validate(rows_of)})
    one = preprocess(config, tmp_path / "one")
    assert {text for split in one.splits for text in one.read(split).passthrough.column(0).to_pylist()} == carried
    assert _files(preprocess(config, tmp_path / "two", beam_options=TWO).directory) == _files(one.directory)


def test_a_csv_user_is_text_whatever_the_files_other_users_are(
    make_config: Callable[..., Config], small_log: Path, tmp_path: Path
) -> None:
    """``007`` and ``7`` are two users, also where the head of a file has digits alone."""
    names = list(json.loads(small_log.read_text().split("\n", 1)[0]))
    for number, style in enumerate(("{:03d}", "{}")):
        rows = [{**row, "tags": "", "user_id": style.format(i % 9 + 1)} for i, row in enumerate(_rows(small_log)[:900])]
        lines = [",".join("" if row[name] is None else str(row[name]) for name in names) for row in rows]
        (tmp_path / f"{number}.csv").write_text("".join(f"{line}\n" for line in [",".join(names), *lines]))
    made = make_config(logs={"files": [str(tmp_path / "*.csv")]}, preprocess={"max_refused": 0})
    rows_of = made.row_schema.model_dump() | {"passthrough": []}
    rows_of["features"] = [f for f in rows_of["features"] if f["name"] not in ("user_id", "tags")]
    dataset = preprocess(made.model_copy(update={"row_schema": Schema.model_validate(rows_of)}), tmp_path / "out")
    assert len({user for split in dataset.splits for user in dataset.read(split).user.tolist()}) == 18


def test_a_parquet_log_without_any_row_group_is_refused(make_config: Callable[..., Config], tmp_path: Path) -> None:
    pq.ParquetWriter(tmp_path / "log.parquet", pa.table(_rows_as_columns()).schema).close()
    with pytest.raises(UserError, match="is empty"):
        preprocess(make_config(logs={"files": [str(tmp_path / "log.parquet")]}), tmp_path / "out")


def _rows_as_columns() -> dict[str, Any]:
    texts = ("user_id", "item_id", "age_band", "gender", "category")
    numbers = ("hour", "price", "intensity")
    whole = ("position", "click", "timestamp", "accidental")
    kinds = {
        **dict.fromkeys(texts, pa.string()),
        **dict.fromkeys(numbers, pa.float64()),
        **dict.fromkeys(whole, pa.int64()),
    }
    return {name: pa.array([], kind) for name, kind in kinds.items()} | {"tags": pa.array([], pa.list_(pa.string()))}


def test_a_feature_without_any_value_in_training_is_no_error(
    make_config: Callable[..., Config], small_config: Config, tmp_path: Path
) -> None:
    features = small_config.row_schema.model_dump(mode="python")["features"]
    kinds = ({"encoding": "identity", "size": 3, "dtype": "int64"}, {}, {"encoding": "hash", "size": 9})
    features += [{"name": f"new_{i}", "kind": "categorical", "optional": True, **kind} for i, kind in enumerate(kinds)]
    made = preprocess(make_config(rows={"features": features}), tmp_path / "dataset")
    assert all("top" not in made.statistics["features"][f"new_{i}"] for i in range(3))


def test_gates_look_at_the_ctr_of_the_log_and_not_of_what_was_kept(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    kept = {"keep_negatives": 0.1, "gates": {"max_ctr": 0.5}}
    made = preprocess(make_config(preprocess=kept), tmp_path / "dataset")
    assert made.ctr("train") > 0.6
    whole = preprocess(make_config(), tmp_path / "whole")
    assert made.log_ctr == pytest.approx(whole.log_ctr, rel=0.1)
    with pytest.raises(UserError, match="the train split's CTR is 2"):
        preprocess(make_config(preprocess={**kept, "gates": {"min_ctr": 0.5}}), tmp_path / "refused")

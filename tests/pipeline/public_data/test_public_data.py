"""The public data sets from their real wheels; damaged, wrong and unreachable wheels."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import clsd.pipeline.public_data as datasets
from clsd.features.errors import UserError
from clsd.pipeline.public_data import DATASETS, SOURCE_FILE, write_dataset
from clsd.pipeline.public_data.movielens import AGE_BANDS, MOVIELENS_100K, read_movielens
from clsd.pipeline.public_data.open_bandit import OBP, read_open_bandit
from clsd.pipeline.public_data.synthetic import SyntheticSettings
from clsd.pipeline.public_data.wheels import Wheel, default_cache, fetch_wheel, read_member, read_table
from clsd.pipeline.shared.files import sole_writer

SMALL = SyntheticSettings(rows=2_000, users=50, items=20)


def _note(out: Path) -> dict[str, Any]:
    entries: dict[str, Any] = json.loads((out / SOURCE_FILE).read_text())
    return entries


def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves pip an index at a port where nobody listens, and nothing else."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "1")
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel of our own in a folder that is the only place where pip looks."""
    index = tmp_path / "index"
    index.mkdir()
    file = index / "tiny_set-1.0-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("tiny/rows.csv", "a,b\n1,\n2,y\n")
        archive.writestr("tiny_set-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-set\nVersion: 1.0\n")
        archive.writestr("tiny_set-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return Wheel("tiny-set", "1.0", hashlib.sha256(file.read_bytes()).hexdigest())


def test_a_wheel_is_fetched_once_and_a_damaged_one_replaced(
    tiny: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "new" / "cache"
    kept = fetch_wheel("tiny-set", "1.0", tiny.sha256, cache)
    assert kept == cache / "tiny_set-1.0-py3-none-any.whl"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert hashlib.sha256(tiny.fetch(cache).read_bytes()).hexdigest() == tiny.sha256
    assert list(cache.iterdir()) == [kept]
    _offline(monkeypatch)
    assert tiny.fetch(cache) == kept
    monkeypatch.setenv("CLSD_CACHE", str(cache))
    assert tiny.fetch() == kept


def test_a_wheel_with_another_checksum_is_refused(tiny: Wheel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="SHA-256") as caught:
        fetch_wheel("tiny-set", "1.0", "0" * 64, tmp_path / "cache")
    assert caught.value.where == tiny.filename
    assert not list((tmp_path / "cache").iterdir())


def test_without_a_network_one_line_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _offline(monkeypatch)
    start = time.perf_counter()
    with pytest.raises(UserError) as caught:
        write_dataset("open-bandit", tmp_path / "out", cache=tmp_path / "cache")
    assert time.perf_counter() - start < 20
    assert caught.value.where == OBP.filename
    assert "no connection" in str(caught.value) and "\n" not in str(caught.value)
    assert f"pip download --no-deps obp==0.4.1` and put the file into {tmp_path / 'cache'}" in str(caught.value)
    assert not list((tmp_path / "cache").iterdir()) and not list((tmp_path / "out").iterdir())


def test_a_version_that_is_not_there(tiny: Wheel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No matching distribution found for tiny-set==2.0"):
        fetch_wheel("tiny-set", "2.0", tiny.sha256, tmp_path / "cache")


def test_a_cache_that_is_a_file(tiny: Wheel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match="set CLSD_CACHE"):
        tiny.fetch(tmp_path / "cache")


def test_members_are_checked(tiny: Wheel, tmp_path: Path) -> None:
    wheel = tiny.fetch(tmp_path / "cache")
    assert read_table(wheel, "tiny/rows.csv", 2).to_pylist() == [{"a": "1", "b": ""}, {"a": "2", "b": "y"}]
    with pytest.raises(UserError, match="has 2 rows, not 3"):
        read_table(wheel, "tiny/rows.csv", 3)
    with pytest.raises(UserError, match=r"has no member tiny/other\.csv"):
        read_member(wheel, "tiny/other.csv")
    wheel.write_bytes(b"no zip file")
    with pytest.raises(UserError, match="cannot be read"):
        read_member(wheel, "tiny/rows.csv")


@pytest.fixture(scope="session")
def cache() -> Path:
    return default_cache()


def test_movielens_100k(cache: Path) -> None:
    log = pa.Table.from_batches(read_movielens(MOVIELENS_100K, cache))
    assert log.num_rows == 100_000 == DATASETS["movielens-100k"].rows
    assert [pc.count_distinct(log[name]).as_py() for name in ("user_id", "item_id")] == [943, 1682]
    known = log.filter((pc.field("user_id") == "196") & (pc.field("item_id") == "242")).to_pylist()
    assert known == [
        {
            "user_id": "196",
            "item_id": "242",
            "click": 1,
            "rating": 3.0,
            "timestamp": 881250949,
            "age": 49,
            "age_band": "45-49",
            "gender": "M",
            "occupation": "writer",
            "title": "Kolya",
            "year": 1996,
            "genres": ["Comedy"],
        }
    ]
    young = log.filter(pc.field("age") < 18)
    assert set(young["age_band"].to_pylist()) == {"under 18"} and 300 < young.num_rows < 10_000
    toys = log.filter(pc.field("title") == "Toy Story")["genres"][0].as_py()
    assert toys == ["Animation", "Children's", "Comedy"]
    # One item has neither title nor year, another one a word for the year: 9 and 6 ratings.
    assert (log["title"].null_count, log["year"].null_count) == (9, 15)
    order = [("timestamp", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")]
    assert log.equals(log.sort_by(order))


def test_movielens_1m(cache: Path, tmp_path: Path) -> None:
    path = write_dataset("movielens-1m", tmp_path, format="parquet", cache=cache)
    log = pq.read_table(path)
    assert log.num_rows == 1_000_209 == DATASETS["movielens-1m"].rows == _note(tmp_path)["rows"]
    assert [pc.count_distinct(log[name]).as_py() for name in ("user_id", "item_id")] == [6040, 3706]
    assert set(log["age_band"].unique().to_pylist()) == set(AGE_BANDS)
    assert set(log["age"].unique().to_pylist()) == {1, 18, 25, 35, 45, 50, 56}
    assert len(log["occupation"].unique()) == 21 and not any(column.null_count for column in log.columns)
    first = log.slice(0, 1).to_pylist()[0]
    assert first["user_id"] == "6040" and first["timestamp"] == 956_703_932 and first["age_band"] == "25-34"
    accents = log.filter(pc.match_substring(log["title"], "Pokémon"))
    assert accents.num_rows > 100
    seconds = log["timestamp"].to_numpy()
    assert (seconds[1:] >= seconds[:-1]).all()


def test_open_bandit(cache: Path) -> None:
    log = pa.Table.from_batches(read_open_bandit(cache))
    assert log.num_rows == 60_000 == DATASETS["open-bandit"].rows
    assert pc.sum(log["click"]).as_py() == 42 + 69 + 46 + 38 + 46 + 46
    assert pc.count_distinct(log["item_id"]).as_py() == 80 + 34 + 46
    first = log.slice(0, 1).to_pylist()[0]
    assert first["timestamp"] == "2019-11-24T00:00:17.004101Z"
    assert (first["policy"], first["campaign"], first["item_id"], first["position"]) == ("bts", "all", "all-79", 2)
    assert first["propensity_score"] == 0.087125 and first["item_feature_0"] == -0.9006053028383237
    assert pc.max(log["affinity"]).as_py() > 0
    # An item has one set of features whichever policy shows it, and a segment one set of user features.
    items = log.select(["item_id", *(f"item_feature_{n}" for n in range(4))])
    assert items.group_by(items.column_names).aggregate([]).num_rows == 160
    users = log.select(["user_segment", *(f"user_feature_{n}" for n in range(4))])
    count = users.group_by(users.column_names).aggregate([]).num_rows
    assert pc.count_distinct(users["user_segment"]).as_py() == count
    times = log["timestamp"].to_pylist()
    assert times == sorted(times)


def test_the_affinity_is_that_of_the_item_shown(cache: Path) -> None:
    wheel = OBP.fetch(cache)
    source = read_table(wheel, "obp/dataset/obd/bts/men/men.csv", 10_000).to_pylist()
    want = sorted((row["timestamp"][11:26], float(row[f"user-item_affinity_{row['item_id']}"])) for row in source)
    log = pa.Table.from_batches(read_open_bandit(cache))
    men = log.filter((pc.field("policy") == "bts") & (pc.field("campaign") == "men")).to_pylist()
    assert sorted((row["timestamp"][11:26], row["affinity"]) for row in men) == want


def test_a_log_comes_with_its_terms_and_is_reused(cache: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    log = write_dataset("movielens-100k", tmp_path, cache=cache, on_rows=seen.append)
    assert log == tmp_path / "log.jsonl" and sum(seen) == 100_000
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").split("\n")[:-1]]
    assert len(rows) == 100_000 and isinstance(rows[0]["genres"], list)
    note = _note(tmp_path)
    assert (note["rows"], note["clicks"], note["bytes"]) == (100_000, 100_000, log.stat().st_size)
    assert "no redistribution" in note["licence"] and "Harper & Konstan" in note["licence"]
    assert note["sha256"] == MOVIELENS_100K.wheel.sha256 and "recbole 1.2.1" in note["source"]
    assert write_dataset("movielens-100k", tmp_path, cache=tmp_path / "no-cache", on_rows=seen.append) == log
    assert sum(seen) == 100_000


def test_what_is_in_the_folder_is_not_lost(tmp_path: Path) -> None:
    log = write_dataset("synthetic", tmp_path, synthetic=SMALL)
    before = log.read_bytes()
    other = SyntheticSettings(rows=3_000, users=50, items=20)
    with pytest.raises(UserError, match="--overwrite"):
        write_dataset("synthetic", tmp_path, synthetic=other)
    with pytest.raises(UserError, match="already holds synthetic as jsonl"):
        write_dataset("synthetic", tmp_path, format="csv", synthetic=SMALL)
    assert log.read_bytes() == before
    log.write_bytes(before[:-5])
    assert write_dataset("synthetic", tmp_path, synthetic=SMALL).read_bytes() == before
    csv = write_dataset("synthetic", tmp_path, format="csv", synthetic=other, overwrite=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["log.csv", SOURCE_FILE]
    assert len(csv.read_text().splitlines()) == 3_001 and _note(tmp_path)["settings"]["rows"] == 3_000


def test_a_failed_overwrite_keeps_the_old_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_dataset("synthetic", tmp_path / "out", synthetic=SMALL)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    _offline(monkeypatch)
    with pytest.raises(UserError, match="no connection"):
        write_dataset("open-bandit", tmp_path / "out", cache=tmp_path / "cache", overwrite=True)
    assert {file.name: file.read_bytes() for file in log.parent.iterdir()} == before


def test_a_log_of_unknown_origin_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("mine")
    with pytest.raises(UserError, match="already holds other data"):
        write_dataset("synthetic", tmp_path, synthetic=SMALL)
    (tmp_path / SOURCE_FILE).write_text("[]")
    with pytest.raises(UserError, match="already holds other data"):
        write_dataset("synthetic", tmp_path, synthetic=SMALL)
    write_dataset("synthetic", tmp_path, synthetic=SMALL, overwrite=True)
    assert _note(tmp_path)["rows"] == 2_000


def test_mistakes_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'movielens-1m'"):
        write_dataset("movielens1m", tmp_path)
    with pytest.raises(UserError, match="did you mean 'parquet'"):
        write_dataset("synthetic", tmp_path, format="parqet")
    with pytest.raises(UserError, match="has no settings"):
        write_dataset("open-bandit", tmp_path, synthetic=SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_dataset("synthetic", tmp_path / "file", synthetic=SMALL)


def test_every_data_set_has_terms_and_a_source() -> None:
    assert set(DATASETS) == {"movielens-100k", "movielens-1m", "open-bandit", "synthetic"}
    for name, info in DATASETS.items():
        assert info.name == name and info.rows > 0
        for line in (info.description, info.licence, info.source):
            assert line and "\n" not in line
    assert "CC BY 4.0" in DATASETS["open-bandit"].licence and "Apache-2.0" in DATASETS["synthetic"].licence


def test_a_source_that_changed_is_refused(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / OBP.filename
    shutil.copy(OBP.fetch(cache), wheel)
    forged = tmp_path / "forged.whl"
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(forged, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"2019-11-24 00:00:17.004101", b"24 November 2019 00:00:17"))
    monkeypatch.setattr(Wheel, "fetch", lambda self, cache=None: forged)
    with pytest.raises(UserError, match="timestamps that are not UTC"):
        datasets.write_dataset("open-bandit", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_an_altered_log_is_written_again_and_two_writers_are_told(tmp_path: Path) -> None:
    settings = SyntheticSettings(rows=200, users=20, items=10)
    log = write_dataset("synthetic", tmp_path / "out", synthetic=settings)
    content = log.read_bytes()
    log.write_bytes(content.replace(b'"click":0', b'"click":1', 5).replace(b'"click": 0', b'"click": 1', 5))
    assert log.read_bytes() != content
    assert write_dataset("synthetic", tmp_path / "out", synthetic=settings).read_bytes() == content
    with (
        sole_writer(tmp_path / "out"),
        pytest.raises(UserError, match="another process is writing there"),
    ):
        write_dataset("synthetic", tmp_path / "out", synthetic=settings)
    with pytest.raises(UserError, match="synthetic ctr: cannot be reached with these settings"):
        write_dataset("synthetic", tmp_path / "other", synthetic=SyntheticSettings(rows=100, ctr=0.9999999))

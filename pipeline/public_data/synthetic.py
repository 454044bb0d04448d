"""A synthetic click log with known truth, to compare a model's estimates with.

Each impression has a true ``interest`` in (0, 1): the sigmoid of the sum of the user group's base rate, the item's quality and
the match of user and item (the product of two short vectors). Clicks come from two sources:

* an accidental click happens with a probability that depends on the position alone, never on interest;
* otherwise a true click happens with a probability proportional to interest (and at most 1).

A pilot draw fixes the two factors of proportion, so that the CTR and the share of accidental clicks match the settings. Each
chunk of rows has its own random stream: chunk ``k`` does not depend on the others, and memory does not grow with the number of
rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from clsd.features.arrays import Float64s, Int64s
from clsd.features.errors import UserError
from clsd.pipeline.public_data.movielens import AGE_BANDS

#: Rows of one chunk, which is one Arrow batch.
CHUNK_ROWS = 250_000
#: Time of the first row, seconds since 1970 (1 January 2024, UTC).
START_SECONDS = 1_704_067_200
#: Positions are 1 ... POSITIONS.
POSITIONS = 10
#: The smallest and largest number of values of the extra categorical columns.
EXTRA_CARDINALITIES = (100, 500_000)

_LATENT = 4
_CATEGORIES = 20
_TAGS = 60
_MOST_TAGS = 4
_ZIPF_EXPONENT = 1.05
_LARGEST_FACTOR = 1e30

#: Largest values of the settings: users and items are held in memory.
_LARGEST = {
    "rows": 10**12,
    "users": 10**8,
    "items": 10**8,
    "seed": 2**63 - 1,
    "days": 36_500,
    "groups": 10**6,
    "extra_categorical": 1000,
    "extra_numeric": 1000,
}


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SyntheticSettings:
    """The settings of a synthetic log.

    Args:
        rows: impressions, at least 1.
        users: users to draw from, at least 1; some are far more active than others.
        items: items to draw from, at least 1; their popularity follows Zipf's law.
        ctr: expected share of impressions that are clicked, in (0, 1).
        accidental: expected share of the clicks that are accidental, in [0, 1).
        seed: same seed and settings, same log.
        days: length of the log, at least 1; rows are in order of time.
        groups: user groups (age bands) of different base rates, 1 ... 7.
        extra_categorical: columns ``cat_0`` ... of noise, of 100 ... 500,000 values each.
        extra_numeric: columns ``num_0`` ... of noise, normal and lognormal by turns.

    Raises:
        UserError: a setting is out of its range.
    """

    rows: int = 1_000_000
    users: int = 50_000
    items: int = 5_000
    ctr: float = 0.1
    accidental: float = 0.25
    seed: int = 1
    days: int = 10
    groups: int = 5
    extra_categorical: int = 0
    extra_numeric: int = 0

    def __post_init__(self) -> None:
        least = {"rows": 1, "users": 1, "items": 1, "days": 1, "groups": 1}
        for name in ("rows", "users", "items", "seed", "days", "groups", "extra_categorical", "extra_numeric"):
            value, low = getattr(self, name), least.get(name, 0)
            if value < low:
                raise UserError(f"synthetic {name}", f"{value} is too small", f"give a whole number from {low} on")
            if value > _LARGEST[name]:
                raise UserError(f"synthetic {name}", f"{value} is too large", f"give at most {_LARGEST[name]:,}")
        if self.groups > len(AGE_BANDS):
            raise UserError("synthetic groups", f"{self.groups} is too many", f"there are {len(AGE_BANDS)} age bands")
        if not 0 < self.ctr < 1:
            raise UserError("synthetic ctr", f"{self.ctr} is not a share", "give a number between 0 and 1")
        if not 0 <= self.accidental < 1:
            raise UserError(
                "synthetic accidental", f"{self.accidental} is not a share", "give a number from 0 to below 1"
            )


def generate(settings: SyntheticSettings) -> Iterator[pa.RecordBatch]:
    """The log's chunks in order of time, :data:`CHUNK_ROWS` rows each and the rest in the last one.

    Columns: user_id, age_band, gender, item_id, category (string), tags (list of up to 4 strings), position (int64,
    1 ... 10), hour (int64, 0 ... 23 UTC), price (float64), click (int64), timestamp (int64, seconds), dwell_time
    (float64, seconds; null without a click), and the extra columns. Among these is the truth, which a model must
    not see: interest (float64, in every row), accidental (int64, 1 on accidental clicks), intensity (float64: interest
    on a true click, 0 on an accidental one, null without a click).
    """
    log = SyntheticLog(settings)
    return (log.chunk(number) for number in range(log.chunks))


class SyntheticLog:
    """The users and items of one synthetic log, and its chunks in any order."""

    def __init__(self, settings: SyntheticSettings) -> None:
        self.settings = settings
        rng = _stream(settings.seed, 0)
        self._make_items(rng)
        self._make_users(rng)
        self._calibrate()

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.settings.rows // CHUNK_ROWS)

    def chunk(self, number: int) -> pa.RecordBatch:
        """Chunk ``number``, counted from 0, as one batch; see :func:`generate`."""
        settings = self.settings
        first = number * CHUNK_ROWS
        rows = min(CHUNK_ROWS, settings.rows - first)
        rng = _stream(settings.seed, 2, number)
        users, items, positions = self._impressions(rng, rows)
        interest = self._interest(users, items).round(6)

        accidental = rng.random(rows) < self._accidental_rate(positions)
        click = accidental | (rng.random(rows) < np.minimum(1, self._true_factor * interest))
        # Interest holds a reader for 10 to 120 s; an accidental click ends after a second or two.
        typical = np.where(accidental, np.log(1.5), np.log(10) + 2.5 * interest)
        dwell = np.exp(typical + 0.5 * rng.standard_normal(rows)).round(3)
        passed = (first + rows * np.sort(rng.random(rows))) / settings.rows
        seconds = START_SECONDS + (passed * settings.days * 86_400).astype(np.int64)
        columns = {
            "user_id": _ids("u", users),
            "age_band": _names(AGE_BANDS, self._group[users]),
            "gender": _names(("F", "M"), self._gender[users]),
            "item_id": _ids("i", items),
            "category": _ids("category-", self._category[items]),
            "tags": self._tags.take(pa.array(items)),
            "position": pa.array(positions),
            "hour": pa.array(seconds // 3600 % 24),
            "price": pa.array(self._price[items]),
            "click": pa.array(click.astype(np.int64)),
            "timestamp": pa.array(seconds),
            "dwell_time": pa.array(dwell, mask=~click),
            "interest": pa.array(interest),
            "accidental": pa.array(accidental.astype(np.int64)),
            "intensity": pa.array(np.where(accidental, 0.0, interest), mask=~click),
            **self._extra(rng, rows),
        }
        return pa.record_batch(columns)

    def _make_items(self, rng: np.random.Generator) -> None:
        count = self.settings.items
        # Items of one category are similar, so the category alone is informative.
        centres = rng.standard_normal((_CATEGORIES, _LATENT))
        self._category = rng.integers(0, _CATEGORIES, count)
        noise = rng.standard_normal((count, _LATENT))
        self._item_vectors = 0.8 * centres[self._category] + 0.6 * noise
        self._quality = 0.7 * rng.standard_normal(count)
        self._price = np.exp(rng.normal(2.5, 0.5, _CATEGORIES)[self._category] + rng.normal(0, 0.4, count)).round(2)
        # Ids are random: a low number does not mean a popular item.
        weights = np.empty(count)
        weights[rng.permutation(count)] = np.arange(1, count + 1) ** -_ZIPF_EXPONENT
        self._popularity = np.cumsum(weights / weights.sum())
        # An item's tags are a run of consecutive numbers that starts near its category's own.
        counts = rng.integers(0, _MOST_TAGS + 1, count)
        starts = self._category * (_TAGS // _CATEGORIES) + rng.integers(0, 3, count)
        numbers = np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
        self._tags = pa.ListArray.from_arrays(offsets, _ids("tag-", numbers % _TAGS))

    def _make_users(self, rng: np.random.Generator) -> None:
        count = self.settings.users
        self._group = rng.integers(0, self.settings.groups, count)
        self._gender = rng.integers(0, 2, count)
        # Gender shifts the taste; the scale gives user times item a standard deviation of about 1.
        taste = rng.standard_normal((2, _LATENT))
        self._user_vectors = (0.4 * taste[self._gender] + 0.9 * rng.standard_normal((count, _LATENT))) / _LATENT**0.5
        self._base = np.linspace(-1, 1, self.settings.groups) if self.settings.groups > 1 else np.zeros(1)

    def _calibrate(self) -> None:
        """Solve for the two factors of proportion on a pilot draw of impressions."""
        settings = self.settings
        self._accidental_factor = 0.0
        users, items, positions = self._impressions(_stream(settings.seed, 1), CHUNK_ROWS)
        interest = self._interest(users, items)
        weights = _position_weight(positions)
        self._accidental_factor = _solve(
            lambda factor: float(np.minimum(1, factor * weights).mean()), settings.ctr * settings.accidental
        )
        others = 1 - self._accidental_rate(positions)
        self._true_factor = _solve(
            lambda factor: float((others * np.minimum(1, factor * interest)).mean()),
            settings.ctr * (1 - settings.accidental),
        )

    def _accidental_rate(self, positions: Int64s) -> Float64s:
        return np.minimum(1, self._accidental_factor * _position_weight(positions))

    def _impressions(self, rng: np.random.Generator, rows: int) -> tuple[Int64s, Int64s, Int64s]:
        """Users, items and positions of ``rows`` independent impressions."""
        # The power makes users with a low number more active.
        users = (self.settings.users * rng.random(rows) ** 1.5).astype(np.int64)
        items = np.searchsorted(self._popularity, rng.random(rows), side="right")
        positions = rng.integers(1, POSITIONS + 1, rows)
        return users, np.minimum(items, self.settings.items - 1), positions

    def _interest(self, users: Int64s, items: Int64s) -> Float64s:
        fit = np.einsum("ij,ij->i", self._user_vectors[users], self._item_vectors[items])
        score = self._base[self._group[users]] + self._quality[items] + fit
        return np.asarray(1 / (1 + np.exp(-np.clip(score, -10, 10))))

    def _extra(self, rng: np.random.Generator, rows: int) -> dict[str, pa.Array]:
        """Noise columns for speed measurements; they do not depend on clicks."""
        columns = {}
        for number, values in enumerate(np.geomspace(*EXTRA_CARDINALITIES, self.settings.extra_categorical)):
            columns[f"cat_{number}"] = _ids("v", (round(values) * rng.random(rows) ** 2).astype(np.int64))
        for number in range(self.settings.extra_numeric):
            normal = rng.standard_normal(rows)
            columns[f"num_{number}"] = pa.array((np.exp(normal) if number % 2 else normal).round(4))
        return columns


def _stream(seed: int, *key: int) -> np.random.Generator:
    """The random stream of one purpose: 0 the users and items, 1 the pilot draw, 2 and ``k`` chunk ``k``."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def _position_weight(positions: Int64s) -> Float64s:
    """Relative probability of an accidental click by position: the last one, near the thumb, has three times the first one's."""
    return 1 + 2 * (positions - 1) / (POSITIONS - 1)


def _solve(rate: Callable[[float], float], target: float) -> float:
    """The factor at which ``rate`` (rising from 0 at 0, above ``target`` for large factors) is ``target``."""
    if target == 0:
        return 0.0
    low, high = 0.0, 1.0
    while rate(high) < target:
        if high > _LARGEST_FACTOR:
            raise UserError("synthetic ctr", "cannot be reached with these settings", "lower ctr, or change accidental")
        low, high = high, 2 * high
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return high


def _ids(prefix: str, numbers: Int64s) -> pa.StringArray:
    return pc.binary_join_element_wise(prefix, pa.array(numbers).cast(pa.string()), "")


def _names(names: tuple[str, ...], numbers: Int64s) -> pa.StringArray:
    return pa.array(names, pa.string()).take(pa.array(numbers))

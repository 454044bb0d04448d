"""Counts of the training split by item: clicks, and the odds of a click."""

from __future__ import annotations

from typing import Any

import numpy as np

from clsd.features.errors import UserError, did_you_mean
from clsd.features.schema import CategoricalFeature
from clsd.features.transform import first_value_id
from clsd.models.clsd_model import ItemScores
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import Dataset

#: Rows of an average item that are added to each item. From about this number of rows on, CTR differs more between items than
#: by chance.
_SMOOTHING = 20.0


def item_feature(config: Config) -> CategoricalFeature | None:
    """The item feature, if it has a vocabulary: only vocabularies hold counts.

    It is ``evaluate.item``, or the feature that reads the item column of sampled non-clicks. None if there is no such feature or
    it has no vocabulary.

    Raises:
        UserError: ``evaluate.item`` is not a feature.
    """
    item = config.evaluate.item
    if not item and config.preprocess.negatives:
        source = config.preprocess.negatives.item
        item = next((f.name for f in config.row_schema.categorical if f.source == source), "")
    if not item:
        return None
    try:
        feature = config.row_schema.feature(item)
    except KeyError:
        hint = did_you_mean(item, [f.name for f in config.row_schema.categorical])
        raise UserError(f"evaluate.item: {item}", "is not a feature", hint) from None
    if (
        not isinstance(feature, CategoricalFeature)
        or config.row_schema.vocabulary_source(feature).encoding != "vocabulary"
    ):
        return None
    return feature


def item_popularity(config: Config, dataset: Dataset) -> tuple[str, Any] | None:
    """The item feature and its training clicks by id, float32 ``[size]`` (0 for reserved ids); None without an item feature.

    Raises:
        UserError: as :func:`item_feature`.
    """
    feature = item_feature(config)
    return (
        None if feature is None else (feature.name, _by_id(config, dataset, feature.name, "clicks").astype(np.float32))
    )


def item_scores(config: Config, dataset: Dataset) -> ItemScores | None:
    """The item feature, and the score of each of its ids by ``confidence.source``, float32 ``[size]``.

    ``popularity``: ``clicks / clicks of the most clicked item``. ``item``: the smoothed odds of a click,
    ``(clicks + k CTR) / (non-clicks + k (1 - CTR))``, smoothed by k rows of an average item. None for any other source.

    Raises:
        UserError: there is no item feature with a vocabulary.
    """
    source = config.confidence.source
    if not config.confidence.counts_items:
        return None
    result = item_popularity(config, dataset)
    if result is None:
        what = "needs the feature that names the item, with a vocabulary"
        raise UserError(f"confidence.source: {source}", what, "set evaluate.item")
    name, clicks = result
    if source == "popularity":
        return ItemScores(name, clicks / max(float(clicks.max()), 1.0))
    rows = _by_id(config, dataset, name, "rows")
    ctr = dataset.ctr("train")
    odds = (clicks + _SMOOTHING * ctr) / (rows - clicks + _SMOOTHING * (1 - ctr))
    return ItemScores(name, odds.astype(np.float32))


def _by_id(config: Config, dataset: Dataset, item: str, count: str) -> Any:
    """A count of the item's vocabulary, ``rows`` or ``clicks``, by id; 0 for reserved ids."""
    vocabulary_source = config.row_schema.vocabulary_source(config.row_schema.feature(item))  # type: ignore[arg-type]
    return np.concatenate(
        [
            np.zeros(first_value_id(vocabulary_source)),
            getattr(dataset.transform.vocabularies[vocabulary_source.name], count),
        ]
    )

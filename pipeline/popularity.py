"""How popular each row's item is: its clicks in the training split."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.errors import UserError, did_you_mean
from features.schema import CategoricalFeature
from features.transform import first_value_id
from pipeline.config import Config
from pipeline.dataset import Dataset


def item_popularity(config: Config, dataset: Dataset) -> tuple[str, Any] | None:
    """The feature that names the item, and training clicks by its ids, float32 ``[size]`` (0 for reserved ids).

    The feature is ``evaluate.item``, or the one that reads the item column of sampled non-clicks; None where there is
    none, or it has no vocabulary.

    Raises:
        UserError: ``evaluate.item`` is no feature.
    """
    item = config.evaluate.item
    if not item and config.preprocess.negatives:
        source = config.preprocess.negatives.item
        item = next((f.name for f in config.rows.categorical if f.source == source), "")
    if not item:
        return None
    try:
        feature = config.rows.feature(item)
    except KeyError:
        hint = did_you_mean(item, [f.name for f in config.rows.categorical])
        raise UserError(f"evaluate.item: {item}", "is no feature", hint) from None
    if not isinstance(feature, CategoricalFeature) or config.rows.owner(feature).encoding != "vocabulary":
        return None
    owner = config.rows.owner(feature)
    clicks = np.concatenate([np.zeros(first_value_id(owner)), dataset.transform.vocabularies[owner.name].clicks])
    return item, clicks.astype(np.float32)

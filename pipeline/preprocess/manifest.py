"""Checks the result of the job in the launching process, and makes ``dataset.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clsd.features.errors import UserError
from clsd.features.schema import digest_of
from clsd.pipeline.preprocess.columns import SPLITS
from clsd.pipeline.preprocess.dead_letters import DEAD_LETTERS
from clsd.pipeline.preprocess.input_splits import InputSplit
from clsd.pipeline.shared.artefacts import FORMAT_VERSION
from clsd.pipeline.shared.checksums import describe_file
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.dataset import GOLDEN_FILE, STATISTICS_FILE, Dataset
from clsd.pipeline.shared.files import copy_file, files_in
from clsd.pipeline.shared.package_versions import versions
from clsd.pipeline.shared.progress import warn

#: Settings of ``preprocess`` that change how the job runs, but not its result.
HOW = ("threads", "stalled_minutes")


def refuse_if_bad(config: Config, summary: dict[str, Any], temporary: Path, out: Path) -> None:
    """Refuse a job that read nothing, refused too much, or left nothing to learn from.

    Args:
        config: the config.
        summary: the job's summary, ``job.json``.
        temporary: the job's directory; its dead letters are copied next to ``out``.
        out: the data set's directory, which is not created.

    Raises:
        UserError: names the first dead letter, or the setting, and a hint.
    """
    refuse_if_refused(config, summary, temporary, out)
    if not any(shard["split"] == "train" for shard in summary["shards"]):
        raise UserError(
            "preprocess.split", "no row is left to train on", "change the shares, times or gap of the split"
        )
    _require_quality(config, summary)
    train = [shard for shard in summary["shards"] if shard["split"] == "train"]
    clicks = sum(shard["clicks"] for shard in train)
    if clicks in (0, sum(shard["rows"] for shard in train)):
        what = f"every training row has {config.row_schema.label} = {int(clicks > 0)}"
        raise UserError(
            "rows.label", what, "log clicks and non-clicks, or have non-clicks sampled (preprocess.negatives)"
        )


def refuse_if_refused(config: Config, summary: dict[str, Any], temporary: Path, out: Path) -> None:
    """Refuse a job that read nothing, or refused too much; arguments and errors as for :func:`refuse_if_bad`."""
    rows, refused = summary["rows"]["read"], summary["rows"]["refused"]
    if rows == 0:
        raise UserError(", ".join(config.logs.files), "holds no rows", "correct logs.files")
    if refused > config.preprocess.max_refused * max(rows, 1):
        kept = dead_letters_beside(out)
        copy_file(temporary / DEAD_LETTERS, kept)
        first = summary["dead"][0]["first"]
        reasons = ", ".join(f"{n} x {reason}" for reason, n in summary["dead"][0]["reasons"].items())
        raise UserError(
            f"{first['path']}:{first['line']}",
            f"{refused} of {rows} rows refused, more than preprocess.max_refused = {config.preprocess.max_refused:g} ({reasons})",
            f"fix the log (every refused row is in {kept}), or raise max_refused",
        )


def dead_letters_beside(out: Path) -> Path:
    """Path of the dead letters of a job that refused too much: next to its data set's path."""
    return out.parent / f"{out.name}.{DEAD_LETTERS}"


def _require_quality(config: Config, summary: dict[str, Any]) -> None:
    """Refuse a data set that breaks the bounds of ``preprocess.gates``."""
    bounds, rows, clicks = config.preprocess.gates, dict.fromkeys(SPLITS, 0), dict.fromkeys(SPLITS, 0)
    for shard in summary["shards"]:
        rows[shard["split"]] += shard["rows"]
        clicks[shard["split"]] += shard["clicks"]
    for split in (split for split in SPLITS if rows[split]):
        # The training split's CTR in the log: its non-clicks may have been down-sampled.
        kept = config.preprocess.keep_negatives if split == "train" else 1.0
        ctr = clicks[split] / (clicks[split] + (rows[split] - clicks[split]) / kept)
        if not bounds.min_ctr <= ctr <= bounds.max_ctr:
            what = f"the {split} split's CTR is {ctr:.3%}, not within {bounds.min_ctr:g} and {bounds.max_ctr:g}"
            raise UserError("preprocess.gates", what, "look at the log; or widen min_ctr and max_ctr")
        for feature, described in summary["features"].items():
            lacks = described["missing"].get(split)
            if lacks and lacks["rows"] > bounds.max_missing * lacks["of"]:
                what = f"'{feature}' is missing in {lacks['rows'] / lacks['of']:.1%} of the {split} split's rows"
                raise UserError("preprocess.gates", what, "look at the log; or raise max_missing")
            unknown = summary["quality"].get(f"{split}/{feature}", (0, 0))[1]
            if unknown > bounds.max_out_of_vocabulary * rows[split]:
                what = f"'{feature}' is out of vocabulary in {unknown / rows[split]:.1%} of the {split} split's rows"
                raise UserError(
                    "preprocess.gates", what, "lower min_count, raise max_size, or raise max_out_of_vocabulary"
                )


def warn_of_narrow_numbers(summary: dict[str, Any]) -> None:
    """Warn of numbers that float32 cannot tell apart: a request to the served model holds numbers as float32."""
    for name, described in summary["features"].items():
        quantiles = np.unique(described.get("quantiles", []))
        narrow = np.unique(quantiles.astype(np.float32))
        if len(narrow) < len(quantiles):
            step = float(np.spacing(np.float32(np.abs(quantiles).max())))
            what = f"feature '{name}' has values from {quantiles[0]:.10g} to {quantiles[-1]:.10g}"
            warn(f"{what}, which float32 holds in steps of {step:g}: subtract a base from them in the log")


def manifest(
    config: Config,
    input_splits: list[InputSplit],
    summary: dict[str, Any],
    directory: Path,
    base: Dataset | None = None,
) -> dict[str, Any]:
    """The content of ``dataset.json``: schema, settings, rows, and every file with its length and checksum.

    Args:
        config: the config.
        input_splits: the input splits that were read.
        summary: the job's summary, ``job.json``.
        directory: directory of the files.
        base: the data set whose ids are kept.
    """
    others = [n for n in files_in(directory) if n.startswith("vocabularies/") or n in (GOLDEN_FILE, STATISTICS_FILE)]
    result: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        members = [shard for shard in summary["shards"] if shard["split"] == name]
        if members:
            result[name] = {
                "rows": sum(shard["rows"] for shard in members),
                "clicks": sum(shard["clicks"] for shard in members),
                "shards": [{k: v for k, v in shard.items() if k != "split"} for shard in members],
                "quality": {
                    feature.name: {"missing": counts[0], "out_of_vocabulary": counts[1]}
                    for feature in config.row_schema.categorical
                    if (counts := summary["quality"].get(f"{name}/{feature.name}"))
                },
            }
    dead = summary["dead"][0] if summary["dead"] else {"rows": 0, "reasons": {}}
    return {
        "format_version": FORMAT_VERSION,
        "name": config.name,
        "fingerprint": fingerprint(config, input_splits, base),
        "base": {"name": base.manifest["name"], "fingerprint": base.manifest["fingerprint"]} if base else None,
        "schema_digest": config.row_schema.digest,
        "schema": config.row_schema.model_dump(mode="json"),
        "preprocess": config.preprocess.model_dump(mode="json", by_alias=True, exclude=set(HOW)),
        "kept_negatives": config.preprocess.keep_negatives,
        "seed": config.seed,
        "sources": sorted({input_split.path for input_split in input_splits}),
        "sources_modified": modified(input_splits),
        "columns_not_read": sorted({name for input_split in input_splits for name in input_split.unread}),
        "rows": summary["rows"],
        "dead_letters": {"rows": dead["rows"], "reasons": dead["reasons"]},
        "rows_per_block": config.preprocess.rows_per_block,
        "splits": result,
        "files": [describe_file(directory, name) for name in others],
        **summary["transform"],
        "versions": versions(),
    }


def fingerprint(config: Config, input_splits: list[InputSplit], base: Dataset | None = None) -> str:
    """Fingerprint of a job: of its settings, seed, files and their sizes, and the record format."""
    parts = config.model_dump(mode="json", include={"seed", "logs", "row_schema", "preprocess"}, by_alias=True)
    for name in HOW:
        parts["preprocess"].pop(name)
    parts["pieces"] = [
        (input_split.path, input_split.start, input_split.end, input_split.size) for input_split in input_splits
    ]
    parts["format_version"] = FORMAT_VERSION
    if base:
        parts["base"] = [
            base.manifest["fingerprint"],
            base.manifest["files"],
        ]  # its checksums identify the vocabularies
    return digest_of(parts)


def modified(input_splits: list[InputSplit]) -> list[float]:
    """Modification times of the log files in seconds since 1970, in the order of their paths."""
    result = {input_split.path: input_split.modified for input_split in input_splits}
    return [result[path] for path in sorted(result)]

"""The evaluation report: metrics, plots and explanations in one HTML file that needs no network."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clsd.pipeline.evaluation import pictures
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config
from clsd.pipeline.shared.progress import printable

#: The metrics that the correction for weights changes; ranking metrics stay about equal.
CALIBRATION_METRICS = ("predicted_over_real", "ece")

#: The metrics of the report's tables: key in ``metrics.json``, label, format.
_ROWS = (
    ("auc", "AUC", "{:.4f}"),
    ("gauc", "GAUC", "{:.4f}"),
    ("log_loss", "log loss", "{:.4f}"),
    ("predicted_over_real", "predicted / real CTR", "{:.3f}"),
    ("ece", "calibration error (ECE)", "{:.4f}"),
)


def environment() -> Environment:
    """The Jinja environment of the templates; an undefined name raises an error."""
    return Environment(
        loader=PackageLoader("clsd.pipeline.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # not Markup, such as a picture
    )


def render(config: Config, manifest: dict[str, Any], metrics: dict[str, Any], statistics: dict[str, Any]) -> str:
    """The report as HTML.

    Args:
        config: the run's config.
        manifest: the data set's ``dataset.json``.
        metrics: the content of ``metrics.json``.
        statistics: the data set's ``statistics.json``.
    """
    run = metrics["training"]
    steps = max(1, -(-manifest["splits"]["train"]["rows"] // config.train.batch_size))
    weighted = config.confidence.weighted
    warmup = run["warmup_steps"] / steps if weighted else 0.0
    corrected = weighted or manifest.get("kept_negatives", 1) < 1
    curves = metrics["calibration"] if corrected else {"score": metrics["calibration"]["score"]}
    return (
        environment()
        .get_template("report.html")
        .render(
            config=config,
            weighted=weighted,
            corrected=corrected,
            manifest=manifest,
            metrics=metrics,
            run=run,
            rows=summary_rows(metrics),
            group_labels=[label for _, label, _ in _group_columns(corrected)],
            groups={
                group: [
                    (name, result, _group_cells(result, corrected, weighted)) for name, result in found_groups.items()
                ]
                for group, found_groups in metrics["groups"].items()
            },
            calibration=pictures.calibration(curves),
            training=pictures.training_curves(run["history"], warmup, run["best_epoch"]),
            confidence={group: pictures.confidence_by_group(result) for group, result in metrics["groups"].items()}
            if weighted
            else {},
            days=pictures.days(statistics["days"]) if statistics["days"] else "",
            features=_feature_rows(manifest, statistics),
            resolved=dump_config(config),
        )
    )


def _feature_rows(manifest: dict[str, Any], statistics: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, cells) of each feature: kind, values, and for each split the shares missing and out of vocabulary."""
    rows = []
    for name, result in statistics["features"].items():
        what = "not counted"
        if "sampled" in result:
            what = f"most frequent of {result['values']:,} drawn: {', '.join(value for value, _ in result['top'][:3])}"
        elif "distinct" in result:
            what = f"{result['distinct']:,} values; {', '.join(value for value, _ in result['top'][:3])}"
        elif "quantiles" in result:
            middle = len(result["quantiles"]) // 2
            what = f"{result['min']:.4g} to {result['max']:.4g}, median {result['quantiles'][middle]:.4g}"
        cells = [result["kind"], what]
        for split, described in manifest["splits"].items():
            missing = result["missing"].get(split)
            cells.append(f"{missing['rows'] / missing['of']:.1%}" if missing else "-")
            unknown = described["quality"].get(name)
            cells.append(f"{unknown['out_of_vocabulary'] / described['rows']:.1%}" if unknown else "-")
        rows.append((name, cells))
    return rows


def summary_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """(name, value of score, value of ctr, value of the cheap calibration if there is one) of each metric."""
    columns = [metrics[part] for part in ("score", "ctr", "ctr_cheap") if part in metrics]
    return [(label, *(_cell(column, name, format) for column in columns)) for name, label, format in _ROWS]


def _cell(values: dict[str, Any], name: str, format: str) -> str:
    if name in values:
        return format.format(values[name])
    return f"undefined: {values.get('undefined', {}).get(name, 'not measured')}"


def _group_columns(corrected: bool) -> list[tuple[str, str, str]]:
    """(key, label, format) of a group's metrics; ``corrected``: also those of ctr that differ from those of score."""
    of_ctr = [(f"ctr_{key}", f"{label}, ctr", format) for key, label, format in _ROWS if key in CALIBRATION_METRICS]
    return [*_ROWS, *(of_ctr if corrected else ())]


def _group_cells(result: dict[str, Any], corrected: bool, weighted: bool) -> list[str]:
    cells = [_cell(result, name, format) for name, _, format in _group_columns(corrected)]
    if weighted:
        cells.append(f"{result['confidence']['mean']:.3f}" if result["confidence"]["rows"] else "no clicks")
    return cells

"""The page a person looks at: figures, pictures and what they mean, in one file that needs no network."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from clsd.pipeline.evaluation import pictures
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config

_ROWS = (
    ("auc", "AUC", "{:.4f}"),
    ("gauc", "GAUC", "{:.4f}"),
    ("log_loss", "log loss", "{:.4f}"),
    ("predicted_over_real", "predicted / real CTR", "{:.3f}"),
    ("ece", "calibration error (ECE)", "{:.4f}"),
)


def environment() -> Environment:
    """Where the pages' templates are; an unknown name in one is an error."""
    return Environment(
        loader=PackageLoader("clsd.pipeline.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(config: Config, manifest: dict[str, Any], metrics: dict[str, Any], statistics: dict[str, Any]) -> str:
    """The report as HTML.

    Args:
        config: of the run.
        manifest: the data set's ``dataset.json``.
        metrics: what ``metrics.json`` holds.
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
    """(name, cells): kind, values, and by split missing and out of vocabulary."""
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
            lacks = result["missing"].get(split)
            cells.append(f"{lacks['rows'] / lacks['of']:.1%}" if lacks else "-")
            unknown = described["quality"].get(name)
            cells.append(f"{unknown['out_of_vocabulary'] / described['rows']:.1%}" if unknown else "-")
        rows.append((name, cells))
    return rows


def summary_rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """(name, value as trained, value corrected for the weights, and by the cheap calibration where there is one)."""
    columns = [metrics[part] for part in ("score", "ctr", "ctr_cheap") if part in metrics]
    return [(label, *(_cell(column, name, format) for column in columns)) for name, label, format in _ROWS]


def _cell(values: dict[str, Any], name: str, format: str) -> str:
    if name in values:
        return format.format(values[name])
    return f"undefined: {values.get('undefined', {}).get(name, 'not measured')}"


def _group_cells(result: dict[str, Any], corrected: bool, weighted: bool) -> list[str]:
    shown = [(name, format) for name, _, format in _ROWS]
    if corrected:
        shown += [(f"ctr_{name}", format) for name, format in shown[-2:]]  # predicted / real CTR and ECE
    cells = [_cell(result, name, format) for name, format in shown]
    if weighted:
        cells.append(f"{result['confidence']['mean']:.3f}" if result["confidence"]["rows"] else "no clicks")
    return cells

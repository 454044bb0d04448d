"""Show a comparison: a table for the terminal, Markdown, and an HTML page with plotted intervals."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from clsd.pipeline.evaluation import pictures
from clsd.pipeline.evaluation.compare_summary import METRICS, SHOWN, TESTED
from clsd.pipeline.evaluation.report import environment
from clsd.pipeline.shared.config import Config
from clsd.pipeline.shared.config_file import dump_config


def table(comparison: dict[str, Any], reference: str) -> Table:
    """Differences to a reference, mean ± sd over seeds. A star marks a corrected p below 1 - level."""
    shown = Table(
        title=f"against {reference}, {comparison['split']} split, {len(comparison['seeds'])} seeds: mean difference ± sd in 1e-4",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    shown.add_column("variant")
    metrics = [name for name in TESTED if comparison["differences"][reference][name]]
    for name in metrics:
        shown.add_column(TESTED[name].label, justify="right")
    shown.add_column("pred. / real: score, ctr", justify="right")
    shown.add_column("ms a step", justify="right")
    for name, variant in comparison["variants"].items():
        cells = [difference(comparison, reference, metric, name) for metric in metrics]
        ratios = " ".join(value(variant, key) for key in ("predicted_over_real_score", "predicted_over_real"))
        step = value(variant, "seconds_per_step")
        shown.add_row(name + (" (collapsed)" if variant["collapsed"] else ""), *cells, ratios, step)
    return shown


def markdown(comparison: dict[str, Any]) -> str:
    """The differences to each reference as Markdown tables."""
    lines = []
    for reference, by_metric in comparison["differences"].items():
        metrics = [name for name in TESTED if by_metric[name]]
        more = [
            "predicted_over_real_score",
            "predicted_over_real",
            "ece_score",
            "ece",
            "group_spread",
            "seconds_per_step",
        ]
        heads = [*(TESTED[name].label for name in metrics), *(SHOWN[name].label for name in more)]
        lines += [
            f"Difference to `{reference}`, in 1e-4 (mean ± sd over {len(comparison['seeds'])} seeds; * beyond chance at "
            f"{comparison['level']:.0%} after correction); the columns on the right hold the metrics themselves:",
            "",
            "| variant | " + " | ".join(heads) + " |",
            "|---" * (1 + len(heads)) + "|",
        ]
        for name, variant in comparison["variants"].items():
            cells = [difference(comparison, reference, metric, name) for metric in metrics]
            shown = name.replace("|", "\\|") + (" (collapsed)" if variant["collapsed"] else "")
            lines.append("| " + " | ".join([shown, *cells, *(value(variant, metric) for metric in more)]) + " |")
        lines.append("")
    return "\n".join(lines)


def difference(comparison: dict[str, Any], reference: str, metric: str, name: str) -> str:
    """A difference as text, such as ``+13 ± 2 *``; the mean itself for the reference; ``undefined`` if there is none."""
    if name == reference:
        return value(comparison["variants"][name], metric)
    result = comparison["differences"][reference][metric].get(name)
    if result is None:
        return "undefined"
    scale = TESTED[metric].scale
    text = f"{scale * result['mean']:+.1f}"
    if result["sd"] is not None:
        text += f" ± {scale * result['sd']:.1f}"
    return text + (" *" if beyond_chance(comparison, result) else "")


def beyond_chance(comparison: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether the corrected p is below 1 - level."""
    return result["p_corrected"] is not None and result["p_corrected"] < 1 - comparison["level"]


def value(variant: dict[str, Any], metric: str) -> str:
    """A metric's mean over seeds as text; ``-`` if it is undefined."""
    result = variant["metrics"].get(metric)
    if result is None:
        return "-"
    scale = METRICS[metric].scale if metric == "seconds_per_step" else 1
    return METRICS[metric].format.format(scale * result["mean"])


def render(config: Config, manifest: dict[str, Any], comparison: dict[str, Any]) -> str:
    """The HTML page.

    Args:
        config: config of the comparison.
        manifest: the data set's ``dataset.json``.
        comparison: the content of ``compare.json``.
    """
    sections = []
    for reference, by_metric in comparison["differences"].items():
        metrics = [name for name in TESTED if by_metric[name]]
        rows = [
            (name, [(difference(comparison, reference, m, name), _p(by_metric[m].get(name))) for m in metrics])
            for name in comparison["variants"]
            if name != reference
        ]
        drawn = [
            (
                TESTED[m],
                pictures.intervals(
                    by_metric[m], TESTED[m].label, TESTED[m].scale, TESTED[m].unit, 1 - comparison["level"]
                ),
            )
            for m in metrics
        ]
        sections.append((reference, [TESTED[m].label for m in metrics], rows, drawn))
    shown = [name for name in METRICS if any(name in v["metrics"] for v in comparison["variants"].values())]
    return (
        environment()
        .get_template("compare.html")
        .render(
            config=config,
            manifest=manifest,
            comparison=comparison,
            sections=sections,
            labels=[METRICS[name].label for name in shown],
            rows=[
                (name, variant, [value(variant, metric) for metric in shown])
                for name, variant in comparison["variants"].items()
            ],
            bootstrap=_bootstrap(comparison),
            resolved=dump_config(config),
        )
    )


def _p(result: dict[str, Any] | None) -> str:
    if result is None or result["p"] is None:
        return "no test"
    return f"p {result['p']:.2g}, corrected {result['p_corrected']:.2g}"


def _bootstrap(comparison: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Rows of (variant, cells of AUC, GAUC, NDCG): difference, interval and p over resampled users."""

    def cell(interval: dict[str, Any] | None) -> str:
        if interval is None:
            return "undefined"
        if interval["low"] is None:
            return f"{1e4 * interval['difference']:+.1f}"
        low, high = 1e4 * interval["low"], 1e4 * interval["high"]
        return f"{1e4 * interval['difference']:+.1f} [{low:+.1f}, {high:+.1f}] p {interval['p']:.2g}"

    variants = comparison["bootstrap"].get("variants", {})
    return [(name, [cell(by.get(metric)) for metric in ("auc", "gauc", "ndcg")]) for name, by in variants.items()]

"""The terminal output of training: a progress bar within an epoch, and a line after each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from clsd.models.metrics import Measured
from clsd.pipeline.shared.progress import console, say, styled
from clsd.pipeline.training.run_state import RunState


@contextmanager
def epoch_bar(title: str, steps: int, state: RunState) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar over an epoch's steps while the block runs; yields ``advance(steps, text)``.

    Args:
        title: of the epoch.
        steps: of the epoch.
        state: of the run; the bar starts at its step and shows the last epoch's AUC.
    """
    last_auc = state.history[-1]["validation"].get("auc") if state.history else None
    auc = f"  auc {last_auc:.4f} after epoch {state.epoch}" if last_auc is not None else ""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}"))
    with Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=steps, completed=state.step, shown="")
        yield lambda done, text: bar.update(task, advance=done, shown=text + auc)


def report_epoch(
    state: RunState, epochs: int, metrics: dict[str, float], measured: Measured, *, weighted: bool, warming_up: bool
) -> None:
    """Print the line of the epoch that just ended.

    Args:
        state: of the run, after the epoch.
        epochs: of the run.
        metrics: of the epoch's steps.
        measured: on the validation split.
        weighted: whether the method weights clicks at all.
        warming_up: whether the epoch belongs to the warm-up.
    """
    shown = [f"epoch {state.epoch:>2}/{epochs}", f"loss {metrics['loss']:.4f}"]
    shown.append(f"predicted/real CTR {metrics['predicted_ctr'] / max(metrics['ctr'], 1e-12):.3f}")
    shown += [f"validation {n} {measured.values[n]:.4f}" for n in ("auc", "gauc", "log_loss") if n in measured.values]
    if weighted:
        shown.append(f"effective clicks {metrics['effective_clicks']:.1%}")
    kept = "best" if state.best_value is not None else "kept"
    mark = "  warm-up" if warming_up else f"  {kept}" if state.best_epoch == state.epoch else ""
    say(styled("  ".join(shown), (mark, "" if warming_up else "green")))
    if state.stopped:
        say(f"stopped early: {state.stopped}; the best epoch is {state.best_epoch}")

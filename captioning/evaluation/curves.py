"""Learning curves of several runs: validation CIDEr-D and loss over the epochs, a colour for each setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from captioning.evaluation.runs import TrainingRun

_PANELS = {"cider_d": "validation CIDEr-D", "nll": "validation loss (nats a word)"}
_COLOURS = 10  # of matplotlib's standard cycle; more settings share them, with other lines
_LINES = ("-", "--", ":", "-.")


def curves_figure(settings: Mapping[str, Sequence[TrainingRun]]) -> Any:
    """Draw each run as a thin line, and the mean over a setting's finished runs as a thick one.

    Args:
        settings: the runs, by the setting's name.

    Returns:
        a matplotlib Figure; `visualise.close` it after use.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5 + 0.18 * len(settings)), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for panel, (key, label) in zip(panels, _PANELS.items(), strict=True):
        for number, (name, runs) in enumerate(settings.items()):
            style = {"color": f"C{number % _COLOURS}", "linestyle": _LINES[number // _COLOURS % len(_LINES)]}
            for run in runs:
                curve = _curve(run, key)
                marker = "o" if len(curve) == 1 else None
                panel.plot(list(curve), list(curve.values()), lw=0.8, alpha=0.45, marker=marker, **style)
            # Epochs that a run has not reached, or not yet, would make the mean jump.
            curves = [_curve(run, key) for run in runs if run.finished]
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            mean = [np.mean([curve[epoch] for curve in curves]) for epoch in shared]
            count = str(len(runs)) if len(curves) == len(runs) else f"{len(curves)} of {len(runs)}"
            panel.plot(shared, mean, lw=2.5, label=f"{name or 'all runs'} ({count})", **style)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", title="setting (runs); thick: mean over finished runs"
    )
    return figure


def _curve(run: TrainingRun, key: str) -> dict[float, float]:
    return {epoch["epoch"]: epoch[key] for epoch in run.epochs if key in epoch}

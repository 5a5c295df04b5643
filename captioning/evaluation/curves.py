"""Learning curves of several runs: validation CIDEr-D and loss over the epochs, a colour for each setting."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PANELS = {"cider_d": "validation CIDEr-D", "nll": "validation loss (nats a word)"}
_COLOURS = 10  # of matplotlib's standard cycle; more settings share them, with other lines
_LINES = ("-", "--", ":", "-.")


def curves_figure(settings: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> Any:
    """Draw each run as a thin line, and the mean over a setting's runs as a thick one.

    Args:
        settings: the validations by epoch of each run, by the setting's name.

    Returns:
        a matplotlib Figure; `visualise.close` it after use.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5 + 0.18 * len(settings)), layout="constrained")
    panels = figure.subplots(1, len(_PANELS))
    for panel, (key, label) in zip(panels, _PANELS.items(), strict=True):
        for number, (name, runs) in enumerate(settings.items()):
            style = {"color": f"C{number % _COLOURS}", "linestyle": _LINES[number // _COLOURS % len(_LINES)]}
            curves = [{epoch["epoch"]: epoch[key] for epoch in run if key in epoch} for run in runs]
            single = len(curves) == 1
            for curve in curves:
                width, opacity = (2.0, 1.0) if single else (0.8, 0.45)
                marker = "o" if len(curve) == 1 else None
                panel.plot(list(curve), list(curve.values()), lw=width, alpha=opacity, marker=marker, **style)
            shared = sorted(set.intersection(*map(set, curves))) if curves else []
            if not single:
                mean = [np.mean([curve[epoch] for curve in curves]) for epoch in shared]
                panel.plot(shared, mean, lw=2.5, **style)
            panel.plot([], [], lw=2.5, label=f"{name or 'all runs'} ({len(runs)})", **style)
        panel.set_xlabel("epoch")
        panel.set_ylabel(label)
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", title="setting (runs); thick: mean over runs")
    return figure

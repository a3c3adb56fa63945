"""mAP over code lengths, one picture a data set, with error bars over the seeds."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.artifacts import PROVENANCE_KEY, Provenance, replacing
from stages.baselines.methods import METHODS as SHALLOW
from stages.benchmark.report import metric_title, title
from stages.benchmark.statistics import summary
from stages.evaluate import palette
from stages.evaluate.plots import style_axes

#: More than there are colours, so that no two methods look alike.
MARKERS = "osD^vPX*<>hpd8"


def draw_figures(frame: pd.DataFrame, metrics: Sequence[str], directory: Path, provenance: Provenance) -> None:
    """Draw every data set, a panel a metric."""
    for dataset, part in frame.groupby("dataset", sort=False):
        path = directory / f"{re.sub('[^A-Za-z0-9._-]+', '_', str(dataset))}.png"
        draw(part, metrics, path, str(dataset), provenance)


def draw(frame: pd.DataFrame, metrics: Sequence[str], path: Path, name: str, provenance: Provenance) -> None:
    """The results of one data set: trained methods, untrained ones (dashed), levels of the real-valued references."""
    figure = Figure(figsize=(1.2 + 4.6 * len(metrics) + 2.4, 4.8), dpi=120, facecolor=palette.PAPER,
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        draw_panel(axes, frame, metric)
    figure.suptitle(f"{name}: mean over seeds, bars of one standard deviation".replace("$", r"\$"), x=0.01, ha="left",
                    fontsize=13, weight="bold")  # fmt: skip
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, handlelength=3.2, edgecolor=palette.GRID)
    with replacing(path) as temporary:
        figure.savefig(temporary, metadata={PROVENANCE_KEY: provenance.to_json()})


def draw_panel(axes: Axes, frame: pd.DataFrame, metric: str) -> None:
    """One metric over code lengths, which stand at equal distances."""
    found = summary(frame, metric)
    lengths = sorted({bits for _, _, bits in found.index if bits > 0})
    place = {bits: position for position, bits in enumerate(lengths)}
    methods = list(dict.fromkeys(method for _, method, _ in found.index))
    for index, method in enumerate(methods):
        part = found.xs(method, level="method").reset_index()
        colour = palette.SERIES[index % len(palette.SERIES)]
        if (part["bits"] < 0).all():
            axes.axhline(part["mean"].iloc[0], color=palette.FAINT, lw=1.3, label=title(method),
                         ls=((0, (5, 2)), (0, (1, 2)))[index % 2])  # fmt: skip
            continue
        part = part.sort_values("bits")
        shift = (index - (len(methods) - 1) / 2) * 0.25 / len(methods)  # so that error bars do not cover each other
        x = part["bits"].map(place) + shift
        axes.plot(x, part["mean"], color=colour, marker=MARKERS[index % len(MARKERS)], ms=5.5,
                  lw=1.2 if method in SHALLOW else 1.9, ls=(0, (2, 1.5)) if method in SHALLOW else "-",
                  label=title(method))  # fmt: skip
        axes.errorbar(x, part["mean"], yerr=part["std"].fillna(0), fmt="none", ecolor=colour, elinewidth=1.2,
                      capsize=2.5)  # fmt: skip
    axes.set_xticks(range(len(lengths)), [str(bits) for bits in lengths])
    axes.set_xlim(-0.4, len(lengths) - 0.6)
    axes.set(xlabel="bits", ylabel=f"{metric_title(metric)} (tie-aware)")
    style_axes(axes, "y")

"""Line and bar pictures: precision-recall and precision at N of all methods, and the mined concepts."""

from collections.abc import Collection, Iterator, Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from stages.artifacts import replacing
from stages.evaluate import palette
from stages.evaluate.inputs import Concepts
from stages.evaluate.reports import NO_LABELS, Curve

#: More concepts than this are not all drawn.
MAX_BARS = 40

#: Kept concepts that are names of classes.
OVERLAP = "kept, a class name of the data set"

#: Colour of a concept by why it was discarded ("": it was kept).
REASON_COLOURS = {
    "": "#5a9bd8", OVERLAP: "#6a3d9a", "too rare": "#b8c1cb", "too frequent": "#e69f00", "label name": "#cc79a7",
}  # fmt: skip

#: Line styles of the real-valued references, which are no hashing methods.
REFERENCES = {
    "feature_cosine": {"color": "#7f7f7f", "ls": (0, (4, 2))},
    "concept_cosine": {"color": palette.INK, "ls": (0, (1, 1.4))},
}

#: Readable names of the baselines; the method of the run has its own.
TITLES = {
    "lsh": "LSH", "pca_sign": "PCA-sign", "sh": "SH", "itq": "ITQ", "spherical": "spherical hashing",
    "feature_cosine": "features, cosine (real-valued)", "concept_cosine": "concepts, cosine (real-valued)",
}  # fmt: skip


def draw_precision_recall(path: Path, curves: Mapping[str, Curve], run: str, title: str) -> None:
    """Write :func:`precision_recall`."""
    _save(precision_recall(curves, run, title), path)


def precision_recall(curves: Mapping[str, Curve], run: str, title: str = "") -> Figure:
    """Precision over recall of all methods, the curve named `run` in front."""
    figure, axes = canvas(title)
    for name, x, y, style in _styled(curves, run):
        axes.plot(x, y, label=name, **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.005))
    _finish(axes)
    return figure


def draw_precision_at_n(path: Path, curves: Mapping[str, Curve], run: str, title: str) -> None:
    """Write :func:`precision_at_n`."""
    _save(precision_at_n(curves, run, title), path)


def precision_at_n(curves: Mapping[str, Curve], run: str, title: str = "") -> Figure:
    """Precision among the first N of all methods, N on a logarithmic axis."""
    figure, axes = canvas(title)
    for name, x, y, style in _styled(curves, run):
        axes.plot(x, y, label=name, **style)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axes.set(xlabel="N nearest images (stable order)", ylabel="precision among them")
    _finish(axes)
    return figure


def draw_concepts(path: Path, concepts: Concepts, overlap: Collection[str] = ()) -> None:
    """Write :func:`concept_bars`, or that there are none."""
    _save(concept_bars(concepts, overlap) if concepts.names else _no_concepts(), path)


def concept_bars(concepts: Concepts, overlap: Collection[str] = ()) -> Figure:
    """Frequencies of the candidates as bars, most frequent first, coloured by why they were discarded.

    Args:
        concepts: at least one.
        overlap: kept concepts that are names of the data set's own classes; they have a colour of their own.
    """
    kinds = [OVERLAP if name in overlap and not reason else reason
             for name, reason in zip(concepts.names, concepts.reasons, strict=True)]  # fmt: skip
    shown, gap = choose_bars(concepts)
    figure = Figure(figsize=(9, 1.9 + 0.235 * len(shown)), dpi=120, facecolor=palette.PAPER, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shown)) + (np.arange(len(shown)) >= gap)  # an empty row where some are left out
    frequency = concepts.frequency[shown]
    colours = [REASON_COLOURS.get(kinds[i], palette.FAINT) for i in shown]
    axes.barh(rows, frequency, color=colours, height=0.78)
    for row, value in zip(rows, frequency, strict=True):
        axes.annotate(f"{value:,}", (value, row), (3, 0), textcoords="offset points", va="center", fontsize=8, bbox={
            "boxstyle": "square,pad=0.1", "facecolor": palette.PAPER, "edgecolor": "none", "alpha": 0.85,
        })  # fmt: skip
    names = [_plain(concepts.names[i]) for i in shown]
    axes.set_yticks(rows, [name if len(name) <= 28 else name[:27] + "…" for name in names], fontsize=9)
    if gap < len(shown):
        left_out = len(concepts.names) - len(shown)
        axes.text(0.005, gap, f"… {left_out:,} concepts between or after are not drawn …", fontsize=9, va="center",
                  color=palette.FAINT, style="italic", transform=axes.get_yaxis_transform())  # fmt: skip
    for bound, name in ((concepts.lower, "lower bound"), (concepts.upper, "upper bound")):
        if bound is not None:
            axes.axvline(bound, color=palette.INK, linewidth=1.1, linestyle=(0, (5, 3)))
            axes.annotate(f"{name} {bound:,.0f}", (bound, 1), (0, 4), textcoords="offset points", fontsize=9,
                          xycoords=("data", "axes fraction"), ha="center", color=palette.INK)  # fmt: skip
    axes.set_xscale("symlog", linthresh=1)  # a logarithm that has a place for 0
    largest = max([1, *concepts.frequency, *(b for b in (concepts.lower, concepts.upper) if b is not None)])
    axes.set_xlim(0, largest * 2)
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(rows[-1] + 0.7, -0.7)
    axes.set_xlabel("training images whose top concept it is (logarithmic)")
    title = f"Concepts: {len(concepts.kept):,} of {len(concepts.names):,} kept"
    axes.set_title(title, loc="left", pad=22, fontsize=13, weight="bold")
    legend = {kind: kinds.count(kind) for kind in ("", OVERLAP, *concepts.reasons) if kind in kinds}
    handles = [axes.barh(0, 0, color=REASON_COLOURS.get(kind, palette.FAINT)) for kind in legend]
    axes.legend(handles, [f"{kind or 'kept'} ({count:,})" for kind, count in legend.items()], loc="lower right",
                fontsize=9, framealpha=0.95, edgecolor=palette.GRID)  # fmt: skip
    style_axes(axes, "x")
    return figure


def _no_concepts() -> Figure:
    figure = Figure(figsize=(6, 1.6), dpi=120, facecolor=palette.PAPER)
    figure.text(0.04, 0.62, "Concepts: none", fontsize=13, weight="bold", color=palette.INK)
    figure.text(0.04, 0.3, "There is no text side: the run is guided by the images alone.", fontsize=10,
                color=palette.INK)  # fmt: skip
    return figure


def choose_bars(concepts: Concepts) -> tuple[np.ndarray, int]:
    """Indices of the concepts to draw, most frequent first, and how many of them precede the place of those left out.

    Where there are too many: the most frequent ones, and those on both sides of the lower bound.
    """
    order = np.argsort(-concepts.frequency, kind="stable")
    if len(order) <= MAX_BARS:
        return order, len(order)
    top, around = MAX_BARS - 16, 8
    edge = int(np.count_nonzero(concepts.frequency > (concepts.lower or 0)))
    first = min(max(edge - around, top), len(order) - 2 * around)
    return np.concatenate([order[:top], order[first : first + 2 * around]]), top


def canvas(title: str = "") -> tuple[Figure, Axes]:
    """An empty figure of the size and colours of all curves."""
    figure = Figure(figsize=(8, 5.2), dpi=120, facecolor=palette.PAPER, layout="constrained")
    axes = figure.subplots()
    axes.set_title(_plain(title), loc="left", fontsize=13, weight="bold")
    return figure, axes


def _styled(curves: Mapping[str, Curve], run: str) -> Iterator[tuple[str, np.ndarray, np.ndarray, dict[str, Any]]]:
    """(label, x, y, line style) of each curve; real-valued references grey and dashed, the run last and boldest."""
    colours = cycle(palette.SERIES)
    for name in [*(name for name in curves if name != run), run]:
        if name == run:
            style = {"color": palette.ACCENT, "lw": 2.8, "zorder": 5}
        else:
            style = {"lw": 1.7, **(REFERENCES.get(name) or {"color": next(colours)})}
        if curves[name]:
            x, y = np.array(curves[name]).T
            yield TITLES.get(name, name), x, y, style


def _finish(axes: Axes) -> None:
    axes.set_ylim(bottom=0, top=min(1.02, axes.get_ylim()[1] * 1.08))
    style_axes(axes, "both")
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(handles[::-1], labels[::-1], fontsize=9, frameon=True, framealpha=0.95, edgecolor=palette.GRID)
    else:
        axes.text(0.5, 0.5, NO_LABELS, ha="center", color=palette.FAINT, transform=axes.transAxes)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary)


def style_axes(axes: Axes, grid: str) -> None:
    """Thin grey frame and grid; `grid` is ``x``, ``y`` or ``both``."""
    axes.grid(axis=grid, color=palette.GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(palette.FAINT)
    axes.tick_params(colors=palette.INK, length=3)


def _plain(text: str) -> str:
    """Text in which matplotlib sees no mathematics."""
    return text.replace("$", r"\$")

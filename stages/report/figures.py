"""Figures as SVG that stands in the page and takes its colours, light or dark."""

import io
import re
from collections.abc import Mapping, Sequence
from itertools import product

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from stages.evaluate import palette
from stages.evaluate.plots import canvas, style_axes
from stages.evaluate.reports import Curve
from stages.explain.figures import alike

#: Colours that follow the page's, by the variable of the style sheet.
COLOURS = {
    palette.INK: "ink", "#000000": "ink", palette.FAINT: "faint", palette.GRID: "grid", palette.PAPER: "paper",
    palette.ACCENT: "accent", palette.SERIES[5]: "brown",
}  # fmt: skip

#: Size in inches of a curve, whose text is still read on a phone; and its width in rem.
CURVE = (6.4, 4.3)
NARROW = 40

#: Coarse components in the picture of co-occurrence, at most.
MAX_COARSE = 40

#: Images on the map, and coarse components with a colour and a mark of their own, at most.
MAX_POINTS, MAX_COLOURED = 2000, 12

#: Bits in a heat map; with more of them a cell is no longer seen.
MAX_BITS = 256


def svg(figure: Figure, description: str) -> Markup:
    """A figure as an inline ``<svg>``: text stays text, the same figure gives the same bytes, ids are its own.

    Args:
        figure: to be drawn.
        description: what a reader who does not see it is told; of all figures of a page each needs its own.
    """
    buffer = io.StringIO()
    settings = {"svg.hashsalt": description, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    used = set(re.findall(r'"(?:url\()?#([^")]+)', text))
    text = re.sub(r"<\w[^<>]*>", lambda tag: re.sub(
        r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", tag[0]), text)  # fmt: skip
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    width = float(box[1]) / 12  # of 72 points in an inch, and 6 rem of 16 CSS pixels
    kind = "narrow" if width <= NARROW else "broad"
    head = (f'<svg viewBox="{box[0][9:-1]}" role="img" aria-label="{escape(description)}" class="{kind}" '
            f'style="width:{width:.1f}rem">')  # fmt: skip
    text = re.sub(r"<svg[^>]*>", lambda _: head, text, count=1)
    for colour, name in COLOURS.items():
        text = re.sub(f"(fill|stroke): {colour}", rf"\1: var(--{name})", text, flags=re.IGNORECASE)
    return Markup(text.strip())


def training_losses(losses: Mapping[str, Curve]) -> Figure:
    """Every term of the loss by epoch, the total in front."""
    figure, axes = canvas()
    for (name, curve), colour in zip(losses.items(), [palette.ACCENT, *palette.SERIES * 4], strict=False):
        x, y = np.array(curve).T if curve else ([], [])
        axes.plot(np.asarray(x) + 1, y, label=name, color=colour, lw=2.8 if name == "loss" else 1.7)
    axes.set(xlabel="epoch", ylabel="loss")
    style_axes(axes, "both")
    if len(losses) > 1:
        axes.legend(fontsize=9, framealpha=0.95, edgecolor=palette.GRID)
    return figure


def method_dots(values: Mapping[str, float], run: str, interval: tuple[float, float], label: str) -> Figure:
    """One dot a method, best first; the run's with its confidence interval."""
    order = sorted(values, key=lambda name: values[name])
    figure = Figure(figsize=(CURVE[0], 0.9 + 0.3 * len(order)), dpi=120, facecolor=palette.PAPER, layout="constrained")
    axes = figure.subplots()
    for row, name in enumerate(order):
        mine = name == run
        colour = palette.ACCENT if mine else palette.FAINT
        axes.plot([0, values[name]], [row, row], color=palette.GRID, lw=1.2, zorder=1)
        if mine:
            axes.plot(interval, [row, row], "|-", color=colour, lw=1.5, markersize=13, markeredgewidth=1.5, zorder=2)
        axes.plot(values[name], row, "o", color=colour, markersize=5.5, zorder=3)
        axes.annotate(f"{values[name]:.3f}", (values[name], row), (9, 0), textcoords="offset points", va="center",
                      fontsize=9, color=palette.INK, weight="bold" if mine else "normal")  # fmt: skip
    axes.set_yticks(range(len(order)), order, parse_math=False)
    axes.get_yticklabels()[order.index(run)].set_fontweight("bold")
    axes.set(xlim=(0, 1.12), xlabel=label, ylim=(-0.6, len(order) - 0.4))
    axes.set_xticks(np.linspace(0, 1, 6))
    style_axes(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def cooccurrence(fine: np.ndarray, weights: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Figure:
    """How far two coarse components share their images: the cosine of their responsibilities, 0 never to 1 always.

    Args:
        fine: (m1, m1) co-occurrence R^T R of the fine components (DSCH, section 3.2), or a multiple.
        weights: (m1,); labels: int (m1,), the coarse component of each; names: of the coarse ones.
    """
    one_hot = np.eye(len(names))[labels]
    together, weight = one_hot.T @ fine @ one_hot, weights @ one_hot
    chosen = np.sort(np.argsort(-weight, kind="stable")[:MAX_COARSE])
    together = together[np.ix_(chosen, chosen)]
    lengths = np.sqrt(together.diagonal())
    cosine = together / np.maximum(np.outer(lengths, lengths), 1e-300)
    rows = alike(cosine)
    shown = np.where(np.eye(len(rows), dtype=bool), np.nan, cosine[np.ix_(rows, rows)])
    size = 2.6 + 0.21 * len(rows)
    figure = Figure(figsize=(size + 0.9, size), dpi=120, facecolor=palette.PAPER, layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(0.01, np.nanmax(shown)), interpolation="nearest")
    ticks = [names[chosen[i]] for i in rows]
    axes.set_xticks(range(len(rows)), ticks, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), ticks, fontsize=8, parse_math=False)
    _bare(axes)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, aspect=30, pad=0.02)
    bar.set_label("how far their images are the same: 0 never, 1 always", fontsize=8, color=palette.INK)
    bar.ax.tick_params(labelsize=8, colors=palette.INK)
    bar.outline.set_visible(False)
    return figure


def bit_statistics(mean: np.ndarray, correlation: np.ndarray) -> Figure:
    """Of each bit how often it is 1, and of each pair how strongly they correlate.

    Args:
        mean: (K,) of the bits as -1 and +1; correlation: (K, K), NaN with bits that never vary; none where K is more
            than :data:`MAX_BITS`.
    """
    bits = len(mean)
    drawn = bits <= MAX_BITS
    figure = Figure(figsize=(CURVE[0], 7.4 if drawn else 2.2), dpi=120, facecolor=palette.PAPER, layout="constrained")
    panels = figure.subplots(2 if drawn else 1, 1, height_ratios=[1, 3.6] if drawn else None, squeeze=False)[:, 0]
    panels[0].bar(range(bits), (mean + 1) / 2, width=0.8 if drawn else 1.0, color=palette.ACCENT)
    panels[0].axhline(0.5, color=palette.INK, lw=1, ls=(0, (4, 3)))
    panels[0].set(xlim=(-0.6, bits - 0.4), ylim=(0, 1), ylabel="share of ones", xlabel="bit")
    style_axes(panels[0], "y")
    if drawn:
        shown = np.where(np.eye(bits, dtype=bool), np.nan, np.abs(correlation))
        image = panels[1].imshow(shown, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        panels[1].set(xlabel="bit", ylabel="bit")
        _bare(panels[1])
        bar = figure.colorbar(image, ax=panels[1], fraction=0.04, aspect=30, pad=0.02)
        bar.set_label("|correlation| of two bits", fontsize=9)
        bar.ax.tick_params(labelsize=8, colors=palette.INK)
        bar.outline.set_visible(False)
    return figure


def _bare(axes: matplotlib.axes.Axes) -> None:
    axes.set_facecolor(palette.GRID)
    axes.tick_params(length=0, colors=palette.INK)
    for side in axes.spines.values():
        side.set_visible(False)


def image_map(x: np.ndarray, y: np.ndarray, coarse: np.ndarray, names: Sequence[str]) -> Figure:
    """The places of images in the plane, coloured by coarse component: the largest ones each, the others as one.

    Args:
        x, y: (n,); coarse: int (n,), -1 for none; names: of the coarse components.
    """
    rows = np.unique(np.linspace(0, len(x) - 1, MAX_POINTS).round().astype(int))
    x, y, coarse = x[rows], y[rows], coarse[rows]
    counts = np.bincount(coarse[coarse >= 0], minlength=len(names))
    shown = [place for place in np.argsort(-counts, kind="stable")[:MAX_COLOURED].tolist() if counts[place]]
    figure = Figure(figsize=(CURVE[0], 7.4), dpi=120, facecolor=palette.PAPER, layout="constrained")
    axes = figure.subplots()
    dots = {"ls": "", "markeredgewidth": 0}
    for place, (marker, colour) in zip(shown, product("o^", palette.SERIES), strict=False):
        mine = coarse == place
        axes.plot(x[mine], y[mine], marker, color=colour, markersize=3.4, label=names[place], zorder=3, **dots)
    others, left = ~np.isin(coarse, shown), np.count_nonzero(counts) - len(shown)
    if others.any():
        label = f"{left:,} smaller {'ones' if left > 1 else 'one'}" if left else "none"
        axes.plot(x[others], y[others], "o", color=palette.FAINT, markersize=2.2, label=label, **dots)
    axes.set_aspect("equal", "datalim")
    _bare(axes)
    axes.set(xticks=[], yticks=[], facecolor=palette.PAPER)
    figure.legend(loc="outside lower left", ncols=2, fontsize=8, markerscale=2, frameon=False)
    return figure

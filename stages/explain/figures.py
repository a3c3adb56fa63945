"""The heat map of bits and concepts, and the concepts of the component hierarchy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster.hierarchy import leaves_list, linkage

from stages.artifacts import replacing
from stages.evaluate import palette
from stages.explain.bits import Profile
from stages.explain.hierarchy import ConceptHierarchy, top_entries
from stages.explain.tables import component_name

#: Rows of the heat map at most.
MAX_ROWS = 80
#: Bits whose numbers are all written.
MAX_NUMBERS = 64
#: Coarse components, fine ones of each, and concepts in the picture of the hierarchy, at most.
MAX_COARSE, MAX_FINE, MAX_CONCEPTS = 12, 6, 40
#: Changes of a share that are not named.
SMALLEST = 0.01
#: Characters of a name.
MAX_NAME = 24

NO_CONCEPTS = "There is no text side, and so no concepts."


def draw_bits(path: Path, profiles: Mapping[str, Profile], hierarchy: ConceptHierarchy, title: str) -> None:
    """Write :func:`bit_meanings` with its title."""
    figure = bit_meanings(profiles, hierarchy)
    figure.suptitle(f"What the bits mean: {title}", x=0.01, ha="left", fontsize=13, weight="bold", parse_math=False)
    _save(figure, path)


def bit_meanings(profiles: Mapping[str, Profile], hierarchy: ConceptHierarchy) -> Figure:
    """Correlations of all bits with the concepts and, below, with the coarse components and their main concepts.

    Rows and bits are ordered so that those which behave alike are side by side. Where there are more concepts than fit,
    those that correlate most with any bit are drawn; where there are none, the fine components.
    """
    kind = "concept" if profiles["concept"].names else "fine"
    upper, lower = _largest(profiles[kind], MAX_ROWS), _largest(_described(profiles, hierarchy), MAX_ROWS // 4)
    bits = upper.correlation.shape[1]
    columns = alike(np.concatenate([upper.correlation, lower.correlation]).T)
    heights = len(upper.names), len(lower.names)
    figure = Figure(
        figsize=(max(6.5, 2.6 + 0.19 * bits), 2.3 + 0.19 * sum(heights)), dpi=120, facecolor=palette.PAPER,
        layout="constrained",
    )  # fmt: skip
    limit = max(0.05, np.abs(upper.correlation).max(initial=0), np.abs(lower.correlation).max(initial=0))
    panels = figure.subplots(2, 1, height_ratios=heights)
    count = len(profiles[kind].names)
    shown = f"{len(upper.names)} of {count:,}" if len(upper.names) < count else f"{count:,}"
    headings = (f"{shown} {'concepts' if kind == 'concept' else 'fine components'}", "coarse components")
    for axes, profile, heading in zip(panels, (upper, lower), headings, strict=True):
        rows = alike(profile.correlation)
        image = axes.imshow(profile.correlation[np.ix_(rows, columns)], cmap="RdBu_r", vmin=-limit, vmax=limit,
                            aspect="auto", interpolation="nearest")  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(profile.names[i], 2) for i in rows], fontsize=8, parse_math=False)
        axes.set_title(heading, loc="left", fontsize=10, color=palette.INK)
        _cells(axes, profile.correlation.shape)
    panels[0].set_xticks([])
    step = -(-bits // MAX_NUMBERS)
    panels[1].set_xticks(range(0, bits, step), columns[::step], fontsize=7, rotation=90)
    panels[1].set_xlabel("bit (bits that behave alike are side by side)", color=palette.INK)
    bar = figure.colorbar(image, ax=panels, fraction=0.03, aspect=40, pad=0.01)
    bar.set_label("correlation of the bit with the share in an image", fontsize=9, color=palette.INK)
    bar.ax.tick_params(labelsize=8, colors=palette.INK)
    bar.outline.set_visible(False)
    return figure


def alike(rows: np.ndarray) -> np.ndarray:
    """An order of rows (v, K) in which similar ones are near each other: the leaves of average linkage."""
    if len(rows) < 3:
        return np.arange(len(rows))
    return leaves_list(linkage(rows, "average", optimal_ordering=True))


def _described(profiles: Mapping[str, Profile], hierarchy: ConceptHierarchy) -> Profile:
    """The coarse components, with what they have more of than the whole collection in their names."""
    coarse, concepts = profiles["coarse"], profiles["concept"].names
    names = []
    for name, rising in zip(coarse.names, top_entries(hierarchy.coarse.change, 2), strict=True):
        words = ", ".join(_short(concepts[i]) for i in rising)
        names.append(f"{name} ({words})" if words else name)
    return replace(coarse, names=names)


def _largest(profile: Profile, count: int) -> Profile:
    order = np.argsort(-np.abs(profile.correlation).max(axis=1, initial=0), kind="stable")[:count]
    chosen = np.sort(order)
    return Profile([profile.names[i] for i in chosen], profile.correlation[chosen], profile.mean_code[chosen])


def draw_hierarchy(path: Path, hierarchy: ConceptHierarchy, concepts: list[str], title: str) -> None:
    """Write :func:`concept_tree` with its title, or that there are no concepts."""
    if not concepts:
        _draw_nothing(path)
        return
    figure = concept_tree(hierarchy, concepts)
    figure.suptitle(f"Concepts down the hierarchy: {title}", x=0.01, ha="left", fontsize=13, weight="bold",
                    parse_math=False)  # fmt: skip
    _save(figure, path)


def concept_tree(hierarchy: ConceptHierarchy, concepts: list[str]) -> Figure:
    """Concept shares of the largest coarse components and of the largest fine ones in each, and how far they drift."""
    rows = _tree(hierarchy)
    levels = {"coarse": hierarchy.coarse, "fine": hierarchy.fine}
    shares = np.stack([hierarchy.collection, *(levels[name].distribution[i] for name, i in rows)])
    drift = np.array([0.0, *(levels[name].js[i] for name, i in rows)])
    names = ["all images"] + [
        f"{component_name(name, i)}  {levels[name].weights[i]:.1%}" for name, i in rows
    ]  # fmt: skip
    chosen = np.sort(np.argsort(-shares.max(axis=0), kind="stable")[:MAX_CONCEPTS])
    columns = chosen[alike(shares[:, chosen].T)]

    figure = Figure(figsize=(6.8 + 0.25 * len(columns), 2.1 + 0.185 * len(names)), dpi=120, facecolor=palette.PAPER,
                    layout="constrained")  # fmt: skip
    left, right = figure.subplots(1, 2, width_ratios=(0.25 * len(columns) + 1.0, 4.2), sharey=True)
    image = left.imshow(shares[:, columns], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_xticks(range(len(columns)), [_short(concepts[i]) for i in columns], fontsize=8, rotation=90,
                    parse_math=False)  # fmt: skip
    _cells(left, shares[:, columns].shape)
    colours = [palette.ACCENT if name == "coarse" else palette.SERIES[1] for name, _ in rows]
    right.barh(range(1, len(names)), drift[1:], height=0.7, color=colours)
    for place, (name, index) in enumerate(rows, 1):
        left.get_yticklabels()[place].set_fontweight("bold" if name == "coarse" else "normal")
        change = levels[name].change[index : index + 1]
        rising, falling = (top_entries(np.where(c < SMALLEST, 0, c), 2)[0] for c in (change, -change))
        words = [f"+{_short(concepts[i])}" for i in rising] + [f"\N{MINUS SIGN}{_short(concepts[i])}" for i in falling]
        right.annotate("  ".join(words), (drift[place], place), (4, 0), textcoords="offset points", va="center",
                       fontsize=7.5, color=palette.INK, parse_math=False)  # fmt: skip
        if name == "coarse":
            for axes in (left, right):
                axes.axhline(place - 0.5, color=palette.FAINT, linewidth=0.8)
    right.set_xlim(0, max(1.0, drift.max()) * 1.9)
    right.set_xticks((0, 0.5, 1))
    right.set_xlabel("drift from the parent (Jensen-Shannon, bits)", fontsize=9, color=palette.INK, loc="left")
    right.set_title("what rises (+) and falls (\N{MINUS SIGN}) most", loc="left", fontsize=10, color=palette.INK)
    right.tick_params(which="both", left=False, labelleft=False, colors=palette.INK)
    for side in ("top", "right", "left"):
        right.spines[side].set_visible(False)
    count = f"{len(columns)} of {len(concepts):,}" if len(columns) < len(concepts) else f"{len(concepts):,}"
    left.set_title(f"shares of {count} concepts", loc="left", fontsize=10, color=palette.INK)
    bar = figure.colorbar(image, ax=(left, right), location="bottom", fraction=0.012, aspect=60, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=palette.INK)
    return figure


def _tree(hierarchy: ConceptHierarchy) -> list[tuple[str, int]]:
    """(level, component) from top to bottom: each coarse component before its fine ones, the largest first."""
    rows = []
    for coarse in np.argsort(-hierarchy.coarse.weights, kind="stable")[:MAX_COARSE].tolist():
        members = np.flatnonzero(hierarchy.fine.parents == coarse)
        order = np.argsort(-hierarchy.fine.weights[members], kind="stable")[:MAX_FINE]
        rows += [("coarse", coarse), *(("fine", int(fine)) for fine in members[order])]
    return rows


def _draw_nothing(path: Path) -> None:
    figure = Figure(figsize=(6, 1.6), dpi=120, facecolor=palette.PAPER)
    figure.text(0.04, 0.62, "Concepts down the hierarchy: none", fontsize=13, weight="bold", color=palette.INK)
    figure.text(0.04, 0.3, NO_CONCEPTS, fontsize=10, color=palette.INK)
    _save(figure, path)


def _cells(axes: Axes, shape: tuple[int, int]) -> None:
    """Thin white lines between the cells of a heat map."""
    axes.set_xticks(np.arange(shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color=palette.PAPER, linewidth=0.5)
    axes.tick_params(which="both", length=0, colors=palette.INK)
    for side in axes.spines.values():
        side.set_visible(False)


def _short(name: str, names: int = 1) -> str:
    """A name, or several in one, cut where it is longer than names may be."""
    return name if len(name) <= names * MAX_NAME else f"{name[: names * MAX_NAME - 1]}…"


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary)

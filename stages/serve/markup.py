"""What the page shows of an answer, as HTML; every word that comes from outside is escaped here."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from itertools import compress

import numpy as np

#: Bits of a row of a strip; cells are 1 wide.
ROW = 32
#: Height of a cell, of the mark below one that differs, and of a row with what parts it from the next.
CELL, MARK, LINE = 2.4, 0.7, 4.2
#: Concepts that are listed of an image, and the least share of one.
LISTED, SMALLEST = 5, 0.005


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of the answer.

    Attributes:
        id, labels, name: as of :class:`stages.search.hits.Hits`.
        bits: uint8 (K,) of 0 and 1.
        shares: (m,) of the concepts; None where they are not known.
        distance: to the query, in bits; score: cosine, None where nothing was re-ranked.
    """

    id: int
    labels: Sequence[str]
    name: str | None
    bits: np.ndarray
    shares: np.ndarray | None
    distance: int
    score: float | None


def strip(bits: np.ndarray, other: np.ndarray | None = None) -> str:
    """A code as a strip of cells, dark for 1; those that differ from the `other` code are coloured and marked below.

    Args:
        bits, other: (K,) of 0 and 1.

    Returns:
        An SVG image whose description has the bits in words.
    """
    cells, marks = _cells(len(bits))
    differs = np.zeros(len(bits), bool) if other is None else bits != other
    # The cells of a kind are one path: an element for each would make a page of a hundred hits a slow one.
    kinds = {"cb-0": ~differs & (bits == 0), "cb-1": ~differs & (bits == 1), "cb-d0": differs & (bits == 0),
             "cb-d1": differs & (bits == 1)}  # fmt: skip
    paths = [(kind, "".join(compress(cells, chosen.tolist()))) for kind, chosen in kinds.items()]
    paths.append(("cb-mark", "".join(compress(marks, differs.tolist()))))
    drawn = "".join(f'<path class="{kind}" d="{path}"/>' for kind, path in paths if path)
    size = f"0 0 {min(ROW, len(bits))} {-(-len(bits) // ROW) * LINE - 0.6:g}"
    return f'<svg class="cb-strip" viewBox="{size}" role="img" aria-label="{in_words(bits, other)}">{drawn}</svg>'


@lru_cache(8)
def _cells(bits: int) -> tuple[list[str], list[str]]:
    """The cells of a code of that length, and the marks below them, as pieces of SVG paths."""
    corners = [(place % ROW, place // ROW * LINE) for place in range(bits)]
    return (
        [f"M{x} {y:g}h.84v{CELL}h-.84z" for x, y in corners],
        [f"M{x} {y + CELL + 0.5:.4g}h.84v{MARK}h-.84z" for x, y in corners],
    )


def in_words(bits: np.ndarray, other: np.ndarray | None = None) -> str:
    """A code in groups of eight, and which bits (from 0) differ from the `other` one."""
    text = (bits + ord("0")).astype(np.uint8).tobytes().decode()
    words = "code " + " ".join(text[start : start + 8] for start in range(0, len(text), 8))
    if other is not None:
        places = np.flatnonzero(bits != other).tolist()
        words += f"; {differing(len(places), len(bits))}" + (f": {', '.join(map(str, places))}" if places else "")
    return words


def differing(count: int, bits: int) -> str:
    """How many bits differ, as a sentence has it."""
    return "all bits agree" if not count else f"{count} of {bits} bits {'differs' if count == 1 else 'differ'}"


def listed(*shares: np.ndarray) -> list[int]:
    """The concepts that any of several distributions (m,) is mostly made of, the largest share first."""
    found = {i for row in shares for i in np.argsort(-row, kind="stable")[:LISTED].tolist() if row[i] >= SMALLEST}
    return sorted(found, key=lambda i: (-max(float(row[i]) for row in shares), i))


def concepts(names: Sequence[str], query: np.ndarray, hit: np.ndarray) -> str:
    """The main concepts of query and hit side by side, a row each with a bar to either side of its name.

    Args:
        names: of the m concepts; query, hit: their shares (m,).
    """
    rows = "".join(
        f'<tr>{_bar(query[i])}<th scope="row">{escape(names[i])}</th>{_bar(hit[i])}</tr>' for i in listed(query, hit)
    )
    return (
        '<table class="cb-concepts"><thead><tr><th scope="col">query</th><th scope="col">concept</th>'
        f'<th scope="col">image</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _bar(share: float) -> str:
    # Of the width beside the number, so that bars have lengths in the ratio of the shares.
    width = f"calc((100% - 3.2rem) * {float(share):.3f})"
    return f'<td><span class="cb-bar" style="width:{width}"></span><span>{100 * float(share):.0f}%</span></td>'


def query_picture(image: int | None, text: str | None) -> str:
    """What stands for the query: the image of the index, the text, or a place for the picture that the browser has."""
    if image is not None:
        return _picture(image, f"image {image}")
    return '<span class="cb-own"></span>' if text is None else f'<q class="cb-words">{escape(text)}</q>'


def _picture(image: int, alt: str) -> str:
    return f'<img src="thumbnail/{image}" alt="{escape(alt)}" loading="lazy" decoding="async">'


def answer(
    title: str, picture: str, bits: np.ndarray, shares: np.ndarray | None, hits: Sequence[Shown],
    names: Sequence[str], note: str,
) -> str:  # fmt: skip
    """A query with its hits: what is compared, then the images, each with its distance and its code beside the query's.

    Args:
        title: of the query, in words.
        picture: as of :func:`query_picture`.
        bits, shares: of the query, as of :class:`Shown`.
        names: of the concepts.
        note: how the hits were found.
    """
    query = f'<div class="cb-pic">{picture}</div><p class="cb-title">{escape(title)}</p>'
    if not hits:
        return f'<section class="cb-query">{query}{strip(bits)}</section><p class="cb-note">{escape(note)}</p>'
    cards = "".join(_hit(hit, place, bits, shares, names, query) for place, hit in enumerate(hits))
    return (
        '<section class="cb-compare" aria-label="Query and image compared" aria-live="polite"></section>'
        f'<p class="cb-note">{escape(note)}</p><ol class="cb-hits">{cards}</ol>'
    )


def _hit(
    hit: Shown, place: int, bits: np.ndarray, shares: np.ndarray | None, names: Sequence[str], query: str
) -> str:  # fmt: skip
    said = _said(hit.id, hit.labels)
    score = "" if hit.score is None else f'<span title="cosine of the features">{hit.score:.3f}</span>'
    own = strip(hit.bits, bits)
    side_by_side = ""
    if shares is not None and hit.shares is not None:
        side_by_side = concepts(names, shares, hit.shares)
    known = [", ".join(hit.labels), hit.name]
    shows = "".join(f"<br><small>{escape(words)}</small>" for words in known if words)
    side = f'<div class="cb-side">{query}{strip(bits, hit.bits)}</div>'
    other = (
        f'<div class="cb-side"><div class="cb-pic">{_picture(hit.id, said)}</div><p class="cb-title">Image {hit.id}: '
        f"{differing(hit.distance, len(bits))}{shows}</p>{own}</div>"
    )
    return (
        f'<li class="cb-hit">{_button(hit.id, said)}'
        f'<div class="cb-line"><b>{hit.distance}</b> {"bit" if hit.distance == 1 else "bits"}{score}</div>{own}'
        f'<button type="button" class="cb-look" aria-pressed="false" aria-label="Compare with image {hit.id}, place '
        f'{place + 1}">Compare</button><template><div class="cb-pair">{side}{other}</div>{side_by_side}</template></li>'
    )


def _button(image: int, said: str) -> str:
    return (
        f'<button type="button" class="cb-image" data-id="{image}" aria-label="Search with {escape(said)}" '
        f'title="Search with this image">{_picture(image, said)}</button>'
    )


def beginning(ids: Sequence[int], labels: Sequence[Sequence[str]]) -> str:
    """Images to begin with, before anything was searched for."""
    cards = "".join(
        f'<li class="cb-hit">{_button(image, _said(image, shown))}</li>'
        for image, shown in zip(ids, labels, strict=True)
    )
    return (
        '<p class="cb-note">Drop a photo, type what it should show, or begin with one of these.</p>'
        f'<ol class="cb-hits cb-few">{cards}</ol>'
    )


def _said(image: int, labels: Sequence[str]) -> str:
    return f"image {image}" + (f": {', '.join(labels)}" if labels else "")


def failure(message: str) -> str:
    """One line of what went wrong."""
    return f'<p class="cb-failure" role="alert">{escape(message)}</p>'

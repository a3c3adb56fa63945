"""Queries of the page and their answers as HTML: all of it goes through :class:`stages.search.Searcher`."""

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from stages.artifacts import INDEX
from stages.errors import InputError
from stages.mine.concepts import mine_distribution
from stages.mine.kept import read_kept_concepts
from stages.search import Searcher
from stages.search.hits import Hits
from stages.serve import markup

#: Images that are offered to begin with, and thumbnails that are kept in memory, of some 3 kB each.
BEGIN_WITH, KEPT = 24, 8192


class Answers:
    """What the page asks for; from several threads at once.

    Args:
        searcher: of the project in the current directory.

    Raises:
        InputError: an artifact that the index needs is missing, or of another run.
    """

    def __init__(self, searcher: Searcher) -> None:
        self.searcher = searcher
        self.names, self._texts, self._tau = read_kept_concepts(searcher.index.provenance, INDEX)
        self._kept: OrderedDict[int, bytes | None] = OrderedDict()
        self._keeping = threading.Lock()

    @property
    def title(self) -> str:
        """The index, in words."""
        manifest = self.searcher.index.manifest
        return f"{manifest.images:,} images, codes of {manifest.bits} bits by {manifest.method}"

    def warm_up(self) -> None:
        """Load the models and run them once, so that the first visitor need not wait."""
        first = int(self.searcher.index.ids[0])
        self.thumbnail(first)
        self.by_id(first, 1, 0)
        # A model that is missing matters to those alone who ask for it.
        with suppress(InputError):
            self.searcher.by_text("anything", top=1)
        with suppress(InputError):
            self.searcher.by_image(Image.new("RGB", (64, 64)), top=1)

    # ---- queries

    def by_image(self, data: bytes, top: int, rerank: int) -> str:
        """The answer for the content of an image file.

        Args:
            data: the content.
            top: hits; rerank: candidates that are ordered by their features, 0 for none.

        Raises:
            InputError: as of :meth:`Searcher.by_image`.
        """
        hits = self.searcher.by_image(data, **_options(top, rerank))
        return self._answer("Your image", markup.query_picture(None, None), hits, rerank)

    def by_text(self, text: str, top: int, rerank: int) -> str:
        """The answer for a text, likewise."""
        hits = self.searcher.by_text(text, **_options(top, rerank))
        return self._answer("Your text", markup.query_picture(None, text), hits, rerank)

    def by_id(self, image: int, top: int, rerank: int) -> str:
        """The answer for an image of the index, or for a query of the data set, likewise."""
        hits = self.searcher.by_id(image, **_options(top, rerank))
        return self._answer(f"Image {image}", markup.query_picture(image, None), hits, rerank, image)

    def beginning(self) -> str:
        """Some images to begin with, others each time."""
        index = self.searcher.index
        rows = np.random.default_rng().choice(len(index), min(BEGIN_WITH, len(index)), replace=False)
        return markup.beginning(index.ids[rows].tolist(), index.labels(rows))

    def thumbnail(self, image: int) -> bytes | None:
        """The small JPEG of an image of the index; None where there is none."""
        with self._keeping:
            if image in self._kept:
                self._kept.move_to_end(image)
                return self._kept[image]
        found = self.searcher.index.thumbnails(np.array([image], np.int64))[image]
        with self._keeping:
            self._kept[image] = found
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    # ---- an answer

    def _answer(self, title: str, picture: str, hits: Hits, rerank: int, image: int | None = None) -> str:
        """The hits of a query, which may be an image of the data set, as HTML."""
        shares, shares_of_hits = self._shares(hits, image)
        index = self.searcher.index
        codes = np.unpackbits(index.codes_at(index.rows_of(hits.ids)), axis=1)
        shown = [
            markup.Shown(entry["id"], entry["labels"], entry["name"], bits, of_hit, entry["distance"], entry["score"])
            for entry, bits, of_hit in zip(hits.to_dicts(), codes, shares_of_hits, strict=True)
        ]
        bits = np.unpackbits(hits.code)
        return markup.answer(title, picture, bits, shares, shown, self.names, self._note(hits, rerank))

    def _shares(self, hits: Hits, image: int | None) -> tuple[np.ndarray | None, list[np.ndarray | None]]:
        """Concept distributions (m,) of the query and of each hit; None where features or concepts are not there."""
        of_hits: list[np.ndarray | None] = [None] * len(hits)
        if not self.names:
            return None, of_hits
        try:
            features, query = self.searcher.features_of(hits.ids), hits.feature
            if query is None and image is not None:
                query = self.searcher.features_of(np.array([image]))[0]
        except InputError:  # codes are searched without features, too
            return None, of_hits
        if query is None or np.isnan(query).any():
            return None, of_hits
        known = np.flatnonzero(~np.isnan(features).any(axis=1))
        shares = mine_distribution(np.concatenate([query[None], features[known]]), self._texts, self._tau)
        for place, share in zip(known.tolist(), shares[1:], strict=True):
            of_hits[place] = share
        return shares[0], of_hits

    def _note(self, hits: Hits, rerank: int) -> str:
        images = len(self.searcher.index)
        if not len(hits):
            return "No image was found."
        if hits.scores is None:
            found = f"The nearest {len(hits)} of {images:,} images by Hamming distance"
        else:
            near = min(max(rerank, len(hits)), images)
            found = f"The likest {len(hits)} by cosine among the nearest {near:,} of {images:,} images"
        return found + ("." if self.searcher.index.exact else "; an ivf index may miss some.")


def _options(top: int, rerank: int) -> dict[str, Any]:
    return {"top": top, "rerank": max(rerank, top) if rerank else False}

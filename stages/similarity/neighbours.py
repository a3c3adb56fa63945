"""The nearest neighbours of each row: exact, or where rows are many, in inverted lists at a measured recall.

Source of the inverted lists: IVF (Sivic and Zisserman, "Video Google", ICCV 2003), as faiss has them: the rows are put
into the lists of the nearest of some centroids, and a row is compared with those of the lists that are nearest to it.
"""

import bisect
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from stages.progress import progress_bar, track
from stages.similarity.matrix import SimilarityMatrix

#: Rows up to which all of them are compared with all.
EXACT_ROWS = 50_000

#: Least recall of the inverted lists: the share of the neighbours listed that are as similar as the true ones.
RECALL = 0.99

#: Rows that the recall is measured on. From about 1,600 on faiss multiplies in blocks, five times as fast.
SAMPLE = 4096

#: Cosines of unit rows that differ by less are the same but for rounding in float32.
TIE = 1e-6

#: A pair costs in an inverted list about eight times what it costs in a product of matrices. Where a larger share of
#: the pairs than one in eight is needed, an exact search costs no more.
DEARER = 8

#: A row is compared with at most so many times as many rows as lists looked into have on average: equal rows share a
#: list, however many they are, and none of them has to be compared with all.
SKEW = 8

#: Rows for each centroid that the centroids are made from.
TRAINED_ON = 64

#: Rows searched for at a time, at most, and values found at a time.
BATCH, VALUES = 32_768, 4_000_000


class NeighbourSearch:
    """The k most similar other rows of each row, batch by batch.

    It is exact up to `EXACT_ROWS` rows. Beyond, as many of the lists are looked into as a sample of the rows needs for
    a recall of `RECALL`, by its mean less two standard errors; where that is more work than comparing all rows with
    all, these are compared. All that is drawn has a fixed seed: the same rows have the same neighbours.

    Iterating gives (start, stop, rows, similarities): int64 and float32 (stop - start, k), most similar first, the
    similarities being values of Q.

    Attributes:
        k: at most n - 1, and 0 where there are no concepts.
        lists, probed: inverted lists, and how many are looked into for a row; 0 where the search is exact.
        recall: the mean over the sample; 1 where the search is exact.
    """

    lists, probed, recall = 0, 0, 1.0

    def __init__(self, similarity: SimilarityMatrix, k: int) -> None:
        self._similarity = similarity
        self._factor = np.ascontiguousarray(similarity.factor, dtype=np.float32)
        n, columns = self._factor.shape
        self.k = min(k, n - 1) if columns else 0
        self._index: Any = None  # a faiss.IndexIVFFlat
        if self.k and n > EXACT_ROWS:
            with progress_bar("inverted lists", None):
                self._choose()

    def __iter__(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        n = len(self._factor)
        # Of equal size: the last one is not so small that another product of matrices rounds it otherwise.
        edges = np.linspace(0, n, -(-n // min(BATCH, max(SAMPLE, VALUES // (self.k + 1)))) + 1).astype(int).tolist()
        for start, stop in track(list(itertools.pairwise(edges)), "neighbours"):
            queries = np.arange(start, stop)
            rows, cosines = self._compare(queries) if self._index is None else self._look_up(queries)
            if self.k and len(short := np.flatnonzero(rows[:, -1] < 0)):  # of those lists, that have too few rows
                rows[short], cosines[short] = self._compare(queries[short])
            values = self._similarity.scale * cosines + self._similarity.offset
            yield start, stop, rows, values.astype(np.float32)

    def metadata(self) -> dict[str, object]:
        """How the neighbours were found, for the artifact."""
        if self._index is None:
            return {"search": "exact"}
        return {"search": "ivf", "lists": self.lists, "probed": self.probed, "recall": self.recall, "sample": SAMPLE}

    def _choose(self) -> None:
        """Make the inverted lists, and look into as few as reach the recall; if there are none such, do without."""
        import faiss  # not at the top: importing a module is to cost little

        n, columns = self._factor.shape
        rng = np.random.default_rng(0)
        self.lists = int(2 * n**0.5)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(columns), columns, self.lists, faiss.METRIC_INNER_PRODUCT)
        index.train(self._factor[np.sort(rng.permutation(n)[: TRAINED_ON * self.lists])])
        index.add(self._factor)
        self._index = index
        sample = np.sort(rng.permutation(n)[:SAMPLE])
        needed = self._compare(sample)[1][:, -1:] - TIE

        def found(probed: int) -> np.ndarray:
            index.nprobe = probed
            index.max_codes = min(probed * SKEW * n // self.lists, n // DEARER)
            return (self._look_up(sample)[1] >= needed).mean(axis=1)

        def surely(probed: int) -> float:
            shares = found(probed)
            return shares.mean() - 2 * shares.std() / len(shares) ** 0.5

        candidates = range(1, self.lists // DEARER + 1)
        place = bisect.bisect_left(candidates, RECALL, key=surely)
        if place == len(candidates):
            self.lists, self._index = 0, None
            return
        self.probed = candidates[place]
        self.recall = round(float(found(self.probed).mean()), 5)

    def _compare(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of all other rows (b, k) of the rows `queries` (b,), and their cosines."""
        if not self.k:
            return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        import faiss

        vectors = self._factor[queries]
        return _others(queries, *faiss.knn(vectors, self._factor, self.k + 1, metric=faiss.METRIC_INNER_PRODUCT))

    def _look_up(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Like :meth:`_compare`, of the lists that are looked into; -1 where they have too few rows."""
        vectors = self._factor[queries]
        # List by list, so that the rows of the lists that are looked into stay in the processor's cache.
        order = np.argsort(self._index.quantizer.assign(vectors, 1)[:, 0], kind="stable")
        cosines, rows = np.empty((len(queries), self.k + 1), np.float32), np.empty((len(queries), self.k + 1), np.int64)
        cosines[order], rows[order] = self._index.search(vectors[order], self.k + 1)
        return _others(queries, cosines, rows)


def _others(queries: np.ndarray, cosines: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows (b, k) found for each of `queries` (b,) other than itself, of k + 1, and their cosines."""
    own = rows == queries[:, None]
    # Equal images tie with the row itself, which may then be anywhere in the list, or beyond its end.
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), -1)
    return rows[~own].reshape(shape), cosines[~own].reshape(shape)

"""Ranking a database by Hamming distance, or by score; equal ones in database order."""

import threading

import numpy as np
from numpy.typing import DTypeLike
from scipy.sparse import csr_array, get_index_dtype


def hamming_distances(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Hamming distances of packed codes: uint8 (q, bytes) x (n, bytes) -> uint8, from 256 bits on uint16, (q, n)."""
    queries, words = _words(query), _words(database)
    distances = np.empty((len(query), len(database)), _distance_type(query.shape[1]))
    _count_differing(queries, words, np.empty(distances.shape, words.dtype), distances)
    return distances


def share_label(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Whether query and item have a label in common: multi-hot, bool (q, n_classes) x (n, n_classes) -> bool (q, n)."""
    queries, words = _label_words(query), _label_words(database)
    shared = np.empty((len(query), len(database)), bool)
    _share(queries, words, np.empty(shared.shape, words.dtype), shared)
    return shared


class _Room(threading.local):
    """Arrays to write into; each thread has its own, which serve all its queries."""

    def __init__(self, shape: tuple[int, ...], **types: DTypeLike) -> None:
        for name, dtype in types.items():
            setattr(self, name, np.empty(shape, dtype))

    def rows(self, count: int) -> list[np.ndarray]:
        """The first rows of each array, in the order in which they were named."""
        return [array[:count] for array in vars(self).values()]


class CodeRanking:
    """Ranking by Hamming distance, for up to `at_once` queries at a time.

    Of the sparse matrix with a row an item and a column a distance, an item's relevance stands at its distance. Read
    column by column instead of row by row, its entries are in the order of the ranking, and the columns' bounds count
    the items at each distance: SciPy's conversion is a counting sort, which takes two passes over the items. Several
    queries stand one below and beside the other.

    Args:
        query_codes, database_codes: packed, uint8 (q, bits / 8) and (n, bits / 8).
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes).

    Attributes:
        radii: number of possible distances, bits + 1.
    """

    def __init__(
        self, query_codes: np.ndarray, database_codes: np.ndarray, query_labels: np.ndarray,
        database_labels: np.ndarray, at_once: int,
    ) -> None:  # fmt: skip
        self.n, width = database_codes.shape
        self.radii = width * 8 + 1
        self.query_codes, self.codes = _words(query_codes), _words(database_codes)
        self.query_labels, self.labels = _label_words(query_labels), _label_words(database_labels)
        # Of the type of the columns: SciPy would bring both to one, in copies, at each conversion.
        index = get_index_dtype(maxval=at_once * max(self.n, self.radii))
        self.items = np.arange(at_once * self.n + 1, dtype=index)
        self.columns = np.arange(at_once, dtype=index)[:, None] * self.radii  # the first one of each query
        # NumPy looks for ones singly where they are at most a tenth, which takes up to four times as long as for more.
        self.full = np.ones(at_once * self.n // 8 + 1, bool)
        self.room = _Room(
            (at_once, self.n), word=self.codes.dtype, distances=_distance_type(width), columns=index,
            label=self.labels.dtype, relevant=bool,
        )  # fmt: skip

    def rank(self, rows: slice) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Rank for the c queries `rows`.

        Returns:
            for each query int (h,), the ascending ranks of its relevant items, from 1; items, and hits, up to each
            distance, int (c, radii).
        """
        count = self.query_codes[:, rows].shape[1]
        word, distances, columns, label, relevant = self.room.rows(count)
        _count_differing(self.query_codes[:, rows], self.codes, word, distances)
        _share(self.query_labels[:, rows], self.labels, label, relevant)
        np.add(self.columns[:count], distances, out=columns)
        matrix = csr_array(
            (relevant.reshape(-1), columns.reshape(-1), self.items[:count * self.n + 1]),
            shape=(count * self.n, count * self.radii),
        ).tocsc()  # fmt: skip
        places = np.concatenate([matrix.data, self.full]).nonzero()[0][:-len(self.full)]
        items = matrix.indptr[1:].reshape(count, self.radii)
        hits = places.searchsorted(items)
        first = np.arange(count) * self.n
        lists = np.split(places, hits[:-1, -1])
        for ranks, before in zip(lists, first, strict=True):
            ranks -= before - 1
        return lists, items - first[:, None], hits - np.insert(hits[:-1, -1], 0, 0)[:, None]


class VectorRanking:
    """Ranking by float32 scores, highest first.

    Score, place in the database and relevance are packed into one integer a pair, so that a plain sort of integers,
    which is several times faster than a stable argsort of floats, is the stable sort and carries the relevance along.

    Args:
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes); n below 2^31.
    """

    def __init__(self, query_labels: np.ndarray, database_labels: np.ndarray) -> None:
        n = len(database_labels)
        self.query_labels, self.labels = _label_words(query_labels), _label_words(database_labels)
        self.places = np.arange(n, dtype=np.uint64) << np.uint64(1)
        self.room = _Room((1, n), keys=np.uint64, label=self.labels.dtype, relevant=bool)

    def rank(self, row_and_scores: tuple[int, np.ndarray]) -> np.ndarray:
        """Rank for a query, given its row and its scores, float32 (n,); int (h,) ascending ranks of its hits."""
        row, scores = row_and_scores
        keys, label, relevant = self.room.rows(1)
        _share(self.query_labels[:, row:row + 1], self.labels, label, relevant)
        bits = (0.0 - scores).view(np.uint32)  # (0.0 - x) never gives -0.0, whose bits differ from those of 0.0
        # IEEE floats sort like integers once all bits of the negative ones, and the sign of the others, are flipped.
        bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
        keys[:] = bits
        keys <<= np.uint64(32)
        keys |= self.places
        keys |= relevant
        keys.sort()
        np.bitwise_and(keys, 1, out=relevant, casting="unsafe")
        return relevant[0].nonzero()[0] + 1


def _count_differing(queries: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Bits in which codes (w, q) differ from those of `words` (w, n), into `out` (q, n)."""
    for number, (query, others) in enumerate(zip(queries, words, strict=True)):
        np.bitwise_xor(query[:, None], others, out=room)
        if number:
            out += np.bitwise_count(room)
        else:
            np.bitwise_count(room, out=out)


def _share(queries: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Whether labels (w, q) and those of `words` (w, n) have one in common, into `out`, bool (q, n)."""
    for number, (query, others) in enumerate(zip(queries, words, strict=True)):
        np.bitwise_and(query[:, None], others, out=room)
        if number:
            out |= room != 0
        else:
            np.not_equal(room, 0, out=out)


def _distance_type(width: int) -> type[np.unsignedinteger]:
    return np.uint8 if width * 8 < 256 else np.uint16


def _words(packed: np.ndarray) -> np.ndarray:
    """Rows of bytes (n, bytes) as columns of the widest unsigned integers that divide them: (words, n)."""
    width = next(size for size in (8, 4, 2, 1) if packed.shape[1] % size == 0)
    return np.ascontiguousarray(np.ascontiguousarray(packed).view(f"u{width}").T)


def _label_words(labels: np.ndarray) -> np.ndarray:
    """Multi-hot labels, bool (n, n_classes), as columns of unsigned integers of at least a bit a class: (words, n)."""
    packed = np.packbits(labels, axis=1)
    width = packed.shape[1]
    padded = next((size for size in (1, 2, 4) if width <= size), -(-width // 8) * 8)
    return _words(np.pad(packed, ((0, 0), (0, padded - width))))

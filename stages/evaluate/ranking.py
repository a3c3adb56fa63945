"""Ranking a database for one query after the other: by Hamming distance, or by score; equal ones in database order."""

import threading

import numpy as np
from numpy.typing import DTypeLike

#: Items that are ranked at a time.
BLOCK = 1 << 16


def hamming_distances(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Hamming distances of packed codes: uint8 (q, bytes) x (n, bytes) -> uint8, from 256 bits on uint16, (q, n)."""
    distances = np.empty((len(query), len(database)), _holding(query.shape[1] * 8))
    words, room = _words(database), np.empty(len(database), _words(database).dtype)
    for row, code in zip(distances, _words(query).T, strict=True):
        _count_differing(code, words, room, row)
    return distances


def share_label(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Whether query and item have a label in common: multi-hot, bool (q, n_classes) x (n, n_classes) -> bool (q, n)."""
    shared = np.empty((len(query), len(database)), bool)
    words, room = _label_words(database), np.empty(len(database), _label_words(database).dtype)
    for row, labels in zip(shared, _label_words(query).T, strict=True):
        _share(labels, words, room, row)
    return shared


class _Room(threading.local):
    """Arrays of n items to write into; each thread has its own, which serve all its queries."""

    def __init__(self, n: int, **types: DTypeLike) -> None:
        for name, dtype in types.items():
            setattr(self, name, np.empty(n, dtype))


class CodeRanking:
    """Ranking by Hamming distance.

    A distance has 8 or 16 bits, by which a stable argsort is a radix sort. It is done block by block, each of which
    stays in a core's cache; where the blocks' parts come in the whole list follows from their counts alone.

    Args:
        query_codes, database_codes: packed, uint8 (q, bits / 8) and (n, bits / 8).
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes).

    Attributes:
        radii: number of possible distances, bits + 1.
    """

    def __init__(
        self, query_codes: np.ndarray, database_codes: np.ndarray, query_labels: np.ndarray, database_labels: np.ndarray
    ) -> None:
        n, width = database_codes.shape
        self.radii, self.size = width * 8 + 1, min(n, BLOCK)
        self.query_codes, self.query_labels = _words(query_codes).T, _label_words(query_labels).T
        codes, labels = _words(database_codes), _label_words(database_labels)
        starts = range(0, n, self.size)
        self.blocks = [(codes[:, start:start + self.size], labels[:, start:start + self.size]) for start in starts]
        distance = _holding(2 * self.radii)
        self.room = _Room(self.size, word=codes.dtype, distances=distance, label=labels.dtype, relevant=bool)
        self.bounds = np.arange(1, self.radii + 1, dtype=distance) * distance(2)  # an item at d comes below bounds[d]

    def rank(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rank for the query `row`.

        Returns:
            int (h,) ascending ranks of its relevant items, from 1; items, and hits, up to each distance (radii,).
        """
        items, hits = np.empty((2, len(self.blocks), self.radii), np.int64)
        ranks = []
        for number, (codes, labels) in enumerate(self.blocks):
            here = slice(codes.shape[1])
            distances, relevant = self.room.distances[here], self.room.relevant[here]
            _count_differing(self.query_codes[row], codes, self.room.word[here], distances)
            _share(self.query_labels[row], labels, self.room.label[here], relevant)
            order = distances.argsort(kind="stable")
            distances <<= 1  # room for the relevance, so that both are put in order at once
            distances |= relevant
            ranked = distances.take(order)
            items[number] = ranked.searchsorted(self.bounds)
            ranks.append(np.bitwise_and(ranked, 1, out=relevant, casting="unsafe").nonzero()[0])
            hits[number] = ranks[-1].searchsorted(items[number])
            ranks[-1] += 1
        if len(ranks) > 1:
            return _merged(ranks, items, hits), items.sum(axis=0), hits.sum(axis=0)
        return ranks[0], items[0], hits[0]


class VectorRanking:
    """Ranking by float32 scores, highest first.

    Score, place in the database and relevance are packed into one integer a pair, so that a plain sort of integers,
    which is several times faster than a stable argsort of floats, is the stable sort and carries the relevance along.

    Args:
        query_labels, database_labels: multi-hot, bool (q, n_classes) and (n, n_classes); n below 2^31.
    """

    def __init__(self, query_labels: np.ndarray, database_labels: np.ndarray) -> None:
        n = len(database_labels)
        self.query_labels, self.labels = _label_words(query_labels).T, _label_words(database_labels)
        self.places = np.arange(n, dtype=np.uint64) << np.uint64(1)
        self.room = _Room(n, keys=np.uint64, label=self.labels.dtype, relevant=bool)

    def rank(self, row_and_scores: tuple[int, np.ndarray]) -> np.ndarray:
        """Rank for a query, given its row and its scores, float32 (n,); int (h,) ascending ranks of its hits."""
        row, scores = row_and_scores
        keys, relevant = self.room.keys, self.room.relevant
        _share(self.query_labels[row], self.labels, self.room.label, relevant)
        bits = (0.0 - scores).view(np.uint32)  # (0.0 - x) never gives -0.0, whose bits differ from those of 0.0
        # IEEE floats sort like integers once all bits of the negative ones, and the sign of the others, are flipped.
        bits ^= (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
        keys[:] = bits
        keys <<= np.uint64(32)
        keys |= self.places
        keys |= relevant
        keys.sort()
        np.bitwise_and(keys, 1, out=relevant, casting="unsafe")
        return relevant.nonzero()[0] + 1


def _merged(ranks: list[np.ndarray], items: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """Ranks of the hits in the whole list, from those in the lists of b blocks, in place, and what (b, radii) says."""
    as_near = np.diff(items, prepend=0)
    nearer = items - as_near
    # What is nearer in any block comes before, and what is as near in earlier blocks.
    shift = nearer.sum(axis=0) - nearer + as_near.cumsum(axis=0) - as_near
    for rank, by, often in zip(ranks, shift, np.diff(hits, prepend=0), strict=True):
        rank += by.repeat(often)
    return np.sort(np.concatenate(ranks))


def _count_differing(code: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Bits that differ between a code (w,) and those of `words` (w, n), into `out` (n,)."""
    for number, (word, others) in enumerate(zip(code, words, strict=True)):
        np.bitwise_xor(word, others, out=room)
        if number:
            out += np.bitwise_count(room)
        else:
            np.bitwise_count(room, out=out)


def _share(labels: np.ndarray, words: np.ndarray, room: np.ndarray, out: np.ndarray) -> None:
    """Whether labels (w,) and those of `words` (w, n) have one in common, into `out`, bool (n,)."""
    for number, (word, others) in enumerate(zip(labels, words, strict=True)):
        np.bitwise_and(word, others, out=room)
        if number:
            out |= room != 0
        else:
            np.not_equal(room, 0, out=out)


def _holding(largest: int) -> type[np.unsignedinteger]:
    return np.uint8 if largest < 256 else np.uint16


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

"""Faiss indexes of packed codes: built, searched, changed. The label of a code in an index is its row, from 0.

All results are ordered by distance, and by row where distances are equal.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import comb
from typing import Literal

import faiss
import numpy as np

Kind = Literal["flat", "ivf", "multihash"]

#: Codes above which ``auto`` no longer compares a query with all of them.
FLAT_UP_TO = 10_000_000
#: Codes that the groups of an IVF are found with, for each group.
TRAINING_PER_LIST = 64
#: A look-up is given up for a scan of all codes when it would try more buckets than this share of their number.
BUCKETS = 1 / 8


def kind_for(kind: str, n: int) -> Kind:
    """The kind of an index of `n` codes that ``index.kind`` asks for."""
    return ("flat" if n <= FLAT_UP_TO else "ivf") if kind == "auto" else kind


def build(codes: np.ndarray, kind: Kind, lists: int | None = None, probes: int = 16) -> faiss.IndexBinary:
    """An index of packed codes uint8 (n, bits / 8), n > 0.

    Args:
        lists, probes: groups of an IVF (None: 4 sqrt(n)), and how many of them a query looks into.
    """
    n, bits = len(codes), codes.shape[1] * 8
    if kind == "flat":
        index = faiss.IndexBinaryFlat(bits)
    elif kind == "multihash":
        # Parts of about log2(n) bits: buckets of about one code (Norouzi, Punjani, Fleet, "Fast search in Hamming
        # space with multi-index hashing", CVPR 2012, section 3.2).
        part = min(bits, max(8, round(np.log2(n))))
        index = faiss.IndexBinaryMultiHash(bits, bits // part, part)
    else:
        count = min(n, lists or max(1, round(4 * n**0.5)))
        quantizer = faiss.IndexBinaryFlat(bits)
        index = faiss.IndexBinaryIVF(quantizer, bits, count)
        index.own_fields = True
        quantizer.this.disown()
        index.nprobe = min(probes, count)
        # Evenly spaced codes, so that the same codes give the same groups; faiss seeds its k-means itself.
        chosen = np.unique(np.linspace(0, n - 1, min(n, TRAINING_PER_LIST * count)).astype(np.int64))
        index.cp.min_points_per_centroid = 1
        index.train(codes[chosen])
    index.add(np.ascontiguousarray(codes))
    return index


def kind_of(index: faiss.IndexBinary) -> Kind | None:
    """Which kind an index is; None for one that is not built here."""
    types = {faiss.IndexBinaryFlat: "flat", faiss.IndexBinaryIVF: "ivf", faiss.IndexBinaryMultiHash: "multihash"}
    return types.get(type(index))


def nearest(index: faiss.IndexBinary, code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The at most `count` nearest codes to one code uint8 (bits / 8,): rows int64 and distances int32.

    Exact but for an IVF.
    """
    count = min(count, index.ntotal)
    if isinstance(index, faiss.IndexBinaryMultiHash):
        return _looked_up(index, code, count)
    with _one_thread():
        return _compared(index, code, count)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Faiss gives each query one thread; for a single one the others would only be woken, and wait in a busy loop."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # of this thread alone
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _compared(index: faiss.IndexBinary, code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(index, faiss.IndexBinaryIVF):
        distances, rows = index.search(code[None], count)
        return _ordered(rows[0][rows[0] >= 0], distances[0][rows[0] >= 0])
    index.use_heap = False  # counting is faster, and keeps the order of the rows
    distances, rows = index.search(code[None], count)
    return rows[0], distances[0]


def within(index: faiss.IndexBinary, code: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """All codes at a distance of at most `radius` from one code uint8 (bits / 8,): rows and distances.

    Exact but for an IVF.
    """
    if isinstance(index, faiss.IndexBinaryMultiHash):
        flips = min(radius // index.nhash, index.b)  # faiss never returns from flipping more
        if _buckets(index, flips) > BUCKETS * index.ntotal:
            index = storage(index)
        else:
            index.nflip = flips
    with _one_thread():
        _, distances, rows = index.range_search(code[None], radius + 1)
    return _ordered(rows, distances.astype(np.int32))


def _looked_up(index: faiss.IndexBinaryMultiHash, code: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest codes, by look-ups with more and more flipped bits.

    A code at distance d has, in one of h parts, at most d // h other bits. So what was found with f flips is complete
    below distance (f + 1) h (Norouzi et al., section 3.1).
    """
    for flips in range(index.b + 1):
        if _buckets(index, flips) > BUCKETS * index.ntotal:
            break
        index.nflip = flips
        distances, rows = index.search(code[None], count)
        if rows[0][-1] >= 0 and distances[0][-1] < (flips + 1) * index.nhash:
            # Those as far as the last one are cut off in any order; all of them are complete, so ask for these.
            rows, distances = within(index, code, int(distances[0][-1]))
            return rows[:count], distances[:count]
    return nearest(storage(index), code, count)


def _buckets(index: faiss.IndexBinaryMultiHash, flips: int) -> int:
    return index.nhash * sum(comb(index.b, flipped) for flipped in range(flips + 1))


def _ordered(rows: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((rows, distances))
    return rows[order], distances[order]


def storage(index: faiss.IndexBinaryMultiHash) -> faiss.IndexBinaryFlat:
    """The flat index in which a multi-hash index keeps its codes."""
    return faiss.downcast_IndexBinary(index.storage)


def all_codes(index: faiss.IndexBinary) -> np.ndarray:
    """The codes of an index in the order of the rows, uint8 (n, bits / 8); a view where it has them so."""
    if isinstance(index, faiss.IndexBinaryIVF):
        codes = np.empty((index.ntotal, index.code_size), np.uint8)
        for rows, part in _lists(index):
            codes[rows] = part
        return codes
    flat = storage(index) if isinstance(index, faiss.IndexBinaryMultiHash) else index
    view = faiss.rev_swig_ptr(flat.xb.data(), index.ntotal * index.code_size)
    return view.reshape(index.ntotal, index.code_size)


def codes_at(index: faiss.IndexBinary, rows: np.ndarray) -> np.ndarray:
    """The codes of some rows, uint8 (k, bits / 8); of an IVF, all groups are looked through for them."""
    if not isinstance(index, faiss.IndexBinaryIVF):
        return all_codes(index)[rows]
    codes, order = np.empty((len(rows), index.code_size), np.uint8), np.argsort(rows)
    for found, part in _lists(index):
        here = np.flatnonzero(np.isin(found, rows))
        codes[order[np.searchsorted(rows, found[here], sorter=order)]] = part[here]
    return codes


def _lists(index: faiss.IndexBinaryIVF) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows int64 (l,) and codes uint8 (l, bits / 8) of each group, as views."""
    inverted, found = index.invlists, []
    for number in range(index.nlist):
        if size := inverted.list_size(number):
            codes = faiss.rev_swig_ptr(inverted.get_codes(number), size * index.code_size)
            found.append((faiss.rev_swig_ptr(inverted.get_ids(number), size), codes.reshape(size, -1)))
    return found


def without(index: faiss.IndexBinary, rows: np.ndarray) -> faiss.IndexBinary:
    """The index less some rows (ascending, not all); those above them move down. A flat one and an IVF are changed."""
    if isinstance(index, faiss.IndexBinaryMultiHash):  # faiss removes nothing from one
        kept = faiss.IndexBinaryMultiHash(index.d, index.nhash, index.b)
        kept.add(np.delete(all_codes(index), rows, axis=0))
        return kept
    index.remove_ids(np.ascontiguousarray(rows, np.int64))
    if isinstance(index, faiss.IndexBinaryIVF):
        for kept, _ in _lists(index):
            kept -= np.searchsorted(rows, kept)
    return index

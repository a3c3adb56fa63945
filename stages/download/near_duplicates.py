"""Images that look the same, by perceptual hash, on both sides of the split between queries and database."""

from functools import cache

import numpy as np

#: Width and height of the thumbnails that are hashed, and how many frequencies of each direction are kept.
THUMBNAIL = (32, 32)
FREQUENCIES = 16
HASH_BYTES = FREQUENCIES**2 // 8
#: Two images with hashes that differ in at most so many of the 256 bits are near-duplicates: the same picture in
#: another size, compression, brightness or with small retouches.
RADIUS = 48
#: Pairs that are listed, nearest first.
EXAMPLES = 100


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """The signs of the low frequencies of grey thumbnails.

    Source: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.2 (pHash),
    with 16 x 16 frequencies instead of 8 x 8, since 64 bits confuse a hundredth of all CIFAR-10 images, and 0 instead
    of their median, which hardly differs and takes as long as all the rest.

    Args:
        thumbnails: uint8 (n, 32, 32).

    Returns:
        uint8 (n, 32): 256 bits each.
    """
    basis = _cosines()
    frequencies = basis @ thumbnails.astype(np.float32) @ basis.T
    return np.packbits(frequencies.reshape(-1, FREQUENCIES**2) > 0, axis=1)


@cache
def _cosines() -> np.ndarray:
    """The lowest rows of the discrete cosine transform (DCT-II), which SciPy takes longer to import than to compute."""
    places = (np.arange(THUMBNAIL[0]) + 0.5) / THUMBNAIL[0]
    return np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * places).astype(np.float32)


def nearest(queries: np.ndarray, database: np.ndarray, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """For each query hash uint8 (q, 32) its nearest among `database` (n, 32): distances in bits and rows, int (q,)."""
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * HASH_BYTES)
    index.add(np.ascontiguousarray(database))
    distances, rows = index.search(np.ascontiguousarray(queries), 1)
    return distances[:, 0], rows[:, 0]


def near_duplicates(
    hashes: np.ndarray, query_id: np.ndarray, database_id: np.ndarray, threads: int
) -> list[tuple[int, int, int]]:
    """(query, database image, differing bits) of every query with a near-duplicate in the database, nearest first.

    Args:
        hashes: uint8 (n, 32) of all images; query_id, database_id: rows of it. threads: that search.
    """
    distances, rows = nearest(hashes[query_id], hashes[database_id], threads)
    order = np.argsort(distances, kind="stable")
    order = order[: np.count_nonzero(distances <= RADIUS)]
    return [(int(query_id[i]), int(database_id[rows[i]]), int(distances[i])) for i in order]

"""t-SNE of binary codes.

Source: van der Maaten and Hinton, "Visualizing Data using t-SNE", 2008; its sums approximated as in van der Maaten,
"Accelerating t-SNE using Tree-Based Algorithms", 2014; begun with the principal components, so that the arrangement at
large means something, too, as Kobak and Berens, "The art of using t-SNE for single-cell transcriptomics", 2019.
"""

import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from stages.codes import unpack
from stages.components.reduction import principal_axes

#: Neighbours that count for an image, about; with fewer images a third of them.
PERPLEXITY = 30

#: Steps, the first 250 of which exaggerate the attraction. Twice as many changed no figure of docs/map.md by .01.
STEPS = 500

#: Spread of the principal components that the layout begins with, and of what is drawn on top of it, without which
#: images of the same code would stay in the very same place.
SPREAD, JITTER = 1e-4, 1e-6


def sample(n: int, count: int, seed: int) -> np.ndarray:
    """Ascending rows: all of n or, of more than `count`, random ones."""
    if n <= count:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, count, replace=False))


def layout(packed: np.ndarray, seed: int) -> np.ndarray:
    """Places of codes in the plane, whose squared distances in the space of the codes are the Hamming ones.

    On one core: what scikit-learn adds up on several depends on how many there are.

    Args:
        packed: uint8 (n, K / 8), n at least 1.
        seed: the same gives the same bytes.

    Returns:
        float32 (n, 2), with the mean in the origin.
    """
    codes = unpack(packed).astype(np.float32) / 2
    with threadpool_limits(1):
        begin = principal_axes([codes], 2).project(codes).astype(np.float64)
        begin *= SPREAD / max(begin[:, 0].std(), 1e-12)
        begin += np.random.default_rng(seed).normal(0, JITTER, begin.shape)
        if len(codes) > 3:
            tsne = TSNE(
                perplexity=min(PERPLEXITY, (len(codes) - 1) / 3), max_iter=STEPS, init=begin.astype(np.float32),
                random_state=seed, n_jobs=1,
            )  # fmt: skip
            begin = tsne.fit_transform(codes)
    return (begin - begin.mean(axis=0)).astype(np.float32)

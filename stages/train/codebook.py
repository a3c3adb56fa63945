"""Codes that say how relevant images are to each other, found bit by bit.

Two images with codes of cosine h are taken to be relevant to each other with probability
sigmoid(sharpness * (h - :data:`THRESHOLD`)), where the sharpness goes with the kind of relevance. The codes are those
under which the relevances that were found are likeliest, by cross-entropy. Gradients of a relaxation end in poor optima
of this loss; flips of single bits do not.

A network has to learn the codes from the features, and what it cannot learn is lost. So once they are found, they are
drawn towards what the features of other images tell of them (:mod:`stages.train.bit_regression`).
"""

from typing import Protocol

import numpy as np

from stages.progress import track
from stages.train.bit_regression import BitPredictor, BitRegression
from stages.train.distributed import ALONE, Ranks, bounds

#: Of the cosine of two codes. Codes of images with nothing in common have about 0, and one of 32 bits is 1/16.
THRESHOLD = 0.2
#: Images whose codes are found from each other; all others are encoded by their relevance to these.
SAMPLE = 5000
#: Passes over the sample: hot ones, in which the noise on a flip's gain falls from the first value to the second, and
#: then at most so many without noise.
HEAT, HOT_SWEEPS, SWEEPS = (0.03, 0.001), 10, 10
#: Flips of an image in a hot pass, and at most in any other.
HOT_FLIPS, FLIPS = 3, 64
#: Times that the codes are drawn towards what is predicted of them, the passes over the sample each time, the weight of
#: the predictions' cross-entropy, and how certain of a bit they are at most.
ROUNDS, DRAWN_SWEEPS, DRAW, CERTAIN = 4, 2, 0.2, 0.98
#: Images that are flipped at a time: few in the sample, where the others should know of it; as memory has it elsewhere.
BLOCK, CHUNK = 64, 1000
#: Blocks of the sample at least: two alike that are flipped at once would only change places.
BLOCKS = 8


class Semantics(Protocol):
    """What is known of the images, as a row for each.

    Attributes:
        sharpness: how fast the probability of relevance rises with the cosine of two codes.
    """

    sharpness: float

    def rows(self, features: np.ndarray) -> np.ndarray:
        """Rows (n, k) of images with unit features (n, dim)."""

    def relevance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How likely images with the rows a (n, k) and b (m, k) are relevant to each other: float32 (n, m)."""


class Codebook:
    """Codes of a sample of the images, and by them of any image.

    Attributes:
        codes: float32 (s, bits) in {-1, +1}.
    """

    def __init__(self, semantics: Semantics, features: np.ndarray, bits: int, seed: int) -> None:
        """Find the codes of a sample of the images with unit features (n, dim)."""
        rng = np.random.default_rng(seed)
        self._semantics = semantics
        sample = features[np.sort(rng.permutation(len(features))[:SAMPLE])]
        self._sample = semantics.rows(sample)
        relevance = semantics.relevance(self._sample, self._sample)
        codes = fit_codes(relevance, bits, semantics.sharpness, rng)
        regression = BitRegression(sample, rng)
        self.codes, self._predictor = draw_to_predictions(codes, relevance, semantics.sharpness, regression, rng)

    def encode(self, features: np.ndarray, ranks: Ranks = ALONE) -> np.ndarray:
        """Codes float32 (n, bits) in {-1, +1} of images with unit features (n, dim), which ranks share out.

        The predictions of an image of the sample know its own code, so it nearly always keeps that.
        """
        chunks = range(0, len(features), CHUNK)
        mine = chunks[ranks.part(len(chunks))]  # whole ones: a product of other rows may round otherwise
        codes = np.empty((len(features), self.codes.shape[1]), np.float32)
        for start in track(mine, "target codes", len(mine)):
            part = slice(start, start + CHUNK)
            images = features[part]
            relevance = self._semantics.relevance(self._semantics.rows(images), self._sample)
            nearest = self.codes[relevance.argmax(axis=1)]
            predicted = self._predictor.predict(images)
            codes[part] = descend(nearest, relevance, self.codes, self._semantics.sharpness, predicted=predicted)
        ranks.complete(codes, [min(edge * CHUNK, len(codes)) for edge in bounds(len(chunks), ranks.world)])
        return codes


def mean_loss(codes: np.ndarray, relevance: np.ndarray, sharpness: float) -> float:
    """Cross-entropy of the relevances (n, n) under codes (n, bits), mean over the pairs of different images."""
    n, bits = codes.shape
    logit = sharpness * (codes @ codes.T / bits - THRESHOLD)
    loss = np.logaddexp(0, logit) - relevance * logit
    return float((loss.sum() - np.trace(loss)) / max(n * (n - 1), 1))


def fit_codes(relevance: np.ndarray, bits: int, sharpness: float, rng: np.random.Generator) -> np.ndarray:
    """Codes float32 (n, bits) of a low :func:`mean_loss` for the relevances (n, n), by simulated annealing."""
    codes = np.where(rng.random((len(relevance), bits)) < 0.5, -1, 1).astype(np.float32)
    for heat in track([*np.geomspace(*HEAT, HOT_SWEEPS), *[0.0] * SWEEPS], "codebook", HOT_SWEEPS + SWEEPS):
        if not _sweep(codes, relevance, sharpness, rng, heat=heat) and not heat:
            break
    return codes


def draw_to_predictions(
    codes: np.ndarray, relevance: np.ndarray, sharpness: float, regression: BitRegression, rng: np.random.Generator
) -> tuple[np.ndarray, BitPredictor]:
    """Codes (n, bits) near `codes` that the regression of all other images predicts better, and what predicts them.

    The loss of an image is the mean cross-entropy of its relevances plus :data:`DRAW` times that of its bits: the mean
    of -log((1 + bit * prediction) / 2), with predictions that are clipped to :data:`CERTAIN`.
    """
    codes = codes.copy()
    for _ in track(range(ROUNDS), "learnable codes", ROUNDS):
        predicted, _ = regression.fit(codes)
        for _ in range(DRAWN_SWEEPS):
            _sweep(codes, relevance, sharpness, rng, predicted=predicted)
    return codes, regression.fit(codes)[1]


def _sweep(
    codes: np.ndarray, relevance: np.ndarray, sharpness: float, rng: np.random.Generator, heat: float = 0.0,
    predicted: np.ndarray | None = None,
) -> bool:  # fmt: skip
    """One pass over the codes (n, bits), which it changes, block by block; whether it changed any."""
    n, before = len(codes), codes.copy()
    for rows in np.array_split(rng.permutation(n), max(-(-n // BLOCK), min(n, BLOCKS))):
        others = relevance[rows]
        others[np.arange(len(rows)), rows] = 0
        expected = None if predicted is None else predicted[rows]
        codes[rows] = descend(codes[rows], others, codes, sharpness, rows, heat, rng, expected)
    return not np.array_equal(codes, before)


def descend(
    codes: np.ndarray, relevance: np.ndarray, book: np.ndarray, sharpness: float, own: np.ndarray | None = None,
    heat: float = 0.0, rng: np.random.Generator | None = None, predicted: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """Flip of each code (n, bits) the bit that lowers its loss most, until none does.

    Args:
        relevance: (n, m) to the images of the codes `book` (m, bits).
        own: rows (n,) of `book` that are the images themselves, and do not count; their relevance has to be 0.
        heat: scale of the logistic noise that `rng` adds to what a flip changes.
        predicted: of the bits (n, bits), around -1 and 1, as :func:`draw_to_predictions` has them count.
    """
    codes, (m, bits) = codes.copy(), book.shape
    slope, straight, bend = _tables(bits, sharpness)
    pull = slope * (relevance @ book)
    if predicted is not None:  # a flip changes -log q by twice the artanh, for a bit of 1
        pull += m * DRAW * 2 / bits * np.arctanh(predicted.clip(-CERTAIN, CERTAIN))
    active = np.arange(len(codes))
    for _ in range(HOT_FLIPS if heat else FLIPS):
        current = codes[active]
        distance = np.rint((bits - current @ book.T) / 2).astype(np.intp)
        first, second = straight[distance], bend[distance]
        if own is not None:
            first[np.arange(len(active)), own[active]] = second[np.arange(len(active)), own[active]] = 0
        change = (second.sum(axis=1, keepdims=True) + current * (first @ book + pull[active])) / m
        if heat and rng:
            change += heat * rng.logistic(size=change.shape)
        change = change.round(6)  # for equal images the same, but where a product's rounding meets the edge of this one
        bit = change.argmin(axis=1)
        gains = change[np.arange(len(active)), bit] < 0
        active, bit = active[gains], bit[gains]
        if not len(active):
            break
        codes[active, bit] *= -1
    return codes


def _tables(bits: int, sharpness: float) -> tuple[float, np.ndarray, np.ndarray]:
    """What the flip of a bit changes in the loss of a pair at Hamming distance d, 0..bits.

    With a = +1 where the two codes agree in the bit and -1 where they differ, it is bend[d] + a * (straight[d] +
    slope * relevance): half the sum and half the difference of what a step away and a step nearer change.
    """
    distance = np.arange(-1, bits + 2)
    softplus = np.logaddexp(0, sharpness * (1 - 2 * distance / bits - THRESHOLD))
    straight = (softplus[2:] - softplus[:-2]) / 2
    bend = (softplus[2:] + softplus[:-2]) / 2 - softplus[1:-1]
    return 2 * sharpness / bits, straight.astype(np.float32), bend.astype(np.float32)

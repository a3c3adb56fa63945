"""Codes found bit by bit: every flip lowers the loss, and images that are relevant to each other get near codes."""

import itertools
import math

import numpy as np
import pytest

from stages.train import bit_regression, codebook
from stages.train.bit_regression import PENALTY, UNITS, BitRegression
from stages.train.codebook import (
    BLOCKS,
    CERTAIN,
    DRAW,
    HOT_FLIPS,
    THRESHOLD,
    Codebook,
    descend,
    draw_to_predictions,
    fit_codes,
    mean_loss,
)
from stages.train.semantics import SharedComponents, SharedConcepts

SHARPNESS = 10.0


def random_codes(n: int, bits: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 1.0], (n, bits)).astype(np.float32)


def random_relevance(n: int, m: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, m), np.float32)


def symmetric_relevance(n: int, seed: int = 0) -> np.ndarray:
    half = random_relevance(n, n, seed)
    return (half + half.T) / 2


def shared(n: int, concepts: int = 6, seed: int = 0) -> np.ndarray:
    """Relevances of images, each with some of the concepts: near 1 where they share one, else near 0."""
    shown = np.random.default_rng(seed).random((n, concepts)) < 0.3
    return np.where(shown.astype(int) @ shown.T > 0, 0.92, 0.02).astype(np.float32)


def pair_loss(a: np.ndarray, b: np.ndarray, relevance: float, sharpness: float = SHARPNESS) -> float:
    """Cross-entropy of a relevance under two codes, from the formula."""
    cosine = sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) / len(a)
    probability = 1 / (1 + math.exp(-sharpness * (cosine - THRESHOLD)))
    return -relevance * math.log(probability) - (1 - relevance) * math.log(1 - probability)


def slow_mean_loss(codes: np.ndarray, relevance: np.ndarray) -> float:
    pairs = list(itertools.permutations(range(len(codes)), 2))
    return sum(pair_loss(codes[i], codes[j], float(relevance[i, j])) for i, j in pairs) / len(pairs)


def code_loss(
    code: np.ndarray, relevance: np.ndarray, book: np.ndarray, sharpness: float = SHARPNESS,
    predicted: np.ndarray | None = None,
) -> float:  # fmt: skip
    """Mean loss of one code against a book, and of its bits against what is predicted of them."""
    loss = sum(pair_loss(code, *pair, sharpness) for pair in zip(book, relevance.tolist(), strict=True)) / len(book)
    if predicted is None:
        return loss
    likely = [(1 + bit * max(-CERTAIN, min(CERTAIN, p))) / 2 for bit, p in zip(code, predicted.tolist(), strict=True)]
    return loss - DRAW * sum(map(math.log, likely)) / len(code)


def flipped(codes: np.ndarray, *entry: int) -> np.ndarray:
    changed = codes.copy()
    changed[entry] *= -1
    return changed


def is_best(
    code: np.ndarray, relevance: np.ndarray, book: np.ndarray, sharpness: float = SHARPNESS,
    predicted: np.ndarray | None = None,
) -> bool:  # fmt: skip
    """Whether no single bit of the code lowers its loss."""
    least = code_loss(code, relevance, book, sharpness, predicted) - 2e-6
    flips = [flipped(code, bit) for bit in range(len(code))]
    return all(code_loss(flip, relevance, book, sharpness, predicted) > least for flip in flips)


# The loss


@pytest.mark.parametrize("bits", [8, 32, 64])
def test_the_loss_is_the_cross_entropy_of_the_relevances(bits: int) -> None:
    codes, relevance = random_codes(9, bits), symmetric_relevance(9)
    assert mean_loss(codes, relevance, SHARPNESS) == pytest.approx(slow_mean_loss(codes, relevance), rel=1e-5)


def test_an_image_alone_has_no_loss() -> None:
    assert mean_loss(random_codes(1, 8), np.ones((1, 1), np.float32), SHARPNESS) == 0


# Descent


@pytest.mark.parametrize("bits", [8, 16])
def test_a_descent_ends_where_no_bit_lowers_the_loss(bits: int) -> None:
    start, book, relevance = random_codes(5, bits), random_codes(11, bits, seed=1), random_relevance(5, 11)
    before = start.copy()
    found = descend(start, relevance, book, SHARPNESS)
    np.testing.assert_array_equal(start, before)
    assert found.dtype == np.float32 and set(np.unique(found)) == {-1, 1}
    losses = [[code_loss(*row, book) for row in zip(codes, relevance, strict=True)] for codes in (start, found)]
    assert np.mean(losses[1]) < np.mean(losses[0]) - 0.1 and np.all(np.subtract(*losses) >= 0)
    assert all(is_best(*row, book) for row in zip(found, relevance, strict=True))
    np.testing.assert_array_equal(descend(found, relevance, book, SHARPNESS), found)


def test_a_descent_heeds_what_is_predicted_of_the_bits() -> None:
    start, book, relevance = random_codes(20, 8), random_codes(11, 8, seed=1), random_relevance(20, 11)
    predicted = np.random.default_rng(2).uniform(-1.1, 1.1, (20, 8)).astype(np.float32)
    found = descend(start, relevance, book, SHARPNESS, predicted=predicted)
    rows = zip(found, relevance, predicted, strict=True)
    assert all(is_best(code, row, book, predicted=expected) for code, row, expected in rows)
    assert not np.array_equal(found, descend(start, relevance, book, SHARPNESS))


def test_a_flip_is_of_the_bit_that_lowers_the_loss_most(monkeypatch: pytest.MonkeyPatch) -> None:
    start, book, relevance = random_codes(6, 8), random_codes(11, 8, seed=1), random_relevance(6, 11)
    monkeypatch.setattr(codebook, "FLIPS", 1)
    found = descend(start, relevance, book, SHARPNESS)
    for code, row, after in zip(start, relevance, found, strict=True):
        losses = [code_loss(flipped(code, bit), row, book) for bit in range(8)]
        best = int(np.argmin(losses))
        np.testing.assert_array_equal(after, flipped(code, best) if losses[best] < code_loss(code, row, book) else code)


def test_codes_of_the_book_do_not_count_themselves() -> None:
    """They end where they would if they were not in the book."""
    book, relevance, own = random_codes(9, 8), symmetric_relevance(9), np.array([7, 0, 3])
    others = relevance[own]
    others[np.arange(3), own] = 0
    found = descend(book[own], others, book, SHARPNESS, own)
    assert not np.array_equal(found, book[own])
    for code, row in zip(found, own, strict=True):
        rest = np.delete(np.arange(9), row)
        assert is_best(code, relevance[row, rest], book[rest])
        np.testing.assert_array_equal(code, descend(book[[row]], relevance[[row]][:, rest], book[rest], SHARPNESS)[0])


def test_noise_is_drawn_and_hot_descents_are_short() -> None:
    start, book, relevance = random_codes(40, 16), random_codes(30, 16, seed=1), random_relevance(40, 30)
    hot = [descend(start, relevance, book, SHARPNESS, heat=0.5, rng=np.random.default_rng(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(hot[0], hot[1])
    assert not np.array_equal(hot[0], hot[2])
    cold = descend(start, relevance, book, SHARPNESS)
    assert (hot[0] != start).sum(axis=1).max() == HOT_FLIPS < (cold != start).sum(axis=1).max()
    cool = descend(start, relevance, book, SHARPNESS, heat=1e-9, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(descend(cool, relevance, book, SHARPNESS), cold)


# Codes of each other


def test_no_bit_of_a_few_images_lowers_their_loss() -> None:
    relevance = symmetric_relevance(BLOCKS - 1)
    codes = fit_codes(relevance, 8, SHARPNESS, np.random.default_rng(0))
    assert codes.shape == (BLOCKS - 1, 8) and codes.dtype == np.float32
    least = slow_mean_loss(codes, relevance)
    assert least < slow_mean_loss(random_codes(BLOCKS - 1, 8), relevance) - 0.1
    assert all(slow_mean_loss(flipped(codes, *entry), relevance) > least - 1e-6 for entry in np.ndindex(*codes.shape))


def test_the_best_codes_that_there_are() -> None:
    """Of four images of four bits: all 16^3 codes beside a first one are tried."""
    relevance, bits = symmetric_relevance(4, seed=5), np.array(list(itertools.product([-1, 1], repeat=4)))
    loss = np.array([[[pair_loss(a, b, r) for b in bits] for a in bits] for r in relevance[np.triu_indices(4, 1)]])
    b, c, d = np.ix_(*[np.arange(16)] * 3)
    best = (loss[0, 0][b] + loss[1, 0][c] + loss[2, 0][d] + loss[3, b, c] + loss[4, b, d] + loss[5, c, d]).min() / 6
    found = [fit_codes(relevance, 4, SHARPNESS, np.random.default_rng(seed)) for seed in range(5)]
    found = [mean_loss(codes, relevance, SHARPNESS) for codes in found]
    assert min(found) == pytest.approx(best, rel=1e-5)


def test_noise_that_falls_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    relevance, start = shared(130), random_codes(130, 16)

    def losses() -> list[float]:
        found = [fit_codes(relevance, 16, SHARPNESS, np.random.default_rng(seed)) for seed in range(6)]
        return [mean_loss(codes, relevance, SHARPNESS) for codes in found]

    hot = losses()
    monkeypatch.setattr(codebook, "HOT_SWEEPS", 0)
    assert np.mean(hot) < np.mean(losses()) + 0.002
    assert max(hot) < 0.5 * mean_loss(start, relevance, SHARPNESS)


@pytest.mark.parametrize("each", [1, 10, 100])
def test_each_of_two_groups_gets_one_code(each: int) -> None:
    """Also where all images would be in one block: two that flip at once would change places for ever."""
    group = np.arange(2 * each) % 2
    codes = fit_codes((group[:, None] == group).astype(np.float32), 8, SHARPNESS, np.random.default_rng(0))
    np.testing.assert_array_equal(codes[2:], codes[group[2:]])
    assert codes[0] @ codes[1] / 8 <= -0.5


# What a network can learn of them


@pytest.mark.parametrize(("n", "units"), [(2, 12), (60, 12), (2, UNITS), (5, UNITS)])
def test_an_image_is_predicted_by_the_regression_of_all_others(
    monkeypatch: pytest.MonkeyPatch, n: int, units: int
) -> None:
    """Fitted anew without each of them: ridge regression of the standardised units, and a constant without penalty."""
    monkeypatch.setattr(bit_regression, "UNITS", units)
    features, codes = unit(n, 5), random_codes(n, 3)
    regression = BitRegression(features, np.random.default_rng(1))
    left_out, predictor = regression.fit(codes)

    active = np.maximum(features @ regression._directions + regression._thresholds, 0).astype(np.float64)
    scale = active.std(axis=0)
    design = np.hstack([(active - active.mean(axis=0)) / np.where(scale > 1e-4, scale, 1), np.ones((n, 1))])
    penalty = np.diag([PENALTY * n] * units + [0])
    for image in range(n):
        rest = np.delete(np.arange(n), image)
        weight = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ codes[rest])
        np.testing.assert_allclose(left_out[image], design[image] @ weight, atol=1e-4)
    weight = np.linalg.solve(design.T @ design + penalty, design.T @ codes)
    np.testing.assert_allclose(predictor.predict(features), design @ weight, atol=1e-4)


def test_codes_that_are_drawn_to_predictions_are_learnt_better_and_hardly_worse() -> None:
    features, semantics = concepts(n=400)
    rows = semantics.rows(features)
    relevance, rng = semantics.relevance(rows, rows), np.random.default_rng(0)
    codes = fit_codes(relevance, 16, SHARPNESS, rng)
    regression = BitRegression(features, rng)
    drawn, predictor = draw_to_predictions(codes, relevance, SHARPNESS, regression, rng)

    def missed(codes: np.ndarray) -> float:
        return float((np.sign(regression.fit(codes)[0]) != codes).mean())

    assert missed(drawn) < 0.7 * missed(codes)
    np.testing.assert_array_equal(predictor.predict(features), regression.fit(drawn)[1].predict(features))
    assert mean_loss(drawn, relevance, SHARPNESS) < 1.02 * mean_loss(codes, relevance, SHARPNESS)


# The codebook


class SameClass:
    """Rows are the features; relevant are images with almost the same."""

    sharpness = SHARPNESS

    def rows(self, features: np.ndarray) -> np.ndarray:
        return features

    def relevance(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T > 0.9).astype(np.float32)


def classes(n: int = 120, count: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows, sorted by their class, and the classes."""
    label = np.sort(np.arange(n) % count)
    return np.eye(count, dtype=np.float32)[label], label


def concepts(n: int = 120, count: int = 5, dim: int = 16, seed: int = 0) -> tuple[np.ndarray, SharedConcepts]:
    """Features of images with one or two concepts."""
    rng = np.random.default_rng(seed)
    shown = np.zeros((n, count), bool)
    for row in range(n):
        shown[row, rng.permutation(count)[: 1 + row % 2]] = True
    features = shown @ rng.standard_normal((count, dim)) + 0.2 * rng.standard_normal((n, dim))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    return features, SharedConcepts(features, shown + 1e-3, presence=0.2, seed=seed)


@pytest.mark.parametrize("sharpness", [SHARPNESS, 3.0])
def test_images_are_encoded_by_their_relevance_to_the_sample(sharpness: float) -> None:
    features, semantics = concepts()
    semantics.sharpness = sharpness
    new = concepts(seed=1)[0][:10]
    book = Codebook(semantics, features, 8, seed=0)
    assert book.codes.shape == (120, 8)
    found = book.encode(new)
    assert found.shape == (10, 8) and found.dtype == np.float32 and set(np.unique(found)) == {-1, 1}
    relevance = semantics.relevance(semantics.rows(new), semantics.rows(features))
    predicted = book._predictor.predict(new)
    rows = zip(found, relevance, predicted, strict=True)
    assert all(is_best(code, row, book.codes, sharpness, expected) for code, row, expected in rows)
    relevance = semantics.relevance(semantics.rows(features), semantics.rows(features))
    codes = (book.codes, book.encode(features), random_codes(120, 8))
    searched, encoded, drawn = (mean_loss(each, relevance, sharpness) for each in codes)
    assert encoded < 1.05 * searched < 0.7 * drawn


def test_images_of_a_class_get_one_code() -> None:
    features, label = classes()
    codes = Codebook(SameClass(), features, 16, seed=0).encode(features)
    np.testing.assert_array_equal((codes @ codes.T == 16), label[:, None] == label)
    assert (codes @ codes.T)[label[:, None] != label].max() <= 0


def test_a_sample_of_all_classes_stands_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are sorted by class, and some classes would not be among the first."""
    features, label = classes(400)
    monkeypatch.setattr(codebook, "SAMPLE", 100)
    book = Codebook(SameClass(), features, 16, seed=0)
    assert book.codes.shape == (100, 16)
    codes = book.encode(features)
    np.testing.assert_array_equal((codes @ codes.T == 16), label[:, None] == label)


def test_the_seed_decides_and_chunks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    features, semantics = concepts()

    def encode(seed: int) -> np.ndarray:
        return Codebook(semantics, features, 16, seed).encode(features)

    first = encode(0)
    np.testing.assert_array_equal(encode(0), first)
    assert not np.array_equal(encode(1), first)
    monkeypatch.setattr(codebook, "CHUNK", 7)
    np.testing.assert_array_equal(encode(0), first)


def unit(*shape: int) -> np.ndarray:
    rows = np.random.default_rng(3).standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("with_concepts", [False, True])
@pytest.mark.parametrize(
    ("features", "distribution"),
    [
        (unit(30, 4), np.ones((30, 1))),  # one concept
        (np.tile(unit(1, 4), (30, 1)), np.tile([[0.7, 0.2, 0.1]], (30, 1))),  # equal images
        (np.eye(5, dtype=np.float32), np.eye(5) + 1e-6),  # nothing in common
        (unit(2, 4), np.array([[0.9, 0.1], [0.1, 0.9]])),
        (np.tile(unit(1, 4), (2, 1)), np.ones((2, 2))),
    ],
    ids=["one concept", "equal", "nothing in common", "two", "two equal"],
)
def test_degenerate_images_have_codes(features: np.ndarray, distribution: np.ndarray, with_concepts: bool) -> None:
    semantics = (
        SharedConcepts(features, distribution, 0.2, seed=0) if with_concepts else SharedComponents(features, 1000, 0)
    )
    book = Codebook(semantics, features, 8, seed=0)
    codes = book.encode(features)
    assert codes.shape == book.codes.shape == (len(features), 8)
    assert set(np.unique(codes)) <= {-1, 1} and np.isfinite(mean_loss(codes, np.zeros([len(features)] * 2), 10.0))
    if len(np.unique(features, axis=0)) == 1:
        assert len(np.unique(codes, axis=0)) == 1

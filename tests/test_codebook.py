"""Codes found bit by bit: every step lowers the loss, and images that mean the same get the same code."""

import itertools

import numpy as np
import pytest

from stages.train import codebook
from stages.train.codebook import SHARPNESS, THRESHOLD, Codebook, descend, descend_rows, mean_loss, relevance


def drawn(k: int, bits: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, symmetric relevances and masses."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1.0, 1.0], (k, bits)).astype(np.float32)
    relevances = rng.random((k, k)).astype(np.float32)
    mass = rng.random(k).astype(np.float32)
    return codes, (relevances + relevances.T) / 2, mass / mass.sum()


def distributions(n: int = 120, concepts: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows with one or two of the concepts, and which ones: bool (n, concepts)."""
    rng = np.random.default_rng(seed)
    shown = np.zeros((n, concepts), bool)
    for row in range(n):
        shown[row, rng.permutation(concepts)[: 1 + row % 2]] = True
    weights = np.where(shown, 1 + rng.random((n, concepts)), 1e-6 * rng.random((n, concepts)))
    return (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32), shown


def slow_loss(codes: np.ndarray, relevances: np.ndarray, mass: np.ndarray) -> float:
    total = weights = 0.0
    for i, j in itertools.permutations(range(len(codes)), 2):
        cosine = float(codes[i] @ codes[j]) / codes.shape[1]
        probability = 1 / (1 + np.exp(-SHARPNESS * (cosine - THRESHOLD)))
        r, weight = float(relevances[i, j]), float(mass[i] * mass[j])
        total -= weight * (r * np.log(probability) + (1 - r) * np.log(1 - probability))
        weights += weight
    return total / weights


@pytest.mark.parametrize("bits", [8, 32, 64])
def test_the_loss_is_the_cross_entropy_of_the_relevances(bits: int) -> None:
    codes, relevances, mass = drawn(9, bits)
    assert mean_loss(codes, relevances, mass) == pytest.approx(slow_loss(codes, relevances, mass), rel=1e-5)


def test_no_single_bit_of_the_result_lowers_the_loss() -> None:
    codes, relevances, mass = drawn(7, 8)
    found = descend(codes, relevances, mass, np.random.default_rng(0))
    least = slow_loss(found, relevances, mass)
    assert least < slow_loss(codes, relevances, mass) - 0.1
    for row, bit in np.ndindex(*found.shape):
        changed = found.copy()
        changed[row, bit] *= -1
        assert slow_loss(changed, relevances, mass) > least - 1e-6


def test_components_without_images_keep_their_code() -> None:
    codes, relevances, mass = drawn(7, 8)
    mass[3] = 0
    found = descend(codes, relevances, mass, np.random.default_rng(0))
    np.testing.assert_array_equal(found[3], codes[3])
    others = np.delete(np.arange(7), 3)
    assert not np.array_equal(found[others], codes[others])


def test_images_are_encoded_by_the_same_loss() -> None:
    book, _, mass = drawn(11, 8)
    start, relevances, _ = drawn(5, 8, seed=1)[0], np.random.default_rng(2).random((5, 11)).astype(np.float32), None

    def loss(code: np.ndarray, row: int) -> float:
        logit = SHARPNESS * (book @ code / 8 - THRESHOLD)
        return float((mass * (np.logaddexp(0, logit) - relevances[row] * logit)).sum())

    found = descend_rows(start, relevances, book, mass)
    assert set(np.unique(found)) == {-1, 1}
    for row in range(5):
        assert loss(found[row], row) <= loss(start[row], row)
        # What one bit could still gain is little: two sweeps, not all.
        for bit in range(8):
            changed = found[row].copy()
            changed[bit] *= -1
            assert loss(changed, row) > loss(found[row], row) - 0.3
    assert sum(loss(found[row], row) for row in range(5)) < sum(loss(start[row], row) for row in range(5)) - 0.5


def test_relevance_is_a_power_of_the_cosine() -> None:
    a = np.array([[1, 0], [0.6, 0.8]])
    np.testing.assert_allclose(relevance(a, a, 0.25), [[1, 0.6**0.25], [0.6**0.25, 1]])
    assert relevance(a, -a, 0.5).max() == 0  # opposite features


@pytest.mark.parametrize("components", [20, 1000])
def test_images_that_share_a_concept_get_nearer_codes(components: int) -> None:
    factor, shown = distributions()
    codes = Codebook(factor, 16, components, temper=0.25, exponent=0.25, seed=0).encode(factor)
    assert codes.shape == (120, 16) and set(np.unique(codes)) == {-1, 1}
    cosine, share = codes @ codes.T / 16, shown.astype(int) @ shown.T.astype(int) > 0
    np.fill_diagonal(share, False)
    apart = ~share & ~np.eye(120, dtype=bool)
    assert cosine[share].mean() > cosine[apart].mean() + 0.4
    same = (shown[:, None] == shown).all(axis=2)
    assert cosine[same].mean() > 0.85


def test_the_seed_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, _ = distributions()

    def encode(seed: int) -> np.ndarray:
        return Codebook(factor, 16, 30, 0.25, 0.25, seed).encode(factor)

    first = encode(0)
    np.testing.assert_array_equal(encode(0), first)
    assert not np.array_equal(encode(1), first)
    monkeypatch.setattr(codebook, "CHUNK", 7)
    np.testing.assert_array_equal(encode(0), first)


def test_a_sample_stands_for_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, shown = distributions(400)
    monkeypatch.setattr(codebook, "SAMPLE", 100)
    codes = Codebook(factor, 16, 50, 0.25, 0.25, 0).encode(factor)
    cosine, share = codes @ codes.T / 16, shown.astype(int) @ shown.T.astype(int) > 0
    assert cosine[share].mean() > cosine[~share].mean() + 0.4


@pytest.mark.parametrize("factor", [np.ones((2, 1)), np.ones((30, 4)) / 2, np.eye(5)])
def test_one_concept_equal_images_and_nothing_in_common(factor: np.ndarray) -> None:
    codes = Codebook(factor.astype(np.float32), 8, 1000, 0.25, 0.25, 0).encode(factor.astype(np.float32))
    assert codes.shape == (len(factor), 8) and set(np.unique(codes)) <= {-1, 1}
    if len(np.unique(factor, axis=0)) == 1:
        assert len(np.unique(codes, axis=0)) == 1


def test_features_may_be_negative() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((40, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert np.isfinite(Codebook(rows, 8, 10, 0.25, 0.25, 0).encode(rows)).all()

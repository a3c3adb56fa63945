"""Relevances: shared concepts learnt from the features, and walks over components against ones taken step by step."""

import itertools
import math

import numpy as np
import pytest
from sklearn.datasets import make_moons
from sklearn.kernel_approximation import RBFSampler

from stages.device import derived_seed
from stages.train import semantics
from stages.train.semantics import (
    CLUSTERINGS,
    DIMENSIONS,
    IMAGES_A_COMPONENT,
    INVERSE_PENALTY,
    MEAN_RELEVANCE,
    MEASURED,
    STEPS,
    TEMPERATURE,
    SharedComponents,
    SharedConcepts,
    Walk,
)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def around(label: np.ndarray, spread: float = 0.4, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Unit features around a direction a label."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((label.max() + 1, dim))
    return unit(directions[label] + spread * rng.standard_normal((len(label), dim)))


# Concepts


def mined(n: int = 300, count: int = 4, wrong: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, distributions over the concepts of which a part is of another image's, and which one is shown."""
    label = np.arange(n) % count
    given, rng = label.copy(), np.random.default_rng(1)
    changed = rng.permutation(n)[: round(wrong * n)]
    given[changed] = (given[changed] + 1 + rng.integers(0, count - 1, len(changed))) % count
    return around(label), np.where(np.eye(count)[given] > 0, 0.97, 0.01).astype(np.float32), np.eye(count)[label] > 0


def test_images_are_relevant_to_each_other_as_they_share_a_concept() -> None:
    a, b = np.random.default_rng(0).random((5, 3), np.float32), np.random.default_rng(1).random((4, 3), np.float32)
    found = SharedConcepts(*mined()[:2], presence=0.2, seed=0).relevance(a, b)
    slow = [[1 - math.prod(1 - float(x) * float(y) for x, y in zip(i, j, strict=True)) for j in b] for i in a]
    np.testing.assert_allclose(found, slow, atol=1e-6)
    assert found.shape == (5, 4) and found.dtype == np.float32


def test_rows_are_probabilities_of_any_images() -> None:
    features, distribution, _ = mined()
    concepts = SharedConcepts(features, distribution, presence=0.2, seed=0)
    new = around(np.arange(40) % 4, seed=5)
    rows = concepts.rows(new)
    assert rows.shape == (40, 4) and rows.dtype == np.float32 and 0 < rows.min() < 0.2 < 0.8 < rows.max() < 1
    np.testing.assert_array_equal(rows.argmax(axis=1), np.arange(40) % 4)
    np.testing.assert_allclose(concepts.rows(new[7:9]), rows[7:9], rtol=1e-4)


def test_a_concept_is_a_logistic_regression_of_the_features() -> None:
    """The gradients of its penalised likelihood vanish, those of the bias without a penalty."""
    features, distribution, _ = mined(wrong=0.1)
    shown = distribution > 0.05
    concepts = SharedConcepts(features, distribution, presence=0.2, seed=0)
    missing = shown - concepts.rows(features).astype(np.float64)
    np.testing.assert_allclose(missing.mean(axis=0), 0, atol=1e-4)
    slope = missing.T @ features * math.sqrt(12) * INVERSE_PENALTY
    origin_and_axes = np.vstack([np.zeros((1, 12)), np.eye(12) / math.sqrt(12)]).astype(np.float32)
    chance = concepts.rows(origin_and_axes).astype(np.float64)
    logits = np.log(chance / (1 - chance))
    np.testing.assert_allclose(logits[1:] - logits[0], slope.T, atol=2e-3)


def test_images_that_a_concept_was_mined_for_by_mistake_are_set_right() -> None:
    features, distribution, shown = mined(wrong=0.15)
    assert ((distribution > 0.05) != shown).any(axis=1).mean() == pytest.approx(0.15)
    rows = SharedConcepts(features, distribution, presence=0.2, seed=0).rows(features)
    assert ((rows > 0.5) != shown).any(axis=1).mean() < 0.02


def test_presence_is_a_multiple_of_the_mean_share() -> None:
    """The mean probability is how often a concept is shown."""
    shares = np.array([0.62, 0.25, 0.1, 0.03])[(np.arange(120)[:, None] + np.arange(4)) % 4]
    shares[:30] = [0.93, 0.03, 0.02, 0.02]
    features = around(np.arange(120) % 4)
    for presence in (0.1, 0.2, 0.5, 2.0):
        rows = SharedConcepts(features, shares, presence, seed=0).rows(features)
        np.testing.assert_allclose(rows.mean(axis=0), (shares > presence / 4).mean(axis=0), atol=5e-3)
        scaled = SharedConcepts(features, shares * np.linspace(0.5, 20, 120)[:, None], presence, seed=0).rows(features)
        np.testing.assert_allclose(scaled, rows, atol=1e-4)


@pytest.mark.filterwarnings("error")
def test_concepts_that_all_or_no_images_show_are_as_likely_for_each() -> None:
    features = around(np.arange(40) % 4)
    for presence, odds in ((0.2, 40.5 / 0.5), (2.5, 0.5 / 40.5)):
        rows = SharedConcepts(features, np.full((40, 2), 0.5), presence, seed=0).rows(features)
        np.testing.assert_allclose(rows, odds / (1 + odds), rtol=1e-4)
    one = SharedConcepts(features[:1], np.ones((1, 1)), 0.2, seed=0)
    np.testing.assert_allclose(one.relevance(one.rows(features), one.rows(features)), 0.75**2, rtol=1e-5)


def test_concepts_are_learnt_from_a_sample_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The images are sorted by concept, and two concepts would not be among the first."""
    features, distribution, shown = mined(400)
    order = np.argsort(shown.argmax(axis=1), kind="stable")
    features, distribution, shown = features[order], distribution[order], shown[order]

    def rows(seed: int) -> np.ndarray:
        return SharedConcepts(features, distribution, 0.2, seed).rows(features)

    np.testing.assert_array_equal(rows(0), rows(1))
    monkeypatch.setattr(semantics, "FITTED", 200)
    np.testing.assert_array_equal(rows(0), rows(0))
    assert np.abs(rows(0) - rows(1)).max() > 0.01
    assert ((rows(0) > 0.5) == shown).mean() > 0.99


# Components


def slow_steps(components: Walk, features: np.ndarray, nearest: int) -> np.ndarray:
    """Chances of a step from the images to the components, by loops."""
    chances = np.zeros((len(features), len(components._components)))
    for i, row in enumerate(features.astype(np.float64)):
        centred = (row - components._mean) / np.linalg.norm(row - components._mean)
        cosines = [float(centred @ mean) for mean in components._components]
        for k in np.argsort(cosines)[::-1][:nearest]:
            chances[i, k] = math.exp(cosines[k] / TEMPERATURE)
        chances[i] /= chances[i].sum()
    return chances


@pytest.mark.parametrize(("nearest", "new"), [(20, False), (20, True), (3, False), (3, True)])
def test_rows_are_where_a_walk_leads(monkeypatch: pytest.MonkeyPatch, nearest: int, new: bool) -> None:
    """Step by step over components and images, for those that were clustered and for others."""
    monkeypatch.setattr(semantics, "NEAREST", nearest)
    features = around(np.arange(90) % 5, spread=0.8)
    components = Walk(features, 8, seed=0)
    steps = slow_steps(components, features, nearest)
    assert steps.shape == (90, 8)
    asked = around(np.arange(20) % 5, spread=0.8, seed=7) if new else features
    weight = steps.sum(axis=0)
    expected = []
    for chance in slow_steps(components, asked, nearest):
        for _ in range(STEPS - 1):
            images = [sum(chance[k] * steps[i, k] / weight[k] for k in range(8)) for i in range(90)]
            chance = np.array([sum(images[i] * steps[i, k] for i in range(90)) for k in range(8)])
        assert chance.sum() == pytest.approx(1)
        expected.append((chance - weight / 90) / np.sqrt(weight))  # without where every long walk ends
    found = components.rows(asked)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found @ found.T, unit(np.array(expected)) @ unit(np.array(expected)).T, atol=2e-3)


def test_several_clusterings_stand_side_by_side() -> None:
    """So the cosine of two rows is the mean of those of the walks, each over components of its own."""
    features = around(np.arange(90) % 5, spread=0.8)
    components = SharedComponents(features, 8, seed=0)
    rows, parts = components.rows(features), [walk.rows(features) for walk in components.walks]
    assert len(parts) == CLUSTERINGS and rows.dtype == np.float32
    np.testing.assert_allclose(rows @ rows.T, np.mean([part @ part.T for part in parts], axis=0), atol=1e-5)
    roots = unit(np.sign(features) * np.sqrt(np.abs(features)))
    for number, part in enumerate(parts):
        of = roots if number % 2 else features
        np.testing.assert_allclose(Walk(of, 8, derived_seed(0, number)).rows(of), part, atol=1e-5)
    means = [walk._components for walk in components.walks]
    assert min(np.abs(one - other).max() for one, other in itertools.pairwise(means)) > 0.01


def test_relevance_is_a_power_of_the_cosine() -> None:
    features = around(np.arange(90) % 5)
    components = SharedComponents(features, 8, seed=0)
    a = unit(np.array([[1.0, 0.0], [0.6, 0.8]]))
    found, power = components.relevance(a, a), components._exponent
    np.testing.assert_allclose(found, [[1, 0.6**power], [0.6**power, 1]], rtol=1e-5)
    assert found.dtype == np.float32 and components.relevance(a, -a).max() == 0


def moons() -> tuple[np.ndarray, np.ndarray]:
    """Features whose cosine is a Gaussian kernel of two interleaved arcs, and which arc."""
    points, label = make_moons(300, noise=0.05, random_state=0)
    return unit(RBFSampler(gamma=1, n_components=64, random_state=0).fit_transform(points)), label


def test_arcs_within_each_other_are_told_apart_as_no_cosine_tells() -> None:
    features, label = moons()
    components, same = SharedComponents(features, 1000, seed=0), label[:, None] == label
    rows = components.rows(features)
    walked = components.relevance(rows, rows)
    centred = components.walks[0]._centred(features)
    cosine = np.clip(centred @ centred.T, 0, 1)
    cosine **= semantics._exponent(cosine)  # as relevant on the mean
    assert walked.mean() == pytest.approx(cosine.mean(), rel=1e-3)
    assert cosine[same].sum() / cosine.sum() < 0.9 < 0.99 < walked[same].sum() / walked.sum()


@pytest.mark.parametrize("make", [lambda: moons()[0], lambda: around(np.zeros(200, int), spread=2.0)])
def test_the_mean_relevance_is_as_set(make: object) -> None:
    features = make()
    components = SharedComponents(features, 1000, seed=0)
    rows = components.rows(features)
    assert components.relevance(rows, rows).mean() == pytest.approx(MEAN_RELEVANCE, rel=1e-3)


def test_the_mean_relevance_is_that_of_all_images() -> None:
    """Which are sorted by class: the first ones are nearer to each other."""
    features = around(np.sort(np.arange(3 * MEASURED) % 3), spread=2.0)
    components = SharedComponents(features, 30, seed=0)
    rows = components.rows(features)
    assert components.relevance(rows, rows).mean() == pytest.approx(MEAN_RELEVANCE, rel=0.05)


@pytest.mark.parametrize(("n", "components", "count"), [(95, 1000, 9), (95, 4, 4), (700, 1000, DIMENSIONS)])
def test_a_component_has_ten_images_and_a_row_64_entries(n: int, components: int, count: int) -> None:
    assert IMAGES_A_COMPONENT == 10
    features = around(np.arange(n) % 5, spread=1.0)
    assert Walk(features, components, seed=0).rows(features).shape == (n, count)


def test_the_dimensions_kept_are_those_that_tell_clusters_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantics, "DIMENSIONS", 2)
    label = np.arange(120) % 3
    features = around(label, spread=0.3)
    components = Walk(features, 12, seed=0)
    rows = components.rows(features)
    assert rows.shape == (120, 2)
    np.testing.assert_array_equal(rows @ rows.T > 0.9, label[:, None] == label)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [2, 3, 19, 20, 57])
@pytest.mark.parametrize("equal", [False, True])
def test_few_or_equal_images(n: int, equal: bool) -> None:
    features = around(np.zeros(n, int))
    if equal:
        features[:] = features[0]
    components = SharedComponents(features, 1000, seed=0)
    rows = components.rows(features)
    relevance = components.relevance(rows, rows)
    assert np.isfinite(rows).all() and np.isfinite(relevance).all() and 0 <= relevance.min() <= relevance.max() < 1.001
    if equal:
        assert len(np.unique(relevance)) == 1
    # Neither do new images fall out of it.
    assert np.isfinite(components.rows(around(np.zeros(5, int), seed=8))).all()


@pytest.mark.filterwarnings("error")
def test_clusters_without_a_way_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantics, "NEAREST", 2)
    label = np.arange(80) % 2
    features = unit(np.eye(6)[3 * label] + 0.01 * np.random.default_rng(0).standard_normal((80, 6)))
    components = SharedComponents(features, 4, seed=0)
    rows = components.rows(features)
    relevance, same = components.relevance(rows, rows), label[:, None] == label
    assert relevance[~same].max() < 0.05 < 0.5 < relevance[same].min()


def test_components_are_of_a_sample_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    features, label = moons()

    def relevance(seed: int) -> np.ndarray:
        components = SharedComponents(features, 1000, seed)
        rows = components.rows(features)
        return components.relevance(rows, rows)

    np.testing.assert_array_equal(relevance(0), relevance(0))
    assert np.abs(relevance(0) - relevance(1)).max() > 0.01
    monkeypatch.setattr(semantics, "FITTED", 200)
    part = relevance(0)
    np.testing.assert_array_equal(relevance(0), part)
    assert part[label[:, None] == label].sum() / part.sum() > 0.97

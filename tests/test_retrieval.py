"""Retrieval metrics against golden values, against loops written from the definitions, and against enumeration."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from stages.codes import pack, unpack
from stages.evaluate import retrieval
from stages.evaluate.average_precision import average_precision, expected_average_precision
from stages.evaluate.code_statistics import code_statistics
from stages.evaluate.ranking import counting_sort, hamming_distances, share_label
from stages.evaluate.retrieval import evaluate_codes, evaluate_vectors, metrics_dict

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "retrieval.npz"
CUTOFFS = (1, 3, 10, 50, 1000)


def random_task(rng, queries=7, database=60, bits=16, classes=5, density=0.25):
    """Packed codes with many ties and multi-hot labels, some rows of which are empty."""
    signs = rng.choice([-1, 1], size=(queries + database, bits), p=[0.2, 0.8])
    codes, labels = pack(signs), rng.random((queries + database, classes)) < density
    return codes[:queries], codes[queries:], labels[:queries], labels[queries:]


def average_precision_of_list(hits, k):
    """AP@k as the definition says: the mean, over the relevant items found in the first k, of the precision there."""
    precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank in range(min(k, len(hits))) if hits[rank]]
    return sum(precisions) / len(precisions) if precisions else 0.0


def average_precision_of_lists(hits, cutoffs):
    """Of whether the item at each rank is relevant, bool (n_queries, n)."""
    return average_precision([np.flatnonzero(row) + 1 for row in hits], cutoffs)


def expectation_over_orders(distances, relevant, k):
    """AP@k averaged over every order of the items in which distances do not fall."""
    ties = [np.flatnonzero(distances == d) for d in np.unique(distances)]
    values = [
        average_precision_of_list([relevant[i] for tie in order for i in tie], k)
        for order in product(*(permutations(tie) for tie in ties))
    ]
    return sum(values) / len(values)


@pytest.mark.skipif(not GOLDEN.exists(), reason="golden vectors are not here")
def test_golden_values():
    golden = np.load(GOLDEN)
    metrics = metrics_dict(
        evaluate_codes(
            pack(golden["query_codes"]), pack(golden["database_codes"]), golden["query_labels"],
            golden["database_labels"], cutoffs=(50, 100, 500), precision_at=(10, 100),
        )
    )  # fmt: skip
    for order in ("stable", "tie_aware"):
        assert metrics[f"map_all_{order}"] == pytest.approx(float(golden[f"map_all_{order}"]), abs=1e-9)
        for k in (50, 100, 500):
            assert metrics[f"map_at_{k}_{order}"] == pytest.approx(float(golden[f"map_{k}_{order}"]), abs=1e-9)
    for n in (10, 100):
        assert metrics[f"precision_at_{n}"] == pytest.approx(float(golden[f"precision_{n}"]), abs=1e-9)
    assert metrics["precision_hamming2"] == pytest.approx(float(golden["precision_hamming2"]), abs=1e-9)


@pytest.mark.parametrize("bits", [8, 16, 24, 32, 48, 64, 128, 256])
@pytest.mark.parametrize("chunk_pairs", [1, 1 << 26])
def test_codes_agree_with_a_loop_over_queries(bits, chunk_pairs):
    rng = np.random.default_rng(bits)
    task = random_task(rng, bits=bits)
    query, database, query_labels, database_labels = task
    result = evaluate_codes(*task, CUTOFFS, precision_at=(1, 7, 500), chunk_pairs=chunk_pairs)

    expected = {name: [] for name in ("1", "3", "10", "50", "1000", "all", "p1", "p7", "p500", "radius2")}
    within = np.zeros((2, bits + 1))
    for code, labels in zip(unpack(query), query_labels, strict=True):
        distances = (code != unpack(database)).sum(axis=1)
        relevant = np.array([bool(np.any(labels & other)) for other in database_labels])
        hits = relevant[sorted(range(len(database)), key=lambda i: (distances[i], i))]
        for k in CUTOFFS:
            expected[str(k)].append(average_precision_of_list(hits, k))
        expected["all"].append(average_precision_of_list(hits, len(hits)))
        for n in (1, 7, 500):
            expected[f"p{n}"].append(hits[:n].mean())
        near = relevant[distances <= 2]
        expected["radius2"].append(near.mean() if len(near) else 0.0)
        for radius in range(bits + 1):
            within[:, radius] += relevant[distances <= radius].sum(), (distances <= radius).sum()

    for name, value in result.map_stable.items():
        assert value == pytest.approx(np.mean(expected[name]), abs=1e-12), name
    for n, value in result.precision_at.items():
        assert value == pytest.approx(np.mean(expected[f"p{n}"]), abs=1e-12), n
    assert result.precision_hamming2 == pytest.approx(np.mean(expected["radius2"]), abs=1e-12)
    np.testing.assert_allclose(result.recall, within[0] / within[0, -1])
    some = within[1] > 0
    np.testing.assert_allclose(result.precision[some], within[0, some] / within[1, some])
    assert np.isnan(result.precision[~some]).all()


def test_results_do_not_depend_on_the_number_of_cores(monkeypatch):
    task = random_task(np.random.default_rng(1), bits=32)
    found = []
    for cores in (1, 7):
        monkeypatch.setattr(retrieval, "cores", lambda cores=cores: cores)
        found.append(metrics_dict(evaluate_codes(*task, CUTOFFS, (1, 7), chunk_pairs=1)))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(6))
def test_tie_aware_is_the_mean_over_all_orders(seed):
    rng = np.random.default_rng(seed)
    distances, relevant = rng.integers(0, 3, 7), rng.random(7) < 0.5
    items, hits = (np.bincount(distances, weights=w, minlength=4)[None] for w in (np.ones(7), relevant))
    values = expected_average_precision(items, hits, range(1, 9))[0]
    for k, value in enumerate(values, start=1):
        assert value == pytest.approx(expectation_over_orders(distances, relevant, k), abs=1e-12), k


def test_tie_aware_without_ties_is_the_stable_order():
    hits = np.random.default_rng(0).random((5, 200)) < 0.3
    cutoffs = (1, 2, 50, 199, 200, 400)
    expected = expected_average_precision(np.ones_like(hits, dtype=int), hits, cutoffs)
    np.testing.assert_allclose(expected, average_precision_of_lists(hits, cutoffs), atol=1e-12)


def test_tie_aware_of_one_huge_tie_agrees_with_sampled_orders():
    n, relevant, k = 1_000_000, 100_000, 5000
    value = expected_average_precision(np.array([[n]]), np.array([[relevant]]), (k, n))[0]
    rng = np.random.default_rng(0)
    # the first k of a random order: the count is hypergeometric, the places uniform
    samples = np.zeros((200, k), dtype=bool)
    for row, found in zip(samples, rng.hypergeometric(relevant, n - relevant, k, size=len(samples)), strict=True):
        row[rng.choice(k, found, replace=False)] = True
    sampled = average_precision_of_lists(samples, (k,))[:, 0]
    assert value[0] == pytest.approx(sampled.mean(), abs=4 * sampled.std() / np.sqrt(len(sampled)))
    # all of it: (a + (j-1)(r-1)/(t-1)) / j summed has a closed form
    harmonic = np.sum(1 / np.arange(1, n + 1))
    slope = (relevant - 1) / (n - 1)
    assert value[1] == pytest.approx((harmonic + slope * (n - harmonic)) / n, rel=1e-9)


def test_all_codes_equal_gives_the_share_of_relevant_items_within_any_radius():
    rng = np.random.default_rng(1)
    _, _, query_labels, database_labels = random_task(rng, queries=5, database=6, classes=3)
    codes = np.zeros((6, 4), dtype=np.uint8)
    result = evaluate_codes(codes[:5], codes, query_labels, database_labels, (2,), (3,))
    relevant = (query_labels.astype(int) @ database_labels.T.astype(int)) > 0
    assert result.precision_hamming2 == pytest.approx(relevant.mean())
    assert (result.recall == 1).all()
    for k, name in ((2, "2"), (6, "all")):
        expected = np.mean([expectation_over_orders(np.zeros(6), row, k) for row in relevant])
        assert result.map_tie_aware[name] == pytest.approx(expected, abs=1e-12)
    assert result.map_stable["all"] == pytest.approx(np.mean([average_precision_of_list(r, 6) for r in relevant]))


@pytest.mark.filterwarnings("error")
def test_nothing_relevant_counts_zero():
    codes = pack(np.random.default_rng(2).standard_normal((9, 16)))
    query_labels, database_labels = np.eye(2, dtype=bool)[[0, 0, 0]], np.eye(2, dtype=bool)[[1] * 6]
    result = evaluate_codes(codes[:3], codes[3:], query_labels, database_labels, (2,), (1,))
    assert set(metrics_dict(result).values()) == {0.0}
    assert (result.recall == 0).all()
    vectors = np.random.default_rng(2).standard_normal((9, 4)).astype(np.float32)
    result = evaluate_vectors(vectors[:3], vectors[3:], query_labels, database_labels, (2,), (1,))
    assert set(metrics_dict(result).values()) == {0.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("relevant", [False, True])
def test_a_database_of_one(relevant):
    query_labels, database_labels = np.array([[True, False]]), np.array([[relevant, True]])
    codes = pack(np.ones((2, 8)))
    metrics = metrics_dict(evaluate_codes(codes[:1], codes[1:], query_labels, database_labels, (1, 5), (1, 5)))
    assert len(metrics) == 9
    assert set(metrics.values()) == {float(relevant)}


def test_cut_off_beyond_the_database_keeps_its_name_and_equals_all():
    metrics = metrics_dict(evaluate_codes(*random_task(np.random.default_rng(3)), (1000,), (1000,)))
    for order in ("stable", "tie_aware"):
        assert metrics[f"map_at_1000_{order}"] == pytest.approx(metrics[f"map_all_{order}"])
    assert "precision_at_1000" in metrics


def test_nothing_to_evaluate_is_refused():
    query, database, query_labels, database_labels = random_task(np.random.default_rng(4))
    with pytest.raises(ValueError, match="0 queries and 60 database items"):
        evaluate_codes(query[:0], database, query_labels[:0], database_labels, (1,), (1,))


@pytest.mark.parametrize("chunk_pairs", [1, 1 << 26])
def test_vectors_agree_with_a_loop_over_queries(chunk_pairs):
    rng = np.random.default_rng(5)
    _, _, query_labels, database_labels = random_task(rng, queries=6, database=300)
    vectors = rng.integers(-1, 2, (306, 3)).astype(np.float32)  # small integers: exact scores with many ties, and zeros
    query, database = vectors[:6], vectors[6:]
    result = evaluate_vectors(query, database, query_labels, database_labels, CUTOFFS, (1, 7), chunk_pairs=chunk_pairs)
    rankings = []
    for vector, labels in zip(query, query_labels, strict=True):
        scores = database @ vector
        order = sorted(range(300), key=lambda i: (-scores[i], i))
        rankings.append([bool(np.any(labels & database_labels[i])) for i in order])
    for name, value in result.map_stable.items():
        k = 300 if name == "all" else int(name)
        assert value == pytest.approx(np.mean([average_precision_of_list(hits, k) for hits in rankings]), abs=1e-12)
    found = np.cumsum(np.sum(rankings, axis=0))
    np.testing.assert_allclose(result.recall, found[result.thresholds - 1] / found[-1])
    np.testing.assert_allclose(result.precision, found[result.thresholds - 1] / (6 * result.thresholds))
    assert result.precision_at[7] == pytest.approx(found[6] / 42)
    assert (result.ranks[0], result.ranks[-1]) == (1, 300)
    np.testing.assert_allclose(result.precision_at_rank, found[result.ranks - 1] / (6 * result.ranks))
    assert result.map_tie_aware == {}
    assert result.precision_hamming2 is None


@pytest.mark.parametrize("classes", [1, 8, 9, 20, 38, 81, 200])
def test_shared_labels_at_any_number_of_classes(classes):
    rng = np.random.default_rng(classes)
    query, database = rng.random((20, classes)) < 0.2, rng.random((30, classes)) < 0.2
    expected = (query.astype(int) @ database.T.astype(int)) > 0
    np.testing.assert_array_equal(share_label(query, database), expected)


def test_distance_of_256_bits_does_not_wrap_around():
    codes = pack(np.stack([np.ones(256), -np.ones(256)]))
    assert hamming_distances(codes, codes).tolist() == [[0, 256], [256, 0]]


@pytest.mark.parametrize("hits", ["none", "all", "some"])
@pytest.mark.parametrize("n", [1, 2, 40])
def test_counting_sort_is_the_stable_sort(n, hits):
    rng = np.random.default_rng(n)
    distances = rng.integers(0, 9, (3, n)).astype(np.uint8)
    relevant = {"none": np.zeros((3, n), bool), "all": np.ones((3, n), bool), "some": rng.random((3, n)) < 0.3}[hits]
    until, found, ranks = np.zeros((3, 9), int), np.empty((3, 9), int), np.empty((3, n), np.int32)
    counting_sort(distances, relevant, np.empty((3, n), bool), until, found, ranks)
    for row in range(3):
        order = distances[row].argsort(kind="stable")
        np.testing.assert_array_equal(ranks[row, : found[row, -1]], relevant[row, order].nonzero()[0] + 1)
        for distance in range(9):
            near = distances[row] <= distance
            assert (until[row, distance], found[row, distance]) == (near.sum(), relevant[row, near].sum())


def test_code_statistics_of_known_codes():
    bits = np.array([[1, 1, 1, 1], [1, 1, -1, 1], [1, -1, 1, -1], [1, -1, -1, -1]])
    statistics = code_statistics(pack(np.hstack([bits, bits])))  # bits 1 and 5 never vary; 2 = 4 = 6 = 8; 3 = 7
    assert statistics["bit_balance"] == pytest.approx(2 / 8)
    assert statistics["dead_bits"] == 2
    assert statistics["distinct_codes"] == 4
    assert statistics["bit_correlation"] == pytest.approx((4 * 3 + 2 * 1) / (6 * 5))


def test_bit_correlation_is_pearsons():
    signs = np.sign(np.random.default_rng(6).standard_normal((500, 16)) + np.linspace(-1, 1, 16))
    matrix = np.abs(np.corrcoef(signs.T))
    expected = (matrix.sum() - 16) / (16 * 15)
    assert code_statistics(pack(signs))["bit_correlation"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_code_statistics_of_equal_codes():
    statistics = code_statistics(np.zeros((10, 2), dtype=np.uint8))
    assert statistics == {"bit_balance": 1.0, "bit_correlation": 0.0, "dead_bits": 16, "distinct_codes": 1}

"""The similarity matrix: exact in every block, never whole in memory; neighbours; the table."""

import tracemalloc
from pathlib import Path

import faiss
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, PROVENANCE_KEY, SIMILARITY, Provenance
from stages.errors import InputError
from stages.hdf5 import write_text
from stages.params import parse
from stages.similarity import neighbours
from stages.similarity import stage as similarity_stage
from stages.similarity.config import Params
from stages.similarity.matrix import SimilarityMatrix, read_similarity, similarity_matrix
from stages.similarity.neighbours import NeighbourSearch
from stages.similarity.stage import run
from stages.tables import fixed_size_lists, matrix, read_table, write_table


def distributions(n: int = 50, m: int = 6, seed: int = 0) -> np.ndarray:
    """Random rows (n, m) that sum to 1, float32."""
    return np.random.default_rng(seed).dirichlet(np.full(m, 0.4), n).astype(np.float32)


def dense(rows: np.ndarray, form: str) -> np.ndarray:
    """The matrix from its definition, in double precision."""
    rows = rows.astype(np.float64)
    norms = np.sqrt((rows**2).sum(axis=1))
    cosines = rows @ rows.T / np.outer(norms, norms)
    return 2 * cosines - 1 if form == "signed" else cosines


@pytest.mark.parametrize("form", ["signed", "cosine"])
def test_any_block_comes_back(form: str) -> None:
    rows = distributions()
    similarity, expected = similarity_matrix(rows, form), dense(rows, form)
    np.testing.assert_allclose(similarity.block(slice(None)), expected, atol=1e-6)
    chosen, others = np.array([3, 3, 49, 0]), np.array([7, 1])
    np.testing.assert_allclose(similarity.block(chosen, others), expected[np.ix_(chosen, others)], atol=1e-6)
    np.testing.assert_allclose(similarity.block(chosen), expected[chosen], atol=1e-6)
    np.testing.assert_allclose(similarity.block(slice(5, 9), chosen), expected[5:9][:, chosen], atol=1e-6)
    assert similarity.block(chosen).dtype == np.float32


def test_a_block_of_tensors() -> None:
    rows = distributions()
    similarity = similarity_matrix(rows, "signed")
    on_device = SimilarityMatrix(torch.from_numpy(similarity.factor), similarity.scale, similarity.offset)
    chosen = torch.tensor([4, 0, 4])
    np.testing.assert_allclose(
        on_device.block(chosen, chosen).numpy(), similarity.block([4, 0, 4], [4, 0, 4]), atol=1e-6
    )


def test_the_rank_is_bounded_by_the_concepts() -> None:
    assert np.linalg.matrix_rank(dense(distributions(50, 6), "signed")) <= 7
    assert similarity_matrix(distributions(50, 6), "signed").factor.shape == (50, 6)


def test_a_large_matrix_is_never_whole_in_memory() -> None:
    rows = distributions(50_000, 10)
    similarity = similarity_matrix(rows, "signed")
    tracemalloc.start()
    block = similarity.block(np.arange(0, 50_000, 500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert block.shape == (100, 50_000)
    assert peak < 4 * block.nbytes < 0.01 * 50_000**2 * 4


def brute_force(values: np.ndarray, k: int) -> np.ndarray:
    """The k largest values of each row without its diagonal, in descending order."""
    values = values.copy()
    np.fill_diagonal(values, -np.inf)
    return -np.sort(-values, axis=1)[:, :k]


def nearest_neighbours(similarity: SimilarityMatrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The batches of the search, put together: they follow one another without a gap."""
    batches = list(NeighbourSearch(similarity, k))
    ends = [stop for _, stop, _, _ in batches]
    assert [start for start, _, _, _ in batches] == [0, *ends[:-1]] and ends[-1] == len(similarity.factor)
    assert [len(rows) for _, _, rows, _ in batches] == [stop - start for start, stop, _, _ in batches]
    return np.concatenate([rows for _, _, rows, _ in batches]), np.concatenate([values for *_, values in batches])


def check_neighbours(rows: np.ndarray, k: int, form: str = "signed") -> None:
    """Compare with brute force up to ties: the values listed, that they are those of the rows listed, no row twice."""
    found, values = nearest_neighbours(similarity_matrix(rows, form), k)
    expected, n = dense(rows, form), len(rows)
    k = min(k, n - 1)
    assert found.shape == values.shape == (n, k)
    assert values.dtype == np.float32
    assert not (found == np.arange(n)[:, None]).any()
    assert all(len(set(row)) == k for row in found.tolist())
    assert found.min() >= 0
    np.testing.assert_allclose(values, brute_force(expected, k), atol=2e-6)
    np.testing.assert_allclose(values, np.take_along_axis(expected, found, axis=1), atol=2e-6)


@pytest.mark.parametrize("form", ["signed", "cosine"])
@pytest.mark.parametrize("k", [1, 5, 49])
def test_neighbours_are_those_of_brute_force(k: int, form: str) -> None:
    check_neighbours(distributions(), k, form)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_neighbours_among_exact_duplicates(k: int) -> None:
    """More copies than neighbours: the row itself may be anywhere in the list, or beyond its end."""
    check_neighbours(np.repeat(distributions(7), 8, axis=0), k)
    check_neighbours(np.tile(distributions(7), (8, 1)), k)
    check_neighbours(np.repeat(distributions(1), 30, axis=0), k)


@pytest.mark.parametrize("k", [50, 51, 1000])
def test_more_neighbours_than_images(k: int) -> None:
    check_neighbours(distributions(), k)


def test_neighbours_of_two_images() -> None:
    check_neighbours(distributions(2), 3)


# ---- more rows than are compared with all


@pytest.fixture
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverted lists from 1,000 rows on."""
    monkeypatch.setattr(neighbours, "EXACT_ROWS", 1000)
    monkeypatch.setattr(neighbours, "SAMPLE", 2000)


def clustered(n: int = 6400, kinds: int = 60, m: int = 12, seed: int = 0) -> np.ndarray:
    """Softmax rows (n, m) around those of some kinds of images."""
    rng = np.random.default_rng(seed)
    scores = 4 * rng.standard_normal((kinds, m))[rng.integers(0, kinds, n)] + rng.standard_normal((n, m))
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def true_recall(rows: np.ndarray, k: int, found: np.ndarray) -> float:
    """The share of the neighbours found, over all rows, that are as similar as the true ones; no row is its own."""
    expected = dense(rows, "cosine")
    listed = np.take_along_axis(expected, found, axis=1)
    assert not (found == np.arange(len(rows))[:, None]).any()
    assert all(len(set(row)) == k for row in found.tolist())
    np.fill_diagonal(expected, -2)
    return float((listed >= -np.partition(-expected, k - 1, axis=1)[:, k - 1 : k] - 1e-6).mean())


@pytest.mark.parametrize("k", [1, 20])
def test_inverted_lists_reach_their_recall(few_are_many: None, k: int) -> None:
    rows = clustered()
    similarity = similarity_matrix(rows, "signed")
    search = NeighbourSearch(similarity, k)
    assert 1 <= search.probed <= search.lists / 8 and search.recall >= 0.99
    found, values = nearest_neighbours(similarity, k)
    assert true_recall(rows, k, found) == pytest.approx(search.recall, abs=0.004)
    own = np.einsum("nd,nkd->nk", similarity.factor, similarity.factor[found])
    np.testing.assert_allclose(values, 2 * own - 1, atol=2e-6)
    assert (np.diff(values, axis=1) <= 0).all()


def test_no_more_lists_are_looked_into_than_the_recall_needs(
    few_are_many: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = [NeighbourSearch(similarity_matrix(clustered(), "cosine"), 20)]
    for recall in (0.9, 0.5):
        monkeypatch.setattr(neighbours, "RECALL", recall)
        needed.append(NeighbourSearch(similarity_matrix(clustered(), "cosine"), 20))
    assert needed[0].probed > needed[1].probed >= needed[2].probed == 1
    assert needed[0].recall > needed[1].recall >= needed[2].recall


def test_the_same_rows_have_the_same_neighbours(few_are_many: None) -> None:
    similarity = similarity_matrix(clustered(), "cosine")
    first, second = nearest_neighbours(similarity, 10), nearest_neighbours(similarity, 10)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if threads > 1 else 2)
    try:
        third = nearest_neighbours(similarity, 10)
    finally:
        faiss.omp_set_num_threads(threads)
    for found in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


def test_where_lists_do_not_help_the_search_is_exact(few_are_many: None) -> None:
    """Rows without any cluster have their neighbours in all lists."""
    rows = np.random.default_rng(0).dirichlet(np.ones(80), 3000).astype(np.float32)
    search = NeighbourSearch(similarity_matrix(rows, "cosine"), 20)
    assert (search.lists, search.probed, search.recall) == (0, 0, 1.0)
    assert search.metadata() == {"search": "exact"}
    check_neighbours(rows, 20, "cosine")


def test_equal_rows_are_not_all_compared(few_are_many: None) -> None:
    rows = np.tile(clustered(1), (20_000, 1))
    search = NeighbourSearch(similarity_matrix(rows, "cosine"), 5)
    assert search.lists
    counted = faiss.cvar.indexIVF_stats
    counted.reset()
    found = np.concatenate([found for _, _, found, _ in search])
    assert not (found == np.arange(20_000)[:, None]).any()
    assert 0 < counted.ndis <= 20_000**2 / 8


def test_lists_with_too_few_rows_are_not_the_end(few_are_many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list holds 40 rows, and one is looked into."""
    monkeypatch.setattr(neighbours, "RECALL", 0.0)
    similarity = similarity_matrix(clustered(), "cosine")
    search = NeighbourSearch(similarity, 50)
    short = search._look_up(np.arange(6400))[0][:, -1] < 0
    assert short.any() and not short.all()
    found, values = nearest_neighbours(similarity, 50)
    assert found.min() >= 0 and all(len(set(row)) == 50 for row in found.tolist())
    expected = brute_force(dense(similarity.factor, "cosine"), 50)
    np.testing.assert_allclose(values[short], expected[short], atol=2e-6)


def test_batches_do_not_change_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = similarity_matrix(clustered(500), "signed")
    whole = nearest_neighbours(similarity, 7)
    monkeypatch.setattr(neighbours, "BATCH", 60)
    assert len(list(NeighbourSearch(similarity, 7))) == 9
    parts = nearest_neighbours(similarity, 7)
    np.testing.assert_allclose(parts[1], whole[1], atol=2e-6)
    check_neighbours(clustered(500), 7)


# ---- the stage


ORIGIN = Provenance("mine", "d" * 64, "e" * 64, params={"tau": 3.0})
FEATURES_ORIGIN = Provenance("extract", "d" * 64, "e" * 64, params={"views": 1})


def params(**changes: object) -> Params:
    section = {"source": "concepts", "form": "signed", "neighbours": 4, "layout": "factor", **changes}
    return parse(Params, {"similarity": section})


@pytest.fixture
def mined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Distributions on disk, of images with scattered ids."""
    monkeypatch.chdir(tmp_path)
    rows = distributions()
    write_mined(rows)
    return rows


def write_mined(rows: np.ndarray) -> None:
    ids = np.arange(len(rows)) * 3 + 1
    table = pa.table({"id": ids, "distribution": fixed_size_lists(rows)})
    write_table(table, CONCEPT_DISTRIBUTION, ORIGIN, {"concepts": ["a"] * rows.shape[1]})
    write_features(ids)


def write_features(train_id: np.ndarray, origin: Provenance = FEATURES_ORIGIN) -> None:
    """Random features (d = 12) of images up to the last of `train_id`."""
    images = np.random.default_rng(9).standard_normal((train_id.max() + 1, 12))
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    FEATURES.parent.mkdir(exist_ok=True)
    with h5py.File(FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, origin.to_json())
        file["image/features"], file["image/id"] = images.astype(np.float16), np.arange(len(images))
        file["train/views"], file["train/id"] = images[train_id][None].astype(np.float16), train_id


@pytest.mark.parametrize("form", ["signed", "cosine"])
def test_the_stage_writes_what_reads_back(mined: np.ndarray, form: str) -> None:
    run(params(form=form))
    similarity, ids, provenance = read_similarity()
    np.testing.assert_array_equal(ids, np.arange(50) * 3 + 1)
    np.testing.assert_array_equal(similarity.factor, similarity_matrix(mined, form).factor)
    np.testing.assert_allclose(similarity.block(slice(None)), dense(mined, form), atol=1e-6)
    assert (provenance.stage, provenance.dataset, provenance.model) == ("similarity", ORIGIN.dataset, ORIGIN.model)
    assert provenance.params == {
        "tau": 3.0, "source": "concepts", "form": form, "neighbours": 4, "layout": "factor",
    }  # fmt: skip
    assert pq.read_schema(SIMILARITY).names == ["id", "factor", "neighbours", "similarities"]


@pytest.mark.parametrize("form", ["signed", "cosine"])
def test_features_instead_of_concepts(mined: np.ndarray, form: str) -> None:
    """UHSCM's ablation: cosines of the features of the same images, in the same form, and as a row factor."""
    CONCEPT_DISTRIBUTION.unlink()  # not needed
    run(params(source="features", form=form))
    similarity, ids, provenance = read_similarity()
    np.testing.assert_array_equal(ids, np.arange(50) * 3 + 1)
    with h5py.File(FEATURES) as file:
        images = file["image/features"][:][ids]
    assert similarity.factor.shape == (50, 12) and similarity.factor.dtype == np.float32
    np.testing.assert_allclose(similarity.block(slice(None)), dense(images, form), atol=1e-6)
    assert (provenance.stage, provenance.dataset, provenance.model) == ("similarity", ORIGIN.dataset, ORIGIN.model)
    assert provenance.params == {
        "views": 1, "source": "features", "form": form, "neighbours": 4, "layout": "factor",
    }  # fmt: skip
    table, _, _ = read_table(SIMILARITY, {"neighbours": pa.list_(pa.int64(), 4)})
    rows, _ = nearest_neighbours(similarity_matrix(images.astype(np.float32), form), 4)
    np.testing.assert_array_equal(matrix(table, "neighbours"), rows * 3 + 1)


def test_distributions_of_other_images_are_refused(mined: np.ndarray) -> None:
    write_features(np.arange(50))
    with pytest.raises(InputError, match=r"concept_distribution\.parquet: has other training images than data/fea"):
        run(params())
    write_features(np.arange(50) * 3 + 1, Provenance("extract", "d" * 64, "f" * 64))
    with pytest.raises(InputError, match=r"concept_distribution\.parquet: made with another model .*`dvc repro mine`"):
        run(params())
    assert not SIMILARITY.exists()


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(InputError, match=r"similarity\.source: 'pixels' is not allowed: input should be 'concepts' or"):
        params(source="pixels")


def test_the_neighbours_are_listed_by_id(mined: np.ndarray) -> None:
    run(params())
    table, _, _ = read_table(SIMILARITY, {"neighbours": pa.list_(pa.int64(), 4), "similarities": None})
    rows, values = nearest_neighbours(similarity_matrix(mined, "signed"), 4)
    np.testing.assert_array_equal(matrix(table, "neighbours"), rows * 3 + 1)
    np.testing.assert_array_equal(matrix(table, "similarities"), values)


def test_the_dense_layout_has_the_rows_and_nobody_reads_them(
    mined: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(params(layout="dense"))
    table, _, _ = read_table(SIMILARITY, {"row": None})
    np.testing.assert_allclose(matrix(table, "row"), dense(mined, "signed"), atol=1e-6)
    read = []
    original = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *a, **k: read.append(k["columns"]) or original(*a, **k))
    similarity, _, _ = read_similarity()
    assert read == [["id", "factor"]]
    np.testing.assert_allclose(similarity.block(slice(None)), dense(mined, "signed"), atol=1e-6)


def test_whole_rows_are_never_all_in_memory(mined: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where they come in one batch of neighbours nor where in several, which the blocks do not divide."""
    monkeypatch.setattr(similarity_stage, "DENSE_VALUES", 7 * 50)
    heights = []
    original = SimilarityMatrix.block
    monkeypatch.setattr(SimilarityMatrix, "block", lambda self, rows: heights.append(rows) or original(self, rows))
    for batch, groups in ((10_000, 8), (20, 9)):
        monkeypatch.setattr(neighbours, "BATCH", batch)
        heights.clear()
        run(params(layout="dense"))
        assert len(heights) == groups == pq.read_metadata(SIMILARITY).num_row_groups
        assert all(rows.stop - rows.start <= 7 for rows in heights)
        table, _, _ = read_table(SIMILARITY, {"id": pa.int64(), "row": None, "factor": None})
        np.testing.assert_array_equal(table["id"].to_numpy(), np.arange(50) * 3 + 1)
        np.testing.assert_allclose(matrix(table, "row"), dense(mined, "signed"), atol=1e-6)
        np.testing.assert_array_equal(matrix(table, "factor"), similarity_matrix(mined, "signed").factor)


def test_the_table_says_how_the_neighbours_were_found(
    mined: np.ndarray, few_are_many: None, capsys: pytest.CaptureFixture
) -> None:
    run(params())
    _, _, extra = read_table(SIMILARITY, {"id": pa.int64()})
    assert extra["neighbours"] == {"search": "exact"}
    write_mined(clustered())
    run(params())
    _, _, extra = read_table(SIMILARITY, {"id": pa.int64()})
    search = extra["neighbours"]
    assert search.keys() == {"search", "lists", "probed", "recall", "sample"} and search["search"] == "ivf"
    assert 0.99 <= search["recall"] <= 1
    assert capsys.readouterr().out == (
        f"similarity: neighbours from {search['probed']} of 160 inverted lists, recall {search['recall']}\n"
    )


def test_a_search_that_fails_leaves_the_last_table(mined: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    run(params())
    before = SIMILARITY.read_bytes()
    monkeypatch.setattr(neighbours, "BATCH", 20)
    original = NeighbourSearch._compare

    def failing(self: NeighbourSearch, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if queries[0] > 30:
            raise MemoryError
        return original(self, queries)

    monkeypatch.setattr(NeighbourSearch, "_compare", failing)
    with pytest.raises(MemoryError):
        run(params(neighbours=7))
    assert SIMILARITY.read_bytes() == before
    assert [file.name for file in SIMILARITY.parent.glob(".*")] == []


def test_a_single_training_image_has_no_similarity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_mined(distributions(1))
    for source, path in (("concepts", CONCEPT_DISTRIBUTION), ("features", FEATURES)):
        with pytest.raises(InputError, match=f"{path}: similarity needs at least 2"):
            run(params(source=source))


@pytest.mark.parametrize("layout", ["factor", "dense"])
def test_without_concepts_there_is_no_similarity(mined: np.ndarray, capsys: pytest.CaptureFixture, layout: str) -> None:
    """Embeddings without a text side have none."""
    write_mined(distributions()[:, :0])
    run(params(layout=layout))
    assert capsys.readouterr().out == (
        "similarity: there are no concepts, and so no similarities; method: fused and dsch need none\n"
    )
    similarity, ids, provenance = read_similarity()
    assert similarity.factor.shape == (50, 0) and similarity.factor.dtype == np.float32
    np.testing.assert_array_equal(ids, np.arange(50) * 3 + 1)
    assert provenance.stage == "similarity"
    assert pq.read_schema(SIMILARITY).names == ["id", "factor", "neighbours", "similarities"]


def damage_nothing_is_there() -> None:
    SIMILARITY.unlink()


def damage_not_parquet() -> None:
    SIMILARITY.write_bytes(b"no parquet")


def damage_truncated() -> None:
    SIMILARITY.write_bytes(SIMILARITY.read_bytes()[:-100])


def damage_other_type() -> None:
    table = pa.table({"id": pa.array([1, 2]), "factor": pa.array([1.0, 2.0])})
    write_table(table, SIMILARITY, ORIGIN, {"scale": 1, "offset": 0})


def damage_lists_of_any_size() -> None:
    table = pa.table({"id": pa.array([1, 2]), "factor": pa.array([[], [1.0]], pa.list_(pa.float32()))})
    write_table(table, SIMILARITY, ORIGIN, {"scale": 1, "offset": 0})


def damage_no_column() -> None:
    write_table(pa.table({"id": pa.array([1, 2])}), SIMILARITY, ORIGIN, {"scale": 1, "offset": 0})


def damage_no_scale() -> None:
    table = pa.table({"id": pa.array([1]), "factor": fixed_size_lists(distributions(1))})
    write_table(table, SIMILARITY, ORIGIN)


def damage_no_provenance() -> None:
    table = pa.table({"id": pa.array([1]), "factor": fixed_size_lists(distributions(1))})
    pq.write_table(table, SIMILARITY)


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_is_there, damage_not_parquet, damage_truncated, damage_other_type, damage_lists_of_any_size,
        damage_no_column, damage_no_scale, damage_no_provenance,
    ],
)  # fmt: skip
def test_a_damaged_table_is_named_with_what_rebuilds_it(mined: np.ndarray, damage: object) -> None:
    run(params())
    damage()
    with pytest.raises(InputError, match="dvc repro similarity") as error:
        read_similarity()
    assert str(SIMILARITY) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("path", "stage"), [(CONCEPT_DISTRIBUTION, "mine"), (FEATURES, "extract")])
def test_a_missing_input_is_named(mined: np.ndarray, path: Path, stage: str) -> None:
    path.unlink()
    with pytest.raises(InputError, match=f"{path}: not found; .*`dvc repro {stage}`"):
        run(params())

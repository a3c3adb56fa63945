"""The similarity matrix: exact in every block, never whole in memory; neighbours; the table."""

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stages.artifacts import CONCEPT_DISTRIBUTION, FEATURES, PROVENANCE_KEY, SIMILARITY, Provenance
from stages.errors import InputError
from stages.params import parse
from stages.similarity import neighbours, stage
from stages.similarity.config import Params
from stages.similarity.matrix import SimilarityMatrix, read_similarity, similarity_matrix
from stages.similarity.neighbours import NeighbourSearch
from stages.similarity.stage import run
from stages.tables import fixed_size_lists, matrix, read_matrix, read_table, write_table


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
        file.attrs[PROVENANCE_KEY] = origin.to_json()
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

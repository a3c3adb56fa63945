"""The baseline methods on arrays, and the stage on a tiny run."""

import csv

import numpy as np
import pytest
from small_run import write_small_run

from stages.artifacts import (
    BASELINES,
    BASELINES_PRECISION_AT_N,
    BASELINES_PRECISION_RECALL,
    CONCEPTS,
    DATASET,
    read_json,
    write_json,
)
from stages.baselines.config import Params
from stages.baselines.methods import METHODS, itq, pca_sign
from stages.baselines.stage import BLOCK, rows, run
from stages.codes import unpack
from stages.errors import InputError
from stages.evaluate.reports import NO_LABELS, read_report
from stages.features import Features

PARAMS = {"bits": 16, "seed": 0, "evaluate": {"precision_at": [1, 10]}}


def gaussian(rng, n=400, dim=24):
    """Correlated features away from the origin, as those of CLIP."""
    return (3 + rng.standard_normal((n, dim)) @ rng.standard_normal((dim, dim))).astype(np.float32)


def quantization_loss(encoder, features):
    """Mean |sign(v) - v|^2 a bit at the best common scale of v."""
    values = encoder(features)
    return 1 - np.abs(values).mean() ** 2 / (values**2).mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("n", "dim", "bits"), [(400, 24, 16), (400, 24, 24), (400, 24, 64), (5, 24, 16), (300, 64, 128)]
)
def test_every_method_gives_any_number_of_bits(method, n, dim, bits):
    train = gaussian(np.random.default_rng(0), n, dim)
    encode = METHODS[method](train, bits, np.random.default_rng(1))
    values = encode(train)
    assert values.shape == (n, bits)
    assert np.isfinite(values).all()
    again = METHODS[method](train, bits, np.random.default_rng(1))(train)
    np.testing.assert_array_equal(values, again)
    if n > dim:  # centred, so no bit is the same for all images
        assert (np.abs(np.mean(values >= 0, axis=0) - 0.5) < 0.5).all()


def test_pca_sign_is_scikit_learns_projection():
    from sklearn.decomposition import PCA

    train = gaussian(np.random.default_rng(2))
    expected = PCA(8).fit_transform(train)
    values = pca_sign(train, 8, np.random.default_rng(0))(train)
    np.testing.assert_allclose(np.abs(values), np.abs(expected), rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("bits", [8, 24, 48])
def test_itq_projects_through_orthonormal_rows_and_quantizes_better_than_its_start(bits):
    train = gaussian(np.random.default_rng(3))
    # whitened, so that the rotation is all that matters
    train = (train - train.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(train.T))).T
    encode = itq(train, bits, np.random.default_rng(0))
    frame = encode.projection
    smaller = frame.T @ frame if bits <= 24 else frame @ frame.T
    np.testing.assert_allclose(smaller, np.eye(min(bits, 24)), atol=1e-4)
    start = pca_sign(train, bits, np.random.default_rng(0))
    assert quantization_loss(encode, train) < quantization_loss(start, train) - 0.02


def test_itq_finds_the_corners_of_a_rotated_cube():
    rng = np.random.default_rng(4)
    corners = rng.choice([-1.0, 1.0], size=(600, 4))
    rotation = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    encode = itq(corners @ rotation + 0.01 * rng.standard_normal((600, 4)), 4, np.random.default_rng(0))
    codes = encode(corners @ rotation) >= 0
    agreement = np.abs((2.0 * codes - 1).T @ corners) / 600
    np.testing.assert_allclose(agreement.max(axis=0), 1, atol=0.01)  # each axis of the cube is one bit


def test_rows_come_block_by_block_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_run()
    monkeypatch.setattr("stages.baselines.stage.BLOCK", 7)
    ids = np.array([0, 6, 7, 8, 50, 51, 119])
    with Features() as features:
        np.testing.assert_array_equal(rows(features, ids, lambda x: 2 * x), 2 * features.images()[ids])
    assert BLOCK > 7


def test_stage_measures_every_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_run()
    run(Params.model_validate(PARAMS))
    report, provenance = read_report(BASELINES)
    assert provenance.params == {"bits": 16, "seed": 0, "precision_at": [1, 10]}
    assert set(report) == {*METHODS, "feature_cosine", "concept_cosine"}
    real = {"map_at_10_stable", "map_at_50_stable", "map_all_stable", "precision_at_1", "precision_at_10"}
    binary = real | {"map_at_10_tie_aware", "map_at_50_tie_aware", "map_all_tie_aware", "precision_hamming2"}
    for name, metrics in report.items():
        assert (metrics.pop("protocol"), metrics.pop("splits")) == ("tiny-protocol", "5" * 16)
        assert set(metrics) == (binary if name in METHODS else real)
        assert all(0 < value <= 1 for value in metrics.values())
    # features carry the classes, so that their cosine finds them better than chance does (about 0.6)
    assert report["feature_cosine"]["map_at_10_stable"] > 0.8
    for path, column in ((BASELINES_PRECISION_RECALL, "recall"), (BASELINES_PRECISION_AT_N, "n")):
        with open(path) as file:
            table = list(csv.DictReader(file))
        assert {row["method"] for row in table} == set(report)
        assert set(table[0]) == {"method", column, "precision"}


def test_concept_cosine_is_the_cosine_of_the_softmax(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    from stages.evaluate.retrieval import evaluate_vectors
    from stages.images import ImageShards

    monkeypatch.chdir(tmp_path)
    write_small_run()
    run(Params.model_validate(PARAMS))
    table = pq.read_table(CONCEPTS)
    texts = np.array(table["text_feature"].to_pylist())[table["kept"].to_numpy()]
    with Features() as features:
        scores = features.images() @ texts.T
    distribution = np.exp(3.0 * 3 * scores)  # tau * m', m' = 3 kept
    distribution /= distribution.sum(axis=1, keepdims=True)
    unit = (distribution / np.linalg.norm(distribution, axis=1, keepdims=True)).astype(np.float32)
    shards = ImageShards()
    labels, query, database = shards.labels(3), shards.ids("query"), shards.ids("database")
    expected = evaluate_vectors(unit[query], unit[database], labels[query], labels[database], (), ())
    metrics = read_report(BASELINES)[0]["concept_cosine"]
    assert metrics["map_all_stable"] == pytest.approx(expected.map_stable["all"], abs=1e-3)


def test_without_a_text_side_there_is_no_concept_cosine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_run(text_side=False)
    run(Params.model_validate(PARAMS))
    assert set(read_report(BASELINES)[0]) == {*METHODS, "feature_cosine"}


def test_nothing_is_fitted_on_queries(tmp_path, monkeypatch):
    """The encoders see the training rows alone."""
    monkeypatch.chdir(tmp_path)
    write_small_run()
    seen = []

    def spy(train, bits, rng):
        seen.append(train)
        return METHODS["lsh"](train, bits, rng)

    monkeypatch.setattr("stages.baselines.stage.METHODS", {"spy": spy})
    run(Params.model_validate(PARAMS))
    with Features() as features:
        np.testing.assert_array_equal(seen[0], features.train())


def test_without_labels_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_small_run(labelled=False)
    run(Params.model_validate(PARAMS))
    assert read_report(BASELINES)[0] == {"labels": False, "note": NO_LABELS}
    assert BASELINES_PRECISION_RECALL.read_text() == "method,recall,precision\n"
    assert BASELINES_PRECISION_AT_N.read_text() == "method,n,precision\n"
    assert capsys.readouterr().out == f"baselines: {NO_LABELS}\n"


def test_features_of_another_data_set_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_run()
    write_json(DATASET, read_json(DATASET) | {"digest": "f" * 64})
    with pytest.raises(InputError, match=r"data/features\.h5: made with another data set .*`dvc repro extract`"):
        run(Params.model_validate(PARAMS))
    assert not BASELINES.exists()


def test_no_queries_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_small_run(queries=0)
    with pytest.raises(InputError, match="0 queries and 120 database images"):
        run(Params.model_validate(PARAMS))


def test_codes_unpack_to_the_signs_of_the_encoder(tmp_path, monkeypatch):
    from stages.codes import pack

    monkeypatch.chdir(tmp_path)
    write_small_run()
    with Features() as features:
        encode = METHODS["lsh"](features.train(), 16, np.random.default_rng(0))
        packed = rows(features, np.arange(120), lambda x: pack(encode(x)))
        np.testing.assert_array_equal(unpack(packed), np.where(encode(features.images()) >= 0, 1, -1))

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
from stages.baselines import methods
from stages.baselines.config import Params
from stages.baselines.methods import METHODS, itq, pca_sign, spectral, spherical
from stages.baselines.queries import read_baseline_precision
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


def slow_spectral(train, rows, bits):
    """Released spectral hashing, one axis, eigenfunction and row at a time; PCA by scikit-learn."""
    from sklearn.decomposition import PCA

    pca = PCA(min(bits, train.shape[1])).fit(train)
    reduced = pca.transform(train)
    modes = []
    for axis in range(reduced.shape[1]):
        low, high = reduced[:, axis].min(), reduced[:, axis].max()
        modes += [(k * np.pi / (high - low), axis, low) for k in range(1, bits + 1)]
    modes = sorted(modes)[:bits]
    return np.array([
        [np.sin(np.pi / 2 + frequency * (row[axis] - low)) for frequency, axis, low in modes]
        for row in pca.transform(rows)
    ])  # fmt: skip


@pytest.mark.parametrize("bits", [8, 24, 40])
def test_spectral_hashing_is_the_formula(bits):
    """Up to the sign of an axis: then an odd eigenfunction changes its sign, an even one does not."""
    rng = np.random.default_rng(5)
    train, rows = (gaussian(rng, n, 24).astype(np.float64) for n in (300, 20))
    found = spectral(train, bits, rng)(rows)
    expected = slow_spectral(train, rows, bits)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-6)


def test_spectral_hashing_gives_a_long_axis_more_bits():
    """On a box of 8 x 2 the smoothest functions are k = 1, 2, 3 of the long side, then 4 of it and 1 of the short."""
    rng = np.random.default_rng(6)
    box = rng.uniform([-4, -1], [4, 1], size=(4000, 2))
    encode = spectral(box, 5, rng)
    length = np.ptp(box @ encode.axes, axis=0)
    k = encode.frequency * length / np.pi
    np.testing.assert_allclose(sorted(k), [1, 1, 2, 3, 4], rtol=1e-6)
    long_side = np.abs(encode.axes[0]) > 0.9
    assert sorted(k[long_side].round().tolist()) == [1, 2, 3, 4]
    # the k-th eigenfunction of the long side changes its sign k times
    line = np.column_stack([np.linspace(-4, 4, 1001), np.zeros(1001)])
    changes = np.count_nonzero(np.diff(encode(line) >= 0, axis=0), axis=0)
    np.testing.assert_array_equal(changes[long_side], k[long_side].round())
    values = encode(box)
    assert np.abs((values >= 0).mean(axis=0) - 0.5).max() < 0.05  # balanced on uniform data
    assert np.abs(np.corrcoef(values.T) - np.eye(5)).max() < 0.1  # and uncorrelated


def test_spectral_hashing_of_fewer_dimensions_than_bits():
    """One dimension, 16 bits: its first 16 eigenfunctions, as many sign changes as their number."""
    line = np.linspace(0, 1, 2001)[:, None]
    encode = spectral(line, 16, np.random.default_rng(0))
    changes = np.count_nonzero(np.diff(encode(line) >= 0, axis=0), axis=0)
    np.testing.assert_array_equal(changes, np.arange(1, 17))


def slow_spheres(train, bits, rng, moves):
    """Spherical hashing from the paper's formulas, `moves` moves of the pivots, pair by pair."""
    order = np.sort(rng.permutation(len(train)))
    rows = train[order]
    pivots = np.stack([rows[rng.permutation(len(rows))[:5]].mean(axis=0) for _ in range(bits)])
    n = len(rows)

    def radii():
        """Of squared distances, as between the two in the middle of an even number any radius will do."""
        return np.sqrt(np.median(((rows[:, None] - pivots) ** 2).sum(axis=2), axis=0))

    for _ in range(moves):
        inside = np.linalg.norm(rows[:, None] - pivots, axis=2) <= radii()
        forces = np.zeros_like(pivots)
        for i in range(bits):
            for j in range(bits):
                if i != j:
                    shared = np.count_nonzero(inside[:, i] & inside[:, j])
                    forces[i] += 0.5 * (shared - n / 4) / (n / 4) * (pivots[i] - pivots[j])
        pivots += forces / bits
    return pivots, radii()


@pytest.mark.parametrize("moves", [0, 1, 3])
def test_spherical_hashing_is_the_formula(moves, monkeypatch):
    monkeypatch.setattr(methods, "SPHERES_ITERATIONS", moves)
    monkeypatch.setattr(methods, "SPHERES_MEAN", 0.0)  # does not stop before
    train = gaussian(np.random.default_rng(7), 200, 6).astype(np.float64)
    encode = spherical(train, 8, np.random.default_rng(0))
    pivots, radii = slow_spheres(train, 8, np.random.default_rng(0), moves)
    np.testing.assert_allclose(encode.pivots, pivots)
    np.testing.assert_allclose(np.sqrt(encode.squared_radii), radii)
    inside = np.linalg.norm(train[:, None] - pivots, axis=2) <= radii
    assert np.mean((encode(train) >= 0) == inside) > 0.99


@pytest.mark.parametrize(("dim", "bits"), [(24, 16), (24, 48)])
def test_spheres_hold_half_of_the_images_and_two_of_them_a_quarter(dim, bits):
    train = gaussian(np.random.default_rng(8), 2000, dim)
    inside = (spherical(train, bits, np.random.default_rng(0))(train) >= 0).astype(float)
    np.testing.assert_allclose(inside.mean(axis=0), 0.5, atol=2e-3)
    share = (inside.T @ inside / len(train))[~np.eye(bits, dtype=bool)]
    assert np.abs(share - 0.25).mean() <= 0.1 * 0.25 * 1.05
    assert share.std() <= 0.15 * 0.25 * 1.05


def test_spheres_of_images_that_are_all_equal():
    train = np.ones((10, 4), np.float32)
    encode = spherical(train, 8, np.random.default_rng(0))
    assert np.isfinite(encode(train)).all()
    assert np.isfinite(encode(train + 1)).all()


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
    queries = np.arange(0, 120, 6)
    by_method, made = read_baseline_precision(queries, ["10", "50", "all"])
    assert made == provenance and list(by_method) == list(METHODS)
    for name, precision in by_method.items():
        for cutoff, key in (("10", "map_at_10_tie_aware"), ("50", "map_at_50_tie_aware"), ("all", "map_all_tie_aware")):
            assert precision[cutoff].shape == (20,) and precision[cutoff].mean() == pytest.approx(report[name][key])
    with pytest.raises(InputError, match=r"baselines_query_precision\.parquet: has other queries than the codes; reb"):
        read_baseline_precision(queries + 1, ["all"])


def test_every_method_has_a_title_and_a_line_of_its_own_in_the_plots(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    from stages.evaluate import plots

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, *_, label, **style: drawn.append((label, style)))
    names = [*METHODS, *plots.REFERENCES, "another", "the run"]
    curves = {name: [(0.0, 1.0), (1.0, 0.2)] for name in names}
    plots.draw_precision_recall(tmp_path / "curves.png", curves, "the run", "title")
    assert plots.TITLES.keys() == {*METHODS, *plots.REFERENCES}
    assert len({label for label, _ in drawn}) == len(names) == 9
    assert len({(style["color"], style.get("ls", "-")) for _, style in drawn}) == len(names)
    assert [label for label, style in drawn if style["lw"] > 2] == ["the run"]


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
    assert read_baseline_precision(np.arange(0, 120, 6), [])[0] == {}
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

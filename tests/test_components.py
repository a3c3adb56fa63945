"""Semantic components: the mixture against scikit-learn's own numbers, the hierarchy, and what is stored."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from stages.artifacts import COMPONENTS, FEATURES, PROVENANCE_KEY, Provenance
from stages.components.config import Params
from stages.components.mixture import (
    Mixture,
    coarse_assignment,
    coarse_level,
    cooccurrence,
    fine_assignment,
    fit_mixture,
    responsibilities,
    sign,
)
from stages.components.stage import run
from stages.errors import InputError
from stages.params import parse


def blobs(n: int = 200, d: int = 4, clusters: int = 5, spread: float = 0.6, seed: int = 0) -> np.ndarray:
    """Overlapping clusters: rows (n, d)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((clusters, d))[np.arange(n) % clusters] + spread * rng.standard_normal((n, d))


def in_scikit_learn(mixture: Mixture) -> GaussianMixture:
    """The same mixture as an estimator of scikit-learn."""
    model = GaussianMixture(len(mixture.weights), covariance_type="diag")
    model.weights_, model.means_, model.covariances_ = mixture.weights, mixture.means, mixture.variances
    model.precisions_cholesky_ = 1 / np.sqrt(mixture.variances)
    return model


def test_responsibilities_are_those_of_scikit_learn() -> None:
    rows = blobs()
    mixture = fit_mixture(rows, 5, seed=0)
    posterior, log_likelihood = responsibilities(rows, mixture)
    model = in_scikit_learn(mixture)
    assert posterior.max(axis=1).min() < 0.9  # the clusters do overlap
    np.testing.assert_allclose(posterior, model.predict_proba(rows), atol=1e-10)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-12)
    assert log_likelihood == pytest.approx(model.score(rows) * len(rows))


def test_responsibilities_of_rows_far_from_everything() -> None:
    mixture = fit_mixture(blobs(), 5, seed=0)
    rows = np.array([[1e3] * 4, [-1e3] * 4])
    posterior, log_likelihood = responsibilities(rows, mixture)
    np.testing.assert_allclose(posterior, in_scikit_learn(mixture).predict_proba(rows), atol=1e-6)
    assert np.isfinite(log_likelihood)


def test_the_fit_is_that_of_scikit_learn() -> None:
    rows = blobs()
    mixture = fit_mixture(rows, 5, seed=3, iterations=40, reg_covar=1e-3)
    model = GaussianMixture(
        5, covariance_type="diag", init_params="k-means++", max_iter=40, reg_covar=1e-3, random_state=3
    ).fit(rows)
    np.testing.assert_array_equal(mixture.means, model.means_)
    np.testing.assert_array_equal(mixture.variances, model.covariances_)
    assert (mixture.converged, mixture.iterations) == (model.converged_, model.n_iter_)
    assert mixture.log_likelihood == pytest.approx(model.lower_bound_)
    assert mixture.weights.sum() == pytest.approx(1)


def test_more_iterations_never_fit_worse() -> None:
    rows = blobs()
    likelihoods = [responsibilities(rows, fit_mixture(rows, 6, seed=0, iterations=i))[1] for i in (1, 2, 4, 8, 16)]
    assert likelihoods == sorted(likelihoods)
    assert likelihoods[-1] > likelihoods[0]


def test_a_warm_start_goes_on_from_where_it_is() -> None:
    rows = blobs()
    at_once = fit_mixture(rows, 6, seed=0, iterations=6)
    half = fit_mixture(rows, 6, seed=0, iterations=3)
    resumed = fit_mixture(rows, 6, seed=99, iterations=3, start=half)
    assert at_once.iterations == 6  # not converged before
    np.testing.assert_allclose(resumed.means, at_once.means, atol=1e-9)
    np.testing.assert_allclose(resumed.variances, at_once.variances, atol=1e-9)


def test_the_seed_decides() -> None:
    rows = blobs()
    one, same, other = (fit_mixture(rows, 8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.means, same.means)
    assert not np.array_equal(one.means, other.means)


def test_more_components_than_rows_say_so() -> None:
    with pytest.raises(InputError, match=r"components\.fine: 6 components for 5 .*set at most 5"):
        fit_mixture(blobs(5), 6, seed=0)


def test_as_many_components_as_rows() -> None:
    rows = blobs(6)
    mixture = fit_mixture(rows, 6, seed=0)
    posterior, _ = responsibilities(rows, mixture)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert sorted(posterior.argmax(axis=1)) == list(range(6))


def test_one_component_is_the_mean_and_the_variance() -> None:
    rows = blobs()
    mixture = fit_mixture(rows, 1, seed=0, reg_covar=1e-4)
    np.testing.assert_allclose(mixture.means, [rows.mean(axis=0)])
    np.testing.assert_allclose(mixture.variances, [rows.var(axis=0) + 1e-4])
    np.testing.assert_array_equal(responsibilities(rows, mixture)[0], np.ones((200, 1)))


@pytest.mark.parametrize("components", [1, 3, 10])
def test_identical_rows(components: int) -> None:
    rows = np.full((10, 3), 0.7)
    mixture = fit_mixture(rows, components, seed=0, reg_covar=1e-4)
    np.testing.assert_allclose(mixture.means, np.full((components, 3), 0.7))
    np.testing.assert_allclose(mixture.variances, 1e-4, rtol=1e-6)
    posterior, log_likelihood = responsibilities(rows, mixture)
    np.testing.assert_allclose(posterior.sum(axis=1), 1)
    assert np.isfinite(log_likelihood)
    hierarchy = coarse_level(mixture.means, min(2, components), 0)
    assert set(hierarchy.labels) <= {0, 1}


def test_a_mixture_that_cannot_be_fitted_says_what_to_change() -> None:
    rows = np.repeat(3 * blobs(5, 8), 10, axis=0)
    with pytest.raises(InputError, match=r"fewer components\.fine or a larger components\.reg_covar") as error:
        fit_mixture(rows, 7, seed=0, reg_covar=1e-30)
    assert "\n" not in str(error.value)


def test_assignments() -> None:
    posterior = np.array([[0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    fine = fine_assignment(posterior)
    np.testing.assert_allclose((fine**2).sum(axis=1), 1)
    np.testing.assert_allclose(fine[0] / fine[0, 0], [1, 0.5, 1 / 6])
    coarse = coarse_assignment(fine, np.array([1, 0, 1]), 3)
    np.testing.assert_allclose(coarse, [[fine[0, 1], fine[0, 0] + fine[0, 2], 0], [0, 1, 0]])


def test_cooccurrence_is_the_mean_of_joint_responsibilities() -> None:
    posterior = np.random.default_rng(0).dirichlet(np.ones(3), 7)
    expected = np.mean([np.outer(row, row) for row in posterior], axis=0)
    found = cooccurrence(posterior)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found, found.T)
    assert found.sum() == pytest.approx(1)


def test_sign_of_zero_is_one() -> None:
    np.testing.assert_array_equal(sign(np.array([0.0, -0.0, 1e-9, -1e-9, -3])), [1, 1, 1, -1, -1])


def test_the_coarse_level_groups_near_means() -> None:
    centres = np.array([[0.0, 10], [10, 0], [-10, -10]])
    means = centres[[0, 1, 2, 2, 1, 0, 0]] + 0.1 * np.random.default_rng(0).standard_normal((7, 2))
    hierarchy = coarse_level(means, 3, seed=0)
    assert hierarchy.labels.dtype == np.int32
    assert len(set(hierarchy.labels)) == 3
    assert [np.flatnonzero(hierarchy.labels == hierarchy.labels[i]).tolist() for i in (0, 1, 2)] == [
        [0, 5, 6], [1, 4], [2, 3],
    ]  # fmt: skip
    for label in range(3):
        np.testing.assert_allclose(hierarchy.centres[label], means[hierarchy.labels == label].mean(axis=0))
    np.testing.assert_array_equal(coarse_level(means, 3, seed=0).labels, hierarchy.labels)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("coarse", 9, "coarse (9) must be at most fine (8)"),
        ("fine", 0, "components.fine"),
        ("reg_covar", 0.0, "components.reg_covar"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed"),
    ],
)
def test_bad_parameters_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        params(**{key: value})


def params(seed: int = 0, **changes: object) -> Params:
    section = {"fine": 8, "coarse": 3, "pca": 6, "iterations": 50, "reg_covar": 1e-4, "top": 3, **changes}
    return parse(Params, {"seed": seed, "components": section})


ORIGIN = Provenance("extract", "d" * 64, "e" * 64)


def write_features(images: np.ndarray, train_id: np.ndarray) -> None:
    FEATURES.parent.mkdir(exist_ok=True)
    rows = images / np.linalg.norm(images, axis=1, keepdims=True)
    with h5py.File(FEATURES, "w") as file:
        file.attrs[PROVENANCE_KEY] = ORIGIN.to_json()
        file["image/features"], file["image/id"] = rows.astype(np.float16), np.arange(len(rows))
        file["train/views"], file["train/id"] = rows[train_id][None].astype(np.float16), train_id


TRAIN_ID = np.arange(0, 200, 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_features(blobs(200, 12), TRAIN_ID)
    return tmp_path


def test_the_stage_writes_the_hierarchy(here: Path) -> None:
    run(params())
    with h5py.File(COMPONENTS) as file:
        provenance = Provenance.from_json(file.attrs[PROVENANCE_KEY], COMPONENTS)
        arrays = {name: file[name][:] for name in (
            "weights", "means", "variances", "coarse_labels", "coarse_centres", "cooccurrence",
            "responsibilities/index", "responsibilities/value", "train/id", "pca/mean", "pca/components",
        )}  # fmt: skip
        assert file.attrs["converged"] == (file.attrs["iterations"] < 50)
        assert np.isfinite(file.attrs["log_likelihood"])
    assert (provenance.stage, provenance.dataset, provenance.model) == ("components", ORIGIN.dataset, ORIGIN.model)
    assert provenance.params == {**params().components.model_dump(), "seed": 0}
    shapes = {name: array.shape for name, array in arrays.items()}
    assert shapes == {
        "weights": (8,), "means": (8, 6), "variances": (8, 6), "coarse_labels": (8,), "coarse_centres": (3, 6),
        "cooccurrence": (8, 8), "responsibilities/index": (100, 3), "responsibilities/value": (100, 3),
        "train/id": (100,), "pca/mean": (12,), "pca/components": (6, 12),
    }  # fmt: skip
    np.testing.assert_array_equal(arrays["train/id"], TRAIN_ID)

    # Everything in it hangs together: the features, reduced, have these responsibilities in this mixture.
    with h5py.File(FEATURES) as file:
        images = file["image/features"][:][TRAIN_ID].astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    reduced = (images - arrays["pca/mean"]) @ arrays["pca/components"].T
    mixture = Mixture(*(arrays[name].astype(np.float64) for name in ("weights", "means", "variances")))
    posterior, _ = responsibilities(reduced, mixture)
    index, value = arrays["responsibilities/index"], arrays["responsibilities/value"]
    np.testing.assert_allclose(value, np.take_along_axis(posterior, index, axis=1), atol=1e-3)
    np.testing.assert_allclose(value, -np.sort(-posterior, axis=1)[:, :3], atol=1e-3)
    assert (np.diff(value, axis=1) <= 0).all()
    np.testing.assert_allclose(arrays["cooccurrence"], posterior.T @ posterior / 100, atol=1e-3)
    assert set(arrays["coarse_labels"]) == {0, 1, 2}


def test_the_stage_reproduces_itself_byte_by_byte(here: Path) -> None:
    run(params())
    before = COMPONENTS.read_bytes()
    run(params())
    assert COMPONENTS.read_bytes() == before
    run(params(seed=1))
    assert COMPONENTS.read_bytes() != before


def test_more_responsibilities_than_components_are_all_of_them(here: Path) -> None:
    run(params(top=50, pca=500))
    with h5py.File(COMPONENTS) as file:
        np.testing.assert_allclose(file["responsibilities/value"][:].sum(axis=1), 1, rtol=1e-5)
        assert file["pca/components"].shape == (12, 12)


@pytest.mark.parametrize(("images", "message"), [(7, "set at most 7"), (1, "at least 2"), (0, "at least 2")])
def test_too_few_images_are_an_error(here: Path, images: int, message: str) -> None:
    write_features(blobs(20, 12), np.arange(images))
    with pytest.raises(InputError, match=message):
        run(params())
    assert not COMPONENTS.exists()

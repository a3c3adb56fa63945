"""Semantic components: the mixture against scikit-learn's own numbers, the hierarchy, and what is stored."""

import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from stages import device
from stages.artifacts import COMPONENTS, FEATURES, PROVENANCE_KEY, Provenance
from stages.components import stage
from stages.components.artifact import read_components
from stages.components.config import Params
from stages.components.density import Mixture
from stages.components.mixture import (
    assign,
    coarse_assignment,
    coarse_level,
    fine_assignment,
    fit_mixture,
    membership,
    responsibilities,
    sign,
)
from stages.components.reduction import regularisation
from stages.components.stage import reduce, run, where
from stages.errors import InputError
from stages.features import Features
from stages.hdf5 import write_text
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
    np.testing.assert_allclose(mixture.means, model.means_, rtol=1e-9)
    np.testing.assert_allclose(mixture.variances, model.covariances_, rtol=1e-9)
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


def log_likelihoods(rows: np.ndarray, start: Mixture, steps: int, reg_covar: float) -> list[float]:
    """Of the mixture after each of `steps` single EM iterations from `start`."""
    found, mixture = [], start
    for _ in range(steps):
        mixture = fit_mixture(rows, len(start.weights), seed=0, iterations=1, reg_covar=reg_covar, start=mixture)
        found.append(responsibilities(rows, mixture)[1])
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("clusters", [2, 6, 12])
def test_no_step_of_em_lowers_the_likelihood(seed: int, clusters: int) -> None:
    rows = blobs(seed=seed)
    rng = np.random.default_rng(seed)
    start = Mixture(rng.dirichlet(np.ones(clusters)), rng.standard_normal((clusters, 4)), np.ones((clusters, 4)))
    found = log_likelihoods(rows, start, 25, reg_covar=1e-9)  # with more of it, an iteration is no exact M-step
    assert found[-1] > found[0]
    assert (np.diff(found) >= -1e-6 * np.abs(found[0])).all()


def test_kmeans_is_that_of_scikit_learn() -> None:
    rows = blobs()
    mixture = fit_mixture(rows, 5, seed=3, iterations=50, reg_covar=1e-3, kind="kmeans")
    model = KMeans(5, n_init=1, max_iter=50, random_state=3).fit(rows)
    np.testing.assert_array_equal(mixture.means, model.cluster_centers_)
    np.testing.assert_array_equal(mixture.weights, np.full(5, 0.2))
    np.testing.assert_allclose(mixture.variances, model.inertia_ / rows.size + 1e-3)
    assert mixture.converged and mixture.iterations == model.n_iter_
    assert mixture.log_likelihood == pytest.approx(responsibilities(rows, mixture)[1] / len(rows))
    # The likeliest component is the cluster; softly, the odds are those of the squared distances.
    np.testing.assert_array_equal(assign(rows, mixture, "hard"), np.eye(5)[model.labels_])
    soft = assign(rows, mixture, "soft")
    squared = ((rows[:, None] - model.cluster_centers_) ** 2).sum(axis=2)
    expected = np.exp(-squared / (2 * mixture.variances[0, 0]))
    np.testing.assert_allclose(soft, expected / expected.sum(axis=1, keepdims=True))


def test_kmeans_goes_on_from_a_start() -> None:
    rows = blobs()
    far = Mixture(np.full(2, 0.5), np.array([[9.0] * 4, [-9.0] * 4]), np.ones((2, 4)))
    one, other = (fit_mixture(rows, 2, seed=seed, iterations=1, start=far, kind="kmeans") for seed in (0, 1))
    np.testing.assert_array_equal(one.means, other.means)  # nothing is drawn
    near = rows @ np.ones(4) >= 0  # nearest of the two
    expected = [rows[near].mean(axis=0), rows[~near].mean(axis=0)]
    np.testing.assert_allclose(one.means, expected)


def test_kmeans_of_fewer_distinct_rows_than_components() -> None:
    rows = np.repeat(blobs(3), 5, axis=0)
    mixture = fit_mixture(rows, 6, seed=0, kind="kmeans")
    for assignment in ("soft", "hard"):
        posterior = assign(rows, mixture, assignment)
        np.testing.assert_allclose(posterior.sum(axis=1), 1)
        assert np.isfinite(fine_assignment(posterior)).all()


def test_a_hard_assignment_is_the_likeliest_component() -> None:
    rows = blobs()
    mixture = fit_mixture(rows, 5, seed=0)
    soft, hard = (assign(rows, mixture, assignment) for assignment in ("soft", "hard"))
    np.testing.assert_array_equal(soft, responsibilities(rows, mixture)[0])
    assert set(np.unique(hard)) == {0, 1} and (hard.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(hard.argmax(axis=1), soft.argmax(axis=1))


def test_assignments() -> None:
    posterior = np.array([[0.6, 0.3, 0.1], [0.0, 0.0, 1.0]])
    fine = fine_assignment(posterior)
    np.testing.assert_allclose((fine**2).sum(axis=1), 1)
    np.testing.assert_allclose(fine[0] / fine[0, 0], [1, 0.5, 1 / 6])
    coarse = coarse_assignment(fine, np.array([1, 0, 1]), 3)
    np.testing.assert_allclose(coarse, [[fine[0, 1], fine[0, 0] + fine[0, 2], 0], [0, 1, 0]])


@pytest.mark.parametrize("assignment", ["soft", "hard"])
def test_what_is_kept_of_the_responsibilities_is_that_of_all_of_them(assignment: str) -> None:
    rows = blobs(3000).astype(np.float32)  # several chunks
    mixture = fit_mixture(rows, 7, seed=0, iterations=3)
    posterior = assign(rows, mixture, assignment).astype(np.float64)
    kept = membership(rows, mixture, assignment, 3)
    assert (kept.index.dtype, kept.value.dtype, kept.cooccurrence.dtype) == (np.int32, np.float32, np.float32)
    np.testing.assert_allclose(kept.value, -np.sort(-posterior, axis=1)[:, :3], atol=1e-6)
    np.testing.assert_allclose(kept.value, np.take_along_axis(posterior, kept.index, axis=1), atol=1e-6)
    assert all(len(set(row)) == 3 for row in kept.index.tolist())
    expected = np.einsum("nk,nl->kl", posterior, posterior) / len(rows)
    np.testing.assert_allclose(kept.cooccurrence, expected, atol=1e-6)
    assert kept.cooccurrence.sum() == pytest.approx(1, rel=1e-5)


def test_regularisation_is_a_share_of_the_largest_variance() -> None:
    rows = blobs() * [1, 2, 3, 4]
    assert regularisation(rows, 0.5) == pytest.approx(0.5 * PCA(4).fit_transform(rows)[:, 0].var())
    assert regularisation(10 * rows, 0.5) == pytest.approx(100 * regularisation(rows, 0.5))
    assert regularisation(rows[:, :1], 0.5) == pytest.approx(0.5 * rows[:, 0].var())
    assert regularisation(np.ones((5, 4)), 0.5) == 1e-6  # equal images have no variance


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
        ("mixture", "k-means", "components.mixture: 'k-means' is not allowed: input should be 'gaussian' or 'kmeans'"),
        ("assignment", "half", "components.assignment: 'half' is not allowed: input should be 'soft' or 'hard'"),
        ("covariance", "tied", "'tied' is not allowed: input should be 'diagonal', 'spherical' or 'full'"),
        ("batch", 7, "batch (7) must be at least fine (8), or null"),
        ("batch", 0, "components.batch"),
        ("seed", -1, "seed"),
        ("seed", 2**32, "seed"),
    ],
)
def test_bad_parameters_are_named(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        params(**{key: value})


def params(seed: int = 0, **changes: object) -> Params:
    section = {
        "mixture": "gaussian", "covariance": "diagonal", "assignment": "soft", "fine": 8, "coarse": 3, "pca": 6,
        "iterations": 50, "batch": None, "reg_covar": 1e-4, "top": 3, **changes,
    }  # fmt: skip
    return parse(Params, {"seed": seed, "device": "cpu", "components": section})


ORIGIN = Provenance("extract", "d" * 64, "e" * 64)


def write_features(images: np.ndarray, train_id: np.ndarray) -> None:
    FEATURES.parent.mkdir(exist_ok=True)
    rows = images / np.linalg.norm(images, axis=1, keepdims=True)
    with h5py.File(FEATURES, "w") as file:
        write_text(file, PROVENANCE_KEY, ORIGIN.to_json())
        file["image/features"], file["image/id"] = rows.astype(np.float16), np.arange(len(rows))
        file["train/views"], file["train/id"] = rows[train_id][None].astype(np.float16), train_id


def features_of(train_id: np.ndarray) -> np.ndarray:
    """Unit rows float64 of the training images, as they are stored."""
    with h5py.File(FEATURES) as file:
        images = file["image/features"][:][train_id].astype(np.float64)
    return images / np.linalg.norm(images, axis=1, keepdims=True)


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
    reduced = (features_of(TRAIN_ID) - arrays["pca/mean"]) @ arrays["pca/components"].T
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


@pytest.mark.parametrize("mixture", ["gaussian", "kmeans"])
def test_regularisation_makes_components_soft(here: Path, mixture: str) -> None:
    shares = []
    for share in (1e-4, 0.1):
        run(params(reg_covar=share, mixture=mixture))
        with h5py.File(COMPONENTS) as file:
            reduced = (features_of(TRAIN_ID) - file["pca/mean"][:]) @ file["pca/components"][:].T
            assert file["variances"][:].min() >= 0.999 * share * reduced[:, 0].var()
            shares.append(file["responsibilities/value"][:, 0].mean())
    assert shares[0] > shares[1] + 0.05  # of the likeliest component


@pytest.mark.parametrize("mixture", ["gaussian", "kmeans"])
def test_a_hard_assignment_is_stored(here: Path, mixture: str) -> None:
    run(params(mixture=mixture, assignment="hard"))
    components = read_components()
    np.testing.assert_array_equal(components.top_value, np.tile([1, 0, 0], (100, 1)))
    assert components.options == params(mixture=mixture, assignment="hard").components
    with h5py.File(COMPONENTS) as file:
        shares = np.bincount(components.top_index[:, 0], minlength=8) / 100
        np.testing.assert_allclose(file["cooccurrence"][:], np.diag(shares), atol=1e-7)


def test_kmeans_is_stored_as_its_mixture(here: Path) -> None:
    run(params(mixture="kmeans"))
    with h5py.File(COMPONENTS) as file:
        np.testing.assert_allclose(file["weights"][:], 1 / 8)
        assert len(np.unique(file["variances"][:])) == 1
        assert np.isfinite(file.attrs["log_likelihood"])
        assert file["responsibilities/value"][:].max(axis=1).min() < 1  # soft


def test_components_that_do_not_say_how_they_were_made_are_refused(here: Path) -> None:
    run(params())
    with h5py.File(COMPONENTS, "a") as file:
        write_text(file, PROVENANCE_KEY, Provenance("components", ORIGIN.dataset, ORIGIN.model).to_json())
    with pytest.raises(InputError, match=r"data/components\.h5: does not say how .*`dvc repro components`"):
        _ = read_components().options


@pytest.mark.parametrize("covariance", ["spherical", "full"])
def test_other_covariances_are_stored(here: Path, covariance: str) -> None:
    run(params(covariance=covariance, reg_covar=0.01))
    with h5py.File(COMPONENTS) as file:
        variances = file["variances"][:]
    if covariance == "full":
        assert variances.shape == (8, 6, 6)
        np.testing.assert_array_equal(variances, variances.transpose(0, 2, 1))
        assert np.abs(variances[:, ~np.eye(6, dtype=bool)]).max() > 1e-4
    else:
        np.testing.assert_array_equal(variances, np.tile(variances[:, :1], 6))
    assert read_components().options.covariance == covariance


def test_the_size_of_the_blocks_that_features_are_read_in_changes_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some blocks are without training images."""
    train_id = np.concatenate([np.arange(0, 60, 2), np.arange(120, 200, 3)])
    write_features(blobs(200, 12), train_id)
    with Features() as features:
        axes, whole = reduce(features, 6)
        monkeypatch.setattr(stage, "BLOCK", 7)
        other, parts = reduce(features, 6)
    np.testing.assert_allclose(other.components, axes.components, atol=1e-6)
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    images = features_of(train_id)
    np.testing.assert_allclose(parts, (images - images.mean(axis=0)) @ axes.components.T, atol=1e-5)


@pytest.mark.parametrize("mixture", ["gaussian", "kmeans"])
def test_batches_are_reached_by_a_parameter(here: Path, mixture: str) -> None:
    """They fit another mixture, of nearly the same likelihood."""
    found = []
    for batch in (None, 50, 1000):
        run(params(mixture=mixture, batch=batch, reg_covar=0.05))
        with h5py.File(COMPONENTS) as file:
            found.append((file["means"][:], file.attrs["log_likelihood"]))
    assert not np.array_equal(found[0][0], found[1][0])
    assert found[1][1] == pytest.approx(found[0][1], abs=0.5)
    np.testing.assert_array_equal(found[0][0], found[2][0])  # a batch of all images is all of them


def test_a_gpu_is_looked_for_where_the_work_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "resolve_device", lambda name: f"found for {name}")
    section = params().components.model_dump()
    auto, cuda = (parse(Params, {"seed": 0, "device": name, "components": section}) for name in ("auto", "cuda"))
    assert where(params(), 10**9) == "cpu"
    assert (where(auto, 10**6), where(auto, 10**8)) == ("cpu", "found for auto")
    assert where(cuda, 10) == "found for cuda"


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

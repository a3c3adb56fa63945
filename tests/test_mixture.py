"""EM of Gaussian mixtures: against scikit-learn, its likelihood, its memory, what it does with poor components."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from stages.components import density, em
from stages.components.density import Densities, DeviceDensities, Mixture
from stages.components.mixture import fit_mixture, responsibilities
from stages.components.reduction import moments, principal_axes
from stages.errors import InputError

FORMS = {"diagonal": "diag", "spherical": "spherical", "full": "full"}
each_form = pytest.mark.parametrize("covariance", FORMS)


def clustered(n: int = 3000, d: int = 8, clusters: int = 20, spread: float = 0.5, seed: int = 0) -> np.ndarray:
    """Rows float64 (n, d) around centres, wider along some axes than along others."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((clusters, d))
    scale = spread * rng.uniform(0.5, 1.5, (clusters, d))
    group = rng.integers(0, clusters, n)
    return centres[group] + scale[group] * rng.standard_normal((n, d))


def first(rows: np.ndarray, components: int, covariance: str) -> Mixture:
    """A start of unit covariances on random rows."""
    means = rows[np.random.default_rng(1).choice(len(rows), components, replace=False)].astype(np.float64)
    ones = np.ones_like(means)
    variances = ones[:, :, None] * np.eye(rows.shape[1]) if covariance == "full" else ones
    return Mixture(np.full(components, 1 / components), means, variances)


def in_scikit_learn(start: Mixture, covariance: str, rows: np.ndarray, iterations: int) -> GaussianMixture:
    """As many EM iterations from the same start; all variances of a start are 1."""
    m1, d = start.means.shape
    precisions = {"diagonal": np.ones((m1, d)), "spherical": np.ones(m1), "full": np.tile(np.eye(d), (m1, 1, 1))}
    model = GaussianMixture(
        m1, covariance_type=FORMS[covariance], tol=0, reg_covar=1e-4, max_iter=iterations, weights_init=start.weights,
        means_init=start.means, precisions_init=precisions[covariance],
    )  # fmt: skip
    with pytest.warns(match="did not converge"):
        return model.fit(rows)


@each_form
@pytest.mark.parametrize(("kind", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_it_is_as_likely_as_scikit_learns(covariance: str, kind: Any, tolerance: float) -> None:
    rows = (10 + clustered()).astype(kind)  # far from 0
    start = first(rows, 20, covariance)
    model = in_scikit_learn(start, covariance, rows, 12)
    mixture = em.fit(rows, start, covariance, iterations=12, reg_covar=1e-4, tolerance=-np.inf)
    assert (mixture.iterations, mixture.reseeded) == (12, 0)
    assert mixture.log_likelihood == pytest.approx(model.lower_bound_, rel=tolerance)
    _, likelihood = responsibilities(rows.astype(np.float64), mixture)
    assert likelihood / len(rows) == pytest.approx(model.score(rows.astype(np.float64)), rel=tolerance)
    covariances = model.covariances_[:, None] if covariance == "spherical" else model.covariances_
    wide = kind == np.float64
    np.testing.assert_allclose(mixture.means, model.means_, atol=1e-7 if wide else 1e-2)
    np.testing.assert_allclose(mixture.variances - covariances, 0, atol=1e-7 if wide else 1e-2)


@each_form
def test_responsibilities_in_single_precision(covariance: str) -> None:
    rows = 100 + clustered()
    mixture = em.fit(rows, first(rows, 20, covariance), covariance, iterations=5, reg_covar=1e-4)
    double, single = (responsibilities(rows.astype(kind), mixture) for kind in (np.float64, np.float32))
    assert single[0].dtype == np.float32
    np.testing.assert_allclose(single[0], double[0], atol=2e-3)
    assert single[1] == pytest.approx(double[1], rel=1e-5)


def test_variances_too_small_for_single_precision_are_worked_on_in_double() -> None:
    rows = np.repeat(clustered(50).astype(np.float32), 20, axis=0)
    narrow = first(rows, 50, "diagonal")
    narrow = Mixture(narrow.weights, narrow.means, 1e-7 * narrow.variances)
    assert Densities(first(rows, 50, "diagonal"), "diagonal").dtype == np.float32
    assert Densities(narrow, "diagonal").dtype == np.float64
    _, single = responsibilities(rows, narrow)
    assert single == pytest.approx(responsibilities(rows.astype(np.float64), narrow)[1], rel=1e-5)


@each_form
@pytest.mark.parametrize("reg_covar", [1e-9, 0.01, 0.5])
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_the_likelihood_never_falls(covariance: str, reg_covar: float, kind: Any) -> None:
    """Whatever is added to the variances, which is why an M-step does not find the likeliest ones."""
    rows = clustered(1200, 4).astype(kind)
    found: list[float] = []
    start = first(rows, 12, covariance)
    mixture = em.fit(rows, start, covariance, iterations=60, reg_covar=reg_covar, report=found.append)
    assert mixture.reseeded == 0 and len(found) >= 3
    kept = found if mixture.log_likelihood == found[-1] else found[:-1]  # a step that is not taken
    assert mixture.log_likelihood == kept[-1] == max(kept)
    assert (np.diff(kept) >= -1e-6 * np.abs(kept[0])).all()
    _, likelihood = responsibilities(rows.astype(np.float64), mixture)
    assert likelihood / len(rows) >= kept[-1] - 1e-3


def test_a_step_that_lowers_the_likelihood_is_not_taken() -> None:
    rows = clustered(500, 4)
    best = fit_mixture(rows, 5, seed=0, reg_covar=1e-9, iterations=200)
    after = em.fit(rows, best, "diagonal", iterations=10, reg_covar=0.5)
    assert (after.converged, after.iterations) == (True, 2)
    np.testing.assert_array_equal(after.means, best.means)
    assert after.log_likelihood == pytest.approx(responsibilities(rows, best)[1] / len(rows))


def test_convergence_is_reported() -> None:
    rows, found = clustered().astype(np.float32), []
    mixture = fit_mixture(rows, 20, seed=0, report=found.append)
    assert mixture.converged and 3 < mixture.iterations == len(found) < 100
    assert mixture.log_likelihood == found[-1]
    assert found[-1] - found[-2] < em.TOLERANCE <= found[-2] - found[-3]
    cut = fit_mixture(rows, 20, seed=0, iterations=3)
    assert (cut.converged, cut.iterations) == (False, 3)


@each_form
def test_dead_components_come_back_to_life(covariance: str) -> None:
    rows = clustered(2000, 4, clusters=6, spread=0.1, seed=1).astype(np.float32)
    good = fit_mixture(rows, 6, seed=0, covariance=covariance)
    means = good.means.copy()
    means[[1, 4]] = 1e3  # nowhere near a row
    mixture = fit_mixture(
        rows, 6, seed=0, covariance=covariance, start=Mixture(good.weights, means, good.variances), iterations=100
    )
    assert mixture.reseeded == 2
    assert mixture.weights.min() * 2000 > 20
    assert np.abs(mixture.means).max() < 5
    assert mixture.log_likelihood == pytest.approx(good.log_likelihood, abs=0.05)


@each_form
def test_components_that_collapsed_onto_one_row_are_moved_to_where_rows_are(covariance: str) -> None:
    rows = clustered(1000, 3, clusters=4, spread=0.2).astype(np.float32)
    good = fit_mixture(rows, 4, seed=0, covariance=covariance, reg_covar=1e-5)
    narrow = 1e-5 * (np.eye(3)[None] if covariance == "full" else np.ones((1, 3)))
    start = Mixture(
        np.append(good.weights * 0.999, 0.001), np.concatenate([good.means, rows[:1]]),
        np.concatenate([good.variances, narrow]),
    )  # fmt: skip
    stuck = fit_mixture(rows, 5, seed=0, covariance=covariance, reg_covar=1e-5, start=start, iterations=1)
    assert stuck.weights.min() * 1000 < 1.1  # as long as EM has not converged
    mixture = fit_mixture(rows, 5, seed=0, covariance=covariance, reg_covar=1e-5, start=start)
    assert mixture.reseeded == 1 and mixture.converged
    assert mixture.weights.min() * 1000 > 4


def test_halves_of_a_component_have_its_mean_and_its_covariance() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((4, 4))
    for variance in (rng.uniform(1, 2, 4), root @ root.T + np.eye(4)):
        shift, rest = em._halves(variance, 0.1)
        outer = shift**2 if variance.ndim == 1 else np.outer(shift, shift)
        np.testing.assert_allclose(rest + outer, variance)
        assert shift @ shift > 0.1
        if variance.ndim == 2:
            assert np.linalg.eigvalsh(rest).min() > 0.1
    shift, rest = em._halves(np.full(4, 2.0), 0.1)
    assert len(set(rest)) == 1 and rest.sum() + shift @ shift == pytest.approx(8)  # spherical stays spherical


# ---- batches


@pytest.mark.parametrize("seed", range(3))
def test_batches_fit_new_rows_as_well_as_all_at_once(seed: int) -> None:
    """In the mean of held-out rows they lose at most 0.1 nats; from the same start, they reach the same within 0.02."""
    rows = clustered(24_000, 16, clusters=40).astype(np.float32)
    seen, new = rows[:20_000], rows[20_000:]

    def held_out(**how: Any) -> float:
        return responsibilities(new, fit_mixture(seen, 40, seed=seed, **how))[1] / len(new)

    assert held_out(batch=1000) > held_out() - 0.1
    start = fit_mixture(seen, 40, seed=seed, iterations=2)
    assert held_out(batch=1000, start=start) == pytest.approx(held_out(start=start), abs=0.02)


@each_form
def test_batches_of_rows_mapped_from_a_file(tmp_path: Path, covariance: str) -> None:
    rows = clustered(5000, 6).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    how: dict[str, Any] = {"seed": 3, "batch": 500, "iterations": 6, "covariance": covariance}
    one, same = (fit_mixture(of, 20, **how) for of in (mapped, rows))
    np.testing.assert_array_equal(one.means, same.means)
    assert one.log_likelihood == same.log_likelihood
    assert one.iterations <= 6 and one.weights.sum() == pytest.approx(1)
    whole = fit_mixture(rows, 20, seed=3, covariance=covariance)
    assert one.log_likelihood == pytest.approx(whole.log_likelihood, abs=0.1)


def test_dead_components_come_back_in_batches_too() -> None:
    rows = clustered(4000, 4, clusters=6, spread=0.1).astype(np.float32)
    good = fit_mixture(rows, 6, seed=0)
    means = good.means.copy()
    means[2] = 1e3
    mixture = fit_mixture(rows, 6, seed=0, start=Mixture(good.weights, means, good.variances), batch=400)
    assert mixture.reseeded >= 1
    assert mixture.weights.min() * 4000 > 20 and np.abs(mixture.means).max() < 5


# ---- memory, threads, devices


@pytest.mark.parametrize("batch", [None, 5000])
def test_memory_does_not_grow_with_the_responsibilities(batch: int | None) -> None:
    """n x m1 in single precision would be 80 MB."""
    rows = clustered(40_000, 4).astype(np.float32)
    start = first(rows, 500, "diagonal")
    tracemalloc.start()
    fit_mixture(rows, 500, seed=0, start=start, iterations=2, batch=batch)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * density.cores() * 4 * density.CPU_ENTRIES + 10e6 < 80e6 + 4e6 * density.cores()


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(60_000, 4).astype(np.float32)
    assert len(rows) * 30 > 2 * density.CPU_ENTRIES  # or there is but one
    found = []
    for count in (1, 2, 5):
        monkeypatch.setattr(density, "cores", lambda count=count: count)
        found.append(fit_mixture(rows, 30, seed=0, iterations=3))
    for other in found[1:]:
        np.testing.assert_array_equal(other.means, found[0].means)
        np.testing.assert_array_equal(other.variances, found[0].variances)
        assert other.log_likelihood == found[0].log_likelihood


@each_form
@pytest.mark.parametrize("name", ["moments", "likeliest", "responsibilities"])
def test_the_code_for_gpus_does_the_same(covariance: str, name: str) -> None:
    """On torch's CPU: what it finds is what the code for the CPU does."""
    rows = clustered(700).astype(np.float32)
    mixture = em.fit(rows, first(rows, 9, covariance), covariance, iterations=3, reg_covar=1e-3)
    of = Densities(mixture, covariance), DeviceDensities(mixture, covariance, device="cpu")
    (other, expected), (likelihood, found) = (getattr(one, name)(rows) for one in of)
    assert likelihood == pytest.approx(other, rel=1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-4 if name == "responsibilities" else 2e-3, rtol=1e-4)


def test_kmeans_of_our_own_is_that_of_scikit_learn() -> None:
    rows = clustered(2000).astype(np.float32)
    start = rows[:20].astype(np.float64)
    mixture = em.lloyd(rows, start, iterations=30, device="cpu")
    model = KMeans(20, init=start.astype(np.float32), n_init=1, max_iter=30).fit(rows)
    assert mixture.converged and mixture.reseeded == 0
    distortion = mixture.variances[0, 0] * rows.size
    assert distortion == pytest.approx(model.inertia_, rel=1e-3)
    np.testing.assert_allclose(mixture.means, model.cluster_centers_, atol=0.05)


def test_kmeans_of_our_own_moves_empty_clusters() -> None:
    rows = clustered(500, 3, clusters=5, spread=0.05).astype(np.float32)
    means = np.full((5, 3), 100.0)
    means[0] = rows.mean(axis=0)
    mixture = em.lloyd(rows, means, iterations=50, device="cpu")
    assert mixture.reseeded >= 4 and np.abs(mixture.means).max() < 5


# ---- degenerate rows


@each_form
@pytest.mark.parametrize("batch", [None, 200])
def test_degenerate_rows_have_a_mixture(covariance: str, batch: int | None) -> None:
    """Duplicates by the hundred, a dimension without variance, and one that is far from 0."""
    rows = np.repeat(clustered(5, 4, seed=2), 200, axis=0).astype(np.float32)
    rows[:, 1], rows[:, 3] = 0, 1000
    mixture = fit_mixture(rows, 8, seed=0, covariance=covariance, batch=batch, iterations=10)
    for array in (mixture.weights, mixture.means, mixture.variances):
        assert np.isfinite(array).all()
    posterior, likelihood = responsibilities(rows, mixture)
    np.testing.assert_allclose(posterior.sum(axis=1), 1, rtol=1e-4)
    assert np.isfinite(likelihood)
    np.testing.assert_allclose(posterior @ mixture.means, rows, atol=0.02)


@pytest.mark.parametrize("kind", ["gaussian", "kmeans"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(kind: str, value: float) -> None:
    rows = clustered(9000, 2)
    rows[8500, 1] = value
    with pytest.raises(InputError, match=r"components: row 8500 of the training images .*not finite") as error:
        fit_mixture(rows, 5, seed=0, kind=kind)
    assert "\n" not in str(error.value)


@each_form
def test_a_start_that_is_no_mixture_says_what_to_change(covariance: str) -> None:
    rows = clustered(100, 3)
    start = first(rows, 4, covariance)
    start.variances[2] = 0
    with pytest.raises(InputError, match=r"cannot be fitted .*larger components\.reg_covar"):
        fit_mixture(rows, 4, seed=0, start=start, covariance=covariance)


def test_principal_axes_of_blocks_are_those_of_all_rows() -> None:
    rows = 50 + clustered(1000, 6)
    axes = principal_axes(np.array_split(rows, 7), 3)
    mean, covariance = moments([rows])
    np.testing.assert_allclose(mean, rows.mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(rows.T, ddof=0), atol=1e-10)
    reduced = axes.project(rows)
    np.testing.assert_allclose(np.cov(reduced.T, ddof=0), np.diag(axes.variances), atol=1e-4)
    np.testing.assert_allclose(reduced.mean(axis=0), 0, atol=1e-4)
    assert (axes.components[np.arange(3), np.abs(axes.components).argmax(axis=1)] > 0).all()

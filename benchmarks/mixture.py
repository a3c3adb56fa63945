"""Gaussian mixtures and k-means against scikit-learn and faiss, a million rows in batches, and an E-step's share.

    python benchmarks/mixture.py

All peers compute in single precision, from the same means and with the same number of iterations: 10,000 rows of 64
dimensions, 1,000 components (20 of full covariances). Then a million rows that are mapped from a file, in batches; and
DSCH's E-step with the components of params.yaml, as a share of the six epochs to the next one, whose step is bare.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import yaml
from harness import REPEATS, machine, peak_memory, ratios, report, shown, spread, take_turns
from sklearn.cluster import KMeans
from sklearn.mixture import GaussianMixture

from stages.components import em
from stages.components.density import Mixture
from stages.components.mixture import fit_mixture, membership, responsibilities

ROOT = Path(__file__).parents[1]
N, D, COMPONENTS, ITERATIONS, REG_COVAR = 10_000, 64, 1000, 10, 1e-3
COMPARED = {"diagonal": COMPONENTS, "spherical": COMPONENTS, "full": 20}
PEERS = {"diagonal": "diag", "spherical": "spherical", "full": "full"}
MILLION, BATCH, PASSES = 1_000_000, 20_000, 5
BITS = 32


def drawn(n: int, seed: int) -> np.ndarray:
    """Rows float32 (n, 64) of 2,000 overlapping clusters."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((2000, D)).astype(np.float32)
    return centres[rng.integers(0, 2000, n)] + 0.7 * rng.standard_normal((n, D), np.float32)


def start_of(rows: np.ndarray, components: int, covariance: str) -> Mixture:
    """Unit covariances around the means of random groups of rows."""
    order = np.random.default_rng(1).permutation(len(rows))
    means = np.stack([rows[group[:5]].mean(axis=0) for group in np.array_split(order, components)]).astype(np.float64)
    variances = np.ones_like(means)
    if covariance == "full":
        variances = variances[:, :, None] * np.eye(D)
    return Mixture(np.full(components, 1 / components), means, variances)


def peer(rows: np.ndarray, start: Mixture, covariance: str) -> GaussianMixture:
    m1 = len(start.weights)
    precisions = {"diagonal": np.ones((m1, D)), "spherical": np.ones(m1), "full": np.tile(np.eye(D), (m1, 1, 1))}
    model = GaussianMixture(
        m1, covariance_type=PEERS[covariance], tol=0, reg_covar=REG_COVAR, max_iter=ITERATIONS,
        weights_init=start.weights.astype(np.float32), means_init=start.means.astype(np.float32),
        precisions_init=precisions[covariance].astype(np.float32),
    )  # fmt: skip
    with warnings.catch_warnings(action="ignore"):  # it has not converged
        return model.fit(rows)


@dataclass
class Compared:
    """Times of both, and by how much the likelihoods differ that they report, and that they have."""

    speed: list[float]
    seconds: dict[str, list[float]]
    reported: float
    true: float


def compare(covariance: str, components: int, repeats: int) -> Compared:
    rows = drawn(N, 2)
    start, found = start_of(rows, components, covariance), {}

    def keep(name: str, work: Callable[[], Any]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    def ours() -> Mixture:
        return em.fit(rows, start, covariance, iterations=ITERATIONS, reg_covar=REG_COVAR, tolerance=-np.inf)

    theirs = keep("peer", lambda: peer(rows, start, covariance))
    times = take_turns({"scikit-learn": theirs, "ours": keep("ours", ours)}, repeats)
    model, mixture = found["peer"], found["ours"]
    if mixture.iterations != ITERATIONS or mixture.reseeded:
        raise SystemExit("not the same iterations: other rows are needed")
    covariances = model.covariances_.astype(np.float64)
    if covariance == "spherical":
        covariances = np.repeat(covariances[:, None], D, axis=1)
    same = Mixture(model.weights_.astype(np.float64), model.means_.astype(np.float64), covariances)
    exact = [responsibilities(rows.astype(np.float64), one)[1] for one in (same, mixture)]
    return Compared(
        ratios(times["scikit-learn"], times["ours"]), times,
        abs(mixture.log_likelihood / float(model.lower_bound_) - 1), abs(exact[1] / exact[0] - 1),
    )  # fmt: skip


def clusters(repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of k-means from the same means, and the sum of square distances that each reaches."""
    rows = drawn(N, 2)
    means, found = start_of(rows, COMPONENTS, "diagonal").means.astype(np.float32), {}

    def distance(centres: np.ndarray) -> float:
        index = faiss.IndexFlatL2(D)
        index.add(centres.astype(np.float32))
        return float(index.search(rows, 1)[0].sum(dtype=np.float64))

    def scikit_learn() -> None:
        model = KMeans(COMPONENTS, init=means, n_init=1, max_iter=ITERATIONS, tol=0)
        with warnings.catch_warnings(action="ignore"):
            found["scikit-learn"] = model.fit(rows).cluster_centers_

    def of_faiss() -> None:
        model = faiss.Kmeans(D, COMPONENTS, niter=ITERATIONS, min_points_per_centroid=1, max_points_per_centroid=N)
        model.train(rows, init_centroids=means)
        found["faiss"] = model.centroids

    def ours() -> None:
        found["ours"] = em.lloyd(rows, means, iterations=ITERATIONS, device="cpu").means

    times = take_turns({"scikit-learn": scikit_learn, "faiss": of_faiss, "ours": ours}, repeats)
    return times, {name: distance(centres) for name, centres in found.items()}


def million(path: str) -> None:
    """Fit the rows of a file in batches, reduce their responsibilities, and write beside it what came of it."""
    rows, began = np.load(path, mmap_mode="r"), time.perf_counter()
    mixture = fit_mixture(rows, COMPONENTS, seed=0, iterations=PASSES, reg_covar=REG_COVAR, batch=BATCH)
    fitted = time.perf_counter()
    membership(rows, mixture, "soft", 8)
    ended, new = time.perf_counter(), drawn(N, 4)
    held_out = responsibilities(new, mixture)[1] / len(new)
    found = {"fit_s": fitted - began, "membership_s": ended - fitted, "held_out": held_out}
    Path(path).with_suffix(".json").write_text(json.dumps(found))


def at_once(rows: np.ndarray) -> dict[str, float]:
    """The same rows, as many passes: an iteration of EM over all of them each."""
    began = time.perf_counter()
    mixture, new = fit_mixture(rows, COMPONENTS, seed=0, iterations=PASSES, reg_covar=REG_COVAR), drawn(N, 4)
    return {"fit_s": time.perf_counter() - began, "held_out": responsibilities(new, mixture)[1] / len(new)}


def round_of(n: int, dim: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of an E-step and of the epochs up to the next one, of a head on n cached features; one thread, as there.

    The components and the head are those of params.yaml; the steps are taken on tensors in memory, nothing else.
    """
    import torch

    from stages.artifacts import Provenance
    from stages.components.artifact import Components
    from stages.components.config import Components as Options
    from stages.hashnet import HashNet, HashNetConfig, relaxed_codes
    from stages.train.config import Train
    from stages.train.estep import e_step, first_components
    from stages.train.losses import component_loss, cosine, instance_loss

    torch.set_num_threads(1)
    torch.manual_seed(0)
    defaults = yaml.safe_load((ROOT / "params.yaml").read_text())
    train, options = Train(**defaults["train"]), Options(**defaults["components"])
    rows = drawn(n, 3)[:, : options.pca]
    mixture = fit_mixture(rows, options.fine, seed=0, reg_covar=options.reg_covar * float(rows.var(axis=0).max()))
    kept = membership(rows, mixture, "soft", options.top)
    first = Components(
        mixture.weights, np.arange(options.fine) % options.coarse, kept.index, kept.value, np.arange(n),
        Provenance("components", "", "", params=options.model_dump()),
    )  # fmt: skip
    images = torch.nn.functional.normalize(torch.randn(n, dim), dim=1)
    net = HashNet(HashNetConfig(dim, train.hidden, BITS, "dsch"))
    optimizer = torch.optim.AdamW(net.parameters(), train.lr)
    state = {"parts": first_components(relaxed_codes(net, images), first)}

    def estimate() -> None:
        state["parts"] = e_step(relaxed_codes(net, images), state["parts"], options, 0)

    def epochs() -> None:
        parts, t = state["parts"], train.dsch.temperature
        for _ in range(train.dsch.round):
            for chosen in torch.randperm(n).tensor_split(-(-n // train.batch_size)):
                rows = chosen.repeat(2)
                codes, fine = net(images[rows]), parts.fine[rows]
                loss = (
                    instance_loss(cosine(codes, codes), fine @ fine.T, t)
                    + 0.1 * component_loss(codes, parts.fine_centres, parts.fine_prior, fine, t)
                    + 0.1 * component_loss(codes, parts.coarse_centres, parts.coarse_prior, parts.coarse[rows], t)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return take_turns({"e_step": estimate, "epochs": epochs}, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--million", metavar="FILE", help="fit the rows of this file, and do no more")
    arguments = parser.parse_args()
    if arguments.million:
        million(arguments.million)
        return
    compared = {form: compare(form, components, arguments.repeats) for form, components in COMPARED.items()}
    kmeans, distances = clusters(arguments.repeats)
    rounds = {n: round_of(n, dim, arguments.repeats) for n, dim in ((4000, 64), (10_000, 512))}
    shares = {n: spread([e / (e + m) for e, m in zip(times["e_step"], times["epochs"], strict=True)])
              for n, times in rounds.items()}  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.npy"
        rows = drawn(MILLION, 5)
        np.save(path, rows)
        whole = at_once(rows)
        del rows
        command = [sys.executable, __file__, "--million", str(path)]
        memory = peak_memory(command, ROOT, {"PYTHONPATH": str(ROOT)})
        done = json.loads(path.with_suffix(".json").read_text())
    result = {
        **machine("numpy", "scikit-learn", "faiss-cpu"), "repeats": arguments.repeats, "iterations": ITERATIONS,
        "mixtures": {form: vars(one) for form, one in compared.items()},
        "kmeans": {"seconds": kmeans, "distances": distances},
        "million": {**done, "passes": PASSES, "batch": BATCH, "memory_mb": memory, "at_once": whole},
        "e_step": {n: {"seconds": rounds[n], "share": shares[n]} for n in rounds},
    }  # fmt: skip
    scikit_learn = kmeans["scikit-learn"]
    lines = [
        "| mixtures, 10,000 rows x 64, single precision | |", "|---|---|",
        *(f"| {form}, {COMPARED[form]:,} components: times as fast as scikit-learn | "
          f"{shown(one.speed, 1)} |" for form, one in compared.items()),
        *(f"| {form}: relative difference of the likelihoods, reported, in double precision | {one.reported:.1e}, "
          f"{one.true:.1e} |" for form, one in compared.items()),
        *(f"| k-means, {name}: times as fast as scikit-learn, sum of distances | "
          f"{shown(ratios(scikit_learn, kmeans[name]))}, {distances[name]:.0f} |" for name in kmeans),
        f"| 1,000,000 rows from a file, 1,000 components: {PASSES} passes in batches of {BATCH:,} | "
        f"{done['fit_s']:.0f} s |",
        f"| their largest responsibilities and the co-occurrence | {done['membership_s']:.0f} s |",
        f"| peak memory, the mapped rows (256 MB) included | {memory:.0f} MB |",
        f"| log-likelihood of new rows, per row | {done['held_out']:.2f} |",
        f"| the same with as many iterations of EM over all rows, and their time | {whole['held_out']:.2f}, "
        f"{whole['fit_s']:.0f} s |",
        *(f"| E-step's share of a DSCH round, {n:,} images | {shown(share, 3)} |" for n, share in shares.items()),
    ]  # fmt: skip
    report("mixture", result, "\n".join(lines))


if __name__ == "__main__":
    main()

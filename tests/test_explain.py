"""What bits mean and components recover: every number against a slow loop or by hand, the stage, and the command."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from odd_pictures import UNREADABLE
from PIL import Image
from scipy.stats import pearsonr, pointbiserialr, spearmanr
from sklearn.metrics import normalized_mutual_info_score
from stage_runner import copy, outputs, pipeline, prepare

from stages.__main__ import one_line_errors
from stages.artifacts import (
    CLIP,
    CODES,
    COMPONENTS,
    CONCEPT_DISTRIBUTION,
    CONCEPTS,
    DATASET,
    EXPLAIN,
    FEATURES,
    HASHNET,
    IMAGES,
    Provenance,
    read_json,
    write_json,
)
from stages.backbone import BackboneConfig, BackboneNet, evaluation_pixels
from stages.codes import read_codes, unpack
from stages.components import stage as components
from stages.components.artifact import read_components
from stages.components.config import Params as ComponentsParams
from stages.components.density import Mixture
from stages.components.fitted import FittedComponents
from stages.encoder import Encoder
from stages.evaluate.reports import read_report
from stages.explain import figures, survey
from stages.explain.bits import BitMoments, Profile, hamming, likeness, strongest
from stages.explain.command import explain
from stages.explain.config import Params
from stages.explain.hierarchy import concept_hierarchy, jensen_shannon, top_entries
from stages.explain.inputs import Semantics, category_groups, naming, read_semantics
from stages.explain.reading import read_code
from stages.explain.recovery import (
    Found,
    by_members,
    by_mixture,
    category_chances,
    cooccurrence_correlation,
    in_groups,
    label_cooccurrence,
    partition_scores,
    recovery,
    single_class,
)
from stages.explain.stage import run
from stages.explain.tables import BITS, HIERARCHY, read_bits, read_component_concepts, write_bits
from stages.features import Features
from stages.image_files import read_image
from stages.images import ImageShards, read_dataset, read_row_group
from stages.params import parse, read_params_file
from stages.scenes.catalogue import GROUPS, SHOWN
from stages.tables import matrix, read_table, write_table

REPORT = Path("reports/explain.json")
PICTURES = (Path("reports/bit_concepts.png"), Path("reports/hierarchy.png"))


# ---- bits


def images(n: int = 300, bits: int = 16, shares: int = 7, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes of which some bits depend on the shares; the last share is that of nobody, the one before of everybody."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(shares, 0.3), n)
    share[:, -1], share[:, -2] = 0, 0.1
    signs = np.where(rng.standard_normal((n, bits)) + 3 * share[:, rng.integers(0, shares - 2, bits)] > 0.8, 1, -1)
    signs[:, 3] = 1
    return signs.astype(np.int8), share


def moments(signs: np.ndarray, shares: np.ndarray, cuts: tuple[int, ...] = ()) -> BitMoments:
    found = BitMoments(signs.shape[1], shares.shape[1])
    for rows in np.split(np.arange(len(signs)), cuts):
        found.add(signs[rows], shares[rows])
    return found


@pytest.mark.filterwarnings("error")
def test_correlation_is_the_point_biserial_coefficient():
    signs, shares = images()
    correlation = moments(signs, shares).correlation()
    assert correlation.shape == (7, 16)
    for j in range(5):
        for bit in (*range(3), *range(4, 16)):
            expected = pointbiserialr(signs[:, bit] > 0, shares[:, j]).statistic
            assert correlation[j, bit] == pytest.approx(expected, abs=1e-12)
    assert np.abs(correlation).max() > 0.3
    assert (correlation[:, 3] == 0).all()  # a constant bit
    assert (correlation[5:] == 0).all()  # a share that is 0.1, or 0, of all images


def test_correlation_with_what_is_there_or_not_is_phi():
    signs, shares = images()
    there = shares[:, :3] > 0.2
    correlation = moments(signs, there).correlation()
    for j in range(3):
        a, b = there[:, j], signs[:, 0] > 0
        table = np.array([[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]], float)
        phi = (table[0, 0] * table[1, 1] - table[0, 1] * table[1, 0]) / np.sqrt(
            table.sum(axis=0).prod() * table.sum(axis=1).prod()
        )
        assert correlation[j, 0] == pytest.approx(phi, abs=1e-12)


def test_mean_code_is_that_of_a_loop():
    signs, shares = images()
    mean = moments(signs, shares).mean_code()
    for j in range(6):
        expected = sum(share * row for share, row in zip(shares[:, j], signs, strict=True)) / shares[:, j].sum()
        np.testing.assert_allclose(mean[j], expected, atol=1e-12)
    assert (mean[6] == 0).all() and not Profile(list("abcdefg"), mean, mean).present[6]
    np.testing.assert_allclose(mean[5], signs.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("cuts", [(1,), (299,), (0, 0, 17, 17, 200), tuple(range(1, 300))])
def test_blocks_equal_one_go(cuts):
    signs, shares = images()
    whole, parts = moments(signs, shares), moments(signs, shares, cuts)
    assert (whole.n, whole.constant_bits) == (parts.n, parts.constant_bits) == (300, 1)
    np.testing.assert_allclose(parts.correlation(), whole.correlation(), atol=1e-12)
    np.testing.assert_allclose(parts.mean_code(), whole.mean_code(), atol=1e-12)


@pytest.mark.filterwarnings("error")
def test_shares_that_hardly_differ_do_not_cancel():
    signs, shares = images()
    nearly = 0.7 + 1e-9 * shares
    np.testing.assert_allclose(moments(signs, nearly, (100,)).correlation()[:5],
                               moments(signs, shares).correlation()[:5], atol=1e-5)  # fmt: skip
    tiny = moments(signs, 1e-200 * shares)
    assert np.isfinite(tiny.correlation()).all() and np.isfinite(tiny.mean_code()).all()


@pytest.mark.filterwarnings("error")
def test_no_images_and_no_concepts():
    empty = BitMoments(8, 3)
    assert (empty.correlation() == 0).all() and (empty.mean_code() == 0).all()
    none = moments(np.ones((4, 8)), np.zeros((4, 0)))
    assert none.correlation().shape == none.mean_code().shape == (0, 8)


def test_strongest_whatever_the_sign():
    correlation = np.array([[0.2, 0.0, 0.0], [-0.5, 0.0, 0.1], [0.3, 0.4, 0.0]])
    assert strongest(correlation, 2) == [[1, 2], [2], [1]]
    assert strongest(np.zeros((0, 3)), 2) == [[], [], []]


def test_likeness_and_hamming_by_hand():
    signs = np.array([[1, 1, -1, -1], [-1, -1, 1, 1]])
    means = np.array([[0.5, 0.5, -0.5, -0.5], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_allclose(likeness(signs, means), [[1, 0.5, -1], [-1, -0.5, -1]])
    np.testing.assert_array_equal(hamming(signs, means), [[0, 2, 2], [4, 2, 2]])


# ---- hierarchy


def test_hierarchy_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    shares, fine = rng.dirichlet(np.full(5, 0.4), 80), rng.dirichlet(np.full(6, 0.2), 80)
    labels = np.array([0, 1, 1, 0, 2, 1])
    found = concept_hierarchy(fine.T @ shares / 80, fine.mean(axis=0), labels)
    coarse = np.stack([fine[:, labels == c].sum(axis=1) for c in range(3)], axis=1)
    for level, posterior in ((found.coarse, coarse), (found.fine, fine)):
        for k in range(posterior.shape[1]):
            p = (posterior[:, [k]] * shares).sum(axis=0) / posterior[:, k].sum()
            parent = level.parents[k]
            q = shares.mean(axis=0) if parent < 0 else found.coarse.distribution[parent]
            middle = (p + q) / 2
            np.testing.assert_allclose(level.distribution[k], p, atol=1e-12)
            np.testing.assert_allclose(level.change[k], p - q, atol=1e-12)
            assert level.entropy[k] == pytest.approx(-(p * np.log2(p)).sum())
            assert level.kl[k] == pytest.approx((p * np.log2(p / q)).sum())
            assert level.js[k] == pytest.approx(
                ((p * np.log2(p / middle)).sum() + (q * np.log2(q / middle)).sum()) / 2
            )
        np.testing.assert_allclose(level.weights, posterior.mean(axis=0))
    np.testing.assert_array_equal(found.fine.parents, labels)
    np.testing.assert_array_equal(found.coarse.parents, [-1, -1, -1])
    # The chain rule of mutual information.
    total = sum(w * (p * np.log2(p / found.collection)).sum()
                for w, p in zip(found.fine.weights, found.fine.distribution, strict=True))  # fmt: skip
    assert found.coarse.information + found.fine.information == pytest.approx(total)


@pytest.mark.filterwarnings("error")
def test_a_component_without_images_does_not_drift():
    joint = np.array([[0.5, 0.0], [0.0, 0.5], [0.0, 0.0], [0.0, 0.0]])
    found = concept_hierarchy(joint, np.array([0.5, 0.5, 0.0, 0.0]), np.array([0, 0, 0, 1]))
    np.testing.assert_allclose(found.fine.distribution, [[1, 0], [0, 1], [0.5, 0.5], [0.5, 0.5]])
    np.testing.assert_allclose(found.fine.js[2:], 0)
    np.testing.assert_allclose(found.fine.kl[:2], 1)  # from evenly two concepts to one: a bit
    np.testing.assert_allclose(found.coarse.distribution, [[0.5, 0.5], [0.5, 0.5]])
    none = concept_hierarchy(np.zeros((4, 0)), np.full(4, 0.25), np.array([0, 0, 0, 1]))
    assert none.fine.distribution.shape == (4, 0) and (none.fine.js == 0).all() and none.fine.information == 0


def test_jensen_shannon_has_its_bounds():
    one, other, even = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]])
    assert jensen_shannon(one, other)[0] == pytest.approx(1)
    assert jensen_shannon(one, one)[0] == 0
    assert jensen_shannon(one, even)[0] == pytest.approx(jensen_shannon(even, one)[0])
    expected = (np.log2(4 / 3) + 0.5 * np.log2(0.5 / 0.75) + 0.5 * np.log2(0.5 / 0.25)) / 2
    assert jensen_shannon(one, even)[0] == pytest.approx(expected)


def test_top_entries_are_above_0():
    assert top_entries(np.array([[0.1, 0.5, 0.0, 0.2], [-1, 0, -2, 3]]), 3) == [[1, 3, 0], [3]]
    assert top_entries(np.zeros((2, 0)), 3) == [[], []]


# ---- recovery


def test_perfect_partitions_score_1_and_shuffled_ones_about_0():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 8, 4000)
    assert partition_scores(truth, 7 - truth) == {
        name: pytest.approx(1) for name in ("nmi", "ami", "adjusted_rand", "homogeneity", "completeness")
    }
    shuffled = partition_scores(truth, rng.permutation(truth))
    assert all(abs(value) < 0.02 for value in shuffled.values())
    split = partition_scores(truth, 3 * truth + rng.integers(0, 3, 4000))  # three components a class
    assert split["homogeneity"] == pytest.approx(1) and split["completeness"] < 0.8
    assert split["nmi"] == pytest.approx(normalized_mutual_info_score(truth, 3 * truth + rng.integers(0, 3, 4000)),
                                         abs=0.02)  # fmt: skip
    assert partition_scores(np.zeros(9, int), rng.integers(0, 3, 9)) is None
    assert partition_scores(np.zeros(0, int), np.zeros(0, int)) is None


def test_images_of_one_class_and_of_one_group():
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]], bool)
    rows, classes = single_class(labels)
    assert (rows.tolist(), classes.tolist()) == ([0, 2], [0, 2])
    rows, groups = single_class(in_groups(labels, np.array([0, 0, 1])))
    assert (rows.tolist(), groups.tolist()) == ([0, 1, 2], [0, 0, 1])


def test_cooccurrence_by_hand():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 1], [1, 1, 0]], bool)
    np.testing.assert_allclose(label_cooccurrence(labels), np.array([[3, 2, 0], [2, 3, 1], [0, 1, 1]]) / 4)
    mass = np.array([6.0, 4.0, 0.0])
    chances = category_chances(np.array([[3.0, 6.0, 0.0], [0.0, 1.0, 3.0], [0.0, 0.0, 0.0]]), mass)
    np.testing.assert_allclose(chances, [[0.5, 1, 0], [0, 0.25, 0.75], [0, 0, 0]])
    np.testing.assert_allclose(by_members(chances, mass), [
        [0.6 * 0.25, 0.6 * 0.5, 0], [0.6 * 0.5, 0.6 + 0.4 / 16, 0.4 * 3 / 16], [0, 0.4 * 3 / 16, 0.4 * 9 / 16],
    ])  # fmt: skip
    # Components 0 and 1 are category 1 and 2, the third is nobody's; they meet in 0.1 of the images.
    cooccurrence = np.array([[0.5, 0.1, 0.2], [0.1, 0.3, 0.2], [0.2, 0.2, 0.9]])
    np.testing.assert_allclose(by_mixture(chances, cooccurrence), [[0, 0, 0], [0, 0.5, 0.1], [0, 0.1, 0.3]])


def test_correlation_of_cooccurrence_is_over_different_pairs():
    rng = np.random.default_rng(0)
    a, b = (m + m.T for m in rng.random((2, 6, 6)))
    first, second = (m[np.triu_indices(6, 1)] for m in (a, b))
    found = cooccurrence_correlation(a + 100 * np.eye(6), b)
    assert found == {"pearson": pytest.approx(pearsonr(first, second).statistic),
                     "spearman": pytest.approx(spearmanr(first, second).statistic)}  # fmt: skip
    assert cooccurrence_correlation(a, np.eye(6)) is None  # every image has one label
    assert cooccurrence_correlation(a[:2, :2], b[:2, :2]) is None


def constructed(shuffled: bool) -> dict:
    """Components that are the label sets of 3,000 images, or that have nothing to do with them."""
    rng = np.random.default_rng(0)
    labels = np.zeros((3000, 6), bool)
    first = rng.integers(0, 6, 3000)
    labels[np.arange(3000), first] = True
    # Two things in a picture are next to each other in the list, mostly in its first half.
    both = rng.random(3000) < np.where(first < 3, 0.8, 0.2)
    labels[np.flatnonzero(both), (first[both] + 1) % 6] = True
    sets, found = np.unique(labels, axis=0, return_inverse=True)
    found = rng.permutation(found) if shuffled else found
    posterior = np.eye(len(sets))[found]
    level = Found(found, posterior.T @ labels, posterior.sum(axis=0), posterior.T @ posterior)
    return recovery(labels, np.array([0, 0, 0, 1, 1, 1]), {"fine": level})


def test_recovery_of_constructed_components():
    perfect, shuffled = constructed(False), constructed(True)
    assert perfect["categories"]["fine"]["adjusted_rand"] == pytest.approx(1)
    assert perfect["groups"]["fine"]["homogeneity"] == pytest.approx(1)
    assert perfect["cooccurrence"]["fine"]["members"] == {"pearson": pytest.approx(1), "spearman": pytest.approx(1)}
    assert perfect["cooccurrence"]["fine"]["mixture"] is None  # an image has one component here: none meet
    assert perfect["categories"]["images"] < perfect["groups"]["images"] < perfect["images"] == 3000
    assert abs(shuffled["categories"]["fine"]["ami"]) < 0.02
    assert abs(shuffled["groups"]["fine"]["adjusted_rand"]) < 0.02
    chance = shuffled["cooccurrence"]["independent"]["pearson"]
    assert shuffled["cooccurrence"]["fine"]["members"]["pearson"] == pytest.approx(chance, abs=0.05) and chance < 0.5


def test_groups_are_those_of_scenes():
    groups = category_groups("scenes", list(SHOWN))
    assert [list(GROUPS)[g] for g in groups[:6]] == ["animals"] * 5 + ["vehicles"]
    assert category_groups("cifar10", ["cat", "dog"]) is None


def test_naming_is_that_of_the_leakage_audit():
    np.testing.assert_array_equal(naming(["cats", "sky", "Tree"], ["cat", "tree"]), [[1, 0, 0], [0, 0, 1]])
    assert naming(["cats"], []).shape == (0, 1)


# ---- one code in words


def test_reading_of_a_code():
    correlation = np.array([[0.5, -0.2, 0.0, 0.1], [-0.4, 0.0, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]])
    mean = np.array([[0.9, -0.1, 1.0, 0.1], [-0.4, 0.1, 1.0, 0.3], [0.0, 0.0, 0.0, 0.0]])
    blank = Profile(["fine 0"], np.zeros((1, 4)), np.ones((1, 4)))
    profiles = {"concept": Profile(["dog", "cat", "yeti"], correlation, mean), "fine": blank, "coarse": blank}
    told = read_code(
        np.array([1, 1, 1, -1]), np.array([0.2, 0.799, 0.001]), {"fine": np.array([1.0]), "coarse": np.array([1.0])},
        profiles, {"fine": [["dog"]], "coarse": [[]]},
    )  # fmt: skip
    assert told["code"] == "1110"
    assert [entry["name"] for entry in told["concepts"]] == ["cat", "dog"]
    assert told["components"]["fine"] == [{"name": "fine 0", "responsibility": 1.0, "concepts": ["dog"]}]
    assert [entry["name"] for entry in told["nearest"]] == ["dog", "cat"]  # nobody has seen a yeti
    assert [entry["hamming"] for entry in told["nearest"]] == [2, 2]
    assert told["bits"][0]["meanings"] == [
        {"name": "dog", "correlation": 0.5, "speaks_for": True},
        {"name": "cat", "correlation": -0.4, "speaks_for": False},
    ]  # fmt: skip
    assert [entry["speaks_for"] for entry in told["bits"][3]["meanings"]] == [False, False]
    assert told["bits"][2] == {"bit": 2, "value": 1, "meanings": []}
    assert json.loads(json.dumps(told)) == told


# ---- the stage


@pytest.fixture(scope="module")
def explained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run in which the stage has run; only to be read.

    Its components are made again, such that even those of 200 images tell them apart.
    """
    directory = prepare(tmp_path_factory.mktemp("explained"), {"components": {"reg_covar": 0.01}})
    copy([path for stage in pipeline()["stages"] if stage != "explain" for path in outputs(stage)], tiny_run, directory)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        components.run(parse(ComponentsParams, read_params_file()))
        run(Params())
    return directory


@pytest.fixture
def here(explained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory is a copy of it that may be changed."""
    directory = tmp_path / "here"
    shutil.copytree(explained, directory, symlinks=True)
    monkeypatch.chdir(directory)
    return directory


def semantics() -> Semantics:
    return read_semantics(Provenance("test"), BITS)


def test_meaning_of_features_is_what_mine_and_components_wrote(here):
    """Recomputed, since both wrote down that of the training images alone."""
    with Features() as features:
        train = features.train()
    mined, _, _ = read_table(CONCEPT_DISTRIBUTION, {"distribution": None})
    np.testing.assert_allclose(semantics().shares(train), matrix(mined, "distribution"), atol=1e-6)
    stored = read_components()
    fine = semantics().components.fine(train)
    np.testing.assert_allclose(fine.sum(axis=1), 1)
    np.testing.assert_allclose(np.take_along_axis(fine, stored.top_index, axis=1), stored.top_value, atol=2e-3)
    coarse = semantics().components.coarse(fine)
    np.testing.assert_allclose(coarse[:, 1], fine[:, stored.coarse_labels == 1].sum(axis=1))


def test_a_hard_assignment_stays_one():
    mixture = Mixture(np.array([0.5, 0.5]), np.array([[0.0], [1.0]]), np.ones((2, 1)))
    for assignment, expected in (("hard", [0.0, 1.0]), ("soft", None)):
        found = FittedComponents(mixture, assignment, np.zeros(3), np.eye(3)[:1], np.array([0, 1]))
        fine = found.fine(np.array([[0.9, 0.0, 0.0]], np.float32))[0]
        assert fine.tolist() == expected if expected else 0 < fine[0] < fine[1] < 1


def test_stage_writes_what_it_says(here):
    codes, dataset = read_codes(), read_dataset()
    signs = unpack(codes.database)
    with Features() as features:
        rows = features.images(codes.database_id)
    fine, shares = semantics().components.fine(rows), semantics().shares(rows)

    table = pd.read_parquet(BITS)
    assert table.columns.tolist() == ["kind", "index", "name", "bit", "correlation", "mean"]
    names = semantics().concepts
    assert len(table) == (len(names) + 20 + 4) * codes.bits
    found, made_from = read_bits()
    assert (made_from.dataset, made_from.params) == (dataset.digest, codes.provenance.params)
    assert found["concept"].names == names and found["coarse"].names == [f"coarse {c}" for c in range(4)]
    with np.errstate(invalid="ignore"):
        for kind, values in (("concept", shares), ("fine", fine), ("coarse", semantics().components.coarse(fine))):
            k = values.shape[1]
            expected = np.nan_to_num(np.corrcoef(values.T, signs.T)[:k, k:])
            np.testing.assert_allclose(found[kind].correlation, expected, atol=1e-5)
            np.testing.assert_allclose(found[kind].mean_code, values.T @ signs / values.sum(axis=0)[:, None], atol=1e-5)

    tree = pd.read_parquet(HIERARCHY)
    assert (tree["level"].tolist(), tree["parent"][:4].tolist()) == (["coarse"] * 4 + ["fine"] * 20, [-1] * 4)
    np.testing.assert_allclose(tree["weight"][4:], fine.mean(axis=0), atol=1e-5)
    expected = fine.T @ shares / fine.sum(axis=0)[:, None]
    np.testing.assert_allclose(np.stack(tree["distribution"])[4:], expected, atol=1e-4)
    largest = tree["weight"][4:].argmax() + 4
    assert tree["top"][largest][0] == names[expected[largest - 4].argmax()]
    assert read_component_concepts()["fine"][largest - 4] == tree["top"][largest].tolist()
    _, _, extra = read_table(HIERARCHY, {"distribution": None})
    assert extra["concepts"] == names and sum(extra["collection"]) == pytest.approx(1)
    for path in PICTURES:
        with Image.open(path) as picture:
            assert min(picture.size) > 300 and len(picture.convert("RGB").getcolors(1 << 24)) > 50


def test_report(here):
    codes, dataset = read_codes(), read_dataset()
    content, provenance = read_report(REPORT)
    assert provenance.stage == "explain" and provenance.dataset == dataset.digest
    assert (content["images"], content["labels"], content["concepts"]) == (300, True, len(semantics().concepts))
    assert [entry["bit"] for entry in content["bits"]] == list(range(codes.bits))
    concepts = read_bits()[0]["concept"]
    strong = np.abs(concepts.correlation[:, 2]).argmax()
    told = content["bits"][2]["concept"].split(", ")
    assert told[0] == f"{concepts.correlation[strong, 2]:+.2f} {concepts.names[strong]}" and len(told) == 3
    near = content["nearest_concept"]
    assert near["images"] == 40 and near["chance"] < near["first"] <= near["among_3"] <= 1
    assert near["label"] <= 1 and near["label_float"] > 0.8

    # The recovery, image by image.
    labels = ImageShards().labels(20)[codes.database_id]
    with Features() as features:
        index = semantics().components.fine(features.images(codes.database_id)).argmax(axis=1)
    alone = labels.sum(axis=1) == 1
    categories = content["recovery"]["categories"]
    assert (categories["images"], content["recovery"]["images"]) == (alone.sum(), 300)
    truth = labels[alone].argmax(axis=1)
    assert categories["fine"]["nmi"] == pytest.approx(normalized_mutual_info_score(truth, index[alone]))
    assert categories["fine"]["nmi"] > 0.3
    groups = np.stack([labels[:, 5 * g : 5 * g + 5].any(axis=1) for g in range(4)], axis=1)
    assert content["recovery"]["groups"]["images"] == (groups.sum(axis=1) == 1).sum()
    assert set(content["recovery"]["cooccurrence"]) == {"independent", "fine", "coarse"}


def test_running_again_gives_the_same_bytes(here):
    files = [BITS, HIERARCHY, REPORT, *PICTURES]
    before = [file.read_bytes() for file in files]
    run(Params())
    assert [file.read_bytes() for file in files] == before


def test_blocks_of_the_stage_change_nothing(here, monkeypatch):
    before, report = read_bits()[0], read_report(REPORT)[0]
    monkeypatch.setattr(survey, "BLOCK", 7)
    run(Params())
    for kind, profile in read_bits()[0].items():
        np.testing.assert_allclose(profile.correlation, before[kind].correlation, atol=1e-5)
    again = read_report(REPORT)[0]
    assert again["recovery"]["categories"] == report["recovery"]["categories"]
    assert again["nearest_concept"] == report["nearest_concept"]


def test_blocks_cover_the_ids_in_short_reads(monkeypatch):
    monkeypatch.setattr(survey, "BLOCK", 10)
    ids = np.array([0, 3, 9, 10, 31, 58, 59])
    parts = [ids[rows].tolist() for rows in survey.blocks(ids, 60)]
    assert parts == [[0, 3, 9], [10], [31], [58, 59]]
    assert survey.blocks(np.zeros(0, int), 60) == []


def test_without_labels(here, capsys):
    write_json(DATASET, read_json(DATASET) | {"class_names": []})
    run(Params())
    assert "no labels" in capsys.readouterr().out
    content, _ = read_report(REPORT)
    assert content["labels"] is False and "recovery" not in content
    assert "label" not in content["nearest_concept"] and content["nearest_concept"]["first"] > 0


def without_text_side() -> None:
    table, provenance, _ = read_table(CONCEPTS, {
        "concept": pa.string(), "kept": pa.bool_(), "text_feature": None,
    })  # fmt: skip
    write_table(table.slice(0, 0), CONCEPTS, provenance)


def test_without_a_text_side(here, capsys):
    without_text_side()
    run(Params())
    content, _ = read_report(REPORT)
    assert content["concepts"] == 0 and "nearest_concept" not in content
    assert content["bits"][0]["concept"] == "" and content["bits"][0]["fine"].count("fine ") == 3
    assert content["drift"]["fine"] == {"information": 0, "js": 0}
    assert content["recovery"]["categories"]["fine"]["nmi"] > 0.3
    for path in PICTURES:
        with Image.open(path) as picture:
            assert min(picture.size) > 150 and len(picture.convert("RGB").getcolors(1 << 24)) > 20
    told = read_json_of(capsys, lambda: explain(None, 5, as_json=True))
    assert told["concepts"] == [] and told["nearest"][0]["name"].startswith("fine ")
    assert told["bits"][0]["meanings"][0]["name"].startswith("fine ")
    explain(None, 5)
    assert "concepts" not in capsys.readouterr().out


def test_without_queries_nothing_is_read_back(here):
    with h5py.File(CODES, "a") as file:
        for name in ("query/codes", "query/id"):
            rows = file[name][:0]
            del file[name]
            file[name] = rows
    run(Params())
    assert "nearest_concept" not in read_report(REPORT)[0]


@pytest.mark.parametrize("path", [CODES, FEATURES, CONCEPTS, COMPONENTS, DATASET, IMAGES])
def test_stage_needs_its_inputs(here, path, capsys):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    message = error(capsys, lambda: run(Params()))
    assert message.startswith(str(path)) and "dvc repro" in message


@pytest.mark.parametrize("path", [CODES, FEATURES, CONCEPTS, COMPONENTS])
def test_damaged_inputs_are_one_line(here, path, capsys):
    path.write_bytes(path.read_bytes()[:200])
    assert error(capsys, lambda: run(Params())).startswith(str(path))


def test_components_that_do_not_fit_are_one_line(here, capsys):
    with h5py.File(COMPONENTS, "a") as file:
        rows = file["means"][:, :-1]
        del file["means"]
        file["means"] = rows
    assert "shapes that do not fit" in error(capsys, lambda: run(Params()))


def test_full_covariances_are_read(here):
    """Diagonal ones, written as matrices, mean the same."""
    with Features() as features:
        images = features.images()
    diagonal = semantics().components.fine(images)
    with h5py.File(COMPONENTS, "a") as file:
        variances = file["variances"][:]
        del file["variances"]
        file["variances"] = variances[:, :, None] * np.eye(variances.shape[1])
    full = semantics().components
    assert full.mixture.form == "full"
    np.testing.assert_allclose(full.fine(images), diagonal, atol=1e-9)


# ---- the command


def error(capsys: pytest.CaptureFixture, action: Callable[[], None]) -> str:
    """The one line that `action` ends with, exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught, one_line_errors():
        action()
    printed = capsys.readouterr()
    assert (caught.value.code, printed.out) == (2, "")
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    return printed.err.removeprefix("error: ").rstrip("\n")


def read_json_of(capsys: pytest.CaptureFixture, action: Callable[[], None]) -> dict:
    capsys.readouterr()
    action()
    return json.loads(capsys.readouterr().out)


def scene(index: int) -> Iterator[bytes]:
    """The encoded image `index`."""
    for file, group in ImageShards().row_groups():
        yield from (data for image, _, data in read_row_group(file, group) if image == index)


@pytest.mark.parametrize("index", [5, 123])
def test_a_file_and_its_id_say_the_same(here, index, capsys):
    """So the file goes through model and network as the data set did."""
    Path("a scene.png").write_bytes(next(scene(index)))
    by_file = read_json_of(capsys, lambda: explain(Path("a scene.png"), None, as_json=True))
    by_id = read_json_of(capsys, lambda: explain(None, index, as_json=True))
    assert (by_file.pop("image"), by_id.pop("image")) == ("a scene.png", f"image {index}")
    assert by_file == by_id
    codes = read_codes()
    rows = np.concatenate([codes.query[codes.query_id == index], codes.database[codes.database_id == index]])
    assert by_id["code"] == "".join(np.where(unpack(rows)[0] > 0, "1", "0"))
    assert sum(entry["share"] for entry in by_id["concepts"]) == pytest.approx(1, abs=0.05)
    assert len(by_id["bits"]) == codes.bits and by_id["nearest"][0]["cosine"] > by_id["nearest"][-1]["cosine"]


def test_words(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    told = read_json_of(capsys, lambda: explain(None, 5, as_json=True))
    explain(None, 5)
    lines = capsys.readouterr().out.splitlines()
    facts = dict(line.split(maxsplit=1) for line in lines[:7])
    assert lines[0] == "image 5"
    assert facts["code"].split()[:4] == re.findall(".{8}", told["code"])
    assert facts["concepts"].startswith(f"{told['concepts'][0]['name']} {told['concepts'][0]['share']:.0%}")
    fine = told["components"]["fine"][0]
    assert facts["fine"].startswith(f"{fine['name'].split()[1]}: {fine['responsibility']:.0%} ({fine['concepts'][0]},")
    assert facts["nearest"].startswith(f"{told['nearest'][0]['name']} ") and "coarse" in facts
    first = told["bits"][0]["meanings"][0]
    row = next(line for line in lines if line.split()[:2] == ["0", str(told["bits"][0]["value"])])
    assert f"{first['correlation']:+.2f} {first['name']}" in row
    assert sum(bool(re.match(r" *\d+ +[01] ", line)) for line in lines) == len(told["code"])


@pytest.mark.parametrize("kind", sorted(UNREADABLE))
def test_unusable_images_are_one_line(here, kind, capsys):
    Path("odd.png").write_bytes(UNREADABLE[kind])
    assert error(capsys, lambda: explain(Path("odd.png"), None)).startswith("odd.png: ")


def test_paths_that_are_no_files(here, capsys):
    assert "not found" in error(capsys, lambda: explain(Path("nowhere.png"), None))
    assert "not a plain file" in error(capsys, lambda: explain(Path("data"), None))
    assert "not a plain file" in error(capsys, lambda: explain(Path("/dev/zero"), None))
    Path("loop").symlink_to("loop")
    error(capsys, lambda: explain(Path("loop"), None))


def test_links_are_followed(here):
    Path("real.png").write_bytes(next(scene(0)))
    Path("link.png").symlink_to("real.png")
    assert read_image(Path("link.png")).size == (64, 64)


def test_which_image_must_be_said_once(here, capsys):
    for image, index in ((None, None), (Path("a.png"), 3)):
        assert "--image FILE" in error(capsys, lambda image=image, index=index: explain(image, index))


def test_ids_that_have_no_code(here, capsys):
    for index in (-1, 340, 10**12):
        assert "between 0 and 339" in error(capsys, lambda index=index: explain(None, index))


@pytest.mark.parametrize("path", [BITS, HIERARCHY])
def test_tables_must_be_there(here, path, capsys):
    path.unlink()
    message = error(capsys, lambda: explain(None, 5))
    assert message == f"{path}: not found; run `python -m stages explain` first, without options"


@pytest.mark.parametrize("path", [CONCEPTS, COMPONENTS, CLIP, HASHNET])
def test_artifacts_of_the_run_must_be_there(here, path, capsys):
    Path("scene.png").write_bytes(next(scene(5)))
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    message = error(capsys, lambda: explain(Path("scene.png"), None))
    assert message.startswith(str(path)) and "dvc repro" in message


def test_damaged_tables_are_one_line(here, capsys):
    table = pq.read_table(BITS)
    for broken in (table.slice(1), table.slice(0, 0), table.drop_columns("mean")):
        pq.write_table(broken.replace_schema_metadata(table.schema.metadata), BITS)
        assert error(capsys, lambda: explain(None, 5)).startswith(str(BITS))


def test_tables_of_another_network_are_refused(here, capsys):
    found, made_from = read_bits()
    other = Provenance("explain", made_from.dataset, made_from.model, made_from.params | {"seed": 7})
    write_bits(EXPLAIN, found, other)
    message = error(capsys, lambda: explain(None, 5))
    assert message.startswith(str(BITS)) and "python -m stages explain" in message
    Path("scene.png").write_bytes(next(scene(5)))
    assert "models/hashnet" in error(capsys, lambda: explain(Path("scene.png"), None))
    write_bits(EXPLAIN, found, Provenance("explain", "f" * 64, made_from.model, made_from.params))
    assert "another data set" in error(capsys, lambda: explain(None, 5))


def test_without_a_model_there_is_no_file_to_encode(here, capsys):
    """Of embeddings, whose images are known by their ids alone."""
    Path("scene.png").write_bytes(next(scene(5)))
    config = read_json(CLIP / "config.json")
    write_json(CLIP / "config.json", config | {"model": None, "pretrained": None, "sha256": ""})
    assert "clip.model" in error(capsys, lambda: explain(Path("scene.png"), None))
    explain(None, 5)


def test_command_line(here, run_stages):
    Path("scene.png").write_bytes(next(scene(5)))
    told = [json.loads(run_stages(here, "explain", *options, "--json").check().stdout)
            for options in (("--image", "scene.png"), ("--id", "5"))]  # fmt: skip
    assert told[0]["code"] == told[1]["code"]
    assert run_stages(here, "explain", "--id", "5").check().stdout.startswith("image 5\ncode ")
    Path("text.png").write_bytes(UNREADABLE["a text"])
    assert run_stages(here, "explain", "--image", "text.png").error().startswith("text.png: ")
    assert "--image FILE" in run_stages(here, "explain", "--json").error()


def test_a_backbone_is_given_the_picture():
    config = BackboneConfig("vgg19", None, 6, 8, "uhscm", 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    torch.manual_seed(0)
    net = BackboneNet(config, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 12, 6))).eval()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
    with torch.inference_mode():
        expected = net(evaluation_pixels(image, 12)[None]).numpy()
    features, relaxed = Encoder(net, None, Provenance("train"), torch.device("cpu")).images([image])
    assert features is None
    np.testing.assert_array_equal(relaxed, expected)


# ---- pictures


def drawn(tmp_path: Path, concepts: int, fine: int, coarse: int, bits: int) -> list[tuple[int, int]]:
    """Sizes of both pictures for this many of everything."""
    rng = np.random.default_rng(0)
    profiles = {
        kind: Profile([f"{kind} {i} $x$" for i in range(count)], *np.clip(rng.normal(0, 0.2, (2, count, bits)), -1, 1))
        for kind, count in (("concept", concepts), ("fine", fine), ("coarse", coarse))
    }
    weights, labels = rng.dirichlet(np.ones(fine)), np.arange(fine) % coarse
    shares = rng.dirichlet(np.full(concepts, 0.1), fine) if concepts else np.zeros((fine, 0))
    hierarchy = concept_hierarchy(weights[:, None] * shares, weights, labels)
    figures.draw_bits(tmp_path / "bits.png", profiles, hierarchy, "a $title$")
    figures.draw_hierarchy(tmp_path / "hierarchy.png", hierarchy, profiles["concept"].names, "a $title$")
    sizes = []
    for name in ("bits.png", "hierarchy.png"):
        with Image.open(tmp_path / name) as picture:
            sizes.append(picture.size)
    return sizes


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("concepts", "fine", "coarse", "bits"), [(1, 1, 1, 8), (2, 3, 2, 16), (0, 9, 3, 8)])
def test_pictures_of_little(tmp_path, concepts, fine, coarse, bits):
    assert all(min(size) > 150 for size in drawn(tmp_path, concepts, fine, coarse, bits))


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_pictures_of_much_stay_small(tmp_path):
    for width, height in drawn(tmp_path, 400, 300, 60, 128):
        assert width < 4000 and height < 3500


def test_alike_rows_are_side_by_side():
    rows = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1], [1, 0.05]])
    order = figures.alike(rows).tolist()
    assert {*order[:3]} in ({0, 2, 4}, {1, 3, order[2]}) and abs(order.index(1) - order.index(3)) == 1
    assert sorted(order) == list(range(5)) and figures.alike(rows[:1]).tolist() == [0]

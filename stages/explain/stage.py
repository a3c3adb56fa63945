"""Read codes, features, concepts, components and labels; write the tables, the report and the pictures."""

from typing import Any

import numpy as np

from stages.artifacts import CODES, DATASET, EXPLAIN, FEATURES, IMAGES, Provenance, replacing_directory
from stages.codes import read_codes
from stages.errors import InputError
from stages.evaluate.reports import write_report
from stages.explain import figures
from stages.explain.bits import Profile, strongest
from stages.explain.config import Params
from stages.explain.hierarchy import ConceptHierarchy, concept_hierarchy
from stages.explain.inputs import Semantics, category_groups, naming, read_semantics
from stages.explain.recovery import Found, recovery
from stages.explain.survey import Survey, read_back, survey
from stages.explain.tables import component_name, write_bits, write_hierarchy
from stages.features import Features
from stages.images import Dataset, ImageShards, read_dataset

REPORTS = EXPLAIN.parent

#: Concepts, and components, listed for a bit in the report.
LISTED = 3


def run(_: Params) -> None:
    """Read what is known of the database images, write ``reports/explain`` and what is beside it."""
    dataset, codes = read_dataset(), read_codes()
    codes.provenance.require_same(dataset.provenance, CODES, DATASET)
    if not len(codes.database):
        raise InputError(f"{CODES}: has no database images, which bits are explained with; choose a protocol with some")
    semantics = read_semantics(codes.provenance, CODES)
    all_labels = _labels(dataset)
    labels = all_labels[codes.database_id]
    with Features() as features:
        features.provenance.require_same(codes.provenance, FEATURES, CODES)
        found = survey(semantics, features, codes.database, codes.database_id, labels)
        profiles = _profiles(found, semantics)
        hierarchy = concept_hierarchy(found.joint / found.n, found.mass / found.n, semantics.components.coarse_labels)
        report = _summary(found, profiles, hierarchy)
        if semantics.concepts and len(codes.query):
            meant = all_labels[codes.query_id] @ naming(semantics.concepts, dataset.class_names)
            mean_codes = profiles["concept"].mean_code
            report["nearest_concept"] = read_back(semantics, features, codes.query, codes.query_id, mean_codes, meant)
    report["labels"] = bool(labels.any())
    if report["labels"]:
        report["recovery"] = _recovery(found, dataset, labels)
    else:
        print("explain: the database has no labels: what the components recover of them is not measured")
    report["bits"] = _meanings(profiles)

    # The parameters of the training say which network it was; an image is explained with the tables of its network.
    provenance = Provenance("explain", dataset.digest, codes.provenance.model, codes.provenance.params)
    with replacing_directory(EXPLAIN) as directory:
        write_bits(directory, profiles, provenance)
        write_hierarchy(directory, hierarchy, semantics.concepts, provenance)
    write_report(REPORTS / "explain.json", report, provenance)
    title = f"{dataset.name}, {codes.method}, {codes.bits} bits"
    figures.draw_bits(REPORTS / "bit_concepts.png", profiles, hierarchy, title)
    figures.draw_hierarchy(REPORTS / "hierarchy.png", hierarchy, semantics.concepts, title)


def _labels(dataset: Dataset) -> np.ndarray:
    """Labels of all images, bool (n, C), row = id; C is 0 where the data set has none."""
    if not dataset.has_labels:
        return np.zeros((dataset.counts["images"], 0), bool)
    shards = ImageShards()
    shards.provenance.require_same(dataset.provenance, IMAGES, DATASET)
    return shards.labels(len(dataset.class_names))


def _profiles(found: Survey, semantics: Semantics) -> dict[str, Profile]:
    names = {
        "concept": semantics.concepts,
        "fine": [component_name("fine", k) for k in range(semantics.components.n_fine)],
        "coarse": [component_name("coarse", k) for k in range(semantics.components.n_coarse)],
    }
    edges = np.cumsum([len(names["concept"]), semantics.components.n_fine])
    correlations, mean_codes = (np.split(a, edges) for a in (found.moments.correlation(), found.moments.mean_code()))
    return {kind: Profile(*parts) for kind, parts in
            zip(names, zip(names.values(), correlations, mean_codes, strict=True), strict=True)}  # fmt: skip


def _summary(found: Survey, profiles: dict[str, Profile], hierarchy: ConceptHierarchy) -> dict[str, Any]:
    """What is said of all bits together, and of the hierarchy."""
    strength = {kind: float(np.abs(profile.correlation).max(axis=0, initial=0).mean())
                for kind, profile in profiles.items()}  # fmt: skip
    levels = {
        name: {"information": level.information, "js": float(level.weights @ level.js)}
        for name, level in (("coarse", hierarchy.coarse), ("fine", hierarchy.fine))
    }
    return {
        "images": found.n, "concepts": len(profiles["concept"].names), "constant_bits": found.moments.constant_bits,
        "strongest_correlation": strength, "drift": levels,
    }  # fmt: skip


def _meanings(profiles: dict[str, Profile]) -> list[dict[str, Any]]:
    """The strongest correlations of each bit, in words; ``bits.parquet`` has them all."""
    words: list[dict[str, Any]] = [{"bit": bit} for bit in range(profiles["fine"].correlation.shape[1])]
    for kind, profile in profiles.items():
        for bit, rows in enumerate(strongest(profile.correlation, LISTED)):
            words[bit][kind] = ", ".join(f"{profile.correlation[i, bit]:+.2f} {profile.names[i]}" for i in rows)
    return words


def _recovery(found: Survey, dataset: Dataset, labels: np.ndarray) -> dict[str, Any]:
    labelled = labels.any(axis=1)
    index = {level: places[labelled] for level, places in found.found.items()}
    components = found.semantics.components
    one_hot = np.eye(components.n_coarse)[components.coarse_labels]
    joint, mass, cooccurrence = found.label_joint, found.label_mass, found.cooccurrence
    levels = {
        "fine": Found(index["fine"], joint, mass, cooccurrence),
        "coarse": Found(index["coarse"], one_hot.T @ joint, one_hot.T @ mass, one_hot.T @ cooccurrence @ one_hot),
    }
    return recovery(labels[labelled], category_groups(dataset.name, dataset.class_names), levels)

"""The leakage audit: which concepts are label names, and how a run is graded for them."""

import re
from pathlib import Path

import numpy as np
import pytest

from stages.evaluate.inputs import Concepts
from stages.mine.leakage import guidance, label_matches, leakage_report, name_key
from stages.mine.vocabulary import read_vocabulary

NOUNS = Path(__file__).parents[1] / "stages" / "mine" / "vocabularies" / "nouns.txt"


@pytest.mark.parametrize(
    ("concept", "label"),
    [
        ("dog", "Dog"), ("buildings", "building"), ("building", "Buildings"), ("traffic_lights", "traffic light"),
        ("T-shirt", "t-shirts"), ("tshirt", "T-shirt"), ("hotdog", "hot dog"), ("Cell-Phones", "cell phone"),
        ("aquarium fish", "aquarium_fish"), ("cat kittens", "cat/kitten"), ("sky", "skies"), ("leaves", "leaf"),
        ("men", "man"), ("child", "children"), ("geese", "goose"), ("mice", "mouse"), ("buses", "bus"),
        ("glass", "glasses"), ("lenses", "lens"), ("cactus", "cacti"), ("orcas", "orca"), ("kiwis", "kiwi"),
        ("paintings", "painting"), ("saws", "saw"), ("reeds", "reed"), ("potter's wheels", "Potter’s wheel"),
        ("cafés", "Café"), ("ﬁsh", "fish"), ("水", "水"), ("$", "$"), ("tv", "TVs"), ("lilies", "Lily"),
    ],
)  # fmt: skip
def test_names_that_are_the_same(concept: str, label: str) -> None:
    assert label_matches([concept], ["something", label]) == [[label]]
    assert label_matches([label], [concept, "something"]) == [[concept]]


@pytest.mark.parametrize(
    ("concept", "label"),
    [
        ("dog", "hot dog"), ("cat", "cat/kitten"), ("kitten", "cat/kitten"), ("car", "scar"), ("plane", "airplane"),
        ("bowl", "bowling"), ("paint", "painting"), ("box", "boxing"), ("see", "saw"), ("ski", "skies"),
        ("person", "personal"), ("glas", "glass"), ("$", "€"), ("light traffic", "traffic light"), ("水", "火"),
    ],
)  # fmt: skip
def test_names_that_are_not(concept: str, label: str) -> None:
    assert label_matches([concept], [label]) == [[]]


def test_every_label_that_a_concept_names() -> None:
    matches = label_matches(["cars", "tree", "dog", "Car"], ["car", "dog", "Cars", "dog"])
    assert matches == [["car", "Cars"], [], ["dog"], ["car", "Cars"]]


def test_nothing_matches_where_there_is_nothing() -> None:
    assert label_matches(["cars", "tree"], []) == [[], []]
    assert label_matches([], ["cars"]) == []


def plural(word: str) -> str:
    """The plural by the rules of English spelling."""
    if re.search(r"[^aeiou]y$", word):
        return f"{word[:-1]}ies"
    return f"{word}es" if re.search(r"(s|x|z|ch|sh)$", word) else f"{word}s"


IRREGULAR = re.compile(r".*(man|woman|child|foot|tooth|mouse|goose|leaf|loaf|wolf|calf|elf|shelf|thief|knife|fish)")


def test_plurals_of_the_nouns_that_ship() -> None:
    words = read_vocabulary(NOUNS).words
    singular = [word for word in words if not IRREGULAR.fullmatch(word) and not re.search(r"([^s]s|people)$", word)]
    assert len(singular) > 3000
    unknown = [word for word in singular if name_key(word) != name_key(plural(word))]
    assert len(unknown) <= 5, unknown


def test_no_two_nouns_that_ship_are_taken_for_one() -> None:
    words = read_vocabulary(NOUNS).words
    matches = zip(words, label_matches(words, words), strict=True)
    assert {word: labels for word, labels in matches if labels != [word]} == {
        "glass": ["glass", "glasses"], "glasses": ["glass", "glasses"],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "kept", "overlapping", "grade"),
    [
        ("dsch", 20, 20, "images alone"),
        ("fused", 0, 0, "images alone"),
        ("uhscm", 20, 0, "general vocabulary"),
        ("uhscm", 20, 1, "the data set's own names"),
        ("fused", 20, 20, "the data set's own names"),
        ("greedyhash", 20, 20, "images alone"),
        ("bihalf", 20, 20, "images alone"),
        ("cibhash", 20, 20, "images alone"),
        ("sdc", 20, 20, "images alone"),
        ("duh_eg", 20, 0, "general vocabulary"),
        ("duh_eg", 20, 1, "the data set's own names"),
    ],
)
def test_grades(method: str, kept: int, overlapping: int, grade: str) -> None:
    assert guidance(method, kept, overlapping) == grade


@pytest.mark.parametrize(
    ("method", "names", "overlap"),
    [
        ("uhscm", ["cat", "wheel"], {"cat": ["Cats"]}),
        ("duh_eg", ["cat", "wheel", "dog"], {"cat": ["Cats"], "dog": ["Dog"]}),
    ],
)
def test_what_a_method_was_free_to_learn_from(method: str, names: list[str], overlap: dict[str, list[str]]) -> None:
    """The kept concepts, or all candidates; a name of a class that was left out guides none."""
    candidates, reasons = ["cat", "wheel", "dog", "tree"], ["", "", "too rare", "label name"]
    concepts = Concepts(candidates, np.zeros(4, np.int64), reasons, None, None)
    assert concepts.guiding(method) == names
    assert concepts.overlapping(method, ["Cats", "Dog", "Tree"]) == overlap


def test_the_report_names_what_differs() -> None:
    overlap = {"Dog": ["dog"], "cars": ["car"], "car": ["car"], "hotdog": ["hot dog", "Hot-Dogs"]}
    assert leakage_report("fused", 9, overlap) == {
        "guidance": "the data set's own names",
        "concepts_overlapping_labels": 4,
        "labels_named_by_concepts": 4,
        "overlapping_concepts": ["Dog", "cars (label car)", "car", "hotdog (label hot dog, Hot-Dogs)"],
    }
    assert leakage_report("fused", 9, {})["guidance"] == "general vocabulary"

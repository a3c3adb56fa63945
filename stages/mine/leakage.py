"""Leakage audit: which concepts are the data set's own label names.

A study of unsupervised hashing keeps apart guidance from images alone, from a general vocabulary, and from the class
names of the data set, which a truly unlabelled collection does not have.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import simplemma

#: Methods that no concept guides.
IMAGES_ALONE = frozenset(("dsch", "greedyhash", "bihalf", "cibhash", "sdc"))

#: Methods that choose among all candidate concepts by themselves; the others are guided by those that mining kept.
WHOLE_VOCABULARY = frozenset(("duh_eg",))

#: Grade of a run that was guided by names of the data set's own classes.
LEAKAGE = "the data set's own names"

#: Plurals that the lemmatiser misreads, most of them for verbs (leaves: to leave).
PLURALS = {
    "calves": "calf", "crosses": "cross", "curries": "curry", "halves": "half", "leaves": "leaf", "lenses": "lens",
    "loaves": "loaf", "shelves": "shelf", "skies": "sky", "thieves": "thief", "wives": "wife",
}  # fmt: skip


def label_matches(concepts: Sequence[str], class_names: Sequence[str]) -> list[list[str]]:
    """The class names that each concept is another spelling or number of: one list a concept, [] for most.

    Compared are whole names: lower case, separators (``_ - /`` and spaces) disregarded, every word in its base form. So
    "buildings" is "building", "traffic_lights" is "traffic light", "T-shirt" is "t-shirts" and "hotdog" is "hot dog".
    A compound class name such as "cat/kitten" is matched by "cat kittens", not by "cat"; synonyms are not known
    ("plane", "airplane").
    """
    labels: dict[str, list[str]] = {}
    for name in dict.fromkeys(class_names):
        labels.setdefault(name_key(name), []).append(name)
    return [labels.get(name_key(concept), []) if labels else [] for concept in concepts]


def name_key(name: str) -> str:
    """What names that are compared have in common: the base forms of their words, joined."""
    folded = unicodedata.normalize("NFKC", name).lower().replace("’", "'")
    return "".join(map(_base, re.findall(r"[^\W_]+(?:'[^\W_]+)*", folded))) or folded  # folded: a name without words


@cache
def _base(word: str) -> str:
    """The base form of an English noun in lower case; other words come out as something all their forms share."""
    # "building" is a noun here; and what has a plural of its own ("saws") is no form of another word ("see").
    if word.endswith("ing") or _lemma(f"{word}s") == word:
        return word
    lemma = PLURALS.get(word) or _lemma(word)
    # A plural that is not in the dictionary (orcas). A singular in -s (lens) loses it too, but so does its plural.
    return lemma[:-1] if lemma.endswith("s") and not lemma.endswith("ss") else lemma


def _lemma(word: str) -> str:
    return simplemma.lemmatize(word, lang="en").lower()


def guidance(method: str, n_concepts: int, n_overlapping: int) -> str:
    """The grade of a run: what guided `method`, given its concepts and those of them that are label names."""
    if method in IMAGES_ALONE or not n_concepts:
        return "images alone"
    return LEAKAGE if n_overlapping else "general vocabulary"


def leakage_report(method: str, n_concepts: int, overlap: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What guided the run: the grade, and how much of the guidance were the data set's own label names.

    Args:
        method: of the run.
        n_concepts: the number of concepts that guided it: the candidates for :data:`WHOLE_VOCABULARY`, else the kept.
        overlap: those of them that are names of classes, each with these names.
    """
    return {
        "guidance": guidance(method, n_concepts, len(overlap)),
        "concepts_overlapping_labels": len(overlap),
        "labels_named_by_concepts": len({label for labels in overlap.values() for label in labels}),
        "overlapping_concepts": [
            concept if {concept.lower()} == {label.lower() for label in labels}
            else f"{concept} (label {', '.join(labels)})" for concept, labels in overlap.items()
        ],
    }  # fmt: skip

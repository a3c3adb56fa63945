"""Texts as queries: their feature, and a code for it.

A text's feature lies away from those of images, so the hashing network says nothing of it. What it would say of the
images that the text describes is asked instead: of the training images, those most like the text are looked up, and
their relaxed codes averaged. :file:`docs/search.md` says how well that finds things.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.artifacts import CLIP, CONCEPTS, Provenance
from stages.clip import ClipModel, load_clip_of
from stages.errors import InputError
from stages.tables import read_table, unit_matrix

#: Training images whose codes are averaged: one alone may be odd, and of many only few show all that a text names.
EXAMPLES = 5
#: What a text stands in, as the captions did that CLIP was trained with.
PROMPT = "a photo of {text}"


def text_code(text: np.ndarray, images: np.ndarray, relaxed: np.ndarray) -> np.ndarray:
    """The relaxed code (bits,) of a text.

    Args:
        text: its feature (d,); images: features (n, d) of images, all of unit length; relaxed: their codes (n, bits).
    """
    likest = np.argsort(-(images @ text), kind="stable")[:EXAMPLES]
    return relaxed[likest].mean(axis=0)


class Texts:
    """Features of texts, of the model of a project; it is loaded when a text is no concept of the run.

    Args:
        like, like_path: an artifact whose data set and model must be those of the project.
    """

    def __init__(self, project: Path, like: Provenance, like_path: Path, device: str) -> None:
        self.project, self.device = project, device
        self.like, self.like_path = like, like_path
        table, made_from, _ = read_table(project / CONCEPTS, {"concept": pa.string(), "text_feature": None})
        made_from.require_same(like, project / CONCEPTS, like_path)
        features = unit_matrix(table, "text_feature", project / CONCEPTS)
        self._concepts = dict(zip((name.casefold() for name in table["concept"].to_pylist()), features, strict=True))

    def features(self, texts: Sequence[str]) -> list[np.ndarray | InputError]:
        """The feature of each text, float32 (d,) of unit length: that which was mined with, where it is a concept.

        An :class:`InputError` in place of it says that the text is empty, or that there is no model that encodes it.
        """
        found: list[np.ndarray | InputError | None] = []
        unknown: dict[int, str] = {}
        for place, text in enumerate(texts):
            words = " ".join(text.split())
            if not words:
                found.append(InputError("search: the text is empty; describe what the images should show"))
                continue
            found.append(self._concepts.get(words.casefold()))
            if found[-1] is None:
                unknown[place] = words if words.casefold().startswith("a photo") else PROMPT.format(text=words)
        try:
            rows = self._model.encode_texts(list(unknown.values())).numpy() if unknown else ()
        except InputError as error:
            rows = [error] * len(unknown)
        for place, row in zip(unknown, rows, strict=True):
            found[place] = row
        return found

    @cached_property
    def _model(self) -> ClipModel:
        return load_clip_of(self.like, self.like_path, self.project / CLIP, self.device)

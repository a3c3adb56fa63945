"""What a search finds."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Hits:
    """Images of the index, best first.

    Attributes:
        query: what was searched for, in words.
        code: its code, packed, uint8 (bits / 8,).
        ids: int64 (k,); distances: Hamming distances in bits, int32 (k,).
        scores: cosines of the float features with the query's by which the hits are ordered, float32 (k,), NaN for an
            image without features; None where they are ordered by distance.
        names: the file name that each image came with; labels: of each image, where it has some.
        feature: of the query, float32 (d,) of unit length; None where the search had no need of it.
    """

    query: str
    code: np.ndarray
    ids: np.ndarray
    distances: np.ndarray
    scores: np.ndarray | None
    names: list[str | None]
    labels: list[list[str]]
    feature: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to_dicts(self) -> list[dict[str, Any]]:
        """The hits as JSON has them: rank (from 1), id, distance, score (null: none), name, labels."""
        scores = [None] * len(self) if self.scores is None else self.scores.tolist()
        return [
            {"rank": rank, "id": int(image), "distance": int(distance),
             "score": None if score is None or np.isnan(score) else round(score, 4), "name": name, "labels": labels}
            for rank, (image, distance, score, name, labels) in enumerate(
                zip(self.ids, self.distances, scores, self.names, self.labels, strict=True), 1
            )
        ]  # fmt: skip

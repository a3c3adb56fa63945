"""One code put into words: which concepts and components its image has, and what each bit says of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stages.explain.bits import Profile, hamming, likeness, strongest
from stages.explain.hierarchy import top_entries
from stages.explain.tables import component_name

#: Entries of each list at most: concepts and components of the image, nearest concepts, and meanings of a bit.
LISTED, MEANINGS = 5, 4
#: Shares and responsibilities below this are not listed.
SMALLEST = 0.005
#: Digits after the point.
DIGITS = 4


def read_code(
    signs: np.ndarray, shares: np.ndarray, posteriors: Mapping[str, np.ndarray], profiles: Mapping[str, Profile],
    component_concepts: Mapping[str, Sequence[Sequence[str]]],
) -> dict[str, Any]:  # fmt: skip
    """What can be said of the code of an image, as JSON has it.

    Args:
        signs: (K,) in {-1, +1}.
        shares: (m,) concept distribution of the image.
        posteriors: (k,) responsibilities of the components, by level (``fine``, ``coarse``).
        profiles: of the bits, by kind (``concept``, ``fine``, ``coarse``).
        component_concepts: the main concepts of each component, by level.

    Returns:
        code, as 0 and 1; concepts and components of the image, by share; nearest, the concepts (fine components where
        there are none) whose mean code is most like the code; and for each bit its strongest meanings, signed: above 0
        where the bit tends to be 1 on images with it. ``speaks_for``: the value of the bit makes it more likely.
    """
    kind = "concept" if profiles["concept"].names else "fine"
    meanings = profiles[kind]
    near = likeness(signs[None], meanings.mean_code)[0]
    distance = hamming(signs[None], meanings.mean_code)[0]
    order = [int(i) for i in np.argsort(-near, kind="stable") if meanings.present[i]][:LISTED]
    return {
        "code": "".join("1" if sign > 0 else "0" for sign in signs),
        "concepts": [{"name": profiles["concept"].names[i], "share": _rounded(shares[i])} for i in _listed(shares)],
        "components": {
            level: [{"name": component_name(level, i), "responsibility": _rounded(values[i]),
                     "concepts": list(component_concepts[level][i])} for i in _listed(values)]
            for level, values in posteriors.items()
        },
        "nearest": [{"name": meanings.names[i], "cosine": _rounded(near[i]), "hamming": int(distance[i])}
                    for i in order],
        "bits": [
            {"bit": bit, "value": int(signs[bit] > 0), "meanings": [
                {"name": meanings.names[i], "correlation": _rounded(meanings.correlation[i, bit]),
                 "speaks_for": bool(meanings.correlation[i, bit] * signs[bit] > 0)} for i in rows
            ]} for bit, rows in enumerate(strongest(meanings.correlation, MEANINGS))
        ],
    }  # fmt: skip


def _listed(values: np.ndarray) -> list[int]:
    return [i for i in top_entries(values[None], LISTED)[0] if values[i] >= SMALLEST]


def _rounded(value: float) -> float:
    return round(float(value), DIGITS)

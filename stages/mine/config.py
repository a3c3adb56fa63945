"""Concepts of the images: prompt a vocabulary, denoise it, mine each image's distribution (UHSCM 1-4).

Reads data/features.h5, data/dataset.json and models/clip, writes data/concepts.parquet (every candidate, kept or why
not) and data/concept_distribution.parquet (one row a training image).
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from stages.params import Device, Frozen


def _has_place(prompt: str) -> str:
    if prompt.count("{concept}") != 1:
        raise ValueError("must contain {concept} once")
    return prompt


class Concepts(Frozen):
    """Section ``concepts``."""

    vocabulary: str  # a text file, one concept a line, # begins a comment
    prompt: Annotated[str, AfterValidator(_has_place)]
    exclude_label_names: bool  # leave out concepts that are class names of the data set (leakage)
    tau: float = Field(gt=0)  # temperature of the softmax; the paper: 1, 2 or 3
    min_frequency: float | None = Field(ge=0)  # keep a concept that is the top one of more than this * n / m images
    max_frequency: float | None = Field(gt=0)  # ... and of fewer than this * n images; null: no such bound


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
    concepts: Concepts

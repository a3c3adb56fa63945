"""Concepts of the images: prompt a vocabulary, denoise it, mine each image's distribution (UHSCM 1-4).

concepts.vocabulary is a text file (one concept a line) or a Parquet file with the columns concept and text_feature, as
data/concepts.parquet is; concepts.prompt one template or a list of them, whose text features are averaged.

Reads data/features.h5, data/dataset.json and models/clip, writes data/concepts.parquet (every candidate, kept or why
not) and data/concept_distribution.parquet (one row a training image). Without a text side, both have no concepts.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field

from stages.params import Device, Frozen


def _templates(value: object) -> str | tuple[str, ...]:
    templates = value if isinstance(value, list | tuple) else [value]
    if not templates:
        raise ValueError("must have at least one template")
    for template in templates:
        if not isinstance(template, str):
            raise ValueError("must be a template, or a list of templates")
        if template.count("{concept}") != 1:
            raise ValueError("must contain {concept} once" + (f", '{template}' does not" if template != value else ""))
    if len(set(templates)) < len(templates):
        raise ValueError("has a template twice")
    return value if isinstance(value, str) else tuple(templates)


class Concepts(Frozen):
    """Section ``concepts``."""

    vocabulary: str  # a text file, one concept a line, # begins a comment; or Parquet with text features
    prompt: Annotated[str | tuple[str, ...], BeforeValidator(_templates)]  # one template, or several to average
    exclude_label_names: bool  # leave out concepts that are class names of the data set (leakage)
    tau: float = Field(gt=0)  # temperature of the softmax; the paper: 1, 2 or 3
    min_frequency: float | None = Field(ge=0)  # keep a concept that is the top one of more than this * n / m images
    max_frequency: float | None = Field(gt=0)  # ... and of fewer than this * n images; null: no such bound


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    device: Device
    concepts: Concepts

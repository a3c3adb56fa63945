"""Semantic components: a mixture of fine ones, their co-occurrence and a coarse level (DSCH, first E-step).

Reads data/features.h5, writes data/components.h5. Training starts from these components and then re-estimates them on
its own codes; here they can be inspected before any training.
"""

from typing import Literal

from pydantic import Field, model_validator

from stages.params import Frozen, Seed


class Components(Frozen):
    """Section ``components``."""

    mixture: Literal["gaussian", "kmeans"]  # what the fine components are
    assignment: Literal["soft", "hard"]  # all responsibilities of an image, or 1 for the likeliest component
    fine: int = Field(gt=0)  # fine components (the paper's m1)
    coarse: int = Field(gt=0)  # clusters of component means (m2)
    pca: int = Field(gt=0)  # dimensions that the features are reduced to
    iterations: int = Field(gt=0)  # EM iterations at most
    reg_covar: float = Field(gt=0, lt=1)  # added to every variance, as a share of the data's largest variance
    top: int = Field(gt=0)  # responsibilities kept per image

    @model_validator(mode="after")
    def _fewer_coarse(self) -> "Components":
        if self.coarse > self.fine:
            raise ValueError(f"coarse ({self.coarse}) must be at most fine ({self.fine})")
        return self


class Params(Frozen):
    """Keys of ``params.yaml`` that this stage reads."""

    seed: Seed
    components: Components

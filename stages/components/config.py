"""Semantic components: a Gaussian mixture, its co-occurrence and a coarse level over it (DSCH, first E-step).

Reads data/features.h5, writes data/components.h5. Training starts from these components and then re-estimates them on
its own codes; here they can be inspected before any training.
"""

from pydantic import Field, model_validator

from stages.params import Frozen, Seed


class Components(Frozen):
    """Section ``components``."""

    fine: int = Field(gt=0)  # Gaussian components (the paper's m1)
    coarse: int = Field(gt=0)  # clusters of component means (m2)
    pca: int = Field(gt=0)  # dimensions that the features are reduced to
    iterations: int = Field(gt=0)  # EM iterations at most
    reg_covar: float = Field(gt=0)  # added to every variance
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
